// GGUF files, by ggml's own gguf API: what is in one, and a new one made of parts of others.
#pragma once

#include <napi.h>

Napi::Value read_gguf(const Napi::CallbackInfo & info);
Napi::Value write_gguf(const Napi::CallbackInfo & info);
Napi::Value quantize(const Napi::CallbackInfo & info);

// GGUF files: what is in one, a new one made of parts of others, and one in another type. readGguf, writeGguf,
// namesFound and quantizeGguf in lib/runtime/addon.ts.
#pragma once

#include <napi.h>

namespace binding {

Napi::Value read_gguf(const Napi::CallbackInfo & info);
Napi::Value write_gguf(const Napi::CallbackInfo & info);
Napi::Value names_found(const Napi::CallbackInfo & info);
Napi::Value quantize_gguf(const Napi::CallbackInfo & info);

} // namespace binding

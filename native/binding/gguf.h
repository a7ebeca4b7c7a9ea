// GGUF files: what is in one, and a new one made of parts of others. readGguf and writeGguf in lib/runtime/addon.ts.
#pragma once

#include <napi.h>

namespace binding {

Napi::Value read_gguf(const Napi::CallbackInfo & info);
Napi::Value write_gguf(const Napi::CallbackInfo & info);

} // namespace binding

// Locks of files between processes, which Node.js doesn't have.
#pragma once

#include <napi.h>

namespace binding {

// Takes an open file (its descriptor) for this process until it is closed or the process ends. Returns false if another
// one has it.
Napi::Value lock_file(const Napi::CallbackInfo & info);

} // namespace binding

// The metadata of a planned file.
#pragma once

#include "gguf/plan.h"
#include "gguf/read.h"

// The metadata of `source`, which may be null, changed as the plan says. Strings keep all of their bytes.
gguf_ptr build_metadata(const gguf_context * source, const gguf_plan & plan);

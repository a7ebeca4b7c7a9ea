// The metadata of a planned file.
#pragma once

#include "gguf.h"
#include "gguf/plan.h"

// Copies the metadata of `source`, which may be null, and changes it as the plan says.
void build_metadata(gguf_context * out, const gguf_context * source, const gguf_plan & plan);

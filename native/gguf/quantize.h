// A copy of a model with its weights in another type, made by libllama's own quantizer.
#pragma once

#include "engine/task.h"

#include <string>

// What llama-quantize makes of a type's name, such as "Q4_K_M"; weights that are quantized already are quantized anew.
// Progress is told in tensors. Memory: that of the largest tensors, as F32 and in both types.
// Throws for an unknown name, and where the quantizer fails; what it has written until then is left.
void quantize_gguf(const std::string &  input,
                   const std::string &  output,
                   const std::string &  type,
                   int                  n_threads,
                   const task_control & control);

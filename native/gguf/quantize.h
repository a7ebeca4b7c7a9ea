// A copy of a model with its weights in another type, made by libllama's own quantizer.
#pragma once

#include "engine/task.h"
#include "ggml.h"

#include <string>
#include <utility>
#include <vector>

struct quantize_request {
    std::string input;
    std::string output;
    std::string type; // as llama-quantize names it, such as "Q4_K_M"
    int         n_threads = 1;

    // Of tensors, by name, how much each column matters: [n_matrices × n_columns]. Some types can't do without.
    std::vector<std::pair<std::string, std::vector<float>>> importance;

    // Other types for the tensors whose names a regular expression finds; the first that does counts.
    std::vector<std::pair<std::string, ggml_type>> tensor_types;
};

// Those of some names of tensors that a pattern among `tensor_types` finds, as the quantizer reads it.
// Throws where it is no regular expression.
std::vector<std::string> names_found(const std::string & pattern, const std::vector<std::string> & names);

// What llama-quantize makes of the same; weights that are quantized already are quantized anew. Progress is told in
// tensors. Memory: that of the largest tensors, as F32 and in both types.
// Throws for an unknown name, and where the quantizer fails; what it has written until then is left.
void quantize_gguf(const quantize_request & request, const task_control & control);

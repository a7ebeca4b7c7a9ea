// A tensor with memory of its own, and the values of tensors wherever they are.
#pragma once

#include "ggml-cpp.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

// Owns its memory, in the buffer type that it was made for: F32 [n_values, n_tokens].
struct device_tensor {
    ggml_context_ptr        context;
    ggml_backend_buffer_ptr buffer;
    ggml_tensor *           tensor = nullptr; // null where there was no memory
};

device_tensor new_device_tensor(ggml_backend_buffer_type_t type, int64_t n_values, int64_t n_tokens);

// A matrix with memory of its own, for graphs to read.
// values: row after row, each of n_values
// Throws where there is no memory for it.
std::shared_ptr<ggml_tensor> new_matrix(ggml_backend_buffer_type_t type,
                                        size_t                     n_values,
                                        const std::vector<float> & values);

// Some tokens' values of a tensor that has memory, as a tensor of its own.
struct tensor_view {
    ggml_context_ptr context;
    ggml_tensor *    tensor;
};

tensor_view view_of_tokens(ggml_tensor * t, int64_t first, int64_t count);

// All values of an F32 tensor, copied to the host.
std::vector<float> values_of(const ggml_tensor * t);

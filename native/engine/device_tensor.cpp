#include "engine/device_tensor.h"

#include "ggml-backend.h"

#include <utility>

device_tensor new_device_tensor(ggml_backend_buffer_type_t type, int64_t n_values, int64_t n_tokens) {
    device_tensor made;
    made.context.reset(ggml_init({ .mem_size = ggml_tensor_overhead(), .mem_buffer = nullptr, .no_alloc = true }));
    made.tensor = ggml_new_tensor_2d(made.context.get(), GGML_TYPE_F32, n_values, n_tokens);
    made.buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(made.context.get(), type));
    return made.buffer ? std::move(made) : device_tensor{};
}

std::vector<float> values_of(const ggml_tensor * t) {
    std::vector<float> values(ggml_nelements(t));
    ggml_backend_tensor_get(t, values.data(), 0, ggml_nbytes(t));
    return values;
}

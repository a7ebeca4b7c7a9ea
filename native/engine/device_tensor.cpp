#include "engine/device_tensor.h"

#include "ggml-backend.h"

#include <stdexcept>
#include <utility>

device_tensor new_device_tensor(ggml_backend_buffer_type_t type, int64_t n_values, int64_t n_tokens) {
    device_tensor made;
    made.context.reset(ggml_init({ .mem_size = ggml_tensor_overhead(), .mem_buffer = nullptr, .no_alloc = true }));
    made.tensor = ggml_new_tensor_2d(made.context.get(), GGML_TYPE_F32, n_values, n_tokens);
    made.buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(made.context.get(), type));
    return made.buffer ? std::move(made) : device_tensor{};
}

std::shared_ptr<ggml_tensor> new_matrix(ggml_backend_buffer_type_t type,
                                        size_t                     n_values,
                                        const std::vector<float> & values) {
    const auto made = std::make_shared<device_tensor>(
        new_device_tensor(type, (int64_t) n_values, (int64_t) (values.size() / n_values)));
    if (!made->tensor) {
        throw std::runtime_error("there is no memory on the device for a matrix that was fitted");
    }
    ggml_backend_tensor_set(made->tensor, values.data(), 0, ggml_nbytes(made->tensor));
    return { made, made->tensor };
}

tensor_view view_of_tokens(ggml_tensor * t, int64_t first, int64_t count) {
    tensor_view view;
    view.context.reset(ggml_init({ .mem_size = ggml_tensor_overhead(), .mem_buffer = nullptr, .no_alloc = true }));
    view.tensor = ggml_view_2d(view.context.get(), t, t->ne[0], count, t->nb[1], (size_t) first * t->nb[1]);
    ggml_backend_view_init(view.tensor);
    return view;
}

std::vector<float> values_of(const ggml_tensor * t) {
    std::vector<float> values(ggml_nelements(t));
    ggml_backend_tensor_get(t, values.data(), 0, ggml_nbytes(t));
    return values;
}

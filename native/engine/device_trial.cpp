#include "engine/device_trial.h"

#include "ggml-cpp.h"
#include "ggml.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

constexpr int64_t N_VALUES = 256;
constexpr int64_t N_TOKENS = 64;

// Numbers from −1 to 1 that are the same everywhere.
std::vector<float> numbers(size_t count, uint32_t state) {
    std::vector<float> values(count);
    for (float & value : values) {
        state = state * 1664525u + 1013904223u; // Numerical Recipes' generator
        value = (float) (state >> 8) / (float) (1 << 23) - 1;
    }
    return values;
}

// The likelihoods that a layer's weights give, F16 and Q8_0, behind an RMSNorm.
std::vector<float> compute_on(ggml_backend_dev_t device) {
    const ggml_backend_ptr backend(ggml_backend_dev_init(device, nullptr));
    if (!backend) {
        throw std::runtime_error("it can't be initialised");
    }
    const ggml_init_params params = { .mem_size   = 16 * ggml_tensor_overhead() + ggml_graph_overhead(),
                                      .mem_buffer = nullptr,
                                      .no_alloc   = true };
    const ggml_context_ptr context(ggml_init(params));
    ggml_context *         ctx    = context.get();
    ggml_tensor *          first  = ggml_new_tensor_2d(ctx, GGML_TYPE_F16, N_VALUES, N_VALUES);
    ggml_tensor *          second = ggml_new_tensor_2d(ctx, GGML_TYPE_Q8_0, N_VALUES, N_VALUES);
    ggml_tensor *          input  = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, N_VALUES, N_TOKENS);
    ggml_tensor *          normed = ggml_rms_norm(ctx, input, 1e-5f);
    ggml_tensor *          middle = ggml_add(ctx, input, ggml_mul_mat(ctx, first, normed));
    ggml_tensor *          result = ggml_soft_max(ctx, ggml_mul_mat(ctx, second, middle));

    const ggml_backend_buffer_ptr memory(ggml_backend_alloc_ctx_tensors(ctx, backend.get()));
    if (!memory) {
        throw std::runtime_error("it has no memory");
    }
    const std::vector<float> values = numbers(N_VALUES * N_VALUES, 1);
    for (ggml_tensor * weights : { first, second }) {
        std::vector<uint8_t> bytes(ggml_nbytes(weights));
        ggml_quantize_chunk(weights->type, values.data(), bytes.data(), 0, N_VALUES, N_VALUES, nullptr);
        ggml_backend_tensor_set(weights, bytes.data(), 0, bytes.size());
    }
    ggml_backend_tensor_set(input, numbers(N_VALUES * N_TOKENS, 2).data(), 0, ggml_nbytes(input));

    ggml_cgraph * graph = ggml_new_graph(ctx);
    ggml_build_forward_expand(graph, result);
    if (ggml_backend_graph_compute(backend.get(), graph) != GGML_STATUS_SUCCESS) {
        throw std::runtime_error("it can't compute");
    }
    std::vector<float> computed(N_VALUES * N_TOKENS);
    ggml_backend_tensor_get(result, computed.data(), 0, ggml_nbytes(result));
    return computed;
}

} // namespace

void try_device(ggml_backend_dev_t device) {
    const std::vector<float> expected = compute_on(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU));
    const std::vector<float> computed = compute_on(device);
    double                   off = 0, all = 0;
    for (size_t i = 0; i < expected.size(); i++) {
        off += std::abs((double) computed[i] - expected[i]);
        all += expected[i];
    }
    if (!(off < 0.05 * all)) { // or NaN
        throw std::runtime_error("it computes something else than the CPU");
    }
}

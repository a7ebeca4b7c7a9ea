#include "engine/least_squares.h"

#include "engine/device_tensor.h"
#include "engine/llama_errors.h"
#include "engine/threads.h"
#include "ggml-alloc.h"
#include "ggml-backend.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

namespace {

// The solution is good enough once the residual of each column has shrunk by this factor: products of floats carry no
// more digits.
constexpr double TOLERANCE = 1e-5;

// Conjugate gradients take about as many steps as the square root of the condition number, which the ridge bounds.
constexpr int MOST_STEPS = 500;

// How many steps are made between two looks at the residual, each of which waits for the device.
constexpr int STEPS_AT_ONCE = 8;

// A context that holds the tensors of one graph, without their values.
ggml_context_ptr graph_context() {
    const size_t size = 64 * ggml_tensor_overhead() + ggml_graph_overhead();
    return ggml_context_ptr(ggml_init({ .mem_size = size, .mem_buffer = nullptr, .no_alloc = true }));
}

// Memory for the tensors of a context that have values of their own; they are zero.
ggml_backend_buffer_ptr allocate(ggml_context * ctx, ggml_backend_t device) {
    ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(ctx, device));
    if (!buffer) {
        throw std::runtime_error("there is no memory on the device for the sums of a least squares fit");
    }
    ggml_backend_buffer_clear(buffer.get(), 0);
    return buffer;
}

// A graph with memory for what it computes on the way.
class planned_graph {
public:
    planned_graph(ggml_backend_t device, ggml_cgraph * graph) :
        device(device),
        graph(graph),
        memory(ggml_gallocr_new(ggml_backend_get_default_buffer_type(device))) {
        if (!ggml_gallocr_alloc_graph(memory.get(), graph)) {
            throw std::runtime_error("there is no memory on the device to compute a least squares fit");
        }
    }

    void run() const {
        if (ggml_backend_graph_compute(device, graph) != GGML_STATUS_SUCCESS) {
            throw std::runtime_error("the device could not compute a least squares fit");
        }
    }

private:
    const ggml_backend_t   device;
    ggml_cgraph * const    graph;
    const ggml_gallocr_ptr memory;
};

// Products contract the first dimension. Not in half precision, which some backends choose.
ggml_tensor * product(ggml_context * ctx, ggml_tensor * a, ggml_tensor * b) {
    ggml_tensor * result = ggml_mul_mat(ctx, a, b);
    ggml_mul_mat_set_prec(result, GGML_PREC_F32);
    return result;
}

double mean_of(const std::vector<float> & values) {
    return std::accumulate(values.begin(), values.end(), 0.0) / (double) values.size();
}

ggml_tensor * new_input(ggml_context * ctx, int64_t n_values, int64_t n_tokens) {
    ggml_tensor * t = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, n_values, n_tokens);
    ggml_set_input(t);
    return t;
}

ggml_backend_dev_t device_of(ggml_backend_buffer_type_t memory) {
    ggml_backend_dev_t device = ggml_backend_buft_get_device(memory);
    // memory of the host has none
    return device ? device : ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
}

// n_threads: on the CPU
ggml_backend_ptr new_backend(ggml_backend_dev_t device, int n_threads) {
    ggml_backend_ptr backend(ggml_backend_dev_init(device, nullptr));
    if (!backend) {
        throw std::runtime_error("the device could not be used for a least squares fit");
    }
    using set_threads_function = void (*)(ggml_backend_t, int);
    const auto set_threads     = (set_threads_function) ggml_backend_reg_get_proc_address(
        ggml_backend_dev_backend_reg(device), "ggml_backend_set_n_threads");
    if (set_threads) {
        set_threads(backend.get(), n_threads);
    }
    return backend;
}

} // namespace

double mean_square(const float * values, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        sum += (double) values[i] * values[i];
    }
    return sum / (double) n;
}

float inverse_rms(const float * values, size_t n, float epsilon) {
    return (float) (1 / std::sqrt(mean_square(values, n) + epsilon));
}

fit_device::fit_device(ggml_backend_buffer_type_t memory, int n_threads) {
    ggml_backend_dev_t device = device_of(memory);
    if (ggml_backend_dev_type(device) != GGML_BACKEND_DEVICE_TYPE_CPU) {
        parts.push_back(new_backend(device, n_threads));
        return;
    }
    n_at_once = n_threads % 2 == 0 ? 2 : 1;
    for (int part = 0; part < 2; part++) {
        parts.push_back(new_backend(device, n_threads / (int) n_at_once));
    }
}

void fit_device::for_each_part(const std::function<void(ggml_backend_t, size_t part)> & work) const {
    on_threads((int) n_at_once, [&](size_t thread) {
        const assertion_mode mode(assertion_mode::throw_error);
        for (size_t part = thread; part < parts.size(); part += n_at_once) {
            work(parts[part].get(), part);
        }
    });
}

least_squares::least_squares(const fit_device & device, int64_t n_in, int64_t n_out) :
    device(device),
    n_in(n_in),
    n_out(n_out),
    context(ggml_init({ .mem_size = 3 * ggml_tensor_overhead(), .mem_buffer = nullptr, .no_alloc = true })) {
    gram    = ggml_new_tensor_2d(context.get(), GGML_TYPE_F32, n_in, n_in);
    moments = ggml_new_tensor_2d(context.get(), GGML_TYPE_F32, n_in, n_out);
    weights = ggml_new_tensor_2d(context.get(), GGML_TYPE_F32, n_in, n_out);
    buffer  = allocate(context.get(), device.backend());
}

// The share of n columns that a part has.
least_squares::range least_squares::part_of(int64_t n, size_t part) const {
    const auto n_parts = (int64_t) device.n_parts();
    const auto first   = n * (int64_t) part / n_parts;
    return { .first = first, .count = n * ((int64_t) part + 1) / n_parts - first };
}

ggml_tensor * least_squares::columns_of(ggml_context * ctx, ggml_tensor * t, size_t part) const {
    const auto [first, count] = part_of(t->ne[1], part);
    return ggml_view_2d(ctx, t, t->ne[0], count, t->nb[1], first * t->nb[1]);
}

void least_squares::add(const float * h, const float * e, int64_t n) {
    device.for_each_part([&](ggml_backend_t backend, size_t part) { add_part(backend, part, h, e, n); });
}

void least_squares::add_part(ggml_backend_t backend, size_t part, const float * h, const float * e, int64_t n) const {
    const ggml_context_ptr owner = graph_context();
    ggml_context *         ctx   = owner.get();
    ggml_tensor *          hs    = new_input(ctx, n_in, n);
    ggml_tensor *          es    = new_input(ctx, n_out, n);
    // the sum is over the tokens, which must be the first dimension
    ggml_tensor * ht = ggml_cont(ctx, ggml_transpose(ctx, hs));
    ggml_tensor * et = ggml_cont(ctx, ggml_transpose(ctx, es));

    const auto add_product = [&](ggml_tensor * sum, ggml_tensor * with) {
        return ggml_add_inplace(ctx, columns_of(ctx, sum, part), product(ctx, ht, columns_of(ctx, with, part)));
    };
    ggml_cgraph * graph = ggml_new_graph(ctx);
    ggml_build_forward_expand(graph, add_product(gram, ht));
    ggml_build_forward_expand(graph, add_product(moments, et));
    const planned_graph sums(backend, graph);
    ggml_backend_tensor_set(hs, h, 0, ggml_nbytes(hs));
    ggml_backend_tensor_set(es, e, 0, ggml_nbytes(es));
    sums.run();
}

std::vector<float> least_squares::diagonal() const {
    std::vector<float> values(n_in);
    for (int64_t i = 0; i < n_in; i++) {
        ggml_backend_tensor_get(gram, &values[i], i * (gram->nb[0] + gram->nb[1]), sizeof(float));
    }
    return values;
}

std::vector<float> least_squares::importance() const {
    std::vector<float> values = diagonal();
    const auto         least  = (float) std::max(1e-6 * mean_of(values), 1e-30);
    std::transform(values.begin(), values.end(), values.begin(), [=](float value) { return std::max(value, least); });
    return values;
}

// Conjugate gradients (Hestenes and Stiefel 1952) for (G/m + λ)·X = C/m. Each column is solved by itself, and all of
// them at once.
void least_squares::solve(double ridge, const task_control & control) {
    solve(std::vector<float>(n_out, (float) ridge), control);
}

void least_squares::solve(const std::vector<float> & ridges, const task_control & control) {
    const double mean = mean_of(diagonal());
    if (!std::isfinite(mean)) {
        throw std::runtime_error("the residual stream has values that are not finite: nothing can be fitted to it");
    }
    ggml_backend_tensor_memset(weights, 0, 0, ggml_nbytes(weights));
    if (mean == 0) {
        return; // where nothing comes in, the ridge alone decides
    }
    device.for_each_part(
        [&](ggml_backend_t backend, size_t part) { solve_part(backend, part, ridges, mean, control); });
    const std::vector<float> found = solution();
    if (!std::all_of(found.begin(), found.end(), [](float value) { return std::isfinite(value); })) {
        throw std::runtime_error("the residual stream has values that are not finite: nothing can be fitted to it");
    }
}

void least_squares::solve_part(ggml_backend_t             backend,
                               size_t                     part,
                               const std::vector<float> & ridges,
                               double                     mean,
                               const task_control &       control) const {
    const auto [first_column, n_columns] = part_of(n_out, part);

    const ggml_context_ptr owner = graph_context();
    ggml_context *         ctx   = owner.get();
    ggml_context_ptr       state_context(
        ggml_init({ .mem_size = 4 * ggml_tensor_overhead(), .mem_buffer = nullptr, .no_alloc = true }));
    ggml_tensor * residual  = ggml_new_tensor_2d(state_context.get(), GGML_TYPE_F32, n_in, n_columns);
    ggml_tensor * direction = ggml_dup_tensor(state_context.get(), residual);
    ggml_tensor * square    = ggml_new_tensor_2d(state_context.get(), GGML_TYPE_F32, 1, n_columns); // |residual|²
    ggml_tensor * ridge     = ggml_dup_tensor(state_context.get(), square);
    const ggml_backend_buffer_ptr state = allocate(state_context.get(), backend);
    ggml_backend_tensor_set(ridge, &ridges[first_column], 0, ggml_nbytes(ridge));

    {
        ggml_cgraph * graph = ggml_new_graph(ctx);
        ggml_tensor * first = ggml_scale(ctx, columns_of(ctx, moments, part), (float) (1 / mean));
        ggml_build_forward_expand(graph, ggml_cpy(ctx, first, residual));
        ggml_build_forward_expand(graph, ggml_cpy(ctx, first, direction));
        ggml_build_forward_expand(graph, ggml_cpy(ctx, ggml_sum_rows(ctx, ggml_sqr(ctx, first)), square));
        planned_graph(backend, graph).run();
    }
    const std::vector<float> at_start = values_of(square);

    ggml_reset(ctx);
    constexpr float tiny          = 1e-30f; // a column that is solved has no residual left to divide by
    ggml_tensor *   solution      = columns_of(ctx, weights, part);
    ggml_cgraph *   graph         = ggml_new_graph(ctx);
    ggml_tensor *   image         = ggml_add(ctx, ggml_scale(ctx, product(ctx, gram, direction), (float) (1 / mean)),
                                             ggml_mul(ctx, direction, ridge));
    ggml_tensor *   curvature     = ggml_sum_rows(ctx, ggml_mul(ctx, direction, image));
    ggml_tensor *   step          = ggml_div(ctx, square, ggml_scale_bias(ctx, curvature, 1, tiny));
    ggml_tensor *   new_weights   = ggml_add(ctx, solution, ggml_mul(ctx, direction, step));
    ggml_tensor *   new_residual  = ggml_sub(ctx, residual, ggml_mul(ctx, image, step));
    ggml_tensor *   new_square    = ggml_sum_rows(ctx, ggml_sqr(ctx, new_residual));
    ggml_tensor *   ratio         = ggml_div(ctx, new_square, ggml_scale_bias(ctx, square, 1, tiny));
    ggml_tensor *   new_direction = ggml_add(ctx, new_residual, ggml_mul(ctx, direction, ratio));
    for (ggml_tensor * t : { new_weights, new_residual, new_square, new_direction }) {
        ggml_build_forward_expand(graph, t); // all are computed before the first is overwritten
    }
    ggml_build_forward_expand(graph, ggml_cpy(ctx, new_weights, solution));
    ggml_build_forward_expand(graph, ggml_cpy(ctx, new_residual, residual));
    ggml_build_forward_expand(graph, ggml_cpy(ctx, new_square, square));
    ggml_build_forward_expand(graph, ggml_cpy(ctx, new_direction, direction));
    const planned_graph one_step(backend, graph);

    bool is_solved = false;
    for (int steps = 0; steps < MOST_STEPS && !is_solved; steps += STEPS_AT_ONCE) {
        control.check();
        for (int i = 0; i < STEPS_AT_ONCE; i++) {
            one_step.run();
        }
        const std::vector<float> now = values_of(square);
        is_solved = std::equal(now.begin(), now.end(), at_start.begin(),
                               [](float value, float first) { return value <= TOLERANCE * TOLERANCE * first; });
    }
}

std::vector<float> least_squares::solution() const {
    return values_of(weights);
}

void least_squares::set_solution(const std::vector<float> & values) {
    if (values.size() != (size_t) ggml_nelements(weights)) {
        throw std::runtime_error("a matrix that was fitted before has another size");
    }
    ggml_backend_tensor_set(weights, values.data(), 0, ggml_nbytes(weights));
}

std::vector<float> least_squares::product_with(const ggml_tensor * v, int n_threads) const {
    const ggml_backend_ptr backend = new_backend(device_of(ggml_backend_buffer_get_type(v->buffer)), n_threads);
    const ggml_context_ptr owner   = graph_context();
    ggml_context *         ctx     = owner.get();
    ggml_tensor *          copy    = new_input(ctx, n_in, n_out);
    // products contract the rows of both: of W, its columns
    ggml_tensor * columns = product(ctx, const_cast<ggml_tensor *>(v), ggml_cont(ctx, ggml_transpose(ctx, copy)));
    ggml_tensor * result  = ggml_cont(ctx, ggml_transpose(ctx, columns));
    ggml_set_output(result);
    ggml_cgraph * graph = ggml_new_graph(ctx);
    ggml_build_forward_expand(graph, result);
    const planned_graph      products(backend.get(), graph);
    const std::vector<float> values = solution();
    ggml_backend_tensor_set(copy, values.data(), 0, ggml_nbytes(copy));
    products.run();
    return values_of(result);
}

std::vector<float> least_squares::apply(const float * h, int64_t n) const {
    std::vector<float> all(n * n_out);
    device.for_each_part([&](ggml_backend_t backend, size_t part) {
        const auto [first, count] = part_of(n, part);
        if (count == 0) {
            return;
        }
        const ggml_context_ptr owner  = graph_context();
        ggml_context *         ctx    = owner.get();
        ggml_tensor *          hs     = new_input(ctx, n_in, count);
        ggml_tensor *          result = product(ctx, weights, hs);
        ggml_set_output(result);
        ggml_cgraph * graph = ggml_new_graph(ctx);
        ggml_build_forward_expand(graph, result);
        const planned_graph products(backend, graph);
        ggml_backend_tensor_set(hs, h + first * n_in, 0, ggml_nbytes(hs));
        products.run();
        ggml_backend_tensor_get(result, &all[first * n_out], 0, ggml_nbytes(result));
    });
    return all;
}

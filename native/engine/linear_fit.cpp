#include "engine/linear_fit.h"

#include "engine/least_squares.h"
#include "ggml-backend.h"
#include "llama-model.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <stdexcept>

namespace {

// The residual streams of all sequences at one boundary, carried on from boundary to boundary.
class stream_walk {
public:
    stream_walk(evaluator & on, const token_sequences & sequences, skip_set skip) :
        on(&on),
        sequences(&sequences),
        skip(std::move(skip)) {}

    // Of each sequence: [n_tokens × n_embd]. The last layer computes one token less than there are.
    std::vector<std::vector<float>> values;

    // Another model's walk, from where this one is: so far they leave out the same blocks.
    stream_walk fork(skip_set other) const {
        stream_walk forked = *this;
        forked.skip        = std::move(other);
        return forked;
    }

    // Computes the blocks up to a boundary, named by the block behind it; the number of blocks is the stream's end.
    // counted: is called after each sequence
    void advance(size_t to, const task_control & control, const std::function<void()> & counted) {
        const bool from_tokens = values.empty();
        values.resize(sequences->count());
        std::shared_ptr<ggml_tensor> boundary;
        for (size_t i = 0; i < sequences->count(); i++) {
            control.check();
            graph_request request;
            request.skip    = skip;
            request.capture = { to };
            request.output  = graph_request::output_kind::none;
            if (!from_tokens && at > 0) {
                if (!boundary) {
                    boundary = on_device((int64_t) values[i].size());
                }
                ggml_backend_tensor_set(boundary.get(), values[i].data(), 0, ggml_nbytes(boundary.get()));
                request.start    = at;
                request.boundary = boundary;
            }
            const ggml_tensor * captured =
                on->run_sequence(std::move(request), sequences->sequence(i), sequences->length, control)
                    .captured.at(to);
            values[i].resize(ggml_nelements(captured));
            ggml_backend_tensor_get(captured, values[i].data(), 0, ggml_nbytes(captured));
            memory = ggml_backend_buffer_get_type(captured->buffer);
            counted();
        }
        at = to;
    }

    // Says that the values are at a later boundary now, since the caller computed them.
    void set_boundary(size_t boundary) { at = boundary; }

    // Where the last values were computed. Memory of the host has no device: there it was the CPU.
    ggml_backend_dev_t device() const {
        ggml_backend_dev_t found = ggml_backend_buft_get_device(memory);
        return found ? found : ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    }

private:
    evaluator *                on;
    const token_sequences *    sequences;
    skip_set                   skip;
    size_t                     at     = 0;
    ggml_backend_buffer_type_t memory = nullptr;

    // Memory for one sequence's values where the graph computes.
    std::shared_ptr<ggml_tensor> on_device(int64_t n_values) const {
        struct owned {
            ggml_context_ptr        context;
            ggml_backend_buffer_ptr buffer;
        };
        const auto    owner  = std::make_shared<owned>();
        const int64_t n_embd = on->model->hparams.n_embd;
        owner->context.reset(
            ggml_init({ .mem_size = ggml_tensor_overhead(), .mem_buffer = nullptr, .no_alloc = true }));
        ggml_tensor * t = ggml_new_tensor_2d(owner->context.get(), GGML_TYPE_F32, n_embd, n_values / n_embd);
        owner->buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(owner->context.get(), memory));
        if (!owner->buffer) {
            throw std::runtime_error("there is no memory on the device for a sequence's residual stream");
        }
        return { owner, t };
    }
};

// A backend of a device; on the CPU, with as many threads as the evaluator has.
ggml_backend_ptr backend_of(ggml_backend_dev_t device, int n_threads) {
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

double mean_square(const float * values, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        sum += (double) values[i] * values[i];
    }
    return sum / (double) n;
}

// x/rms(x) of each token, as llama.cpp's RMSNorm computes it.
std::vector<float> normalized(const std::vector<float> & x, size_t n_embd, float epsilon) {
    std::vector<float> result(x.size());
    for (size_t t = 0; t < x.size(); t += n_embd) {
        const auto scale = (float) (1 / std::sqrt(mean_square(&x[t], n_embd) + epsilon));
        for (size_t i = t; i < t + n_embd; i++) {
            result[i] = scale * x[i];
        }
    }
    return result;
}

// Adds a sequence's tokens, each with its weight.
void add_sequence(least_squares &            fit,
                  std::vector<float>         n,
                  const std::vector<float> & x,
                  const std::vector<float> & dense,
                  size_t                     n_embd) {
    std::vector<float> error(x.size());
    for (size_t t = 0; t < x.size(); t += n_embd) {
        const double square = mean_square(&dense[t], n_embd);
        const auto   root   = (float) (square > 0 ? 1 / std::sqrt(square) : 0);
        for (size_t i = t; i < t + n_embd; i++) {
            n[i] *= root;
            error[i] = root * (dense[i] - x[i]);
        }
    }
    fit.add(n.data(), error.data(), (int64_t) (x.size() / n_embd));
}

void check_gaps(const std::vector<gap> & gaps, size_t n_blocks) {
    if (gaps.empty()) {
        throw std::runtime_error("there is no gap");
    }
    size_t free_from = 0; // the first boundary that the next gap may begin at
    for (const auto & [before, behind] : gaps) {
        if (before < free_from || behind <= before || behind > n_blocks) {
            throw std::runtime_error("the gaps are not in ascending order, or there are no such boundaries");
        }
        free_from = behind + 1;
    }
}

} // namespace

std::vector<std::vector<float>> fit_linear_blocks(evaluator &              on,
                                                  const token_sequences &  sequences,
                                                  const std::vector<gap> & gaps,
                                                  double                   ridge,
                                                  const task_control &     control) {
    const size_t n_embd   = on.model->hparams.n_embd;
    const size_t n_blocks = on.blocks().size();
    check_gaps(gaps, n_blocks);
    skip_set removed(n_blocks);
    for (const auto & [before, behind] : gaps) {
        std::fill(removed.begin() + (ptrdiff_t) before, removed.begin() + (ptrdiff_t) behind, true);
    }

    // two walks and a fit a gap
    const double total   = 3.0 * (double) gaps.size() * (double) sequences.count();
    double       done    = 0;
    const auto   counted = [&] { control.progress(std::min(++done, total), total); };

    std::vector<std::vector<float>> found;
    stream_walk                     dense(on, sequences, skip_set(n_blocks));
    dense.advance(gaps.front().first, control, counted); // both models are the same up to the first gap
    stream_walk pruned = dense.fork(removed);
    for (const auto & [before, behind] : gaps) {
        if (!found.empty()) {
            pruned.advance(before, control, counted);
        }
        dense.advance(behind, control, counted);

        const ggml_backend_ptr backend = backend_of(dense.device(), on.options.n_threads);
        least_squares          fit(backend.get(), (int64_t) n_embd, (int64_t) n_embd);
        for (size_t i = 0; i < sequences.count(); i++) {
            control.check();
            auto & x = pruned.values[i];
            x.resize(std::min(x.size(), dense.values[i].size()));
            add_sequence(fit, normalized(x, n_embd, on.model->hparams.f_norm_rms_eps), x, dense.values[i], n_embd);
            counted();
        }
        fit.solve(ridge, control);
        found.push_back(fit.solution());
        for (auto & x : pruned.values) {
            control.check();
            const std::vector<float> n     = normalized(x, n_embd, on.model->hparams.f_norm_rms_eps);
            const std::vector<float> added = fit.apply(n.data(), (int64_t) (x.size() / n_embd));
            std::transform(x.begin(), x.end(), added.begin(), x.begin(), std::plus<>());
        }
        pruned.set_boundary(behind);
    }
    return found;
}

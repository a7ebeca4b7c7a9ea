#include "engine/divergence.h"

#include "engine/threads.h"

#include <algorithm>
#include <cmath>

namespace {

// A distribution over the vocabulary, given by its logits.
struct distribution {
    const float * logits;
    size_t        top;     // the likeliest token
    double        log_sum; // the log of the sum of exp(logits)

    distribution(const float * logits, size_t n) : logits(logits), top(std::max_element(logits, logits + n) - logits) {
        double sum = 0;
        for (size_t i = 0; i < n; i++) {
            sum += std::exp((double) (logits[i] - logits[top]));
        }
        log_sum = logits[top] + std::log(sum);
    }

    double log_p(size_t token) const { return logits[token] - log_sum; }
};

double kullback_leibler(const distribution & p, const distribution & q, size_t n) {
    double divergence = 0;
    for (size_t i = 0; i < n; i++) {
        const double log_p = p.log_p(i);
        divergence += std::exp(log_p) * (log_p - q.log_p(i));
    }
    return std::max(divergence, 0.0); // rounding may make it negative, which it never is
}

} // namespace

std::vector<float> divergence_of(evaluator &             on,
                                 const token_sequences & sequences,
                                 const skip_set &        skip,
                                 evaluator &             dense,
                                 const task_control &    control) {
    const size_t       n_vocab     = on.n_vocab();
    const size_t       n_sequences = sequences.count();
    const size_t       n           = sequences.length - 1;
    const size_t       n_threads   = on.options.n_threads;
    std::vector<float> values(4 * n_sequences * n);
    std::vector<float> nll(n), expected(n_vocab * n), found;
    for (size_t sequence = 0; sequence < n_sequences; sequence++) {
        control.check();
        float * out = values.data() + 4 * sequence * n;

        const auto run_on = [&](evaluator & model, const skip_set & left_out, size_t column) -> const graph_outputs & {
            graph_request request;
            request.skip   = left_out;
            request.output = graph_request::output_kind::logits;
            const graph_outputs & outputs =
                model.run_sequence(std::move(request), sequences.sequence(sequence), sequences.length, control);
            read_values(outputs.nll, nll.data());
            for (size_t i = 0; i < n; i++) {
                out[4 * i + column] = nll[i];
            }
            return outputs;
        };
        read_values(run_on(dense, skip_set(dense.blocks().size()), 0).logits, expected.data());
        size_t first = 0;
        for (ggml_tensor * part : run_on(on, skip, 1).logits) {
            const size_t n_rows = part->ne[1];
            found.resize(n_rows * n_vocab);
            read_values({ part }, found.data());
            on_threads((int) n_threads, [&](size_t thread) {
                for (size_t row = thread; row < n_rows; row += n_threads) {
                    const distribution p(expected.data() + (first + row) * n_vocab, n_vocab);
                    const distribution q(found.data() + row * n_vocab, n_vocab);
                    out[4 * (first + row) + 2] = (float) kullback_leibler(p, q, n_vocab);
                    out[4 * (first + row) + 3] = p.top == q.top;
                }
            });
            first += n_rows;
        }
        control.progress((double) sequence + 1, (double) n_sequences);
    }
    return values;
}

#include "engine/influence.h"

#include "engine/device_tensor.h"

#include <algorithm>
#include <cmath>

std::vector<block_influence> influence_of(evaluator &                                    on,
                                          const token_sequences &                        sequences,
                                          const std::vector<std::pair<size_t, size_t>> & pairs,
                                          const task_control &                           control) {
    const size_t n_sequences = sequences.count();

    // a graph has room for a few more operations a token, and what is compared stays in memory until its end
    const size_t                 n_at_once = std::max<size_t>(1, sequences.length / 16);
    std::vector<block_influence> sums(pairs.size());
    std::vector<size_t>          counts(pairs.size());
    for (size_t from = 0; from < pairs.size(); from += n_at_once) {
        const size_t to = std::min(pairs.size(), from + n_at_once);
        for (size_t sequence = 0; sequence < n_sequences; sequence++) {
            control.check();
            graph_request request;
            request.skip.assign(on.blocks().size(), false);
            request.output = graph_request::output_kind::none;
            request.compare.assign(pairs.begin() + (ptrdiff_t) from, pairs.begin() + (ptrdiff_t) to);
            const graph_outputs & outputs =
                on.run_sequence(std::move(request), sequences.sequence(sequence), sequences.length, control);
            for (size_t i = from; i < to; i++) {
                const auto & c   = outputs.comparisons[i - from];
                const auto   dot = values_of(c.dot), a = values_of(c.a), b = values_of(c.b);
                const auto   difference = values_of(c.difference);
                for (size_t k = 0; k < dot.size(); k++) {
                    const double norms = std::sqrt((double) a[k] * b[k]); // 0 where a token's embedding is
                    sums[i].cosine += norms > 0 ? dot[k] / norms : 0;
                    sums[i].change += b[k] > 0 ? std::sqrt((double) difference[k] / b[k]) : 0;
                }
                counts[i] += dot.size();
            }
            control.progress((double) (from * n_sequences + sequence + 1), (double) (pairs.size() * n_sequences));
        }
    }
    for (size_t i = 0; i < sums.size(); i++) {
        sums[i].cosine /= (double) counts[i];
        sums[i].change /= (double) counts[i];
    }
    return sums;
}

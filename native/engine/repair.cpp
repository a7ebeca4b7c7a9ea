#include "engine/repair.h"

#include "engine/device_tensor.h"
#include "engine/least_squares.h"
#include "engine/stream_walk.h"
#include "ggml-backend.h"
#include "llama-model.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <iterator>
#include <memory>
#include <stdexcept>

namespace {

// x/rms(x) of each token.
std::vector<float> normalized(const std::vector<float> & x, size_t n_embd, float epsilon) {
    std::vector<float> result(x.size());
    for (size_t t = 0; t < x.size(); t += n_embd) {
        const float scale = inverse_rms(&x[t], n_embd, epsilon);
        for (size_t i = t; i < t + n_embd; i++) {
            result[i] = scale * x[i];
        }
    }
    return result;
}

// Adds a sequence's tokens, each with its weight.
// h: what is multiplied, [n_tokens × n_in]; x: the stream that it is added to, dense: what that is to become,
// [n_tokens × n_embd]
void add_sequence(least_squares &            fit,
                  std::vector<float>         h,
                  const std::vector<float> & x,
                  const std::vector<float> & dense,
                  size_t                     n_embd) {
    const size_t       n_tokens = x.size() / n_embd;
    const size_t       n_in     = h.size() / n_tokens;
    std::vector<float> error(x.size());
    for (size_t t = 0; t < n_tokens; t++) {
        const double square = mean_square(&dense[t * n_embd], n_embd);
        const auto   root   = (float) (square > 0 ? 1 / std::sqrt(square) : 0);
        for (size_t i = t * n_in; i < (t + 1) * n_in; i++) {
            h[i] *= root;
        }
        for (size_t i = t * n_embd; i < (t + 1) * n_embd; i++) {
            error[i] = root * (dense[i] - x[i]);
        }
    }
    fit.add(h.data(), error.data(), (int64_t) n_tokens);
}

void add_to(std::vector<float> & x, const std::vector<float> & added) {
    std::transform(x.begin(), x.end(), added.begin(), x.begin(), std::plus<>());
}

const ggml_tensor * weights(const evaluator & on, const std::string & name) {
    return on.model->get_tensor(name.c_str());
}

// What is behind the output projection of a block. A norm adds γ⊙y/rms(y) to the stream, where y is what the projection
// gives; without one, y itself is added, as if γ and rms(y) were 1.
class post_norm {
public:
    post_norm(const evaluator & on, const residual_block & block) :
        gamma(block.post_norm.empty() ? std::vector<float>() : values_of(weights(on, block.post_norm))),
        epsilon(block.post_norm_epsilon) {}

    // Divides what is multiplied by rms(y) of its token.
    void divide(std::vector<float> & h, const std::vector<float> & y) const {
        if (gamma.empty()) {
            return;
        }
        const size_t n_tokens = y.size() / gamma.size();
        const size_t n_in     = h.size() / n_tokens;
        for (size_t t = 0; t < n_tokens; t++) {
            const float scale = scale_of(&y[t * gamma.size()]);
            for (size_t i = t * n_in; i < (t + 1) * n_in; i++) {
                h[i] *= scale;
            }
        }
    }

    // λ of each of the n rows of γ⊙Δ, so that all of Δ have one.
    std::vector<float> ridges(double ridge, size_t n) const {
        std::vector<float> result(n, (float) ridge);
        const double       square = gamma.empty() ? 0 : mean_square(gamma.data(), n);
        for (size_t i = 0; i < gamma.size(); i++) {
            result[i] = (float) (ridge * std::min(square / ((double) gamma[i] * gamma[i] + 1e-30), 1e9));
        }
        return result;
    }

    // Δ, given γ⊙Δ, row after row.
    std::vector<float> unscaled(std::vector<float> rows) const {
        for (size_t i = 0; i < rows.size() && !gamma.empty(); i++) {
            const float g = gamma[i / (rows.size() / gamma.size())];
            rows[i]       = g == 0 ? 0 : rows[i] / g;
        }
        return rows;
    }

    // Puts another branch into the stream: that of y + Δ·h for that of y.
    // change: γ⊙Δ·h of each token
    void replace(std::vector<float> & x, const std::vector<float> & y, const std::vector<float> & change) const {
        if (gamma.empty()) {
            add_to(x, change);
            return;
        }
        const size_t       n = gamma.size();
        std::vector<float> changed(n);
        for (size_t t = 0; t < x.size(); t += n) {
            for (size_t i = 0; i < n; i++) {
                changed[i] = y[t + i] + (gamma[i] == 0 ? 0 : change[t + i] / gamma[i]);
            }
            const float before = scale_of(&y[t]);
            const float now    = scale_of(changed.data());
            for (size_t i = 0; i < n; i++) {
                x[t + i] += gamma[i] * (changed[i] * now - y[t + i] * before);
            }
        }
    }

private:
    const std::vector<float> gamma; // empty: there is no norm
    const float              epsilon;

    float scale_of(const float * y) const { return inverse_rms(y, gamma.size(), epsilon); }
};

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

// The walk through both models, and what is fitted on the way.
class repair_walk {
public:
    repair_walk(evaluator &             on,
                const token_sequences & sequences,
                const repair_request &  request,
                const task_control &    control) :
        on(on),
        sequences(sequences),
        request(request),
        control(control),
        n_embd(on.model->hparams.n_embd),
        n_blocks(on.blocks().size()),
        dense(on, sequences, skip_set(n_blocks)),
        pruned(dense) {
        check_gaps(request.gaps, n_blocks);
    }

    repair_result run() {
        skip_set removed(n_blocks);
        for (const auto & [before, behind] : request.gaps) {
            std::fill(removed.begin() + (ptrdiff_t) before, removed.begin() + (ptrdiff_t) behind, true);
        }
        // both models are the same up to the first gap
        dense.advance(first_change(0), control, counted());
        pruned = dense.fork(removed);
        for (next = request.gaps.begin(); next != request.gaps.end(); next++) {
            refit_before_gap();
            pass_gap();
        }
        if (request.refit == refit_kind::all) {
            refit_up_to(n_blocks);
        }
        return std::move(result);
    }

private:
    using refit_kind = repair_request::refit_kind;

    evaluator &             on;
    const token_sequences & sequences;
    const repair_request &  request;
    const task_control &    control;
    const size_t            n_embd;
    const size_t            n_blocks;
    stream_walk             dense;
    stream_walk             pruned;
    repair_result           result;

    std::vector<gap>::const_iterator next; // the gap that the pruned stream comes to next

    std::function<void()> counted() {
        return [this] {
            const double total = (double) n_blocks * (double) sequences.count();
            const double done  = (double) pruned.boundary() * (double) sequences.count();
            control.progress(std::min(done, total), total);
        };
    }

    // Where the first block is that changes, from the first gap on.
    size_t first_change(size_t i) const {
        const size_t before = request.gaps[i].first;
        return request.refit == refit_kind::none || before == 0 ? before : before - 1;
    }

    void refit_before_gap() {
        const size_t before = next->first;
        if (request.refit == refit_kind::adjacent && before > pruned.boundary()) {
            pruned.advance(before - 1, control, counted());
        }
        if (request.refit != refit_kind::none) {
            refit_up_to(before);
        }
        pruned.advance(before, control, counted());
    }

    void refit_up_to(size_t boundary) {
        while (pruned.boundary() < boundary) {
            const size_t block = pruned.boundary();
            if (can_refit(on, block)) {
                refit(block);
            } else {
                pruned.advance(block + 1, control, counted());
            }
        }
    }

    void refit(size_t block) {
        const bool is_before_gap = next != request.gaps.end() && next->first == block + 1;
        dense.advance(is_before_gap ? next->second : block + 1, control, counted());

        const post_norm                norm(on, on.blocks()[block]);
        const ggml_backend_ptr         backend = backend_of(dense.memory(), on.options.n_threads);
        std::unique_ptr<least_squares> fit;
        for (size_t i = 0; i < sequences.count(); i++) {
            stream_walk::step step = computed_block(i);
            norm.divide(step.inner, step.projected);
            if (!fit) {
                fit = std::make_unique<least_squares>(backend.get(), (int64_t) step.n_inner, (int64_t) n_embd);
            }
            add_sequence(*fit, std::move(step.inner), step.stream, dense.values[i], n_embd);
        }
        fit->solve(norm.ridges(request.refit_ridge, n_embd), control);
        std::vector<std::vector<float>> refitted(sequences.count());
        for (size_t i = 0; i < sequences.count(); i++) {
            const stream_walk::step step = computed_block(i);
            refitted[i]                  = step.stream;
            norm.replace(refitted[i], step.projected, applied(*fit, step.inner, step.stream));
        }
        pruned.values = std::move(refitted);
        pruned.set_boundary(block + 1);
        result.refits.push_back(
            { .block = block, .change = norm.unscaled(fit->solution()), .importance = fit->importance() });
        counted()();
    }

    // W·h of the tokens of a stream.
    std::vector<float> applied(const least_squares &      fit,
                               const std::vector<float> & h,
                               const std::vector<float> & stream) const {
        return fit.apply(h.data(), (int64_t) (stream.size() / n_embd));
    }

    // The pruned stream behind its next block, and the block's inner values, of the same tokens as the dense stream.
    stream_walk::step computed_block(size_t sequence) {
        stream_walk::step step     = pruned.compute(sequence, pruned.boundary() + 1, true, control);
        const size_t      n_tokens = std::min(step.stream.size(), dense.values[sequence].size()) / n_embd;
        // the last attention block drops the token that predicts nothing behind its projection only
        step.inner.resize(n_tokens * step.n_inner);
        step.projected.resize(std::min(step.projected.size(), n_tokens * n_embd));
        step.stream.resize(n_tokens * n_embd);
        return step;
    }

    // What a linear block in the next gap starts from: the pruned stream, less the share of its error that it need not
    // correct. A block before the gap that was fitted has left nothing else than what is to be corrected.
    std::vector<std::vector<float>> streams_to_correct() {
        std::vector<std::vector<float>> y = pruned.values;
        if (dense.boundary() > next->first) {
            return y;
        }
        dense.advance(next->first, control, counted());
        const auto c = (float) request.correction;
        for (size_t i = 0; i < y.size(); i++) {
            y[i].resize(std::min(y[i].size(), dense.values[i].size()));
            std::transform(y[i].begin(), y[i].end(), dense.values[i].begin(), y[i].begin(),
                           [c](float x, float s) { return c * x + (1 - c) * s; });
        }
        return y;
    }

    void pass_gap() {
        const bool                      is_linear = request.linear.at(next - request.gaps.begin());
        std::vector<std::vector<float>> y;
        if (is_linear) {
            y = streams_to_correct();
        }
        dense.advance(next->second, control, counted());
        for (size_t i = 0; i < sequences.count(); i++) {
            auto & x = pruned.values[i];
            x.resize(std::min(x.size(), dense.values[i].size())); // the last attention block drops a token
        }
        if (!is_linear) {
            pruned.set_boundary(next->second);
            return;
        }
        const float            epsilon = on.model->hparams.f_norm_rms_eps;
        const ggml_backend_ptr backend = backend_of(dense.memory(), on.options.n_threads);
        least_squares          fit(backend.get(), (int64_t) n_embd, (int64_t) n_embd);
        for (size_t i = 0; i < sequences.count(); i++) {
            control.check();
            const auto & x = pruned.values[i];
            y[i].resize(x.size());
            add_sequence(fit, normalized(x, n_embd, epsilon), y[i], dense.values[i], n_embd);
        }
        fit.solve(request.linear_ridge, control);
        for (auto & x : pruned.values) {
            control.check();
            add_to(x, applied(fit, normalized(x, n_embd, epsilon), x));
        }
        pruned.set_boundary(next->second);
        result.linear.push_back(fit.solution());
        counted()();
    }
};

} // namespace

bool can_refit(const evaluator & on, size_t block) {
    const auto &           blocks          = on.blocks();
    const residual_block & b               = blocks[block];
    const bool             is_shared       = block + 1 < blocks.size() && blocks[block + 1].parallel;
    const bool             has_norm_in_f32 = b.post_norm.empty() || weights(on, b.post_norm)->type == GGML_TYPE_F32;
    return !b.output.empty() && b.direct && !b.parallel && !is_shared && has_norm_in_f32;
}

repair_result fit_repair(evaluator &             on,
                         const token_sequences & sequences,
                         const repair_request &  request,
                         const task_control &    control) {
    return repair_walk(on, sequences, request, control).run();
}

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

// W·h of each token.
// h: [n_tokens × n_in]
std::vector<float> applied(const least_squares & fit, const std::vector<float> & h, size_t n_in) {
    return fit.apply(h.data(), (int64_t) (h.size() / n_in));
}

// Whether a block shares its boundary with another one.
bool is_parallel(const evaluator & on, size_t block) {
    const auto & blocks = on.blocks();
    return blocks[block].parallel || (block + 1 < blocks.size() && blocks[block + 1].parallel);
}

} // namespace

bool can_refit(const evaluator & on, size_t block) {
    const residual_block & b               = on.blocks()[block];
    const bool             has_norm_in_f32 = b.post_norm.empty() || weights(on, b.post_norm)->type == GGML_TYPE_F32;
    return !b.output.empty() && b.direct && !is_parallel(on, block) && has_norm_in_f32;
}

bool can_refit_inputs(const evaluator & on, size_t block) {
    const residual_block & b       = on.blocks()[block];
    const bool             is_both = std::find(b.inputs.begin(), b.inputs.end(), b.output) != b.inputs.end();
    return !b.inputs.empty() && !is_both && !is_parallel(on, block);
}

repair_walk::repair_walk(std::shared_ptr<evaluator> on, token_sequences sequences, repair_request request) :
    on(std::move(on)),
    sequences(std::move(sequences)),
    request(std::move(request)),
    n_embd(this->on->model->hparams.n_embd),
    n_blocks(this->on->blocks().size()),
    dense(*this->on, this->sequences, skip_set(n_blocks)),
    pruned(dense),
    next_gap(this->request.gaps.begin()) {
    check_gaps(this->request.gaps, n_blocks);
}

std::optional<fitted_matrix> repair_walk::next(const fitted_matrix * known, const task_control & control) {
    if (!is_started) {
        skip_set removed(n_blocks);
        for (const auto & [before, behind] : request.gaps) {
            std::fill(removed.begin() + (ptrdiff_t) before, removed.begin() + (ptrdiff_t) behind, true);
        }
        dense.share(on->halves(control));
        // both models are the same up to there
        advance(dense, next_place(0), control);
        pruned     = dense.fork(removed);
        is_started = true;
    }
    while (pruned.boundary() < n_blocks) {
        const size_t at = pruned.boundary();
        if (next_gap != request.gaps.end() && at == next_gap->first) {
            if (request.linear.at(next_gap - request.gaps.begin())) {
                return fit_gap(known, control);
            }
            pass_empty_gap(control);
        } else if (fits_inputs(at) && !has_new_inputs) {
            return fit_inputs(known, control);
        } else if (fits_output(at)) {
            return fit_output(known, control);
        } else if (const size_t place = next_place(at + 1); place < n_blocks) {
            advance(pruned, place, control);
            forget_inputs();
        } else {
            break; // nothing depends on the rest
        }
    }
    return std::nullopt;
}

// Where there is something to do next, at a boundary or behind it; the number of blocks if nowhere.
size_t repair_walk::next_place(size_t from) const {
    while (from < n_blocks && !fits_inputs(from) && !fits_output(from) &&
           (next_gap == request.gaps.end() || from != next_gap->first)) {
        from++;
    }
    return from;
}

// Not those of the block before the first gap, whose stream is the dense one's.
bool repair_walk::fits_inputs(size_t block) const {
    return request.refit == repair_request::refit_kind::all && block > request.gaps.front().first &&
           can_refit_inputs(*on, block);
}

bool repair_walk::fits_output(size_t block) const {
    const bool is_before_gap =
        std::any_of(request.gaps.begin(), request.gaps.end(), [&](const gap & g) { return g.first == block + 1; });
    const bool is_wanted = request.refit == repair_request::refit_kind::all ?
                               block + 1 >= request.gaps.front().first :
                               request.refit == repair_request::refit_kind::adjacent && is_before_gap;
    return is_wanted && can_refit(*on, block);
}

void repair_walk::advance(stream_walk & walk, size_t to, const task_control & control) {
    walk.advance(to, control, [&] { count(control); });
}

void repair_walk::count(const task_control & control) const {
    control.progress((double) pruned.boundary(), (double) n_blocks);
}

// The inputs change from the boundary on that the stream has reached.
void repair_walk::forget_inputs() {
    pruned.input_changes.clear();
    has_new_inputs = false;
}

fitted_matrix repair_walk::fit_inputs(const fitted_matrix * known, const task_control & control) {
    const size_t block = pruned.boundary();
    advance(dense, block, control);
    const fit_device device(dense.memory(), on->options.n_threads);
    least_squares    fit(device, (int64_t) n_embd, (int64_t) n_embd);
    fitted_matrix    found;
    if (known) {
        fit.set_solution(known->values);
        found.importance = known->importance;
    } else {
        for (size_t i = 0; i < sequences.count(); i++) {
            const std::vector<float> n     = pruned.entry(i, control);
            std::vector<float>       error = dense.entry(i, control);
            error.resize(std::min(error.size(), n.size()));
            std::transform(error.begin(), error.end(), n.begin(), error.begin(), std::minus<>());
            fit.add(n.data(), error.data(), (int64_t) (error.size() / n_embd));
        }
        fit.solve(request.refit_ridge, control);
        found.importance = fit.importance();
    }
    found.values = fit.solution();
    for (const auto & name : on->blocks()[block].inputs) {
        found.changes.push_back({ name, fit.product_with(weights(*on, name), on->options.n_threads) });
    }
    pruned.input_changes[block] = new_matrix(dense.memory(), n_embd, found.values);
    has_new_inputs              = true;
    return found;
}

fitted_matrix repair_walk::fit_output(const fitted_matrix * known, const task_control & control) {
    const size_t block         = pruned.boundary();
    const bool   is_before_gap = next_gap != request.gaps.end() && next_gap->first == block + 1;
    advance(dense, is_before_gap ? next_gap->second : block + 1, control);

    const post_norm     norm(*on, on->blocks()[block]);
    const fit_device    device(dense.memory(), on->options.n_threads);
    const std::string & output = on->blocks()[block].output;
    fitted_matrix       found;
    least_squares       fit(device, weights(*on, output)->ne[0], (int64_t) n_embd);
    if (known) {
        fit.set_solution(known->values);
        found.importance = known->importance;
    } else {
        for (size_t i = 0; i < sequences.count(); i++) {
            stream_walk::step step = computed_block(i, control);
            norm.divide(step.inner, step.projected);
            add_sequence(fit, std::move(step.inner), step.stream, dense.values[i], n_embd);
        }
        fit.solve(norm.ridges(request.refit_ridge, n_embd), control);
        found.importance = fit.importance();
    }
    std::vector<std::vector<float>> refitted(sequences.count());
    for (size_t i = 0; i < sequences.count(); i++) {
        const stream_walk::step step = computed_block(i, control);
        refitted[i]                  = step.stream;
        norm.replace(refitted[i], step.projected, applied(fit, step.inner, step.n_inner));
    }
    pruned.values = std::move(refitted);
    pruned.set_boundary(block + 1);
    forget_inputs();
    found.values = fit.solution();
    found.changes.push_back({ output, norm.unscaled(found.values) });
    count(control);
    return found;
}

// The pruned stream behind its next block, and the block's inner values, of the same tokens as the dense stream.
stream_walk::step repair_walk::computed_block(size_t sequence, const task_control & control) {
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
std::vector<std::vector<float>> repair_walk::streams_to_correct(const task_control & control) {
    std::vector<std::vector<float>> y = pruned.values;
    if (dense.boundary() > next_gap->first) {
        return y;
    }
    advance(dense, next_gap->first, control);
    const auto c = (float) request.correction;
    for (size_t i = 0; i < y.size(); i++) {
        y[i].resize(std::min(y[i].size(), dense.values[i].size()));
        std::transform(y[i].begin(), y[i].end(), dense.values[i].begin(), y[i].begin(),
                       [c](float x, float s) { return c * x + (1 - c) * s; });
    }
    return y;
}

fitted_matrix repair_walk::fit_gap(const fitted_matrix * known, const task_control & control) {
    std::vector<std::vector<float>> y;
    if (!known) {
        y = streams_to_correct(control);
    }
    fitted_matrix found;
    found.linear = true;
    pass_empty_gap(control);
    const float      epsilon = on->model->hparams.f_norm_rms_eps;
    const fit_device device(dense.memory(), on->options.n_threads);
    least_squares    fit(device, (int64_t) n_embd, (int64_t) n_embd);
    if (known) {
        fit.set_solution(known->values);
    } else {
        for (size_t i = 0; i < sequences.count(); i++) {
            control.check();
            const auto & x = pruned.values[i];
            y[i].resize(x.size());
            add_sequence(fit, normalized(x, n_embd, epsilon), y[i], dense.values[i], n_embd);
        }
        fit.solve(request.linear_ridge, control);
    }
    for (auto & x : pruned.values) {
        control.check();
        add_to(x, applied(fit, normalized(x, n_embd, epsilon), n_embd));
    }
    found.values = fit.solution();
    count(control);
    return found;
}

void repair_walk::pass_empty_gap(const task_control & control) {
    advance(dense, next_gap->second, control);
    for (size_t i = 0; i < sequences.count(); i++) {
        auto & x = pruned.values[i];
        x.resize(std::min(x.size(), dense.values[i].size())); // the last attention block drops a token
    }
    pruned.set_boundary(next_gap->second);
    next_gap++;
}

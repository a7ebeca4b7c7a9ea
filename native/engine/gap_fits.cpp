#include "engine/gap_fits.h"

#include "engine/device_tensor.h"
#include "engine/least_squares.h"
#include "ggml-backend.h"
#include "llama-model.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace {

// Tokens that are added to a fit at a time.
constexpr size_t TOKENS_AT_ONCE = 1024;

} // namespace

gap_fits::gap_fits(evaluator & on, const token_sequences & sequences, const task_control & control) :
    model(on.model),
    n_embd(on.model->hparams.n_embd),
    n_sequences(sequences.count()),
    n_threads(on.options.n_threads) {
    const auto & blocks = on.blocks();
    if (std::any_of(blocks.begin(), blocks.end(), [](const residual_block & b) { return b.parallel; })) {
        throw std::runtime_error("linear blocks can't stand in for parallel blocks");
    }
    const double total  = (double) ((blocks.size() + 1) * n_sequences);
    size_t       n_done = 0;
    stream_walk  dense(on, sequences, skip_set(blocks.size()));
    dense.share(on.halves(control));
    for (size_t boundary = 0; boundary <= blocks.size(); boundary++) {
        dense.advance(boundary, control, [&] { control.progress((double) ++n_done, total); });
        streams.push_back(packed(dense));
    }
}

gap_fits::boundary_stream gap_fits::packed(const stream_walk & dense) const {
    const size_t    n_tokens = dense.values[0].size() / n_embd;
    boundary_stream stream   = { .n_tokens = n_tokens, .normalized = {}, .scale = {}, .memory = dense.memory() };
    stream.normalized.resize(n_sequences * n_tokens * n_embd);
    stream.scale.reserve(n_sequences * n_tokens);
    std::vector<float> row(n_embd);
    ggml_fp16_t *      out = stream.normalized.data();
    for (const auto & values : dense.values) {
        for (const float * x = values.data(); x < values.data() + values.size(); x += n_embd) {
            const float inverse = inverse_rms(x, n_embd, model->hparams.f_norm_rms_eps);
            std::transform(x, x + n_embd, row.begin(), [=](float value) { return value * inverse; });
            ggml_fp32_to_fp16_row(row.data(), out, (int64_t) n_embd);
            stream.scale.push_back(1 / inverse);
            out += n_embd;
        }
    }
    return stream;
}

graph_request::linear_blocks gap_fits::blocks_for(const removal & gone, const task_control & control) {
    graph_request::linear_blocks blocks;
    for (const gap & g : gaps_of(gone.skip)) {
        const auto first = gone.empty.begin() + (ptrdiff_t) g.first;
        const auto last  = gone.empty.begin() + (ptrdiff_t) g.second;
        if (std::find(first, last, false) == last) {
            continue;
        }
        auto & weights = fitted[g];
        if (!weights) {
            weights = fit(g, control);
        }
        blocks[g.first] = weights;
    }
    return blocks;
}

std::shared_ptr<ggml_tensor> gap_fits::fit(const gap & g, const task_control & control) const {
    const boundary_stream & before   = streams.at(g.first);
    const boundary_stream & behind   = streams.at(g.second);
    const size_t            n_tokens = std::min(before.n_tokens, behind.n_tokens);
    const fit_device        device(behind.memory, n_threads);
    least_squares           sums(device, (int64_t) n_embd, (int64_t) n_embd);
    std::vector<float>      inputs, errors, other(n_embd);
    const auto              add_to_sums = [&] {
        control.check();
        sums.add(inputs.data(), errors.data(), (int64_t) (inputs.size() / n_embd));
        inputs.clear();
        errors.clear();
    };
    for (size_t sequence = 0; sequence < n_sequences; sequence++) {
        for (size_t t = 0; t < n_tokens; t++) {
            const size_t a     = sequence * before.n_tokens + t;
            const size_t b     = sequence * behind.n_tokens + t;
            const float  scale = before.scale[a];
            const float  root  = 1 / behind.scale[b];
            const size_t start = inputs.size();
            inputs.resize(start + n_embd);
            errors.resize(start + n_embd);
            ggml_fp16_to_fp32_row(&before.normalized[a * n_embd], &inputs[start], (int64_t) n_embd);
            ggml_fp16_to_fp32_row(&behind.normalized[b * n_embd], other.data(), (int64_t) n_embd);
            for (size_t i = 0; i < n_embd; i++) {
                errors[start + i] = other[i] - root * scale * inputs[start + i];
                inputs[start + i] *= root;
            }
            if (inputs.size() == TOKENS_AT_ONCE * n_embd) {
                add_to_sums();
            }
        }
    }
    if (!inputs.empty()) {
        add_to_sums();
    }
    sums.solve(LINEAR_RIDGE, control);
    return new_matrix(behind.memory, n_embd, sums.solution());
}

void gap_fits::forget_beside(const skip_set & removed) {
    const std::vector<gap> current = gaps_of(removed);
    std::erase_if(fitted, [&](const auto & entry) {
        const gap & g = entry.first;
        return std::any_of(current.begin(), current.end(), [&](const gap & other) {
            const bool touches  = other.first <= g.second && g.first <= other.second;
            const bool contains = g.first <= other.first && other.second <= g.second;
            return touches && !contains;
        });
    });
}

#include "engine/kept_streams.h"

#include "ggml-backend.h"
#include "llama.h"

#include <algorithm>
#include <cmath>

namespace {

// While a graph runs, all boundaries that it shall keep take memory beside those that are kept already: so much at
// most.
constexpr size_t MOST_CAPTURED_BYTES = 256 * 1024 * 1024;

size_t bytes_of_boundary(const llama_model * model, uint32_t length) {
    return sizeof(float) * llama_model_n_embd(model) * length;
}

size_t room_for(const llama_model * model, const token_sequences & calibration, double keep_bytes) {
    const double of_all = (double) bytes_of_boundary(model, calibration.length) * (double) calibration.count();
    // a layer has two boundaries, of the current model and of the likely next one: more can't be of use
    return (size_t) std::min(std::floor(keep_bytes / of_all), 4.0 * llama_model_n_layer(model));
}

// Blocks behind `start` at whose boundaries the stream is to be kept: spread evenly over those that aren't left out,
// since only these can be the next to go. Parallel blocks have one boundary.
std::vector<size_t> spread(const std::vector<residual_block> & blocks,
                           const skip_set &                    skip,
                           size_t                              start,
                           size_t                              count) {
    std::vector<size_t> present;
    for (size_t i = start + 1; i < skip.size(); i++) {
        const bool next_too = i + 1 < skip.size() && blocks[i + 1].parallel;
        if (!blocks[i].parallel && (!skip[i] || (next_too && !skip[i + 1]))) {
            present.push_back(i);
        }
    }
    count = std::min(count, present.size());
    std::vector<size_t> chosen;
    for (size_t i = 0; i < count; i++) {
        chosen.push_back(present[(2 * i + 1) * present.size() / (2 * count)]);
    }
    return chosen;
}

} // namespace

kept_streams::kept_streams(std::shared_ptr<evaluator> evaluator, token_sequences sequences, double keep_bytes) :
    on(std::move(evaluator)),
    calibration(std::move(sequences)),
    room(room_for(on->model.get(), calibration, keep_bytes)),
    room_of_current((2 * room + 2) / 3),
    current(on->blocks().size()),
    ready(calibration.count()),
    kept(calibration.count()) {}

std::vector<float> kept_streams::evaluate(const skip_set &            skip,
                                          const std::vector<size_t> & sequences,
                                          bool                        may_win,
                                          const task_control &        control) {
    std::vector<float> nll(sequences.size() * (calibration.length - 1));
    const auto         add_to = [](sequence_set & set, const std::vector<size_t> & added) {
        for (const size_t sequence : added) {
            set[sequence] = true;
        }
    };
    if (skip == current) {
        run(skip, sequences, room_of_current, control, nll.data());
        add_to(ready, sequences);
        return nll;
    }
    if (room > 0) {
        std::vector<size_t> missing;
        std::copy_if(sequences.begin(), sequences.end(), std::back_inserter(missing),
                     [&](size_t sequence) { return !ready[sequence]; });
        std::vector<float> ignored(missing.size() * (calibration.length - 1));
        run(current, missing, room_of_current, control, ignored.data());
        add_to(ready, missing);
    }
    if (may_win && likely != skip) {
        likely = skip;
        likely_ready.assign(calibration.count(), false);
    }
    run(skip, sequences, may_win ? room : 0, control, nll.data());
    if (may_win) {
        add_to(likely_ready, sequences);
    }
    return nll;
}

void kept_streams::remove(const skip_set & removed) {
    for (auto & boundaries : kept) {
        const auto gone = std::stable_partition(boundaries.begin(), boundaries.end(),
                                                [&](const kept_boundary & b) { return can_start_at(b, removed); });
        for (auto it = gone; it != boundaries.end(); it++) {
            kept_bytes -= ggml_nbytes(it->values.tensor);
            unused.push_back(std::move(it->values));
        }
        boundaries.erase(gone, boundaries.end());
    }
    if (likely == removed && room > room_of_current) {
        ready = std::move(likely_ready);
    } else {
        ready.assign(calibration.count(), false);
    }
    likely.reset();
    current = removed;
    if (linear) {
        linear->forget_beside(removed);
    }
}

void kept_streams::put_in(std::unique_ptr<gap_fits> fits) {
    for (auto & boundaries : kept) {
        boundaries.clear();
    }
    kept_bytes = 0;
    ready.assign(calibration.count(), false);
    likely.reset();
    linear = std::move(fits);
}

// Computes sequences, each from its last usable boundary on. Then at most `most_kept` boundaries of each are kept,
// those from before included.
void kept_streams::run(const skip_set &            skip,
                       const std::vector<size_t> & sequences,
                       size_t                      most_kept,
                       const task_control &        control,
                       float *                     nll) {
    const size_t of_boundary   = bytes_of_boundary(on->model.get(), calibration.length);
    const size_t most_captured = std::max<size_t>(1, MOST_CAPTURED_BYTES / of_boundary);
    const auto   blocks        = linear ? linear->blocks_for(skip, control) : graph_request::linear_blocks{};
    for (const size_t sequence : sequences) {
        control.check();
        graph_request request;
        request.skip   = skip;
        request.linear = blocks;
        if (const kept_boundary * boundary = last_usable(sequence, skip)) {
            start_at(request, *boundary);
        }
        const size_t n_kept = kept[sequence].size();
        if (most_kept > n_kept) {
            const size_t n_more = std::min(most_kept - n_kept, most_captured);
            request.capture     = spread(on->blocks(), skip, request.start, n_more);
        }
        const auto            start = (ptrdiff_t) request.start;
        const graph_outputs & outputs =
            on->run_sequence(std::move(request), calibration.sequence(sequence), calibration.length, control);
        computed += std::count(skip.begin() + start, skip.end(), false);
        nll = read_values(outputs.nll, nll);
        keep(sequence, skip, outputs);
    }
}

// A linear block stands for all of its gap, so that no evaluation can start inside of one.
bool kept_streams::can_start_at(const kept_boundary & boundary, const skip_set & skip) const {
    const skip_set & before = boundary.before;
    const bool       is_gap = linear && before.back() && before.size() < skip.size() && skip[before.size()];
    return !is_gap && std::equal(before.begin(), before.end(), skip.begin());
}

// The last kept boundary of a sequence at which an evaluation without these blocks can start; null if there is none.
const kept_streams::kept_boundary * kept_streams::last_usable(size_t sequence, const skip_set & skip) const {
    const kept_boundary * last = nullptr;
    for (const auto & boundary : kept[sequence]) {
        if ((!last || boundary.before.size() > last->before.size()) && can_start_at(boundary, skip)) {
            last = &boundary;
        }
    }
    return last;
}

// Without memory to copy the boundary to, the evaluation starts from the tokens.
void kept_streams::start_at(graph_request & request, const kept_boundary & boundary) {
    ggml_tensor * values = boundary.values.tensor;
    auto &        start  = starts[{ ggml_backend_buffer_get_type(values->buffer), values->ne[1] }];
    if (!start) {
        device_tensor made = stream_like(values);
        if (!made.tensor) {
            return;
        }
        start = std::make_shared<device_tensor>(std::move(made));
    }
    ggml_backend_tensor_copy(values, start->tensor);
    request.start    = boundary.before.size();
    request.boundary = { start, start->tensor };
}

// Copies what a run captured. Without memory for it, later evaluations start earlier.
void kept_streams::keep(size_t sequence, const skip_set & skip, const graph_outputs & outputs) {
    for (const auto & [block, tensor] : outputs.captured) {
        kept_boundary boundary = {
            .before = skip_set(skip.begin(), skip.begin() + (ptrdiff_t) block),
            .values = stream_like(tensor),
        };
        if (!boundary.values.tensor) {
            break;
        }
        ggml_backend_tensor_copy(tensor, boundary.values.tensor);
        kept_bytes += ggml_nbytes(tensor);
        kept[sequence].push_back(std::move(boundary));
    }
}

// Memory of the tensor's shape, where the tensor is: that of a boundary that was given up, or new.
device_tensor kept_streams::stream_like(const ggml_tensor * tensor) {
    const auto type = ggml_backend_buffer_get_type(tensor->buffer);
    const auto fits = std::find_if(unused.begin(), unused.end(), [&](const device_tensor & s) {
        return ggml_are_same_shape(s.tensor, tensor) && ggml_backend_buffer_get_type(s.buffer.get()) == type;
    });
    if (fits != unused.end()) {
        std::swap(*fits, unused.back());
        device_tensor found = std::move(unused.back());
        unused.pop_back();
        return found;
    }
    if (!unused.empty()) {
        unused.pop_back(); // so that what is kept and what is unused never exceed what was allowed
    }
    return new_device_tensor(type, tensor->ne[0], tensor->ne[1]);
}

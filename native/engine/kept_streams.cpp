#include "engine/kept_streams.h"

#include "ggml-backend.h"
#include "llama.h"

#include <algorithm>
#include <cmath>

namespace {

// While a graph runs, all boundaries that it gives take memory beside those that are kept already: a part of what these
// may take, and so much at most.
constexpr double MOST_CAPTURED_BYTES = 2.0 * 1024 * 1024 * 1024;

size_t most_captured_bytes(double keep_bytes) {
    return (size_t) std::min(keep_bytes / 8, MOST_CAPTURED_BYTES);
}

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

skip_set first(const skip_set & flags, size_t n) {
    return { flags.begin(), flags.begin() + (ptrdiff_t) n };
}

} // namespace

kept_streams::kept_streams(std::shared_ptr<evaluator> evaluator, token_sequences sequences, double keep_bytes) :
    on(std::move(evaluator)),
    calibration(std::move(sequences)),
    room(room_for(on->model.get(), calibration, keep_bytes)),
    most_captured(most_captured_bytes(keep_bytes)),
    current{ skip_set(on->blocks().size()), skip_set(on->blocks().size()) },
    ready(calibration.count()),
    kept(calibration.count()) {}

std::vector<float> kept_streams::evaluate(const removal &             gone,
                                          const std::vector<size_t> & sequences,
                                          bool                        may_win,
                                          const task_control &        control) {
    std::vector<float> nll(sequences.size() * (calibration.length - 1));
    const auto         add_to = [](sequence_set & set, const std::vector<size_t> & added) {
        for (const size_t sequence : added) {
            set[sequence] = true;
        }
    };
    const auto run_current = [&](const std::vector<size_t> & missing, float * out) {
        const size_t n_before = n_forgotten;
        run(current, missing, room_of_current(), control, out);
        if (n_forgotten == n_before) {
            add_to(ready, missing);
        }
    };
    if (gone == current) {
        run_current(sequences, nll.data());
        return nll;
    }
    if (room > 0) {
        std::vector<size_t> missing;
        std::copy_if(sequences.begin(), sequences.end(), std::back_inserter(missing),
                     [&](size_t sequence) { return !ready[sequence]; });
        std::vector<float> ignored(missing.size() * (calibration.length - 1));
        run_current(missing, ignored.data());
    }
    if (may_win && !(likely && *likely == gone)) {
        likely = gone;
        likely_ready.assign(calibration.count(), false);
    }
    run(gone, sequences, may_win ? room.load() : 0, control, nll.data());
    if (may_win) {
        add_to(likely_ready, sequences);
    }
    return nll;
}

void kept_streams::remove(const removal & removed) {
    for (auto & boundaries : kept) {
        const auto useless = std::stable_partition(boundaries.begin(), boundaries.end(),
                                                   [&](const kept_boundary & b) { return can_start_at(b, removed); });
        for (auto it = useless; it != boundaries.end(); it++) {
            kept_bytes -= ggml_nbytes(it->values.tensor);
            unused.push_back(std::move(it->values));
        }
        boundaries.erase(useless, boundaries.end());
    }
    if (likely && *likely == removed && room > room_of_current()) {
        ready = std::move(likely_ready);
    } else {
        ready.assign(calibration.count(), false);
    }
    likely.reset();
    current = removed;
    if (linear) {
        linear->forget_beside(removed.skip);
    }
}

void kept_streams::put_in(std::unique_ptr<gap_fits> fits) {
    forget_boundaries();
    linear = std::move(fits);
}

// Computes sequences, each from its last usable boundary on. Then at most `most_kept` boundaries of each are kept,
// those from before included.
void kept_streams::run(const removal &             gone,
                       const std::vector<size_t> & sequences,
                       size_t                      most_kept,
                       const task_control &        control,
                       float *                     nll) {
    graph_request request;
    request.skip   = gone.skip;
    request.linear = linear ? linear->blocks_for(gone, control) : graph_request::linear_blocks{};

    // those that start at the same boundary, and shall keep as many, can be computed at once
    std::map<std::pair<size_t, size_t>, std::vector<size_t>> alike; // places in `sequences`
    for (size_t i = 0; i < sequences.size(); i++) {
        const kept_boundary * boundary = last_usable(sequences[i], gone);
        const size_t          n_kept   = kept[sequences[i]].size();
        const size_t          n_more   = most_kept > n_kept ? most_kept - n_kept : 0;
        alike[{ boundary ? boundary->size() : 0, n_more }].push_back(i);
    }
    std::vector<float> values;
    for (const auto & [key, places] : alike) {
        for (size_t first = 0; first < places.size();) {
            const size_t        last = std::min<size_t>(places.size(), first + on->n_at_once());
            std::vector<size_t> together;
            for (size_t i = first; i < last; i++) {
                together.push_back(sequences[places[i]]);
            }
            try {
                // a run that had no memory may have kept some already, and left room for fewer
                const size_t n_kept = kept[together[0]].size();
                const size_t n_room = room > n_kept ? room - n_kept : 0;
                run_together(request, gone, together, std::min(key.second, n_room), control, values);
            } catch (const out_of_memory_error &) {
                if (!make_room()) {
                    throw;
                }
                continue;
            }
            const size_t n_values = calibration.length - 1;
            for (size_t i = first; i < last; i++) {
                std::copy_n(values.begin() + (ptrdiff_t) ((i - first) * n_values), n_values,
                            nll + places[i] * n_values);
            }
            first = last;
        }
    }
}

// What the current model may take of the room; the rest is for the likely next one.
size_t kept_streams::room_of_current() const {
    return (2 * room + 2) / 3;
}

// Gives up memory, for a run that the device had none for: first what isn't used, then of the run, by fewer sequences,
// then half of the boundaries. False if there is nothing to give up.
bool kept_streams::make_room() {
    if (!unused.empty()) {
        unused.clear();
        return true;
    }
    starts.clear();
    if (on->compute_fewer()) {
        return true;
    }
    if (room == 0) {
        return false;
    }
    room = room / 2;
    most_captured /= 2;
    forget_boundaries();
    return true;
}

void kept_streams::forget_boundaries() {
    for (auto & boundaries : kept) {
        boundaries.clear();
    }
    kept_bytes = 0;
    ready.assign(calibration.count(), false);
    likely.reset();
    n_forgotten++;
}

// Computes sequences at once, and keeps `n_more` boundaries of each. Where these would take too much memory beside the
// graph's own, the stream is computed in stretches, each of which starts at the last boundary of the one before.
void kept_streams::run_together(const graph_request &       wanted,
                                const removal &             gone,
                                const std::vector<size_t> & sequences,
                                size_t                      n_more,
                                const task_control &        control,
                                std::vector<float> &        nll) {
    const skip_set & skip      = wanted.skip;
    const auto       n_at_once = std::max<size_t>(
        1, most_captured / (bytes_of_boundary(on->model.get(), calibration.length) * sequences.size()));

    std::vector<const int32_t *> tokens;
    for (const size_t sequence : sequences) {
        tokens.push_back(calibration.sequence(sequence));
    }
    graph_request request = wanted;
    start_together(request, gone, sequences);
    const std::vector<size_t> capture = spread(on->blocks(), skip, request.start, n_more);

    size_t n_captured = 0;
    for (bool is_last = false; !is_last;) {
        control.check();
        const size_t n_now = std::min(n_at_once, capture.size() - n_captured);
        is_last            = n_captured + n_now == capture.size();

        request.capture.assign(capture.begin() + (ptrdiff_t) n_captured,
                               capture.begin() + (ptrdiff_t) (n_captured + n_now));
        request.output = is_last ? graph_request::output_kind::nll : graph_request::output_kind::none;
        n_captured += n_now;

        const size_t          start   = request.start;
        const size_t          end     = is_last ? skip.size() : request.capture.back();
        const graph_outputs & outputs = on->run_together(request, tokens, calibration.length, control);
        computed +=
            sequences.size() * std::count(skip.begin() + (ptrdiff_t) start, skip.begin() + (ptrdiff_t) end, false);
        if (is_last) {
            nll.resize(sequences.size() * (calibration.length - 1));
            read_nll(outputs, sequences.size(), calibration.length, nll.data());
        }
        if (!keep(sequences, gone, outputs)) {
            n_captured = capture.size(); // there is no memory for more
        }
        if (!is_last) {
            start_together(request, gone, sequences);
        }
    }
}

// A linear block stands for all of its gap, so that no evaluation can start inside of one.
bool kept_streams::can_start_at(const kept_boundary & boundary, const removal & gone) const {
    const removal & before = boundary.before;
    const bool      is_inside =
        linear && before.skip.back() && boundary.size() < gone.skip.size() && gone.skip[boundary.size()];
    return !is_inside && std::equal(before.skip.begin(), before.skip.end(), gone.skip.begin()) &&
           std::equal(before.empty.begin(), before.empty.end(), gone.empty.begin());
}

// The last kept boundary of a sequence at which an evaluation without these blocks can start; null if there is none.
const kept_streams::kept_boundary * kept_streams::last_usable(size_t sequence, const removal & gone) const {
    const kept_boundary * last = nullptr;
    for (const auto & boundary : kept[sequence]) {
        if ((!last || boundary.size() > last->size()) && can_start_at(boundary, gone)) {
            last = &boundary;
        }
    }
    return last;
}

// Lets a request start at the last boundary that all of these sequences have. Without memory to copy it to, or such a
// boundary, it starts from the tokens.
void kept_streams::start_together(graph_request &             request,
                                  const removal &             gone,
                                  const std::vector<size_t> & sequences) {
    std::vector<const kept_boundary *> boundaries;
    for (const size_t sequence : sequences) {
        boundaries.push_back(last_usable(sequence, gone));
        if (!boundaries.back() || boundaries.back()->size() != boundaries[0]->size()) {
            return;
        }
    }
    const ggml_tensor * like     = boundaries[0]->values.tensor;
    const int64_t       n_tokens = like->ne[1];
    const auto          type     = ggml_backend_buffer_get_type(like->buffer);
    auto &              start    = starts[{ type, n_tokens * (int64_t) sequences.size() }];
    if (!start) {
        device_tensor made = new_device_tensor(type, like->ne[0], n_tokens * (int64_t) sequences.size());
        if (!made.tensor) {
            return;
        }
        start = std::make_shared<device_tensor>(std::move(made));
    }
    for (size_t i = 0; i < sequences.size(); i++) {
        ggml_backend_tensor_copy(boundaries[i]->values.tensor,
                                 view_of_tokens(start->tensor, (int64_t) i * n_tokens, n_tokens).tensor);
    }
    request.start    = boundaries[0]->size();
    request.boundary = { start, start->tensor };
}

// Copies what a run captured. Without memory for it, which the result tells, later evaluations start earlier.
bool kept_streams::keep(const std::vector<size_t> & sequences, const removal & gone, const graph_outputs & outputs) {
    for (const auto & [block, tensor] : outputs.captured) {
        const int64_t n_tokens = tensor->ne[1] / (int64_t) sequences.size();
        for (size_t i = 0; i < sequences.size(); i++) {
            const tensor_view own      = view_of_tokens(tensor, (int64_t) i * n_tokens, n_tokens);
            kept_boundary     boundary = {
                .before = { first(gone.skip, block), first(gone.empty, block) },
                .values = stream_like(own.tensor),
            };
            if (!boundary.values.tensor) {
                return false;
            }
            ggml_backend_tensor_copy(own.tensor, boundary.values.tensor);
            kept_bytes += ggml_nbytes(own.tensor);
            kept[sequences[i]].push_back(std::move(boundary));
        }
    }
    return true;
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

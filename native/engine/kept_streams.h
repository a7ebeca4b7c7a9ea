// The residual streams of a search, kept at boundaries for later evaluations to start from. A candidate shares
// everything before its block with the current model, so that nothing before it is computed again.
#pragma once

#include "engine/device_tensor.h"
#include "engine/evaluator.h"
#include "engine/gap_fits.h"

#include <atomic>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

// Evaluates candidates on calibration sequences. The current model's stream is kept, on the device, at the boundaries
// of its blocks; where memory doesn't allow all of them, they are spread evenly and a candidate starts at the last one
// before its block. A candidate that may become the current model leaves its boundaries behind too. If another one
// wins, the current model is run again on a sequence when its next candidate needs it. The values are those of
// evaluations from the tokens on.
class kept_streams {
public:
    // keep_bytes: memory for the boundaries of all sequences; may be infinite
    kept_streams(std::shared_ptr<evaluator> on, token_sequences calibration, double keep_bytes);

    const std::shared_ptr<evaluator> on;
    const token_sequences            calibration;

    // Boundaries of each sequence that may be kept; fewer once the device had no memory for a run beside them. Any thread
    // may ask.
    std::atomic<size_t> room;

    // From now on, linear blocks stand in the gaps that evaluations leave, but in those of empty blocks alone.
    void put_in(std::unique_ptr<gap_fits> fits);

    // The NLL of each token but the first of some sequences, given by their numbers: [n × (length − 1)].
    // may_win: this candidate is likely to be the next current model
    std::vector<float> evaluate(const removal &             gone,
                                const std::vector<size_t> & sequences,
                                bool                        may_win,
                                const task_control &        control);

    // Makes the model without these blocks the current one. All that is evaluated from now on leaves them out too, so
    // the memory of boundaries at which no such evaluation can start is given to others.
    void remove(const removal & removed);

    // Blocks computed so far, over all sequences. Any thread may ask.
    uint64_t n_computed() const { return computed; }

    // Bytes of the boundaries that are kept now. Any thread may ask.
    uint64_t n_kept_bytes() const { return kept_bytes; }

private:
    struct kept_boundary {
        removal       before; // of the blocks before it: evaluations that leave out the same start here
        device_tensor values;

        size_t size() const { return before.skip.size(); }
    };

    // Which sequences were evaluated.
    using sequence_set = std::vector<bool>;

    size_t most_captured; // bytes of boundaries that one run may give

    std::unique_ptr<gap_fits> linear; // null: gaps stay empty

    removal                                 current;
    sequence_set                            ready;  // those on which the current model's boundaries are kept
    std::optional<removal>                  likely; // the last candidate that was likely to win
    sequence_set                            likely_ready;
    std::vector<std::vector<kept_boundary>> kept;   // by sequence
    std::vector<device_tensor>              unused; // memory of boundaries that were given up

    // Where graphs read the boundary that they start from: each is copied there first, so that one graph serves all
    // sequences. One for each device and number of tokens.
    std::map<std::pair<ggml_backend_buffer_type_t, int64_t>, std::shared_ptr<device_tensor>> starts;

    size_t n_forgotten = 0; // how often all boundaries were given up

    std::atomic<uint64_t> computed{ 0 };
    std::atomic<uint64_t> kept_bytes{ 0 };

    void                  run(const removal &             gone,
                              const std::vector<size_t> & sequences,
                              size_t                      most_kept,
                              const task_control &        control,
                              float *                     nll);
    void                  run_together(const graph_request &       request,
                                       const removal &             gone,
                                       const std::vector<size_t> & sequences,
                                       size_t                      n_more,
                                       const task_control &        control,
                                       std::vector<float> &        nll);
    size_t                room_of_current() const;
    bool                  make_room();
    void                  forget_boundaries();
    bool                  can_start_at(const kept_boundary & boundary, const removal & gone) const;
    const kept_boundary * last_usable(size_t sequence, const removal & gone) const;
    void          start_together(graph_request & request, const removal & gone, const std::vector<size_t> & sequences);
    bool          keep(const std::vector<size_t> & sequences, const removal & gone, const graph_outputs & outputs);
    device_tensor stream_like(const ggml_tensor * tensor);
};

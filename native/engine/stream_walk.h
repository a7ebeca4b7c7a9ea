// The residual streams of all sequences at one boundary, carried on from boundary to boundary, so that each block is
// computed once.
#pragma once

#include "engine/evaluator.h"
#include "engine/task.h"
#include "ggml-backend.h"

#include <cstddef>
#include <functional>
#include <memory>
#include <vector>

class stream_walk {
public:
    stream_walk(evaluator & on, const token_sequences & sequences, skip_set skip);

    // Lets other evaluators of the model advance it, at once: none, or several.
    void share(std::vector<std::shared_ptr<evaluator>> evaluators);

    // Of each sequence: [n_tokens × n_embd]. The last layer computes one token less than there are.
    std::vector<std::vector<float>> values;

    // Another model's walk, from where this one is: so far they leave out the same blocks.
    stream_walk fork(skip_set other) const;

    // How the blocks' normed streams change.
    graph_request::input_changes input_changes;

    // What one sequence's stream is at a later boundary.
    struct step {
        std::vector<float> stream;    // [n_tokens × n_embd]
        std::vector<float> inner;     // [n_tokens × n_inner], what the first block's output projection multiplies
        std::vector<float> projected; // [n_tokens × n_embd], what it gives to a norm behind it
        size_t             n_inner = 0;

        ggml_backend_buffer_type_t memory = nullptr; // where it was computed
    };

    // Computes the blocks up to a boundary, named by the block behind it; the number of blocks is the stream's end.
    step compute(size_t sequence, size_t to, bool with_inner, const task_control & control);

    // The normed stream that the next block's input projections multiply, before it changes: [n_tokens × n_embd].
    std::vector<float> entry(size_t sequence, const task_control & control);

    // Goes on to a boundary with all sequences.
    // counted: is called after each sequence, not by two threads at once
    void advance(size_t to, const task_control & control, const std::function<void()> & counted);

    size_t boundary() const { return at; }

    // Says that the values are at a later boundary now, since the caller computed them.
    void set_boundary(size_t boundary) { at = boundary; }

    // Where the last values were computed; null before anything was.
    ggml_backend_buffer_type_t memory() const { return buffer_type; }

private:
    evaluator *                on;
    const token_sequences *    sequences;
    skip_set                   skip;
    size_t                     at          = 0;
    ggml_backend_buffer_type_t buffer_type = nullptr;

    std::vector<std::shared_ptr<evaluator>> others;

    // Where the graphs of `on`, or of each of the others, read the stream that they start from; one tensor for all
    // sequences, so that one graph serves them.
    using start_tensor = std::shared_ptr<ggml_tensor>;
    start_tensor              start;
    std::vector<start_tensor> starts_of_others;

    step compute_on(evaluator &          computes,
                    start_tensor &       from,
                    size_t               sequence,
                    size_t               to,
                    bool                 with_inner,
                    const task_control & control) const;

    graph_request request_from_here(start_tensor & from, size_t sequence) const;
    void          put_on_device(const std::vector<float> & stream, start_tensor & to) const;
};

// Linear blocks for any gap that a search may make, fitted to the dense model alone: so a candidate needs no pass to
// find what will stand in its place.
#pragma once

#include "engine/evaluator.h"
#include "engine/stream_walk.h"
#include "engine/task.h"
#include "graph/graph_patch.h"

#include <cstddef>
#include <map>
#include <memory>
#include <vector>

// Blocks that are left out, and those of them that ask for no linear block in their gap.
struct removal {
    skip_set skip;
    skip_set empty;

    bool operator==(const removal & other) const { return skip == other.skip && empty == other.empty; }
};

// The blocks i … j−1 of a gap (i, j) become x + W·x/rms(x), where W minimises Σ w·|W·n − (S_j − S_i)|² + λ·m·|W|² over
// the tokens of some sequences. S_i is the dense model's residual stream before block i, n = S_i/rms(S_i),
// w = 1/mean(S_j²) and m the mean of the diagonal of Σ w·n·nᵀ. A repair (repair.h) fits the same to the pruned model's
// stream, once it is known.
//
// Memory on the host: 2·n_embd bytes for each token and boundary; on the device: 4·n_embd² for each gap that a model's
// candidates have, and what a least squares fit takes.
class gap_fits {
public:
    // Walks through the dense model.
    gap_fits(evaluator & on, const token_sequences & sequences, const task_control & control);

    // What stands in the gaps that a removal leaves, but in those of empty blocks alone, as a graph request has it. Fits what
    // isn't known yet.
    graph_request::linear_blocks blocks_for(const removal & gone, const task_control & control);

    // Frees the memory of all that no model without these blocks can need.
    void forget_beside(const skip_set & removed);

private:
    // The stream at a boundary, of all sequences: x/rms(x) in 16 bits, which is never large, and rms(x).
    struct boundary_stream {
        size_t                     n_tokens; // of a sequence; the last layer computes one less than there are
        std::vector<ggml_fp16_t>   normalized;
        std::vector<float>         scale;
        ggml_backend_buffer_type_t memory; // where it was computed
    };

    const std::shared_ptr<llama_model>          model;
    const size_t                                n_embd;
    const size_t                                n_sequences;
    const int                                   n_threads;
    std::vector<boundary_stream>                streams; // by boundary
    std::map<gap, std::shared_ptr<ggml_tensor>> fitted;

    boundary_stream              packed(const stream_walk & dense) const;
    std::shared_ptr<ggml_tensor> fit(const gap & g, const task_control & control) const;
};

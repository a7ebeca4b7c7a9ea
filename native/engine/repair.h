// What makes up for blocks that are left out, fitted in closed form so that the pruned model's residual stream follows the
// dense one's: linear blocks in the gaps, and changes of the input and output projections of blocks that stay.
#pragma once

#include "engine/evaluator.h"
#include "engine/least_squares.h"
#include "engine/stream_walk.h"

#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

struct repair_request {
    std::vector<gap> gaps; // in ascending order, none of them empty and no two of them with a common boundary

    // Whether each of these gaps gets a linear block, x + W·x/rms(x).
    std::vector<bool> linear;

    // Which blocks' projections are fitted: none, the output projections before a gap, or all from there on.
    enum class refit_kind { none, adjacent, all };
    refit_kind refit = refit_kind::none;

    // λ of the ridge regressions
    double linear_ridge = LINEAR_RIDGE;
    double refit_ridge  = 0.3;

    // Which share of the error in the stream before a gap its linear block is to take back as well, 0 … 1.
    double correction = 0.5;
};

// What is found at one place.
struct fitted_matrix {
    bool linear = false; // it is a linear block's; else projections change

    // Row after row. W of a linear block or A of input projections, [n_embd × n_embd]; γ⊙Δ of an output projection,
    // [n_embd × n_inner], without a norm behind it Δ.
    std::vector<float> values;

    // Of projections: how much each value of a row matters.
    std::vector<float> importance;

    // By how much the weights of projections change, row after row.
    struct tensor_change {
        std::string        tensor;
        std::vector<float> change;
    };
    std::vector<tensor_change> changes;
};

// Whether the output projection of a block can be fitted: the branch ends in one, a bias and a norm aside, and is added to
// the stream as it is, by itself.
bool can_refit(const evaluator & on, size_t block);

// Whether its input projections can be fitted: it has some of its own, and its boundary too. The one matrix of a linear
// block is its output projection.
bool can_refit_inputs(const evaluator & on, size_t block);

// Walks through the pruned model, from before the first gap on. x is its residual stream as it becomes by the repair, S the
// dense model's stream before the next block that stays, and each token counts by w = 1/mean(S²), as the next norm sees
// the error.
//
// - Where all blocks are fitted, before a block behind the first gap, with the normed streams n of the pruned and s of the
//   dense model: A minimises Σ |A·n − (s − n)|² + λ·m·|A|². The input projections V become V + V·A.
// - After a block whose output projection is fitted, with inner values h: Δ minimises Σ w·|Δ·h − (S − x)|² + λ·m·|Δ|².
// - In a gap, n = x/rms(x): W minimises Σ w·|W·n − (S − y)|² + λ·m·|W|², where y = c·x + (1 − c)·S' and S' is the dense
//   stream before the gap: with a correction c of 0, it does what the gap's blocks did, with 1 also what brings the
//   stream back to the dense one. An error can't be told from the stream alone, so that all of it is too much to ask.
//   Behind a block that was fitted c is 1, since that block was to do what the gap's did.
//
// m is the mean of the diagonal of the Gram matrix, such as Σ w·h·hᵀ. Where a norm follows the output projection, the
// block adds γ⊙y/r, with y = W·h and r = rms(y). It is fitted as if r stayed as it is: Δ minimises
// Σ w·|γ⊙(Δ·h)/r − (S − x)|² + λ·m·mean(γ²)·|Δ|², with h/r in the Gram matrix; x then goes on with what r really becomes.
// Projections that can't be fitted stay as they are.
//
// Both models' streams of all tokens are in memory, on the host, 8·n_embd bytes a token (12 at a gap), and are carried on,
// so that each block is computed once a model, and twice where it is fitted; between places, by the halves of the
// evaluator. For the sums, see least_squares.
class repair_walk {
public:
    repair_walk(std::shared_ptr<evaluator> on, token_sequences sequences, repair_request request);

    repair_walk(const repair_walk &)             = delete;
    repair_walk & operator=(const repair_walk &) = delete;

    const std::shared_ptr<evaluator> on;

    // Goes on to the next place, and fits its matrix. known: the matrix and the importance that an earlier walk found
    // there; it is taken then, and not fitted. Empty at the end; after an exception there is no next place.
    // Throws where the stream is not finite.
    std::optional<fitted_matrix> next(const fitted_matrix * known, const task_control & control);

private:
    const token_sequences sequences;
    const repair_request  request;
    const size_t          n_embd;
    const size_t          n_blocks;
    stream_walk           dense;
    stream_walk           pruned;

    std::vector<gap>::const_iterator next_gap; // that the pruned stream comes to
    bool                             is_started     = false;
    bool                             has_new_inputs = false; // the next block has

    bool fits_inputs(size_t block) const;
    bool fits_output(size_t block) const;

    size_t next_place(size_t from) const;
    void   advance(stream_walk & walk, size_t to, const task_control & control);
    void   count(const task_control & control) const;
    void   forget_inputs();

    fitted_matrix fit_inputs(const fitted_matrix * known, const task_control & control);
    fitted_matrix fit_output(const fitted_matrix * known, const task_control & control);
    fitted_matrix fit_gap(const fitted_matrix * known, const task_control & control);
    void          pass_empty_gap(const task_control & control);

    stream_walk::step               computed_block(size_t sequence, const task_control & control);
    std::vector<std::vector<float>> streams_to_correct(const task_control & control);
};

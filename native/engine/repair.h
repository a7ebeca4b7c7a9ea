// What makes up for blocks that are left out, fitted in closed form so that the pruned model's residual stream follows the
// dense one's: linear blocks in the gaps, and changes of the output projections of blocks that stay.
#pragma once

#include "engine/evaluator.h"
#include "engine/least_squares.h"

#include <cstddef>
#include <vector>

struct repair_request {
    std::vector<gap> gaps; // in ascending order, none of them empty and no two of them with a common boundary

    // Whether each of these gaps gets a linear block, x + W·x/rms(x).
    std::vector<bool> linear;

    // Which blocks' output projections are fitted: none, those before a gap, or all from there on.
    enum class refit_kind { none, adjacent, all };
    refit_kind refit = refit_kind::none;

    // λ of the ridge regressions
    double linear_ridge = LINEAR_RIDGE;
    double refit_ridge  = 0.3;

    // Which share of the error in the stream before a gap its linear block is to take back as well, 0 … 1.
    double correction = 0.5;
};

struct repair_result {
    std::vector<std::vector<float>> linear; // W of each gap that has one: [n_embd × n_embd], row after row

    struct refit {
        size_t             block;
        std::vector<float> change;     // of its output projection: [n_embd × n_inner], row after row
        std::vector<float> importance; // how much each value of a row matters: [n_inner]
    };
    std::vector<refit> refits;
};

// Whether the output projection of a block can be fitted: the branch ends in one, a bias and a norm aside, and is added to
// the stream as it is, by itself.
bool can_refit(const evaluator & on, size_t block);

// Walks through the pruned model, from before the first gap on. x is its residual stream as it becomes by the repair, S the
// dense model's stream before the next block that stays, and each token counts by w = 1/mean(S²), as the next norm sees
// the error.
//
// - After a block whose output projection is fitted, with inner values h: Δ minimises Σ w·|Δ·h − (S − x)|² + λ·m·|Δ|².
// - In a gap, n = x/rms(x): W minimises Σ w·|W·n − (S − y)|² + λ·m·|W|², where y = c·x + (1 − c)·S' and S' is the dense
//   stream before the gap: with a correction c of 0, it does what the gap's blocks did, with 1 also what brings the
//   stream back to the dense one. An error can't be told from the stream alone, so that all of it is too much to ask.
//   Behind a block that was fitted c is 1, since that block was to do what the gap's did.
//
// m is the mean of the diagonal of the Gram matrix, Σ w·h·hᵀ or Σ w·n·nᵀ. Where a norm follows the output projection, the
// block adds γ⊙y/r, with y = W·h and r = rms(y). It is fitted as if r stayed as it is: Δ minimises
// Σ w·|γ⊙(Δ·h)/r − (S − x)|² + λ·m·mean(γ²)·|Δ|², with h/r in the Gram matrix; x then goes on with what r really becomes.
// Blocks that can't be fitted stay as they are.
//
// Both models' streams of all tokens are in memory, on the host, 8·n_embd bytes a token (12 at a gap), and are carried on,
// so that each block is computed once a model, and twice where it is fitted. For the sums, see least_squares.
//
// Throws where the stream is not finite.
repair_result fit_repair(evaluator &             on,
                         const token_sequences & sequences,
                         const repair_request &  request,
                         const task_control &    control);

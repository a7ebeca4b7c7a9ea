// Linear blocks in the place of blocks that are left out: x + W·x/rms(x), one square matrix in each gap, fitted in closed
// form so that the pruned model's residual stream follows the dense one's.
#pragma once

#include "engine/evaluator.h"

#include <cstddef>
#include <utility>
#include <vector>

// The boundaries before and behind neighbouring blocks that are left out.
using gap = std::pair<size_t, size_t>;

// Fits a linear block to each gap: W minimises Σ_t w_t·|W·n_t − (S_t − x_t)|² + λ·m·|W|². Here x is the pruned model's
// stream before the gap, with the linear blocks of the gaps before in it, n = x/rms(x), S the dense model's stream behind
// the gap, w = 1/mean(S²), as the next norm sees the error, and m the mean of the diagonal of Σ w·n·nᵀ. Gives each W:
// [n_embd × n_embd], row after row.
//
// Both models' streams of all tokens are in memory, on the host, 8·n_embd bytes a token, and are carried on from gap to
// gap, so that each block is computed once a model. For the sums, see least_squares.
//
// gaps: in ascending order, none of them empty and no two of them with a common boundary
// ridge: λ
// Throws where the stream is not finite.
std::vector<std::vector<float>> fit_linear_blocks(evaluator &              on,
                                                  const token_sequences &  sequences,
                                                  const std::vector<gap> & gaps,
                                                  double                   ridge,
                                                  const task_control &     control);

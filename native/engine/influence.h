// What blocks do to the residual stream, seen at the boundaries before and behind them.
#pragma once

#include "engine/evaluator.h"

#include <cstddef>
#include <utility>
#include <vector>

// Means over all positions.
struct block_influence {
    double cosine = 0; // cos(before, after)
    double change = 0; // |after − before| / |after|
};

// pairs: of boundaries, before and after, each named by the block behind it; the number of blocks is the stream's end.
std::vector<block_influence> influence_of(evaluator &                                    on,
                                          const token_sequences &                        sequences,
                                          const std::vector<std::pair<size_t, size_t>> & pairs,
                                          const task_control &                           control);

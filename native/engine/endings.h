// Scores endings after contexts, many at once.
#pragma once

#include "engine/evaluator.h"

#include <cstdint>
#include <vector>

struct choices {
    std::vector<int32_t>  tokens;  // of each choice the context's, then the ending's
    std::vector<uint32_t> lengths; // of each choice the context's and the ending's; each is at least 1

    size_t count() const { return lengths.size() / 2; }
};

// The NLL of each ending given its context, summed over its tokens. What a choice and the one before it begin with is
// computed once, so they should be sorted.
std::vector<double> score_endings(evaluator &          on,
                                  const choices &      choices,
                                  const skip_set &     skip,
                                  const task_control & control);

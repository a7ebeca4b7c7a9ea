// How the predictions of a model without some blocks differ from those of a dense one.
#pragma once

#include "engine/evaluator.h"

#include <vector>

// Of each token but the first of each sequence four values: its NLL in the dense model; its NLL in this one; the
// Kullback-Leibler divergence of this model's distribution from the dense one's, KL(dense ‖ this), in nats; and 1 where
// both find the same token likeliest, else 0. The models have one vocabulary; `dense` may be the same evaluator.
// Memory: vocabulary x length values three times.
std::vector<float> divergence_of(evaluator &             on,
                                 const token_sequences & sequences,
                                 const skip_set &        skip,
                                 evaluator &             dense,
                                 const task_control &    control);

// Text that a model writes itself, many sequences at once.
#pragma once

#include "engine/task.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

struct llama_model;

struct generate_request {
    std::vector<std::vector<int32_t>> prompts; // what each sequence begins with, at least one token
    uint32_t                          length;  // tokens in a sequence, its prompt included

    // Sequence i draws its random numbers from the lowest 31 bits of seed + i, whichever others there are.
    uint32_t seed;

    // Each token is drawn from the likeliest ones that together have this probability.
    float top_p = 0.95f;

    int    n_threads       = 1;
    bool   flash_attention = true;
    size_t cache_bytes     = (size_t) 1 << 30; // what the keys, values and states of those computed at once may take
};

// The sequences: [prompts × length]. A token that ends a text doesn't end a sequence: another text follows, as in a corpus.
// As many sequences are computed at once as there is memory for, one at least.
std::vector<int32_t> generate(const std::shared_ptr<llama_model> & model,
                              const generate_request &             request,
                              const task_control &                 control);

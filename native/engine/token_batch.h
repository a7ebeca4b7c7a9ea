// Batches of tokens for llama.cpp, and their computation.
#pragma once

#include "llama.h"

#include <cstddef>

// A batch in which each token belongs to one sequence.
class token_batch {
public:
    explicit token_batch(size_t room);
    ~token_batch();

    token_batch(const token_batch &)             = delete;
    token_batch & operator=(const token_batch &) = delete;

    size_t size() const { return (size_t) batch.n_tokens; }

    void clear() { batch.n_tokens = 0; }

    // Returns the token's number in the batch.
    int add(llama_token token, size_t position, size_t sequence, bool wants_logits);

    const llama_batch & get() const { return batch; }

private:
    llama_batch batch;
};

// Computes a batch and waits for it; returns llama_decode's status.
int decode(llama_context * context, const llama_batch & batch);

// The same for the last batch with other tokens, from an empty cache. It must have been one run of the graph.
int decode_again(llama_context * context, const llama_token * tokens);

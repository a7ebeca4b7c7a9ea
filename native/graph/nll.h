// The end of a graph: from the final hidden state to the logits, and from these to the negative log-likelihood.
#pragma once

#include "graph/graph_view.h"

#include <vector>

// The operations from the final hidden state to the logits, if each works on every position by itself, so that it can
// be repeated on a part of the positions; empty otherwise.
std::vector<ggml_tensor *> find_head(const graph_view & graph, const ggml_tensor * hidden, ggml_tensor * logits);

// The logits of `count` output positions from `first`, by a copy of the head.
ggml_tensor * build_part_of_head(ggml_context *                     ctx,
                                 const std::vector<ggml_tensor *> & head,
                                 ggml_tensor *                      hidden,
                                 int64_t                            first,
                                 int64_t                            count);

// -log softmax(logits)[target] of each position. logits: [n_vocab, n]; targets: [n], I32; result: [n], F32.
ggml_tensor * build_nll(ggml_context * ctx, ggml_tensor * logits, ggml_tensor * targets);

// A compute graph as llama.cpp built it, to be read: what its tensors are, and what is computed from what.
#pragma once

#include "ggml.h"

#include <functional>
#include <unordered_map>
#include <unordered_set>
#include <vector>

using tensor_set = std::unordered_set<const ggml_tensor *>;

// The tensor that owns the memory. ggml flattens views, so that view_src is never a view itself.
const ggml_tensor * memory_of(const ggml_tensor * t);

// False for weights, caches and graph inputs, and for views of them.
bool is_computed(const ggml_tensor * t);

bool is_input(const ggml_tensor * t);

// True for the operations that only show their operand's memory in another way.
bool is_view(const ggml_tensor * t);

// The N of a weight's name blk.N.REST, and that REST; -1 for all other tensors.
int layer_of(const ggml_tensor * t, const char ** rest = nullptr);

// A sum of two computed tensors, as every block's addition to the residual stream is one.
bool is_sum(const ggml_tensor * t);

// Whether the operation carries information from one token to another.
bool mixes_tokens(const ggml_tensor * t);

// What an operand is a selection of rows of, or another shape of.
ggml_tensor * strip_selection(ggml_tensor * t);

// Whether the operation works on each token's values alone and keeps their number, as norms, scales, biases and
// selections do.
bool is_pointwise(const ggml_tensor * t);

// What a pointwise operation works on; null for a sum or product of two computed tensors, or of none.
ggml_tensor * below_pointwise(const ggml_tensor * t);

// What is left once all pointwise operations are taken off.
ggml_tensor * strip_pointwise(ggml_tensor * t);

class graph_view {
public:
    explicit graph_view(ggml_cgraph * gf);

    std::vector<ggml_tensor *> nodes; // in the order of the graph
    std::vector<ggml_tensor *> inputs;

    // -1 for what is no node of the graph
    int position_of(const ggml_tensor * t) const;

    // Whether this is memory of what went before: keys and values, or a recurrent state.
    bool is_cache(const ggml_tensor * t) const;

    // Visits all that t is computed from, t included, down to (and without) nodes at or before the position `after`.
    // Weights and inputs are visited too. Reading a cache means depending on what this graph wrote to it before. Where
    // `visit` returns false, what is below is not visited.
    void visit_sources(ggml_tensor *                              t,
                       int                                        after,
                       tensor_set &                               seen,
                       const std::function<bool(ggml_tensor *)> & visit) const;

    // Visits what t is computed from and `boundary` is not, but for what is computed from inputs alone, such as masks.
    void visit_beyond(ggml_tensor * boundary, ggml_tensor * t, const std::function<void(ggml_tensor *)> & visit) const;

    bool depends(ggml_tensor * t, const ggml_tensor * on) const;

private:
    std::unordered_map<const ggml_tensor *, int>                        position;
    std::unordered_map<const ggml_tensor *, std::vector<ggml_tensor *>> cache_writes; // by the cache's memory
    tensor_set                                                          of_inputs;    // computed from inputs alone
};

// Finds a model's blocks in its compute graph. No architecture is known by its name: "Finding the blocks" in
// docs/how-it-works.md says how it is done.
#pragma once

#include "graph/graph_view.h"

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

// attn mixes tokens. linear mixes none, and is a norm and the product with one weight. ffn is every other branch.
enum class block_kind { attn, ffn, linear };

// The kind as a block's name begins with it: "attn", "ffn" or "linear".
const char * name_of_kind(block_kind kind);

// One residual branch of a layer: r_{b+1} = r_b + f_b(r_b).
struct residual_block {
    block_kind kind  = block_kind::ffn;
    int        layer = -1; // the N of its weights' names blk.N

    // names of the tensors that only this branch reads
    std::vector<std::string> weights;

    // It reads the same boundary as the block before it: r_{b+2} = r_b + f_b(r_b) + f_{b+1}(r_b).
    bool parallel = false;

    // It is added to the residual stream as the stream is at the boundary, not scaled or normalized.
    bool direct = false;

    // the blocks of which it reads inner values, or the stream before them, beside its own boundary
    std::vector<size_t> reads;

    // The weights of its input projections, such as those of Q, K and V, or of gate and up: all by which it multiplies the
    // normed stream first. Empty where it reads that in another way too, or shares it.
    std::vector<std::string> inputs;

    // The weights of its output projection: the matrix by which the branch ends, a bias and a norm aside. Empty where it
    // ends in something else.
    std::string output;

    // The RMSNorm behind that: its weights and its ε. Empty where there is none.
    std::string post_norm;
    float       post_norm_epsilon = 0;

    // what it computes, apart from its weights' values and types, its layer and its rope
    std::string signature;

    // which values it rotates together, GGML_ROPE_TYPE_*; -1 where it rotates none
    int rope = -1;

    // what it writes to a cache of keys and values for each token
    size_t cache_bytes = 0;
};

// One flag for each block, in the order of the residual stream: true where it is left out.
using skip_set = std::vector<bool>;

// The boundaries before and behind neighbouring blocks that are left out.
using gap = std::pair<size_t, size_t>;

// The gaps that a skip set leaves, in the order of the stream.
std::vector<gap> gaps_of(const skip_set & skip);

// A block in a graph, and how it is left out: who reads `add` must read `instead`.
struct found_block {
    residual_block block = {};

    ggml_tensor * branch   = nullptr;
    ggml_tensor * boundary = nullptr; // the residual stream that the block reads, of all tokens
    ggml_tensor * stream   = nullptr; // that stream as the branch is added to it: scaled, or of the output rows alone
    ggml_tensor * add      = nullptr; // adds the branch to the stream, or to a parallel branch
    ggml_tensor * instead  = nullptr; // what it adds it to
    ggml_tensor * entry    = nullptr; // what the input projections multiply; null where the block has none of its own
    ggml_tensor * both = nullptr; // where two parallel branches are added to each other first: adds that to the stream

    tensor_set inner       = {}; // what the branch computes
    bool       reads_cache = false;
};

// Where the blocks of a graph are, as positions of nodes. Graphs of one model are alike, so this holds for all of them.
struct graph_layout {
    struct block_nodes {
        int  branch, boundary, stream, add, instead;
        int  both;  // -1 where there is none
        int  entry; // -1 where there is none
        bool parallel;
    };
    size_t                   n_nodes = 0;
    std::vector<block_nodes> blocks;
};

// Walks the residual stream from its end back to the embedding, and returns the blocks in the order of the stream.
// Throws where the stream can't be followed.
std::vector<found_block> find_blocks(const graph_view & graph, ggml_tensor * end);

// By what a block's branch ends.
struct branch_end {
    ggml_tensor * product    = nullptr; // of the output projection with the block's inner values; null: something else
    ggml_tensor * projected  = nullptr; // that and a bias, if there is one
    const ggml_tensor * norm = nullptr; // the RMSNorm behind that, times its weights, if there is one
};

branch_end end_of_branch(const found_block & found);

graph_layout layout_of(const graph_view & graph, const std::vector<found_block> & found);

// The blocks of a graph that is like the one whose layout is known, without what describes them. Empty if it is not
// like it.
std::vector<found_block> find_again(const graph_view & graph, const graph_layout & layout);

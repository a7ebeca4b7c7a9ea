// The patch of the compute graph: finds a model's blocks in the graph that llama.cpp built, leaves out chosen ones, and
// puts the negative log-likelihood of given tokens where the logits would leave the graph.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

struct ggml_tensor;
class llm_graph_result;

// One residual branch of a layer: r_{b+1} = r_b + f_b(r_b).
struct residual_block {
    bool                     mixes_tokens; // attn, else ffn
    int                      layer;        // N of blk.N
    std::vector<std::string> weights;      // names of the tensors that only this branch reads
    bool                     parallel;     // reads the same boundary as the block before it: r_{b+2} = r_b + f_b(r_b) + f_{b+1}(r_b)
    bool                     direct;       // is added to the residual stream as it is at the boundary, not scaled or normalized
    std::vector<size_t>      reads;        // blocks of which it reads inner values, or the stream before them, beside its own boundary
    std::string              signature;    // what it computes, but for its weights' values and types, its layer and its rope
    int                      rope;         // which values it rotates together, GGML_ROPE_TYPE_*; -1: none
};

// Where a graph has its blocks: positions of nodes. As graphs of one model are alike, they are found once.
struct graph_layout {
    struct block_nodes {
        int  branch, boundary, stream, add, instead, both; // both: -1 where there is none
        bool parallel;
    };
    size_t                   n_nodes = 0;
    std::vector<block_nodes> blocks;
};

class graph_patch {
public:
    // llama_context_params::graph_hook; data is a graph_patch
    static void hook(void * data, void * graph_result);

    // In the order of the residual stream, known once a first graph was built.
    std::vector<residual_block> blocks;

    // What the first graph computed outside of the blocks, as a block's signature.
    std::string outer_signature;

    // Why the last graph could not be patched; empty if it could.
    std::string error;

    // What the next graphs end in, of the output positions: only what it takes is computed.
    enum class output {
        nll,
        logits, // and nll
        hidden, // what the logits are computed from
        none,   // there are only boundaries to compare
    };

    // What the next graphs compute.
    struct request {
        std::vector<bool> skip;         // the blocks to leave out (index into blocks)
        size_t            start = 0;    // compute from this block's boundary on; 0: from the tokens
        ggml_tensor     * boundary = nullptr; // the residual stream there, F32 [n_embd, n_tokens]; graphs read it when they run
        std::vector<size_t> capture;    // the blocks whose boundaries shall be readable
        std::vector<std::pair<size_t, size_t>> compare; // boundaries to compare; one past the last block: the stream's end
        bool              outputs_first = true; // false: outputs are spread over the batch, so that the model must select them
        enum output       output = output::nll;

        bool operator==(const request & o) const {
            return skip == o.skip && start == o.start && boundary == o.boundary && capture == o.capture && compare == o.compare &&
                outputs_first == o.outputs_first && output == o.output;
        }
    };
    void set_request(request r);

    // Logits are computed for as many positions at a time as fit here, so that memory doesn't grow with context x vocabulary.
    size_t logits_bytes = 256*1024*1024;

    // The token that each output position should predict; must outlive the graph's computation. The outputs are the first
    // positions of the batch: some models compute logits for all of it, whatever was asked for.
    const int32_t * targets   = nullptr;
    size_t          n_outputs = SIZE_MAX;

    // F32 [n_embd, n_tokens] by block; of the last graph.
    std::map<size_t, ggml_tensor *> captured;

    // Of each pair (a, b) to compare: a·b, |a|², |b|², |b - a|², F32 [1, n_tokens]; of the last graph.
    struct comparison { ggml_tensor * dot, * a, * b, * difference; };
    std::vector<comparison> comparisons;

    // What was asked for, of the last graph; F32.
    std::vector<ggml_tensor *> nll;              // one value for each output position, over the tensors in order
    std::vector<ggml_tensor *> logits;           // [n_vocab, n], over the tensors in order
    ggml_tensor              * hidden = nullptr; // [n_embd, n]

    // Of the last graph: its operations, and how many of them write to a cache.
    std::atomic<int> n_nodes        { 0 };
    std::atomic<int> n_cache_writes { 0 };

    // changes when graphs built before can't be reused
    uint64_t version = 0;

private:
    request      req;
    graph_layout layout;

    void apply(llm_graph_result & res);
};

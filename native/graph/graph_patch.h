// The patch of the compute graph: leaves out chosen blocks of a graph that llama.cpp built, starts at a kept boundary,
// and puts the negative log-likelihood of given tokens, or what else is asked for, where the logits would leave the
// graph.
#pragma once

#include "graph/find_blocks.h"
#include "graph/kept_masks.h"
#include "graph/packed_products.h"

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

class llm_graph_result;

// What the graph of a batch shall compute. What isn't needed for it is not computed.
struct graph_request {
    skip_set skip; // empty: no block is left out

    // What stands in gaps, by the first block of each: W of x + W·x/rms(x), F32 [n_embd, n_embd]. The graph reads these
    // tensors whenever it runs, so the request keeps their memory.
    using linear_blocks = std::map<size_t, std::shared_ptr<ggml_tensor>>;
    linear_blocks linear;

    // How the normed stream changes that a block's input projections multiply: from n to n + A·n. A: F32 [n_embd, n_embd].
    // The graph reads these tensors whenever it runs, so the request keeps their memory.
    using input_changes = std::map<size_t, std::shared_ptr<ggml_tensor>>;
    input_changes inputs;

    // Compute from this block's boundary on, given the residual stream there: F32 [n_embd, n_tokens]. 0: from the
    // tokens. The graph reads that tensor whenever it runs, so the request keeps its memory.
    size_t                       start = 0;
    std::shared_ptr<ggml_tensor> boundary;

    // The blocks whose boundaries shall be readable; the number of blocks is the stream's end. In the last layer, a
    // boundary may have the output positions alone.
    std::vector<size_t> capture;

    // The blocks whose inner values shall be readable: what their output projections multiply, and what these give
    // to a norm behind them.
    std::vector<size_t> inner;

    // The blocks whose normed stream shall be readable, before it changes.
    std::vector<size_t> entry;

    // Pairs of boundaries to compare, named in the same way.
    std::vector<std::pair<size_t, size_t>> compare;

    enum class output_kind {
        nll,
        logits, // and the NLL
        hidden, // what the logits are computed from
        none,
    };
    output_kind output = output_kind::nll;

    // The token that each output position of the batch should predict; empty: there are as many as the graph has
    // outputs.
    std::vector<int32_t> targets;

    // The tokens of each sequence of the batch, where all have as many and are computed from their first one on: then
    // attention masks depend on nothing else, and are kept. 0: it isn't so.
    uint32_t sequence_length = 0;

    // Whether the outputs are the first positions of the batch. Then they can be told from the others also in those
    // models that compute logits for all positions, whatever was asked for.
    bool outputs_first = true;
};

// The tensors of a graph that tell what was asked for; F32.
struct graph_outputs {
    std::map<size_t, ggml_tensor *> captured; // by block: [n_embd, n_tokens]

    std::map<size_t, ggml_tensor *> inner;     // by block: [n_inner, n_tokens]
    std::map<size_t, ggml_tensor *> entry;     // by block: [n_embd, n_tokens]
    std::map<size_t, ggml_tensor *> projected; // by block with such a norm: [n_embd, n_tokens], a bias included

    // of each pair (a, b) to compare: a·b, |a|², |b|², |b − a|²; [1, n_tokens]
    struct comparison {
        ggml_tensor * dot;
        ggml_tensor * a;
        ggml_tensor * b;
        ggml_tensor * difference;
    };
    std::vector<comparison> comparisons;

    std::vector<ggml_tensor *> nll;              // a value for each output position, over the tensors in order
    std::vector<ggml_tensor *> logits;           // [n_vocab, n] each, over the tensors in order
    ggml_tensor *              hidden = nullptr; // [n_embd, n]
};

class graph_patch {
public:
    // logits_bytes: logits are computed for as many positions at a time as fit into so much memory, so that it doesn't
    // grow with context x vocabulary
    // rms_epsilon: of the RMSNorm of linear blocks
    // mask_memory: where attention masks are kept; null: nowhere
    // packed: weights that products shall use in place of the model's own; null: none
    graph_patch(size_t                          logits_bytes,
                float                           rms_epsilon,
                ggml_backend_buffer_type_t      mask_memory,
                std::shared_ptr<packed_weights> packed) :
        logits_bytes(logits_bytes),
        rms_epsilon(rms_epsilon),
        masks(mask_memory),
        packed(std::move(packed)) {}

    // llama_context_params::graph_hook; data is a graph_patch
    static void hook(void * data, void * graph_result);

    // What the next graphs compute.
    void set_request(graph_request r);

    const graph_request & request() const { return req; }

    // Changes with every request that the graph of the one before can't serve.
    uint64_t version() const { return n_requests; }

    // In the order of the residual stream; known once the first graph was built.
    std::vector<residual_block> blocks;

    // What the first graph computed outside of the blocks, as a block's signature.
    std::string outer_signature;

    // Why the last graph could not be patched; empty if it could.
    std::string error;

    // Of the last graph.
    graph_outputs    outputs;
    std::atomic<int> n_nodes{ 0 };        // its operations
    std::atomic<int> n_cache_writes{ 0 }; // those that write to a cache of keys and values

private:
    const size_t  logits_bytes;
    const float   rms_epsilon;
    graph_request req;
    uint64_t      n_requests = 0;
    graph_layout  layout;
    kept_masks    masks;

    const std::shared_ptr<packed_weights> packed;

    void                     apply(llm_graph_result & res);
    std::vector<found_block> locate_blocks(const graph_view & graph, llm_graph_result & res);
};

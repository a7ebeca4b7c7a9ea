// The patch of the compute graph: finds a model's blocks in the graph that llama.cpp built, leaves out chosen ones, and
// puts the negative log-likelihood of given tokens where the logits would leave the graph.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

struct ggml_tensor;
class llm_graph_result;

// One residual branch of a layer: r_{b+1} = r_b + f_b(r_b).
struct residual_block {
    bool                     mixes_tokens; // attn, else ffn
    int                      layer;        // N of blk.N
    std::vector<std::string> weights;      // names of the tensors that only this branch reads
};

class graph_patch {
public:
    // llama_context_params::graph_hook; data is a graph_patch
    static void hook(void * data, void * graph_result);

    // In the order of the residual stream, known once a first graph was built.
    std::vector<residual_block> blocks;

    // Why the last graph could not be patched; empty if it could.
    std::string error;

    // The next graphs leave these blocks out (index into blocks).
    void set_skip(std::vector<bool> skip);

    // The token that each output position should predict; must outlive the graph's computation.
    const int32_t * targets = nullptr;

    // F32, one value for each output position, over the tensors in order; of the last graph.
    std::vector<ggml_tensor *> nll;

    // changes when graphs built before can't be reused
    uint64_t version = 0;

private:
    std::vector<bool> skip;

    void apply(llm_graph_result & res);
};

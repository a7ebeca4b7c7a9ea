// Attention masks that are kept on a device. llama.cpp fills a mask anew for every batch, on one thread of the CPU, and
// copies it to the device: for a sequence of 2048 tokens that takes longer than a GPU needs for the logits. Sequences
// that are computed from their first token on always have the same one.
#pragma once

#include "ggml-backend.h"
#include "graph/graph_view.h"

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <tuple>

class llm_graph_result;

// Whether this is a graph input that says which tokens attend to which.
bool is_mask(const ggml_tensor * t);

class kept_masks {
public:
    // memory: where masks are kept; null: nowhere
    explicit kept_masks(ggml_backend_buffer_type_t memory) : memory(memory) {}

    // A kept mask to read instead of an input of a graph; null where there is none. Then the mask is kept once
    // llama.cpp has filled it for that graph.
    // number: of the graph's masks, so that those of full attention and of a sliding window are told apart
    // length: tokens of each sequence
    ggml_tensor * find(llm_graph_result & res, ggml_tensor * mask, size_t number, uint32_t length);

private:
    // number, length, and the mask's size: rows are cells of the cache, [n_kv, length, 1, n_sequences]
    using key = std::tuple<size_t, uint32_t, int64_t, int64_t>;

    struct entry;

    const ggml_backend_buffer_type_t      memory;
    std::map<key, std::shared_ptr<entry>> kept;

    class keeper;
};

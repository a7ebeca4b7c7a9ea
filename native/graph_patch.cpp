#include "graph_patch.h"

#include "ggml-backend.h"
#include "ggml.h"
#include "llama-graph.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <iterator>
#include <set>
#include <stdexcept>
#include <unordered_map>
#include <unordered_set>

namespace {

using tensor_set = std::unordered_set<const ggml_tensor *>;

// Views are flattened by ggml: view_src is always the tensor that owns the memory.
const ggml_tensor * memory_of(const ggml_tensor * t) {
    return t->view_src ? t->view_src : t;
}

// False for weights, caches and graph inputs, and for views of them.
bool is_computed(const ggml_tensor * t) {
    return t->op != GGML_OP_NONE && memory_of(t)->op != GGML_OP_NONE;
}

bool is_input(const ggml_tensor * t) {
    return t->op == GGML_OP_NONE && (t->flags & GGML_TENSOR_FLAG_INPUT);
}

bool is_view(const ggml_tensor * t) {
    return t->op == GGML_OP_VIEW || t->op == GGML_OP_RESHAPE || t->op == GGML_OP_PERMUTE || t->op == GGML_OP_TRANSPOSE;
}

// The N of a weight's name blk.N.REST, and REST; -1 for others.
int layer_of(const ggml_tensor * t, const char ** rest = nullptr) {
    int layer, length = 0;
    if (t->op != GGML_OP_NONE || is_input(t) || sscanf(t->name, "blk.%d.%n", &layer, &length) != 1 || length == 0) {
        return -1;
    }
    if (rest) {
        *rest = t->name + length;
    }
    return layer;
}

// The operand of an operation that has one computed operand; null if it has more or none.
ggml_tensor * only_computed(const ggml_tensor * t) {
    ggml_tensor * found = nullptr;
    for (ggml_tensor * src : t->src) {
        if (src && is_computed(src)) {
            if (found) {
                return nullptr;
            }
            found = src;
        }
    }
    return found;
}

// What an operand is a selection of rows of, or another shape of.
ggml_tensor * strip_selection(ggml_tensor * t) {
    while ((t->op == GGML_OP_GET_ROWS || t->op == GGML_OP_VIEW || t->op == GGML_OP_RESHAPE || t->op == GGML_OP_CONT) &&
           is_computed(t->src[0])) {
        t = t->src[0];
    }
    return t;
}

// Does the operation work on a token's values alone, and keep their number? Norms, scales, biases, selections, shapes.
bool is_pointwise(const ggml_tensor * t) {
    switch (t->op) {
        case GGML_OP_ADD:
        case GGML_OP_MUL:
        case GGML_OP_NORM:
        case GGML_OP_RMS_NORM:
        case GGML_OP_SCALE:
        case GGML_OP_GET_ROWS:
        case GGML_OP_VIEW:
        case GGML_OP_RESHAPE:
        case GGML_OP_CONT:
            return true;
        default:
            return false;
    }
}

// What a pointwise operation works on; null for a sum or product of two computed tensors, or of none.
ggml_tensor * below_pointwise(const ggml_tensor * t) {
    return t->op == GGML_OP_ADD || t->op == GGML_OP_MUL ? only_computed(t) : t->src[0];
}

// What is below pointwise operations.
ggml_tensor * strip_pointwise(ggml_tensor * t) {
    while (is_pointwise(t)) {
        ggml_tensor * below = below_pointwise(t);
        if (!below || !is_computed(below)) {
            break;
        }
        t = below;
    }
    return t;
}

// A sum of two computed tensors.
bool is_sum(const ggml_tensor * t) {
    return t->op == GGML_OP_ADD && is_computed(t->src[0]) && is_computed(t->src[1]);
}

// Does the operation carry information from one token to another?
bool mixes_tokens(const ggml_tensor * t) {
    switch (t->op) {
        case GGML_OP_FLASH_ATTN_EXT:
        case GGML_OP_SET_ROWS:
        case GGML_OP_SSM_CONV:
        case GGML_OP_SSM_SCAN:
        case GGML_OP_RWKV_WKV6:
        case GGML_OP_RWKV_WKV7:
        case GGML_OP_GATED_LINEAR_ATTN:
        case GGML_OP_GATED_DELTA_NET:
            return true;
        case GGML_OP_SOFT_MAX:
            return t->src[1] != nullptr; // with a mask; the soft max of an MoE router has none
        default:
            return false;
    }
}

// A graph as llama.cpp built it: its nodes in order, and who writes which cache.
struct built_graph {
    std::vector<ggml_tensor *>                                             nodes;
    std::unordered_map<const ggml_tensor *, int>                           position;
    std::unordered_map<const ggml_tensor *, std::vector<ggml_tensor *>>    cache_writes; // by the cache's memory
    std::vector<ggml_tensor *>                                             inputs;
    tensor_set                                                             of_inputs;    // computed of inputs alone, such as masks

    explicit built_graph(ggml_cgraph * gf) {
        tensor_set seen;
        for (int i = 0; i < ggml_graph_n_nodes(gf); i++) {
            ggml_tensor * node = ggml_graph_node(gf, i);
            position[node] = i;
            nodes.push_back(node);
            if (memory_of(node)->op == GGML_OP_NONE && !is_view(node)) {
                cache_writes[memory_of(node)].push_back(node); // copies, rows that are set, states that are cleared
            }
            bool is_of_inputs = memory_of(node)->op != GGML_OP_NONE || is_input(memory_of(node));
            for (ggml_tensor * src : node->src) {
                if (src && is_input(src) && seen.insert(src).second) {
                    inputs.push_back(src);
                }
                is_of_inputs = is_of_inputs && (!src || is_input(src) || of_inputs.count(src));
            }
            if (is_of_inputs) {
                of_inputs.insert(node);
            }
        }
    }

    // Memory of what went before: keys and values, or a recurrent state.
    bool is_cache(const ggml_tensor * t) const {
        return cache_writes.count(t) > 0;
    }

    int position_of(const ggml_tensor * t) const {
        const auto it = position.find(t);
        return it == position.end() ? -1 : it->second;
    }

    // Visits all that t is computed from, t included, down to (and without) nodes at or before the position `after`.
    // Leaves are visited too. Reading a cache means depending on what this graph wrote to it before. What a visit says no
    // to is not gone into.
    void visit_sources(ggml_tensor * t, int after, tensor_set & seen, const std::function<bool(ggml_tensor *)> & visit) const {
        std::vector<ggml_tensor *> stack = { t };
        while (!stack.empty()) {
            ggml_tensor * cur = stack.back();
            stack.pop_back();
            if (!cur || (cur->op != GGML_OP_NONE && position_of(cur) >= 0 && position_of(cur) <= after) || !seen.insert(cur).second || !visit(cur)) {
                continue;
            }
            stack.push_back(cur->view_src);
            for (ggml_tensor * src : cur->src) {
                stack.push_back(src);
                const auto writes = src && !is_view(cur) ? cache_writes.find(memory_of(src)) : cache_writes.end();
                if (writes != cache_writes.end()) {
                    std::copy_if(writes->second.begin(), writes->second.end(), std::back_inserter(stack), [&](ggml_tensor * write) {
                        return position_of(write) < position_of(cur) || position_of(cur) < 0;
                    });
                }
            }
        }
    }

    // Visits what t is computed from and `boundary` is not, but for what is computed of inputs alone.
    void visit_beyond(ggml_tensor * boundary, ggml_tensor * t, const std::function<void(ggml_tensor *)> & visit) const {
        tensor_set seen;
        visit_sources(boundary, -1, seen, [](ggml_tensor *) { return true; });
        visit_sources(t, -1, seen, [&](ggml_tensor * cur) {
            const bool is_beyond = !of_inputs.count(cur);
            if (is_beyond) {
                visit(cur);
            }
            return is_beyond;
        });
    }

    bool depends(ggml_tensor * t, const ggml_tensor * on) const {
        bool found = false;
        tensor_set seen;
        visit_sources(t, position_of(on) - 1, seen, [&](ggml_tensor * cur) { found = found || cur == on; return !found; });
        return found;
    }
};

// A block and how it is left out: who reads `add` reads `instead`.
struct found_block {
    residual_block block;
    ggml_tensor  * branch;
    ggml_tensor  * boundary;        // the residual stream that the block reads, of all tokens
    ggml_tensor  * stream;          // that stream as the block's output is added to it: of the output rows alone, or scaled
    ggml_tensor  * add;             // adds the branch to the stream, or to a parallel branch
    ggml_tensor  * instead;         // what it adds it to
    ggml_tensor  * both = nullptr;  // of two parallel branches that are added to each other first: adds their sum to the stream
    tensor_set     inner = {};      // what the branch computes
    bool           reads_cache = false;
};

[[noreturn]] void not_understood(const std::string & why, const std::vector<found_block> & above) {
    throw std::runtime_error("the residual stream of this model can't be followed: " + why +
        (above.empty() ? "" : " (below layer " + std::to_string(above.back().block.layer) + ")"));
}

// The boundary that shows in `stream` if it is the residual stream of a sum with `branch`: what the branch is computed from.
ggml_tensor * boundary_between(const built_graph & graph, ggml_tensor * stream, ggml_tensor * branch) {
    for (ggml_tensor * boundary : { strip_selection(stream), strip_pointwise(stream) }) {
        if (graph.depends(branch, boundary)) {
            return boundary;
        }
    }
    return nullptr;
}

bool mixes_tokens(const built_graph & graph, ggml_tensor * branch, ggml_tensor * boundary) {
    bool mixes = false;
    graph.visit_beyond(boundary, branch, [&](const ggml_tensor * t) { mixes = mixes || mixes_tokens(t); });
    return mixes;
}

// Splits the sum `cur` into the residual stream and one block, or two parallel ones. Nothing if it isn't such a sum.
std::vector<found_block> split_sum(const built_graph & graph, ggml_tensor * cur) {
    ggml_tensor * const operands[2] = { cur->src[0], cur->src[1] };
    ggml_tensor * const boundaries[2] = { boundary_between(graph, operands[0], operands[1]), boundary_between(graph, operands[1], operands[0]) };

    if (!boundaries[0] != !boundaries[1]) {
        const int i = boundaries[0] ? 0 : 1;
        ggml_tensor * stream = operands[i], * branch = operands[1 - i], * boundary = boundaries[i];
        // r + (attention + FFN), parallel: one part mixes tokens, the other doesn't, and neither reads the other
        ggml_tensor * sum = branch;
        while (sum->op == GGML_OP_SCALE) {
            sum = sum->src[0];
        }
        if (is_sum(sum)) {
            ggml_tensor * p = sum->src[0], * q = sum->src[1];
            const bool p_mixes = mixes_tokens(graph, p, boundary);
            if (p_mixes != mixes_tokens(graph, q, boundary) && graph.depends(p, boundary) && graph.depends(q, boundary) &&
                !graph.depends(p, strip_pointwise(q)) && !graph.depends(q, strip_pointwise(p))) {
                if (!p_mixes) {
                    std::swap(p, q);
                }
                return { { {}, p, boundary, stream, sum, q, cur }, { {}, q, boundary, stream, sum, p, cur } };
            }
        }
        return { { {}, branch, boundary, stream, cur, stream } };
    }
    if (boundaries[0]) {
        return {};
    }
    // (r + one) + other, parallel
    for (const int i : { 0, 1 }) {
        ggml_tensor * rest = operands[i], * other = operands[1 - i];
        ggml_tensor * sum = strip_selection(rest);
        for (const int j : { 0, 1 }) {
            if (!is_sum(sum)) {
                break;
            }
            ggml_tensor * stream = sum->src[j], * one = sum->src[1 - j];
            ggml_tensor * boundary = boundary_between(graph, stream, one);
            if (boundary && boundary == boundary_between(graph, stream, other)) {
                const found_block first = { {}, one, boundary, stream, sum, stream }, second = { {}, other, boundary, stream, cur, rest };
                return mixes_tokens(graph, one, boundary) ? std::vector<found_block> { first, second } : std::vector<found_block> { second, first };
            }
        }
    }
    return {};
}

// Fills in what a block's branch computes, and its layer and weights.
void describe_branch(const built_graph & graph, found_block & found, const std::vector<found_block> & above) {
    residual_block & block = found.block;
    block.mixes_tokens = false;
    block.layer        = -1;
    std::set<std::string> weights;
    graph.visit_beyond(found.boundary, found.branch, [&](ggml_tensor * t) {
        block.mixes_tokens = block.mixes_tokens || mixes_tokens(t);
        found.reads_cache  = found.reads_cache || graph.is_cache(t);
        const int layer = layer_of(t);
        if (layer >= 0) {
            if (block.layer >= 0 && block.layer != layer) {
                not_understood("a branch reads the weights of layers " + std::to_string(block.layer) + " and " + std::to_string(layer), above);
            }
            block.layer = layer;
            weights.insert(t->name);
        }
        if (t->op != GGML_OP_NONE) {
            found.inner.insert(t);
        }
    });
    if (block.layer < 0) {
        not_understood("a branch of it reads no layer's weights, at '" + std::string(found.branch->name) + "'", above);
    }
    block.weights.assign(weights.begin(), weights.end());
}

// Lists operations in their order, with their parameters and what they read, and hashes that. Views and selections are
// looked through: what they say depends on the number of tokens. Which values a rope rotates together is left out.
// names: of what was computed before
std::string signature_of(const built_graph & graph, const tensor_set & inner, std::unordered_map<const ggml_tensor *, std::string> names) {
    std::vector<ggml_tensor *> nodes;
    std::copy_if(graph.nodes.begin(), graph.nodes.end(), std::back_inserter(nodes), [&](ggml_tensor * t) { return inner.count(t) > 0; });

    const auto name_of = [&](const ggml_tensor * t) -> std::string {
        const char * rest;
        if (names.count(t)) {
            return names[t];
        }
        if (t->op == GGML_OP_NONE) {
            if (is_input(t)) {
                return t->name;
            }
            if (graph.is_cache(t)) {
                return "cache";
            }
            // a leaf without a name of its own gets a number
            std::string name = layer_of(t, &rest) >= 0 ? rest : strncmp(t->name, "leaf_", 5) == 0 ? "leaf" : t->name;
            for (const int64_t n : t->ne) {
                name += "," + std::to_string(n);
            }
            return name;
        }
        // computed before, of inputs alone
        tensor_set seen;
        std::set<std::string> inputs;
        graph.visit_sources(const_cast<ggml_tensor *>(t), -1, seen, [&](ggml_tensor * s) {
            if (is_input(s)) {
                inputs.insert(s->name);
            }
            return true;
        });
        std::string name = "outer";
        for (const auto & input : inputs) {
            name += "," + input;
        }
        return name;
    };

    std::string text;
    int number = 0;
    for (const ggml_tensor * t : nodes) {
        const bool selection = t->op == GGML_OP_GET_ROWS && is_input(t->src[1]);
        if (is_view(t) || t->op == GGML_OP_CONT || selection) {
            names[t] = name_of(t->src[0]);
            continue;
        }
        text += ggml_op_desc(t);
        if (t->op != GGML_OP_SET_ROWS && t->op != GGML_OP_CPY) {
            for (size_t i = 0; i < std::size(t->op_params); i++) {
                const bool is_rope_mode = t->op == GGML_OP_ROPE && i == 2;
                text += "," + (is_rope_mode ? "" : std::to_string(t->op_params[i]));
            }
        }
        for (const ggml_tensor * src : t->src) {
            text += src ? " " + name_of(src) : "";
        }
        text += "\n";
        names[t] = "n" + std::to_string(number++);
    }
    uint64_t hash = 14695981039346656037ull; // FNV-1a
    for (const unsigned char c : text) {
        hash = (hash ^ c)*1099511628211ull;
    }
    char hex[17];
    snprintf(hex, sizeof(hex), "%016llx", (unsigned long long) hash);
    return hex;
}

// Which other blocks each block reads from, beside its own boundary.
void find_cross_reads(const built_graph & graph, std::vector<found_block> & found) {
    std::unordered_map<const ggml_tensor *, std::vector<size_t>> owners;
    for (size_t i = 0; i < found.size(); i++) {
        for (const ggml_tensor * t : found[i].inner) {
            owners[t].push_back(i);
        }
        owners[found[i].boundary].push_back(i);
    }
    for (size_t i = 0; i < found.size(); i++) {
        std::set<size_t> reads;
        tensor_set seen = { found[i].boundary };
        graph.visit_sources(found[i].branch, -1, seen, [&](ggml_tensor * t) {
            const auto owner = owners.find(t);
            if (found[i].inner.count(t) || owner == owners.end()) {
                return true;
            }
            std::copy_if(owner->second.begin(), owner->second.end(), std::inserter(reads, reads.end()), [&](size_t other) {
                return found[other].boundary != found[i].boundary;
            });
            return false;
        });
        found[i].block.reads.assign(reads.begin(), reads.end());
    }
}

// Walks the residual stream from the end to the embedding and returns the blocks in the stream's order. No names of
// layers' tensors are needed but blk.N of the weights: see "Finding the blocks" in docs/how-it-works.md.
std::vector<found_block> find_blocks(const built_graph & graph, ggml_tensor * end) {
    std::vector<found_block> found; // from the last to the first
    ggml_tensor * cur = end;
    std::vector<const ggml_tensor *> on_stream; // weights of layers that the stream itself passes
    while (cur && is_computed(cur)) {
        if (is_sum(cur)) {
            std::vector<found_block> blocks = split_sum(graph, cur);
            if (blocks.empty()) {
                break; // a sum of embeddings, or a form that is not known here
            }
            for (auto & block : blocks) {
                describe_branch(graph, block, found);
                block.block.direct   = strip_selection(block.stream) == block.boundary;
                block.block.parallel = &block != &blocks.front();
            }
            cur = blocks.front().stream;
            found.insert(found.end(), std::make_move_iterator(blocks.rbegin()), std::make_move_iterator(blocks.rend()));
            continue;
        }
        for (const ggml_tensor * src : cur->src) {
            if (src && layer_of(src) >= 0) {
                on_stream.push_back(src);
            }
        }
        if (!is_pointwise(cur)) {
            not_understood(std::string("operation ") + ggml_op_desc(cur) + ", '" + cur->name + "'", found);
        }
        if (cur->op == GGML_OP_MUL && is_computed(cur->src[0]) && is_computed(cur->src[1])) {
            not_understood("a product of two computed tensors, '" + std::string(cur->name) + "'", found);
        }
        cur = below_pointwise(cur);
    }
    // what is left must be the embedding: no layer may stand before boundary 0
    if (cur) {
        tensor_set seen;
        graph.visit_sources(cur, -1, seen, [&](ggml_tensor * t) {
            if (layer_of(t) >= 0) {
                not_understood("the weights of layer " + std::to_string(layer_of(t)) + " are read at '" + std::string(cur->name) +
                    "', which is no sum of the stream and a block", found);
            }
            return true;
        });
    }
    std::reverse(found.begin(), found.end());

    // linear attention can consist of products alone: it shows by its state. An FFN may have one too, as RWKV's channel mixing.
    std::set<int> with_attention;
    for (const auto & f : found) {
        if (f.block.mixes_tokens) {
            with_attention.insert(f.block.layer);
        }
    }
    for (auto & f : found) {
        f.block.mixes_tokens = f.block.mixes_tokens || (f.reads_cache && !with_attention.count(f.block.layer));
    }

    std::set<std::pair<int, bool>> seen;
    for (auto & f : found) {
        if (!seen.insert({ f.block.layer, f.block.mixes_tokens }).second) {
            not_understood("layer " + std::to_string(f.block.layer) + " has two " + (f.block.mixes_tokens ? "attention" : "FFN") + " blocks", {});
        }
        for (const ggml_tensor * weight : on_stream) {
            f.block.direct = f.block.direct && layer_of(weight) != f.block.layer;
            auto & weights = f.block.weights;
            weights.erase(std::remove(weights.begin(), weights.end(), weight->name), weights.end());
        }
    }
    return found;
}

// What is told of the blocks once: which weights are theirs alone, what they read of others, and what they compute.
void describe(const built_graph & graph, std::vector<found_block> & found) {
    std::map<std::string, int> readers;
    for (const auto & f : found) {
        for (const auto & name : f.block.weights) {
            readers[name]++;
        }
    }
    find_cross_reads(graph, found);
    for (auto & f : found) {
        f.block.signature = signature_of(graph, f.inner, { { f.boundary, "stream" } });
        f.block.rope      = -1;
        for (const ggml_tensor * t : f.inner) {
            f.block.rope = t->op == GGML_OP_ROPE ? t->op_params[2] : f.block.rope;
        }
        auto & weights = f.block.weights;
        weights.erase(std::remove_if(weights.begin(), weights.end(), [&](const auto & name) { return readers[name] > 1; }), weights.end());
    }
}

// A graph like one that was understood before: its blocks are where they were. Empty if it isn't like it.
std::vector<found_block> find_again(const built_graph & graph, const graph_layout & layout) {
    std::vector<found_block> found;
    if (graph.nodes.size() != layout.n_nodes) {
        return found;
    }
    for (const auto & at : layout.blocks) {
        found_block block = { {}, graph.nodes[at.branch], graph.nodes[at.boundary], graph.nodes[at.stream], graph.nodes[at.add], graph.nodes[at.instead] };
        block.both           = at.both < 0 ? nullptr : graph.nodes[at.both];
        block.block.parallel = at.parallel;
        const ggml_tensor * sum = block.add;
        const bool is_there = is_sum(sum) && ((sum->src[0] == block.instead && sum->src[1] == block.branch) || (sum->src[1] == block.instead && sum->src[0] == block.branch));
        if (!is_there) {
            return {};
        }
        found.push_back(std::move(block));
    }
    return found;
}

graph_layout layout_of(const built_graph & graph, const std::vector<found_block> & found) {
    graph_layout layout = { graph.nodes.size(), {} };
    for (const auto & f : found) {
        layout.blocks.push_back({ graph.position_of(f.branch), graph.position_of(f.boundary), graph.position_of(f.stream), graph.position_of(f.add),
            graph.position_of(f.instead), f.both ? graph.position_of(f.both) : -1, f.block.parallel });
    }
    return layout;
}

// Tensors and what their readers shall read instead.
class substitution {
public:
    void add(const ggml_tensor * t, ggml_tensor * other) { instead[t] = other; }

    ggml_tensor * resolve(ggml_tensor * t) const {
        for (auto it = instead.find(t); it != instead.end(); it = instead.find(t)) {
            t = it->second;
        }
        return t;
    }

    void apply(const built_graph & graph) const {
        for (ggml_tensor * node : graph.nodes) {
            for (ggml_tensor * & src : node->src) {
                if (src) {
                    src = resolve(src);
                }
            }
            if (node->view_src && instead.count(node->view_src)) {
                const ggml_tensor * other = resolve(node->view_src);
                node->view_src   = other->view_src ? other->view_src : const_cast<ggml_tensor *>(other);
                node->view_offs += other->view_offs;
            }
        }
    }

private:
    std::unordered_map<const ggml_tensor *, ggml_tensor *> instead;
};

// The tokens to predict, set before each run.
class targets_input : public llm_graph_input_i {
public:
    targets_input(const graph_patch & patch, ggml_tensor * tensor) : patch(patch), version(patch.version), tensor(tensor) {}

    void set_input(const llama_ubatch *) override {
        ggml_backend_tensor_set(tensor, patch.targets, 0, ggml_nbytes(tensor));
    }

    // the other inputs compare the numbers of tokens and outputs
    bool can_reuse(const llm_graph_params &) override { return version == patch.version; }

private:
    const graph_patch & patch;
    const uint64_t      version;
    ggml_tensor       * tensor;
};

// The residual stream behind the last block.
ggml_tensor * end_of(const built_graph & graph, const std::vector<found_block> & found) {
    const auto sum_of = [](const found_block & f) { return f.both ? f.both : f.add; };
    ggml_tensor * end = sum_of(found.back());
    if (found.back().block.parallel) { // either of two parallel blocks may be added last
        ggml_tensor * other = sum_of(found[found.size() - 2]);
        end = graph.position_of(other) > graph.position_of(end) ? other : end;
    }
    return end;
}

// The operations from the final hidden state to the logits, if each works on every position by itself and can be
// repeated on a part of them; empty otherwise.
std::vector<ggml_tensor *> find_head(const built_graph & graph, const ggml_tensor * embd, ggml_tensor * logits) {
    tensor_set on_path;
    graph.visit_sources(logits, graph.position_of(embd), on_path, [](ggml_tensor *) { return true; });
    std::vector<ggml_tensor *> head;
    for (ggml_tensor * node : graph.nodes) {
        if (!on_path.count(node)) {
            continue;
        }
        const bool by_position = (node->op == GGML_OP_MUL_MAT || node->op == GGML_OP_SCALE || node->op == GGML_OP_UNARY ||
            node->op == GGML_OP_ADD || node->op == GGML_OP_MUL) && !node->view_src && node->ne[1] == logits->ne[1] && ggml_nrows(node) == node->ne[1];
        if (!by_position) {
            return {};
        }
        head.push_back(node);
    }
    return head;
}

// The logits of `count` output positions from `first`, by a copy of the head.
ggml_tensor * part_of_head(ggml_context * ctx, const std::vector<ggml_tensor *> & head, ggml_tensor * embd, int64_t first, int64_t count) {
    std::unordered_map<const ggml_tensor *, ggml_tensor *> copy;
    copy[embd] = ggml_view_2d(ctx, embd, embd->ne[0], count, embd->nb[1], first*embd->nb[1]);
    ggml_tensor * last = nullptr;
    for (const ggml_tensor * node : head) {
        last = ggml_new_tensor_2d(ctx, node->type, node->ne[0], count);
        last->op = node->op;
        std::copy(std::begin(node->op_params), std::end(node->op_params), std::begin(last->op_params));
        for (int i = 0; i < GGML_MAX_SRC; i++) {
            const auto it = copy.find(node->src[i]);
            last->src[i] = it == copy.end() ? node->src[i] : it->second;
        }
        ggml_format_name(last, "%s (part)", node->name);
        copy[node] = last;
    }
    return last;
}

// -log softmax(logits)[target] for each position, as (max - logit[target]) - log p(max): exact also where the
// target's own probability is too small for a float. logits: [n_vocab, n], targets: [n], result: [n]
ggml_tensor * build_nll(ggml_context * ctx, ggml_tensor * logits, ggml_tensor * targets) {
    const int64_t n_vocab = logits->ne[0];
    const int64_t n       = logits->ne[1];
    ggml_tensor * at_target  = ggml_reshape_2d(ctx, targets, 1, n);
    ggml_tensor * at_max     = ggml_reshape_2d(ctx, ggml_argmax(ctx, logits), 1, n);
    ggml_tensor * columns    = ggml_reshape_3d(ctx, logits, 1, n_vocab, n);
    ggml_tensor * probs      = ggml_reshape_3d(ctx, ggml_soft_max(ctx, logits), 1, n_vocab, n);
    ggml_tensor * max_logit  = ggml_get_rows(ctx, columns, at_max);
    ggml_tensor * logit      = ggml_get_rows(ctx, columns, at_target);
    ggml_tensor * log_p_max  = ggml_log(ctx, ggml_get_rows(ctx, probs, at_max));
    return ggml_reshape_1d(ctx, ggml_sub(ctx, ggml_sub(ctx, max_logit, logit), log_p_max), n);
}

// Its memory isn't used for anything else.
void set_readable(ggml_tensor * t) {
    ggml_set_output(t);
    if (t->view_src) {
        ggml_set_output(t->view_src); // the allocator looks at the memory's owner
    }
}

} // namespace

void graph_patch::hook(void * data, void * graph_result) {
    static_cast<graph_patch *>(data)->apply(*static_cast<llm_graph_result *>(graph_result));
}

void graph_patch::set_request(request r) {
    if (!(r == req)) {
        req = std::move(r);
        version++;
    }
}

void graph_patch::apply(llm_graph_result & res) {
    error.clear();
    try {
        if (!res.t_logits || !res.t_embd) {
            throw std::runtime_error("this model computes no logits: it is no causal language model");
        }
        ggml_cgraph  * gf  = res.get_gf();
        ggml_context * ctx = res.get_ctx();
        const built_graph graph(gf);

        std::vector<found_block> found = find_again(graph, layout);
        if (found.empty()) {
            found  = find_blocks(graph, res.t_embd);
            layout = layout_of(graph, found);
        }
        if (!blocks.empty() && found.size() != blocks.size()) {
            throw std::runtime_error("this graph has other blocks than the first");
        }
        if (blocks.empty()) {
            describe(graph, found);
            tensor_set inner, outer, seen;
            std::unordered_map<const ggml_tensor *, std::string> names;
            for (const auto & f : found) {
                blocks.push_back(f.block);
                inner.insert(f.inner.begin(), f.inner.end());
                names[f.add] = names[f.both ? f.both : f.add] = "stream";
            }
            const auto collect = [&](ggml_tensor * t) {
                const bool is_outer = !inner.count(t) && !names.count(t);
                if (is_outer) {
                    outer.insert(t);
                }
                return is_outer;
            };
            graph.visit_sources(res.t_logits, -1, seen, collect);
            if (!found.empty()) {
                graph.visit_sources(found.front().stream, -1, seen, collect); // what comes before the first block
            }
            outer_signature = signature_of(graph, outer, std::move(names));
        }
        // leave out the skipped blocks: who reads the sum shall read the stream before the block
        substitution change;
        for (size_t i = 0; i < req.skip.size(); i++) {
            if (req.skip[i]) {
                change.add(found[i].add, found[i].instead);
            }
            // the second of two parallel blocks: the first is the one before
            if (req.skip[i] && found[i].block.parallel && found[i].both && req.skip[i - 1]) {
                change.add(found[i].both, found[i].stream);
            }
        }
        if (req.start > 0) {
            const ggml_tensor * before = found[req.start].boundary;
            if (!ggml_are_same_shape(before, req.boundary)) {
                throw std::runtime_error("a kept residual stream doesn't fit this graph");
            }
            change.add(before, req.boundary);
        }
        captured.clear();
        for (const size_t i : req.capture) {
            captured[i] = change.resolve(found[i].boundary);
        }
        change.apply(graph);
        for (const auto & [block, t] : captured) {
            set_readable(t);
        }

        comparisons.clear();
        std::vector<ggml_tensor *> results;
        for (const auto & [first, second] : req.compare) {
            const auto at = [&](size_t i) { return i < found.size() ? found[i].boundary : end_of(graph, found); };
            ggml_tensor * a = change.resolve(at(first)), * b = change.resolve(at(second));
            // the last layer may have selected the output positions, which are the first
            const int64_t n = std::min(a->ne[1], b->ne[1]);
            a = ggml_view_2d(ctx, a, a->ne[0], n, a->nb[1], 0);
            b = ggml_view_2d(ctx, b, b->ne[0], n, b->nb[1], 0);
            comparisons.push_back({ ggml_sum_rows(ctx, ggml_mul(ctx, a, b)), ggml_sum_rows(ctx, ggml_sqr(ctx, a)), ggml_sum_rows(ctx, ggml_sqr(ctx, b)),
                ggml_sum_rows(ctx, ggml_sqr(ctx, ggml_sub(ctx, b, a))) });
            const auto & c = comparisons.back();
            results.insert(results.end(), { c.dot, c.a, c.b, c.difference });
        }

        const int64_t n_outputs = (int64_t) std::min((size_t) res.t_logits->ne[1], this->n_outputs);
        if (!req.outputs_first && n_outputs != res.t_logits->ne[1]) {
            throw std::runtime_error("this model computes logits for all positions of a batch");
        }
        ggml_tensor * targets_in = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, n_outputs);
        ggml_set_input(targets_in);
        ggml_set_name(targets_in, "targets");
        res.add_input(std::make_unique<targets_input>(*this, targets_in));

        nll.clear();
        logits.clear();
        hidden = nullptr;
        const auto outputs_of = [&](ggml_tensor * t) {
            return n_outputs < t->ne[1] ? ggml_view_2d(ctx, t, t->ne[0], n_outputs, t->nb[1], 0) : t;
        };
        if (req.output == output::hidden) {
            hidden = outputs_of(res.t_embd);
            results.push_back(hidden);
        } else if (req.output != output::none) {
            const int64_t rows = std::max<int64_t>(32, logits_bytes/ggml_row_size(res.t_logits->type, res.t_logits->ne[0]));
            const auto head = rows < n_outputs ? find_head(graph, res.t_embd, res.t_logits) : std::vector<ggml_tensor *>();
            std::vector<ggml_tensor *> parts;
            if (head.empty()) {
                parts.push_back(outputs_of(res.t_logits));
                nll.push_back(build_nll(ctx, parts.back(), targets_in));
            } else {
                for (int64_t first = 0; first < n_outputs; first += rows) {
                    const int64_t count = std::min(rows, n_outputs - first);
                    parts.push_back(part_of_head(ctx, head, res.t_embd, first, count));
                    nll.push_back(build_nll(ctx, parts.back(), ggml_view_1d(ctx, targets_in, count, first*sizeof(int32_t))));
                }
            }
            results.insert(results.end(), nll.begin(), nll.end());
            if (req.output == output::logits) {
                logits = parts;
                results.insert(results.end(), logits.begin(), logits.end());
            }
        }
        for (ggml_tensor * t : results) {
            set_readable(t);
        }
        res.t_logits = nullptr; // nothing of them goes to the host

        // What is still needed, cache writes included. The inputs all stay: llama.cpp sets every one of them.
        tensor_set needed;
        for (ggml_tensor * t : results) {
            graph.visit_sources(t, -1, needed, [](ggml_tensor *) { return true; });
        }
        ggml_graph_clear(gf);
        for (ggml_tensor * input : graph.inputs) {
            ggml_build_forward_expand(gf, input);
        }
        ggml_build_forward_expand(gf, targets_in);
        n_cache_writes = 0;
        for (ggml_tensor * node : graph.nodes) {
            if (needed.count(node)) {
                ggml_build_forward_expand(gf, node);
                n_cache_writes += node->op == GGML_OP_SET_ROWS && memory_of(node)->op == GGML_OP_NONE;
            }
        }
        for (ggml_tensor * t : results) {
            ggml_build_forward_expand(gf, t);
        }
        n_nodes = ggml_graph_n_nodes(gf);
    } catch (const std::exception & e) {
        error = e.what();
        throw;
    }
}

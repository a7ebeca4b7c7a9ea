#include "graph/describe.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <map>
#include <set>
#include <unordered_map>

namespace {

using tensor_names = std::unordered_map<const ggml_tensor *, std::string>;

// The name of a tensor that no operation of the graph computes: an input, a cache or a weight.
std::string name_of_leaf(const graph_view & graph, const ggml_tensor * t) {
    if (is_input(t)) {
        return t->name;
    }
    if (graph.is_cache(t)) {
        return "cache";
    }
    const char * rest;
    // ggml numbers the leaves that have no name of their own
    std::string name = layer_of(t, &rest) >= 0 ? rest : strncmp(t->name, "leaf_", 5) == 0 ? "leaf" : t->name;
    for (const int64_t n : t->ne) {
        name += ',';
        name += std::to_string(n);
    }
    return name;
}

// The name of a tensor that was computed before what is described: the inputs that it is computed from.
std::string name_of_outer(const graph_view & graph, const ggml_tensor * t) {
    tensor_set            seen;
    std::set<std::string> inputs;
    graph.visit_sources(const_cast<ggml_tensor *>(t), -1, seen, [&](ggml_tensor * source) {
        if (is_input(source)) {
            inputs.insert(source->name);
        }
        return true;
    });
    std::string name = "outer";
    for (const auto & input : inputs) {
        name += ',';
        name += input;
    }
    return name;
}

// An operation with its parameters. Which values a rope rotates together is left out: residual_block::rope tells it.
// Where a cache is written to depends on the tokens.
std::string operation_of(const ggml_tensor * t) {
    std::string text = ggml_op_desc(t);
    if (t->op == GGML_OP_SET_ROWS || t->op == GGML_OP_CPY) {
        return text;
    }
    for (size_t i = 0; i < std::size(t->op_params); i++) {
        const bool is_rope_mode = t->op == GGML_OP_ROPE && i == 2;
        text += ',';
        text += is_rope_mode ? "" : std::to_string(t->op_params[i]);
    }
    return text;
}

std::string fnv1a(const std::string & text) {
    uint64_t hash = 14695981039346656037ull;
    for (const unsigned char c : text) {
        hash = (hash ^ c) * 1099511628211ull;
    }
    char hex[17];
    snprintf(hex, sizeof(hex), "%016llx", (unsigned long long) hash);
    return hex;
}

// Lists operations in their order, with their parameters and what they read, and hashes the list. Views and selections
// are looked through, since what they say depends on the number of tokens.
// names: of tensors that were computed before
std::string signature_of(const graph_view & graph, const tensor_set & operations, tensor_names names) {
    const auto name_of = [&](const ggml_tensor * t) {
        const auto known = names.find(t);
        return known != names.end()  ? known->second :
               t->op == GGML_OP_NONE ? name_of_leaf(graph, t) :
                                       name_of_outer(graph, t);
    };
    std::string text;
    int         number = 0;
    for (const ggml_tensor * t : graph.nodes) {
        if (!operations.count(t)) {
            continue;
        }
        const bool is_selection = t->op == GGML_OP_GET_ROWS && is_input(t->src[1]);
        if (is_view(t) || t->op == GGML_OP_CONT || is_selection) {
            names[t] = name_of(t->src[0]);
            continue;
        }
        text += operation_of(t);
        for (const ggml_tensor * src : t->src) {
            if (src) {
                text += ' ';
                text += name_of(src);
            }
        }
        text += '\n';
        std::string name("n");
        name += std::to_string(number++);
        names[t] = std::move(name);
    }
    return fnv1a(text);
}

// Which other blocks each block reads from, beside its own boundary.
void find_cross_reads(const graph_view & graph, std::vector<found_block> & found) {
    std::unordered_map<const ggml_tensor *, std::vector<size_t>> owners;
    for (size_t i = 0; i < found.size(); i++) {
        for (const ggml_tensor * t : found[i].inner) {
            owners[t].push_back(i);
        }
        owners[found[i].boundary].push_back(i);
    }
    for (auto & f : found) {
        std::set<size_t> reads;
        tensor_set       seen = { f.boundary };
        graph.visit_sources(f.branch, -1, seen, [&](ggml_tensor * t) {
            const auto owner = owners.find(t);
            if (f.inner.count(t) || owner == owners.end()) {
                return true;
            }
            std::copy_if(owner->second.begin(), owner->second.end(), std::inserter(reads, reads.end()),
                         [&](size_t other) { return found[other].boundary != f.boundary; });
            return false;
        });
        f.block.reads.assign(reads.begin(), reads.end());
    }
}

// The mode of the block's last rope; they are all of one mode.
int rope_of(const graph_view & graph, const found_block & found) {
    int rope = -1;
    for (const ggml_tensor * t : graph.nodes) {
        if (t->op == GGML_OP_ROPE && found.inner.count(t)) {
            rope = t->op_params[2];
        }
    }
    return rope;
}

// What the block writes to a cache of keys and values for each token. A state, which doesn't grow, is copied instead.
size_t cache_bytes_of(const graph_view & graph, const found_block & found) {
    size_t bytes = 0;
    for (const ggml_tensor * t : graph.nodes) {
        if (t->op == GGML_OP_SET_ROWS && found.inner.count(t) && graph.is_cache(memory_of(t))) {
            bytes += ggml_row_size(t->type, ggml_nelements(t->src[0]) / found.boundary->ne[1]);
        }
    }
    return bytes;
}

} // namespace

void describe_blocks(const graph_view & graph, std::vector<found_block> & found) {
    std::map<std::string, int> readers;
    for (const auto & f : found) {
        for (const auto & name : f.block.weights) {
            readers[name]++;
        }
    }
    find_cross_reads(graph, found);
    for (auto & f : found) {
        f.block.signature = signature_of(graph, f.inner, { { f.boundary, "stream" } });
        f.block.rope      = rope_of(graph, f);

        f.block.cache_bytes = cache_bytes_of(graph, f);
        std::erase_if(f.block.weights, [&](const std::string & name) { return readers[name] > 1; });
    }
}

std::string outer_signature_of(const graph_view & graph, const std::vector<found_block> & found, ggml_tensor * logits) {
    tensor_set   inner, outer, seen;
    tensor_names names;
    for (const auto & f : found) {
        inner.insert(f.inner.begin(), f.inner.end());
        names[f.add]                   = "stream";
        names[f.both ? f.both : f.add] = "stream";
    }
    const auto collect = [&](ggml_tensor * t) {
        const bool is_outer = !inner.count(t) && !names.count(t);
        if (is_outer) {
            outer.insert(t);
        }
        return is_outer;
    };
    graph.visit_sources(logits, -1, seen, collect);
    if (!found.empty()) {
        graph.visit_sources(found.front().stream, -1, seen, collect); // what comes before the first block
    }
    return signature_of(graph, outer, std::move(names));
}

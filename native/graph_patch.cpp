#include "graph_patch.h"

#include "ggml-backend.h"
#include "ggml.h"
#include "llama-graph.h"

#include <algorithm>
#include <cstdio>
#include <functional>
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

// The point of the residual stream that an operand shows, below the selection of output rows and changes of shape.
const ggml_tensor * strip_selection(const ggml_tensor * t) {
    while ((t->op == GGML_OP_GET_ROWS || t->op == GGML_OP_VIEW || t->op == GGML_OP_RESHAPE || t->op == GGML_OP_CONT) &&
           is_computed(t->src[0])) {
        t = t->src[0];
    }
    return t;
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

    explicit built_graph(ggml_cgraph * gf) {
        tensor_set seen;
        for (int i = 0; i < ggml_graph_n_nodes(gf); i++) {
            ggml_tensor * node = ggml_graph_node(gf, i);
            position[node] = i;
            nodes.push_back(node);
            if (node->op == GGML_OP_SET_ROWS && memory_of(node)->op == GGML_OP_NONE) {
                cache_writes[memory_of(node)].push_back(node);
            }
            for (ggml_tensor * src : node->src) {
                if (src && src->op == GGML_OP_NONE && (src->flags & GGML_TENSOR_FLAG_INPUT) && seen.insert(src).second) {
                    inputs.push_back(src);
                }
            }
        }
    }

    int position_of(const ggml_tensor * t) const {
        const auto it = position.find(t);
        return it == position.end() ? -1 : it->second;
    }

    // Visits all that t is computed from, t included, down to (and without) nodes at or before the position `after`.
    // Leaves are visited too. With caches, reading a cache means depending on what is written to it in this graph.
    void visit_sources(ggml_tensor * t, int after, bool caches, tensor_set & seen, const std::function<void(ggml_tensor *)> & visit) const {
        std::vector<ggml_tensor *> stack = { t };
        while (!stack.empty()) {
            ggml_tensor * cur = stack.back();
            stack.pop_back();
            if (!cur || (cur->op != GGML_OP_NONE && position_of(cur) >= 0 && position_of(cur) <= after) || !seen.insert(cur).second) {
                continue;
            }
            visit(cur);
            for (ggml_tensor * src : cur->src) {
                stack.push_back(src);
            }
            stack.push_back(cur->view_src);
            if (caches) {
                const auto writes = cache_writes.find(memory_of(cur));
                if (writes != cache_writes.end()) {
                    stack.insert(stack.end(), writes->second.begin(), writes->second.end());
                }
            }
        }
    }

    bool depends(ggml_tensor * t, const ggml_tensor * on) const {
        bool found = false;
        tensor_set seen;
        visit_sources(t, position_of(on) - 1, false, seen, [&](ggml_tensor * cur) { found = found || cur == on; });
        return found;
    }
};

// A block and where it joins the residual stream: add = stream + branch
struct found_block {
    residual_block block;
    ggml_tensor  * add;
    ggml_tensor  * stream;
};

// The point of the residual stream before a block, for all tokens: the last layer's selection of output rows comes later.
ggml_tensor * boundary_of(const found_block & block) {
    return const_cast<ggml_tensor *>(strip_selection(block.stream));
}

[[noreturn]] void not_understood(const std::string & why, const std::vector<found_block> & found) {
    throw std::runtime_error("the residual stream of this model can't be followed: " + why +
        (found.empty() ? "" : " (below layer " + std::to_string(found.back().block.layer) + ")"));
}

residual_block describe_branch(const built_graph & graph, ggml_tensor * branch, ggml_tensor * stream, const std::vector<found_block> & found) {
    residual_block block = { false, -1, {} };
    std::set<std::string> weights;
    tensor_set seen;
    graph.visit_sources(branch, graph.position_of(strip_selection(stream)), true, seen, [&](ggml_tensor * t) {
        block.mixes_tokens = block.mixes_tokens || mixes_tokens(t);
        int layer, length;
        if (t->op == GGML_OP_NONE && !(t->flags & GGML_TENSOR_FLAG_INPUT) && sscanf(t->name, "blk.%d.%n", &layer, &length) == 1) {
            if (block.layer >= 0 && block.layer != layer) {
                not_understood("a branch reads the weights of layers " + std::to_string(block.layer) + " and " + std::to_string(layer), found);
            }
            block.layer = layer;
            weights.insert(t->name);
        }
    });
    block.weights.assign(weights.begin(), weights.end());
    return block;
}

// Walks the residual stream from the end to the embedding and returns the blocks in the stream's order. No names of
// layers' tensors are needed but blk.N of the weights: see "Finding the blocks" in docs/how-it-works.md.
std::vector<found_block> find_blocks(const built_graph & graph, ggml_tensor * end) {
    std::vector<found_block> found;
    ggml_tensor * cur = end;
    while (cur && is_computed(cur)) {
        ggml_tensor * a = cur->src[0];
        ggml_tensor * b = cur->src[1];
        const bool computed_a = a && is_computed(a);
        const bool computed_b = b && is_computed(b);

        if (cur->op == GGML_OP_ADD && computed_a && computed_b) {
            const bool a_is_stream = graph.depends(b, strip_selection(a));
            const bool b_is_stream = graph.depends(a, strip_selection(b));
            if (a_is_stream == b_is_stream) {
                break; // a sum of embeddings, or a form that is not known here
            }
            ggml_tensor * stream = a_is_stream ? a : b;
            ggml_tensor * branch = a_is_stream ? b : a;
            found.push_back({ describe_branch(graph, branch, stream, found), cur, stream });
            if (found.back().block.layer < 0) {
                not_understood("a branch of it reads no layer's weights, at '" + std::string(cur->name) + "'", found);
            }
            cur = stream;
            continue;
        }
        switch (cur->op) {
            case GGML_OP_ADD:
            case GGML_OP_MUL: // a bias or a norm's weight
                if (computed_a && computed_b) {
                    not_understood("a product of two computed tensors, '" + std::string(cur->name) + "'", found);
                }
                cur = computed_a ? a : b;
                break;
            case GGML_OP_NORM:
            case GGML_OP_RMS_NORM:
            case GGML_OP_SCALE:
            case GGML_OP_GET_ROWS:
            case GGML_OP_VIEW:
            case GGML_OP_RESHAPE:
            case GGML_OP_CONT:
                cur = a;
                break;
            default:
                not_understood(std::string("operation ") + ggml_op_desc(cur) + ", '" + cur->name + "'", found);
        }
    }
    // what is left must be the embedding: no layer may stand before boundary 0
    if (cur) {
        tensor_set seen;
        graph.visit_sources(cur, -1, true, seen, [&](ggml_tensor * t) {
            int layer, length;
            if (t->op == GGML_OP_NONE && sscanf(t->name, "blk.%d.%n", &layer, &length) == 1) {
                not_understood("the weights of layer " + std::to_string(layer) + " are read at '" + std::string(cur->name) +
                    "', which is no block of a sequential model", found);
            }
        });
    }
    std::reverse(found.begin(), found.end());

    std::set<std::pair<int, bool>> seen;
    for (const auto & f : found) {
        if (!seen.insert({ f.block.layer, f.block.mixes_tokens }).second) {
            not_understood("layer " + std::to_string(f.block.layer) + " has two " + (f.block.mixes_tokens ? "attention" : "FFN") + " blocks", {});
        }
    }
    return found;
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

// The operations from the final hidden state to the logits, if each works on every position by itself and can be
// repeated on a part of them; empty otherwise.
std::vector<ggml_tensor *> find_head(const built_graph & graph, const ggml_tensor * embd, ggml_tensor * logits) {
    tensor_set on_path;
    graph.visit_sources(logits, graph.position_of(embd), false, on_path, [](ggml_tensor *) {});
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

        const std::vector<found_block> found = find_blocks(graph, res.t_embd);
        if (blocks.empty()) {
            for (const auto & f : found) {
                blocks.push_back(f.block);
            }
        }
        // leave out the skipped blocks: who reads the sum shall read the stream before the block
        substitution change;
        for (size_t i = 0; i < req.skip.size(); i++) {
            if (req.skip[i]) {
                change.add(found[i].add, found[i].stream);
            }
        }
        if (req.start > 0) {
            const ggml_tensor * before = boundary_of(found[req.start]);
            if (!ggml_are_same_shape(before, req.boundary)) {
                throw std::runtime_error("a kept residual stream doesn't fit this graph");
            }
            change.add(before, req.boundary);
        }
        captured.clear();
        for (const size_t i : req.capture) {
            captured[i] = change.resolve(boundary_of(found[i]));
            ggml_set_output(captured[i]);
        }
        change.apply(graph);

        const int64_t n_outputs = res.t_logits->ne[1];
        ggml_tensor * targets_in = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, n_outputs);
        ggml_set_input(targets_in);
        ggml_set_name(targets_in, "targets");
        res.add_input(std::make_unique<targets_input>(*this, targets_in));

        nll.clear();
        const int64_t rows = std::max<int64_t>(32, logits_bytes/ggml_row_size(res.t_logits->type, res.t_logits->ne[0]));
        const auto head = rows < n_outputs ? find_head(graph, res.t_embd, res.t_logits) : std::vector<ggml_tensor *>();
        if (head.empty()) {
            nll.push_back(build_nll(ctx, res.t_logits, targets_in));
        } else {
            for (int64_t first = 0; first < n_outputs; first += rows) {
                const int64_t count = std::min(rows, n_outputs - first);
                nll.push_back(build_nll(ctx,
                    part_of_head(ctx, head, res.t_embd, first, count),
                    ggml_view_1d(ctx, targets_in, count, first*sizeof(int32_t))));
            }
        }
        for (ggml_tensor * t : nll) {
            ggml_set_output(t);
        }
        res.t_logits = nullptr; // nothing of them goes to the host

        // What is still needed, cache writes included. The inputs all stay: llama.cpp sets every one of them.
        tensor_set needed;
        for (ggml_tensor * t : nll) {
            graph.visit_sources(t, -1, true, needed, [](ggml_tensor *) {});
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
                n_cache_writes += node->op == GGML_OP_SET_ROWS;
            }
        }
        for (ggml_tensor * t : nll) {
            ggml_build_forward_expand(gf, t);
        }
        n_nodes = ggml_graph_n_nodes(gf);
    } catch (const std::exception & e) {
        error = e.what();
        throw;
    }
}

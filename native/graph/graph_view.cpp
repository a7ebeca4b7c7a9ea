#include "graph/graph_view.h"

#include <algorithm>
#include <cstdio>
#include <iterator>

const ggml_tensor * memory_of(const ggml_tensor * t) {
    return t->view_src ? t->view_src : t;
}

bool is_computed(const ggml_tensor * t) {
    return t->op != GGML_OP_NONE && memory_of(t)->op != GGML_OP_NONE;
}

bool is_input(const ggml_tensor * t) {
    return t->op == GGML_OP_NONE && (t->flags & GGML_TENSOR_FLAG_INPUT);
}

bool is_view(const ggml_tensor * t) {
    return t->op == GGML_OP_VIEW || t->op == GGML_OP_RESHAPE || t->op == GGML_OP_PERMUTE || t->op == GGML_OP_TRANSPOSE;
}

int layer_of(const ggml_tensor * t, const char ** rest) {
    int layer, length = 0;
    if (t->op != GGML_OP_NONE || is_input(t) || sscanf(t->name, "blk.%d.%n", &layer, &length) != 1 || length == 0) {
        return -1;
    }
    if (rest) {
        *rest = t->name + length;
    }
    return layer;
}

bool is_sum(const ggml_tensor * t) {
    return t->op == GGML_OP_ADD && is_computed(t->src[0]) && is_computed(t->src[1]);
}

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
            return t->src[1] != nullptr; // attention has a mask, the soft max of an MoE router has none
        default:
            return false;
    }
}

ggml_tensor * strip_selection(ggml_tensor * t) {
    while ((t->op == GGML_OP_GET_ROWS || t->op == GGML_OP_VIEW || t->op == GGML_OP_RESHAPE || t->op == GGML_OP_CONT) &&
           is_computed(t->src[0])) {
        t = t->src[0];
    }
    return t;
}

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

// The operand of an operation that has one computed operand; null if it has more or none.
static ggml_tensor * only_computed(const ggml_tensor * t) {
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

ggml_tensor * below_pointwise(const ggml_tensor * t) {
    return t->op == GGML_OP_ADD || t->op == GGML_OP_MUL ? only_computed(t) : t->src[0];
}

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

graph_view::graph_view(ggml_cgraph * gf) {
    tensor_set seen;
    for (int i = 0; i < ggml_graph_n_nodes(gf); i++) {
        ggml_tensor * node = ggml_graph_node(gf, i);
        position[node]     = i;
        nodes.push_back(node);
        if (memory_of(node)->op == GGML_OP_NONE && !is_view(node)) {
            cache_writes[memory_of(node)].push_back(node); // a copy, rows that are set, or a state that is cleared
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

int graph_view::position_of(const ggml_tensor * t) const {
    const auto it = position.find(t);
    return it == position.end() ? -1 : it->second;
}

bool graph_view::is_cache(const ggml_tensor * t) const {
    return cache_writes.count(t) > 0;
}

void graph_view::visit_sources(ggml_tensor *                              t,
                               int                                        after,
                               tensor_set &                               seen,
                               const std::function<bool(ggml_tensor *)> & visit) const {
    std::vector<ggml_tensor *> stack = { t };
    while (!stack.empty()) {
        ggml_tensor * cur = stack.back();
        stack.pop_back();
        const bool is_too_early = cur && cur->op != GGML_OP_NONE && position_of(cur) >= 0 && position_of(cur) <= after;
        if (!cur || is_too_early || !seen.insert(cur).second || !visit(cur)) {
            continue;
        }
        stack.push_back(cur->view_src);
        for (ggml_tensor * src : cur->src) {
            stack.push_back(src);
            const auto writes = src && !is_view(cur) ? cache_writes.find(memory_of(src)) : cache_writes.end();
            if (writes != cache_writes.end()) {
                const auto is_before = [&](ggml_tensor * write) {
                    return position_of(write) < position_of(cur) || position_of(cur) < 0;
                };
                std::copy_if(writes->second.begin(), writes->second.end(), std::back_inserter(stack), is_before);
            }
        }
    }
}

void graph_view::visit_beyond(ggml_tensor *                              boundary,
                              ggml_tensor *                              t,
                              const std::function<void(ggml_tensor *)> & visit) const {
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

bool graph_view::depends(ggml_tensor * t, const ggml_tensor * on) const {
    bool       found = false;
    tensor_set seen;
    visit_sources(t, position_of(on) - 1, seen, [&](ggml_tensor * cur) {
        found = found || cur == on;
        return !found;
    });
    return found;
}

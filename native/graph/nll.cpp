#include "graph/nll.h"

#include <algorithm>
#include <iterator>

static bool works_by_position(const ggml_tensor * t, int64_t n_positions) {
    switch (t->op) {
        case GGML_OP_MUL_MAT:
        case GGML_OP_SCALE:
        case GGML_OP_UNARY:
        case GGML_OP_ADD:
        case GGML_OP_MUL:
            return !t->view_src && t->ne[1] == n_positions && ggml_nrows(t) == n_positions;
        default:
            return false;
    }
}

std::vector<ggml_tensor *> find_head(const graph_view & graph, const ggml_tensor * hidden, ggml_tensor * logits) {
    tensor_set on_path;
    graph.visit_sources(logits, graph.position_of(hidden), on_path, [](ggml_tensor *) { return true; });
    std::vector<ggml_tensor *> head;
    for (ggml_tensor * node : graph.nodes) {
        if (!on_path.count(node)) {
            continue;
        }
        if (!works_by_position(node, logits->ne[1])) {
            return {};
        }
        head.push_back(node);
    }
    return head;
}

ggml_tensor * build_part_of_head(ggml_context *                     ctx,
                                 const std::vector<ggml_tensor *> & head,
                                 ggml_tensor *                      hidden,
                                 int64_t                            first,
                                 int64_t                            count) {
    std::unordered_map<const ggml_tensor *, ggml_tensor *> copy;

    copy[hidden]       = ggml_view_2d(ctx, hidden, hidden->ne[0], count, hidden->nb[1], first * hidden->nb[1]);
    ggml_tensor * last = nullptr;
    for (const ggml_tensor * node : head) {
        last     = ggml_new_tensor_2d(ctx, node->type, node->ne[0], count);
        last->op = node->op;
        std::copy(std::begin(node->op_params), std::end(node->op_params), std::begin(last->op_params));
        for (int i = 0; i < GGML_MAX_SRC; i++) {
            const auto it = copy.find(node->src[i]);
            last->src[i]  = it == copy.end() ? node->src[i] : it->second;
        }
        ggml_format_name(last, "%s (part)", node->name);
        copy[node] = last;
    }
    return last;
}

// Computed as (max - logit[target]) - log p(max), which is exact also where the target's own probability is too small
// for a float.
ggml_tensor * build_nll(ggml_context * ctx, ggml_tensor * logits, ggml_tensor * targets) {
    const int64_t n_vocab   = logits->ne[0];
    const int64_t n         = logits->ne[1];
    ggml_tensor * at_target = ggml_reshape_2d(ctx, targets, 1, n);
    ggml_tensor * at_max    = ggml_reshape_2d(ctx, ggml_argmax(ctx, logits), 1, n);
    ggml_tensor * columns   = ggml_reshape_3d(ctx, logits, 1, n_vocab, n);
    ggml_tensor * probs     = ggml_reshape_3d(ctx, ggml_soft_max(ctx, logits), 1, n_vocab, n);
    ggml_tensor * max_logit = ggml_get_rows(ctx, columns, at_max);
    ggml_tensor * logit     = ggml_get_rows(ctx, columns, at_target);
    ggml_tensor * log_p_max = ggml_log(ctx, ggml_get_rows(ctx, probs, at_max));
    return ggml_reshape_1d(ctx, ggml_sub(ctx, ggml_sub(ctx, max_logit, logit), log_p_max), n);
}

#include "graph/find_blocks.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <set>
#include <stdexcept>
#include <utility>

namespace {

[[noreturn]] void not_understood(const std::string & why, const std::vector<found_block> & above) {
    const std::string where = above.empty() ? "" : " (below layer " + std::to_string(above.back().block.layer) + ")";
    throw std::runtime_error("the residual stream of this model can't be followed: " + why + where);
}

// The boundary that shows in `stream` if it is the residual stream of a sum with `branch`: what the branch is computed
// from. Null if it isn't.
ggml_tensor * boundary_between(const graph_view & graph, ggml_tensor * stream, ggml_tensor * branch) {
    for (ggml_tensor * boundary : { strip_selection(stream), strip_pointwise(stream) }) {
        if (graph.depends(branch, boundary)) {
            return boundary;
        }
    }
    return nullptr;
}

bool mixes_tokens(const graph_view & graph, ggml_tensor * branch, ggml_tensor * boundary) {
    bool mixes = false;
    graph.visit_beyond(boundary, branch, [&](const ggml_tensor * t) { mixes = mixes || mixes_tokens(t); });
    return mixes;
}

// Splits the sum `cur` of the stream and one branch. The branch may be a sum itself, r + (attention + FFN): where one
// part mixes tokens, the other doesn't, and neither reads the other, these are two parallel blocks.
std::vector<found_block> split_branch(const graph_view & graph,
                                      ggml_tensor *      cur,
                                      ggml_tensor *      stream,
                                      ggml_tensor *      branch,
                                      ggml_tensor *      boundary) {
    ggml_tensor * sum = branch;
    while (sum->op == GGML_OP_SCALE) {
        sum = sum->src[0];
    }
    if (is_sum(sum)) {
        ggml_tensor * attention = sum->src[0];
        ggml_tensor * ffn       = sum->src[1];
        const bool    is_first  = mixes_tokens(graph, attention, boundary);
        if (is_first != mixes_tokens(graph, ffn, boundary) && graph.depends(attention, boundary) &&
            graph.depends(ffn, boundary) && !graph.depends(attention, strip_pointwise(ffn)) &&
            !graph.depends(ffn, strip_pointwise(attention))) {
            if (!is_first) {
                std::swap(attention, ffn);
            }
            const found_block first = {
                .branch = attention, .boundary = boundary, .stream = stream, .add = sum, .instead = ffn, .both = cur
            };
            const found_block second = {
                .branch = ffn, .boundary = boundary, .stream = stream, .add = sum, .instead = attention, .both = cur
            };
            return { first, second };
        }
    }
    return { { .branch = branch, .boundary = boundary, .stream = stream, .add = cur, .instead = stream } };
}

// Splits a sum `cur` of the form (r + one) + other, where neither operand depends on the other: two parallel blocks.
// Empty if it isn't of that form.
std::vector<found_block> split_parallel(const graph_view & graph, ggml_tensor * cur) {
    for (const int i : { 0, 1 }) {
        ggml_tensor * rest  = cur->src[i];
        ggml_tensor * other = cur->src[1 - i];
        ggml_tensor * sum   = strip_selection(rest);
        if (!is_sum(sum)) {
            continue;
        }
        for (const int j : { 0, 1 }) {
            ggml_tensor * stream   = sum->src[j];
            ggml_tensor * one      = sum->src[1 - j];
            ggml_tensor * boundary = boundary_between(graph, stream, one);
            if (boundary && boundary == boundary_between(graph, stream, other)) {
                const found_block inner = {
                    .branch = one, .boundary = boundary, .stream = stream, .add = sum, .instead = stream
                };
                const found_block outer = {
                    .branch = other, .boundary = boundary, .stream = stream, .add = cur, .instead = rest
                };
                return mixes_tokens(graph, one, boundary) ? std::vector<found_block>{ inner, outer } :
                                                            std::vector<found_block>{ outer, inner };
            }
        }
    }
    return {};
}

// Splits the sum `cur` into the residual stream and one block, or two parallel ones. Empty if it isn't such a sum.
std::vector<found_block> split_sum(const graph_view & graph, ggml_tensor * cur) {
    ggml_tensor * a = cur->src[0];
    ggml_tensor * b = cur->src[1];
    // the operand that the other one depends on is the stream
    ggml_tensor * a_boundary = boundary_between(graph, a, b);
    ggml_tensor * b_boundary = boundary_between(graph, b, a);
    if (a_boundary && b_boundary) {
        return {};
    }
    if (a_boundary) {
        return split_branch(graph, cur, a, b, a_boundary);
    }
    if (b_boundary) {
        return split_branch(graph, cur, b, a, b_boundary);
    }
    return split_parallel(graph, cur);
}

// Whether a branch that mixes no tokens is the product of one weight and the normed stream, W·norm(r). The norm may have
// weights and a bias of its own.
bool is_linear(const found_block & found) {
    int products = 0;
    int norms    = 0;
    for (const ggml_tensor * t : found.inner) {
        const bool is_product = t->op == GGML_OP_MUL_MAT && layer_of(t->src[0]) >= 0;
        if (!is_product && !is_view(t) && !(is_pointwise(t) && below_pointwise(t))) {
            return false;
        }
        products += is_product;
        norms += t->op == GGML_OP_NORM || t->op == GGML_OP_RMS_NORM;
    }
    return products == 1 && norms == 1;
}

// Whether this is a product of a layer's matrix with what was computed.
bool is_projection(const ggml_tensor * t) {
    return t->op == GGML_OP_MUL_MAT && !is_computed(t->src[0]) && is_computed(t->src[1]) && layer_of(t->src[0]) >= 0 &&
           ggml_n_dims(t->src[0]) == 2;
}

// Whether t is the stream at the boundary as a norm gives it.
bool is_normed(const ggml_tensor * t, const ggml_tensor * boundary) {
    bool has_norm = false;
    while (t && t != boundary && is_pointwise(t)) {
        has_norm = has_norm || t->op == GGML_OP_NORM || t->op == GGML_OP_RMS_NORM;
        t        = below_pointwise(t);
    }
    return has_norm && t == boundary;
}

// Finds what the input projections multiply, if nobody else reads it.
void find_entry(const graph_view & graph, found_block & found) {
    ggml_tensor * entry = nullptr;
    for (const ggml_tensor * t : found.inner) {
        if (is_projection(t) && t->src[1] != entry && is_normed(t->src[1], found.boundary)) {
            if (entry) {
                return; // two norms of the stream
            }
            entry = t->src[1];
        }
    }
    std::vector<std::string> inputs;
    for (const ggml_tensor * t : graph.nodes) {
        const bool reads = entry && std::find(std::begin(t->src), std::end(t->src), entry) != std::end(t->src);
        if (reads && !(is_projection(t) && found.inner.count(t))) {
            return;
        }
        if (reads) {
            inputs.emplace_back(t->src[0]->name);
        }
    }
    if (entry && entry->ne[0] == found.boundary->ne[0]) {
        found.entry        = entry;
        found.block.inputs = std::move(inputs);
    }
}

// Fills in what a block's branch computes, its kind, its layer, and the weights that it reads.
void describe_branch(const graph_view & graph, found_block & found, const std::vector<found_block> & above) {
    residual_block &      block = found.block;
    std::set<std::string> weights;
    bool                  mixes = false;
    graph.visit_beyond(found.boundary, found.branch, [&](ggml_tensor * t) {
        mixes             = mixes || mixes_tokens(t);
        found.reads_cache = found.reads_cache || graph.is_cache(t);
        const int layer   = layer_of(t);
        if (layer >= 0) {
            if (block.layer >= 0 && block.layer != layer) {
                not_understood("a branch reads the weights of layers " + std::to_string(block.layer) + " and " +
                                   std::to_string(layer),
                               above);
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
    find_entry(graph, found);
    const branch_end end = end_of_branch(found);
    if (end.product) {
        block.output = end.product->src[0]->name;
    }
    if (end.product && end.norm) {
        block.post_norm = end.norm->src[1]->name;
        std::memcpy(&block.post_norm_epsilon, end.norm->src[0]->op_params, sizeof(float));
    }
    block.kind = mixes ? block_kind::attn : is_linear(found) ? block_kind::linear : block_kind::ffn;
}

// One step of the walk: what is below an operation that the stream itself passes, such as a norm.
ggml_tensor * below_on_stream(ggml_tensor * cur, const std::vector<found_block> & above) {
    if (!is_pointwise(cur)) {
        not_understood(std::string("operation ") + ggml_op_desc(cur) + ", '" + cur->name + "'", above);
    }
    if (cur->op == GGML_OP_MUL && is_computed(cur->src[0]) && is_computed(cur->src[1])) {
        not_understood("a product of two computed tensors, '" + std::string(cur->name) + "'", above);
    }
    return below_pointwise(cur);
}

// What is left at the end of the walk must be the embedding: no layer may stand before boundary 0.
void check_embedding(const graph_view & graph, ggml_tensor * embedding, const std::vector<found_block> & above) {
    tensor_set seen;
    graph.visit_sources(embedding, -1, seen, [&](ggml_tensor * t) {
        if (layer_of(t) >= 0) {
            not_understood("the weights of layer " + std::to_string(layer_of(t)) + " are read at '" +
                               std::string(embedding->name) + "', which is no sum of the stream and a block",
                           above);
        }
        return true;
    });
}

// Linear attention can consist of products alone: it shows by its state. Where a layer has another attention block, a
// block with a state is its FFN, as RWKV's channel mixing is.
void recognize_linear_attention(std::vector<found_block> & found) {
    std::set<int> with_attention;
    for (const auto & f : found) {
        if (f.block.kind == block_kind::attn) {
            with_attention.insert(f.block.layer);
        }
    }
    for (auto & f : found) {
        if (f.reads_cache && !with_attention.count(f.block.layer)) {
            f.block.kind = block_kind::attn;
        }
    }
}

void check_one_of_a_kind(const std::vector<found_block> & found) {
    std::set<std::pair<int, block_kind>> seen;
    for (const auto & f : found) {
        if (!seen.insert({ f.block.layer, f.block.kind }).second) {
            not_understood(
                "layer " + std::to_string(f.block.layer) + " has two blocks of kind " + name_of_kind(f.block.kind), {});
        }
    }
}

// A layer's weights that the stream itself passes belong to no block, and what the layer's blocks add is not added to
// the stream as it is.
void take_weights_of_stream(std::vector<found_block> & found, const std::vector<const ggml_tensor *> & on_stream) {
    for (auto & f : found) {
        for (const ggml_tensor * weight : on_stream) {
            f.block.direct = f.block.direct && layer_of(weight) != f.block.layer;
            std::erase(f.block.weights, weight->name);
        }
    }
}

} // namespace

const char * name_of_kind(block_kind kind) {
    switch (kind) {
        case block_kind::attn:
            return "attn";
        case block_kind::linear:
            return "linear";
        default:
            return "ffn";
    }
}

std::vector<found_block> find_blocks(const graph_view & graph, ggml_tensor * end) {
    std::vector<found_block>         found;     // from the last to the first
    std::vector<const ggml_tensor *> on_stream; // weights of layers that the stream itself passes
    ggml_tensor *                    cur = end;
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
        std::copy_if(std::begin(cur->src), std::end(cur->src), std::back_inserter(on_stream),
                     [](const ggml_tensor * src) { return src && layer_of(src) >= 0; });
        cur = below_on_stream(cur, found);
    }
    if (cur) {
        check_embedding(graph, cur, found);
    }
    std::reverse(found.begin(), found.end());
    recognize_linear_attention(found);
    check_one_of_a_kind(found);
    take_weights_of_stream(found, on_stream);
    return found;
}

branch_end end_of_branch(const found_block & found) {
    branch_end    end;
    ggml_tensor * t = strip_selection(found.branch);
    if (t->op == GGML_OP_MUL && t->src[0]->op == GGML_OP_RMS_NORM && !is_computed(t->src[1]) &&
        layer_of(t->src[1]) >= 0) {
        end.norm = t;
        t        = strip_selection(t->src[0]->src[0]);
    }
    end.projected = t;
    if (t->op == GGML_OP_ADD && !is_computed(t->src[1])) {
        t = strip_selection(t->src[0]);
    }
    end.product = is_projection(t) ? t : nullptr;
    return end;
}

graph_layout layout_of(const graph_view & graph, const std::vector<found_block> & found) {
    graph_layout layout = { .n_nodes = graph.nodes.size(), .blocks = {} };
    for (const auto & f : found) {
        layout.blocks.push_back({
            .branch   = graph.position_of(f.branch),
            .boundary = graph.position_of(f.boundary),
            .stream   = graph.position_of(f.stream),
            .add      = graph.position_of(f.add),
            .instead  = graph.position_of(f.instead),
            .both     = f.both ? graph.position_of(f.both) : -1,
            .entry    = f.entry ? graph.position_of(f.entry) : -1,
            .parallel = f.block.parallel,
        });
    }
    return layout;
}

std::vector<found_block> find_again(const graph_view & graph, const graph_layout & layout) {
    std::vector<found_block> found;
    if (graph.nodes.size() != layout.n_nodes) {
        return found;
    }
    for (const auto & at : layout.blocks) {
        found_block block = {
            .branch   = graph.nodes[at.branch],
            .boundary = graph.nodes[at.boundary],
            .stream   = graph.nodes[at.stream],
            .add      = graph.nodes[at.add],
            .instead  = graph.nodes[at.instead],
            .entry    = at.entry < 0 ? nullptr : graph.nodes[at.entry],
            .both     = at.both < 0 ? nullptr : graph.nodes[at.both],
        };
        block.block.parallel = at.parallel;

        const ggml_tensor * sum      = block.add;
        const bool          is_there = is_sum(sum) && ((sum->src[0] == block.instead && sum->src[1] == block.branch) ||
                                                       (sum->src[1] == block.instead && sum->src[0] == block.branch));
        if (!is_there) {
            return {};
        }
        found.push_back(std::move(block));
    }
    return found;
}

std::vector<gap> gaps_of(const skip_set & skip) {
    std::vector<gap> gaps;
    for (size_t i = 0; i < skip.size(); i++) {
        if (skip[i] && i > 0 && skip[i - 1]) {
            gaps.back().second++;
        } else if (skip[i]) {
            gaps.emplace_back(i, i + 1);
        }
    }
    return gaps;
}

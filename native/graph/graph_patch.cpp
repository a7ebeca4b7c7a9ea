#include "graph/graph_patch.h"

#include "ggml-backend.h"
#include "graph/describe.h"
#include "graph/nll.h"
#include "llama-graph.h"

#include <algorithm>
#include <stdexcept>

namespace {

// Tensors, and what their readers shall read instead.
class substitution {
public:
    void add(const ggml_tensor * t, ggml_tensor * other) { instead[t] = other; }

    ggml_tensor * resolve(ggml_tensor * t) const {
        for (auto it = instead.find(t); it != instead.end(); it = instead.find(t)) {
            t = it->second;
        }
        return t;
    }

    void apply(const graph_view & graph) const {
        for (ggml_tensor * node : graph.nodes) {
            for (ggml_tensor *& src : node->src) {
                if (src) {
                    src = resolve(src);
                }
            }
            if (node->view_src && instead.count(node->view_src)) {
                ggml_tensor * other = resolve(node->view_src);
                node->view_src      = other->view_src ? other->view_src : other;
                node->view_offs += other->view_offs;
            }
        }
    }

private:
    std::unordered_map<const ggml_tensor *, ggml_tensor *> instead;
};

// The tokens to predict, set before each run of the graph.
class targets_input : public llm_graph_input_i {
public:
    targets_input(const graph_patch & patch, ggml_tensor * tensor) :
        patch(patch),
        version(patch.version()),
        tensor(tensor) {}

    void set_input(const llama_ubatch *) override {
        ggml_backend_tensor_set(tensor, patch.request().targets.data(), 0, ggml_nbytes(tensor));
    }

    // the other inputs compare the numbers of tokens
    bool can_reuse(const llm_graph_params &) override { return version == patch.version(); }

private:
    const graph_patch & patch;
    const uint64_t      version;
    ggml_tensor *       tensor;
};

// No input, but what must be there for as long as the graph is.
class products_holder : public llm_graph_input_i {
public:
    packed_products products;

    void set_input(const llama_ubatch *) override {}

    bool can_reuse(const llm_graph_params &) override { return true; }
};

// A graph while it is edited.
struct graph_edit {
    llm_graph_result &               res;
    ggml_context *                   ctx;
    const graph_view &               graph;
    const std::vector<found_block> & found;
    const graph_request &            request;
    graph_outputs &                  outputs;
    float                            rms_epsilon;
    substitution                     change;
    std::vector<ggml_tensor *>       results; // what the new graph must compute
};

// Keeps a tensor's memory from being used for anything else.
void set_readable(ggml_tensor * t) {
    ggml_set_output(t);
    if (t->view_src) {
        ggml_set_output(t->view_src); // the allocator looks at the memory's owner
    }
}

// Who reads the sum of the stream and a skipped block shall read the stream before the block.
void leave_out_blocks(graph_edit & edit) {
    const skip_set & skip = edit.request.skip;
    for (size_t i = 0; i < skip.size(); i++) {
        const found_block & f = edit.found[i];
        if (!skip[i]) {
            continue;
        }
        edit.change.add(f.add, f.instead);
        // both of two parallel blocks that are added to each other first: nothing is left to add
        if (f.block.parallel && f.both && skip[i - 1]) {
            edit.change.add(f.both, f.stream);
        }
    }
}

void start_at_boundary(graph_edit & edit) {
    const graph_request & request = edit.request;
    if (request.start == 0) {
        return;
    }
    const ggml_tensor * before = edit.found[request.start].boundary;
    if (!ggml_are_same_shape(before, request.boundary.get())) {
        throw std::runtime_error("a kept residual stream doesn't fit this graph");
    }
    edit.change.add(before, request.boundary.get());
}

// Who reads the stream behind a gap shall read what a linear block makes of it.
void put_in_linear_blocks(graph_edit & edit) {
    ggml_context * ctx = edit.ctx;
    for (const auto & [before, behind] : gaps_of(edit.request.skip)) {
        const auto linear = edit.request.linear.find(before);
        if (linear == edit.request.linear.end() || behind <= edit.request.start) {
            continue; // a kept boundary is behind the gap and its linear block
        }
        ggml_tensor * sum    = edit.found[behind - 1].add;
        ggml_tensor * stream = edit.change.resolve(sum);
        ggml_tensor * normed = ggml_rms_norm(ctx, stream, edit.rms_epsilon);
        edit.change.add(sum, ggml_add(ctx, stream, ggml_mul_mat(ctx, linear->second.get(), normed)));
    }
}

// Who reads the normed stream of a block shall read what the request makes of it.
void change_inputs(graph_edit & edit) {
    ggml_context * ctx = edit.ctx;
    for (const auto & [block, matrix] : edit.request.inputs) {
        ggml_tensor * entry   = edit.found[block].entry;
        ggml_tensor * product = ggml_mul_mat(ctx, matrix.get(), entry);
        ggml_mul_mat_set_prec(product, GGML_PREC_F32);
        edit.change.add(entry, ggml_add(ctx, entry, product));
    }
}

// Who reads a mask that is kept shall read that one.
void read_kept_masks(graph_edit & edit, kept_masks & masks) {
    size_t number = 0;
    for (ggml_tensor * input : edit.graph.inputs) {
        if (is_mask(input)) {
            if (ggml_tensor * kept = masks.find(edit.res, input, number, edit.request.sequence_length)) {
                edit.change.add(input, kept);
            }
            number++;
        }
    }
}

// A tensor of [n_embd, n_tokens], for the first n tokens alone.
ggml_tensor * first_positions(ggml_context * ctx, ggml_tensor * t, int64_t n) {
    return n < t->ne[1] ? ggml_view_2d(ctx, t, t->ne[0], n, t->nb[1], 0) : t;
}

// The residual stream behind the last block.
ggml_tensor * end_of(const graph_view & graph, const std::vector<found_block> & found) {
    const auto    sum_of = [](const found_block & f) { return f.both ? f.both : f.add; };
    ggml_tensor * end    = sum_of(found.back());
    if (found.back().block.parallel) { // either of two parallel blocks may be added last
        ggml_tensor * other = sum_of(found[found.size() - 2]);
        end                 = graph.position_of(other) > graph.position_of(end) ? other : end;
    }
    return end;
}

// The residual stream before a block, as the edited graph computes it; the number of blocks is the stream's end.
ggml_tensor * boundary_of(const graph_edit & edit, size_t i) {
    return edit.change.resolve(i < edit.found.size() ? edit.found[i].boundary : end_of(edit.graph, edit.found));
}

void capture_boundaries(graph_edit & edit) {
    for (const size_t i : edit.request.capture) {
        ggml_tensor * boundary   = boundary_of(edit, i);
        edit.outputs.captured[i] = boundary;
        edit.results.push_back(boundary);
    }
}

void capture_inner_values(graph_edit & edit) {
    for (const size_t i : edit.request.inner) {
        const branch_end end = end_of_branch(edit.found[i]);
        if (!end.product) {
            throw std::runtime_error("a block has no output projection");
        }
        // copies, since they may be views of memory that is used again
        edit.outputs.inner[i] = ggml_cont(edit.ctx, end.product->src[1]);
        edit.results.push_back(edit.outputs.inner[i]);
        if (end.norm) {
            edit.outputs.projected[i] = ggml_cont(edit.ctx, end.projected);
            edit.results.push_back(edit.outputs.projected[i]);
        }
    }
}

void capture_entries(graph_edit & edit) {
    for (const size_t i : edit.request.entry) {
        if (!edit.found[i].entry) {
            throw std::runtime_error("a block has no input projections");
        }
        edit.outputs.entry[i] = ggml_cont(edit.ctx, edit.found[i].entry);
        edit.results.push_back(edit.outputs.entry[i]);
    }
}

void compare_boundaries(graph_edit & edit) {
    ggml_context * ctx = edit.ctx;
    for (const auto & [first, second] : edit.request.compare) {
        ggml_tensor * a = boundary_of(edit, first);
        ggml_tensor * b = boundary_of(edit, second);
        // the last layer may have selected the output positions, which are the first
        const int64_t n = std::min(a->ne[1], b->ne[1]);

        a = first_positions(ctx, a, n);
        b = first_positions(ctx, b, n);

        const graph_outputs::comparison c = {
            .dot        = ggml_sum_rows(ctx, ggml_mul(ctx, a, b)),
            .a          = ggml_sum_rows(ctx, ggml_sqr(ctx, a)),
            .b          = ggml_sum_rows(ctx, ggml_sqr(ctx, b)),
            .difference = ggml_sum_rows(ctx, ggml_sqr(ctx, ggml_sub(ctx, b, a))),
        };
        edit.outputs.comparisons.push_back(c);
        edit.results.insert(edit.results.end(), { c.dot, c.a, c.b, c.difference });
    }
}

// The graph's input of the tokens to predict, one for each output position.
ggml_tensor * add_targets(graph_edit & edit, const graph_patch & patch) {
    const int64_t n_all     = edit.res.t_logits->ne[1];
    const size_t  n_targets = edit.request.targets.size();
    const int64_t n_outputs = n_targets == 0 ? n_all : std::min(n_all, (int64_t) n_targets);
    if (!edit.request.outputs_first && n_outputs != n_all) {
        throw std::runtime_error("this model computes logits for all positions of a batch");
    }
    ggml_tensor * targets = ggml_new_tensor_1d(edit.ctx, GGML_TYPE_I32, n_outputs);
    ggml_set_input(targets);
    ggml_set_name(targets, "targets");
    edit.res.add_input(std::make_unique<targets_input>(patch, targets));
    return targets;
}

// The logits of the output positions and their NLL: in parts, where they take more than logits_bytes.
void build_logits(graph_edit & edit, ggml_tensor * targets, size_t logits_bytes) {
    ggml_context * ctx       = edit.ctx;
    ggml_tensor *  all       = edit.res.t_logits;
    const int64_t  n_outputs = targets->ne[0];
    const int64_t  n_at_once = std::max<int64_t>(32, logits_bytes / ggml_row_size(all->type, all->ne[0]));

    std::vector<ggml_tensor *> head, logits;
    if (n_at_once < n_outputs) {
        head = find_head(edit.graph, edit.res.t_embd, all);
    }
    std::vector<ggml_tensor *> & nll = edit.outputs.nll;
    if (head.empty()) {
        logits = { first_positions(ctx, all, n_outputs) };
        nll    = { build_nll(ctx, logits[0], targets) };
    } else {
        for (int64_t first = 0; first < n_outputs; first += n_at_once) {
            const int64_t count = std::min(n_at_once, n_outputs - first);
            logits.push_back(build_part_of_head(ctx, head, edit.res.t_embd, first, count));
            ggml_tensor * part = ggml_view_1d(ctx, targets, count, first * sizeof(int32_t));
            nll.push_back(build_nll(ctx, logits.back(), part));
        }
    }
    edit.results.insert(edit.results.end(), nll.begin(), nll.end());
    if (edit.request.output == graph_request::output_kind::logits) {
        edit.results.insert(edit.results.end(), logits.begin(), logits.end());
        edit.outputs.logits = std::move(logits);
    }
}

void build_outputs(graph_edit & edit, ggml_tensor * targets, size_t logits_bytes) {
    switch (edit.request.output) {
        case graph_request::output_kind::nll:
        case graph_request::output_kind::logits:
            build_logits(edit, targets, logits_bytes);
            break;
        case graph_request::output_kind::hidden:
            edit.outputs.hidden = first_positions(edit.ctx, edit.res.t_embd, targets->ne[0]);
            edit.results.push_back(edit.outputs.hidden);
            break;
        case graph_request::output_kind::none:
            break;
    }
    for (ggml_tensor * t : edit.results) {
        set_readable(t);
    }
    edit.res.t_logits = nullptr; // llama.cpp would copy them to the host
}

// Rebuilds the graph from what the results still need, cache writes included. All inputs stay, since llama.cpp sets
// every one of them, but for masks, which it sets only where they have memory. Returns the number of writes to the cache
// of keys and values.
// packed: may be null
int rebuild(graph_edit & edit, ggml_tensor * targets, packed_weights * packed) {
    tensor_set                 needed;
    std::vector<ggml_tensor *> operations;
    for (ggml_tensor * t : edit.results) {
        edit.graph.visit_sources(t, -1, needed, [&](ggml_tensor * source) {
            operations.push_back(source);
            return true;
        });
    }
    if (packed) {
        auto holder = std::make_unique<products_holder>();
        holder->products.use(edit.ctx, operations, *packed);
        edit.res.add_input(std::move(holder));
    }
    ggml_cgraph * gf = edit.res.get_gf();
    ggml_graph_clear(gf);
    for (ggml_tensor * input : edit.graph.inputs) {
        if (!is_mask(input) || needed.count(input)) {
            ggml_build_forward_expand(gf, input);
        }
    }
    ggml_build_forward_expand(gf, targets);
    int n_cache_writes = 0;
    for (ggml_tensor * node : edit.graph.nodes) {
        if (needed.count(node)) {
            ggml_build_forward_expand(gf, node);
            n_cache_writes += node->op == GGML_OP_SET_ROWS && memory_of(node)->op == GGML_OP_NONE;
        }
    }
    for (ggml_tensor * t : edit.results) {
        ggml_build_forward_expand(gf, t);
    }
    return n_cache_writes;
}

// Whether the graph of one request serves the other too: all but which tokens are to be predicted is equal.
bool have_one_graph(const graph_request & a, const graph_request & b) {
    return a.skip == b.skip && a.linear == b.linear && a.inputs == b.inputs && a.start == b.start &&
           a.boundary == b.boundary && a.capture == b.capture && a.inner == b.inner && a.entry == b.entry &&
           a.compare == b.compare && a.output == b.output && a.targets.size() == b.targets.size() &&
           a.sequence_length == b.sequence_length && a.outputs_first == b.outputs_first;
}

} // namespace

void graph_patch::set_request(graph_request r) {
    if (!have_one_graph(r, req)) {
        n_requests++;
    }
    req = std::move(r);
}

void graph_patch::hook(void * data, void * graph_result) {
    auto & patch = *static_cast<graph_patch *>(data);
    patch.error.clear();
    try {
        patch.apply(*static_cast<llm_graph_result *>(graph_result));
    } catch (const std::exception & e) {
        patch.error = e.what();
        throw;
    }
}

void graph_patch::apply(llm_graph_result & res) {
    if (!res.t_logits || !res.t_embd) {
        throw std::runtime_error("this model computes no logits: it is no causal language model");
    }
    const graph_view               graph(res.get_gf());
    const std::vector<found_block> found = locate_blocks(graph, res);

    outputs         = {};
    graph_edit edit = {
        .res         = res,
        .ctx         = res.get_ctx(),
        .graph       = graph,
        .found       = found,
        .request     = req,
        .outputs     = outputs,
        .rms_epsilon = rms_epsilon,
        .change      = {},
        .results     = {},
    };
    leave_out_blocks(edit);
    start_at_boundary(edit);
    put_in_linear_blocks(edit);
    change_inputs(edit);
    read_kept_masks(edit, masks);
    edit.change.apply(graph);
    capture_boundaries(edit);
    capture_entries(edit);
    capture_inner_values(edit);
    compare_boundaries(edit);
    ggml_tensor * targets = add_targets(edit, *this);
    build_outputs(edit, targets, logits_bytes);
    n_cache_writes = rebuild(edit, targets, packed.get());
    n_nodes        = ggml_graph_n_nodes(res.get_gf());
}

// The blocks of this graph. The first one is searched for them, and they are described; later ones have them where it
// had them, or are searched anew.
std::vector<found_block> graph_patch::locate_blocks(const graph_view & graph, llm_graph_result & res) {
    std::vector<found_block> found = find_again(graph, layout);
    if (found.empty()) {
        found  = find_blocks(graph, res.t_embd);
        layout = layout_of(graph, found);
    }
    if (blocks.empty()) {
        describe_blocks(graph, found);
        for (const auto & f : found) {
            blocks.push_back(f.block);
        }
        outer_signature = outer_signature_of(graph, found, res.t_logits);
    } else if (found.size() != blocks.size()) {
        throw std::runtime_error("this graph has other blocks than the first");
    }
    return found;
}

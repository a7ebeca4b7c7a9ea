#include "engine/evaluator.h"

#include "engine/llama_errors.h"
#include "engine/token_batch.h"
#include "llama-context.h"
#include "llama-model.h"
#include "llama.h"

#include <algorithm>
#include <string>
#include <utility>

namespace {

llama_context_params context_params(const evaluator_options & options, uint32_t n_sequences) {
    llama_context_params params   = llama_context_default_params();
    const uint32_t       n_tokens = options.n_context * (options.shared_cache ? 1 : n_sequences);
    params.n_seq_max              = n_sequences;
    params.kv_unified             = options.shared_cache;
    // sequences that share nothing have a cache each, whose size llama.cpp rounds up by itself
    params.n_ctx           = n_tokens;
    params.n_batch         = n_tokens;
    params.n_ubatch        = n_tokens; // a batch is one run of the graph
    params.n_threads       = options.n_threads;
    params.n_threads_batch = options.n_threads;
    // never "auto": llama.cpp decides that by looking at a graph, and a skip set would change the decision
    params.flash_attn_type   = options.flash_attention ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    params.type_k            = options.cache_type;
    params.type_v            = options.cache_type;
    params.graph_hook        = graph_patch::hook;
    params.cb_eval           = options.on_operation;
    params.cb_eval_user_data = options.on_operation_data;
    return params;
}

size_t count_values(const std::vector<ggml_tensor *> & tensors) {
    size_t count = 0;
    for (const ggml_tensor * t : tensors) {
        count += ggml_nelements(t);
    }
    return count;
}

// What llama_decode returns where a device has no memory for a graph.
constexpr int ALLOC_FAILED = -2;

bool is_cpu(ggml_backend_dev_t device) {
    return ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU;
}

// A damaged header may want a recurrent state of any size, which llama.cpp allocates and clears: it would take all memory
// before anything else is found to be wrong. The largest models have some 0.2 GiB.
void check_state(const llama_hparams & hparams) {
    constexpr double most  = 4.0 * 1024 * 1024 * 1024;
    const double     bytes = ((double) hparams.n_embd_r() + hparams.n_embd_s()) * sizeof(float) * hparams.n_layer();
    if (bytes > most) {
        throw std::runtime_error("its recurrent state would take " + std::to_string((int64_t) (bytes / 1024 / 1024)) +
                                 " MiB: its ssm keys are damaged");
    }
}

// The memory of the GPU that computes the first layer; null where the CPU does, which has masks where they are filled.
ggml_backend_buffer_type_t mask_memory(const llama_model & model, bool on_cpu_too) {
    ggml_backend_dev_t device = model.dev_layer(0);
    return is_cpu(device) && !on_cpu_too ? nullptr : ggml_backend_dev_buffer_type(device);
}

} // namespace

evaluator::evaluator(std::shared_ptr<llama_model> model,
                     const evaluator_options &    options,
                     const task_control &         control) :
    model(std::move(model)),
    options(options),
    on_cpu(is_cpu(this->model->dev_layer(0)) && is_cpu(this->model->dev_output())),
    patch(options.logits_bytes,
          this->model->hparams.f_norm_rms_eps,
          mask_memory(*this->model, options.keep_masks),
          on_cpu ? options.packed : nullptr),
    n_threads(options.n_threads),
    at_once(options.n_sequences) {
    check_state(this->model->hparams);
    with_fewer([&] {
        control.check();
        make_context();
    });
    if (patch.blocks.empty()) {
        throw std::runtime_error("no blocks were found in this model's graph");
    }
    for (auto & block : patch.blocks) {
        // the graph doesn't show it: the masks of all layers have one name
        if (block.kind == block_kind::attn && this->model->hparams.is_swa(block.layer)) {
            block.signature += " sliding window";
        }
    }
}

void evaluator::make_context() {
    // llama.cpp plans its memory with graphs of other shapes than the last request's, whose boundary takes some of it
    patch.set_request({});
    llama_context_params params = context_params(options, at_once);
    params.graph_hook_data      = &patch;
    params.abort_callback_data  = this;
    params.abort_callback       = [](void * data) {
        const auto * control = static_cast<const evaluator *>(data)->running;
        return control && control->cancelled();
    };
    context.reset(llama_init_from_model(model.get(), params), [](llama_context * c) {
        if (c) {
            llama_free(c);
        }
    });
    if (!context) {
        const std::string reason = take_logged_errors("llama.cpp could not make a context");
        if (!patch.error.empty()) {
            throw std::runtime_error(patch.error);
        }
        throw out_of_memory_error(reason);
    }
    last_sequences = 0;
    if (!threads) {
        threads = make_threads(options.n_threads);
    }
    if (threads) {
        llama_attach_threadpool(context.get(), threads.get(), nullptr);
    }
}

std::vector<std::shared_ptr<evaluator>> evaluator::halves(const task_control & control) const {
    if (!on_cpu || options.n_threads % 2 != 0) {
        return {};
    }
    evaluator_options of_half = options;
    of_half.n_threads         = options.n_threads / 2;
    of_half.n_sequences       = 1;
    of_half.shared_cache      = false;
    try {
        return { std::make_shared<evaluator>(model, of_half, control),
                 std::make_shared<evaluator>(model, of_half, control) };
    } catch (const out_of_memory_error &) {
        return {};
    }
}

bool evaluator::compute_fewer() {
    if (at_once == 1 || options.shared_cache) {
        return false;
    }
    at_once = at_once / 2;
    context.reset();
    return true;
}

int evaluator::n_splits() const {
    return context ? ggml_backend_sched_get_n_splits(context->get_sched()) : 0;
}

size_t evaluator::n_vocab() const {
    return llama_vocab_n_tokens(llama_model_get_vocab(model.get()));
}

const graph_outputs & evaluator::run(graph_request request, const llama_batch & batch, const task_control & control) {
    if (!context) {
        make_context();
    }
    last_sequences = 0;
    return compute(
        std::move(request),
        [&] {
            llama_memory_clear(llama_get_memory(context.get()), false);
            return decode(context.get(), batch);
        },
        control);
}

const graph_outputs & evaluator::compute(graph_request                request,
                                         const std::function<int()> & decode,
                                         const task_control &         control) {
    const size_t n_targets = request.targets.size();
    patch.set_request(std::move(request));
    running          = &control;
    const int status = on_cpu ? on_chosen_threads(decode) : decode();
    running          = nullptr;
    if (status != 0) {
        last_sequences = 0;
        control.check();
        const std::string reason = take_logged_errors("llama_decode returned " + std::to_string(status));
        if (status == ALLOC_FAILED && patch.error.empty()) {
            context.reset(); // its plan of memory was made for this run
            throw out_of_memory_error("evaluation failed: " + reason);
        }
        throw std::runtime_error("evaluation failed: " + (patch.error.empty() ? reason : patch.error));
    }
    const size_t n_values = count_values(patch.outputs.nll);
    if (!patch.outputs.nll.empty() && n_values != n_targets) {
        throw std::runtime_error("evaluation failed: this model gives " + std::to_string(n_values) + " outputs for " +
                                 std::to_string(n_targets) + " positions");
    }
    return patch.outputs;
}

int evaluator::on_chosen_threads(const std::function<int()> & decode) {
    llama_set_n_threads(context.get(), n_threads.now(), n_threads.now());
    run_meter meter(n_threads.now());
    const int status = decode();
    // the graph may still be computed until something of it is read
    llama_synchronize(context.get());
    const auto [wall, cpu] = meter.stop();
    n_threads.learn(wall, cpu);
    return status;
}

const graph_outputs & evaluator::run_sequence(graph_request        request,
                                              const int32_t *      tokens,
                                              uint32_t             length,
                                              const task_control & control) {
    token_batch batch(length);
    for (uint32_t i = 0; i < length; i++) {
        batch.add(tokens[i], i, 0, i + 1 < length); // the last token predicts nothing that is known
    }
    request.targets.assign(tokens + 1, tokens + length);
    request.sequence_length = length;
    return with_fewer([&]() -> const graph_outputs & { return run(request, batch.get(), control); });
}

const graph_outputs & evaluator::run_together(graph_request                        request,
                                              const std::vector<const int32_t *> & sequences,
                                              uint32_t                             length,
                                              const task_control &                 control) {
    if (options.n_sequences == 1) {
        return run_sequence(std::move(request), sequences.at(0), length, control);
    }
    std::vector<int32_t> tokens;
    request.targets.clear();
    request.sequence_length = length;
    for (const int32_t * sequence : sequences) {
        tokens.insert(tokens.end(), sequence, sequence + length);
        // what the last token should predict isn't known: read_nll leaves its value out
        request.targets.insert(request.targets.end(), sequence + 1, sequence + length);
        request.targets.push_back(0);
    }
    if (context && last_sequences == sequences.size() && last_length == length) {
        return compute(std::move(request), [&] { return decode_again(context.get(), tokens.data()); }, control);
    }
    token_batch batch(tokens.size());
    for (size_t i = 0; i < tokens.size(); i++) {
        batch.add(tokens[i], i % length, i / length, true);
    }
    const graph_outputs & outputs = run(std::move(request), batch.get(), control);
    last_sequences                = sequences.size();
    last_length                   = length;
    return outputs;
}

float * read_values(const std::vector<ggml_tensor *> & tensors, float * out) {
    for (const ggml_tensor * t : tensors) {
        ggml_backend_tensor_get(t, out, 0, ggml_nbytes(t));
        out += ggml_nelements(t);
    }
    return out;
}

float * read_nll(const graph_outputs & outputs, size_t n_sequences, uint32_t length, float * out) {
    const size_t n_values = count_values(outputs.nll);
    if (n_values == n_sequences * (length - 1)) {
        return read_values(outputs.nll, out);
    }
    std::vector<float> values(n_values);
    read_values(outputs.nll, values.data());
    for (size_t i = 0; i < n_sequences; i++) {
        out = std::copy_n(values.begin() + (ptrdiff_t) (i * length), length - 1, out);
    }
    return out;
}

std::vector<float> nll_of(evaluator &             on,
                          const token_sequences & sequences,
                          const skip_set &        skip,
                          const task_control &    control) {
    const size_t       n_sequences = sequences.count();
    std::vector<float> nll(n_sequences * (sequences.length - 1));
    float *            out = nll.data();
    for (size_t first = 0; first < n_sequences;) {
        control.check();
        std::vector<const int32_t *> together;
        for (size_t i = first; i < std::min<size_t>(n_sequences, first + on.n_at_once()); i++) {
            together.push_back(sequences.sequence(i));
        }
        graph_request request;
        request.skip = skip;
        try {
            out = read_nll(on.run_together(std::move(request), together, sequences.length, control), together.size(),
                           sequences.length, out);
        } catch (const out_of_memory_error &) {
            if (!on.compute_fewer()) {
                throw;
            }
            continue;
        }
        first += together.size();
        control.progress((double) first, (double) n_sequences);
    }
    return nll;
}

std::vector<float> hidden_of(evaluator &             on,
                             const token_sequences & sequences,
                             const skip_set &        skip,
                             const task_control &    control) {
    const size_t       n_sequences = sequences.count();
    std::vector<float> values;
    for (size_t i = 0; i < n_sequences; i++) {
        control.check();
        graph_request request;
        request.skip   = skip;
        request.output = graph_request::output_kind::hidden;
        ggml_tensor * hidden =
            on.run_sequence(std::move(request), sequences.sequence(i), sequences.length, control).hidden;
        const size_t size = values.size();
        values.resize(size + ggml_nelements(hidden));
        read_values({ hidden }, values.data() + size);
        control.progress((double) i + 1, (double) n_sequences);
    }
    return values;
}

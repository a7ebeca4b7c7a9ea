#include "evaluator.h"

#include "async.h"
#include "model.h"

#include "ggml-backend.h"
#include "llama-model.h"
#include "llama.h"

#include <algorithm>
#include <cmath>
#include <thread>
#include <vector>

void Evaluator::init(Napi::Env env, Napi::Object exports) {
    Napi::Function cls = DefineClass(env, "Evaluator", {
        StaticMethod<&Evaluator::create>("create"),
        InstanceMethod<&Evaluator::blocks>("blocks"),
        InstanceMethod<&Evaluator::graph>("graph"),
        InstanceMethod<&Evaluator::evaluate>("evaluate"),
        InstanceMethod<&Evaluator::score>("score"),
        InstanceMethod<&Evaluator::compare>("compare"),
        InstanceMethod<&Evaluator::hidden>("hidden"),
        InstanceMethod<&Evaluator::diverge>("diverge"),
        InstanceMethod<&Evaluator::forget>("forget"),
        InstanceMethod<&Evaluator::dispose>("dispose"),
    });
    env.GetInstanceData<addon_data>()->evaluator = Napi::Persistent(cls);
    exports.Set("Evaluator", cls);
}

// only create() makes evaluators
Evaluator::Evaluator(const Napi::CallbackInfo & info) : Napi::ObjectWrap<Evaluator>(info) {
    if (info.Length() != 1 || !info[0].IsExternal()) {
        throw Napi::TypeError::New(info.Env(), "use Evaluator.create()");
    }
    self = *info[0].As<Napi::External<std::shared_ptr<state>>>().Data();
}

void Evaluator::dispose(const Napi::CallbackInfo &) {
    self.reset();
}

// Threads that live on between graphs: those that ggml makes anew for each one often begin on a busy core, which cost up to
// 40 % of the time of short evaluations.
static std::shared_ptr<ggml_threadpool> make_threads(int count) {
    ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    ggml_backend_reg_t reg = cpu ? ggml_backend_dev_backend_reg(cpu) : nullptr;
    // the CPU backend is a library that is chosen at run time
    auto * make = reg ? (ggml_threadpool * (*)(ggml_threadpool_params *)) ggml_backend_reg_get_proc_address(reg, "ggml_threadpool_new") : nullptr;
    auto * end  = reg ? (void (*)(ggml_threadpool *)) ggml_backend_reg_get_proc_address(reg, "ggml_threadpool_free") : nullptr;
    if (!make || !end) {
        return nullptr;
    }
    ggml_threadpool_params params = ggml_threadpool_params_default(count);
    return { make(&params), [end](ggml_threadpool * threads) { if (threads) end(threads); } };
}

// create(model, { context, threads, flashAttention, cacheType: 'f16'|'f32', sequences?, logitsBytes?, cancel? }): Promise<Evaluator>
// sequences: how many score() computes at once, at most; default 1.
// Finds the blocks; rejects where the graph isn't understood. context: tokens a sequence at most. logitsBytes: memory for
// logits, default 256 MiB; of longer sequences, they are computed in parts.
Napi::Value Evaluator::create(const Napi::CallbackInfo & info) {
    const auto options = info[1].As<Napi::Object>();

    auto created = std::make_shared<std::shared_ptr<state>>(std::make_shared<state>());
    state & s = **created;
    s.model        = Model::Unwrap(info[0].As<Napi::Object>())->model;
    s.context_size = options.Get("context").As<Napi::Number>().Uint32Value();
    if (!s.model) {
        throw Napi::Error::New(info.Env(), "the model is disposed");
    }

    if (options.Get("logitsBytes").IsNumber()) {
        s.patch.logits_bytes = (size_t) options.Get("logitsBytes").As<Napi::Number>().Int64Value();
    }

    llama_context_params params = llama_context_default_params();
    if (options.Get("sequences").IsNumber()) {
        s.n_sequences = options.Get("sequences").As<Napi::Number>().Uint32Value();
    }
    params.n_ctx           = s.context_size;
    params.n_seq_max       = s.n_sequences;
    params.kv_unified      = s.n_sequences > 1; // sequences share what they have in common
    params.n_batch         = s.context_size;
    params.n_ubatch        = s.context_size; // a sequence is one graph run
    params.n_threads       = options.Get("threads").As<Napi::Number>().Int32Value();
    params.n_threads_batch = params.n_threads;
    s.n_threads            = params.n_threads;
    // never "auto": llama.cpp decides that by looking at a graph, and a skip set would change the decision
    params.flash_attn_type = options.Get("flashAttention").ToBoolean() ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    params.type_k          = options.Get("cacheType").ToString().Utf8Value() == "f32" ? GGML_TYPE_F32 : GGML_TYPE_F16;
    params.type_v          = params.type_k;
    params.graph_hook      = graph_patch::hook;
    params.graph_hook_data = &s.patch;
    params.abort_callback_data = &s;
    params.abort_callback  = [](void * data) {
        const auto * control = static_cast<const state *>(data)->control;
        return control && control->cancelled();
    };

    return run_async(info.Env(), options,
        [created, params](const task_control & control) {
            state & s = **created;
            s.context.reset(llama_init_from_model(s.model.get(), params), [](llama_context * c) { if (c) llama_free(c); });
            control.check();
            if (!s.context) {
                const std::string reason = take_logged_errors();
                throw std::runtime_error(!s.patch.error.empty() ? s.patch.error : reason.empty() ? "llama.cpp could not make a context" : reason);
            }
            for (auto & block : s.patch.blocks) {
                // masks all have one name
                block.signature += block.mixes_tokens && s.model->hparams.is_swa(block.layer) ? " sliding window" : "";
            }
            if (s.patch.blocks.empty()) {
                throw std::runtime_error("no blocks were found in this model's graph");
            }
            s.threads = make_threads(params.n_threads);
            if (s.threads) {
                llama_attach_threadpool(s.context.get(), s.threads.get(), nullptr);
            }
        },
        [created](Napi::Env env) -> Napi::Value {
            return env.GetInstanceData<addon_data>()->evaluator.New({ Napi::External<std::shared_ptr<state>>::New(env, created.get()) });
        });
}

// blocks(): { kind: 'attn'|'ffn', layer, tensors: string[], parallel, direct, reads: number[], signature, rope: 'norm'|
// 'neox'|'other'|'none' }[], as residual_block describes, in the order of the residual stream
Napi::Value Evaluator::blocks(const Napi::CallbackInfo & info) {
    if (!self) {
        throw Napi::Error::New(info.Env(), "the evaluator is disposed");
    }
    auto array = Napi::Array::New(info.Env());
    for (const auto & block : self->patch.blocks) {
        auto tensors = Napi::Array::New(info.Env());
        for (const auto & name : block.weights) {
            tensors.Set(tensors.Length(), name);
        }
        auto object = Napi::Object::New(info.Env());
        object.Set("kind", block.mixes_tokens ? "attn" : "ffn");
        object.Set("layer", block.layer);
        object.Set("tensors", tensors);
        object.Set("parallel", block.parallel);
        object.Set("direct", block.direct);
        object.Set("signature", block.signature);
        object.Set("rope", block.rope == -1 ? "none" : block.rope == GGML_ROPE_TYPE_NORMAL ? "norm" : block.rope == GGML_ROPE_TYPE_NEOX ? "neox" : "other");
        auto reads = Napi::Array::New(info.Env());
        for (const size_t other : block.reads) {
            reads.Set(reads.Length(), (double) other);
        }
        object.Set("reads", reads);
        array.Set(array.Length(), object);
    }
    return array;
}

// graph(): { nodes, cacheWrites, kept, computed, outerSignature }: the number of operations of the last evaluation, of its
// writes to the KV cache, the bytes of the residual stream that are kept, how many blocks were computed since create(), over
// all sequences, and what is computed outside of blocks
Napi::Value Evaluator::graph(const Napi::CallbackInfo & info) {
    if (!self) {
        throw Napi::Error::New(info.Env(), "the evaluator is disposed");
    }
    auto object = Napi::Object::New(info.Env());
    object.Set("nodes", self->patch.n_nodes.load());
    object.Set("cacheWrites", self->patch.n_cache_writes.load());
    object.Set("kept", (double) self->kept_bytes);
    object.Set("computed", (double) self->n_computed);
    object.Set("outerSignature", self->patch.outer_signature);
    return object;
}

// indexes into blocks() -> one flag a block
std::vector<bool> Evaluator::read_skip_set(const Napi::Value & value) const {
    const auto indexes = value.As<Napi::Array>();
    std::vector<bool> skip(self->patch.blocks.size());
    for (uint32_t i = 0; i < indexes.Length(); i++) {
        const auto index = indexes.Get(i).As<Napi::Number>().Uint32Value();
        if (index >= skip.size()) {
            throw Napi::RangeError::New(value.Env(), "there is no block " + std::to_string(index));
        }
        skip[index] = true;
    }
    return skip;
}

// evaluate(tokens: Int32Array, length, skip: number[], { keep?, onProgress?(sequences), cancel? }): Promise<Float32Array>
// tokens: sequences of `length` tokens, one after the other. skip: indexes into blocks().
// Result: the NLL of the tokens 1 .. length-1 of each sequence, given those before.
// keep: keep the residual stream on the device, at most so many boundaries of each sequence in all. Evaluations of a
// sequence start at the last kept boundary before which their skip set is the same, and give the same values as without.
Napi::Value Evaluator::evaluate(const Napi::CallbackInfo & info) {
    const auto sequences = read_sequences(info);
    const auto skip      = read_skip_set(info[2]);
    const auto options   = info[3].As<Napi::Object>();
    const auto keep      = (size_t) (options.Get("keep").IsNumber() ? options.Get("keep").As<Napi::Number>().Uint32Value() : 0);
    auto nll = std::make_shared<std::vector<float>>();
    return launch(info.Env(), options,
        [s = self, sequences, skip, nll, keep](const task_control & control) { s->evaluate(*sequences, skip, keep, control, *nll); },
        [nll](Napi::Env env) { return typed_array<Napi::Float32Array>(env, *nll); });
}

// score(tokens: Int32Array, lengths: Uint32Array, skip: number[], { onProgress?(choices), cancel? }): Promise<Float64Array>
// How likely endings are after their contexts. tokens: of each choice the context's, then the ending's. lengths: of each choice
// the context's and the ending's, at least 1. What a choice and the one before it begin with is computed once: sort them.
// Result: of each ending the sum of its tokens' NLL, given the context.
Napi::Value Evaluator::score(const Napi::CallbackInfo & info) {
    Napi::Env env = info.Env();
    auto       tokens  = std::make_shared<std::vector<llama_token>>(read_tokens(info));
    const auto numbers = info[1].As<Napi::Uint32Array>();
    auto       lengths = std::make_shared<std::vector<uint32_t>>(numbers.Data(), numbers.Data() + numbers.ElementLength());

    size_t used = 0;
    for (size_t i = 0; i + 1 < lengths->size(); i += 2) { // whole pairs: lib/model.ts makes them
        const size_t size = (size_t) (*lengths)[i] + (*lengths)[i + 1];
        if ((*lengths)[i] == 0 || (*lengths)[i + 1] == 0) {
            throw Napi::RangeError::New(env, "a context or an ending has no tokens");
        }
        if (size - 1 > self->context_size) {
            throw Napi::RangeError::New(env, "a choice has " + std::to_string(size) + " tokens, more than fit into the context of " + std::to_string(self->context_size));
        }
        used += size;
    }
    if (used != tokens->size()) {
        throw Napi::RangeError::New(env, "the lengths don't add up to the tokens");
    }
    const auto skip = read_skip_set(info[2]);
    auto sums = std::make_shared<std::vector<double>>();
    return launch(env, info[3],
        [s = self, tokens, lengths, skip, sums](const task_control & control) { s->score(*tokens, *lengths, skip, control, *sums); },
        [sums](Napi::Env env) { return typed_array<Napi::Float64Array>(env, *sums); });
}

// compare(tokens: Int32Array, length, pairs: Uint32Array, { onProgress?(sequences), cancel? }): Promise<Float64Array>
// pairs: boundaries a, b by the number of the block behind them, two of each pair; the number of blocks is the stream's end.
// Result: of each pair, the means over all positions of cos(a, b) and of |b - a|/|b|.
Napi::Value Evaluator::compare(const Napi::CallbackInfo & info) {
    const auto sequences = read_sequences(info);
    const auto numbers   = info[2].As<Napi::Uint32Array>();
    auto pairs = std::make_shared<std::vector<std::pair<size_t, size_t>>>();
    for (size_t i = 0; i + 1 < numbers.ElementLength(); i += 2) { // whole pairs: lib/model.ts makes them
        pairs->emplace_back(numbers[i], numbers[i + 1]);
        if (numbers[i] > self->patch.blocks.size() || numbers[i + 1] > self->patch.blocks.size()) {
            throw Napi::RangeError::New(info.Env(), "there is no such boundary");
        }
    }
    auto means = std::make_shared<std::vector<double>>();
    return launch(info.Env(), info[3],
        [s = self, sequences, pairs, means](const task_control & control) { s->compare(*sequences, *pairs, control, *means); },
        [means](Napi::Env env) { return typed_array<Napi::Float64Array>(env, *means); });
}

// hidden(tokens: Int32Array, length, skip: number[], { onProgress?(sequences), cancel? }): Promise<Float32Array>
// Result: what the logits are computed from, of the tokens 0 .. length-2 of each sequence: [n_embd] values each.
Napi::Value Evaluator::hidden(const Napi::CallbackInfo & info) {
    const auto sequences = read_sequences(info);
    const auto skip      = read_skip_set(info[2]);
    auto values = std::make_shared<std::vector<float>>();
    return launch(info.Env(), info[3],
        [s = self, sequences, skip, values](const task_control & control) { s->hidden(*sequences, skip, control, *values); },
        [values](Napi::Env env) { return typed_array<Napi::Float32Array>(env, *values); });
}

// diverge(tokens: Int32Array, length, skip: number[], dense: Evaluator, { onProgress?(sequences), cancel? }): Promise<Float32Array>
// How this model's predictions differ from those of another one with the same vocabulary, which may be the same evaluator: the
// other leaves out nothing.
// Result: of each of the tokens 1 .. length-1 of each sequence four values: its NLL in the other model, and in this one; the
// Kullback-Leibler divergence of this model's distribution from the other's, in nats; 1 where both find the same token
// likeliest, else 0. Memory: vocabulary x length values three times.
Napi::Value Evaluator::diverge(const Napi::CallbackInfo & info) {
    Napi::Env env = info.Env();
    const auto sequences = read_sequences(info);
    const auto other     = Evaluator::Unwrap(info[3].As<Napi::Object>())->self;
    if (!other) {
        throw Napi::Error::New(env, "the other evaluator is disposed");
    }
    const auto vocabulary = [](const state & s) { return llama_vocab_n_tokens(llama_model_get_vocab(s.model.get())); };
    if (vocabulary(*self) != vocabulary(*other)) {
        throw Napi::RangeError::New(env, "the models have different vocabularies, of " + std::to_string(vocabulary(*self)) + " and " + std::to_string(vocabulary(*other)) + " tokens");
    }
    if (sequences->length > other->context_size) {
        throw Napi::RangeError::New(env, "the other evaluator's context is shorter than the sequences");
    }
    const auto skip = read_skip_set(info[2]);
    auto values = std::make_shared<std::vector<float>>();
    return launch(env, info[4],
        [s = self, other, sequences, skip, values](const task_control & control) { s->diverge(*sequences, skip, *other, control, *values); },
        [values](Napi::Env env) { return typed_array<Napi::Float32Array>(env, *values); },
        other);
}

// info[0]: tokens of the vocabulary
std::vector<llama_token> Evaluator::read_tokens(const Napi::CallbackInfo & info) const {
    if (!self) {
        throw Napi::Error::New(info.Env(), "the evaluator is disposed");
    }
    const auto array = info[0].As<Napi::Int32Array>();
    std::vector<llama_token> tokens(array.Data(), array.Data() + array.ElementLength());
    const llama_token n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(self->model.get()));
    for (const llama_token token : tokens) {
        if (token < 0 || token >= n_vocab) {
            throw Napi::RangeError::New(info.Env(), "token " + std::to_string(token) + " is not in the vocabulary of " + std::to_string(n_vocab));
        }
    }
    return tokens;
}

// info[0]: sequences of info[1] tokens, one after the other
std::shared_ptr<Evaluator::token_sequences> Evaluator::read_sequences(const Napi::CallbackInfo & info) const {
    auto sequences = std::make_shared<token_sequences>(token_sequences { read_tokens(info), info[1].As<Napi::Number>().Uint32Value() });
    const uint32_t length = sequences->length;
    if (length < 2 || length > self->context_size || sequences->tokens.empty() || sequences->tokens.size() % length != 0) {
        throw Napi::RangeError::New(info.Env(), "the tokens must be whole sequences of 2 to " + std::to_string(self->context_size) + " tokens");
    }
    return sequences;
}

// Runs work on the state, one at a time.
Napi::Value Evaluator::launch(Napi::Env env, const Napi::Value & options, std::function<void(const task_control &)> work, std::function<Napi::Value(Napi::Env)> result, const std::shared_ptr<state> & other) {
    if (self->model->hparams.no_alloc) {
        throw Napi::Error::New(env, "the model was loaded without its weights: it can't be evaluated");
    }
    std::vector<std::shared_ptr<state>> used = { self };
    if (other && other != self) {
        used.push_back(other);
    }
    const auto release = [](const std::vector<std::shared_ptr<state>> & states) {
        for (const auto & s : states) {
            s->control = nullptr;
            s->busy    = false;
        }
    };
    for (size_t i = 0; i < used.size(); i++) {
        if (used[i]->busy.exchange(true)) {
            used.resize(i);
            release(used);
            throw Napi::Error::New(env, "the evaluator is at work: one evaluation at a time");
        }
    }
    try {
        return run_async(env, options, [used, work, release](const task_control & control) {
            struct guard {
                std::function<void()> end;
                ~guard() { end(); }
            } at_end { [&] { release(used); } };
            for (const auto & s : used) {
                s->control = &control;
            }
            work(control);
        }, std::move(result));
    } catch (...) {
        release(used); // the work never began
        throw;
    }
}

// forget(skip: number[]): gives back, for others to use, the kept boundaries at which no evaluation can start that leaves out
// these blocks and more behind them
void Evaluator::forget(const Napi::CallbackInfo & info) {
    if (!self) {
        throw Napi::Error::New(info.Env(), "the evaluator is disposed");
    }
    if (self->busy) {
        throw Napi::Error::New(info.Env(), "the evaluator is at work: one evaluation at a time");
    }
    self->forget(read_skip_set(info[0]));
}

static bool shares_start(const std::vector<bool> & before, const std::vector<bool> & skip) {
    return std::equal(before.begin(), before.end(), skip.begin());
}

void Evaluator::state::forget(const std::vector<bool> & skip) {
    for (auto & [tokens, boundaries] : kept) {
        const auto gone = std::stable_partition(boundaries.begin(), boundaries.end(), [&](const auto & b) { return shares_start(b.before, skip); });
        for (auto it = gone; it != boundaries.end(); it++) {
            kept_bytes -= ggml_nbytes(it->values.tensor);
            unused.push_back(std::move(it->values));
        }
        boundaries.erase(gone, boundaries.end());
    }
}

// Memory of the tensor's shape, where the tensor is.
Evaluator::stream Evaluator::state::stream_like(const ggml_tensor * tensor) {
    const auto type = ggml_backend_buffer_get_type(tensor->buffer);
    const auto fits = std::find_if(unused.begin(), unused.end(), [&](const stream & s) {
        return ggml_are_same_shape(s.tensor, tensor) && ggml_backend_buffer_get_type(s.buffer.get()) == type;
    });
    if (fits != unused.end()) {
        std::swap(*fits, unused.back());
        stream found = std::move(unused.back());
        unused.pop_back();
        return found;
    }
    if (!unused.empty()) {
        unused.pop_back(); // so that what is kept and what is unused never exceed what was allowed
    }
    stream made;
    made.context.reset(ggml_init({ ggml_tensor_overhead(), nullptr, true }));
    made.tensor = ggml_new_tensor_2d(made.context.get(), GGML_TYPE_F32, tensor->ne[0], tensor->ne[1]);
    made.buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(made.context.get(), type));
    return made.buffer ? std::move(made) : stream {};
}

// The blocks after `start` at whose boundaries the stream is kept: evenly spread over those that aren't left out, since
// only these can be the next to go. Parallel blocks have one boundary.
static std::vector<size_t> spread(const std::vector<residual_block> & blocks, const std::vector<bool> & skip, size_t start, size_t count) {
    std::vector<size_t> present;
    for (size_t i = start + 1; i < skip.size(); i++) {
        const bool next_too = i + 1 < skip.size() && blocks[i + 1].parallel;
        if (!blocks[i].parallel && (!skip[i] || (next_too && !skip[i + 1]))) {
            present.push_back(i);
        }
    }
    count = std::min(count, present.size());
    std::vector<size_t> chosen;
    for (size_t i = 0; i < count; i++) {
        chosen.push_back(present[(2*i + 1)*present.size()/(2*count)]);
    }
    return chosen;
}

namespace {

// A batch of one sequence, in which each token predicts the next.
struct sequence_batch {
    const uint32_t length;
    llama_batch    batch;

    explicit sequence_batch(uint32_t length) : length(length), batch(llama_batch_init((int) length, 0, 1)) {
        batch.n_tokens = (int) length;
        for (uint32_t i = 0; i < length; i++) {
            batch.pos[i]       = (llama_pos) i;
            batch.n_seq_id[i]  = 1;
            batch.seq_id[i][0] = 0;
            batch.logits[i]    = i + 1 < length; // the last token predicts nothing that is known
        }
    }
    ~sequence_batch() { llama_batch_free(batch); }
    sequence_batch(const sequence_batch &) = delete;
    sequence_batch & operator=(const sequence_batch &) = delete;

    void set(const llama_token * tokens, graph_patch & patch) {
        std::copy(tokens, tokens + length, batch.token);
        patch.targets   = tokens + 1;
        patch.n_outputs = length - 1;
    }
};

} // namespace

// Computes the patched graph of a batch, from an empty cache.
void Evaluator::state::run(const llama_batch & batch) {
    llama_memory_clear(llama_get_memory(context.get()), false);
    int status;
    {
        const computing no_exceptions;
        status = llama_decode(context.get(), batch);
        llama_synchronize(context.get());
    }
    if (status != 0) {
        control->check();
        const std::string reason = take_logged_errors();
        throw std::runtime_error("evaluation failed: " + (!patch.error.empty() ? patch.error :
            reason.empty() ? "llama_decode returned " + std::to_string(status) : reason));
    }
}

// The NLL of each output of the last run: as many as were asked for.
void Evaluator::state::read_nll(float * out) const {
    size_t n_values = 0;
    for (const ggml_tensor * part : patch.nll) {
        n_values += ggml_nelements(part);
    }
    if (n_values != patch.n_outputs) {
        throw std::runtime_error("evaluation failed: this model gives " + std::to_string(n_values) + " outputs for " + std::to_string(patch.n_outputs) + " positions");
    }
    for (const ggml_tensor * part : patch.nll) {
        ggml_backend_tensor_get(part, out, 0, ggml_nbytes(part));
        out += ggml_nelements(part);
    }
}

void Evaluator::state::evaluate(
        const token_sequences & sequences, const std::vector<bool> & skip, size_t keep, const task_control & control, std::vector<float> & nll) {
    const auto & tokens = sequences.tokens;
    const uint32_t length = sequences.length;
    // memory of sequences of another length is of no use (the last layer's FFN has one token less than the sequence)
    unused.erase(std::remove_if(unused.begin(), unused.end(), [&](const stream & s) { return s.tensor->ne[1] + 1 < length || s.tensor->ne[1] > length; }), unused.end());

    const size_t n_sequences = tokens.size()/length;
    nll.resize(n_sequences*(length - 1));

    // while the graph runs, all boundaries that it shall keep take memory beside those that are kept: 256 MiB at most
    const size_t n_captured_max = std::max<size_t>(1, 256*1024*1024/(sizeof(float)*llama_model_n_embd(model.get())*length));

    sequence_batch batch(length);
    for (size_t sequence = 0; sequence < n_sequences; sequence++) {
        control.check();
        const llama_token * first = tokens.data() + sequence*length;
        batch.set(first, patch);

        graph_patch::request request;
        request.skip = skip;
        const std::vector<llama_token> key(first, first + length);
        const auto found = kept.find(key);
        size_t n_kept = 0;
        if (found != kept.end()) {
            n_kept = found->second.size();
            const kept_boundary * last = nullptr;
            for (const auto & boundary : found->second) {
                if (boundary.before.size() > request.start && shares_start(boundary.before, skip)) {
                    request.start = boundary.before.size();
                    last = &boundary;
                }
            }
            if (last) {
                // a copy, so that one graph serves all sequences
                ggml_tensor * values = last->values.tensor;
                auto & start = starts[{ ggml_backend_buffer_get_type(values->buffer), values->ne[1] }];
                if (!start.tensor) {
                    start = stream_like(values);
                }
                if (start.tensor) {
                    ggml_backend_tensor_copy(values, start.tensor);
                    request.boundary = start.tensor;
                } else {
                    request.start = 0;
                }
            }
        }
        if (keep > n_kept) {
            request.capture = spread(patch.blocks, skip, request.start, std::min(keep - n_kept, n_captured_max));
        }
        patch.set_request(request);

        run(batch.batch);
        n_computed += std::count(skip.begin() + request.start, skip.end(), false);
        read_nll(nll.data() + sequence*(length - 1));
        for (const auto & [block, tensor] : patch.captured) {
            kept_boundary boundary = { std::vector<bool>(skip.begin(), skip.begin() + block), stream_like(tensor) };
            if (!boundary.values.tensor) {
                break; // without it, evaluations start earlier
            }
            kept_bytes += ggml_nbytes(tensor);
            ggml_backend_tensor_copy(tensor, boundary.values.tensor);
            kept[key].push_back(std::move(boundary));
        }
        control.progress((double) sequence + 1, (double) n_sequences);
    }
}

// Packs choices into batches. Each is a sequence, and shares the tokens that it begins with with the one before it, as far as
// these needn't predict something else.
void Evaluator::state::score(
        const std::vector<llama_token> & tokens, const std::vector<uint32_t> & lengths, const std::vector<bool> & skip,
        const task_control & control, std::vector<double> & sums) {
    graph_patch::request request;
    request.skip          = skip;
    request.outputs_first = false;
    patch.set_request(request);

    constexpr llama_token none = -1;
    llama_batch batch = llama_batch_init((int) context_size, 0, (int) n_sequences);
    std::unique_ptr<llama_batch, void (*)(llama_batch *)> free_batch(&batch, [](llama_batch * b) { llama_batch_free(*b); });
    batch.n_tokens = 0;
    uint32_t n_used = 0;                                // sequences of this batch
    std::vector<llama_token> targets(context_size);     // what each token of the batch must predict, or none
    std::vector<int>         path;                      // where in the batch the tokens of the last choice are
    std::vector<std::pair<int, size_t>> wanted;         // tokens of the batch, and the choices whose endings they predict

    const auto flush = [&] {
        if (batch.n_tokens == 0) {
            return;
        }
        std::vector<llama_token> outputs;
        std::vector<size_t>      output_of(batch.n_tokens);
        for (int i = 0; i < batch.n_tokens; i++) {
            batch.logits[i] = targets[i] != none;
            if (targets[i] != none) {
                output_of[i] = outputs.size();
                outputs.push_back(targets[i]);
            }
        }
        patch.targets   = outputs.data();
        patch.n_outputs = outputs.size();
        run(batch);
        std::vector<float> nll(outputs.size());
        read_nll(nll.data());
        for (const auto & [i, choice] : wanted) {
            sums[choice] += nll[output_of[i]];
        }
        batch.n_tokens = 0;
        n_used         = 0;
        path.clear();
        wanted.clear();
    };

    const size_t n_choices = lengths.size()/2;
    sums.assign(n_choices, 0);
    const llama_token * first = tokens.data();
    for (size_t choice = 0; choice < n_choices; choice++) {
        control.check();
        const uint32_t n_context = lengths[2*choice];
        const uint32_t length    = n_context + lengths[2*choice + 1] - 1; // the last token predicts nothing
        const auto target = [&](size_t k) { return k + 1 < n_context ? none : first[k + 1]; };
        size_t n_shared = 0;
        while (n_shared < std::min<size_t>(length, path.size())) {
            const int i = path[n_shared];
            if (batch.token[i] != first[n_shared] || (targets[i] != none && target(n_shared) != none && targets[i] != target(n_shared))) {
                break;
            }
            n_shared++;
        }
        if (n_used == n_sequences || batch.n_tokens + length - n_shared > context_size) {
            flush();
            control.progress((double) choice, (double) n_choices);
            n_shared = 0;
        }
        path.resize(n_shared);
        for (size_t k = 0; k < length; k++) {
            if (k == path.size()) {
                const int i = batch.n_tokens++;
                batch.token[i]    = first[k];
                batch.pos[i]      = (llama_pos) k;
                batch.n_seq_id[i] = 0;
                targets[i]        = none;
                path.push_back(i);
            }
            const int i = path[k];
            batch.seq_id[i][batch.n_seq_id[i]++] = (llama_seq_id) n_used;
            if (target(k) != none) {
                targets[i] = target(k);
                wanted.emplace_back(i, choice);
            }
        }
        n_used++;
        first += length + 1;
    }
    flush();
    control.progress((double) n_choices, (double) n_choices);
}

void Evaluator::state::compare(
        const token_sequences & sequences, const std::vector<std::pair<size_t, size_t>> & pairs, const task_control & control, std::vector<double> & means) {
    const auto & tokens = sequences.tokens;
    const uint32_t length = sequences.length;
    sequence_batch batch(length);
    const size_t n_sequences = tokens.size()/length;
    // a graph has room for a few more operations a token, and what is compared stays in memory until its end
    const size_t n_at_once = std::max<size_t>(1, length/16);
    means.assign(2*pairs.size(), 0);
    std::vector<size_t> counts(pairs.size());
    for (size_t from = 0; from < pairs.size(); from += n_at_once) {
        graph_patch::request request;
        request.skip.assign(patch.blocks.size(), false);
        request.output = graph_patch::output::none;
        request.compare.assign(pairs.begin() + from, pairs.begin() + std::min(pairs.size(), from + n_at_once));
        patch.set_request(request);
        for (size_t sequence = 0; sequence < n_sequences; sequence++) {
            control.check();
            batch.set(tokens.data() + sequence*length, patch);
            run(batch.batch);
            for (size_t i = 0; i < request.compare.size(); i++) {
                const auto read = [](const ggml_tensor * t) {
                    std::vector<float> values(ggml_nelements(t));
                    ggml_backend_tensor_get(t, values.data(), 0, ggml_nbytes(t));
                    return values;
                };
                const auto & c = patch.comparisons[i];
                const auto dot = read(c.dot), a = read(c.a), b = read(c.b), difference = read(c.difference);
                for (size_t k = 0; k < dot.size(); k++) {
                    const double norms = std::sqrt((double) a[k]*b[k]); // 0 where a token's embedding is
                    means[2*(from + i)]     += norms > 0 ? dot[k]/norms : 0;
                    means[2*(from + i) + 1] += b[k] > 0 ? std::sqrt((double) difference[k]/b[k]) : 0;
                }
                counts[from + i] += dot.size();
            }
            control.progress((double) (from*n_sequences + sequence + 1), (double) (pairs.size()*n_sequences));
        }
    }
    for (size_t i = 0; i < means.size(); i++) {
        means[i] /= (double) counts[i/2];
    }
}

void Evaluator::state::hidden(
        const token_sequences & sequences, const std::vector<bool> & skip, const task_control & control, std::vector<float> & values) {
    const auto & tokens = sequences.tokens;
    const uint32_t length = sequences.length;
    graph_patch::request request;
    request.skip   = skip;
    request.output = graph_patch::output::hidden;
    patch.set_request(request);
    sequence_batch batch(length);
    const size_t n_sequences = tokens.size()/length;
    for (size_t sequence = 0; sequence < n_sequences; sequence++) {
        control.check();
        batch.set(tokens.data() + sequence*length, patch);
        run(batch.batch);
        const size_t size = values.size();
        values.resize(size + ggml_nelements(patch.hidden));
        ggml_backend_tensor_get(patch.hidden, values.data() + size, 0, ggml_nbytes(patch.hidden));
        control.progress((double) sequence + 1, (double) n_sequences);
    }
}

namespace {

// log of the sum of exp(logits), and which is the highest
struct distribution {
    double log_sum = 0;
    size_t top     = 0;

    distribution(const float * logits, size_t n) : top(std::max_element(logits, logits + n) - logits) {
        double sum = 0;
        for (size_t i = 0; i < n; i++) {
            sum += std::exp((double) (logits[i] - logits[top]));
        }
        log_sum = logits[top] + std::log(sum);
    }
};

} // namespace

void Evaluator::state::diverge(
        const token_sequences & sequences, const std::vector<bool> & skip, state & dense, const task_control & control, std::vector<float> & values) {
    const auto & tokens = sequences.tokens;
    const uint32_t length = sequences.length;
    const size_t n_vocab     = llama_vocab_n_tokens(llama_model_get_vocab(model.get()));
    const size_t n_sequences = tokens.size()/length, n = length - 1;
    sequence_batch batch(length);
    values.resize(4*n_sequences*n);
    std::vector<float> expected(n_vocab*n), nll(n), found;

    const auto run_on = [&](state & s, const std::vector<bool> & left_out, const llama_token * first) {
        graph_patch::request request;
        request.skip   = left_out;
        request.output = graph_patch::output::logits;
        s.patch.set_request(request);
        batch.set(first, s.patch);
        s.run(batch.batch);
        s.read_nll(nll.data());
    };
    for (size_t sequence = 0; sequence < n_sequences; sequence++) {
        control.check();
        float * out = values.data() + 4*sequence*n;
        run_on(dense, std::vector<bool>(dense.patch.blocks.size()), tokens.data() + sequence*length);
        float * to = expected.data();
        for (const ggml_tensor * part : dense.patch.logits) {
            ggml_backend_tensor_get(part, to, 0, ggml_nbytes(part));
            to += ggml_nelements(part);
        }
        for (size_t i = 0; i < n; i++) {
            out[4*i] = nll[i];
        }
        run_on(*this, skip, tokens.data() + sequence*length);
        for (size_t i = 0; i < n; i++) {
            out[4*i + 1] = nll[i];
        }
        size_t first = 0;
        for (const ggml_tensor * part : patch.logits) {
            found.resize(ggml_nelements(part));
            ggml_backend_tensor_get(part, found.data(), 0, ggml_nbytes(part));
            const size_t n_rows = part->ne[1];
            const auto compare_rows = [&](size_t thread) {
                for (size_t row = thread; row < n_rows; row += n_threads) {
                    const float * p = expected.data() + (first + row)*n_vocab;
                    const float * q = found.data() + row*n_vocab;
                    const distribution dp(p, n_vocab), dq(q, n_vocab);
                    double divergence = 0;
                    for (size_t i = 0; i < n_vocab; i++) {
                        const double log_p = p[i] - dp.log_sum;
                        divergence += std::exp(log_p)*(log_p - (q[i] - dq.log_sum));
                    }
                    out[4*(first + row) + 2] = (float) (divergence < 0 ? 0 : divergence); // rounding: it is never negative
                    out[4*(first + row) + 3] = dp.top == dq.top;
                }
            };
            std::vector<std::thread> workers;
            for (int i = 1; i < n_threads; i++) {
                workers.emplace_back(compare_rows, i);
            }
            compare_rows(0);
            for (auto & worker : workers) {
                worker.join();
            }
            first += n_rows;
        }
        control.progress((double) sequence + 1, (double) n_sequences);
    }
}

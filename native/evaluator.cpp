#include "evaluator.h"

#include "async.h"
#include "model.h"

#include "ggml-backend.h"
#include "llama.h"

#include <algorithm>
#include <cmath>
#include <vector>

void Evaluator::init(Napi::Env env, Napi::Object exports) {
    Napi::Function cls = DefineClass(env, "Evaluator", {
        StaticMethod<&Evaluator::create>("create"),
        InstanceMethod<&Evaluator::blocks>("blocks"),
        InstanceMethod<&Evaluator::graph>("graph"),
        InstanceMethod<&Evaluator::evaluate>("evaluate"),
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

// create(model, { context, threads, flashAttention, cacheType: 'f16'|'f32', logitsBytes?, cancel? }): Promise<Evaluator>
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
    params.n_ctx           = s.context_size;
    params.n_batch         = s.context_size;
    params.n_ubatch        = s.context_size; // a sequence is one graph run
    params.n_threads       = options.Get("threads").As<Napi::Number>().Int32Value();
    params.n_threads_batch = params.n_threads;
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
            if (s.patch.blocks.empty()) {
                throw std::runtime_error("no blocks were found in this model's graph");
            }
        },
        [created](Napi::Env env) -> Napi::Value {
            return env.GetInstanceData<addon_data>()->evaluator.New({ Napi::External<std::shared_ptr<state>>::New(env, created.get()) });
        });
}

// blocks(): { kind: 'attn'|'ffn', layer, tensors: string[] }[], in the order of the residual stream
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
        array.Set(array.Length(), object);
    }
    return array;
}

// graph(): { nodes, cacheWrites }, the number of operations of the last evaluation, and of its writes to the KV cache
Napi::Value Evaluator::graph(const Napi::CallbackInfo & info) {
    if (!self) {
        throw Napi::Error::New(info.Env(), "the evaluator is disposed");
    }
    auto object = Napi::Object::New(info.Env());
    object.Set("nodes", self->patch.n_nodes);
    object.Set("cacheWrites", self->patch.n_cache_writes);
    return object;
}

// evaluate(tokens: Int32Array, length, skip: number[], { keepBytes?, onProgress?(sequences), cancel? }): Promise<Float32Array>
// tokens: sequences of `length` tokens, one after the other. skip: indexes into blocks().
// Result: the NLL of the tokens 1 .. length-1 of each sequence, given those before.
// keepBytes: keep the residual stream at as many boundaries as fit. Later evaluations of the same tokens start at the
// last of these that their skip set shares with this one, and give the same result.
Napi::Value Evaluator::evaluate(const Napi::CallbackInfo & info) {
    Napi::Env env = info.Env();
    if (!self) {
        throw Napi::Error::New(env, "the evaluator is disposed");
    }
    const auto     array   = info[0].As<Napi::Int32Array>();
    const uint32_t length  = info[1].As<Napi::Number>().Uint32Value();
    const auto     skip    = info[2].As<Napi::Array>();
    const auto     options = info[3].As<Napi::Object>();
    const double   keep    = options.Get("keepBytes").IsNumber() ? options.Get("keepBytes").As<Napi::Number>().DoubleValue() : 0;
    if (length < 2 || length > self->context_size || array.ElementLength() == 0 || array.ElementLength() % length != 0) {
        throw Napi::RangeError::New(env, "the tokens must be whole sequences of 2 to " + std::to_string(self->context_size) + " tokens");
    }
    const llama_token n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(self->model.get()));
    auto tokens = std::make_shared<std::vector<llama_token>>(array.Data(), array.Data() + array.ElementLength());
    for (const llama_token token : *tokens) {
        if (token < 0 || token >= n_vocab) {
            throw Napi::RangeError::New(env, "token " + std::to_string(token) + " is not in the vocabulary of " + std::to_string(n_vocab));
        }
    }
    std::vector<bool> skipped(self->patch.blocks.size());
    for (uint32_t i = 0; i < skip.Length(); i++) {
        const auto index = skip.Get(i).As<Napi::Number>().Uint32Value();
        if (index >= skipped.size()) {
            throw Napi::RangeError::New(env, "there is no block " + std::to_string(index));
        }
        skipped[index] = true;
    }
    if (self->busy.exchange(true)) {
        throw Napi::Error::New(env, "the evaluator is at work: one evaluation at a time");
    }

    auto nll = std::make_shared<std::vector<float>>();
    const auto work = [s = self, tokens, length, skipped, nll, keep](const task_control & control) {
        struct guard {
            state & s;
            ~guard() { s.control = nullptr; s.busy = false; }
        } release { *s };
        s->control = &control;
        s->evaluate(*tokens, length, skipped, keep, control, *nll);
    };
    try {
        return run_async(env, options, work, [nll](Napi::Env env) -> Napi::Value {
            auto array = Napi::Float32Array::New(env, nll->size());
            std::copy(nll->begin(), nll->end(), array.Data());
            return array;
        });
    } catch (...) {
        self->busy = false; // the work never began
        throw;
    }
}

void Evaluator::state::evaluate(
        const std::vector<llama_token> & tokens, uint32_t length, const std::vector<bool> & skip, double keep_bytes,
        const task_control & control, std::vector<float> & nll) {
    const size_t n_sequences = tokens.size()/length;
    nll.resize(n_sequences*(length - 1));

    graph_patch::request request;
    request.skip = skip;
    kept_streams keeping;
    if (keep_bytes > 0) {
        kept = {}; // frees its memory before the new ones need it
        keeping.tokens = tokens;
        keeping.length = length;
        keeping.skip   = skip;
        keeping.sequences.resize(n_sequences);
        // the boundary before the first block is the embedding: as fast to compute as to keep
        const double boundary_bytes = (double) llama_model_n_embd(model.get())*sizeof(float)*tokens.size();
        const double fit = std::floor(keep_bytes/boundary_bytes);
        keeping.stride = fit < 1 ? 0 : (size_t) std::ceil((skip.size() - 1)/fit);
        request.capture = keeping.stride;
    } else if (kept.stride > 0 && kept.tokens == tokens && kept.length == length) {
        const size_t shared = std::mismatch(skip.begin(), skip.end(), kept.skip.begin()).first - skip.begin();
        request.start = std::min(shared, skip.size() - 1)/kept.stride*kept.stride;
    }
    patch.set_request(request);

    llama_batch batch = llama_batch_init((int) length, 0, 1);
    std::unique_ptr<llama_batch, void (*)(llama_batch *)> free_batch(&batch, [](llama_batch * b) { llama_batch_free(*b); });
    batch.n_tokens = (int) length;
    for (uint32_t i = 0; i < length; i++) {
        batch.pos[i]       = (llama_pos) i;
        batch.n_seq_id[i]  = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i]    = i + 1 < length; // the last token predicts nothing that is known
    }
    for (size_t sequence = 0; sequence < n_sequences; sequence++) {
        control.check();
        const llama_token * first = tokens.data() + sequence*length;
        std::copy(first, first + length, batch.token);
        patch.targets = first + 1;
        if (request.start > 0) {
            patch.boundary = kept.sequences[sequence].at(request.start).data();
        }

        llama_memory_clear(llama_get_memory(context.get()), false);
        int status;
        {
            const computing no_exceptions;
            status = llama_decode(context.get(), batch);
            llama_synchronize(context.get());
        }
        if (status != 0) {
            control.check();
            const std::string reason = take_logged_errors();
            throw std::runtime_error("evaluation failed: " + (!patch.error.empty() ? patch.error :
                reason.empty() ? "llama_decode returned " + std::to_string(status) : reason));
        }
        float * out = nll.data() + sequence*(length - 1);
        for (const ggml_tensor * part : patch.nll) {
            ggml_backend_tensor_get(part, out, 0, ggml_nbytes(part));
            out += ggml_nelements(part);
        }
        for (const auto & [block, tensor] : patch.captured) {
            auto & stream = keeping.sequences[sequence][block];
            stream.resize(ggml_nelements(tensor));
            ggml_backend_tensor_get(tensor, stream.data(), 0, ggml_nbytes(tensor));
        }
        control.progress((double) sequence + 1, (double) n_sequences);
    }
    if (keep_bytes > 0) {
        kept = std::move(keeping);
    }
}

#include "binding/model.h"

#include "binding/async.h"
#include "engine/generate.h"
#include "engine/llama_errors.h"
#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "gguf/write.h"
#include "llama-model.h"
#include "llama.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

// The devices of these names, ended by null.
std::vector<ggml_backend_dev_t> devices_of(const std::vector<std::string> & names) {
    std::vector<ggml_backend_dev_t> devices;
    for (const auto & name : names) {
        devices.push_back(ggml_backend_dev_by_name(name.c_str()));
        if (!devices.back()) {
            throw std::runtime_error("there is no device " + name);
        }
    }
    devices.push_back(nullptr);
    return devices;
}

struct load_options {
    std::string              path;
    std::vector<std::string> gpus;       // empty: the CPU computes
    int                      gpu_layers; // -1: all
    bool                     header_only;
    bool                     check_tensors;
    bool                     repack;
    std::string              embedding_type; // of token_embd.weight; empty: unknown
};

struct loaded_model {
    std::shared_ptr<llama_model>    llama;
    std::shared_ptr<packed_weights> packed;
};

// Whether a device can look up rows of a tensor of this type.
bool looks_up_rows(ggml_backend_dev_t device, ggml_type type) {
    const ggml_context_ptr ctx(
        ggml_init({ .mem_size = 3 * ggml_tensor_overhead(), .mem_buffer = nullptr, .no_alloc = true }));
    ggml_tensor * rows   = ggml_new_tensor_2d(ctx.get(), type, 256, 2);
    ggml_tensor * tokens = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I32, 2);
    return ggml_backend_dev_supports_op(device, ggml_get_rows(ctx.get(), rows, tokens));
}

llama_model * load_model(const load_options & options, const task_control & control) {
    auto               devices = devices_of(options.gpus);
    llama_model_params params  = llama_model_default_params();
    params.devices             = devices.data();
    params.n_gpu_layers        = options.gpus.empty() ? 0 : options.gpu_layers;
    params.no_alloc            = options.header_only;
    params.check_tensors       = options.check_tensors;
    if (options.header_only) {
        params.load_mode = LLAMA_LOAD_MODE_NONE;
    }
    // llama.cpp has embeddings on the CPU, where looking up thousands of tokens and copying what is found takes longer
    // than some layers of a GPU. Where all layers are on a GPU, so are they.
    std::vector<llama_model_tensor_buft_override> places;
    if (!options.gpus.empty() && options.gpu_layers < 0 && !options.embedding_type.empty() &&
        looks_up_rows(devices[0], tensor_type_of(options.embedding_type))) {
        places = { { "^token_embd[.]weight$", ggml_backend_dev_buffer_type(devices[0]) }, { nullptr, nullptr } };
        params.tensor_buft_overrides = places.data();
    }
    params.progress_callback_user_data = const_cast<task_control *>(&control);
    params.progress_callback           = [](float done, void * data) {
        const auto & c = *static_cast<const task_control *>(data);
        c.progress(done, 1);
        return !c.cancelled();
    };
    llama_model * model = llama_model_load_from_file(options.path.c_str(), params);
    if (!model) {
        control.check();
        throw std::runtime_error(take_logged_errors("llama.cpp could not load it"));
    }
    return model;
}

// TextPiece in lib/runtime/addon.ts.
struct text_piece {
    std::string text;
    bool        add_bos;
    bool        parse_control;
};

void append_tokens(const llama_vocab * vocab, const text_piece & piece, std::vector<llama_token> & tokens) {
    if (piece.text.size() > INT32_MAX - 16) {
        throw std::runtime_error("the text is larger than 2 GiB");
    }
    const size_t before   = tokens.size();
    const auto   tokenize = [&](size_t room) {
        tokens.resize(before + room);
        return llama_tokenize(vocab, piece.text.data(), (int) piece.text.size(), tokens.data() + before, (int) room,
                              piece.add_bos, piece.parse_control);
    };
    int n = tokenize(piece.text.size() + 16);
    if (n < 0) {
        n = tokenize(-n);
    }
    if (n < 0) {
        throw std::runtime_error("the text could not be tokenised");
    }
    tokens.resize(before + n);
    if (piece.add_bos && llama_vocab_get_add_eos(vocab) && n > 0 && tokens.back() == llama_vocab_eos(vocab)) {
        // llama.cpp adds EOS with BOS. A text is never the whole of what is evaluated: endings follow contexts, and
        // sequences are cut.
        tokens.pop_back();
    }
}

std::string metadata(const llama_model * model, const char * key) {
    char buffer[256];
    return llama_model_meta_val_str(model, key, buffer, sizeof(buffer)) < 0 ? "" : buffer;
}

} // namespace

void Model::init(Napi::Env env, Napi::Object exports) {
    Napi::Function cls = DefineClass(env, "Model",
                                     {
                                         StaticMethod<&Model::load>("load"),
                                         InstanceMethod<&Model::tokenize>("tokenize"),
                                         InstanceMethod<&Model::generate>("generate"),
                                         InstanceMethod<&Model::detokenize>("detokenize"),
                                         InstanceMethod<&Model::token_texts>("tokenTexts"),
                                         InstanceMethod<&Model::special_tokens>("specialTokens"),
                                         InstanceMethod<&Model::describe>("describe"),
                                         InstanceMethod<&Model::dispose>("dispose"),
                                     });

    env.GetInstanceData<addon_data>()->model = Napi::Persistent(cls);
    exports.Set("Model", cls);
    exports.Set("canRepack", Napi::Function::New(env, [](const Napi::CallbackInfo & info) -> Napi::Value {
                    return Napi::Boolean::New(info.Env(), packed_weights::are_supported());
                }));
}

// Only load() makes models.
Model::Model(const Napi::CallbackInfo & info) : Napi::ObjectWrap<Model>(info) {
    if (info.Length() != 1 || !info[0].IsExternal()) {
        throw Napi::TypeError::New(info.Env(), "use Model.load()");
    }
    const auto & loaded = *info[0].As<Napi::External<loaded_model>>().Data();

    model          = loaded.llama;
    packed_copies  = loaded.packed;
    external_bytes = (int64_t) llama_model_size(model.get());
    Napi::MemoryManagement::AdjustExternalMemory(info.Env(), external_bytes);
}

Model::~Model() {
    if (model) {
        Napi::MemoryManagement::AdjustExternalMemory(Env(), -external_bytes);
    }
}

void Model::dispose(const Napi::CallbackInfo & info) {
    if (model) {
        model.reset();
        packed_copies.reset();
        Napi::MemoryManagement::AdjustExternalMemory(info.Env(), -external_bytes);
    }
}

const std::shared_ptr<llama_model> & Model::llama(Napi::Env env) const {
    if (!model) {
        throw Napi::Error::New(env, "the model is disposed");
    }
    return model;
}

Napi::Value Model::load(const Napi::CallbackInfo & info) {
    const auto   options   = info[1].As<Napi::Object>();
    const auto   gpus      = options.Get("gpus").As<Napi::Array>();
    const auto   layers    = options.Get("gpuLayers");
    const auto   embedding = options.Get("embeddingType");
    load_options wanted    = {
        .path           = info[0].As<Napi::String>(),
        .gpus           = {},
        .gpu_layers     = layers.IsNumber() ? layers.As<Napi::Number>().Int32Value() : -1,
        .header_only    = options.Get("headerOnly").ToBoolean(),
        .check_tensors  = options.Get("checkTensors").ToBoolean(),
        .repack         = options.Get("repack").ToBoolean(),
        .embedding_type = embedding.IsString() ? embedding.As<Napi::String>().Utf8Value() : "",
    };
    for (uint32_t i = 0; i < gpus.Length(); i++) {
        wanted.gpus.push_back(gpus.Get(i).ToString());
    }
    auto loaded = std::make_shared<loaded_model>();
    return run_async(
        info.Env(), options,
        [=](const task_control & control) {
            loaded->llama.reset(load_model(wanted, control), llama_model_free);
            if (wanted.repack) {
                loaded->packed = std::make_shared<packed_weights>();
            }
        },
        [loaded](Napi::Env env) -> Napi::Value {
            const auto model = Napi::External<loaded_model>::New(env, loaded.get());
            return env.GetInstanceData<addon_data>()->model.New({ model });
        });
}

Napi::Value Model::tokenize(const Napi::CallbackInfo & info) {
    const auto given  = info[0].As<Napi::Array>();
    auto       pieces = std::make_shared<std::vector<text_piece>>();
    for (uint32_t i = 0; i < given.Length(); i++) {
        Napi::HandleScope scope(info.Env()); // a data set has hundreds of thousands of pieces
        const auto        piece = given.Get(i).As<Napi::Object>();
        pieces->push_back({ piece.Get("text").As<Napi::String>(), piece.Get("addBos").ToBoolean(),
                            piece.Get("parseControl").ToBoolean() });
    }
    auto tokens = std::make_shared<std::vector<llama_token>>();
    return run_async(
        info.Env(), info[1],
        [m = llama(info.Env()), pieces, tokens](const task_control & control) {
            for (const auto & piece : *pieces) {
                append_tokens(llama_model_get_vocab(m.get()), piece, *tokens);
                control.check();
            }
        },
        [tokens](Napi::Env env) { return typed_array<Napi::Int32Array>(env, *tokens); });
}

Napi::Value Model::generate(const Napi::CallbackInfo & info) {
    const auto   given        = info[0].As<Napi::Array>();
    const auto   options      = info[1].As<Napi::Object>();
    const auto   number       = [&](const char * name) { return options.Get(name).As<Napi::Number>().Uint32Value(); };
    const auto & m            = llama(info.Env());
    auto         request      = std::make_shared<generate_request>();
    request->length           = number("length");
    request->seed             = number("seed");
    request->top_p            = options.Get("topP").As<Napi::Number>();
    request->n_threads        = (int) number("threads");
    request->flash_attention  = options.Get("flashAttention").ToBoolean();
    request->cache_bytes      = (size_t) options.Get("cacheBytes").As<Napi::Number>().DoubleValue();
    const llama_token n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(m.get()));
    for (uint32_t i = 0; i < given.Length(); i++) {
        Napi::HandleScope scope(info.Env());
        const auto        prompt = given.Get(i).As<Napi::Int32Array>();
        request->prompts.emplace_back(prompt.Data(), prompt.Data() + prompt.ElementLength());
        const auto & tokens = request->prompts.back();
        if (tokens.empty() || tokens.size() > request->length ||
            std::any_of(tokens.begin(), tokens.end(), [&](llama_token t) { return t < 0 || t >= n_vocab; })) {
            throw Napi::RangeError::New(info.Env(), "a prompt is empty, too long or has tokens that there aren't");
        }
    }
    auto tokens = std::make_shared<std::vector<int32_t>>();
    return run_async(
        info.Env(), options,
        [m, request, tokens](const task_control & control) { *tokens = ::generate(m, *request, control); },
        [tokens](Napi::Env env) { return typed_array<Napi::Int32Array>(env, *tokens); });
}

Napi::Value Model::detokenize(const Napi::CallbackInfo & info) {
    Napi::Env           env    = info.Env();
    const llama_vocab * vocab  = llama_model_get_vocab(llama(env).get());
    const auto          tokens = info[0].As<Napi::Int32Array>();
    const auto          write  = [&](std::string & text) {
        return llama_detokenize(vocab, tokens.Data(), (int32_t) tokens.ElementLength(), text.data(),
                                (int32_t) text.size(), false, false);
    };
    std::string   text;
    const int32_t size = write(text); // negative: how much room it needs
    text.resize(std::abs(size));
    write(text);
    return Napi::String::New(env, text);
}

Napi::Value Model::token_texts(const Napi::CallbackInfo & info) {
    Napi::Env           env   = info.Env();
    const llama_vocab * vocab = llama_model_get_vocab(llama(env).get());
    auto                texts = Napi::Array::New(env);
    for (llama_token token = 0; token < llama_vocab_n_tokens(vocab); token++) {
        Napi::HandleScope scope(env);
        const bool        is_text = (llama_vocab_get_attr(vocab, token) & LLAMA_TOKEN_ATTR_NORMAL) != 0;
        texts.Set(token, Napi::String::New(env, is_text ? llama_vocab_get_text(vocab, token) : ""));
    }
    return texts;
}

Napi::Value Model::special_tokens(const Napi::CallbackInfo & info) {
    Napi::Env           env     = info.Env();
    const llama_vocab * vocab   = llama_model_get_vocab(llama(env).get());
    const auto          text_of = [&](llama_token token) {
        return Napi::String::New(env, token == LLAMA_TOKEN_NULL ? "" : llama_vocab_get_text(vocab, token));
    };
    auto control = Napi::Array::New(env);
    for (llama_token token = 0; token < llama_vocab_n_tokens(vocab); token++) {
        // these are what llama_tokenize's parse_special turns on
        if (llama_vocab_get_attr(vocab, token) & (LLAMA_TOKEN_ATTR_CONTROL | LLAMA_TOKEN_ATTR_UNKNOWN)) {
            control.Set(control.Length(), text_of(token));
        }
    }
    auto result = Napi::Object::New(env);
    result.Set("bos", text_of(llama_vocab_bos(vocab)));
    result.Set("eos", text_of(llama_vocab_eos(vocab)));
    result.Set("control", control);
    return result;
}

Napi::Value Model::describe(const Napi::CallbackInfo & info) {
    Napi::Env           env       = info.Env();
    const llama_model * m         = llama(env).get();
    const llama_vocab * vocab     = llama_model_get_vocab(m);
    auto                windows   = Napi::Array::New(env);
    auto                recurrent = Napi::Array::New(env);
    for (uint32_t layer = 0; layer < m->hparams.n_layer(); layer++) {
        windows.Set(layer, m->hparams.is_swa(layer));
        recurrent.Set(layer, m->hparams.is_recr(layer));
    }
    const bool has_bos = llama_vocab_get_add_bos(vocab);
    auto       result  = Napi::Object::New(env);
    result.Set("architecture", metadata(m, "general.architecture"));
    result.Set("layers", llama_model_n_layer(m));
    result.Set("slidingWindow", windows);
    result.Set("recurrent", recurrent);
    // sequences can't share a recurrent state; MiniMax M3 attends to all blocks where they share a cache, and attention
    // that isn't causal looks at all tokens of a batch
    result.Set("oneAtATime", llama_model_is_recurrent(m) || llama_model_is_hybrid(m) || !m->hparams.causal_attn ||
                                 m->arch == LLM_ARCH_MINIMAX_M3);
    result.Set("embedding", llama_model_n_embd(m));
    result.Set("vocabulary", llama_vocab_n_tokens(vocab));
    result.Set("context", m->hparams.n_ctx_train); // llama_model_n_ctx_train makes it negative above 2^31
    result.Set("bos", has_bos ? Napi::Value(Napi::Number::New(env, llama_vocab_bos(vocab))) : env.Null());
    result.Set("hasEncoder", llama_model_has_encoder(m));
    result.Set("hasDecoder", llama_model_has_decoder(m));
    result.Set("isDiffusion", llama_model_is_diffusion(m));
    result.Set("hasVocabulary", llama_vocab_type(vocab) != LLAMA_VOCAB_TYPE_NONE);
    result.Set("bytes", (double) llama_model_size(m));
    result.Set("parameters", (double) llama_model_n_params(m));
    return result;
}

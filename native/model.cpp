#include "model.h"

#include "async.h"

#include "ggml-backend.h"
#include "llama-model.h"
#include "llama.h"

#include <string>
#include <vector>

namespace {

// The GPUs of these names, ended by null.
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

std::string metadata(const llama_model * model, const char * key) {
    char buffer[256];
    return llama_model_meta_val_str(model, key, buffer, sizeof(buffer)) < 0 ? "" : buffer;
}

} // namespace

void Model::init(Napi::Env env, Napi::Object exports) {
    Napi::Function cls = DefineClass(env, "Model", {
        StaticMethod<&Model::load>("load"),
        InstanceMethod<&Model::tokenize>("tokenize"),
        InstanceMethod<&Model::describe>("describe"),
        InstanceMethod<&Model::dispose>("dispose"),
    });
    env.GetInstanceData<addon_data>()->model = Napi::Persistent(cls);
    exports.Set("Model", cls);
}

// only load() makes models
Model::Model(const Napi::CallbackInfo & info) : Napi::ObjectWrap<Model>(info) {
    if (info.Length() != 1 || !info[0].IsExternal()) {
        throw Napi::TypeError::New(info.Env(), "use Model.load()");
    }
    model = *info[0].As<Napi::External<std::shared_ptr<llama_model>>>().Data();
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
        Napi::MemoryManagement::AdjustExternalMemory(info.Env(), -external_bytes);
    }
}

// load(path, { gpus: names[], gpuLayers?: number, headerOnly?, onProgress?, cancel? }): Promise<Model>; without GPUs on the
// CPU. headerOnly: no weights are read, only graphs can be built of it.
Napi::Value Model::load(const Napi::CallbackInfo & info) {
    const std::string path    = info[0].As<Napi::String>();
    const auto        options = info[1].As<Napi::Object>();
    const auto        gpus    = options.Get("gpus").As<Napi::Array>();
    const bool        header  = options.Get("headerOnly").ToBoolean();
    const int         layers  = options.Get("gpuLayers").IsNumber() ? options.Get("gpuLayers").As<Napi::Number>().Int32Value() : -1;

    std::vector<std::string> names;
    for (uint32_t i = 0; i < gpus.Length(); i++) {
        names.push_back(gpus.Get(i).ToString());
    }

    auto loaded = std::make_shared<std::shared_ptr<llama_model>>();
    return run_async(info.Env(), options,
        [=](const task_control & control) {
            auto devices = devices_of(names);
            llama_model_params params = llama_model_default_params();
            params.devices      = devices.data();
            params.n_gpu_layers = names.empty() ? 0 : layers;
            params.no_alloc     = header;
            if (header) {
                params.load_mode = LLAMA_LOAD_MODE_NONE;
            }
            params.progress_callback_user_data = const_cast<task_control *>(&control);
            params.progress_callback = [](float done, void * data) {
                const auto & c = *static_cast<const task_control *>(data);
                c.progress(done, 1);
                return !c.cancelled();
            };
            llama_model * m = llama_model_load_from_file(path.c_str(), params);
            if (!m) {
                control.check();
                const std::string reason = take_logged_errors();
                throw std::runtime_error(reason.empty() ? "llama.cpp could not load it" : reason);
            }
            loaded->reset(m, llama_model_free);
        },
        [loaded](Napi::Env env) -> Napi::Value {
            return env.GetInstanceData<addon_data>()->model.New({ Napi::External<std::shared_ptr<llama_model>>::New(env, loaded.get()) });
        });
}

// tokenize(text, { onProgress?, cancel? }): Promise<Int32Array>; BOS where the model wants it, never EOS;
// text of control tokens is text
Napi::Value Model::tokenize(const Napi::CallbackInfo & info) {
    if (!model) {
        throw Napi::Error::New(info.Env(), "the model is disposed");
    }
    auto text   = std::make_shared<std::string>(info[0].As<Napi::String>());
    auto tokens = std::make_shared<std::vector<llama_token>>();
    return run_async(info.Env(), info[1],
        [m = model, text, tokens](const task_control & control) {
            const llama_vocab * vocab = llama_model_get_vocab(m.get());
            if (text->size() > INT32_MAX - 16) {
                throw std::runtime_error("the text is larger than 2 GiB");
            }
            tokens->resize(text->size() + 16);
            int n = llama_tokenize(vocab, text->data(), (int) text->size(), tokens->data(), (int) tokens->size(), true, false);
            if (n < 0) {
                tokens->resize(-n);
                n = llama_tokenize(vocab, text->data(), (int) text->size(), tokens->data(), (int) tokens->size(), true, false);
            }
            if (n < 0) {
                throw std::runtime_error("the text could not be tokenised");
            }
            tokens->resize(n);
            if (llama_vocab_get_add_eos(vocab) && n > 0 && tokens->back() == llama_vocab_eos(vocab)) {
                tokens->pop_back(); // a text is never the whole of what is evaluated: endings follow contexts, sequences are cut
            }
            control.check();
        },
        [tokens](Napi::Env env) { return typed_array<Napi::Int32Array>(env, *tokens); });
}

Napi::Value Model::describe(const Napi::CallbackInfo & info) {
    if (!model) {
        throw Napi::Error::New(info.Env(), "the model is disposed");
    }
    const llama_model * m     = model.get();
    const llama_vocab * vocab = llama_model_get_vocab(m);
    auto result = Napi::Object::New(info.Env());
    result.Set("architecture", metadata(m, "general.architecture"));
    result.Set("layers", llama_model_n_layer(m));
    auto windows = Napi::Array::New(info.Env()), recurrent = Napi::Array::New(info.Env());
    for (uint32_t layer = 0; layer < m->hparams.n_layer(); layer++) {
        windows.Set(layer, m->hparams.is_swa(layer));
        recurrent.Set(layer, m->hparams.is_recr(layer));
    }
    result.Set("slidingWindow", windows);
    result.Set("recurrent", recurrent);
    // sequences can't share a recurrent state; MiniMax M3 attends to all blocks where they share a cache
    result.Set("hasState", llama_model_is_recurrent(m) || llama_model_is_hybrid(m) || m->arch == LLM_ARCH_MINIMAX_M3);
    result.Set("embedding", llama_model_n_embd(m));
    result.Set("vocabulary", llama_vocab_n_tokens(vocab));
    result.Set("context", llama_model_n_ctx_train(m));
    result.Set("bos", llama_vocab_get_add_bos(vocab) ? Napi::Value(Napi::Number::New(info.Env(), llama_vocab_bos(vocab))) : info.Env().Null());
    result.Set("hasEncoder", llama_model_has_encoder(m));
    result.Set("hasDecoder", llama_model_has_decoder(m));
    result.Set("bytes", (double) llama_model_size(m));
    result.Set("parameters", (double) llama_model_n_params(m));
    return result;
}

// A model that llama.cpp has loaded: weights and tokenizer. NativeModel in lib/runtime/addon.ts.
#pragma once

#include "graph/packed_products.h"

#include <napi.h>

#include <memory>

struct llama_model;

class Model : public Napi::ObjectWrap<Model> {
public:
    static void init(Napi::Env env, Napi::Object exports);

    explicit Model(const Napi::CallbackInfo & info);
    ~Model() override;

    // Throws once the model is disposed. Evaluators hold their own reference.
    const std::shared_ptr<llama_model> & llama(Napi::Env env) const;

    // Of this model; null where none are to be made.
    const std::shared_ptr<packed_weights> & packed() const { return packed_copies; }

private:
    std::shared_ptr<llama_model>    model;
    std::shared_ptr<packed_weights> packed_copies;
    int64_t                         external_bytes = 0; // what the garbage collector was told

    static Napi::Value load(const Napi::CallbackInfo & info);

    Napi::Value tokenize(const Napi::CallbackInfo & info);
    Napi::Value detokenize(const Napi::CallbackInfo & info);
    Napi::Value generate(const Napi::CallbackInfo & info);
    Napi::Value token_texts(const Napi::CallbackInfo & info);
    Napi::Value special_tokens(const Napi::CallbackInfo & info);
    Napi::Value describe(const Napi::CallbackInfo & info);
    void        dispose(const Napi::CallbackInfo & info);
};

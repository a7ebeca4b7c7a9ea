// A model that llama.cpp has loaded: weights and tokenizer.
#pragma once

#include <napi.h>

#include <memory>

struct llama_model;

class Model : public Napi::ObjectWrap<Model> {
public:
    static void init(Napi::Env env, Napi::Object exports);

    explicit Model(const Napi::CallbackInfo & info);
    ~Model() override;

    // null once disposed; evaluators hold their own reference
    std::shared_ptr<llama_model> model;

private:
    static Napi::Value load(const Napi::CallbackInfo & info);

    Napi::Value tokenize(const Napi::CallbackInfo & info);
    Napi::Value describe(const Napi::CallbackInfo & info);
    void        dispose(const Napi::CallbackInfo & info);

    int64_t external_bytes = 0; // what the garbage collector was told
};

// A patched context of a model: the negative log-likelihood of token sequences with any blocks left out.
#pragma once

#include "graph_patch.h"

#include <napi.h>

#include <atomic>
#include <memory>

struct llama_context;
struct llama_model;

class Evaluator : public Napi::ObjectWrap<Evaluator> {
public:
    static void init(Napi::Env env, Napi::Object exports);

    explicit Evaluator(const Napi::CallbackInfo & info);

private:
    // All that a running evaluation needs, so that it outlives a dispose().
    struct state {
        std::shared_ptr<llama_model>   model;
        graph_patch                    patch;
        std::shared_ptr<llama_context> context; // after patch: it is freed first
        uint32_t                       context_size = 0;
        const class task_control     * control = nullptr; // of the running evaluation
        std::atomic<bool>              busy { false };
    };
    std::shared_ptr<state> self;

    static Napi::Value create(const Napi::CallbackInfo & info);

    Napi::Value blocks(const Napi::CallbackInfo & info);
    Napi::Value evaluate(const Napi::CallbackInfo & info);
    void        dispose(const Napi::CallbackInfo & info);
};

// A patched context of a model: the negative log-likelihood of token sequences with any blocks left out.
#pragma once

#include "graph_patch.h"

#include <napi.h>

#include <atomic>
#include <map>
#include <memory>
#include <vector>

struct llama_context;
struct llama_model;

class Evaluator : public Napi::ObjectWrap<Evaluator> {
public:
    static void init(Napi::Env env, Napi::Object exports);

    explicit Evaluator(const Napi::CallbackInfo & info);

private:
    // The residual stream of one evaluation at some of its boundaries, so that others can start there.
    struct kept_streams {
        std::vector<int32_t> tokens;
        uint32_t             length = 0;
        std::vector<bool>    skip;
        size_t               stride = 0; // every stride-th boundary is kept; 0: nothing is
        std::vector<std::map<size_t, std::vector<float>>> sequences; // by block, F32 [n_embd, n_tokens]
    };

    // All that a running evaluation needs, so that it outlives a dispose().
    struct state {
        std::shared_ptr<llama_model>   model;
        graph_patch                    patch;
        std::shared_ptr<llama_context> context; // after patch: it is freed first
        uint32_t                       context_size = 0;
        kept_streams                   kept;
        const class task_control     * control = nullptr; // of the running evaluation
        std::atomic<bool>              busy { false };

        void evaluate(const std::vector<int32_t> & tokens, uint32_t length, const std::vector<bool> & skip, double keep_bytes,
            const class task_control & control, std::vector<float> & nll);
    };
    std::shared_ptr<state> self;

    static Napi::Value create(const Napi::CallbackInfo & info);

    Napi::Value blocks(const Napi::CallbackInfo & info);
    Napi::Value graph(const Napi::CallbackInfo & info);
    Napi::Value evaluate(const Napi::CallbackInfo & info);
    void        dispose(const Napi::CallbackInfo & info);
};

// Evaluations of a model. NativeEvaluator in lib/runtime/addon.ts; what is computed is the engine's.
#pragma once

#include "engine/evaluator.h"

#include <napi.h>

#include <functional>
#include <memory>
#include <utility>
#include <vector>

class Evaluator : public Napi::ObjectWrap<Evaluator> {
public:
    static void init(Napi::Env env, Napi::Object exports);

    explicit Evaluator(const Napi::CallbackInfo & info);

    // Throws once the evaluator is disposed. Running work, and kept streams, hold their own reference.
    const std::shared_ptr<evaluator> & engine(Napi::Env env) const;

private:
    std::shared_ptr<evaluator> self;

    static Napi::Value create(const Napi::CallbackInfo & info);

    Napi::Value at_once(const Napi::CallbackInfo & info);
    Napi::Value blocks(const Napi::CallbackInfo & info);
    Napi::Value graph(const Napi::CallbackInfo & info);
    Napi::Value evaluate(const Napi::CallbackInfo & info);
    Napi::Value score(const Napi::CallbackInfo & info);
    Napi::Value influence(const Napi::CallbackInfo & info);
    Napi::Value hidden(const Napi::CallbackInfo & info);
    Napi::Value diverge(const Napi::CallbackInfo & info);
    Napi::Value importance(const Napi::CallbackInfo & info);
    void        dispose(const Napi::CallbackInfo & info);
};

// Arguments, checked against the evaluator.
std::vector<int32_t> read_tokens(const evaluator & on, const Napi::Value & tokens);
token_sequences      read_sequences(const evaluator & on, const Napi::Value & tokens, const Napi::Value & length);
skip_set             read_skip_set(const evaluator & on, const Napi::Value & indexes);

// Two boundaries each, named by the block behind it.
std::vector<std::pair<size_t, size_t>> read_boundary_pairs(const evaluator & on, const Napi::Value & numbers);

// Runs work that uses evaluators, none of which may be at work.
Napi::Value run_on(Napi::Env                                       env,
                   const std::vector<std::shared_ptr<evaluator>> & used,
                   const Napi::Value &                             options,
                   std::function<void(const task_control &)>       work,
                   std::function<Napi::Value(Napi::Env)>           result);

// Throws where the evaluator is at work.
void check_idle(Napi::Env env, const evaluator & on);

// Work off the JavaScript thread: a promise for each call, progress on the way, and a way to stop it.
#pragma once

#include "engine/task.h"

#include <napi.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <vector>

// What the addon keeps for each JavaScript thread that loaded it: the constructors of its classes.
struct addon_data {
    Napi::FunctionReference model;
    Napi::FunctionReference evaluator;
};

// new Cancellation(): cancel() stops the calls that it was given to. The flag is no typed array, which JavaScript could
// set by itself: C++ has no portable way to read JavaScript's memory atomically while it is written.
class Cancellation : public Napi::ObjectWrap<Cancellation> {
public:
    static void init(Napi::Env env, Napi::Object exports);

    using Napi::ObjectWrap<Cancellation>::ObjectWrap;

    const std::shared_ptr<std::atomic<bool>> flag = std::make_shared<std::atomic<bool>>(false);

private:
    void cancel(const Napi::CallbackInfo & info);
};

// Runs work on a worker thread, then result on the JavaScript thread. options: { onProgress?, cancel? }, as NativeTask
// in lib/runtime/addon.ts says. Where work is cancelled, the promise is rejected with the code 'ABORT'. A failed
// assertion inside work rejects it too instead of ending the process; assertion_mode makes exceptions.
Napi::Promise run_async(Napi::Env                                 env,
                        const Napi::Value &                       options,
                        std::function<void(const task_control &)> work,
                        std::function<Napi::Value(Napi::Env)>     result);

// Values as a JavaScript array of their type, such as Napi::Float32Array.
template <typename Array, typename T> Napi::Value typed_array(Napi::Env env, const std::vector<T> & values) {
    auto array = Array::New(env, values.size());
    std::copy(values.begin(), values.end(), array.Data());
    return array;
}

// Work off the JavaScript thread: one promise a call, progress on the way, cancelled by a flag that JavaScript shares.
#pragma once

#include <napi.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

// What the addon keeps for each JavaScript thread that loaded it.
struct addon_data {
    Napi::FunctionReference model, evaluator; // constructors
};

// Thrown by work that saw the flag; its promise is rejected with code 'ABORT'.
struct cancelled_error : std::runtime_error {
    cancelled_error() : std::runtime_error("cancelled") {}
};

// What running work sees of its caller.
class task_control {
public:
    // ended: set on the JavaScript thread once the promise is settled
    task_control(const volatile int32_t * flag, Napi::ThreadSafeFunction * progress, std::shared_ptr<const bool> ended)
        : flag(flag), tsfn(progress), ended(std::move(ended)) {}

    bool cancelled() const { return flag && *flag != 0; }
    void check() const {
        if (cancelled()) {
            throw cancelled_error();
        }
    }

    // done, total: in whatever unit the work counts (bytes, sequences)
    void progress(double done, double total) const;

private:
    const volatile int32_t    * flag;
    Napi::ThreadSafeFunction  * tsfn;
    std::shared_ptr<const bool> ended;
};

// Runs work on a worker thread, then result on the JavaScript thread. options: { onProgress?(done, total), cancel?: Int32Array }.
// A failed GGML_ASSERT inside work rejects the promise instead of ending the process; see computing.
Napi::Promise run_async(
        Napi::Env env,
        const Napi::Value & options,
        std::function<void(const task_control &)> work,
        std::function<Napi::Value(Napi::Env)> result);

// Values as a JavaScript array of their type, such as Napi::Float32Array.
template <typename Array, typename T>
Napi::Value typed_array(Napi::Env env, const std::vector<T> & values) {
    auto array = Array::New(env, values.size());
    std::copy(values.begin(), values.end(), array.Data());
    return array;
}

// While it lives, a failed assertion ends the process again: an exception must not leave an operation whose other
// threads wait for this one.
struct computing {
    computing();
    ~computing();
};

// Errors that llama.cpp logged on this thread since the last call: it returns null and logs the reason.
std::string take_logged_errors();

// Sends the logs of llama.cpp and ggml there, and makes failed assertions throw on worker threads.
void install_error_handlers();

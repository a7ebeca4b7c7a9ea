#include "binding/async.h"

#include "engine/llama_errors.h"

#include <stdexcept>
#include <utility>

namespace {

class worker : public Napi::AsyncWorker, private task_control {
public:
    worker(Napi::Env                                 env,
           const Napi::Value &                       options,
           std::function<void(const task_control &)> work,
           std::function<Napi::Value(Napi::Env)>     result) :
        Napi::AsyncWorker(env),
        deferred(Napi::Promise::Deferred::New(env)),
        work(std::move(work)),
        result(std::move(result)) {
        if (!options.IsObject()) {
            return;
        }
        const auto object     = options.As<Napi::Object>();
        const auto cancel     = object.Get("cancel");
        const auto onProgress = object.Get("onProgress");
        if (cancel.IsObject()) {
            flag = Cancellation::Unwrap(cancel.As<Napi::Object>())->flag;
        }
        if (onProgress.IsFunction()) {
            has_progress = true;
            tsfn         = Napi::ThreadSafeFunction::New(env, onProgress.As<Napi::Function>(), "progress", 0, 1);
        }
    }

    Napi::Promise promise() const { return deferred.Promise(); }

protected:
    void Execute() override {
        take_logged_errors(); // those that earlier work left on this thread
        try {
            const assertion_mode mode(assertion_mode::throw_error);
            work(*this);
        } catch (const cancelled_error & e) {
            was_cancelled = true;
            SetError(e.what());
        } catch (const std::exception & e) {
            SetError(e.what());
        }
        if (has_progress) {
            tsfn.Release();
        }
    }

    void OnOK() override {
        *ended = true;
        Napi::HandleScope scope(Env());
        try {
            deferred.Resolve(result(Env()));
        } catch (const Napi::Error & e) {
            deferred.Reject(e.Value());
        } catch (const std::exception & e) {
            deferred.Reject(Napi::Error::New(Env(), e.what()).Value());
        }
    }

    void OnError(const Napi::Error & error) override {
        *ended = true;
        Napi::HandleScope scope(Env());
        if (was_cancelled) {
            error.Set("code", Napi::String::New(Env(), "ABORT"));
        }
        deferred.Reject(error.Value());
    }

private:
    Napi::Promise::Deferred                   deferred;
    std::function<void(const task_control &)> work;
    std::function<Napi::Value(Napi::Env)>     result;
    std::shared_ptr<std::atomic<bool>>        flag;
    Napi::ThreadSafeFunction                  tsfn;
    bool                                      has_progress  = false;
    bool                                      was_cancelled = false;

    // Whether the promise is settled. Only the JavaScript thread reads and writes it.
    std::shared_ptr<bool> ended = std::make_shared<bool>(false);

    bool cancelled() const override { return flag && *flag; }

    void progress(double done, double total) const override {
        if (!has_progress) {
            return;
        }
        // the queue of these calls is not the one of settled promises: a late call would come after its promise
        tsfn.NonBlockingCall([done, total, ended = ended](Napi::Env env, Napi::Function callback) {
            if (!*ended) {
                callback.Call({ Napi::Number::New(env, done), Napi::Number::New(env, total) });
            }
        });
    }
};

} // namespace

void Cancellation::init(Napi::Env env, Napi::Object exports) {
    exports.Set("Cancellation", DefineClass(env, "Cancellation", { InstanceMethod<&Cancellation::cancel>("cancel") }));
}

void Cancellation::cancel(const Napi::CallbackInfo &) {
    *flag = true;
}

Napi::Promise run_async(Napi::Env                                 env,
                        const Napi::Value &                       options,
                        std::function<void(const task_control &)> work,
                        std::function<Napi::Value(Napi::Env)>     result) {
    auto * w = new worker(env, options, std::move(work), std::move(result));
    w->Queue(); // deletes itself when it is done
    return w->promise();
}

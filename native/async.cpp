#include "async.h"

#include "ggml.h"
#include "llama.h"

#include <cstdio>

namespace {

thread_local bool        on_worker = false;
thread_local std::string logged_errors;

void on_log(ggml_log_level level, const char * text, void *) {
    if (level == GGML_LOG_LEVEL_ERROR && logged_errors.size() < 4096) {
        logged_errors += text;
    }
}

void on_ggml_abort(const char * message) {
    if (on_worker) {
        throw std::runtime_error(std::string("llama.cpp gave up: ") + message);
    }
    fprintf(stderr, "%s\n", message);
}

class worker : public Napi::AsyncWorker {
public:
    worker(Napi::Env env, const Napi::Value & options, std::function<void(const task_control &)> work, std::function<Napi::Value(Napi::Env)> result)
        : Napi::AsyncWorker(env), deferred(Napi::Promise::Deferred::New(env)), work(std::move(work)), result(std::move(result)) {
        if (!options.IsObject()) {
            return;
        }
        const auto object = options.As<Napi::Object>();
        if (object.Get("cancel").IsTypedArray()) {
            const auto array = object.Get("cancel").As<Napi::Int32Array>();
            flag       = array.Data();
            flag_owner = Napi::Persistent(object.Get("cancel").As<Napi::Object>());
        }
        if (object.Get("onProgress").IsFunction()) {
            tsfn = Napi::ThreadSafeFunction::New(env, object.Get("onProgress").As<Napi::Function>(), "progress", 0, 1);
            has_progress = true;
        }
    }

    Napi::Promise promise() const { return deferred.Promise(); }

protected:
    void Execute() override {
        on_worker = true;
        take_logged_errors();
        try {
            work(task_control(flag, has_progress ? &tsfn : nullptr, ended));
        } catch (const cancelled_error & e) {
            cancelled = true;
            SetError(e.what());
        } catch (const std::exception & e) {
            SetError(e.what());
        }
        on_worker = false;
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
        if (cancelled) {
            error.Set("code", Napi::String::New(Env(), "ABORT"));
        }
        deferred.Reject(error.Value());
    }

private:
    Napi::Promise::Deferred                     deferred;
    std::function<void(const task_control &)>   work;
    std::function<Napi::Value(Napi::Env)>       result;
    Napi::ThreadSafeFunction                    tsfn;
    bool                                        has_progress = false;
    bool                                        cancelled    = false;
    std::shared_ptr<bool>                       ended        = std::make_shared<bool>(false);
    const volatile int32_t                    * flag         = nullptr;
    Napi::ObjectReference                       flag_owner;
};

} // namespace

void task_control::progress(double done, double total) const {
    if (tsfn) {
        // the queue of these calls is not the one of settled promises: a late call would come after its promise
        tsfn->NonBlockingCall([done, total, ended = ended](Napi::Env env, Napi::Function callback) {
            if (!*ended) {
                callback.Call({ Napi::Number::New(env, done), Napi::Number::New(env, total) });
            }
        });
    }
}

Napi::Promise run_async(
        Napi::Env env,
        const Napi::Value & options,
        std::function<void(const task_control &)> work,
        std::function<Napi::Value(Napi::Env)> result) {
    auto * w = new worker(env, options, std::move(work), std::move(result));
    w->Queue(); // deletes itself when it is done
    return w->promise();
}

computing::computing() {
    on_worker = false;
}

computing::~computing() {
    on_worker = true;
}

std::string take_logged_errors() {
    std::string text = std::move(logged_errors);
    logged_errors.clear();
    while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) {
        text.pop_back();
    }
    return text;
}

void install_error_handlers() {
    llama_log_set(on_log, nullptr);
    ggml_set_abort_callback(on_ggml_abort);
}

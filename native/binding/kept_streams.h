// The residual streams that a search keeps. NativeKeptStreams in lib/runtime/addon.ts; the cache itself is the
// engine's.
#pragma once

#include "engine/kept_streams.h"

#include <napi.h>

#include <memory>

class KeptStreams : public Napi::ObjectWrap<KeptStreams> {
public:
    static void init(Napi::Env env, Napi::Object exports);

    explicit KeptStreams(const Napi::CallbackInfo & info);

private:
    std::shared_ptr<kept_streams> self; // null once disposed; running work holds its own reference

    kept_streams & engine(Napi::Env env) const;

    Napi::Value room(const Napi::CallbackInfo & info);
    Napi::Value work(const Napi::CallbackInfo & info);
    Napi::Value put_in_linear(const Napi::CallbackInfo & info);
    Napi::Value evaluate(const Napi::CallbackInfo & info);
    void        remove(const Napi::CallbackInfo & info);
    void        dispose(const Napi::CallbackInfo & info);
};

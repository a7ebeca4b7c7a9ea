// A walk that fits a repair, one matrix after the other. NativeRepair in lib/runtime/addon.ts; what is fitted is the
// engine's.
#pragma once

#include "engine/repair.h"

#include <napi.h>

#include <memory>

class Repair : public Napi::ObjectWrap<Repair> {
public:
    static void init(Napi::Env env, Napi::Object exports);

    explicit Repair(const Napi::CallbackInfo & info);

private:
    std::shared_ptr<repair_walk> self; // null once disposed; running work holds its own reference

    Napi::Value next(const Napi::CallbackInfo & info);
    void        dispose(const Napi::CallbackInfo & info);
};

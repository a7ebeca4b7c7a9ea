// What the addon exports. lib/runtime/addon.ts types and describes it.
#include "binding/async.h"
#include "binding/evaluator.h"
#include "binding/file_lock.h"
#include "binding/gguf.h"
#include "binding/kept_streams.h"
#include "binding/model.h"
#include "binding/repair.h"
#include "engine/device_trial.h"
#include "engine/llama_errors.h"
#include "ggml-backend.h"
#include "llama.h"

#include <napi.h>

#include <stdexcept>
#include <string>
#include <vector>
#ifdef _WIN32
#define NOMINMAX
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace {

// Keeps the addon in the process. Node.js unloads it when the last worker thread that loaded it ends, and ggml with it,
// which leaves its handlers behind and aborts when it is loaded again.
void stay_loaded() {
    static const char here = 0;
#ifdef _WIN32
    HMODULE module;
    GetModuleHandleExA(GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_PIN, &here, &module);
#else
    Dl_info info;
    if (dladdr(&here, &info) != 0) {
        dlopen(info.dli_fname, RTLD_NOW | RTLD_NODELETE);
    }
#endif
}

// A ggml that was built from source has its backends compiled in, and must not meet the prebuilt ones.
void load_backends([[maybe_unused]] const Napi::CallbackInfo & info) {
#ifdef GGML_BACKEND_DL
    ggml_backend_load_all_from_path(info[0].As<Napi::String>().Utf8Value().c_str());
#endif
}

// Returns why it can't be loaded, or nothing.
Napi::Value load_backend(const Napi::CallbackInfo & info) {
#ifdef GGML_BACKEND_DL
    take_logged_errors();
    if (!ggml_backend_load(info[0].As<Napi::String>().Utf8Value().c_str())) {
        return Napi::String::New(info.Env(), take_logged_errors("it can't be loaded"));
    }
#endif
    return info.Env().Undefined();
}

// What the RPC backend gives by its names; null where it isn't loaded.
void * rpc_function([[maybe_unused]] const char * name) {
#ifdef GGML_BACKEND_DL
    if (const auto rpc = ggml_backend_reg_by_name("RPC")) {
        return ggml_backend_reg_get_proc_address(rpc, name);
    }
#endif
    return nullptr;
}

// Returns why it can't be added, or nothing.
Napi::Value add_rpc_server(const Napi::CallbackInfo & info) {
    using add_server    = ggml_backend_reg_t (*)(const char *);
    const auto endpoint = info[0].As<Napi::String>().Utf8Value();
    const auto add      = (add_server) rpc_function("ggml_backend_rpc_add_server");
    const auto server   = add ? add(endpoint.c_str()) : nullptr;
    if (!server) {
        return Napi::String::New(info.Env(), endpoint + (add ? " has no devices" : ": there is no RPC backend"));
    }
    ggml_backend_register(server); // once: what is registered already stays as it is
    return info.Env().Undefined();
}

Napi::Value serve_rpc(const Napi::CallbackInfo & info) {
    using start_server = void (*)(const char *, const char *, size_t, size_t, ggml_backend_dev_t *);
    const auto                      endpoint = info[0].As<Napi::String>().Utf8Value();
    const auto                      threads  = info[1].As<Napi::Number>().Uint32Value();
    const auto                      names    = info[2].As<Napi::Array>();
    std::vector<ggml_backend_dev_t> served;
    for (uint32_t i = 0; i < names.Length(); i++) {
        served.push_back(ggml_backend_dev_by_name(names.Get(i).As<Napi::String>().Utf8Value().c_str()));
    }
    return run_async(
        info.Env(), info[3],
        [=](const task_control &) mutable {
            const assertion_mode threads_are_at_work(assertion_mode::end_process);
            const auto           start = (start_server) rpc_function("ggml_backend_rpc_start_server");
            if (!start) {
                throw std::runtime_error("there is no RPC backend");
            }
            start(endpoint.c_str(), nullptr, threads, served.size(), served.data());
            throw std::runtime_error("can't serve at " + endpoint); // it returns only where it fails
        },
        [](Napi::Env env) { return env.Undefined(); });
}

Napi::Value devices(const Napi::CallbackInfo & info) {
    auto array = Napi::Array::New(info.Env());
    for (size_t i = 0; i < ggml_backend_dev_count(); i++) {
        ggml_backend_dev_t dev  = ggml_backend_dev_get(i);
        const auto         type = ggml_backend_dev_type(dev);
        size_t             free = 0, total = 0;
        ggml_backend_dev_memory(dev, &free, &total);
        auto object = Napi::Object::New(info.Env());
        object.Set("name", ggml_backend_dev_name(dev));
        object.Set("description", ggml_backend_dev_description(dev));
        object.Set("backend", ggml_backend_reg_name(ggml_backend_dev_backend_reg(dev)));
        object.Set("gpu", type == GGML_BACKEND_DEVICE_TYPE_GPU || type == GGML_BACKEND_DEVICE_TYPE_IGPU);
        object.Set("memoryFree", (double) free);
        object.Set("memoryTotal", (double) total);
        array.Set(array.Length(), object);
    }
    return array;
}

Napi::Value try_device_of(const Napi::CallbackInfo & info) {
    const auto name   = info[0].As<Napi::String>().Utf8Value();
    const auto device = ggml_backend_dev_by_name(name.c_str());
    return run_async(
        info.Env(), info[1],
        [=](const task_control &) {
            const assertion_mode threads_are_at_work(assertion_mode::end_process);
            if (!device) {
                throw std::runtime_error("there is no device " + name);
            }
            try_device(device);
        },
        [](Napi::Env env) { return env.Undefined(); });
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
    stay_loaded();
    install_error_handlers();
    env.SetInstanceData(new addon_data);
    llama_backend_init();
    exports.Set("loadBackends", Napi::Function::New(env, load_backends));
    exports.Set("loadBackend", Napi::Function::New(env, load_backend));
    exports.Set("addRpcServer", Napi::Function::New(env, add_rpc_server));
    exports.Set("serveRpc", Napi::Function::New(env, serve_rpc));
    exports.Set("devices", Napi::Function::New(env, devices));
    exports.Set("tryDevice", Napi::Function::New(env, try_device_of));
    exports.Set("lockFile", Napi::Function::New(env, binding::lock_file));
    exports.Set("readGguf", Napi::Function::New(env, binding::read_gguf));
    exports.Set("writeGguf", Napi::Function::New(env, binding::write_gguf));
    exports.Set("namesFound", Napi::Function::New(env, binding::names_found));
    exports.Set("quantizeGguf", Napi::Function::New(env, binding::quantize_gguf));
    Cancellation::init(env, exports);
    Model::init(env, exports);
    Evaluator::init(env, exports);
    KeptStreams::init(env, exports);
    Repair::init(env, exports);
    return exports;
}

} // namespace

NODE_API_MODULE(blockpruner, init)

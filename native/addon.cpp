// The addon's exports; lib/addon.ts types them.

#include "async.h"
#include "evaluator.h"
#include "gguf_file.h"
#include "model.h"

#include "ggml-backend.h"
#include "llama.h"

#include <napi.h>

namespace {

// loadBackends(folder): the best CPU backend for this computer and the folder's GPU backends.
// A ggml that was built from source has its backends compiled in, and must not meet the prebuilt ones.
void load_backends([[maybe_unused]] const Napi::CallbackInfo & info) {
#ifdef GGML_BACKEND_DL
    ggml_backend_load_all_from_path(info[0].As<Napi::String>().Utf8Value().c_str());
#endif
}

// loadBackend(file): this backend alone; without effect where it can't be loaded, for instance without its driver
void load_backend([[maybe_unused]] const Napi::CallbackInfo & info) {
#ifdef GGML_BACKEND_DL
    ggml_backend_load(info[0].As<Napi::String>().Utf8Value().c_str());
#endif
}

// devices(): { name, description, backend, gpu, memoryFree, memoryTotal }[], memory in bytes
Napi::Value devices(const Napi::CallbackInfo & info) {
    auto array = Napi::Array::New(info.Env());
    for (size_t i = 0; i < ggml_backend_dev_count(); i++) {
        ggml_backend_dev_t dev = ggml_backend_dev_get(i);
        const auto type = ggml_backend_dev_type(dev);
        size_t free = 0, total = 0;
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

Napi::Object init(Napi::Env env, Napi::Object exports) {
    install_error_handlers();
    env.SetInstanceData(new addon_data);
    llama_backend_init();
    exports.Set("loadBackends", Napi::Function::New(env, load_backends));
    exports.Set("loadBackend", Napi::Function::New(env, load_backend));
    exports.Set("devices", Napi::Function::New(env, devices));
    exports.Set("readGguf", Napi::Function::New(env, read_gguf));
    exports.Set("writeGguf", Napi::Function::New(env, write_gguf));
    exports.Set("quantize", Napi::Function::New(env, quantize));
    Model::init(env, exports);
    Evaluator::init(env, exports);
    return exports;
}

} // namespace

NODE_API_MODULE(blockpruner, init)

#include "engine/threads.h"

#include "ggml-backend.h"

#include <thread>
#include <vector>

std::shared_ptr<ggml_threadpool> make_threads(int count) {
    ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    ggml_backend_reg_t reg = cpu ? ggml_backend_dev_backend_reg(cpu) : nullptr;
    if (!reg) {
        return nullptr;
    }
    // the CPU backend is a library that is chosen at run time
    using new_function  = ggml_threadpool * (*) (ggml_threadpool_params *);
    using free_function = void (*)(ggml_threadpool *);
    const auto make     = (new_function) ggml_backend_reg_get_proc_address(reg, "ggml_threadpool_new");
    const auto end      = (free_function) ggml_backend_reg_get_proc_address(reg, "ggml_threadpool_free");
    if (!make || !end) {
        return nullptr;
    }
    ggml_threadpool_params params = ggml_threadpool_params_default(count);
    return { make(&params), [end](ggml_threadpool * threads) {
                if (threads) {
                    end(threads);
                }
            } };
}

void on_threads(int count, const std::function<void(size_t thread)> & work) {
    std::vector<std::thread> others;
    for (int i = 1; i < count; i++) {
        others.emplace_back(work, i);
    }
    work(0);
    for (auto & thread : others) {
        thread.join();
    }
}

#include "engine/threads.h"

#include "ggml-backend.h"

#include <algorithm>
#include <cmath>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#ifdef _WIN32
#include <windows.h>
#else
#include <ctime>
#endif

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
    params.poll                   = 1; // some milliseconds of spinning for the next graph; then they sleep
    return { make(&params), [end](ggml_threadpool * threads) {
                if (threads) {
                    end(threads);
                }
            } };
}

void thread_choice::learn(double run_wall, double run_cpu) {
    constexpr double judged   = 0.05; // seconds: shorter runs say little
    constexpr double lost     = 0.3;  // of a core: less is measuring error
    constexpr double patience = 20;   // a trial costs at most a twentieth of the time, and is not made every second
    wall += run_wall;
    cpu += run_cpu;
    until -= run_wall;
    if (chosen < most && !is_trial && until <= 0) {
        is_trial = true;
        chosen   = most;
        wall = cpu = 0;
        return;
    }
    if (wall < judged) {
        return;
    }
    const double cores = cpu / wall;
    if (chosen > 1 && cores < chosen - lost) {
        chosen = std::clamp((int) std::floor(cores + 0.25), 1, chosen - 1);
        until  = std::max(1.0, patience * wall);
    }
    is_trial = false;
    wall = cpu = 0;
}

namespace {

// The CPU time of this process, in seconds.
double process_cpu_seconds() {
#ifdef _WIN32
    FILETIME created, ended, kernel, user;
    GetProcessTimes(GetCurrentProcess(), &created, &ended, &kernel, &user);
    const auto ticks = [](const FILETIME & t) { return ((uint64_t) t.dwHighDateTime << 32) | t.dwLowDateTime; };
    return (double) (ticks(kernel) + ticks(user)) * 1e-7;
#else
    timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double) t.tv_sec + (double) t.tv_nsec * 1e-9;
#endif
}

// The thread-seconds of all runs of this process so far. change: how many more threads run from now on
double thread_seconds(int change) {
    static std::mutex                            access;
    static int                                   running = 0;
    static double                                total   = 0;
    static std::chrono::steady_clock::time_point changed;

    const std::lock_guard lock(access);
    const auto            now = std::chrono::steady_clock::now();
    total += running * std::chrono::duration<double>(now - changed).count();
    running += change;
    changed = now;
    return total;
}

} // namespace

run_meter::run_meter(int n_threads) :
    n_threads(n_threads),
    started(std::chrono::steady_clock::now()),
    cpu(process_cpu_seconds()),
    wanted(thread_seconds(n_threads)) {}

run_meter::~run_meter() {
    thread_seconds(-n_threads);
}

run_meter::seconds run_meter::stop() {
    const int    n          = std::exchange(n_threads, 0);
    const double got        = process_cpu_seconds() - cpu;
    const double all_wanted = thread_seconds(-n) - wanted;
    const double wall       = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
    return { wall, all_wanted > 0 ? got / all_wanted * n * wall : 0 };
}

void on_threads(int count, const std::function<void(size_t thread)> & work) {
    std::vector<std::exception_ptr> thrown(count);
    const auto                      try_work = [&](size_t thread) {
        try {
            work(thread);
        } catch (...) {
            thrown[thread] = std::current_exception();
        }
    };
    std::vector<std::thread> others;
    for (int i = 1; i < count; i++) {
        others.emplace_back(try_work, i);
    }
    try_work(0);
    for (auto & thread : others) {
        thread.join();
    }
    for (const auto & exception : thrown) {
        if (exception) {
            std::rethrow_exception(exception);
        }
    }
}

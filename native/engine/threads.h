// Threads of the CPU: those on which graphs are computed, and others.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

struct ggml_threadpool;

// Threads that live on between graphs: those that ggml makes anew for each graph often begin on a busy core, which cost
// up to 40 % of the time of short evaluations. Null where the CPU backend has none.
std::shared_ptr<ggml_threadpool> make_threads(int count);

// Does work on so many threads, this one among them, and waits for all of it. thread: 0 … count − 1
void on_threads(int count, const std::function<void(size_t thread)> & work);

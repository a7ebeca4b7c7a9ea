// Threads on which graphs are computed.
#pragma once

#include <memory>

struct ggml_threadpool;

// Threads that live on between graphs: those that ggml makes anew for each graph often begin on a busy core, which cost
// up to 40 % of the time of short evaluations. Null where the CPU backend has none.
std::shared_ptr<ggml_threadpool> make_threads(int count);

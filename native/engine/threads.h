// Threads of the CPU: those on which graphs are computed, and others.
#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>

struct ggml_threadpool;

// Threads that live on between graphs: those that ggml makes anew for each graph often begin on a busy core, which cost
// up to 40 % of the time of short evaluations. Null where the CPU backend has none.
std::shared_ptr<ggml_threadpool> make_threads(int count);

// Of how many threads graphs are computed. ggml's threads wait for each other at every operation, spinning: one that has
// to share its core with another program slows all of them down, and fewer are faster then. How much of its cores the
// process got tells: threads that spin use all that they are given.
class thread_choice {
public:
    explicit thread_choice(int most) : most(most), chosen(most) {}

    int now() const { return chosen; }

    // Learns from a run of so many threads: the seconds that it took, and the process's CPU seconds meanwhile.
    void learn(double wall, double cpu);

private:
    const int most;
    int       chosen;
    double    wall     = 0; // of the runs that are judged together
    double    cpu      = 0;
    double    until    = 0;     // seconds of runs until all threads are tried again
    bool      is_trial = false; // all are being tried
};

// What the threads of a run got of the CPU, told from what the whole process got: others that run meanwhile spin as they
// do, and so get as much of each second.
class run_meter {
public:
    explicit run_meter(int n_threads); // the run begins
    ~run_meter();

    run_meter(const run_meter &)             = delete;
    run_meter & operator=(const run_meter &) = delete;

    struct seconds {
        double wall, cpu;
    };

    // The run ends. The CPU seconds of its threads, the real ones meanwhile.
    seconds stop();

private:
    int                                         n_threads; // 0: it has ended
    const std::chrono::steady_clock::time_point started;
    const double                                cpu;
    const double                                wanted;
};

// Does work on so many threads, this one among them, and waits for all of it. What one of them throws is thrown then.
// thread: 0 … count − 1
void on_threads(int count, const std::function<void(size_t thread)> & work);

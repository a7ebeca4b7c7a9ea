// What running work sees of its caller: whether it shall go on, and who hears of its progress.
#pragma once

#include <stdexcept>

// Thrown by work that was cancelled.
struct cancelled_error : std::runtime_error {
    cancelled_error() : std::runtime_error("cancelled") {}
};

class task_control {
public:
    virtual ~task_control() = default;

    // Other threads may set it at any time.
    virtual bool cancelled() const = 0;

    // done, total: in whatever unit the work counts, such as bytes or sequences
    virtual void progress(double done, double total) const = 0;

    void check() const {
        if (cancelled()) {
            throw cancelled_error();
        }
    }
};

// What llama.cpp says when it fails. It logs a reason and returns null, or fails an assertion and ends the process.
#pragma once

#include <functional>
#include <string>

// Keeps llama.cpp's and ggml's logs for take_logged_errors(), and lets assertion_mode decide about failed assertions.
void install_error_handlers();

// The errors that were logged on this thread since the last call.
// otherwise: what is returned where there are none
std::string take_logged_errors(const std::string & otherwise = "");

// Hears what llama.cpp logs on this thread, errors aside, for as long as this lives. What `hears` throws goes through the
// function of llama.cpp that logs.
class log_listener {
public:
    explicit log_listener(std::function<void(const char *)> hears);
    ~log_listener();

    log_listener(const log_listener &)             = delete;
    log_listener & operator=(const log_listener &) = delete;

private:
    const std::function<void(const char *)> hears;
};

// What a failed GGML_ASSERT on this thread does for as long as this lives. Without one, it ends the process.
class assertion_mode {
public:
    enum mode {
        end_process, // the only way out of an operation whose other threads wait for this one
        throw_error, // a std::runtime_error
    };

    explicit assertion_mode(mode m);
    ~assertion_mode();

    assertion_mode(const assertion_mode &)             = delete;
    assertion_mode & operator=(const assertion_mode &) = delete;

private:
    const mode previous;
};

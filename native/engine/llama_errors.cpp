#include "engine/llama_errors.h"

#include "ggml.h"
#include "llama.h"

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <stdexcept>
#include <utility>
#ifndef _WIN32
#include <unistd.h>
#endif

namespace {

constexpr size_t MOST_LOGGED = 4096; // bytes

thread_local assertion_mode::mode on_failed_assertion = assertion_mode::end_process;
thread_local std::string          logged_errors;

thread_local const std::function<void(const char *)> * listener = nullptr;

void on_log(ggml_log_level level, const char * text, void *) {
    if (level == GGML_LOG_LEVEL_ERROR) {
        if (logged_errors.size() < MOST_LOGGED) {
            logged_errors += text;
        }
    } else if (listener) {
        (*listener)(text);
    }
}

void on_ggml_abort(const char * message) {
    if (on_failed_assertion == assertion_mode::throw_error) {
        throw std::runtime_error(std::string("llama.cpp gave up: ") + message);
    }
    // one line, with what the backend said before it gave up, such as what CUDA calls the error
    std::string reason = take_logged_errors("");
    std::replace(reason.begin(), reason.end(), '\n', ' ');
    fprintf(stderr, "llama.cpp gave up: %s%s%s\n", reason.c_str(), reason.empty() ? "" : "; ", message);
}

#ifndef _WIN32
// Weights are read from the model's file as they are needed. Where that is no longer possible, the system ends the
// process: what can be done is to say why.
void on_bus_error(int signal) {
    constexpr char              message[] = "the model's file became shorter while it was used, or its disk failed\n";
    [[maybe_unused]] const auto written   = write(STDERR_FILENO, message, sizeof(message) - 1);
    std::signal(signal, SIG_DFL); // it is raised again where it came from
}

void explain_bus_errors() {
    struct sigaction before{};
    if (sigaction(SIGBUS, nullptr, &before) == 0 && before.sa_handler == SIG_DFL) {
        std::signal(SIGBUS, on_bus_error);
    }
}
#else
void explain_bus_errors() {}
#endif

} // namespace

void install_error_handlers() {
    llama_log_set(on_log, nullptr);
    ggml_set_abort_callback(on_ggml_abort);
    explain_bus_errors();
}

std::string take_logged_errors(const std::string & otherwise) {
    std::string text = std::move(logged_errors);
    logged_errors.clear();
    while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) {
        text.pop_back();
    }
    return text.empty() ? otherwise : text;
}

log_listener::log_listener(std::function<void(const char *)> hears) : hears(std::move(hears)) {
    listener = &this->hears;
}

log_listener::~log_listener() {
    listener = nullptr;
}

assertion_mode::assertion_mode(mode m) : previous(on_failed_assertion) {
    on_failed_assertion = m;
}

assertion_mode::~assertion_mode() {
    on_failed_assertion = previous;
}

#include "engine/stream_walk.h"

#include "engine/device_tensor.h"
#include "engine/llama_errors.h"
#include "engine/threads.h"
#include "llama-model.h"

#include <atomic>
#include <mutex>
#include <stdexcept>
#include <utility>

stream_walk::stream_walk(evaluator & on, const token_sequences & sequences, skip_set skip) :
    on(&on),
    sequences(&sequences),
    skip(std::move(skip)) {}

void stream_walk::share(std::vector<std::shared_ptr<evaluator>> evaluators) {
    others = std::move(evaluators);
    starts_of_others.assign(others.size(), nullptr);
}

stream_walk stream_walk::fork(skip_set other) const {
    stream_walk forked = *this;
    forked.skip        = std::move(other);
    return forked;
}

stream_walk::step stream_walk::compute(size_t sequence, size_t to, bool with_inner, const task_control & control) {
    return compute_on(*on, start, sequence, to, with_inner, control);
}

stream_walk::step stream_walk::compute_on(evaluator &          computes,
                                          start_tensor &       from,
                                          size_t               sequence,
                                          size_t               to,
                                          bool                 with_inner,
                                          const task_control & control) const {
    control.check();
    graph_request request = request_from_here(from, sequence);
    request.capture       = { to };
    if (with_inner) {
        request.inner = { at };
    }
    const graph_outputs & outputs =
        computes.run_sequence(std::move(request), sequences->sequence(sequence), sequences->length, control);
    const ggml_tensor * stream = outputs.captured.at(to);
    step                computed;
    computed.stream = values_of(stream);
    computed.memory = ggml_backend_buffer_get_type(stream->buffer);
    if (with_inner) {
        computed.inner   = values_of(outputs.inner.at(at));
        computed.n_inner = outputs.inner.at(at)->ne[0];
        for (const auto & [_, projected] : outputs.projected) {
            computed.projected = values_of(projected);
        }
    }
    return computed;
}

std::vector<float> stream_walk::entry(size_t sequence, const task_control & control) {
    control.check();
    graph_request request = request_from_here(start, sequence);
    request.entry         = { at };
    const graph_outputs & outputs =
        on->run_sequence(std::move(request), sequences->sequence(sequence), sequences->length, control);
    return values_of(outputs.entry.at(at));
}

// A request that computes nothing yet.
graph_request stream_walk::request_from_here(start_tensor & from, size_t sequence) const {
    graph_request request;
    request.skip   = skip;
    request.inputs = input_changes;
    request.output = graph_request::output_kind::none;
    if (!values.empty() && at > 0) {
        put_on_device(values[sequence], from);
        request.start    = at;
        request.boundary = from;
    }
    return request;
}

void stream_walk::advance(size_t to, const task_control & control, const std::function<void()> & counted) {
    if (!values.empty() && to == at) {
        return;
    }
    std::vector<std::vector<float>> next(sequences->count());
    std::atomic<size_t>             n_begun{ 0 };
    std::mutex                      counting;
    ggml_backend_buffer_type_t      memory = nullptr;

    const auto compute_some = [&](evaluator & computes, start_tensor & from) {
        for (size_t i = n_begun++; i < next.size(); i = n_begun++) {
            step                  computed = compute_on(computes, from, i, to, false, control);
            const std::lock_guard lock(counting);
            next[i] = std::move(computed.stream);
            memory  = computed.memory;
            counted();
        }
    };
    if (others.empty()) {
        compute_some(*on, start);
    } else {
        on_threads((int) others.size(), [&](size_t thread) {
            const assertion_mode mode(assertion_mode::throw_error);
            compute_some(*others[thread], starts_of_others[thread]);
        });
    }
    values      = std::move(next);
    buffer_type = memory;
    at          = to;
}

void stream_walk::put_on_device(const std::vector<float> & stream, start_tensor & to) const {
    const int64_t n_embd   = on->model->hparams.n_embd;
    const auto    n_tokens = (int64_t) stream.size() / n_embd;
    if (!to || to->ne[1] != n_tokens || ggml_backend_buffer_get_type(to->buffer) != buffer_type) {
        const auto made = std::make_shared<device_tensor>(new_device_tensor(buffer_type, n_embd, n_tokens));
        if (!made->tensor) {
            throw std::runtime_error("there is no memory on the device for a sequence's residual stream");
        }
        to = { made, made->tensor };
    }
    ggml_backend_tensor_set(to.get(), stream.data(), 0, ggml_nbytes(to.get()));
}

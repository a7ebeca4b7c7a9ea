#include "engine/stream_walk.h"

#include "engine/device_tensor.h"
#include "llama-model.h"

#include <stdexcept>
#include <utility>

stream_walk::stream_walk(evaluator & on, const token_sequences & sequences, skip_set skip) :
    on(&on),
    sequences(&sequences),
    skip(std::move(skip)) {}

stream_walk stream_walk::fork(skip_set other) const {
    stream_walk forked = *this;
    forked.skip        = std::move(other);
    return forked;
}

stream_walk::step stream_walk::compute(size_t sequence, size_t to, bool with_inner, const task_control & control) {
    control.check();
    graph_request request = request_from_here(sequence);
    request.capture       = { to };
    if (with_inner) {
        request.inner = { at };
    }
    const graph_outputs & outputs =
        on->run_sequence(std::move(request), sequences->sequence(sequence), sequences->length, control);
    const ggml_tensor * stream = outputs.captured.at(to);
    buffer_type                = ggml_backend_buffer_get_type(stream->buffer);
    step computed;
    computed.stream = values_of(stream);
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
    graph_request request = request_from_here(sequence);
    request.entry         = { at };
    const graph_outputs & outputs =
        on->run_sequence(std::move(request), sequences->sequence(sequence), sequences->length, control);
    return values_of(outputs.entry.at(at));
}

// A request that computes nothing yet.
graph_request stream_walk::request_from_here(size_t sequence) {
    graph_request request;
    request.skip   = skip;
    request.inputs = input_changes;
    request.output = graph_request::output_kind::none;
    if (!values.empty() && at > 0) {
        request.start    = at;
        request.boundary = put_on_device(values[sequence]);
    }
    return request;
}

void stream_walk::advance(size_t to, const task_control & control, const std::function<void()> & counted) {
    if (!values.empty() && to == at) {
        return;
    }
    std::vector<std::vector<float>> next(sequences->count());
    for (size_t i = 0; i < next.size(); i++) {
        next[i] = compute(i, to, false, control).stream;
        counted();
    }
    values = std::move(next);
    at     = to;
}

std::shared_ptr<ggml_tensor> stream_walk::put_on_device(const std::vector<float> & stream) {
    const int64_t n_embd   = on->model->hparams.n_embd;
    const auto    n_tokens = (int64_t) stream.size() / n_embd;
    if (!start || start->ne[1] != n_tokens || ggml_backend_buffer_get_type(start->buffer) != buffer_type) {
        const auto made = std::make_shared<device_tensor>(new_device_tensor(buffer_type, n_embd, n_tokens));
        if (!made->tensor) {
            throw std::runtime_error("there is no memory on the device for a sequence's residual stream");
        }
        start = { made, made->tensor };
    }
    ggml_backend_tensor_set(start.get(), stream.data(), 0, ggml_nbytes(start.get()));
    return start;
}

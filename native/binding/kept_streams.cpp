#include "binding/kept_streams.h"

#include "binding/async.h"
#include "binding/evaluator.h"

#include <string>

namespace {

removal read_removal(const evaluator & on, const Napi::Value & skip, const Napi::Value & empty) {
    return { .skip = read_skip_set(on, skip), .empty = read_skip_set(on, empty) };
}

} // namespace

void KeptStreams::init(Napi::Env env, Napi::Object exports) {
    exports.Set("KeptStreams", DefineClass(env, "KeptStreams",
                                           {
                                               InstanceAccessor<&KeptStreams::room>("room"),
                                               InstanceAccessor<&KeptStreams::work>("work"),
                                               InstanceMethod<&KeptStreams::put_in_linear>("putInLinear"),
                                               InstanceMethod<&KeptStreams::evaluate>("evaluate"),
                                               InstanceMethod<&KeptStreams::remove>("remove"),
                                               InstanceMethod<&KeptStreams::dispose>("dispose"),
                                           }));
}

KeptStreams::KeptStreams(const Napi::CallbackInfo & info) : Napi::ObjectWrap<KeptStreams>(info) {
    const auto   on         = Evaluator::Unwrap(info[0].As<Napi::Object>())->engine(info.Env());
    const double keep_bytes = info[3].As<Napi::Number>().DoubleValue();

    self = std::make_shared<kept_streams>(on, read_sequences(*on, info[1], info[2]), keep_bytes);
}

kept_streams & KeptStreams::engine(Napi::Env env) const {
    if (!self) {
        throw Napi::Error::New(env, "the kept streams are disposed");
    }
    return *self;
}

void KeptStreams::dispose(const Napi::CallbackInfo &) {
    self.reset();
}

Napi::Value KeptStreams::room(const Napi::CallbackInfo & info) {
    return Napi::Number::New(info.Env(), (double) engine(info.Env()).room);
}

Napi::Value KeptStreams::work(const Napi::CallbackInfo & info) {
    const kept_streams & streams = engine(info.Env());
    auto                 object  = Napi::Object::New(info.Env());
    object.Set("blocks", (double) streams.n_computed());
    object.Set("keptBytes", (double) streams.n_kept_bytes());
    return object;
}

Napi::Value KeptStreams::put_in_linear(const Napi::CallbackInfo & info) {
    const auto on        = engine(info.Env()).on;
    const auto sequences = std::make_shared<token_sequences>(read_sequences(*on, info[0], info[1]));
    return run_on(
        info.Env(), { on }, info[2],
        [=, s = self](const task_control & control) {
            s->put_in(std::make_unique<gap_fits>(*on, *sequences, control));
        },
        [](Napi::Env env) { return env.Undefined(); });
}

Napi::Value KeptStreams::evaluate(const Napi::CallbackInfo & info) {
    const kept_streams & streams = engine(info.Env());
    const removal        gone    = read_removal(*streams.on, info[0], info[1]);
    const auto           numbers = info[2].As<Napi::Uint32Array>();
    const bool           may_win = info[3].ToBoolean();
    std::vector<size_t>  sequences;
    for (size_t i = 0; i < numbers.ElementLength(); i++) {
        if (numbers[i] >= streams.calibration.count()) {
            throw Napi::RangeError::New(info.Env(), "there is no sequence " + std::to_string(numbers[i]));
        }
        sequences.push_back(numbers[i]);
    }
    auto nll = std::make_shared<std::vector<float>>();
    return run_on(
        info.Env(), { streams.on }, info[4],
        [=, s = self](const task_control & control) { *nll = s->evaluate(gone, sequences, may_win, control); },
        [nll](Napi::Env env) { return typed_array<Napi::Float32Array>(env, *nll); });
}

void KeptStreams::remove(const Napi::CallbackInfo & info) {
    kept_streams & streams = engine(info.Env());
    check_idle(info.Env(), *streams.on);
    streams.remove(read_removal(*streams.on, info[0], info[1]));
}

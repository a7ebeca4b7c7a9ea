#include "binding/repair.h"

#include "binding/async.h"
#include "binding/evaluator.h"

#include <optional>
#include <string>
#include <utility>

namespace {

repair_request read_request(const evaluator & on, const Napi::Value & gaps, const Napi::Object & options) {
    const auto number_of = [&](const char * name, double otherwise) {
        const Napi::Value value = options.Get(name);
        return value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : otherwise;
    };
    repair_request request;
    request.gaps      = read_boundary_pairs(on, gaps);
    const auto linear = options.Get("linear").As<Napi::Array>();
    for (uint32_t i = 0; i < linear.Length(); i++) {
        request.linear.push_back(linear.Get(i).ToBoolean());
    }
    const auto refit     = options.Get("refit").ToString().Utf8Value();
    request.refit        = refit == "all"      ? repair_request::refit_kind::all :
                           refit == "adjacent" ? repair_request::refit_kind::adjacent :
                                                 repair_request::refit_kind::none;
    request.linear_ridge = number_of("linearRidge", request.linear_ridge);
    request.correction   = number_of("correction", request.correction);
    request.refit_ridge  = number_of("refitRidge", request.refit_ridge);
    return request;
}

// What an earlier walk found at the place that comes next, if it did.
std::optional<fitted_matrix> read_known(const Napi::Value & value) {
    if (!value.IsObject()) {
        return std::nullopt;
    }
    const auto floats_of = [object = value.As<Napi::Object>()](const char * name) {
        const auto array = object.Get(name).As<Napi::Float32Array>();
        return std::vector<float>(array.Data(), array.Data() + array.ElementLength());
    };
    fitted_matrix known;
    known.values     = floats_of("values");
    known.importance = floats_of("importance");
    return known;
}

Napi::Value matrix_object(Napi::Env env, fitted_matrix & found) {
    auto changes = Napi::Array::New(env);
    for (auto & [tensor, change] : found.changes) {
        auto one = Napi::Object::New(env);
        one.Set("tensor", tensor);
        one.Set("change", typed_array<Napi::Float32Array>(env, change));
        changes.Set(changes.Length(), one);
        change = {}; // so that there are no two copies of all
    }
    auto object = Napi::Object::New(env);
    object.Set("linear", found.linear);
    object.Set("values", typed_array<Napi::Float32Array>(env, found.values));
    object.Set("importance", typed_array<Napi::Float32Array>(env, found.importance));
    object.Set("changes", changes);
    return object;
}

} // namespace

void Repair::init(Napi::Env env, Napi::Object exports) {
    exports.Set("Repair",
                DefineClass(env, "Repair",
                            { InstanceMethod<&Repair::next>("next"), InstanceMethod<&Repair::dispose>("dispose") }));
}

Repair::Repair(const Napi::CallbackInfo & info) : Napi::ObjectWrap<Repair>(info) {
    const auto on      = Evaluator::Unwrap(info[0].As<Napi::Object>())->engine(info.Env());
    auto       request = read_request(*on, info[3], info[4].As<Napi::Object>());
    try {
        self = std::make_shared<repair_walk>(on, read_sequences(*on, info[1], info[2]), std::move(request));
    } catch (const std::runtime_error & e) {
        throw Napi::Error::New(info.Env(), e.what());
    }
}

void Repair::dispose(const Napi::CallbackInfo &) {
    self.reset();
}

Napi::Value Repair::next(const Napi::CallbackInfo & info) {
    if (!self) {
        throw Napi::Error::New(info.Env(), "the repair is disposed");
    }
    const auto known = std::make_shared<std::optional<fitted_matrix>>(read_known(info[0]));
    const auto found = std::make_shared<std::optional<fitted_matrix>>();
    return run_on(
        info.Env(), { self->on }, info[1],
        [=, walk = self](const task_control & control) { *found = walk->next(*known ? &**known : nullptr, control); },
        [found](Napi::Env env) { return *found ? matrix_object(env, **found) : env.Null(); });
}

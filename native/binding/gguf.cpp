#include "binding/gguf.h"

#include "binding/async.h"
#include "engine/importance.h"
#include "gguf/quantize.h"
#include "gguf/read.h"
#include "gguf/write.h"

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace {

constexpr size_t LONGEST_ARRAY = 4096; // of those that are handed to JavaScript

Napi::Value number_or_boolean(Napi::Env env, gguf_type type, const void * data) {
    const double value = gguf_scalar(type, data);
    return type == GGUF_TYPE_BOOL ? Napi::Value(Napi::Boolean::New(env, value != 0)) :
                                    Napi::Value(Napi::Number::New(env, value));
}

// Undefined for long arrays, such as the vocabulary.
Napi::Value metadata_value_of(Napi::Env env, const gguf_context * file, int64_t id) {
    const gguf_type type = gguf_get_kv_type(file, id);
    if (type == GGUF_TYPE_STRING) {
        return Napi::String::New(env, gguf_get_val_str(file, id));
    }
    if (type != GGUF_TYPE_ARRAY) {
        return number_or_boolean(env, type, gguf_get_val_data(file, id));
    }
    const gguf_type element = gguf_get_arr_type(file, id);
    const size_t    n       = gguf_get_arr_n(file, id);
    if (n > LONGEST_ARRAY) {
        return env.Undefined();
    }
    auto array = Napi::Array::New(env, n);
    if (element == GGUF_TYPE_STRING) {
        for (size_t i = 0; i < n; i++) {
            array.Set((uint32_t) i, gguf_get_arr_str(file, id, i));
        }
        return array;
    }
    const char * data = static_cast<const char *>(gguf_get_arr_data(file, id));
    for (size_t i = 0; i < n; i++) {
        array.Set((uint32_t) i, number_or_boolean(env, element, data + i * gguf_scalar_size(element)));
    }
    return array;
}

Napi::Array shape_of(Napi::Env env, const gguf_context * file, int64_t tensor) {
    const int64_t * ne     = gguf_get_tensor_ne(file, tensor);
    int             n_dims = GGML_MAX_DIMS;
    while (n_dims > 1 && ne[n_dims - 1] == 1) {
        n_dims--;
    }
    auto shape = Napi::Array::New(env);
    for (int i = 0; i < n_dims; i++) {
        shape.Set(i, (double) ne[i]);
    }
    return shape;
}

Napi::Object header_of(Napi::Env env, const gguf_context * file) {
    auto metadata = Napi::Object::New(env);
    for (int64_t i = 0; i < gguf_get_n_kv(file); i++) {
        metadata.Set(gguf_get_key(file, i), metadata_value_of(env, file, i));
    }
    auto   tensors = Napi::Array::New(env);
    size_t end     = gguf_get_data_offset(file);
    for (int64_t i = 0; i < gguf_get_n_tensors(file); i++) {
        const size_t bytes  = gguf_get_tensor_size(file, i);
        auto         tensor = Napi::Object::New(env);
        tensor.Set("name", gguf_get_tensor_name(file, i));
        tensor.Set("type", ggml_type_name(gguf_get_tensor_type(file, i)));
        tensor.Set("shape", shape_of(env, file, i));
        tensor.Set("bytes", (double) bytes);
        tensors.Set(tensors.Length(), tensor);
        end = std::max(end, gguf_get_data_offset(file) + gguf_get_tensor_offset(file, i) + bytes);
    }
    auto result = Napi::Object::New(env);
    result.Set("metadata", metadata);
    result.Set("tensors", tensors);
    result.Set("end", (double) end);
    return result;
}

// Reads each element of an array.
template <typename Read> auto read_each(const Napi::Value & value, Read read) {
    const auto array = value.As<Napi::Array>();
    using element    = decltype(read(Napi::Value()));
    std::vector<element> result;
    for (uint32_t i = 0; i < array.Length(); i++) {
        result.push_back(read(array.Get(i)));
    }
    return result;
}

std::string read_string(const Napi::Value & value) {
    return value.ToString();
}

int64_t read_integer(const Napi::Value & value) {
    return value.ToNumber().Int64Value();
}

tensor_reference read_reference(const Napi::Object & object) {
    return { .file = (int) read_integer(object.Get("file")), .name = read_string(object.Get("name")) };
}

summand read_summand(const Napi::Value & value) {
    const auto object = value.As<Napi::Object>();
    return { .tensor = read_reference(object), .weight = object.Get("weight").ToNumber().FloatValue() };
}

// The values of a Float32Array; none where there is no such array.
std::vector<float> read_floats(const Napi::Value & value) {
    if (!value.IsTypedArray()) {
        return {};
    }
    const auto values = value.As<Napi::Float32Array>();
    return { values.Data(), values.Data() + values.ElementLength() };
}

row_source read_row_source(const Napi::Value & value) {
    const auto object = value.As<Napi::Object>();
    row_source source;
    source.tensor = read_reference(object);
    if (object.Get("sumType").IsString()) {
        source.sum_type = tensor_type_of(read_string(object.Get("sumType")));
    }
    if (object.Get("sum").IsArray()) {
        source.sum = read_each(object.Get("sum"), read_summand);
    }
    source.change     = read_floats(object.Get("change"));
    source.importance = read_floats(object.Get("importance"));
    return source;
}

planned_tensor read_tensor(const Napi::Value & value) {
    const auto     object = value.As<Napi::Object>();
    planned_tensor tensor;
    tensor.name = read_string(object.Get("name"));
    if (object.Has("from")) {
        tensor.from      = read_each(object.Get("from"), read_row_source);
        tensor.rope_head = object.Get("ropeHead").IsNumber() ? read_integer(object.Get("ropeHead")) : 0;
        return tensor;
    }
    tensor.type  = tensor_type_of(read_string(object.Get("type")));
    tensor.shape = read_each(object.Get("shape"), read_integer);
    if (object.Get("data").IsTypedArray()) {
        const auto data = object.Get("data").As<Napi::Float32Array>();
        tensor.data.assign(data.Data(), data.Data() + data.ElementLength());
    }
    return tensor;
}

metadata_value read_metadata_value(const Napi::Value & value) {
    const auto     object = value.As<Napi::Object>();
    metadata_value read   = {
        .key     = read_string(object.Get("key")),
        .type    = read_string(object.Get("type")),
        .strings = {},
        .numbers = {},
    };
    const auto add = [&](const Napi::Value & one) {
        if (one.IsString()) {
            read.strings.push_back(read_string(one));
        } else {
            read.numbers.push_back(one.ToNumber().DoubleValue());
        }
        return one;
    };
    if (object.Get("value").IsArray()) {
        read_each(object.Get("value"), add);
    } else {
        add(object.Get("value"));
    }
    return read;
}

std::pair<std::string, std::string> read_renaming(const Napi::Value & value) {
    const auto names = read_each(value, read_string);
    return { names.at(0), names.at(1) };
}

std::pair<std::string, std::vector<uint32_t>> read_selection(const Napi::Value & value) {
    const auto        pair       = value.As<Napi::Array>();
    const Napi::Value indexes    = pair.Get(1u);
    const auto        read_index = [](const Napi::Value & index) { return index.ToNumber().Uint32Value(); };
    return { read_string(pair.Get(0u)), read_each(indexes, read_index) };
}

// How much columns matter, by the tensor's name.
std::pair<std::string, std::vector<float>> read_importance(const Napi::Value & value) {
    const auto              object = value.As<Napi::Object>();
    const tensor_importance read   = {
        .tensor = read_string(object.Get("tensor")),
        .sums   = read_floats(object.Get("sums")),
        .counts = read_floats(object.Get("counts")),
    };
    return { read.tensor, mean_squares_of(read) };
}

std::pair<std::string, ggml_type> read_tensor_type(const Napi::Value & value) {
    const auto names = read_each(value, read_string);
    return { names.at(0), tensor_type_of(names.at(1)) };
}

gguf_plan read_plan(const Napi::Object & object) {
    return {
        .output      = read_string(object.Get("output")),
        .sources     = read_each(object.Get("sources"), read_string),
        .remove      = read_each(object.Get("remove"), read_string),
        .rename      = read_each(object.Get("rename"), read_renaming),
        .select      = read_each(object.Get("select"), read_selection),
        .set         = read_each(object.Get("set"), read_metadata_value),
        .tensors     = read_each(object.Get("tensors"), read_tensor),
        .header_only = object.Get("headerOnly").ToBoolean(),
    };
}

} // namespace

Napi::Value binding::read_gguf(const Napi::CallbackInfo & info) {
    const std::string path = info[0].As<Napi::String>();
    auto              file = std::make_shared<gguf_ptr>(nullptr, gguf_free);
    return run_async(
        info.Env(), info[1], [path, file](const task_control &) { *file = open_gguf(path); },
        [file](Napi::Env env) -> Napi::Value { return header_of(env, file->get()); });
}

Napi::Value binding::write_gguf(const Napi::CallbackInfo & info) {
    auto plan = std::make_shared<gguf_plan>();
    try {
        *plan = read_plan(info[0].As<Napi::Object>());
    } catch (const Napi::Error &) {
        throw;
    } catch (const std::exception & e) { // of an unknown tensor type, or a pair that is none
        throw Napi::Error::New(info.Env(), e.what());
    }
    return run_async(
        info.Env(), info[1], [plan](const task_control & control) { ::write_gguf(*plan, control); },
        [](Napi::Env env) -> Napi::Value { return env.Undefined(); });
}

Napi::Value binding::names_found(const Napi::CallbackInfo & info) {
    try {
        auto found = Napi::Array::New(info.Env());
        for (const auto & name : ::names_found(read_string(info[0]), read_each(info[1], read_string))) {
            found.Set(found.Length(), name);
        }
        return found;
    } catch (const std::exception & e) { // of a pattern that is none
        throw Napi::Error::New(info.Env(), e.what());
    }
}

Napi::Value binding::quantize_gguf(const Napi::CallbackInfo & info) {
    const auto options = info[2].As<Napi::Object>();
    auto       request = std::make_shared<quantize_request>();
    request->input     = info[0].As<Napi::String>();
    request->output    = info[1].As<Napi::String>();
    request->type      = options.Get("type").As<Napi::String>();
    request->n_threads = options.Get("threads").As<Napi::Number>();
    try {
        if (options.Get("importance").IsArray()) {
            request->importance = read_each(options.Get("importance"), read_importance);
        }
        if (options.Get("tensorTypes").IsArray()) {
            request->tensor_types = read_each(options.Get("tensorTypes"), read_tensor_type);
        }
    } catch (const Napi::Error &) {
        throw;
    } catch (const std::exception & e) { // of an unknown tensor type
        throw Napi::Error::New(info.Env(), e.what());
    }
    return run_async(
        info.Env(), options, [request](const task_control & control) { ::quantize_gguf(*request, control); },
        [](Napi::Env env) -> Napi::Value { return env.Undefined(); });
}

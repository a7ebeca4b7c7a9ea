#include "gguf_file.h"

#include "async.h"

#include "ggml.h"
#include "gguf.h"
#include "llama.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace {

constexpr size_t COPY_BUFFER = 8*1024*1024;

using gguf_ptr = std::unique_ptr<gguf_context, decltype(&gguf_free)>;
using ggml_ptr = std::unique_ptr<ggml_context, decltype(&ggml_free)>;

gguf_ptr open_gguf(const std::string & path) {
    gguf_ptr file(gguf_init_from_file(path.c_str(), { /*.no_alloc =*/ true, /*.ctx =*/ nullptr }), gguf_free);
    if (!file) {
        const std::string reason = take_logged_errors();
        throw std::runtime_error("not a readable GGUF file: " + (reason.empty() ? path : reason));
    }
    return file;
}

size_t scalar_size(gguf_type type) {
    switch (type) {
        case GGUF_TYPE_UINT8:  case GGUF_TYPE_INT8:  case GGUF_TYPE_BOOL:    return 1;
        case GGUF_TYPE_UINT16: case GGUF_TYPE_INT16:                         return 2;
        case GGUF_TYPE_UINT32: case GGUF_TYPE_INT32: case GGUF_TYPE_FLOAT32: return 4;
        default:                                                             return 8;
    }
}

double scalar(gguf_type type, const void * data) {
    const auto as = [data](auto zero) { memcpy(&zero, data, sizeof(zero)); return (double) zero; };
    switch (type) {
        case GGUF_TYPE_UINT8:   return as(uint8_t());
        case GGUF_TYPE_INT8:    return as(int8_t());
        case GGUF_TYPE_BOOL:    return as(int8_t());
        case GGUF_TYPE_UINT16:  return as(uint16_t());
        case GGUF_TYPE_INT16:   return as(int16_t());
        case GGUF_TYPE_UINT32:  return as(uint32_t());
        case GGUF_TYPE_INT32:   return as(int32_t());
        case GGUF_TYPE_FLOAT32: return as(float());
        case GGUF_TYPE_UINT64:  return as(uint64_t());
        case GGUF_TYPE_INT64:   return as(int64_t());
        case GGUF_TYPE_FLOAT64: return as(double());
        default:                return 0;
    }
}

// A value for JavaScript; long arrays and arrays of strings (the vocabulary) are left out, as undefined.
Napi::Value metadata_value(Napi::Env env, const gguf_context * file, int64_t id) {
    const gguf_type type = gguf_get_kv_type(file, id);
    if (type == GGUF_TYPE_STRING) {
        return Napi::String::New(env, gguf_get_val_str(file, id));
    }
    if (type != GGUF_TYPE_ARRAY) {
        const double value = scalar(type, gguf_get_val_data(file, id));
        return type == GGUF_TYPE_BOOL ? Napi::Value(Napi::Boolean::New(env, value != 0)) : Napi::Value(Napi::Number::New(env, value));
    }
    const gguf_type element = gguf_get_arr_type(file, id);
    const size_t    n       = gguf_get_arr_n(file, id);
    if (element == GGUF_TYPE_STRING || n > 4096) {
        return env.Undefined();
    }
    auto array = Napi::Array::New(env, n);
    const char * data = static_cast<const char *>(gguf_get_arr_data(file, id));
    for (size_t i = 0; i < n; i++) {
        const double value = scalar(element, data + i*scalar_size(element));
        array.Set((uint32_t) i, element == GGUF_TYPE_BOOL ? Napi::Value(Napi::Boolean::New(env, value != 0)) : Napi::Value(Napi::Number::New(env, value)));
    }
    return array;
}

void rename_key(gguf_context * file, const std::string & from, const std::string & to) {
    const int64_t   id   = gguf_find_key(file, from.c_str());
    const gguf_type type = gguf_get_kv_type(file, id);
    if (type == GGUF_TYPE_STRING) {
        const std::string value = gguf_get_val_str(file, id);
        gguf_set_val_str(file, to.c_str(), value.c_str());
    } else if (type == GGUF_TYPE_ARRAY && gguf_get_arr_type(file, id) == GGUF_TYPE_STRING) {
        std::vector<std::string>  values;
        std::vector<const char *> pointers;
        for (size_t i = 0; i < gguf_get_arr_n(file, id); i++) {
            values.push_back(gguf_get_arr_str(file, id, i));
        }
        for (const auto & value : values) {
            pointers.push_back(value.c_str());
        }
        gguf_set_arr_str(file, to.c_str(), pointers.data(), pointers.size());
    } else if (type == GGUF_TYPE_ARRAY) {
        const gguf_type element = gguf_get_arr_type(file, id);
        const size_t    n       = gguf_get_arr_n(file, id);
        const char    * data    = static_cast<const char *>(gguf_get_arr_data(file, id));
        const std::vector<char> copy(data, data + n*scalar_size(element)); // the new key may move the old one's memory
        gguf_set_arr_data(file, to.c_str(), element, copy.data(), n);
    } else {
        char value[8];
        memcpy(value, gguf_get_val_data(file, id), scalar_size(type));
        switch (type) {
            case GGUF_TYPE_UINT8:   gguf_set_val_u8  (file, to.c_str(), *reinterpret_cast<uint8_t  *>(value)); break;
            case GGUF_TYPE_INT8:    gguf_set_val_i8  (file, to.c_str(), *reinterpret_cast<int8_t   *>(value)); break;
            case GGUF_TYPE_BOOL:    gguf_set_val_bool(file, to.c_str(), value[0] != 0);                        break;
            case GGUF_TYPE_UINT16:  gguf_set_val_u16 (file, to.c_str(), (uint16_t) scalar(type, value));       break;
            case GGUF_TYPE_INT16:   gguf_set_val_i16 (file, to.c_str(), (int16_t)  scalar(type, value));       break;
            case GGUF_TYPE_UINT32:  gguf_set_val_u32 (file, to.c_str(), (uint32_t) scalar(type, value));       break;
            case GGUF_TYPE_INT32:   gguf_set_val_i32 (file, to.c_str(), (int32_t)  scalar(type, value));       break;
            case GGUF_TYPE_FLOAT32: gguf_set_val_f32 (file, to.c_str(), (float)    scalar(type, value));       break;
            case GGUF_TYPE_FLOAT64: gguf_set_val_f64 (file, to.c_str(), scalar(type, value));                  break;
            case GGUF_TYPE_UINT64: { uint64_t v; memcpy(&v, value, 8); gguf_set_val_u64(file, to.c_str(), v); } break;
            case GGUF_TYPE_INT64:  { int64_t  v; memcpy(&v, value, 8); gguf_set_val_i64(file, to.c_str(), v); } break;
            default: throw std::runtime_error("key " + from + " has an unknown type");
        }
    }
    gguf_remove_key(file, from.c_str());
}

// Keeps some values of an array, in the order given.
void select_values(gguf_context * file, const std::string & key, const std::vector<uint32_t> & indexes) {
    const int64_t id = gguf_find_key(file, key.c_str());
    if (id < 0 || gguf_get_kv_type(file, id) != GGUF_TYPE_ARRAY || gguf_get_arr_type(file, id) == GGUF_TYPE_STRING) {
        throw std::runtime_error("key " + key + " is no array of numbers");
    }
    const gguf_type type = gguf_get_arr_type(file, id);
    const size_t    size = scalar_size(type);
    const char    * data = static_cast<const char *>(gguf_get_arr_data(file, id));
    std::vector<char> values;
    for (const uint32_t index : indexes) {
        if (index >= gguf_get_arr_n(file, id)) {
            throw std::runtime_error("key " + key + " has no value " + std::to_string(index));
        }
        values.insert(values.end(), data + index*size, data + (index + 1)*size);
    }
    gguf_set_arr_data(file, key.c_str(), type, values.data(), indexes.size());
}

ggml_type type_by_name(const std::string & name) {
    for (int type = 0; type < GGML_TYPE_COUNT; type++) {
        if (ggml_type_name((ggml_type) type) && name == ggml_type_name((ggml_type) type)) {
            return (ggml_type) type;
        }
    }
    throw std::runtime_error("unknown tensor type '" + name + "'");
}

// A metadata value to set: { key, type, value }; type is one of set()'s, with [] for arrays
struct new_value {
    std::string              key, type;
    std::vector<std::string> strings;
    std::vector<double>      numbers;

    explicit new_value(const Napi::Object & object) : key(object.Get("key").ToString()), type(object.Get("type").ToString()) {
        const auto add = [this](const Napi::Value & value) {
            if (value.IsString()) {
                strings.push_back(value.As<Napi::String>());
            } else {
                numbers.push_back(value.ToNumber().DoubleValue());
            }
        };
        const Napi::Value value = object.Get("value");
        if (value.IsArray()) {
            const auto array = value.As<Napi::Array>();
            for (uint32_t i = 0; i < array.Length(); i++) {
                add(array.Get(i));
            }
        } else {
            add(value);
        }
    }

    void set(gguf_context * file) const {
        const char * k = key.c_str();
        const std::vector<uint32_t> u32(numbers.begin(), numbers.end());
        const std::vector<int8_t>   bools(numbers.begin(), numbers.end());
        std::vector<const char *> pointers;
        for (const auto & text : strings) {
            pointers.push_back(text.c_str());
        }
        if      (type == "string")   gguf_set_val_str (file, k, strings.at(0).c_str());
        else if (type == "u16")      gguf_set_val_u16 (file, k, (uint16_t) numbers.at(0));
        else if (type == "i32")      gguf_set_val_i32 (file, k, (int32_t) numbers.at(0));
        else if (type == "u32")      gguf_set_val_u32 (file, k, u32.at(0));
        else if (type == "f32")      gguf_set_val_f32 (file, k, (float) numbers.at(0));
        else if (type == "f64")      gguf_set_val_f64 (file, k, numbers.at(0));
        else if (type == "bool")     gguf_set_val_bool(file, k, numbers.at(0) != 0);
        else if (type == "u32[]")    gguf_set_arr_data(file, k, GGUF_TYPE_UINT32,  u32.data(), u32.size());
        else if (type == "bool[]")   gguf_set_arr_data(file, k, GGUF_TYPE_BOOL,    bools.data(), bools.size());
        else if (type == "string[]") gguf_set_arr_str (file, k, pointers.data(), pointers.size());
        else throw std::runtime_error("unknown metadata type '" + type + "'");
    }
};

// A tensor of a source.
struct source_tensor {
    int         file; // index of the source
    std::string name; // there

    explicit source_tensor(const Napi::Object & object) : file(object.Get("file").As<Napi::Number>()), name(object.Get("name").ToString()) {}
};

// One of several tensors of a shape that are added, times weight.
struct summand : source_tensor {
    float weight;

    explicit summand(const Napi::Object & object) : source_tensor(object), weight(object.Get("weight").As<Napi::Number>()) {}
};

// What a tensor's rows come from: a tensor's values, or in its type and shape a sum { file, name, sum: { file, name, weight }[] }.
struct source_rows : source_tensor {
    std::vector<summand> sum; // empty: its own values

    explicit source_rows(const Napi::Object & object) : source_tensor(object) {
        if (object.Get("sum").IsArray()) {
            const auto summands = object.Get("sum").As<Napi::Array>();
            for (uint32_t i = 0; i < summands.Length(); i++) {
                sum.emplace_back(Napi::Value(summands.Get(i)).As<Napi::Object>());
            }
        }
    }
};

// A tensor to write: a copy { name, from: { file, name, sum? }[], ropeHead? }, of several with their rows one after the other, or
// values { name, type, shape, data?: Float32Array }.
struct new_tensor {
    std::string                name;
    std::vector<source_rows> from;       // empty: given here
    int64_t              rope_head = 0;  // reorder the rows of heads of this size from NEOX to NORM rope order
    ggml_type            type = GGML_TYPE_F32;
    std::vector<int64_t> shape;
    std::vector<float>   data;           // empty: zeros

    explicit new_tensor(const Napi::Object & object) : name(object.Get("name").ToString()) {
        if (object.Has("from")) {
            const auto sources = object.Get("from").As<Napi::Array>();
            for (uint32_t i = 0; i < sources.Length(); i++) {
                from.emplace_back(Napi::Value(sources.Get(i)).As<Napi::Object>());
            }
            rope_head = object.Get("ropeHead").IsNumber() ? object.Get("ropeHead").As<Napi::Number>().Int64Value() : 0;
            return;
        }
        type = type_by_name(object.Get("type").ToString());
        const auto dims = object.Get("shape").As<Napi::Array>();
        for (uint32_t i = 0; i < dims.Length(); i++) {
            shape.push_back(dims.Get(i).As<Napi::Number>().Int64Value());
        }
        if (object.Get("data").IsTypedArray()) {
            const auto array = object.Get("data").As<Napi::Float32Array>();
            data.assign(array.Data(), array.Data() + array.ElementLength());
        }
    }
};

struct source {
    std::string   path;
    gguf_ptr      gguf;
    std::ifstream stream;

    explicit source(const std::string & path) : path(path), gguf(open_gguf(path)), stream(std::filesystem::u8path(path), std::ios::binary) {
        if (!stream) {
            throw std::runtime_error("can't open " + path);
        }
    }

    int64_t find(const std::string & name) const {
        const int64_t id = gguf_find_tensor(gguf.get(), name.c_str());
        if (id < 0) {
            throw std::runtime_error(path + " has no tensor " + name);
        }
        return id;
    }

    // a part of a tensor's bytes
    void read(int64_t id, size_t offset, char * out, size_t size) {
        stream.seekg((std::streamoff) (gguf_get_data_offset(gguf.get()) + gguf_get_tensor_offset(gguf.get(), id) + offset));
        if (!stream.read(out, (std::streamsize) size)) {
            throw std::runtime_error(path + " is truncated");
        }
    }
};

struct job {
    std::string                                     output;
    std::vector<std::string>                        sources;
    std::vector<std::string>                        remove;
    std::vector<std::pair<std::string, std::string>> rename; // key prefixes
    std::vector<std::pair<std::string, std::vector<uint32_t>>> select; // keys of arrays, and which of their values stay
    std::vector<new_value>                          set;
    std::vector<new_tensor>                         tensors;
    bool                                            header_only = false;

    void run(const task_control & control) const;
};

// new[2i] = old[i], new[2i+1] = old[i + d/2] for the rows of each head: NORM rope rotates neighbours, NEOX halves
void neox_to_norm(const char * in, char * out, size_t row_size, int64_t head) {
    for (int64_t i = 0; i < head/2; i++) {
        memcpy(out + (2*i)*row_size,     in + i*row_size,            row_size);
        memcpy(out + (2*i + 1)*row_size, in + (i + head/2)*row_size, row_size);
    }
}

// Rows of the weighted sum of tensors, which may be of different types.
std::vector<float> sum_rows(const std::vector<std::unique_ptr<source>> & files, const std::vector<summand> & sum, int64_t length, size_t first, size_t n_rows) {
    std::vector<float> total(n_rows*length), values(n_rows*length);
    std::vector<char>  raw;
    for (const auto & term : sum) {
        source & in = *files[term.file];
        const int64_t id = in.find(term.name);
        const auto type = gguf_get_tensor_type(in.gguf.get(), id);
        const size_t row_size = ggml_row_size(type, length);
        raw.resize(n_rows*row_size);
        in.read(id, first*row_size, raw.data(), raw.size());
        if (type == GGML_TYPE_F32) {
            memcpy(values.data(), raw.data(), raw.size());
        } else if (const auto to_float = ggml_get_type_traits(type)->to_float) {
            to_float(raw.data(), values.data(), (int64_t) values.size());
        } else {
            throw std::runtime_error("tensor " + term.name + " is of type " + ggml_type_name(type) + ": it can't be added to others");
        }
        for (size_t i = 0; i < total.size(); i++) {
            total[i] += term.weight*values[i];
        }
    }
    return total;
}

void job::run(const task_control & control) const {
    std::vector<std::unique_ptr<source>> files;
    for (const auto & path : sources) {
        files.push_back(std::make_unique<source>(path));
    }
    gguf_ptr out(gguf_init_empty(), gguf_free);
    if (!files.empty()) {
        gguf_set_kv(out.get(), files[0]->gguf.get());
    }
    // ggml copies this key without aligning to it; what is written here has the default alignment
    gguf_remove_key(out.get(), "general.alignment");
    for (const auto & key : remove) {
        gguf_remove_key(out.get(), key.c_str());
    }
    for (const auto & [from, to] : rename) {
        std::vector<std::string> keys;
        for (int64_t i = 0; i < gguf_get_n_kv(out.get()); i++) {
            const std::string key = gguf_get_key(out.get(), i);
            if (key.rfind(from, 0) == 0) {
                keys.push_back(key);
            }
        }
        for (const auto & key : keys) {
            rename_key(out.get(), key, to + key.substr(from.size()));
        }
    }
    for (const auto & [key, indexes] : select) {
        select_values(out.get(), key, indexes);
    }
    for (const auto & value : set) {
        value.set(out.get());
    }

    size_t n_described = 1;
    for (const auto & t : tensors) {
        n_described += std::max<size_t>(1, t.from.size());
    }
    ggml_ptr ctx(ggml_init({ n_described*ggml_tensor_overhead(), nullptr, /*.no_alloc =*/ true }), ggml_free);
    std::vector<const ggml_tensor *> described;
    double total = 0;
    for (const auto & t : tensors) {
        ggml_tensor * d = nullptr;
        for (const auto & part : t.from) {
            const gguf_context * in = files.at(part.file)->gguf.get();
            const int64_t id = files[part.file]->find(part.name);
            auto type = gguf_get_tensor_type(in, id);
            std::array<int64_t, GGML_MAX_DIMS> ne;
            std::copy_n(gguf_get_tensor_ne(in, id), GGML_MAX_DIMS, ne.begin());
            for (const auto & term : part.sum) {
                const auto & other = *files.at(term.file);
                if (!std::equal(ne.begin(), ne.end(), gguf_get_tensor_ne(other.gguf.get(), other.find(term.name)))) {
                    throw std::runtime_error("tensors " + part.name + " and " + term.name + " have different shapes: they can't be added");
                }
            }
            if (!part.sum.empty() && ggml_quantize_requires_imatrix(type)) {
                type = GGML_TYPE_F16;
            }
            if (d) {
                if (type != d->type || ne[0] != d->ne[0] || ne[2] != 1 || d->ne[2] != 1) {
                    throw std::runtime_error("tensor " + part.name + " can't be joined to others of another type or shape");
                }
                ne[1] += d->ne[1];
            }
            // dimensions of 1 at the end don't count, as in the file that it comes from
            d = ggml_new_tensor(ctx.get(), type, GGML_MAX_DIMS, ne.data());
        }
        if (!d) {
            d = ggml_new_tensor(ctx.get(), t.type, (int) t.shape.size(), t.shape.data());
            if (!t.data.empty() && (t.type != GGML_TYPE_F32 || (int64_t) t.data.size() != ggml_nelements(d))) {
                throw std::runtime_error("tensor " + t.name + ": values must be F32 and fill its shape");
            }
        }
        ggml_set_name(d, t.name.c_str());
        gguf_add_tensor(out.get(), d);
        described.push_back(d);
        total += (double) ggml_nbytes(d);
    }

    std::ofstream stream(std::filesystem::u8path(output), std::ios::binary | std::ios::trunc);
    const auto write = [&](const char * data, size_t size) {
        if (!stream.write(data, (std::streamsize) size)) {
            throw std::runtime_error("can't write " + output);
        }
    };
    std::vector<char> meta(gguf_get_meta_size(out.get()));
    gguf_get_meta_data(out.get(), meta.data());
    write(meta.data(), meta.size());

    const size_t alignment = gguf_get_alignment(out.get());
    if (header_only) {
        stream.close();
        if (!stream) {
            throw std::runtime_error("can't write " + output);
        }
        size_t size = meta.size();
        for (const auto * d : described) {
            size += GGML_PAD(ggml_nbytes(d), alignment);
        }
        std::filesystem::resize_file(std::filesystem::u8path(output), size);
        return;
    }
    std::vector<char> buffer(COPY_BUFFER), reordered;
    double done = 0;
    for (size_t i = 0; i < tensors.size(); i++) {
        const auto & t    = tensors[i];
        const size_t size = ggml_nbytes(described[i]);
        size_t chunk = COPY_BUFFER;
        const size_t row_size = ggml_row_size(described[i]->type, described[i]->ne[0]);
        // biases of Q and K have their heads along the only dimension: a row is one value
        const bool   bias      = t.rope_head && ggml_n_dims(described[i]) == 1;
        const size_t unit      = bias ? ggml_type_size(described[i]->type) : row_size;
        const size_t head_size = unit*t.rope_head;
        if (t.rope_head) {
            if (size % head_size != 0 || t.from.size() != 1) {
                throw std::runtime_error("tensor " + t.name + " has no whole number of heads");
            }
            chunk = std::max<size_t>(1, COPY_BUFFER/head_size)*head_size;
            buffer.resize(std::max(buffer.size(), chunk));
            reordered.resize(buffer.size());
        }
        const auto write_chunks = [&](size_t bytes, const std::function<const char *(size_t offset, size_t n)> & read) {
            for (size_t offset = 0; offset < bytes; offset += chunk) {
                control.check();
                const size_t n = std::min(chunk, bytes - offset);
                const char * data = read(offset, n);
                if (t.rope_head) {
                    for (size_t head = 0; head < n; head += head_size) {
                        neox_to_norm(data + head, reordered.data() + head, unit, t.rope_head);
                    }
                    data = reordered.data();
                }
                write(data, n);
                done += (double) n;
                control.progress(done, total);
            }
        };
        for (const auto & part : t.from) {
            source & in = *files[part.file];
            const int64_t id = in.find(part.name);
            if (part.sum.empty()) {
                write_chunks(gguf_get_tensor_size(in.gguf.get(), id), [&](size_t offset, size_t n) {
                    in.read(id, offset, buffer.data(), n);
                    return buffer.data();
                });
                continue;
            }
            const int64_t length = described[i]->ne[0];
            if (!t.rope_head) {
                chunk = std::max<size_t>(1, COPY_BUFFER/(length*sizeof(float)))*row_size;
                buffer.resize(std::max(buffer.size(), chunk));
            }
            const int64_t * ne = gguf_get_tensor_ne(in.gguf.get(), id);
            write_chunks(row_size*ne[1]*ne[2]*ne[3], [&](size_t offset, size_t n) {
                const auto values = sum_rows(files, part.sum, length, offset/row_size, n/row_size);
                ggml_quantize_chunk(described[i]->type, values.data(), buffer.data(), 0, (int64_t) (n/row_size), length, nullptr);
                return buffer.data();
            });
        }
        if (t.from.empty()) {
            std::fill(buffer.begin(), buffer.end(), 0);
            write_chunks(size, [&](size_t offset, size_t) {
                return t.data.empty() ? buffer.data() : reinterpret_cast<const char *>(t.data.data()) + offset;
            });
        }
        const std::vector<char> padding(GGML_PAD(size, alignment) - size);
        write(padding.data(), padding.size());
    }
    stream.close();
    if (!stream) {
        throw std::runtime_error("can't write " + output);
    }
}

std::vector<std::string> strings(const Napi::Value & value) {
    std::vector<std::string> result;
    const auto array = value.As<Napi::Array>();
    for (uint32_t i = 0; i < array.Length(); i++) {
        result.push_back(Napi::Value(array.Get(i)).As<Napi::String>());
    }
    return result;
}

} // namespace

// readGguf(path, { cancel? }): Promise<{ metadata: { [key]: value }, tensors: { name, type, shape, bytes }[], end }>
// end: bytes that the file must have at least
Napi::Value read_gguf(const Napi::CallbackInfo & info) {
    const std::string path = info[0].As<Napi::String>();
    auto file = std::make_shared<gguf_ptr>(nullptr, gguf_free);
    return run_async(info.Env(), info[1],
        [path, file](const task_control &) { *file = open_gguf(path); },
        [file](Napi::Env env) -> Napi::Value {
            const gguf_context * f = file->get();
            auto metadata = Napi::Object::New(env);
            for (int64_t i = 0; i < gguf_get_n_kv(f); i++) {
                metadata.Set(gguf_get_key(f, i), metadata_value(env, f, i));
            }
            auto tensors = Napi::Array::New(env);
            double end = (double) gguf_get_data_offset(f);
            for (int64_t i = 0; i < gguf_get_n_tensors(f); i++) {
                const int64_t * ne = gguf_get_tensor_ne(f, i);
                int n_dims = GGML_MAX_DIMS;
                while (n_dims > 1 && ne[n_dims - 1] == 1) {
                    n_dims--;
                }
                auto shape = Napi::Array::New(env);
                for (int d = 0; d < n_dims; d++) {
                    shape.Set(d, (double) ne[d]);
                }
                auto tensor = Napi::Object::New(env);
                tensor.Set("name", gguf_get_tensor_name(f, i));
                tensor.Set("type", ggml_type_name(gguf_get_tensor_type(f, i)));
                tensor.Set("shape", shape);
                tensor.Set("bytes", (double) gguf_get_tensor_size(f, i));
                tensors.Set(tensors.Length(), tensor);
                end = std::max(end, (double) (gguf_get_data_offset(f) + gguf_get_tensor_offset(f, i) + gguf_get_tensor_size(f, i)));
            }
            auto result = Napi::Object::New(env);
            result.Set("metadata", metadata);
            result.Set("tensors", tensors);
            result.Set("end", end);
            return result;
        });
}

// writeGguf({ output, sources: paths[], remove: keys[], rename: [from, to][], select: [key, indexes][], set: value[],
//     tensors: tensor[], headerOnly? }, { onProgress?(bytes), cancel? }): Promise<void>
// headerOnly: the tensors' bytes are left a hole, for a file that is only looked at.
// The metadata is the first source's less `remove`, with key prefixes renamed, then arrays that keep some
// values, then `set`. Memory: a few MiB.
Napi::Value write_gguf(const Napi::CallbackInfo & info) {
    const auto plan = info[0].As<Napi::Object>();
    auto j = std::make_shared<job>();
    try {
        j->output  = plan.Get("output").ToString();
        j->sources = strings(plan.Get("sources"));
        j->header_only = plan.Get("headerOnly").ToBoolean();
        j->remove  = strings(plan.Get("remove"));
        const auto rename = plan.Get("rename").As<Napi::Array>();
        for (uint32_t i = 0; i < rename.Length(); i++) {
            const auto pair = strings(rename.Get(i));
            j->rename.emplace_back(pair.at(0), pair.at(1));
        }
        const auto select = plan.Get("select").As<Napi::Array>();
        for (uint32_t i = 0; i < select.Length(); i++) {
            const auto pair    = Napi::Value(select.Get(i)).As<Napi::Array>();
            const auto indexes = Napi::Value(pair.Get(1u)).As<Napi::Array>();
            j->select.emplace_back(Napi::Value(pair.Get(0u)).ToString(), std::vector<uint32_t>());
            for (uint32_t k = 0; k < indexes.Length(); k++) {
                j->select.back().second.push_back(Napi::Value(indexes.Get(k)).ToNumber());
            }
        }
        const auto set = plan.Get("set").As<Napi::Array>();
        for (uint32_t i = 0; i < set.Length(); i++) {
            j->set.emplace_back(Napi::Value(set.Get(i)).As<Napi::Object>());
        }
        const auto tensors = plan.Get("tensors").As<Napi::Array>();
        for (uint32_t i = 0; i < tensors.Length(); i++) {
            j->tensors.emplace_back(Napi::Value(tensors.Get(i)).As<Napi::Object>());
        }
    } catch (const Napi::Error &) {
        throw;
    } catch (const std::exception & e) {
        throw Napi::Error::New(info.Env(), e.what());
    }
    return run_async(info.Env(), info[1],
        [j](const task_control & control) { j->run(control); },
        [](Napi::Env env) -> Napi::Value { return env.Undefined(); });
}

// quantize(input, output, type): Promise<void>; type as a number of llama_ftype. For tests: it makes their models.
Napi::Value quantize(const Napi::CallbackInfo & info) {
    const std::string input = info[0].As<Napi::String>(), output = info[1].As<Napi::String>();
    const int type = info[2].As<Napi::Number>();
    return run_async(info.Env(), info[3],
        [=](const task_control &) {
            llama_model_quantize_params params = llama_model_quantize_default_params();
            params.ftype = (llama_ftype) type;
            params.allow_requantize = true;
            if (llama_model_quantize(input.c_str(), output.c_str(), &params) != 0) {
                throw std::runtime_error("could not quantize: " + take_logged_errors());
            }
        },
        [](Napi::Env env) -> Napi::Value { return env.Undefined(); });
}

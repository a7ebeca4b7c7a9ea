#include "gguf/metadata.h"

#include "engine/llama_errors.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace {

std::vector<const char *> pointers_to(const std::vector<std::string> & strings) {
    std::vector<const char *> pointers;
    for (const auto & text : strings) {
        pointers.push_back(text.c_str());
    }
    return pointers;
}

// A copy of a number that lies at any address.
template <typename T> T read_as(const void * data) {
    T value;
    memcpy(&value, data, sizeof(value));
    return value;
}

// Values are copied before they are set: a new key may move the memory of the others.
void copy_array(gguf_context * file, int64_t id, const char * to) {
    const gguf_type element = gguf_get_arr_type(file, id);
    const size_t    n       = gguf_get_arr_n(file, id);
    if (element == GGUF_TYPE_STRING) {
        std::vector<std::string> values;
        for (size_t i = 0; i < n; i++) {
            values.push_back(gguf_get_arr_str(file, id, i));
        }
        gguf_set_arr_str(file, to, pointers_to(values).data(), n);
        return;
    }
    const char *            data = static_cast<const char *>(gguf_get_arr_data(file, id));
    const std::vector<char> values(data, data + n * gguf_scalar_size(element));
    gguf_set_arr_data(file, to, element, values.data(), n);
}

void copy_value(gguf_context * file, int64_t id, const char * to) {
    const gguf_type type = gguf_get_kv_type(file, id);
    if (type == GGUF_TYPE_ARRAY) {
        copy_array(file, id, to);
        return;
    }
    if (type == GGUF_TYPE_STRING) {
        const std::string value = gguf_get_val_str(file, id);
        gguf_set_val_str(file, to, value.c_str());
        return;
    }
    char value[8];
    memcpy(value, gguf_get_val_data(file, id), gguf_scalar_size(type));
    switch (type) {
        case GGUF_TYPE_UINT8:
            gguf_set_val_u8(file, to, read_as<uint8_t>(value));
            break;
        case GGUF_TYPE_INT8:
            gguf_set_val_i8(file, to, read_as<int8_t>(value));
            break;
        case GGUF_TYPE_BOOL:
            gguf_set_val_bool(file, to, value[0] != 0);
            break;
        case GGUF_TYPE_UINT16:
            gguf_set_val_u16(file, to, read_as<uint16_t>(value));
            break;
        case GGUF_TYPE_INT16:
            gguf_set_val_i16(file, to, read_as<int16_t>(value));
            break;
        case GGUF_TYPE_UINT32:
            gguf_set_val_u32(file, to, read_as<uint32_t>(value));
            break;
        case GGUF_TYPE_INT32:
            gguf_set_val_i32(file, to, read_as<int32_t>(value));
            break;
        case GGUF_TYPE_FLOAT32:
            gguf_set_val_f32(file, to, read_as<float>(value));
            break;
        case GGUF_TYPE_FLOAT64:
            gguf_set_val_f64(file, to, read_as<double>(value));
            break;
        case GGUF_TYPE_UINT64:
            gguf_set_val_u64(file, to, read_as<uint64_t>(value));
            break;
        case GGUF_TYPE_INT64:
            gguf_set_val_i64(file, to, read_as<int64_t>(value));
            break;
        default:
            throw std::runtime_error("key " + std::string(gguf_get_key(file, id)) + " has an unknown type");
    }
}

// The length of a string value in the file, which stands behind its key and its type. ggml gives strings as they are in
// C, where they end at their first NUL.
uint64_t stored_length(const gguf_context * file, const std::string & key) {
    const std::vector<char> bytes = bytes_of(file);
    const uint64_t          size  = key.size();
    const uint32_t          type  = GGUF_TYPE_STRING;
    std::string             entry((const char *) &size, sizeof(size));
    entry.append(key).append((const char *) &type, sizeof(type));
    const auto at = std::search(bytes.begin(), bytes.end(), entry.begin(), entry.end());
    return read_as<uint64_t>(&*at + entry.size());
}

// A copy with all metadata and no tensors. ggml's own functions for copying cut strings at their first NUL.
gguf_ptr copy_of(const gguf_context * source) {
    std::vector<char> bytes      = bytes_of(source);
    const uint64_t    no_tensors = 0;
    memcpy(bytes.data() + 8, &no_tensors, sizeof(no_tensors)); // behind the magic and the version
    gguf_ptr copy(gguf_init_from_buffer(bytes.data(), bytes.size(), { .no_alloc = true, .ctx = nullptr }), gguf_free);
    if (!copy) {
        throw std::runtime_error("the metadata can't be copied: " + take_logged_errors("no reason given"));
    }
    return copy;
}

void rename_key(gguf_context * file, const std::string & from, const std::string & to) {
    const int64_t id = gguf_find_key(file, from.c_str());
    if (gguf_get_kv_type(file, id) == GGUF_TYPE_STRING &&
        stored_length(file, from) != strlen(gguf_get_val_str(file, id))) {
        throw std::runtime_error("the value of the metadata key " + from + " has a NUL byte: it can't be copied to " +
                                 to);
    }
    copy_value(file, id, to.c_str());
    gguf_remove_key(file, from.c_str());
}

void rename_prefix(gguf_context * file, const std::string & from, const std::string & to) {
    std::vector<std::string> keys;
    for (int64_t i = 0; i < gguf_get_n_kv(file); i++) {
        const std::string key = gguf_get_key(file, i);
        if (key.starts_with(from)) {
            keys.push_back(key);
        }
    }
    for (const auto & key : keys) {
        rename_key(file, key, to + key.substr(from.size()));
    }
}

// Keeps some values of an array, in the order given.
void select_values(gguf_context * file, const std::string & key, const std::vector<uint32_t> & indexes) {
    const int64_t id = gguf_find_key(file, key.c_str());
    if (id < 0 || gguf_get_kv_type(file, id) != GGUF_TYPE_ARRAY || gguf_get_arr_type(file, id) == GGUF_TYPE_STRING) {
        throw std::runtime_error("key " + key + " is no array of numbers");
    }
    const gguf_type   type = gguf_get_arr_type(file, id);
    const size_t      size = gguf_scalar_size(type);
    const char *      data = static_cast<const char *>(gguf_get_arr_data(file, id));
    std::vector<char> values;
    for (const uint32_t index : indexes) {
        if (index >= gguf_get_arr_n(file, id)) {
            throw std::runtime_error("key " + key + " has no value " + std::to_string(index));
        }
        values.insert(values.end(), data + index * size, data + (index + 1) * size);
    }
    gguf_set_arr_data(file, key.c_str(), type, values.data(), indexes.size());
}

void set_value(gguf_context * file, const metadata_value & value) {
    const auto & [key, type, strings, numbers] = value;
    const char * k                             = key.c_str();
    if (type == "string") {
        gguf_set_val_str(file, k, strings.at(0).c_str());
    } else if (type == "u16") {
        gguf_set_val_u16(file, k, (uint16_t) numbers.at(0));
    } else if (type == "i32") {
        gguf_set_val_i32(file, k, (int32_t) numbers.at(0));
    } else if (type == "u32") {
        gguf_set_val_u32(file, k, (uint32_t) numbers.at(0));
    } else if (type == "f32") {
        gguf_set_val_f32(file, k, (float) numbers.at(0));
    } else if (type == "f64") {
        gguf_set_val_f64(file, k, numbers.at(0));
    } else if (type == "bool") {
        gguf_set_val_bool(file, k, numbers.at(0) != 0);
    } else if (type == "u32[]") {
        const std::vector<uint32_t> values(numbers.begin(), numbers.end());
        gguf_set_arr_data(file, k, GGUF_TYPE_UINT32, values.data(), values.size());
    } else if (type == "bool[]") {
        const std::vector<int8_t> values(numbers.begin(), numbers.end());
        gguf_set_arr_data(file, k, GGUF_TYPE_BOOL, values.data(), values.size());
    } else if (type == "string[]") {
        gguf_set_arr_str(file, k, pointers_to(strings).data(), strings.size());
    } else {
        throw std::runtime_error("unknown metadata type '" + type + "'");
    }
}

} // namespace

gguf_ptr build_metadata(const gguf_context * source, const gguf_plan & plan) {
    gguf_ptr result = source ? copy_of(source) : gguf_ptr(gguf_init_empty(), gguf_free);
    // what is written here has the default alignment, which ggml knows once it reads metadata without this key
    if (gguf_remove_key(result.get(), "general.alignment") >= 0) {
        result = copy_of(result.get());
    }
    gguf_context * out = result.get();
    for (const auto & key : plan.remove) {
        gguf_remove_key(out, key.c_str());
    }
    for (const auto & [from, to] : plan.rename) {
        rename_prefix(out, from, to);
    }
    for (const auto & [key, indexes] : plan.select) {
        select_values(out, key, indexes);
    }
    for (const auto & value : plan.set) {
        set_value(out, value);
    }
    return result;
}

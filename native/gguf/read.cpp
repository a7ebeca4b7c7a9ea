#include "gguf/read.h"

#include "engine/llama_errors.h"

#include <cstring>
#include <stdexcept>

std::filesystem::path path_of(const std::string & utf8) {
    return std::filesystem::path(std::u8string(utf8.begin(), utf8.end()));
}

gguf_ptr open_gguf(const std::string & path) {
    gguf_ptr file(gguf_init_from_file(path.c_str(), { .no_alloc = true, .ctx = nullptr }), gguf_free);
    if (!file) {
        throw std::runtime_error("not a readable GGUF file: " + take_logged_errors(path));
    }
    return file;
}

std::vector<char> bytes_of(const gguf_context * header) {
    std::vector<char> bytes(gguf_get_meta_size(header));
    gguf_get_meta_data(header, bytes.data());
    return bytes;
}

size_t gguf_scalar_size(gguf_type type) {
    switch (type) {
        case GGUF_TYPE_UINT8:
        case GGUF_TYPE_INT8:
        case GGUF_TYPE_BOOL:
            return 1;
        case GGUF_TYPE_UINT16:
        case GGUF_TYPE_INT16:
            return 2;
        case GGUF_TYPE_UINT32:
        case GGUF_TYPE_INT32:
        case GGUF_TYPE_FLOAT32:
            return 4;
        default:
            return 8;
    }
}

// The data may lie at any address.
template <typename T> static double number_at(const void * data) {
    T value;
    memcpy(&value, data, sizeof(value));
    return (double) value;
}

double gguf_scalar(gguf_type type, const void * data) {
    switch (type) {
        case GGUF_TYPE_UINT8:
            return number_at<uint8_t>(data);
        case GGUF_TYPE_INT8:
        case GGUF_TYPE_BOOL:
            return number_at<int8_t>(data);
        case GGUF_TYPE_UINT16:
            return number_at<uint16_t>(data);
        case GGUF_TYPE_INT16:
            return number_at<int16_t>(data);
        case GGUF_TYPE_UINT32:
            return number_at<uint32_t>(data);
        case GGUF_TYPE_INT32:
            return number_at<int32_t>(data);
        case GGUF_TYPE_FLOAT32:
            return number_at<float>(data);
        case GGUF_TYPE_UINT64:
            return number_at<uint64_t>(data);
        case GGUF_TYPE_INT64:
            return number_at<int64_t>(data);
        case GGUF_TYPE_FLOAT64:
            return number_at<double>(data);
        default:
            return 0;
    }
}

gguf_source::gguf_source(const std::string & path) :
    path(path),
    gguf(open_gguf(path)),
    stream(path_of(path), std::ios::binary) {
    if (!stream) {
        throw std::runtime_error("can't open " + path);
    }
}

int64_t gguf_source::find(const std::string & tensor) const {
    const int64_t id = gguf_find_tensor(gguf.get(), tensor.c_str());
    if (id < 0) {
        throw std::runtime_error(path + " has no tensor " + tensor);
    }
    return id;
}

void gguf_source::read(int64_t tensor, size_t offset, char * out, size_t size) {
    const size_t start = gguf_get_data_offset(gguf.get()) + gguf_get_tensor_offset(gguf.get(), tensor);
    stream.seekg((std::streamoff) (start + offset));
    if (!stream.read(out, (std::streamsize) size)) {
        throw std::runtime_error(path + " is truncated");
    }
}

// Reads GGUF files, by ggml's own gguf API.
#pragma once

#include "gguf.h"

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

using gguf_ptr = std::unique_ptr<gguf_context, decltype(&gguf_free)>;

// A path that is given as UTF-8, on Windows too.
std::filesystem::path path_of(const std::string & utf8);

// The header of a file; throws where it can't be read.
gguf_ptr open_gguf(const std::string & path);

// A header as it stands in a file.
std::vector<char> bytes_of(const gguf_context * header);

// The bytes of a number in the metadata.
size_t gguf_scalar_size(gguf_type type);

// A number of the metadata; a boolean is 0 or 1.
double gguf_scalar(gguf_type type, const void * data);

// A file whose tensors are read in parts.
class gguf_source {
public:
    explicit gguf_source(const std::string & path);

    const gguf_context * header() const { return gguf.get(); }

    // The index of a tensor; throws if there is none of that name.
    int64_t find(const std::string & tensor) const;

    // Reads a part of a tensor's bytes.
    void read(int64_t tensor, size_t offset, char * out, size_t size);

private:
    std::string   path;
    gguf_ptr      gguf;
    std::ifstream stream;
};

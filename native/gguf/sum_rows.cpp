#include "gguf/sum_rows.h"

#include <cstring>
#include <stdexcept>

std::vector<float> sum_rows(const std::vector<std::unique_ptr<gguf_source>> & sources,
                            const std::vector<summand> &                      sum,
                            int64_t                                           row_length,
                            size_t                                            first,
                            size_t                                            n_rows) {
    std::vector<float> total(n_rows * row_length), values(n_rows * row_length);
    std::vector<char>  raw;
    for (const auto & [tensor, weight] : sum) {
        gguf_source & source   = *sources[tensor.file];
        const int64_t id       = source.find(tensor.name);
        const auto    type     = gguf_get_tensor_type(source.header(), id);
        const size_t  row_size = ggml_row_size(type, row_length);
        raw.resize(n_rows * row_size);
        source.read(id, first * row_size, raw.data(), raw.size());
        if (type == GGML_TYPE_F32) {
            memcpy(values.data(), raw.data(), raw.size());
        } else if (const auto to_float = ggml_get_type_traits(type)->to_float) {
            to_float(raw.data(), values.data(), (int64_t) values.size());
        } else {
            throw std::runtime_error("tensor " + tensor.name + " is of type " + ggml_type_name(type) +
                                     ": it can't be added to others");
        }
        for (size_t i = 0; i < total.size(); i++) {
            total[i] += weight * values[i];
        }
    }
    return total;
}

#include "gguf/write.h"

#include "gguf/metadata.h"
#include "gguf/read.h"
#include "gguf/reorder_rows.h"
#include "gguf/sum_rows.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <stdexcept>

namespace {

constexpr size_t CHUNK_BYTES = 8 * 1024 * 1024;

using ggml_ptr = std::unique_ptr<ggml_context, decltype(&ggml_free)>;
using sources  = std::vector<std::unique_ptr<gguf_source>>;
using shape    = std::array<int64_t, GGML_MAX_DIMS>;

bool all_finite(const float * values, size_t n) {
    return std::all_of(values, values + n, [](float value) { return std::isfinite(value); });
}

// Whether rows of F32 can be converted to a type by themselves, without being told which values matter.
bool can_convert_to(ggml_type type) {
    const bool is_float = type == GGML_TYPE_F32 || type == GGML_TYPE_F16 || type == GGML_TYPE_BF16;
    // ggml keeps only intermediate results in these two
    const bool is_stored = type != GGML_TYPE_Q8_1 && type != GGML_TYPE_Q8_K;
    return is_float || (ggml_is_quantized(type) && is_stored && !ggml_quantize_requires_imatrix(type));
}

shape shape_of(const gguf_source & source, int64_t tensor) {
    shape ne;
    std::copy_n(gguf_get_tensor_ne(source.header(), tensor), GGML_MAX_DIMS, ne.begin());
    return ne;
}

// The types and shapes of the planned tensors, without memory for their values.
class described_tensors {
public:
    described_tensors(const gguf_plan & plan, const sources & files) : ctx(make_context(plan), ggml_free) {
        for (const auto & t : plan.tensors) {
            ggml_tensor * described = t.from.empty() ? describe_given(t) : describe_copy(t, files);
            ggml_set_name(described, t.name.c_str());
            tensors.push_back(described);
        }
    }

    std::vector<const ggml_tensor *> tensors;

private:
    ggml_ptr ctx;

    static ggml_context * make_context(const gguf_plan & plan) {
        size_t n = 1;
        for (const auto & t : plan.tensors) {
            n += std::max<size_t>(1, t.from.size());
        }
        return ggml_init({ .mem_size = n * ggml_tensor_overhead(), .mem_buffer = nullptr, .no_alloc = true });
    }

    ggml_tensor * describe_given(const planned_tensor & t) {
        check_rows(t.name, t.type, t.shape.at(0));
        ggml_tensor * d = ggml_new_tensor(ctx.get(), t.type, (int) t.shape.size(), t.shape.data());
        if (t.data.empty()) {
            return d;
        }
        if ((int64_t) t.data.size() != ggml_nelements(d)) {
            throw std::runtime_error("tensor " + t.name + " has " + std::to_string(t.data.size()) +
                                     " values, and its shape " + std::to_string(ggml_nelements(d)));
        }
        if (!can_convert_to(t.type)) {
            throw std::runtime_error("tensor " + t.name + " can't be " + ggml_type_name(t.type) +
                                     ": values can't be converted to that type by themselves");
        }
        if (!all_finite(t.data.data(), t.data.size())) {
            throw std::runtime_error("tensor " + t.name + " has values that are not finite");
        }
        return d;
    }

    // Tensors that are joined have rows of one length and type.
    ggml_tensor * describe_copy(const planned_tensor & t, const sources & files) {
        ggml_tensor * d = nullptr;
        for (const auto & part : t.from) {
            const gguf_source & source = *files.at(part.tensor.file);
            const int64_t       id     = source.find(part.tensor.name);
            ggml_type           type   = gguf_get_tensor_type(source.header(), id);
            shape               ne     = shape_of(source, id);
            check_sum(part, ne, files);
            check_change(part, ne);
            check_importance(part, ne);
            if (!part.sum.empty() && part.sum_type != GGML_TYPE_COUNT) {
                type = part.sum_type;
                check_rows(part.tensor.name, type, ne[0]);
            } else if (!part.sum.empty() && part.importance.empty() && ggml_quantize_requires_imatrix(type)) {
                type = GGML_TYPE_F16; // the sum can't be quantized to it
            }
            if (d) {
                if (type != d->type || ne[0] != d->ne[0] || ne[2] != 1 || d->ne[2] != 1) {
                    throw std::runtime_error("tensor " + part.tensor.name +
                                             " can't be joined to others of another type or shape");
                }
                ne[1] += d->ne[1];
            }
            // dimensions of 1 at the end don't count, as in the file that it comes from
            d = ggml_new_tensor(ctx.get(), type, GGML_MAX_DIMS, ne.data());
        }
        return d;
    }

    static void check_rows(const std::string & name, ggml_type type, int64_t length) {
        if (length % ggml_blck_size(type) != 0) {
            throw std::runtime_error("tensor " + name + " can't be " + ggml_type_name(type) + ": its rows of " +
                                     std::to_string(length) + " values are no multiple of " +
                                     std::to_string(ggml_blck_size(type)));
        }
    }

    static void check_change(const row_source & part, const shape & ne) {
        const auto n_values = (size_t) (ne[0] * ne[1] * ne[2] * ne[3]);
        if (!part.change.empty() && (part.sum.empty() || part.change.size() != n_values)) {
            throw std::runtime_error("the change of tensor " + part.tensor.name + " has another size than the tensor");
        }
    }

    static void check_importance(const row_source & part, const shape & ne) {
        const bool is_usable = std::all_of(part.importance.begin(), part.importance.end(),
                                           [](float value) { return std::isfinite(value) && value > 0; });
        if (!part.importance.empty() && ((int64_t) part.importance.size() != ne[0] || !is_usable)) {
            throw std::runtime_error("the importance of tensor " + part.tensor.name +
                                     "'s values is not a positive number for each value of a row");
        }
    }

    static void check_sum(const row_source & part, const shape & ne, const sources & files) {
        for (const auto & [tensor, weight] : part.sum) {
            const gguf_source & source = *files.at(tensor.file);
            if (shape_of(source, source.find(tensor.name)) != ne) {
                throw std::runtime_error("tensors " + part.tensor.name + " and " + tensor.name +
                                         " have different shapes: they can't be added");
            }
        }
    }
};

class output_file {
public:
    explicit output_file(const std::string & path) :
        path(path),
        stream(path_of(path), std::ios::binary | std::ios::trunc) {}

    void write(const char * data, size_t size) { check(stream.write(data, (std::streamsize) size).good()); }

    void pad(size_t size) {
        const std::vector<char> zeros(size);
        write(zeros.data(), zeros.size());
    }

    void close() {
        stream.close();
        check(stream.good());
    }

private:
    const std::string path;
    std::ofstream     stream;

    void check(bool is_good) const {
        if (!is_good) {
            throw std::runtime_error("can't write " + path + ": " + strerror(errno));
        }
    }
};

// Writes tensors in chunks: where rows are added or converted, of whole rows; where they are reordered, of whole heads.
class tensor_writer {
public:
    tensor_writer(output_file & out, sources & files, double total, const task_control & control) :
        out(out),
        files(files),
        total(total),
        control(control) {}

    void write(const planned_tensor & planned, const ggml_tensor * described) {
        if (planned.from.empty()) {
            write_given(planned, described);
        } else if (planned.rope_head) {
            write_reordered(planned, described);
        } else {
            for (const auto & part : planned.from) {
                write_rows(part, described);
            }
        }
    }

private:
    output_file &        out;
    sources &            files;
    const double         total; // bytes of all tensors
    const task_control & control;
    double               done = 0;
    std::vector<char>    buffer;

    // Writes `size` bytes. fill: puts n of them, from an offset on, at `to`
    void write_chunks(size_t size, size_t chunk, const std::function<void(size_t offset, size_t n, char * to)> & fill) {
        buffer.resize(std::max(buffer.size(), chunk));
        for (size_t offset = 0; offset < size; offset += chunk) {
            control.check();
            const size_t n = std::min(chunk, size - offset);
            fill(offset, n, buffer.data());
            out.write(buffer.data(), n);
            done += (double) n;
            control.progress(done, total);
        }
    }

    void write_given(const planned_tensor & planned, const ggml_tensor * described) {
        if (planned.data.empty()) {
            write_chunks(ggml_nbytes(described), CHUNK_BYTES,
                         [](size_t, size_t n, char * to) { std::fill(to, to + n, 0); });
            return;
        }
        const int64_t length = described->ne[0];
        const size_t  row    = ggml_row_size(described->type, length);
        const size_t  chunk  = rows_at_once(length) * row;
        write_chunks(ggml_nbytes(described), chunk, [&](size_t offset, size_t n, char * to) {
            const float * values = planned.data.data() + offset / row * length;
            ggml_quantize_chunk(described->type, values, to, 0, (int64_t) (n / row), length, nullptr);
            check_range(planned, described->type, to, n / row * length);
        });
    }

    // A value that is too large for a type, or for the scale of a quantized one, becomes infinite in it.
    void check_range(const planned_tensor & planned, ggml_type type, const char * converted, size_t n) {
        const auto to_float = ggml_get_type_traits(type)->to_float;
        if (!to_float) {
            return; // F32
        }
        std::vector<float> values(n);
        to_float(converted, values.data(), (int64_t) n);
        if (!all_finite(values.data(), n)) {
            throw std::runtime_error("tensor " + planned.name + " has values that are too large for " +
                                     ggml_type_name(type));
        }
    }

    // How many rows of so many values are converted at once.
    static size_t rows_at_once(int64_t length) { return std::max<size_t>(1, CHUNK_BYTES / (sizeof(float) * length)); }

    void write_rows(const row_source & part, const ggml_tensor * described) {
        const size_t row   = ggml_row_size(described->type, described->ne[0]);
        const size_t chunk = part.sum.empty() ? CHUNK_BYTES : rows_at_once(described->ne[0]) * row;
        write_chunks(size_of(part, described), chunk,
                     [&](size_t offset, size_t n, char * to) { read_rows(part, described, offset, n, to); });
    }

    void write_reordered(const planned_tensor & planned, const ggml_tensor * described) {
        const size_t row = ggml_row_size(described->type, described->ne[0]);
        // biases of Q and K have their heads along the only dimension: a row is one value
        const size_t unit = ggml_n_dims(described) == 1 ? ggml_type_size(described->type) : row;
        const size_t head = unit * planned.rope_head;
        const size_t size = ggml_nbytes(described);
        if (size % head != 0 || planned.from.size() != 1) {
            throw std::runtime_error("tensor " + planned.name + " has no whole number of heads");
        }
        const size_t      chunk = std::max<size_t>(1, CHUNK_BYTES / head) * head;
        std::vector<char> rows(std::min(chunk, size));
        write_chunks(size, chunk, [&](size_t offset, size_t n, char * to) {
            read_rows(planned.from[0], described, offset, n, rows.data());
            for (size_t from = 0; from < n; from += head) {
                reorder_neox_to_norm(rows.data() + from, to + from, unit, planned.rope_head);
            }
        });
    }

    // The bytes that a part of a tensor's rows takes in the type of the tensor.
    size_t size_of(const row_source & part, const ggml_tensor * described) const {
        const gguf_source & source = *files[part.tensor.file];
        const shape         ne     = shape_of(source, source.find(part.tensor.name));
        return ggml_row_size(described->type, ne[0]) * ne[1] * ne[2] * ne[3];
    }

    // Reads the bytes of rows; sums are quantized to the type of the tensor.
    void read_rows(const row_source & part, const ggml_tensor * described, size_t offset, size_t n, char * to) {
        gguf_source & source = *files[part.tensor.file];
        if (part.sum.empty()) {
            source.read(source.find(part.tensor.name), offset, to, n);
            return;
        }
        const int64_t length = described->ne[0];
        const size_t  row    = ggml_row_size(described->type, length);
        auto          values = sum_rows(files, part.sum, length, offset / row, n / row);
        if (!part.change.empty()) {
            const float * change = part.change.data() + offset / row * length;
            std::transform(values.begin(), values.end(), change, values.begin(), std::plus<>());
        }
        const float * importance = part.importance.empty() ? nullptr : part.importance.data();
        ggml_quantize_chunk(described->type, values.data(), to, 0, (int64_t) (n / row), length, importance);
    }
};

// Reads back what was written: the header, and of the tensors all that was copied.
void check_written(const std::string &       path,
                   const gguf_plan &         plan,
                   const std::vector<char> & meta,
                   sources &                 files,
                   const task_control &      control) {
    const auto check = [&](bool is_equal, const std::string & what) {
        if (!is_equal) {
            throw std::runtime_error("can't write " + path + ": " + what + " was read back otherwise than written");
        }
    };
    gguf_source written(path);
    check(bytes_of(written.header()) == meta, "the header");
    std::vector<char> there(CHUNK_BYTES), source(CHUNK_BYTES);
    for (const auto & planned : plan.tensors) {
        if (planned.rope_head) {
            continue; // its rows have another order
        }
        const int64_t id     = written.find(planned.name);
        size_t        offset = 0; // of the part
        for (const auto & part : planned.from) {
            gguf_source & from = *files[part.tensor.file];
            const int64_t its  = from.find(part.tensor.name);
            const size_t  size = gguf_get_tensor_size(from.header(), its);
            if (!part.sum.empty()) {
                break; // its values were computed
            }
            for (size_t at = 0; at < size; at += CHUNK_BYTES) {
                control.check();
                const size_t n = std::min(CHUNK_BYTES, size - at);
                written.read(id, offset + at, there.data(), n);
                from.read(its, at, source.data(), n);
                check(std::equal(there.begin(), there.begin() + (ptrdiff_t) n, source.begin()),
                      "tensor " + planned.name);
            }
            offset += size;
        }
    }
}

} // namespace

ggml_type tensor_type_of(const std::string & name) {
    for (int type = 0; type < GGML_TYPE_COUNT; type++) {
        if (ggml_type_name((ggml_type) type) && name == ggml_type_name((ggml_type) type)) {
            return (ggml_type) type;
        }
    }
    throw std::runtime_error("unknown tensor type '" + name + "'");
}

void write_gguf(const gguf_plan & plan, const task_control & control) {
    sources files;
    for (const auto & path : plan.sources) {
        files.push_back(std::make_unique<gguf_source>(path));
    }
    const gguf_ptr          header = build_metadata(files.empty() ? nullptr : files[0]->header(), plan);
    const described_tensors described(plan, files);
    double                  total = 0;
    for (const ggml_tensor * t : described.tensors) {
        gguf_add_tensor(header.get(), t);
        total += (double) ggml_nbytes(t);
    }

    const size_t            alignment = gguf_get_alignment(header.get());
    const std::vector<char> meta      = bytes_of(header.get());
    output_file             out(plan.output);
    out.write(meta.data(), meta.size());
    if (plan.header_only) {
        out.close();
        size_t size = meta.size();
        for (const ggml_tensor * t : described.tensors) {
            size += GGML_PAD(ggml_nbytes(t), alignment);
        }
        std::filesystem::resize_file(path_of(plan.output), size);
        return;
    }
    tensor_writer writer(out, files, total, control);
    for (size_t i = 0; i < plan.tensors.size(); i++) {
        writer.write(plan.tensors[i], described.tensors[i]);
        const size_t size = ggml_nbytes(described.tensors[i]);
        out.pad(GGML_PAD(size, alignment) - size);
    }
    out.close();
    check_written(plan.output, plan, meta, files, control);
}

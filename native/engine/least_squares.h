// Ridge regression on a device, with ggml's matrix products: every backend has these, and no linear algebra library is
// needed.
#pragma once

#include "engine/task.h"
#include "ggml-cpp.h"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

// λ of a linear block by default.
constexpr double LINEAR_RIDGE = 0.03;

// 1/rms of n values, as llama.cpp's RMSNorm computes it.
float inverse_rms(const float * values, size_t n, float epsilon);

double mean_square(const float * values, size_t n);

// The device that memory belongs to, for fits. On the CPU, the columns of what is computed are in two parts, each with a
// backend of its own on half of the threads: threads of one part don't wait for those of the other. Parts are as large
// with any number of threads, so that the results are the same.
class fit_device {
public:
    // n_threads: on the CPU
    fit_device(ggml_backend_buffer_type_t memory, int n_threads);

    ggml_backend_t backend() const { return parts[0].get(); }

    size_t n_parts() const { return parts.size(); }

    // Does work for all parts, and waits for it.
    void for_each_part(const std::function<void(ggml_backend_t, size_t part)> & work) const;

private:
    std::vector<ggml_backend_ptr> parts;
    size_t                        n_at_once = 1;
};

// Finds the matrix W that minimises Σ_t |W·h_t − e_t|² + λ·m·|W|², where m is the mean of the diagonal of Σ_t h_t·h_tᵀ.
// Rows of W may have a λ of their own. A weight of a token is a factor of both h_t and e_t: its square root.
//
// Memory on the device: n_in² + 2·n_in·n_out values of F32, about six times n_in·n_out more while it is solved, and for
// each part of the device twice the tokens that are added at a time.
class least_squares {
public:
    // n_in, n_out: the numbers of values of h_t and of e_t
    least_squares(const fit_device & device, int64_t n_in, int64_t n_out);

    // Adds n tokens. h: [n × n_in], e: [n × n_out], token after token.
    void add(const float * h, const float * e, int64_t n);

    // Finds W. ridge: λ, above 0; of each row, or of all
    // Throws where a sum or the solution is not finite.
    void solve(double ridge, const task_control & control);
    void solve(const std::vector<float> & ridges, const task_control & control);

    // W: [n_out × n_in], row after row.
    std::vector<float> solution() const;

    // Takes a W that was found before.
    void set_solution(const std::vector<float> & values);

    // V·W of another matrix, which has a column for each row of W: [n_rows × n_in], row after row. It is computed where
    // that matrix is, as precisely as products with its type are.
    // n_threads: on the CPU
    std::vector<float> product_with(const ggml_tensor * v, int n_threads) const;

    // The diagonal of Σ_t h_t·h_tᵀ: how much each value of a row of W matters. None is 0.
    std::vector<float> importance() const;

    // W·h of n tokens: [n × n_out].
    std::vector<float> apply(const float * h, int64_t n) const;

private:
    const fit_device & device;
    const int64_t      n_in;
    const int64_t      n_out;

    ggml_context_ptr        context;
    ggml_backend_buffer_ptr buffer;
    ggml_tensor *           gram;    // Σ h·hᵀ: [n_in, n_in]
    ggml_tensor *           moments; // Σ h·eᵀ: [n_in, n_out]
    ggml_tensor *           weights; // W: [n_in, n_out]

    std::vector<float> diagonal() const;

    struct range {
        int64_t first, count;
    };
    range         part_of(int64_t n, size_t part) const;
    ggml_tensor * columns_of(ggml_context * ctx, ggml_tensor * t, size_t part) const;

    void add_part(ggml_backend_t backend, size_t part, const float * h, const float * e, int64_t n) const;
    void solve_part(ggml_backend_t             backend,
                    size_t                     part,
                    const std::vector<float> & ridges,
                    double                     mean,
                    const task_control &       control) const;
};

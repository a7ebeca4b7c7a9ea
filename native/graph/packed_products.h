// Products with Q8_0 weights on CPUs that have AVX-512 VNNI and no AMX. ggml lays out no Q8_0 weights for these, and
// its products reach a quarter of what they can do; those here reach three quarters, with a copy of the weights in
// another layout. They multiply the very integers that ggml's do, and add the blocks' products in the order of the
// columns: results differ by the rounding of sums in F32.
#pragma once

#include "ggml.h"

#include <cstddef>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

struct packed_matrix;

// The packed copies of a model's weights, made when they are first needed and shared by its evaluators. They take as
// much memory as the weights do.
class packed_weights {
public:
    packed_weights();
    ~packed_weights();

    // Whether this program and this CPU have the instructions, and ggml has no better ones.
    static bool are_supported();

    // The packed copy of a weight; null where it has none: it is of another type, not in this process's memory, or there
    // is no memory for the copy. Any thread may ask.
    const packed_matrix * find(const ggml_tensor * weight);

private:
    std::mutex                                                              access;
    std::unordered_map<const ggml_tensor *, std::unique_ptr<packed_matrix>> packed;
};

// What the packed products of a graph share among the threads that compute it. It must live as long as the graph.
class packed_products {
public:
    packed_products();
    ~packed_products();

    // Lets these operations, as far as they multiply values by a weight that has a packed copy, use that copy.
    void use(ggml_context * ctx, const std::vector<ggml_tensor *> & operations, packed_weights & weights);

    struct work;

private:
    std::vector<std::unique_ptr<work>> all;
};

#include "graph/packed_products.h"

#include "ggml-backend.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <new>
#include <utility>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define HAS_KERNEL
#include <cpuid.h>
#include <immintrin.h>
// compiled in, and used where the CPU has it
#define FOR_VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,f16c,fma")))
#endif

namespace {

constexpr int BLOCK  = 32; // columns that share a scale, in Q8_0
constexpr int PANEL  = 32; // rows that are multiplied at once
constexpr int TOKENS = 6;  // by so many tokens: their sums fill the registers
constexpr int CHUNK  = 16 * TOKENS;

// Q8_0 as ggml has it in files and memory.
struct q8_0_block {
    uint16_t scale; // F16
    int8_t   values[BLOCK];
};

// A block of columns of a panel of rows. A value v of the weights is v + 128 here, since the instruction multiplies
// unsigned integers by signed ones; four columns of a row are side by side, since it adds four products.
struct alignas(64) weight_block {
    uint16_t scales[PANEL]; // F16
    uint8_t  values[BLOCK / 4][PANEL][4];
};

// A block of a token's values.
struct value_block {
    float   scale;
    int32_t offset; // −128 times the sum of the values: what the weights' 128 add to a product, taken back
    int8_t  values[BLOCK];
};

} // namespace

struct packed_matrix {
    int64_t                         n_rows;
    int64_t                         n_blocks; // of a row
    std::unique_ptr<weight_block[]> blocks;   // those of a panel one after the other; rows beyond the last are zero
};

// An operation that several threads compute in parts.
struct packed_products::work {
    const packed_matrix * matrix = nullptr; // null: it makes value blocks

    // the next part; and how many threads have found that there is none
    std::atomic<int64_t> next{ 0 };
    std::atomic<int>     n_done{ 0 };

    template <typename Part> void share(int64_t n_parts, int n_threads, const Part & compute) {
        for (int64_t part = next++; part < n_parts; part = next++) {
            compute(part);
        }
        if (++n_done == n_threads) { // the graph may run again
            n_done = 0;
            next   = 0;
        }
    }
};

namespace {

int64_t n_panels(int64_t n_rows) {
    return (n_rows + PANEL - 1) / PANEL;
}

std::unique_ptr<packed_matrix> pack(const ggml_tensor * weight) {
    auto to = std::make_unique<packed_matrix>(
        packed_matrix{ .n_rows = weight->ne[1], .n_blocks = weight->ne[0] / BLOCK, .blocks = nullptr });
    to->blocks.reset(new weight_block[n_panels(to->n_rows) * to->n_blocks]); // not filled with zeros first

    const auto * rows = static_cast<const q8_0_block *>(weight->data);
    for (int64_t panel = 0; panel < n_panels(to->n_rows); panel++) {
        for (int64_t b = 0; b < to->n_blocks; b++) {
            static constexpr q8_0_block ZERO = {};
            const q8_0_block *          from[PANEL];
            weight_block &              block = to->blocks[panel * to->n_blocks + b];
            for (int i = 0; i < PANEL; i++) {
                const int64_t row = panel * PANEL + i;
                from[i]           = row < to->n_rows ? &rows[row * to->n_blocks + b] : &ZERO;
                block.scales[i]   = from[i]->scale;
            }
            for (int k = 0; k < BLOCK; k += 4) {
                for (int i = 0; i < PANEL; i++) {
                    uint32_t four;
                    memcpy(&four, from[i]->values + k, sizeof(four));
                    four ^= 0x80808080;
                    memcpy(block.values[k / 4][i], &four, sizeof(four));
                }
            }
        }
    }
    return to;
}

bool can_pack(const ggml_tensor * weight) {
    return weight->type == GGML_TYPE_Q8_0 && weight->op == GGML_OP_NONE && weight->ne[2] == 1 && weight->ne[3] == 1 &&
           ggml_is_contiguous(weight) && weight->data && weight->buffer && ggml_backend_buffer_is_host(weight->buffer);
}

#ifdef HAS_KERNEL

#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 warns of its own header's undefined vectors
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

int64_t n_chunks(int64_t n_tokens) {
    return (n_tokens + CHUNK - 1) / CHUNK;
}

// Whether the operation multiplies rows of values by a matrix.
bool is_product(const ggml_tensor * t) {
    if (t->op != GGML_OP_MUL_MAT || t->type != GGML_TYPE_F32) {
        return false;
    }
    const ggml_tensor * x = t->src[1];
    return x->type == GGML_TYPE_F32 && x->nb[0] == sizeof(float) && x->ne[2] == 1 && x->ne[3] == 1;
}

// As ggml makes Q8_0 of a row before it multiplies it.
FOR_VNNI void make_value_blocks(const float * x, int64_t n_blocks, value_block * to) {
    for (int64_t b = 0; b < n_blocks; b++) {
        const __m512 first   = _mm512_loadu_ps(x + b * BLOCK);
        const __m512 second  = _mm512_loadu_ps(x + b * BLOCK + 16);
        const float  largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(first), _mm512_abs_ps(second)));
        const __m512 inverse = _mm512_set1_ps(largest != 0 ? 127 / largest : 0);

        const __m512i values[] = { _mm512_cvtps_epi32(_mm512_mul_ps(first, inverse)),
                                   _mm512_cvtps_epi32(_mm512_mul_ps(second, inverse)) };
        __m512i       sums     = _mm512_setzero_si512();
        for (int half = 0; half < 2; half++) {
            const __m128i bytes = _mm512_cvtsepi32_epi8(values[half]);
            _mm_storeu_si128((__m128i *) (to[b].values + 16 * half), bytes);
            sums = _mm512_add_epi32(sums, _mm512_cvtepi8_epi32(bytes));
        }
        to[b].scale  = _cvtsh_ss(_cvtss_sh(largest / 127, _MM_FROUND_TO_NEAREST_INT)); // Q8_0 has it in F16
        to[b].offset = -128 * _mm512_reduce_add_epi32(sums);
    }
}

// A panel's products with N tokens. stride: from a token's values to the next one's, in blocks; and from its products to
// the next one's. first, second: which of the panel's rows 0 … 15 and 16 … 31 there are.
template <int N> FOR_VNNI void multiply_panel(const weight_block * weights,
                                              int64_t              n_blocks,
                                              const value_block *  values,
                                              float *              products,
                                              int64_t              stride,
                                              __mmask16            first,
                                              __mmask16            second) {
    __m512 sums[N][2];
#pragma GCC unroll 6
    for (int t = 0; t < N; t++) {
        sums[t][0] = sums[t][1] = _mm512_setzero_ps();
    }
    for (int64_t b = 0; b < n_blocks; b++) {
        __m512i dots[N][2];
#pragma GCC unroll 6
        for (int t = 0; t < N; t++) {
            dots[t][0] = dots[t][1] = _mm512_set1_epi32(values[t * n_blocks + b].offset);
        }
#pragma GCC unroll 8
        for (int k = 0; k < BLOCK / 4; k++) {
            const __m512i upper = _mm512_load_si512(weights[b].values[k][0]);
            const __m512i lower = _mm512_load_si512(weights[b].values[k][16]);
#pragma GCC unroll 6
            for (int t = 0; t < N; t++) {
                int32_t four;
                memcpy(&four, values[t * n_blocks + b].values + 4 * k, sizeof(four));
                dots[t][0] = _mm512_dpbusd_epi32(dots[t][0], upper, _mm512_set1_epi32(four));
                dots[t][1] = _mm512_dpbusd_epi32(dots[t][1], lower, _mm512_set1_epi32(four));
            }
        }
        const __m512 upper = _mm512_cvtph_ps(_mm256_load_si256((const __m256i *) weights[b].scales));
        const __m512 lower = _mm512_cvtph_ps(_mm256_load_si256((const __m256i *) (weights[b].scales + 16)));
#pragma GCC unroll 6
        for (int t = 0; t < N; t++) {
            const __m512 scale = _mm512_set1_ps(values[t * n_blocks + b].scale);

            sums[t][0] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(dots[t][0]), upper), scale, sums[t][0]);
            sums[t][1] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(dots[t][1]), lower), scale, sums[t][1]);
        }
    }
#pragma GCC unroll 6
    for (int t = 0; t < N; t++) {
        _mm512_mask_storeu_ps(products + t * stride, first, sums[t][0]);
        _mm512_mask_storeu_ps(products + t * stride + 16, second, sums[t][1]);
    }
}

// ggml's function of an operation. Its source are the values, F32 [n_columns, n_tokens]; the result has a row of value
// blocks for each token.
void make_values(ggml_tensor * to, int, int n_threads, void * data) {
    const ggml_tensor * x        = to->src[0];
    const int64_t       n_tokens = x->ne[1];
    static_cast<packed_products::work *>(data)->share(n_chunks(n_tokens), n_threads, [&](int64_t chunk) {
        const int64_t end = std::min(n_tokens, (chunk + 1) * CHUNK);
        for (int64_t token = chunk * CHUNK; token < end; token++) {
            make_value_blocks(reinterpret_cast<const float *>(static_cast<const char *>(x->data) + token * x->nb[1]),
                              x->ne[0] / BLOCK,
                              reinterpret_cast<value_block *>(static_cast<char *>(to->data) + token * to->nb[1]));
        }
    });
}

// Its source are the value blocks; the result is F32 [n_rows, n_tokens].
void multiply(ggml_tensor * to, int, int n_threads, void * data) {
    auto &                shared   = *static_cast<packed_products::work *>(data);
    const packed_matrix & matrix   = *shared.matrix;
    const auto *          values   = static_cast<const value_block *>(to->src[0]->data);
    auto *                products = static_cast<float *>(to->data);
    const int64_t         n_tokens = to->ne[1];
    const int64_t         n_blocks = matrix.n_blocks;

    using function                         = decltype(&multiply_panel<1>);
    static constexpr function multiply_n[] = { multiply_panel<1>, multiply_panel<2>, multiply_panel<3>,
                                               multiply_panel<4>, multiply_panel<5>, multiply_panel<6> };
    static_assert(std::size(multiply_n) == TOKENS);

    // the panels of one chunk of tokens come one after the other, so that its values stay in the cache
    shared.share(n_panels(matrix.n_rows) * n_chunks(n_tokens), n_threads, [&](int64_t part) {
        const int64_t        panel   = part % n_panels(matrix.n_rows);
        const int64_t        chunk   = part / n_panels(matrix.n_rows);
        const int64_t        end     = std::min(n_tokens, (chunk + 1) * CHUNK);
        const int64_t        row     = panel * PANEL;
        const int64_t        n_rows  = std::min<int64_t>(PANEL, matrix.n_rows - row);
        const uint32_t       present = (uint32_t) ((uint64_t{ 1 } << n_rows) - 1);
        const weight_block * weights = &matrix.blocks[panel * n_blocks];
        for (int64_t token = chunk * CHUNK; token < end; token += TOKENS) {
            const int64_t n = std::min<int64_t>(TOKENS, end - token);
            multiply_n[n - 1](weights, n_blocks, values + token * n_blocks, products + token * matrix.n_rows + row,
                              matrix.n_rows, (__mmask16) present, (__mmask16) (present >> 16));
        }
    });
}

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

// ggml lays out Q8_0 weights for AMX, where they are not in the memory of the host.
bool has_amx() {
    constexpr unsigned AMX_INT8 = 1u << 25; // of EDX of leaf 7
    unsigned           eax, ebx, ecx, edx;
    return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx & AMX_INT8);
}

#endif

} // namespace

packed_weights::packed_weights()  = default;
packed_weights::~packed_weights() = default;

bool packed_weights::are_supported() {
#ifdef HAS_KERNEL
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") &&
           __builtin_cpu_supports("fma") && !has_amx();
#else
    return false;
#endif
}

const packed_matrix * packed_weights::find(const ggml_tensor * weight) {
    if (!can_pack(weight)) {
        return nullptr;
    }
    const std::lock_guard lock(access);
    const auto [it, is_new] = packed.try_emplace(weight);
    if (is_new) {
        try {
            it->second = pack(weight);
        } catch (const std::bad_alloc &) {
            // ggml's own product needs none
        }
    }
    return it->second.get();
}

packed_products::packed_products()  = default;
packed_products::~packed_products() = default;

void packed_products::use(ggml_context * ctx, const std::vector<ggml_tensor *> & operations, packed_weights & weights) {
#ifdef HAS_KERNEL
    const auto new_work = [&](const packed_matrix * matrix) {
        all.push_back(std::make_unique<work>());
        all.back()->matrix = matrix;
        return all.back().get();
    };
    std::unordered_map<ggml_tensor *, ggml_tensor *> blocks_of; // several products may have the same values
    for (ggml_tensor * t : operations) {
        const packed_matrix * matrix = is_product(t) ? weights.find(t->src[0]) : nullptr;
        if (!matrix) {
            continue;
        }
        ggml_tensor *  x      = t->src[1];
        ggml_tensor *& blocks = blocks_of[x];
        if (!blocks) {
            blocks = ggml_custom_4d(ctx, GGML_TYPE_I8, matrix->n_blocks * (int64_t) sizeof(value_block), x->ne[1], 1, 1,
                                    &x, 1, make_values, GGML_N_TASKS_MAX, new_work(nullptr));
        }
        // readers know the operation by its address, so it becomes another one in its place
        const ggml_tensor * product = ggml_custom_4d(ctx, t->type, t->ne[0], t->ne[1], t->ne[2], t->ne[3], &blocks, 1,
                                                     multiply, GGML_N_TASKS_MAX, new_work(matrix));
        t->op                       = product->op;
        std::copy(std::begin(product->op_params), std::end(product->op_params), std::begin(t->op_params));
        std::copy(std::begin(product->src), std::end(product->src), std::begin(t->src));
    }
#else
    (void) ctx;
    (void) operations;
    (void) weights;
#endif
}

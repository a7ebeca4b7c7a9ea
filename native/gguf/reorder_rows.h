// Reorders the rows of Q and K, weights and biases, for an architecture that rotates other values together. NORM rope,
// as Llama's, rotates neighbours of a head; NEOX rope, as Qwen2's, rotates its halves.
#pragma once

#include <cstddef>
#include <cstdint>

// The rows of one head: new[2i] = old[i], new[2i + 1] = old[i + head/2]. Rows are quantized one by one, so that this
// changes no value.
void reorder_neox_to_norm(const char * in, char * out, size_t row_size, int64_t head);

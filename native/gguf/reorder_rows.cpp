#include "gguf/reorder_rows.h"

#include <cstring>

void reorder_neox_to_norm(const char * in, char * out, size_t row_size, int64_t head) {
    for (int64_t i = 0; i < head / 2; i++) {
        memcpy(out + (2 * i) * row_size, in + i * row_size, row_size);
        memcpy(out + (2 * i + 1) * row_size, in + (i + head / 2) * row_size, row_size);
    }
}

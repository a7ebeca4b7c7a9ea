// What llama.cpp's test of architectures uses of its examples' common library: logging, and filling a batch.
#pragma once

#include "llama.h"

#include <cstdio>
#include <vector>

#define LOG_LEVEL_DEBUG 4
#define LOG_LEVEL_ERROR 1
#define LOG(...)     printf(__VA_ARGS__)
#define LOG_INF(...) fprintf(stderr, __VA_ARGS__)
#define LOG_ERR(...) fprintf(stderr, __VA_ARGS__)

inline int    common_log_get_verbosity(ggml_log_level) { return 0; }
inline void   common_log_set_verbosity_thold(int) {}
inline void   common_log_flush(void *) {}
inline void * common_log_main() { return nullptr; }
inline void   common_init() {}

inline void common_batch_add(llama_batch & batch, llama_token token, llama_pos pos, const std::vector<llama_seq_id> & sequences, bool logits) {
    const int i = batch.n_tokens++;
    batch.token[i]     = token;
    batch.pos[i]       = pos;
    batch.n_seq_id[i]  = (int32_t) sequences.size();
    batch.seq_id[i][0] = sequences[0];
    batch.logits[i]    = logits;
}

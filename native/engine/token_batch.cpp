#include "engine/token_batch.h"

#include "engine/llama_errors.h"
#include "llama-context.h"

token_batch::token_batch(size_t room) : batch(llama_batch_init((int) room, 0, 1)) {
    batch.n_tokens = 0;
}

token_batch::~token_batch() {
    llama_batch_free(batch);
}

int token_batch::add(llama_token token, size_t position, size_t sequence, bool wants_logits) {
    const int i        = batch.n_tokens++;
    batch.token[i]     = token;
    batch.pos[i]       = (llama_pos) position;
    batch.n_seq_id[i]  = 1;
    batch.seq_id[i][0] = (llama_seq_id) sequence;
    batch.logits[i]    = wants_logits;
    return i;
}

int decode(llama_context * context, const llama_batch & batch) {
    const assertion_mode until_threads_are_done(assertion_mode::end_process);
    const int            status = llama_decode(context, batch);
    llama_synchronize(context);
    return status;
}

int decode_again(llama_context * context, const llama_token * tokens) {
    const assertion_mode until_threads_are_done(assertion_mode::end_process);
    const int            status = context->decode_again(tokens);
    llama_synchronize(context);
    return status;
}

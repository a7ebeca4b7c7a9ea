#include "engine/generate.h"

#include "engine/llama_errors.h"
#include "engine/threads.h"
#include "engine/token_batch.h"
#include "ggml-backend.h"
#include "llama-cpp.h"
#include "llama-model.h"
#include "llama.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

namespace {

// More at once make the largest products no faster.
constexpr size_t MOST_AT_ONCE = 64;

size_t at_once(const llama_model & model, const generate_request & request) {
    const bool has_state = llama_model_is_recurrent(&model) || llama_model_is_hybrid(&model);
    if (has_state && ggml_backend_dev_type(model.dev_layer(0)) == GGML_BACKEND_DEVICE_TYPE_CPU) {
        // ggml's products for AMX read beyond quantized matrices when a recurrent layer computes several sequences
        return 1;
    }
    const auto & hparams     = model.hparams;
    size_t       of_sequence = 1;
    for (uint32_t layer = 0; layer < hparams.n_layer(); layer++) {
        of_sequence += hparams.is_recr(layer) ? sizeof(float) * (hparams.n_embd_r() + hparams.n_embd_s()) :
                                                sizeof(ggml_fp16_t) * request.length *
                                                    (hparams.n_embd_k_gqa(layer) + hparams.n_embd_v_gqa(layer));
    }
    return std::clamp<size_t>(request.cache_bytes / of_sequence, 1, std::min(MOST_AT_ONCE, request.prompts.size()));
}

class generation {
public:
    generation(std::shared_ptr<llama_model> model, const generate_request & request, const task_control & control) :
        model(std::move(model)),
        request(request),
        control(control),
        n_vocab(llama_vocab_n_tokens(llama_model_get_vocab(this->model.get()))),
        n_at_once(at_once(*this->model, request)) {}

    std::vector<int32_t> run() {
        make_context();
        std::vector<int32_t> tokens;
        for (size_t first = 0; first < request.prompts.size(); first += n_at_once) {
            generate_from(first, tokens);
        }
        return tokens;
    }

private:
    const std::shared_ptr<llama_model> model;
    const generate_request &           request;
    const task_control &               control;
    const size_t                       n_vocab;
    const size_t                       n_at_once;

    std::shared_ptr<ggml_threadpool> threads;
    llama_context_ptr                context; // after the threads, so that it is freed before them

    size_t longest_prompt() const {
        size_t longest = 1;
        for (const auto & prompt : request.prompts) {
            longest = std::max(longest, prompt.size());
        }
        return longest;
    }

    void make_context() {
        llama_context_params params = llama_context_default_params();
        params.n_ctx                = (uint32_t) n_at_once * (request.length + 1); // one that is full would be shifted
        params.n_seq_max            = (uint32_t) n_at_once;
        params.kv_unified           = false; // no sequence attends to another
        params.n_batch              = (uint32_t) (n_at_once * longest_prompt());
        params.n_ubatch             = params.n_batch;
        params.n_threads            = request.n_threads;
        params.n_threads_batch      = request.n_threads;
        params.flash_attn_type =
            request.flash_attention ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
        params.abort_callback_data = (void *) &control;
        params.abort_callback      = [](void * data) { return static_cast<const task_control *>(data)->cancelled(); };
        context.reset(llama_init_from_model(model.get(), params));
        control.check();
        if (!context) {
            throw std::runtime_error(take_logged_errors("llama.cpp could not make a context"));
        }
        threads = make_threads(request.n_threads);
        if (threads) {
            llama_attach_threadpool(context.get(), threads.get(), nullptr);
        }
    }

    void compute(const token_batch & batch) {
        const int status = decode(context.get(), batch.get());
        control.check();
        if (status != 0) {
            throw std::runtime_error("generation failed: " +
                                     take_logged_errors("llama_decode returned " + std::to_string(status)));
        }
    }

    // A sequence that is being written.
    struct writer {
        std::vector<int32_t> tokens;
        llama_sampler_ptr    sampler;
        int                  output = 0; // which token of the last batch the next one follows
    };

    llama_sampler_ptr make_sampler(uint32_t seed) const {
        llama_sampler_ptr chain(llama_sampler_chain_init(llama_sampler_chain_default_params()));
        llama_sampler_chain_add(chain.get(), llama_sampler_init_top_k(1000)); // so that top-p sorts no more than these
        llama_sampler_chain_add(chain.get(), llama_sampler_init_top_p(request.top_p, 1));
        llama_sampler_chain_add(chain.get(), llama_sampler_init_dist(seed));
        return chain;
    }

    // The sequences from one on, as many as are computed at once; appends them.
    void generate_from(size_t first, std::vector<int32_t> & tokens) {
        std::vector<writer> writers(std::min(n_at_once, request.prompts.size() - first));
        token_batch         batch(n_at_once * longest_prompt());
        for (size_t i = 0; i < writers.size(); i++) {
            writer & w = writers[i];
            w.tokens   = request.prompts[first + i];
            w.sampler =
                make_sampler((request.seed + (uint32_t) (first + i)) & 0x7fffffff); // all ones mean a random seed
            for (size_t at = 0; at < w.tokens.size(); at++) {
                w.output = batch.add(w.tokens[at], at, i, at + 1 == w.tokens.size());
            }
        }
        llama_memory_clear(llama_get_memory(context.get()), true);
        while (batch.size() > 0) {
            compute(batch);
            draw(writers);
            batch.clear();
            size_t written = first * request.length;
            for (size_t i = 0; i < writers.size(); i++) {
                writer & w = writers[i];
                written += w.tokens.size();
                if (w.tokens.size() < request.length) {
                    w.output = batch.add(w.tokens.back(), w.tokens.size() - 1, i, true);
                }
            }
            control.progress((double) written, (double) (request.prompts.size() * request.length));
        }
        for (const writer & w : writers) {
            tokens.insert(tokens.end(), w.tokens.begin(), w.tokens.end());
        }
    }

    // Draws the next token of each sequence that isn't complete. With a large vocabulary, that takes as long as the
    // model does, so that threads share it.
    void draw(std::vector<writer> & writers) {
        std::vector<std::pair<writer *, const float *>> waiting;
        for (writer & w : writers) {
            if (w.tokens.size() < request.length) {
                waiting.emplace_back(&w, llama_get_logits_ith(context.get(), w.output));
            }
        }
        on_threads(request.n_threads, [&](size_t thread) {
            std::vector<llama_token_data> candidates(n_vocab);
            for (size_t i = thread; i < waiting.size(); i += (size_t) request.n_threads) {
                const auto & [w, logits] = waiting[i];
                for (size_t token = 0; token < n_vocab; token++) {
                    candidates[token] = { (llama_token) token, logits[token], 0 };
                }
                llama_token_data_array array = { candidates.data(), n_vocab, -1, false };
                llama_sampler_apply(w->sampler.get(), &array);
                w->tokens.push_back(array.data[array.selected].id);
            }
        });
    }
};

} // namespace

std::vector<int32_t> generate(const std::shared_ptr<llama_model> & model,
                              const generate_request &             request,
                              const task_control &                 control) {
    return generation(model, request, control).run();
}

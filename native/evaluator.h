// A patched context of a model: the negative log-likelihood of token sequences with any blocks left out.
#pragma once

#include "graph_patch.h"

#include <napi.h>

#include "ggml-cpp.h"

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

struct ggml_threadpool;
struct llama_context;
struct llama_model;

class Evaluator : public Napi::ObjectWrap<Evaluator> {
public:
    static void init(Napi::Env env, Napi::Object exports);

    explicit Evaluator(const Napi::CallbackInfo & info);

private:
    // Memory for the residual stream of one sequence at one boundary, on the device that computes it: F32 [n_embd, n_tokens]
    struct stream {
        ggml_context_ptr        context;
        ggml_backend_buffer_ptr buffer;
        ggml_tensor           * tensor = nullptr;
    };

    // What an evaluation left behind for others to start from.
    struct kept_boundary {
        std::vector<bool> before; // which of the blocks before the boundary were left out: it holds for just these skip sets
        stream            values;
    };

    // One after the other, each of `length` tokens.
    struct token_sequences {
        std::vector<int32_t> tokens;
        uint32_t             length;
    };

    // All that a running evaluation needs, so that it outlives a dispose().
    struct state {
        std::shared_ptr<llama_model>   model;
        graph_patch                    patch;
        std::shared_ptr<ggml_threadpool> threads;
        std::shared_ptr<llama_context> context; // after patch and threads: it is freed first
        uint32_t                       context_size = 0;
        uint32_t                       n_sequences  = 1;
        int                            n_threads    = 1;
        std::map<std::vector<int32_t>, std::vector<kept_boundary>> kept; // by the tokens of the sequence
        std::vector<stream>            unused;   // memory of kept boundaries that were forgotten
        std::map<std::pair<ggml_backend_buffer_type_t, int64_t>, stream> starts; // where graphs read the boundary that they start from
        std::atomic<uint64_t>          n_computed { 0 }; // blocks, over all evaluations
        std::atomic<uint64_t>          kept_bytes { 0 }; // of kept boundaries
        const class task_control     * control = nullptr; // of the running evaluation
        std::atomic<bool>              busy { false };

        void   evaluate(const token_sequences & sequences, const std::vector<bool> & skip, size_t keep, const class task_control & control, std::vector<float> & nll);
        void   score(const std::vector<int32_t> & tokens, const std::vector<uint32_t> & lengths, const std::vector<bool> & skip,
            const class task_control & control, std::vector<double> & sums);
        void   compare(const token_sequences & sequences, const std::vector<std::pair<size_t, size_t>> & pairs, const class task_control & control, std::vector<double> & means);
        void   hidden(const token_sequences & sequences, const std::vector<bool> & skip, const class task_control & control, std::vector<float> & values);
        void   diverge(const token_sequences & sequences, const std::vector<bool> & skip, state & dense, const class task_control & control, std::vector<float> & values);
        void   run(const struct llama_batch & batch);
        void   read_nll(float * out) const;
        void   forget(const std::vector<bool> & skip);
        stream stream_like(const ggml_tensor * tensor); // its tensor is null where there is no memory
    };
    std::shared_ptr<state> self;

    static Napi::Value create(const Napi::CallbackInfo & info);

    // arguments, checked
    std::vector<int32_t>             read_tokens(const Napi::CallbackInfo & info) const;
    std::shared_ptr<token_sequences> read_sequences(const Napi::CallbackInfo & info) const;
    std::vector<bool>                read_skip_set(const Napi::Value & value) const;

    // other: of an evaluator that the work uses too
    Napi::Value launch(Napi::Env env, const Napi::Value & options, std::function<void(const class task_control &)> work, std::function<Napi::Value(Napi::Env)> result,
        const std::shared_ptr<state> & other = nullptr);

    Napi::Value blocks(const Napi::CallbackInfo & info);
    Napi::Value graph(const Napi::CallbackInfo & info);
    Napi::Value evaluate(const Napi::CallbackInfo & info);
    Napi::Value score(const Napi::CallbackInfo & info);
    Napi::Value compare(const Napi::CallbackInfo & info);
    Napi::Value hidden(const Napi::CallbackInfo & info);
    Napi::Value diverge(const Napi::CallbackInfo & info);
    void        forget(const Napi::CallbackInfo & info);
    void        dispose(const Napi::CallbackInfo & info);
};

// A patched context of a model: computes batches of tokens with any blocks left out.
#pragma once

#include "engine/task.h"
#include "engine/threads.h"
#include "ggml-backend.h"
#include "ggml.h"
#include "graph/graph_patch.h"

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

struct llama_batch;
struct llama_context;
struct llama_model;

// Sequences of equal length, one after the other.
struct token_sequences {
    std::vector<int32_t> tokens;
    uint32_t             length; // tokens in a sequence

    size_t          count() const { return tokens.size() / length; }
    const int32_t * sequence(size_t i) const { return tokens.data() + i * length; }
};

// Thrown where a device has no memory for a run. The evaluator can go on with a smaller one.
struct out_of_memory_error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct evaluator_options {
    uint32_t  n_context;               // tokens of a sequence, at most; of a batch, where its sequences share a cache
    uint32_t  n_sequences     = 1;     // sequences in a batch, at most; fewer where a device has no memory for so many
    bool      shared_cache    = false; // the sequences of a batch share what they begin with
    int       n_threads       = 1;
    bool      flash_attention = true;
    ggml_type cache_type      = GGML_TYPE_F16;
    bool      keep_masks      = false;             // on the CPU too, for tests
    size_t    logits_bytes    = 256 * 1024 * 1024; // memory for logits; those of longer batches are computed in parts

    // Of the model, for products on the CPU; null: ggml's own products.
    std::shared_ptr<packed_weights> packed = nullptr;

    // Is asked of each operation of a run whether its values are wanted, and called when they are there.
    ggml_backend_sched_eval_callback on_operation      = nullptr;
    void *                           on_operation_data = nullptr;
};

class evaluator {
public:
    // Finds the model's blocks; throws where its graph isn't understood.
    evaluator(std::shared_ptr<llama_model> model, const evaluator_options & options, const task_control & control);

    const std::shared_ptr<llama_model> model;
    const evaluator_options            options;

    // Taken by who uses the evaluator, for as long as it does: it does one thing at a time.
    std::atomic<bool> busy{ false };

    const std::vector<residual_block> & blocks() const { return patch.blocks; }

    // Evaluators of the same model, each on half of the threads, that compute a sequence at a time: threads of one don't
    // wait for those of the other. None where the threads can't be halved, the model isn't on the CPU, or there is no
    // memory for their caches.
    std::vector<std::shared_ptr<evaluator>> halves(const task_control & control) const;

    // What the model computes outside of its blocks.
    const std::string & outer_signature() const { return patch.outer_signature; }

    // Of the last run: its operations, and those that write to a cache.
    int n_nodes() const { return patch.n_nodes; }

    int n_cache_writes() const { return patch.n_cache_writes; }

    // Of the last run: its parts that ran on one device each, between which values are copied.
    int n_splits() const;

    size_t n_vocab() const;

    // How many sequences may be computed at once now. Any thread may ask.
    uint32_t n_at_once() const { return at_once; }

    // Computes half as many at once from now on; false if it is one already.
    bool compute_fewer();

    // Computes a batch, from an empty cache. What it gives holds until the next run.
    const graph_outputs & run(graph_request request, const llama_batch & batch, const task_control & control);

    // Computes a sequence in which each token predicts the next one. The request's targets are set from it. Where memory
    // runs out, fewer sequences are computed at once from then on, whose caches take less.
    const graph_outputs & run_sequence(graph_request        request,
                                       const int32_t *      tokens,
                                       uint32_t             length,
                                       const task_control & control);

    // Computes several sequences at once, as many as n_at_once() at most, each as run_sequence does. Where
    // options.n_sequences is above 1, all of a sequence's positions are outputs, the last one too, so that the stream has as many tokens
    // behind the last layer's selection of outputs as before it: [n_embd, n · length] everywhere.
    const graph_outputs & run_together(graph_request                        request,
                                       const std::vector<const int32_t *> & sequences,
                                       uint32_t                             length,
                                       const task_control &                 control);

private:
    const bool                       on_cpu; // all of the model; what waits for a GPU doesn't need its cores
    graph_patch                      patch;
    std::shared_ptr<ggml_threadpool> threads;
    thread_choice                    n_threads;
    std::atomic<uint32_t>            at_once;
    std::shared_ptr<llama_context>
        context; // after patch and threads, so that it is freed before them; null: memory ran out

    // The task of the run that is going on; ggml asks it, on the thread of the run, whether to stop.
    const task_control * running = nullptr;

    // How many sequences the last batch had, and their length, if run_together computed it; else 0.
    size_t   last_sequences = 0;
    uint32_t last_length    = 0;

    void make_context();

    // Does some work again, with fewer sequences at once, for as long as memory runs out.
    template <typename Work> auto with_fewer(const Work & work) -> decltype(work()) {
        for (;;) {
            try {
                return work();
            } catch (const out_of_memory_error &) {
                if (!compute_fewer()) {
                    throw;
                }
            }
        }
    }

    int                   on_chosen_threads(const std::function<int()> & decode);
    const graph_outputs & compute(graph_request                request,
                                  const std::function<int()> & decode,
                                  const task_control &         control);
};

// Copies the values of tensors, one tensor after the other; returns where the next one's would go.
float * read_values(const std::vector<ggml_tensor *> & tensors, float * out);

// Copies the NLLs of sequences that were computed at once, [n × (length − 1)]; returns where the next ones would go.
float * read_nll(const graph_outputs & outputs, size_t n_sequences, uint32_t length, float * out);

// The NLL of each token but the first of each sequence, given those before: [count × (length − 1)].
std::vector<float> nll_of(evaluator &             on,
                          const token_sequences & sequences,
                          const skip_set &        skip,
                          const task_control &    control);

// What the logits are computed from, of each token but the last of each sequence: [count × (length − 1) × n_embd].
std::vector<float> hidden_of(evaluator &             on,
                             const token_sequences & sequences,
                             const skip_set &        skip,
                             const task_control &    control);

#include "engine/endings.h"

#include "llama.h"

#include <algorithm>
#include <utility>

namespace {

constexpr int32_t NONE = -1;

// The tokens of a choice that are computed: all but the last, which predicts nothing.
struct choice_tokens {
    const int32_t * tokens;
    size_t          length;
    size_t          n_context;

    // What the k-th token must predict: the next one, if that belongs to the ending.
    int32_t target(size_t k) const { return k + 1 < n_context ? NONE : tokens[k + 1]; }
};

// A batch of choices. Each is a sequence, and shares the tokens that it begins with with the choice before it, as far
// as these needn't predict something else.
class choices_batch {
public:
    choices_batch(size_t n_tokens, size_t n_sequences) :
        n_tokens_max(n_tokens),
        n_sequences_max(n_sequences),
        targets(n_tokens),
        batch(llama_batch_init((int) n_tokens, 0, (int) n_sequences)) {
        batch.n_tokens = 0;
    }

    ~choices_batch() { llama_batch_free(batch); }

    choices_batch(const choices_batch &)             = delete;
    choices_batch & operator=(const choices_batch &) = delete;

    bool has_room_for(const choice_tokens & choice) const {
        return n_sequences < n_sequences_max && batch.n_tokens + choice.length - n_shared(choice) <= n_tokens_max;
    }

    // number: the choice's, for whose sum the predictions are
    void add(const choice_tokens & choice, size_t number) {
        path.resize(n_shared(choice));
        for (size_t k = 0; k < choice.length; k++) {
            if (k == path.size()) {
                path.push_back(add_token(choice.tokens[k], k));
            }
            const int i                          = path[k];
            batch.seq_id[i][batch.n_seq_id[i]++] = (llama_seq_id) n_sequences;
            if (choice.target(k) != NONE) {
                targets[i] = choice.target(k);
                wanted.emplace_back(i, number);
            }
        }
        n_sequences++;
    }

    // Computes the batch, adds the NLLs to the sums of their choices, and empties the batch.
    void run(evaluator & on, const skip_set & skip, const task_control & control, std::vector<double> & sums) {
        if (batch.n_tokens == 0) {
            return;
        }
        graph_request request;
        request.skip          = skip;
        request.outputs_first = false;
        std::vector<size_t> output_of(batch.n_tokens);
        for (int i = 0; i < batch.n_tokens; i++) {
            batch.logits[i] = targets[i] != NONE;
            if (targets[i] != NONE) {
                output_of[i] = request.targets.size();
                request.targets.push_back(targets[i]);
            }
        }
        std::vector<float> nll(request.targets.size());
        read_values(on.run(std::move(request), batch, control).nll, nll.data());
        for (const auto & [i, number] : wanted) {
            sums[number] += nll[output_of[i]];
        }
        batch.n_tokens = 0;
        n_sequences    = 0;
        path.clear();
        wanted.clear();
    }

private:
    const size_t n_tokens_max;
    const size_t n_sequences_max;

    size_t                              n_sequences = 0;
    std::vector<int32_t>                targets; // what each token of the batch must predict, or NONE
    std::vector<int>                    path;    // where in the batch the tokens of the last choice are
    std::vector<std::pair<int, size_t>> wanted;  // tokens of the batch, and the choices whose endings they predict
    llama_batch                         batch;

    // How many tokens of a choice are there already, as the last choice's.
    size_t n_shared(const choice_tokens & choice) const {
        const size_t most = std::min(choice.length, path.size());
        for (size_t k = 0; k < most; k++) {
            const int  i        = path[k];
            const bool differs  = batch.token[i] != choice.tokens[k];
            const bool conflict = targets[i] != NONE && choice.target(k) != NONE && targets[i] != choice.target(k);
            if (differs || conflict) {
                return k;
            }
        }
        return most;
    }

    int add_token(int32_t token, size_t position) {
        const int i       = batch.n_tokens++;
        batch.token[i]    = token;
        batch.pos[i]      = (llama_pos) position;
        batch.n_seq_id[i] = 0;
        targets[i]        = NONE;
        return i;
    }
};

} // namespace

std::vector<double> score_endings(evaluator &          on,
                                  const choices &      choices,
                                  const skip_set &     skip,
                                  const task_control & control) {
    std::vector<double> sums(choices.count());
    choices_batch       batch(on.options.n_context, on.options.n_sequences);
    const int32_t *     tokens = choices.tokens.data();
    for (size_t i = 0; i < choices.count(); i++) {
        control.check();
        const uint32_t      n_context = choices.lengths[2 * i];
        const size_t        length    = n_context + choices.lengths[2 * i + 1];
        const choice_tokens choice    = { .tokens = tokens, .length = length - 1, .n_context = n_context };
        if (!batch.has_room_for(choice)) {
            batch.run(on, skip, control, sums);
            control.progress((double) i, (double) choices.count());
        }
        batch.add(choice, i);
        tokens += length;
    }
    batch.run(on, skip, control, sums);
    control.progress((double) choices.count(), (double) choices.count());
    return sums;
}

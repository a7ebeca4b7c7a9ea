#include "graph/kept_masks.h"

#include "ggml-cpp.h"
#include "llama-graph.h"

#include <cstring>
#include <utility>

namespace {

// Sets of sequences differ in how many they are, and there is one mask for each number; no more than so many are kept.
constexpr size_t MOST_MASKS = 16;

} // namespace

struct kept_masks::entry {
    ggml_context_ptr        context;
    ggml_backend_buffer_ptr buffer;
    ggml_tensor *           tensor = nullptr;
};

// Copies a mask when the inputs of its graph are set, of which it is the last. From then on another graph is to be
// built, which reads the copy.
class kept_masks::keeper : public llm_graph_input_i {
public:
    keeper(std::shared_ptr<entry> to, const ggml_tensor * mask) : to(std::move(to)), mask(mask) {}

    void set_input(const llama_ubatch *) override {
        if (mask->buffer && to->tensor == nullptr && to->buffer) {
            to->tensor = ggml_get_first_tensor(to->context.get());
            ggml_backend_tensor_set(to->tensor, mask->data, 0, ggml_nbytes(mask));
        }
    }

    bool can_reuse(const llm_graph_params &) override { return to->tensor == nullptr; }

private:
    std::shared_ptr<entry> to;
    const ggml_tensor *    mask;
};

bool is_mask(const ggml_tensor * t) {
    return is_input(t) && strcmp(t->name, "attn_inp_kq_mask") == 0;
}

ggml_tensor * kept_masks::find(llm_graph_result & res, ggml_tensor * mask, size_t number, uint32_t length) {
    if (!memory || length == 0) {
        return nullptr;
    }
    const key k{ number, length, mask->ne[0], ggml_nrows(mask) };
    if (!kept.count(k) && kept.size() == MOST_MASKS) {
        kept.clear();
    }
    std::shared_ptr<entry> & found = kept[k];
    if (!found) {
        found = std::make_shared<entry>();
        found->context.reset(
            ggml_init({ .mem_size = ggml_tensor_overhead(), .mem_buffer = nullptr, .no_alloc = true }));
        ggml_new_tensor(found->context.get(), mask->type, GGML_MAX_DIMS, mask->ne);
        found->buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(found->context.get(), memory));
    }
    if (!found->tensor) {
        res.add_input(std::make_unique<keeper>(found, mask));
    }
    return found->tensor;
}

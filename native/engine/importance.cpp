#include "engine/importance.h"

#include "ggml-backend.h"
#include "llama-model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <set>
#include <stdexcept>

namespace {

// A tensor's bytes, copied from the device where they are not in this process's memory.
class readable {
public:
    explicit readable(const ggml_tensor * t) {
        if (ggml_backend_buffer_is_host(t->buffer)) {
            bytes = static_cast<const char *>(t->data);
        } else {
            copy.resize(ggml_nbytes(t));
            ggml_backend_tensor_get(t, copy.data(), 0, copy.size());
            bytes = copy.data();
        }
    }

    template <typename T> const T * at(size_t offset) const { return reinterpret_cast<const T *>(bytes + offset); }

private:
    const char *      bytes;
    std::vector<char> copy;
};

class collector {
public:
    explicit collector(const llama_model & model) {
        for (const auto & [name, _] : model.tensors_by_name) {
            if (name.rfind("blk.", 0) == 0) {
                weights.emplace(name);
            }
        }
    }

    // llama.cpp's eval callback: is asked of an operation whether its values are wanted, and called when they are there.
    static bool on_operation(ggml_tensor * t, bool is_asked, void * self) {
        auto & me = *static_cast<collector *>(self);
        if (is_asked) {
            return me.is_product(t);
        }
        if (t->op == GGML_OP_MUL_MAT_ID) {
            me.add_experts(t);
        } else {
            me.add(t);
        }
        return true;
    }

    std::vector<tensor_importance> result() const {
        std::vector<tensor_importance> all;
        for (const auto & [name, of] : found) {
            tensor_importance one = { .tensor = name, .sums = {}, .counts = {} };
            one.sums.assign(of.sums.begin(), of.sums.end());
            one.counts.assign(of.counts.begin(), of.counts.end());
            if (std::all_of(one.sums.begin(), one.sums.end(), [](float sum) { return sum == 0; })) {
                one.counts.assign(one.counts.size(), 0); // of filler: zeros tell no column from another
            }
            if (!std::all_of(one.sums.begin(), one.sums.end(), [](float sum) { return std::isfinite(sum); })) {
                throw std::runtime_error("what " + name + " multiplies is not finite: it has no importance matrix");
            }
            all.push_back(std::move(one));
        }
        return all;
    }

private:
    struct totals {
        std::vector<double> sums;
        std::vector<double> counts;
    };

    std::set<std::string>         weights;
    std::map<std::string, totals> found;

    // The scheduler calls its copy of a weight on another device DEVICE#name#number.
    static std::string name_of(const ggml_tensor * weight) {
        const std::string name  = weight->name;
        const size_t      start = name.find('#');
        return start == std::string::npos ? name : name.substr(start + 1, name.find('#', start + 1) - start - 1);
    }

    bool is_product(const ggml_tensor * t) const {
        const bool is_product = t->op == GGML_OP_MUL_MAT || t->op == GGML_OP_MUL_MAT_ID;
        return is_product && t->src[1]->type == GGML_TYPE_F32 && weights.count(name_of(t->src[0])) > 0;
    }

    totals & totals_of(const ggml_tensor * weight, int64_t n_counts) {
        totals & of = found[name_of(weight)];
        of.sums.resize(weight->ne[0] * weight->ne[2] * weight->ne[3]);
        of.counts.resize(n_counts);
        return of;
    }

    static void add_squares(const float * row, int64_t n, double * sums) {
        for (int64_t i = 0; i < n; i++) {
            sums[i] += (double) row[i] * row[i];
        }
    }

    void add(const ggml_tensor * t) {
        const ggml_tensor * weight    = t->src[0];
        const ggml_tensor * input     = t->src[1];
        const int64_t       n_columns = weight->ne[0];
        const int64_t       n_mat     = weight->ne[2] * weight->ne[3];
        totals &            of        = totals_of(weight, 1);
        const readable      values(input);
        for (int64_t i3 = 0; i3 < input->ne[3]; i3++) {
            for (int64_t i2 = 0; i2 < input->ne[2]; i2++) {
                const int64_t matrix = (i3 % weight->ne[3]) * weight->ne[2] + i2 % weight->ne[2];
                for (int64_t i1 = 0; i1 < input->ne[1]; i1++) {
                    const size_t offset = i1 * input->nb[1] + i2 * input->nb[2] + i3 * input->nb[3];
                    add_squares(values.at<float>(offset), n_columns, of.sums.data() + matrix * n_columns);
                }
            }
        }
        of.counts[0] += (double) (ggml_nrows(input) / n_mat);
    }

    // input: [n_columns, experts used or 1, tokens]; ids: [experts used, tokens]
    void add_experts(const ggml_tensor * t) {
        const ggml_tensor * weight    = t->src[0];
        const ggml_tensor * input     = t->src[1];
        const ggml_tensor * ids       = t->src[2];
        const int64_t       n_columns = weight->ne[0];
        totals &            of        = totals_of(weight, weight->ne[2]);
        const readable      values(input), experts(ids);
        for (int64_t token = 0; token < ids->ne[1]; token++) {
            for (int64_t i = 0; i < ids->ne[0]; i++) {
                const int32_t expert = *experts.at<int32_t>(token * ids->nb[1] + i * ids->nb[0]);
                const size_t  offset = (i % input->ne[1]) * input->nb[1] + token * input->nb[2];
                add_squares(values.at<float>(offset), n_columns, of.sums.data() + expert * n_columns);
                of.counts[expert]++;
            }
        }
    }
};

} // namespace

std::vector<float> mean_squares_of(const tensor_importance & of) {
    if (of.counts.empty() || of.sums.size() % of.counts.size() != 0) {
        throw std::runtime_error("the importance of " + of.tensor + " has counts that don't fit its sums");
    }
    const size_t       n_columns = of.sums.size() / of.counts.size();
    std::vector<float> means(of.sums.size(), 1);
    for (size_t i = 0; i < means.size(); i++) {
        if (const float count = of.counts[i / n_columns]; count > 0) {
            means[i] = of.sums[i] / count;
        }
    }
    return means;
}

std::vector<tensor_importance> importance_of(const evaluator &       like,
                                             const token_sequences & sequences,
                                             const skip_set &        skip,
                                             const task_control &    control) {
    collector         collected(*like.model);
    evaluator_options options = like.options;
    options.n_sequences       = 1;
    options.n_context         = sequences.length;
    options.shared_cache      = false;
    options.packed            = nullptr; // the operations that are asked for are ggml's
    options.on_operation      = collector::on_operation;
    options.on_operation_data = &collected;
    evaluator on(like.model, options, control);
    for (size_t i = 0; i < sequences.count(); i++) {
        control.check();
        graph_request request;
        request.skip   = skip;
        request.output = graph_request::output_kind::hidden;
        on.run_sequence(std::move(request), sequences.sequence(i), sequences.length, control);
        control.progress((double) i + 1, (double) sequences.count());
    }
    return collected.result();
}

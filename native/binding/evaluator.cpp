#include "binding/evaluator.h"

#include "binding/async.h"
#include "binding/model.h"
#include "engine/divergence.h"
#include "engine/endings.h"
#include "engine/importance.h"
#include "engine/influence.h"
#include "engine/repair.h"
#include "llama-model.h"

#include <string>
#include <utility>

namespace {

// A number of the options, or what it is without.
double number_of(const Napi::Object & options, const char * name, double otherwise) {
    const Napi::Value value = options.Get(name);
    return value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : otherwise;
}

const char * name_of_rope(int rope) {
    switch (rope) {
        case -1:
            return "none";
        case GGML_ROPE_TYPE_NORMAL:
            return "norm";
        case GGML_ROPE_TYPE_NEOX:
            return "neox";
        default:
            return "other";
    }
}

template <typename T> std::vector<T> numbers_of(const Napi::Value & value) {
    const auto array = value.As<Napi::TypedArrayOf<T>>();
    return std::vector<T>(array.Data(), array.Data() + array.ElementLength());
}

choices read_choices(const evaluator & on, const Napi::Value & tokens, const Napi::Value & lengths) {
    choices read = { .tokens = read_tokens(on, tokens), .lengths = numbers_of<uint32_t>(lengths) };
    size_t  used = 0;
    for (size_t i = 0; i < read.count(); i++) {
        const uint32_t context = read.lengths[2 * i];
        const uint32_t ending  = read.lengths[2 * i + 1];
        const size_t   size    = (size_t) context + ending;
        if (context == 0 || ending == 0) {
            throw Napi::RangeError::New(tokens.Env(), "a context or an ending has no tokens");
        }
        if (size - 1 > on.options.n_context) {
            throw Napi::RangeError::New(tokens.Env(), "a choice has " + std::to_string(size) +
                                                          " tokens, more than fit into the context of " +
                                                          std::to_string(on.options.n_context));
        }
        used += size;
    }
    if (used != read.tokens.size()) {
        throw Napi::RangeError::New(tokens.Env(), "the lengths don't add up to the tokens");
    }
    return read;
}

// Evaluators that are taken for one task. They are given back at the end of the work, before its promise is settled,
// or, where the work never began, with this.
class lease {
public:
    lease(Napi::Env env, const std::vector<std::shared_ptr<evaluator>> & wanted) {
        for (const auto & one : wanted) {
            if (one->busy.exchange(true)) {
                give_back();
                throw Napi::Error::New(env, "the evaluator is at work: one evaluation at a time");
            }
            taken.push_back(one);
        }
    }

    ~lease() { give_back(); }

    lease(const lease &)             = delete;
    lease & operator=(const lease &) = delete;

    void give_back() {
        for (const auto & one : taken) {
            one->busy = false;
        }
        taken.clear();
    }

private:
    std::vector<std::shared_ptr<evaluator>> taken;
};

} // namespace

void Evaluator::init(Napi::Env env, Napi::Object exports) {
    Napi::Function cls = DefineClass(env, "Evaluator",
                                     {
                                         StaticMethod<&Evaluator::create>("create"),
                                         InstanceAccessor<&Evaluator::at_once>("atOnce"),
                                         InstanceMethod<&Evaluator::blocks>("blocks"),
                                         InstanceMethod<&Evaluator::graph>("graph"),
                                         InstanceMethod<&Evaluator::evaluate>("evaluate"),
                                         InstanceMethod<&Evaluator::score>("score"),
                                         InstanceMethod<&Evaluator::influence>("influence"),
                                         InstanceMethod<&Evaluator::hidden>("hidden"),
                                         InstanceMethod<&Evaluator::diverge>("diverge"),
                                         InstanceMethod<&Evaluator::importance>("importance"),
                                         InstanceMethod<&Evaluator::dispose>("dispose"),
                                     });

    env.GetInstanceData<addon_data>()->evaluator = Napi::Persistent(cls);
    exports.Set("Evaluator", cls);
}

// Only create() makes evaluators.
Evaluator::Evaluator(const Napi::CallbackInfo & info) : Napi::ObjectWrap<Evaluator>(info) {
    if (info.Length() != 1 || !info[0].IsExternal()) {
        throw Napi::TypeError::New(info.Env(), "use Evaluator.create()");
    }
    self = *info[0].As<Napi::External<std::shared_ptr<evaluator>>>().Data();
}

void Evaluator::dispose(const Napi::CallbackInfo &) {
    self.reset();
}

const std::shared_ptr<evaluator> & Evaluator::engine(Napi::Env env) const {
    if (!self) {
        throw Napi::Error::New(env, "the evaluator is disposed");
    }
    return self;
}

Napi::Value Evaluator::create(const Napi::CallbackInfo & info) {
    const Model &     of      = *Model::Unwrap(info[0].As<Napi::Object>());
    const auto        model   = of.llama(info.Env());
    const auto        options = info[1].As<Napi::Object>();
    const auto        cache   = options.Get("cacheType").ToString().Utf8Value();
    evaluator_options wanted  = {
        .n_context       = (uint32_t) number_of(options, "context", 0),
        .n_sequences     = (uint32_t) number_of(options, "sequences", 1),
        .shared_cache    = options.Get("sharedCache").ToBoolean(),
        .n_threads       = (int) number_of(options, "threads", 1),
        .flash_attention = options.Get("flashAttention").ToBoolean(),
        .cache_type      = cache == "f32" ? GGML_TYPE_F32 : GGML_TYPE_F16,
    };
    wanted.packed       = of.packed();
    wanted.keep_masks   = options.Get("keepMasks").ToBoolean();
    wanted.logits_bytes = (size_t) number_of(options, "logitsBytes", (double) wanted.logits_bytes);

    auto created = std::make_shared<std::shared_ptr<evaluator>>();
    return run_async(
        info.Env(), options,
        [=](const task_control & control) { *created = std::make_shared<evaluator>(model, wanted, control); },
        [created](Napi::Env env) -> Napi::Value {
            const auto engine = Napi::External<std::shared_ptr<evaluator>>::New(env, created.get());
            return env.GetInstanceData<addon_data>()->evaluator.New({ engine });
        });
}

Napi::Value Evaluator::at_once(const Napi::CallbackInfo & info) {
    return self ? Napi::Value(Napi::Number::New(info.Env(), self->n_at_once())) : info.Env().Undefined();
}

Napi::Value Evaluator::blocks(const Napi::CallbackInfo & info) {
    Napi::Env env   = info.Env();
    auto      array = Napi::Array::New(env);
    for (const auto & block : engine(env)->blocks()) {
        auto tensors = Napi::Array::New(env);
        for (const auto & name : block.weights) {
            tensors.Set(tensors.Length(), name);
        }
        auto reads = Napi::Array::New(env);
        for (const size_t other : block.reads) {
            reads.Set(reads.Length(), (double) other);
        }
        auto object = Napi::Object::New(env);
        object.Set("kind", name_of_kind(block.kind));
        object.Set("layer", block.layer);
        object.Set("tensors", tensors);
        object.Set("parallel", block.parallel);
        object.Set("refittable", can_refit(*engine(env), array.Length()));
        object.Set("inputsRefittable", can_refit_inputs(*engine(env), array.Length()));
        object.Set("cacheBytes", (double) block.cache_bytes);
        object.Set("direct", block.direct);
        object.Set("signature", block.signature);
        object.Set("rope", name_of_rope(block.rope));
        object.Set("reads", reads);
        array.Set(array.Length(), object);
    }
    return array;
}

Napi::Value Evaluator::graph(const Napi::CallbackInfo & info) {
    const evaluator & on     = *engine(info.Env());
    auto              object = Napi::Object::New(info.Env());
    object.Set("nodes", on.n_nodes());
    object.Set("cacheWrites", on.n_cache_writes());
    object.Set("splits", on.n_splits());
    object.Set("outerSignature", on.outer_signature());
    return object;
}

Napi::Value Evaluator::evaluate(const Napi::CallbackInfo & info) {
    const auto on        = engine(info.Env());
    const auto sequences = std::make_shared<token_sequences>(read_sequences(*on, info[0], info[1]));
    const auto skip      = read_skip_set(*on, info[2]);
    auto       nll       = std::make_shared<std::vector<float>>();
    return run_on(
        info.Env(), { on }, info[3],
        [=](const task_control & control) { *nll = nll_of(*on, *sequences, skip, control); },
        [nll](Napi::Env env) { return typed_array<Napi::Float32Array>(env, *nll); });
}

Napi::Value Evaluator::score(const Napi::CallbackInfo & info) {
    const auto on      = engine(info.Env());
    const auto choices = std::make_shared<::choices>(read_choices(*on, info[0], info[1]));
    const auto skip    = read_skip_set(*on, info[2]);
    auto       sums    = std::make_shared<std::vector<double>>();
    return run_on(
        info.Env(), { on }, info[3],
        [=](const task_control & control) { *sums = score_endings(*on, *choices, skip, control); },
        [sums](Napi::Env env) { return typed_array<Napi::Float64Array>(env, *sums); });
}

Napi::Value Evaluator::influence(const Napi::CallbackInfo & info) {
    const auto on        = engine(info.Env());
    const auto sequences = std::make_shared<token_sequences>(read_sequences(*on, info[0], info[1]));
    const auto pairs     = read_boundary_pairs(*on, info[2]);
    auto       means     = std::make_shared<std::vector<double>>();
    return run_on(
        info.Env(), { on }, info[3],
        [=](const task_control & control) {
            for (const auto & [cosine, change] : influence_of(*on, *sequences, pairs, control)) {
                means->insert(means->end(), { cosine, change });
            }
        },
        [means](Napi::Env env) { return typed_array<Napi::Float64Array>(env, *means); });
}

Napi::Value Evaluator::hidden(const Napi::CallbackInfo & info) {
    const auto on        = engine(info.Env());
    const auto sequences = std::make_shared<token_sequences>(read_sequences(*on, info[0], info[1]));
    const auto skip      = read_skip_set(*on, info[2]);
    auto       values    = std::make_shared<std::vector<float>>();
    return run_on(
        info.Env(), { on }, info[3],
        [=](const task_control & control) { *values = hidden_of(*on, *sequences, skip, control); },
        [values](Napi::Env env) { return typed_array<Napi::Float32Array>(env, *values); });
}

Napi::Value Evaluator::diverge(const Napi::CallbackInfo & info) {
    Napi::Env  env       = info.Env();
    const auto on        = engine(env);
    const auto sequences = std::make_shared<token_sequences>(read_sequences(*on, info[0], info[1]));
    const auto skip      = read_skip_set(*on, info[2]);
    const auto dense     = Evaluator::Unwrap(info[3].As<Napi::Object>())->engine(env);
    if (on->n_vocab() != dense->n_vocab()) {
        throw Napi::RangeError::New(env, "the models have different vocabularies, of " + std::to_string(on->n_vocab()) +
                                             " and " + std::to_string(dense->n_vocab()) + " tokens");
    }
    if (sequences->length > dense->options.n_context) {
        throw Napi::RangeError::New(env, "the other evaluator's context is shorter than the sequences");
    }
    const bool is_same = on == dense;
    auto       values  = std::make_shared<std::vector<float>>();
    return run_on(
        env, is_same ? std::vector{ on } : std::vector{ on, dense }, info[4],
        [=](const task_control & control) { *values = divergence_of(*on, *sequences, skip, *dense, control); },
        [values](Napi::Env env) { return typed_array<Napi::Float32Array>(env, *values); });
}

Napi::Value Evaluator::importance(const Napi::CallbackInfo & info) {
    const auto on        = engine(info.Env());
    const auto sequences = std::make_shared<token_sequences>(read_sequences(*on, info[0], info[1]));
    const auto skip      = read_skip_set(*on, info[2]);
    auto       found     = std::make_shared<std::vector<tensor_importance>>();
    return run_on(
        info.Env(), { on }, info[3],
        [=](const task_control & control) { *found = importance_of(*on, *sequences, skip, control); },
        [found](Napi::Env env) {
            auto all = Napi::Array::New(env);
            for (const auto & [tensor, sums, counts] : *found) {
                auto one = Napi::Object::New(env);
                one.Set("tensor", tensor);
                one.Set("sums", typed_array<Napi::Float32Array>(env, sums));
                one.Set("counts", typed_array<Napi::Float32Array>(env, counts));
                all.Set(all.Length(), one);
            }
            return all;
        });
}

std::vector<int32_t> read_tokens(const evaluator & on, const Napi::Value & value) {
    const auto tokens  = numbers_of<int32_t>(value);
    const auto n_vocab = (int32_t) on.n_vocab();
    for (const int32_t token : tokens) {
        if (token < 0 || token >= n_vocab) {
            throw Napi::RangeError::New(value.Env(), "token " + std::to_string(token) +
                                                         " is not in the vocabulary of " + std::to_string(n_vocab));
        }
    }
    return tokens;
}

token_sequences read_sequences(const evaluator & on, const Napi::Value & tokens, const Napi::Value & length) {
    token_sequences read = { .tokens = read_tokens(on, tokens), .length = length.As<Napi::Number>().Uint32Value() };
    const uint32_t  n_context = on.options.n_context;
    if (read.length < 2 || read.length > n_context || read.tokens.empty() || read.tokens.size() % read.length != 0) {
        throw Napi::RangeError::New(tokens.Env(), "the tokens must be whole sequences of 2 to " +
                                                      std::to_string(n_context) + " tokens");
    }
    return read;
}

skip_set read_skip_set(const evaluator & on, const Napi::Value & value) {
    const auto indexes = value.As<Napi::Array>();
    skip_set   skip(on.blocks().size());
    for (uint32_t i = 0; i < indexes.Length(); i++) {
        const auto index = indexes.Get(i).As<Napi::Number>().Uint32Value();
        if (index >= skip.size()) {
            throw Napi::RangeError::New(value.Env(), "there is no block " + std::to_string(index));
        }
        skip[index] = true;
    }
    return skip;
}

std::vector<std::pair<size_t, size_t>> read_boundary_pairs(const evaluator & on, const Napi::Value & numbers) {
    const auto                             boundaries = numbers_of<uint32_t>(numbers);
    std::vector<std::pair<size_t, size_t>> pairs;
    for (size_t i = 0; i + 1 < boundaries.size(); i += 2) {
        if (boundaries[i] > on.blocks().size() || boundaries[i + 1] > on.blocks().size()) {
            throw Napi::RangeError::New(numbers.Env(), "there is no such boundary");
        }
        pairs.emplace_back(boundaries[i], boundaries[i + 1]);
    }
    return pairs;
}

void check_idle(Napi::Env env, const evaluator & on) {
    if (on.busy) {
        throw Napi::Error::New(env, "the evaluator is at work: one evaluation at a time");
    }
}

Napi::Value run_on(Napi::Env                                       env,
                   const std::vector<std::shared_ptr<evaluator>> & used,
                   const Napi::Value &                             options,
                   std::function<void(const task_control &)>       work,
                   std::function<Napi::Value(Napi::Env)>           result) {
    for (const auto & one : used) {
        if (one->model->hparams.no_alloc) {
            throw Napi::Error::New(env, "the model was loaded without its weights: it can't be evaluated");
        }
    }
    const auto taken = std::make_shared<lease>(env, used);
    return run_async(
        env, options,
        [taken, work = std::move(work)](const task_control & control) {
            const std::unique_ptr<lease, void (*)(lease *)> at_end(taken.get(), [](lease * l) { l->give_back(); });
            work(control);
        },
        std::move(result));
}

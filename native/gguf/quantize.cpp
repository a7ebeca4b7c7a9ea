#include "gguf/quantize.h"

#include "engine/llama_errors.h"
#include "llama.h"

#include <cstdio>
#include <map>
#include <regex>
#include <stdexcept>

namespace {

const std::map<std::string, llama_ftype> types = {
    { "F32", LLAMA_FTYPE_ALL_F32 },          { "F16", LLAMA_FTYPE_MOSTLY_F16 },
    { "BF16", LLAMA_FTYPE_MOSTLY_BF16 },     { "Q8_0", LLAMA_FTYPE_MOSTLY_Q8_0 },
    { "Q6_K", LLAMA_FTYPE_MOSTLY_Q6_K },     { "Q5_1", LLAMA_FTYPE_MOSTLY_Q5_1 },
    { "Q5_K_M", LLAMA_FTYPE_MOSTLY_Q5_K_M }, { "Q5_0", LLAMA_FTYPE_MOSTLY_Q5_0 },
    { "Q5_K_S", LLAMA_FTYPE_MOSTLY_Q5_K_S }, { "Q4_1", LLAMA_FTYPE_MOSTLY_Q4_1 },
    { "Q4_K_M", LLAMA_FTYPE_MOSTLY_Q4_K_M }, { "Q4_K_S", LLAMA_FTYPE_MOSTLY_Q4_K_S },
    { "IQ4_NL", LLAMA_FTYPE_MOSTLY_IQ4_NL }, { "Q4_0", LLAMA_FTYPE_MOSTLY_Q4_0 },
    { "IQ4_XS", LLAMA_FTYPE_MOSTLY_IQ4_XS }, { "Q3_K_L", LLAMA_FTYPE_MOSTLY_Q3_K_L },
    { "Q3_K_M", LLAMA_FTYPE_MOSTLY_Q3_K_M }, { "Q3_K_S", LLAMA_FTYPE_MOSTLY_Q3_K_S },
    { "Q2_K", LLAMA_FTYPE_MOSTLY_Q2_K },     { "Q2_K_S", LLAMA_FTYPE_MOSTLY_Q2_K_S },
    { "IQ3_M", LLAMA_FTYPE_MOSTLY_IQ3_M },   { "IQ3_S", LLAMA_FTYPE_MOSTLY_IQ3_S },
    { "IQ3_XS", LLAMA_FTYPE_MOSTLY_IQ3_XS }, { "IQ3_XXS", LLAMA_FTYPE_MOSTLY_IQ3_XXS },
    { "IQ2_M", LLAMA_FTYPE_MOSTLY_IQ2_M },   { "IQ2_S", LLAMA_FTYPE_MOSTLY_IQ2_S },
    { "IQ2_XS", LLAMA_FTYPE_MOSTLY_IQ2_XS }, { "IQ2_XXS", LLAMA_FTYPE_MOSTLY_IQ2_XXS },
    { "IQ1_M", LLAMA_FTYPE_MOSTLY_IQ1_M },   { "IQ1_S", LLAMA_FTYPE_MOSTLY_IQ1_S },
};

} // namespace

std::vector<std::string> names_found(const std::string & pattern, const std::vector<std::string> & names) {
    const std::regex         compiled(pattern);
    std::vector<std::string> found;
    for (const auto & name : names) {
        if (std::regex_search(name, compiled)) {
            found.push_back(name);
        }
    }
    return found;
}

void quantize_gguf(const quantize_request & request, const task_control & control) {
    const auto found = types.find(request.type);
    if (found == types.end()) {
        throw std::runtime_error("there is no type '" + request.type + "' to quantize to");
    }
    // both lists end with an entry without a name
    std::vector<llama_model_imatrix_data> importance;
    for (const auto & [name, values] : request.importance) {
        importance.push_back({ name.c_str(), values.data(), values.size() });
    }
    importance.push_back({ nullptr, nullptr, 0 });
    std::vector<llama_model_tensor_override> tensor_types;
    for (const auto & [pattern, type] : request.tensor_types) {
        tensor_types.push_back({ pattern.c_str(), type });
    }
    tensor_types.push_back({ nullptr, GGML_TYPE_COUNT });

    llama_model_quantize_params params = llama_model_quantize_default_params();
    params.ftype                       = found->second;
    params.nthread                     = request.n_threads;
    params.allow_requantize            = true;
    params.imatrix                     = request.importance.empty() ? nullptr : importance.data();
    params.tt_overrides                = tensor_types.data();

    // The quantizer takes no callback. It logs each tensor on this thread, and passes on what is thrown there.
    const log_listener listener([&](const char * text) {
        control.check();
        int tensor, total;
        if (sscanf(text, "[%d/%d]", &tensor, &total) == 2) {
            control.progress(tensor, total);
        }
    });
    const bool         failed = llama_model_quantize(request.input.c_str(), request.output.c_str(), &params) != 0;
    control.check();
    if (failed) {
        throw std::runtime_error(take_logged_errors("llama.cpp could not quantize it"));
    }
}

// Makes the tiny random models of llama.cpp's own test of architectures, several layers deep:
//
//   fixtures list                            their names: NAME-dense or NAME-moe, one a line
//   fixtures make NAME FILE LAYERS BACKENDS  writes one; LAYERS at least, BACKENDS: the folder of ggml's CPU backends
//
// The test is compiled in from llama.cpp's source: it knows what metadata each architecture needs.
#define main test_llama_archs
#include "test-llama-archs.cpp"
#undef main

#include "ggml-backend.h"

// Random weights with which every block matters: matrices that keep the size of what they multiply, norms around 1.
static void set_random(ggml_tensor * tensor, void *) {
    std::mt19937                    gen(std::hash<std::string>()(tensor->name));
    std::normal_distribution<float> normal;
    const bool                      is_matrix = ggml_n_dims(tensor) > 1;
    const bool                      is_norm   = strstr(tensor->name, "norm") && strstr(tensor->name, ".weight");
    const bool         decays = strstr(tensor->name, "ssm_a") || strstr(tensor->name, "time_decay"); // must be negative
    const float        scale  = is_matrix && !decays ? 1.5f / sqrtf((float) tensor->ne[0]) : 0.2f;
    std::vector<float> values(ggml_nelements(tensor));
    for (float & value : values) {
        value = scale * normal(gen);
        value = decays ? -fabsf(value) : is_norm ? 1.0f + value : value;
    }
    GGML_ASSERT(tensor->type == GGML_TYPE_F32 || tensor->type == GGML_TYPE_F16);
    if (tensor->type == GGML_TYPE_F32) {
        ggml_backend_tensor_set(tensor, values.data(), 0, ggml_nbytes(tensor));
    } else {
        std::vector<ggml_fp16_t> half(values.size());
        ggml_fp32_to_fp16_row(values.data(), half.data(), (int64_t) values.size());
        ggml_backend_tensor_set(tensor, half.data(), 0, ggml_nbytes(tensor));
    }
}

static bool is_made(llm_arch arch, bool moe) {
    const bool has_no_fixture = arch == LLM_ARCH_UNKNOWN || arch == LLM_ARCH_GEMMA4 ||
                                arch == LLM_ARCH_GEMMA4_ASSISTANT || arch == LLM_ARCH_EAGLE3 ||
                                arch == LLM_ARCH_DFLASH; // as in save_models()
    return !has_no_fixture && llama_model_saver_supports_arch(arch) && arch_supported(arch) &&
           (moe ? moe_implemented(arch) : !moe_mandatory(arch));
}

static std::string name_of(llm_arch arch, bool moe) {
    return std::string(llm_arch_name(arch)) + (moe ? "-moe" : "-dense");
}

// Repeats the layers that the metadata describe.
static void deepen(gguf_context * file, const std::string & arch, uint32_t wanted) {
    const std::string count_key = arch + ".block_count";
    const uint32_t    n_layer   = gguf_get_val_u32(file, gguf_find_key(file, count_key.c_str()));
    const uint32_t    repeats   = (wanted + n_layer - 1) / n_layer;
    gguf_set_val_u32(file, count_key.c_str(), n_layer * repeats);

    std::vector<std::string> keys;
    for (int64_t i = 0; i < gguf_get_n_kv(file); i++) {
        const std::string key = gguf_get_key(file, i);
        if (key.rfind(arch + ".", 0) == 0 && gguf_get_kv_type(file, i) == GGUF_TYPE_ARRAY &&
            gguf_get_arr_n(file, i) == n_layer && key.find("dimension_sections") == std::string::npos &&
            key.find(".ple") == std::string::npos) {
            keys.push_back(key);
        }
    }
    for (const auto & key : keys) {
        const int64_t   id   = gguf_find_key(file, key.c_str());
        const gguf_type type = gguf_get_arr_type(file, id);
        GGML_ASSERT(type == GGUF_TYPE_UINT32 || type == GGUF_TYPE_FLOAT32);
        const uint32_t *      data = static_cast<const uint32_t *>(gguf_get_arr_data(file, id));
        std::vector<uint32_t> values;
        for (uint32_t i = 0; i < repeats; i++) {
            values.insert(values.end(), data, data + n_layer);
        }
        gguf_set_arr_data(file, key.c_str(), type, values.data(), values.size());
    }
}

int main(int argc, char ** argv) {
    const std::vector<std::string> args(argv + 1, argv + argc);
    const bool                     list = args.size() == 1 && args[0] == "list";
    const bool                     make = args.size() == 5 && args[0] == "make";
    for (const llm_arch & arch : llm_arch_all()) {
        for (const bool moe : { false, true }) {
            if (!is_made(arch, moe)) {
                continue;
            }
            if (list) {
                printf("%s\n", name_of(arch, moe).c_str());
            }
            if (make && args[1] == name_of(arch, moe)) {
#ifdef GGML_BACKEND_DL
                ggml_backend_load_all_from_path(args[4].c_str());
#endif
                gguf_context_ptr metadata = get_gguf_ctx(arch, moe);
                deepen(metadata.get(), llm_arch_name(arch), (uint32_t) std::stoul(args[3]));
                llama_model_params params = llama_model_default_params();
                params.n_gpu_layers       = 0;
                llama_model_ptr model(llama_model_init_from_user(metadata.get(), set_random, nullptr, params));
                if (!model) {
                    return 1;
                }
                llama_model_save_to_file(model.get(), args[2].c_str());
                return 0;
            }
        }
    }
    return list ? 0 : 2;
}

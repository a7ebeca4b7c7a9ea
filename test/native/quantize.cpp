// Writes a model with its weights in another type: quantize IN OUT TYPE, with TYPE as a number of llama_ftype.
#include "llama.h"

#include <cstdio>
#include <cstdlib>

int main(int argc, char ** argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: quantize IN OUT TYPE\n");
        return 2;
    }
    llama_model_quantize_params params = llama_model_quantize_default_params();
    params.ftype                       = (llama_ftype) atoi(argv[3]);
    params.allow_requantize            = true;
    return llama_model_quantize(argv[1], argv[2], &params) == 0 ? 0 : 1;
}

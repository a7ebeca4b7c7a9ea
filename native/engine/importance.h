// Importance matrices: how large the values are that the columns of a model's matrices multiply. A quantizer is the more
// careful about a column the larger these are. The same as llama.cpp's tool llama-imatrix gathers.
#pragma once

#include "engine/evaluator.h"

#include <string>
#include <vector>

// Of one tensor of the layers, which is a matrix, or a matrix for each expert. Where nothing but zeros was multiplied, the
// counts are 0.
struct tensor_importance {
    std::string        tensor;
    std::vector<float> sums;   // of the squares of what each column multiplied: [n_matrices × n_columns]
    std::vector<float> counts; // how many rows each matrix multiplied: [n_matrices], or one for all matrices
};

// The mean squares that a quantizer takes: [n_matrices × n_columns]; 1 where nothing was multiplied, as by an expert that no
// token was given to.
std::vector<float> mean_squares_of(const tensor_importance & of);

// Of all matrices that the model without some blocks multiplies on some sequences, by their names. `like` tells the model
// and how to evaluate it; a context of its own is made, so `like` isn't used. Memory: 8 bytes for each column.
std::vector<tensor_importance> importance_of(const evaluator &       like,
                                             const token_sequences & sequences,
                                             const skip_set &        skip,
                                             const task_control &    control);

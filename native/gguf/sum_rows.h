// Adds tensors, as the merging of layers needs it.
#pragma once

#include "gguf/plan.h"
#include "gguf/read.h"

#include <cstddef>
#include <memory>
#include <vector>

// Rows of the weighted sum of tensors of one shape, which may be of different types. row_length: values in a row
std::vector<float> sum_rows(const std::vector<std::unique_ptr<gguf_source>> & sources,
                            const std::vector<summand> &                      sum,
                            int64_t                                           row_length,
                            size_t                                            first,
                            size_t                                            n_rows);

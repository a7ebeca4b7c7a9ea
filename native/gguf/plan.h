// The plan of a GGUF file that is made of parts of others. GgufPlan in lib/runtime/addon.ts is what it comes from.
#pragma once

#include "ggml.h"

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

// A metadata value to set, of a type that set_value() in metadata.cpp knows; [] at the type's end makes it an array.
struct metadata_value {
    std::string              key;
    std::string              type;
    std::vector<std::string> strings;
    std::vector<double>      numbers;
};

struct tensor_reference {
    int         file = 0; // index into the plan's sources
    std::string name;     // there
};

struct summand {
    tensor_reference tensor;
    float            weight = 1;
};

// What a tensor's rows come from: a tensor's values; or, in its shape, a sum of tensors times their weights, and a change.
struct row_source {
    tensor_reference     tensor;
    std::vector<summand> sum;    // empty: the tensor's own values
    std::vector<float>   change; // is added to the sum, row after row; empty: nothing

    // Of each value of a row, how much it matters where the sum is quantized; empty: all matter alike.
    std::vector<float> importance;

    ggml_type sum_type = GGML_TYPE_COUNT; // what the sum is converted to; GGML_TYPE_COUNT: the tensor's own type
};

// A tensor to write: a copy, of several tensors with their rows one after the other, or values that are given here, of
// which rows are converted to the tensor's type.
struct planned_tensor {
    std::string name;

    std::vector<row_source> from;
    int64_t rope_head = 0; // reorder the rows of heads of this size, from NEOX to NORM rope order; 0: leave them

    // of a tensor that comes from none
    ggml_type            type = GGML_TYPE_F32;
    std::vector<int64_t> shape; // the length of a row first
    std::vector<float>   data;  // empty: zeros
};

struct gguf_plan {
    std::string              output;
    std::vector<std::string> sources;

    // The metadata is the first source's: less these keys, then with key prefixes renamed, then with some values of
    // arrays alone, then with other values.
    std::vector<std::string>                                   remove;
    std::vector<std::pair<std::string, std::string>>           rename;
    std::vector<std::pair<std::string, std::vector<uint32_t>>> select;
    std::vector<metadata_value>                                set;

    std::vector<planned_tensor> tensors;

    // Leave a hole for the tensors' bytes: for a file that is only looked at.
    bool header_only = false;
};

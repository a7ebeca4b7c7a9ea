// What blocks compute and what they read, told so that blocks of different models can be compared.
#pragma once

#include "graph/find_blocks.h"

#include <string>
#include <vector>

// Fills in, of each block, its signature, its rope and what it reads of other blocks, and leaves it the weights that
// are its alone.
void describe_blocks(const graph_view & graph, std::vector<found_block> & found);

// The signature of what the graph computes outside of the blocks.
std::string outer_signature_of(const graph_view & graph, const std::vector<found_block> & found, ggml_tensor * logits);

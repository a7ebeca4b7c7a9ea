// Writes the GGUF file that a plan describes.
#pragma once

#include "engine/task.h"
#include "gguf/plan.h"

// The tensor type of ggml's name, such as "q8_0".
ggml_type tensor_type_of(const std::string & name);

// Progress is told in bytes. Memory: some MiB, whatever the size of the file.
void write_gguf(const gguf_plan & plan, const task_control & control);

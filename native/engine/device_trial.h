// Whether a device computes: its backend may load without a fault and yet have no code for the card.
#pragma once

#include "ggml-backend.h"

// Computes a tiny graph on a device, of what models need most, and compares with what the CPU computes. Throws where
// the results differ, or there is no memory. A backend that can't go on ends the process.
void try_device(ggml_backend_dev_t device);

"""Writes an image projector with random weights, LLaVA's form, for a model of some embedding length: no sense.

    python3 random_projector.py OUTPUT EMBEDDING

Needs gguf (pip install gguf).
"""

import sys

import gguf
import numpy as np

output, n_embd_text = sys.argv[1], int(sys.argv[2])
n_embd, n_head, n_ff, n_layer, image, patch = 64, 4, 128, 2, 56, 14
random = np.random.default_rng(1)

writer = gguf.GGUFWriter(output, "clip")
writer.add_string("clip.projector_type", "mlp")
writer.add_bool("clip.has_vision_encoder", True)
writer.add_bool("clip.use_gelu", True)
for name, value in {
    "image_size": image,
    "patch_size": patch,
    "embedding_length": n_embd,
    "feed_forward_length": n_ff,
    "projection_dim": n_embd_text,
    "block_count": n_layer,
    "attention.head_count": n_head,
}.items():
    writer.add_uint32(f"clip.vision.{name}", value)
writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
writer.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
writer.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])


def add(name, *shape, scale=None):
    values = random.standard_normal(shape) * (scale if scale is not None else shape[-1] ** -0.5)
    writer.add_tensor(name, values.astype(np.float32))


def add_linear(name, n_in, n_out):
    add(f"{name}.weight", n_out, n_in)
    add(f"{name}.bias", n_out, scale=0.1)


def add_norm(name):
    writer.add_tensor(f"{name}.weight", np.ones(n_embd, np.float32))
    writer.add_tensor(f"{name}.bias", np.zeros(n_embd, np.float32))


add("v.class_embd", n_embd, scale=1)
add("v.patch_embd.weight", n_embd, 3, patch, patch, scale=0.05)
add("v.position_embd.weight", (image // patch) ** 2 + 1, n_embd, scale=1)
add_norm("v.pre_ln")
add_norm("v.post_ln")
for layer in range(n_layer):
    for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
        add_linear(f"v.blk.{layer}.{name}", n_embd, n_embd)
    add_linear(f"v.blk.{layer}.ffn_up", n_embd, n_ff)
    add_linear(f"v.blk.{layer}.ffn_down", n_ff, n_embd)
    add_norm(f"v.blk.{layer}.ln1")
    add_norm(f"v.blk.{layer}.ln2")
add_linear("mm.0", n_embd, n_embd_text)
add_linear("mm.2", n_embd_text, n_embd_text)

writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

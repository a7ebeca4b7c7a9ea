"""Writes a Llama with random weights, for benchmarks of a shape: no vocabulary, no sense.

    python3 random_model.py OUTPUT 7b|smollm2 [--type f16|q4_k]

Needs torch and gguf (pip install torch gguf).
"""

import argparse

import gguf
import numpy as np
import torch

SHAPES = {  # embedding, layers, heads, KV heads, FFN, vocabulary
    "7b": (4096, 32, 32, 32, 11008, 32000),
    "smollm2": (576, 30, 9, 3, 1536, 49152),
}

parser = argparse.ArgumentParser()
parser.add_argument("output")
parser.add_argument("shape", choices=SHAPES)
parser.add_argument("--type", default="f16", choices=["f16", "q4_k"])
args = parser.parse_args()
n_embd, n_layer, n_head, n_head_kv, n_ff, n_vocab = SHAPES[args.shape]
device = "cuda" if torch.cuda.is_available() else "cpu"

writer = gguf.GGUFWriter(args.output, "llama")
writer.add_context_length(8192)
writer.add_embedding_length(n_embd)
writer.add_block_count(n_layer)
writer.add_feed_forward_length(n_ff)
writer.add_head_count(n_head)
writer.add_head_count_kv(n_head_kv)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_rope_dimension_count(n_embd // n_head)
writer.add_vocab_size(n_vocab)
writer.add_tokenizer_model("none")


def blocks_of_q4_k(rows, columns):
    """Random blocks whose values are within ±0.03: 2 bytes d, 2 bytes dmin, 12 bytes of scales, 128 of quants."""
    n = rows * columns // 256
    data = torch.randint(0, 256, (n, 144), dtype=torch.uint8, device=device).cpu().numpy()
    # weights are d·scale·q − dmin·min, of 6-bit scales and mins and 4-bit q: centred where 7.5·d = dmin
    data[:, 0:2] = np.frombuffer(np.float16(6.0e-5).tobytes(), np.uint8)
    data[:, 2:4] = np.frombuffer(np.float16(4.5e-4).tobytes(), np.uint8)
    return data.reshape(rows, -1)


def add(name, rows, columns, quantized=True):
    if args.type == "q4_k" and quantized and columns % 256 == 0:
        writer.add_tensor(name, blocks_of_q4_k(rows, columns), raw_dtype=gguf.GGMLQuantizationType.Q4_K)
    else:
        values = torch.randn((rows, columns), dtype=torch.float16, device=device) * 0.02
        writer.add_tensor(name, values.cpu().numpy())


add("token_embd.weight", n_vocab, n_embd, quantized=False)
add("output.weight", n_vocab, n_embd, quantized=False)
writer.add_tensor("output_norm.weight", np.ones(n_embd, np.float32))
n_kv = n_embd // n_head * n_head_kv
for i in range(n_layer):
    writer.add_tensor(f"blk.{i}.attn_norm.weight", np.ones(n_embd, np.float32))
    writer.add_tensor(f"blk.{i}.ffn_norm.weight", np.ones(n_embd, np.float32))
    add(f"blk.{i}.attn_q.weight", n_embd, n_embd)
    add(f"blk.{i}.attn_k.weight", n_kv, n_embd)
    add(f"blk.{i}.attn_v.weight", n_kv, n_embd)
    add(f"blk.{i}.attn_output.weight", n_embd, n_embd)
    add(f"blk.{i}.ffn_gate.weight", n_ff, n_embd)
    add(f"blk.{i}.ffn_up.weight", n_ff, n_embd)
    add(f"blk.{i}.ffn_down.weight", n_embd, n_ff)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

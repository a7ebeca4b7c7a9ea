"""The paper's evaluation in PyTorch, as a peer for bench/gpu.mjs and bench/search.mjs: a Llama of a shape, with random
weights, computes the NLL of all tokens in batches of 8 sequences.

    python3 peer.py '{"hidden_size": 576, ...}' TOKENS LENGTH [--device cuda|cpu] [--threads N]

TOKENS is a file of int32. Prints {"device", "dtype", "pass", "head"} as JSON: the median of three passes, in seconds,
after one that warms up; the head alone is a pass over embeddings.
"""

import argparse
import json
import statistics
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

parser = argparse.ArgumentParser()
parser.add_argument("shape")
parser.add_argument("tokens")
parser.add_argument("length", type=int)
parser.add_argument("--device", default="cuda")
parser.add_argument("--dtype", default="bfloat16")
parser.add_argument("--threads", type=int)
args = parser.parse_args()
if args.threads:
    torch.set_num_threads(args.threads)

with open(args.tokens, "rb") as file:
    tokens = torch.frombuffer(bytearray(file.read()), dtype=torch.int32).long().view(-1, args.length).to(args.device)
config = LlamaConfig(**json.loads(args.shape), max_position_embeddings=args.length, attn_implementation="sdpa")
with torch.device(args.device):
    torch.set_default_dtype(getattr(torch, args.dtype))
    model = LlamaForCausalLM(config).eval()


def nll_of(logits, targets):
    return torch.nn.functional.cross_entropy(logits[:, :-1].float().transpose(1, 2), targets[:, 1:], reduction="none")


@torch.no_grad()
def whole():
    for batch in tokens.split(8):
        nll_of(model(batch, use_cache=False).logits, batch)


@torch.no_grad()
def head():
    for batch in tokens.split(8):
        nll_of(model.lm_head(model.model.norm(model.model.embed_tokens(batch))), batch)


def seconds(work):
    def once():
        started = time.perf_counter()
        work()
        if args.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    once()
    return statistics.median(once() for _ in range(3))


name = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
print(json.dumps({"device": name, "dtype": args.dtype, "pass": seconds(whole), "head": seconds(head)}))

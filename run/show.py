"""What a run shows. --show-batch: the first batch as the loss sees it, and what learns. Is the prompt masked? One look
tells. At the end: how well classes are told apart, or what was told behind masks."""

import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import tiktoken
import torch
from torch import nn

from data.batches import Batch, Batches
from data.examples import Example, Pair
from model.gpt import GPT
from model.head import Classes, classes_of
from run import pairs
from run.predict import accuracy, judged, macro_f1, precision_recall_f1, predicted

ROWS, EDGE = 3, 6  # rows shown; positions shown at each end of a long stretch that is graded, or is not
GREEN, GREY, PLAIN = "\033[32m", "\033[90m", "\033[0m"


def first_batch(batches: Batches, tokenizer: tiktoken.Encoding, model: GPT) -> dict:
    """Prints the first micro-batch and what learns: all that --show-batch does."""
    first = batches.of_step(0)[0]
    if isinstance(batches.examples[0], Pair):  # each rejected response after its chosen one
        order = torch.arange(len(first.inputs)).view(2, -1).T.reshape(-1)
        first = Batch(*(part[order] if part.dim() == 2 else part for part in first))
    print(batch(first, tokenizer, classes_of(model.attached)), what_learns(model), sep="\n\n")
    return {}


def batch(batch: Batch, tokenizer: tiktoken.Encoding, classes: Classes | None = None) -> str:
    """A line a position: what is read there, what must be predicted there, token or class, and whether it is graded.

    Graded positions are green and the others grey in a terminal; in a file, or with $NO_COLOR, there are words alone.
    """
    inputs, targets, graded, positions = batch
    lines = [f"{len(inputs)} rows of up to {inputs.size(1)} positions; {int(graded.sum()):,} of them are graded"]
    for b in range(min(ROWS, len(inputs))):
        where = positions if positions.dim() == 1 else positions[b]
        is_read = graded[b] if positions.dim() == 1 else graded[b] | (where > 0)
        end = int(is_read.nonzero().max()) + 1  # what follows is padding
        lines += [
            "",
            f"row {b}: {int(graded[b].sum())} of {end} positions are graded",
            f"    at  {'input':>18} -> target",
        ]
        for is_graded, stretch in groupby(range(end), key=lambda t: bool(graded[b, t])):
            ts = list(stretch)
            hidden = len(ts) - 2 * EDGE
            for t in ts[:EDGE] + ts[max(EDGE, len(ts) - EDGE) :]:
                if hidden > 0 and t == ts[-EDGE]:
                    lines.append(coloured(f"        … {hidden} more like these", is_graded))
                read, target = (repr(tokenizer.decode([int(tokens[b, t])])) for tokens in (inputs, targets))
                if classes:
                    target = classes.names[targets[b, t]] if is_graded else ""
                mark = "graded" if is_graded else "-"
                lines.append(coloured(f"{int(where[t]):>6}  {read:>18} -> {target:<18}  {mark}", is_graded))
        if end < inputs.size(1):
            lines.append(coloured(f"        {inputs.size(1) - end} positions of padding", False))
    if len(inputs) > ROWS:
        lines += ["", f"and {len(inputs) - ROWS} more rows"]
    return "\n".join(lines)


def what_learns(model: nn.Module) -> str:
    """Parameters by name, shape and number, the same of all blocks in one line: first those that learn."""
    lines = []
    for learns in (True, False):
        like: Counter[tuple[str, tuple[int, ...]]] = Counter()
        total = 0
        for name, parameter in model.named_parameters():
            if parameter.requires_grad == learns:
                name = re.sub(r"\.\d+\.", ".*.", name).replace(".adapters.default", "").replace(".base", "")
                like[name, tuple(parameter.shape)] += 1
                total += parameter.numel()
        lines.append(f"{'learns' if learns else 'frozen'}: {total:,} parameters")
        lines += [f"    {name:<40} {shape!s:<14} × {n}" for (name, shape), n in like.items()]
    return "\n".join(lines)


def coloured(line: str, is_graded: bool) -> str:
    in_colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    return f"{GREEN if is_graded else GREY}{line}{PLAIN}" if in_colour else line


# ---- at the end ------------------------------------------------------------------------------------------------------


def report(model: GPT, examples: Sequence[Any], batch_size: int, classes: Classes) -> str:
    """Accuracy and macro-F1; each class by itself; and of texts which class was taken for which. Of a reward model what
    run/pairs.py reports."""
    if classes.each == "response":
        return pairs.report(model, examples, batch_size)
    counts = judged(model, examples, batch_size, classes)
    there, names = counts.sum(1), [name[:16] for name in classes.names]
    always = f"{there.max() / there.sum():.1%} by always saying {names[there.argmax()]!r}"
    lines = [
        f"{there.sum():,} {classes.each}s: accuracy {accuracy(counts):.1%} ({always}), macro-F1 {macro_f1(counts):.3f}",
        f"{classes.each:>16}  number  precision  recall     F1",
    ]
    for name, n, *scores in zip(names, there, *precision_recall_f1(counts), strict=True):
        lines.append("{:>16} {:7,} {:10.3f} {:7.3f} {:6.3f}".format(name, n, *scores))
    if classes.each == "text":
        width = max(5, *(len(f"{n:,}") for n in counts.flat)) + 1
        lines += ["each class, and how many of it were taken for:"]
        lines += [" " * 19 + "".join(f"{f'({n})':>{width}}" for n in range(1, len(names) + 1))]
        for number, (name, row) in enumerate(zip(names, counts, strict=True), 1):
            lines.append(f"{name:>14} {f'({number})':>4}" + "".join(f"{n:{width},}" for n in row))
    return "\n".join(lines)


def filled(model: GPT, example: Example, tokenizer: tiktoken.Encoding) -> str:
    """What the model reads, with its masks, and the same with what it says in their place."""
    said = example.inputs.copy()
    said[example.graded] = predicted(model, [example], 1)[0]
    return f"{tokenizer.decode(example.inputs.tolist())}\n-> {tokenizer.decode(said.tolist())}"

"""--show-batch: the first batch as the loss sees it, and what learns. Is the prompt masked? One look tells."""

import os
import re
import sys
from collections import Counter
from itertools import groupby

import tiktoken
from torch import nn

from data.batches import Batch, Batches

ROWS, EDGE = 3, 6  # rows shown; positions shown at each end of a long stretch that is graded, or is not
GREEN, GREY, PLAIN = "\033[32m", "\033[90m", "\033[0m"


def first_batch(batches: Batches, tokenizer: tiktoken.Encoding, model: nn.Module) -> dict:
    """Prints the first micro-batch and what learns: all that --show-batch does."""
    print(batch(batches.of_step(0)[0], tokenizer), what_learns(model), sep="\n\n")
    return {}


def batch(batch: Batch, tokenizer: tiktoken.Encoding) -> str:
    """A line a position: what is read there, what must be predicted there, and whether it is graded.

    Graded positions are green and the others grey in a terminal; in a file, or with $NO_COLOR, there are words alone.
    """
    inputs, targets, graded, positions = batch
    lines = [f"{len(inputs)} rows of up to {inputs.size(1)} positions; {int(graded.sum()):,} of them are graded"]
    for b in range(min(ROWS, len(inputs))):
        end = int(graded[b].nonzero().max()) + 1  # what follows is padding
        where = positions if positions.dim() == 1 else positions[b]
        lines += [
            "",
            f"row {b}: {int(graded[b].sum())} of {end} positions are graded",
            f"    at  {'input':>18} -> target",
        ]
        for is_graded, stretch in groupby(range(end), key=lambda t: bool(graded[b, t])):
            ts = list(stretch)
            hidden = len(ts) - 2 * EDGE
            for t in ts[:EDGE] + ts[max(EDGE, len(ts) - EDGE) :]:
                if hidden > 1 and t == ts[-EDGE]:
                    lines.append(coloured(f"        … {hidden} more like these", is_graded))
                read, target = (repr(tokenizer.decode([int(tokens[b, t])])) for tokens in (inputs, targets))
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

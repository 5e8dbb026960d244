"""How well a model tells chosen responses from rejected ones: by its score, or by how likely it finds them."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from data.batches import in_order
from data.examples import Pair
from model.gpt import GPT, evaluating
from model.preference import log_likelihood

BINS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of how sure a model is


@torch.no_grad()
def pair_scores(model: GPT, pairs: Sequence[Pair], batch_size: int) -> Tensor:
    """(2, pairs) on the CPU: of the chosen and of the rejected responses the score that the model's head gives, or
    without such a head log π(y|x), in nats. The model's mode is as before afterwards."""
    device, found = model.wte.weight.device, []
    with evaluating(model):
        for batch in in_order(pairs, batch_size):
            inputs, targets, graded, positions = (tensor.to(device) for tensor in batch)
            if model.head is not None:
                scores = model(inputs, graded, positions).squeeze(-1)  # (B,), of B / 2 pairs
            else:
                scores = log_likelihood(model, inputs, targets, graded, positions)  # (B,), of B / 2 pairs
            found.append(scores.view(2, -1).cpu())
    return torch.cat(found, dim=1)


def pair_margins(model: GPT, pairs: Sequence[Pair], batch_size: int, reference: GPT | None = None) -> Tensor:
    """(pairs,) by how much each chosen response is ahead; with a reference, of log π(y|x) / π_ref(y|x), which is what
    DPO moves."""
    scores = pair_scores(model, pairs, batch_size)
    if reference is not None:
        scores = scores - pair_scores(reference, pairs, batch_size)
    return scores[0] - scores[1]


def pair_nll(model: GPT, pairs: Sequence[Pair], batch_size: int) -> float:
    """Mean -log σ of the margins: how unlikely a reward model finds what people preferred, in nats a pair."""
    return -F.logsigmoid(pair_margins(model, pairs, batch_size)).mean().item()


def pair_accuracy(margins: Tensor) -> float:
    """The share of pairs of which the chosen response is ahead; the same score for both is half right."""
    return ((margins > 0).float() + (margins == 0).float() / 2).mean().item()


def report(model: GPT, pairs: Sequence[Pair], batch_size: int, reference: GPT | None = None) -> str:
    """Accuracy and margins; of a reward model how often it is right where it says how sure it is, which should agree
    (calibration: Guo et al. 2017)."""
    margins = pair_margins(model, pairs, batch_size, reference)
    of_what = "scores" if model.head is not None else "log π(y|x)" + " / π_ref(y|x)" * (reference is not None)
    spread = f"{margins.std(correction=0):.3f}"
    lines = [
        f"{len(margins):,} pairs: the chosen response is ahead in {pair_accuracy(margins):.1%}, "
        f"by {margins.mean():.3f} ± {spread} on average, of {of_what}"
    ]
    if model.head is None and reference is None:
        lines.append("Longer responses are less likely: --reference RUN tells what has become likelier since that run.")
    if model.head is not None:
        sure, right = margins.abs().sigmoid(), margins > 0  # σ(|margin|) is how likely it finds its own choice
        lines.append(f"{'how sure':>12}  pairs   right")
        for low, high in pairwise(BINS):
            inside = (sure >= low) & ((sure < high) | (high == 1.0))
            if n := int(inside.sum()):
                lines.append(f"{low:>5.0%} – {high:>4.0%} {n:6,} {right[inside].float().mean():7.1%}")
        lines.append(f"on average {sure.mean():.1%} sure, and right in {right.float().mean():.1%}")
    return "\n".join(lines)

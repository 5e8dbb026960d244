"""What the loss asks where responses are compared: which of two is the better one, and how much better an answer of
one's own is than others to the same prompt.

Shapes:  B rows: first the chosen responses of B / 2 pairs, then the rejected; or K answers to each of B / K prompts ·
         T positions · N graded ones
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.gpt import GPT


def row_sums(values: Tensor, graded: Tensor) -> Tensor:
    """What stands at the graded positions, added up row by row.

    values: (N,), row by row, as a model gives them; graded: (rows, T) bool. Returns (rows,), without rows in which
    nothing is graded.
    """
    in_place = torch.zeros(graded.shape, dtype=values.dtype, device=values.device)
    return in_place.masked_scatter(graded, values).sum(-1)[graded.any(-1)]


def row_means(values: Tensor, graded: Tensor) -> Tensor:
    """The mean at the graded positions, row by row."""
    return row_sums(values, graded) / row_sums(torch.ones_like(values), graded)


def log_likelihood(model: GPT, inputs: Tensor, targets: Tensor, graded: Tensor, positions: Tensor) -> Tensor:
    """log π(y|x) of each row's response y after its prompt x, in nats: the sum over its tokens, not their mean.

    inputs, targets: (rows, T) ids; graded: (rows, T) bool; positions as GPT.hidden takes them. Returns (rows,).
    """
    log_p = model(inputs, graded, positions).log_softmax(-1)  # (N, V)
    return row_sums(log_p.gather(-1, targets[graded].unsqueeze(-1)).squeeze(-1), graded)


def preference_loss(scores: Tensor) -> Tensor:
    """-log σ(r⁺ - r⁻): how unlikely it is, by their scores, that the chosen response is the better one (Bradley and
    Terry 1952).

    Of a reward model the scores are its own (Ouyang et al. 2022, eq. 1). Of DPO they are β log π(y|x) / π_ref(y|x), the
    reward that a policy stands for (Rafailov et al. 2023, eq. 5; what depends on x alone cancels), and this is its loss
    (eq. 7). scores: (B,), chosen first. Returns (B / 2,) nats.
    """
    chosen, rejected = scores.chunk(2)  # (B / 2,) each
    return -F.logsigmoid(chosen - rejected)


def margins_of(scores: Tensor) -> dict[str, Tensor]:
    """By how much the chosen response is ahead, and whether it is, (B / 2,) each: for metrics.csv."""
    chosen, rejected = scores.detach().chunk(2)  # (B / 2,) each
    return {"margin": chosen - rejected, "accuracy": (chosen > rejected).float()}


def leave_one_out(rewards: Tensor) -> Tensor:
    """The advantage of each answer: its reward, less the mean reward of the other answers to its prompt (RLOO: Kool et
    al. 2019; Ahmadian et al. 2024, sec. 2.2). An answer's own reward in its baseline would take a part of it away.

    rewards: (B / K, K). Returns the same shape.
    """
    K = rewards.size(-1)
    others = (rewards.sum(-1, keepdim=True) - rewards) / (K - 1)  # (B / K, K)
    return rewards - others

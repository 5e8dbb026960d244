"""The head and the loss of a large vocabulary, in less memory and in less time: the same function as F.linear.

Of GPT-2's 50,257 tokens, the logits of 8 rows of 1,024 take 1.6 GB, their logarithms and both their gradients as much.

Shapes: N graded positions · C channels · V vocabulary
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK = 1024  # positions whose logits are there at a time


def bytes_of_a_logit(compiled: bool, width: int) -> int:
    """The most that is held of each logit when the loss turns into gradients: of itself, its logarithm and both their
    gradients three numbers of fp32 at a time. Compiled, it is one number of so many bytes (width), as the product with
    the head wrote it: measured on a CPU."""
    return width if compiled else 3 * 4


def log_p(model: Any, h: Tensor, targets: Tensor) -> Tensor:
    """What the scripts' loss reads of a GPT's logits: (N, C), (N, 1) -> (N, 1)."""
    return model.logits(h).log_softmax(-1).gather(-1, targets)


def log_p_to_compile(model: Any, h: Tensor, targets: Tensor) -> Tensor:
    """The same function, in a form of which a compiler makes one pass over the logits, and a second one that writes the
    gradient over them: gather's own gradient begins with as many zeros."""
    logits = model.logits(h)  # (N, V)
    is_target = torch.arange(logits.size(-1), device=logits.device) == targets  # (N, V)
    return torch.where(is_target, logits, 0.0).sum(-1, keepdim=True) - logits.logsumexp(-1, keepdim=True)


def logits_of_loss(model: Any, h: Tensor) -> "LogitsOfLoss | Tensor":
    """Of a GPT whose head is asked for in chunks, or is compiled, for states h, (N, C): what stands for their logits,
    or, of few positions, the logits themselves, (N, V)."""
    compiled = model.compiled_log_p if h.requires_grad else None
    free = model.compiled_log_p is not None and not h.requires_grad  # where nothing learns, chunks cost nothing
    in_chunks = len(h) > CHUNK and (model.head_in_chunks or free)
    return LogitsOfLoss(h, partial(compiled or log_p, model), in_chunks) if compiled or in_chunks else model.logits(h)


class LogitsOfLoss:
    """Stands for the logits of N positions, (N, V), in a loss that reads

        nll = -logits.log_softmax(-1).gather(-1, targets)

    and computes just that, as soon as it knows the targets: compiled, so that no logarithm is written out; or
    CHUNK positions at a time. Then logits are not kept: the backward pass computes them anew, chunk by chunk, as
    checkpointed blocks do (Chen et al. 2016). That is one more product with the head a step.
    """

    def __init__(self, h: Tensor, log_p: Callable[[Tensor, Tensor], Tensor], in_chunks: bool) -> None:
        """h: (N, C), the last layer's states; log_p: what that loss reads of n of them, (n, C), (n, 1) -> (n, 1)."""
        self.h, self.log_p, self.in_chunks, self.requires_grad = h, log_p, in_chunks, h.requires_grad
        self.hooks: list[Callable[[Tensor], Tensor]] = []

    def register_hook(self, hook: Callable[[Tensor], Tensor]) -> None:
        """For fp16, which scales the gradient here (run/device.py): the nll's is scaled, and the logits' with it."""
        self.hooks.append(hook)

    def log_softmax(self, dim: int) -> "LogitsOfLoss":
        return self  # gather does it

    def gather(self, dim: int, targets: Tensor) -> Tensor:
        """Log-probabilities of the targets: (N, 1), as they are."""
        if self.in_chunks:
            parts = zip(self.h.split(CHUNK), targets.split(CHUNK), strict=True)
            # nothing is random here: there is no state to keep
            said = [checkpoint(self.log_p, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
            log_p = torch.cat(said)  # (N, 1)
        else:
            log_p = self.log_p(self.h, targets)
        for hook in self.hooks:
            log_p.register_hook(hook)
        return log_p


def padded_linear(h: Tensor, weight: Tensor) -> Tensor:
    """F.linear with rows of zeros that make V a multiple of 64: a GPU's matrix units read eight numbers and more at
    once, and rows of 50,257 logits do not begin where they can.

    h: (N, C); weight: (V, C). Returns (N, V). Inside of autocast, in its precision.
    """
    V, device = len(weight), h.device.type
    if torch.is_autocast_enabled(device):
        weight = weight.to(torch.get_autocast_dtype(device))
    return F.linear(h, F.pad(weight, (0, 0, 0, -V % 64)))[..., :V]

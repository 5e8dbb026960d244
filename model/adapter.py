"""Adapters: small bottlenecks in a frozen model (Houlsby et al. 2019, https://arxiv.org/abs/1902.00751).

What attention, or the MLP, adds to the residual stream goes through a bottleneck first, which learns (sec. 2.1):

    h  becomes  h + up(gelu(down(h)))

Shapes:  h (B, T, C) · down: C to width · up: width to C, with a width far below C. up starts at zero, so that the
model starts as its base, exactly. A gelu stands in the middle, so none of it can be merged into the base's matrices.
Houlsby et al. also train the LayerNorms; here they stay frozen, as all of the base.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from cli import Mistake
from model.gpt import GPT
from model.switch import Place, is_new, learn


class Bottleneck(nn.Module):
    """h -> h + up(gelu(down(h))). down is drawn as PyTorch draws a Linear, up is zero."""

    def __init__(self, C: int, width: int) -> None:
        super().__init__()
        self.down = nn.Linear(C, width)
        self.up = nn.Linear(width, C)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.up(F.gelu(self.down(h)))  # (B, T, C), (B, T, width) inside


class WithBottleneck(Place):
    """A block's attention or MLP with named bottlenecks after it, of which one at most is active."""

    def forward(self, x: Tensor, *how) -> Tensor:
        h, bottleneck = self.base(x, *how), self.acting()  # (B, T, C)
        return h if bottleneck is None else bottleneck(h)


def apply_adapter(model: GPT, width: int, mlp_only: bool = False, name: str = "default") -> list[nn.Parameter]:
    """Freezes the model and puts a new, active bottleneck after each block's attention and MLP, or after its MLP alone.
    One of that name that is there already, of the same settings, goes on learning.

    Returns what learns: 2 C width + C + width numbers a bottleneck. Changes the model in place, and notes in
    model.attached how to do it again. Raises Mistake (a ValueError) for a width below 1, another adapter of that name,
    and while LoRA is merged.
    """
    if width < 1:
        raise Mistake(f"a bottleneck's width must be at least 1, got {width}")
    note = {"apply": "adapter", "width": width, "mlp_only": mlp_only, "name": name}
    new, bottlenecks = is_new(model, note), []
    for block in model.blocks:
        for part in ("mlp",) if mlp_only else ("attn", "mlp"):
            if not isinstance(getattr(block, part), WithBottleneck):
                setattr(block, part, WithBottleneck(getattr(block, part)))
            place = getattr(block, part)
            if new:
                place.adapters[name] = Bottleneck(model.config.n_embd, width).to(model.wte.weight)
            bottlenecks.append(place.adapters[name])
    return learn(model, note, bottlenecks)

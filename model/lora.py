"""LoRA: low-rank adaptation of a frozen model (Hu et al. 2021, https://arxiv.org/abs/2106.09685).

A frozen Linear h = W0 x gets a thin path beside it, which learns:   h = W0 x + (alpha / r) B A x      (eq. 3, scaled)

Shapes:  W0 (d_out, d_in) · A (r, d_in) · B (d_out, r), with the rank r far below d_in and d_out.
B starts at zero, so that the model starts as its base, exactly.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cli import Mistake, listed
from model.switch import Place, is_new, learn, places, plain_names, refuse_if_merged

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")  # every Linear of a block


class LowRank(nn.Module):
    """The thin path, x -> (alpha / r) B A x. A is drawn Kaiming-uniform as in PEFT, B is zero."""

    def __init__(self, d_in: int, d_out: int, r: int, alpha: float, dropout: float) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(r, d_in), a=math.sqrt(5)))
        self.lora_B = nn.Parameter(torch.zeros(d_out, r))
        self.alpha, self.scaling = alpha, alpha / r
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        z = self.scaling * (self.dropout(x) @ self.lora_A.T)  # (.., d_in) -> (.., r)
        return z @ self.lora_B.T  # (.., d_out)

    def delta(self) -> Tensor:
        """What merging adds to W0: (d_out, d_in), of rank r at most."""
        return self.scaling * (self.lora_B @ self.lora_A)


class LoRALinear(Place):
    """A frozen Linear with named adapters beside it, of which one at most is active."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base)
        self.weight_before_merge: Tensor | None = None  # W0, kept while an adapter is merged into it

    @property
    def merged(self) -> bool:  # type: ignore[override]
        return self.weight_before_merge is not None

    def forward(self, x: Tensor) -> Tensor:
        adapter = self.acting()
        if adapter is None:
            return self.base(x)  # (.., d_out)
        return self.base(x) + adapter(x)  # in training FusedLoRALinear computes it, faster (model/fused_lora.py)

    def acting(self) -> LowRank | None:
        """The adapter that adds to what the base says; none while it is merged into the base."""
        return None if self.merged else super().acting()


def targets_of(targets: str | Iterable[str], known: Iterable[str] = TARGETS) -> set[str]:
    """The last names of layers, given with commas between or one by one. Raises Mistake for one that is not known."""
    names = {name.strip() for name in (targets.split(",") if isinstance(targets, str) else targets)}
    unknown = names - set(known)
    if unknown or not names:
        raise Mistake(f"LoRA's targets must be among {', '.join(TARGETS)}; got {listed(sorted(unknown))}")
    return names


def apply_lora(
    model: nn.Module,
    r: int,
    alpha: float,
    dropout: float = 0.0,
    targets: str | Iterable[str] = TARGETS,
    name: str = "default",
) -> list[nn.Parameter]:
    """Freezes the model and puts a new, active adapter beside each Linear whose last name is one of the targets. An
    adapter of that name that is there already, of the same r, alpha and targets, goes on learning.

    Returns what learns: A and B, r (d_in + d_out) numbers a layer. Changes the model in place, and notes in
    model.attached how to do it again. Raises Mistake (a ValueError) for a rank below 1, an unknown target, another
    adapter of that name, and while an adapter is merged.
    """
    linears = {path: module for path, module in model.named_modules() if isinstance(module, nn.Linear | LoRALinear)}
    linears = {path: m for path, m in linears.items() if path.split(".")[-1] != "base" and ".adapters." not in path}
    targets = targets_of(targets, {path.split(".")[-1] for path in linears})
    if r < 1:
        raise Mistake(f"LoRA's rank r must be at least 1, got {r}")
    note = {"apply": "lora", "r": r, "alpha": float(alpha), "targets": sorted(targets), "name": name}
    new, adapters = is_new(model, note), []
    for path, layer in linears.items():
        if path.split(".")[-1] in targets:
            if isinstance(layer, nn.Linear):
                layer = LoRALinear(layer)
                parent, _, last = path.rpartition(".")
                setattr(model.get_submodule(parent), last, layer)
            if new:
                W0 = layer.base.weight
                layer.adapters[name] = LowRank(W0.size(1), W0.size(0), r, alpha, dropout).to(W0)
            layer.adapters[name].dropout.p = dropout
            adapters.append(layer.adapters[name])
    return learn(model, note, adapters)


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    for path, module in model.named_modules():
        if isinstance(module, LoRALinear):
            yield path, module


@contextmanager
def scaled(model: nn.Module, by: float) -> Iterator[None]:
    """Within it the active adapter counts `by` times: h = W0 x + by (alpha / r) B A x, with 0 the base."""
    paths = [adapter for _, layer in lora_layers(model) if (adapter := layer.acting()) is not None]
    for path in paths:
        path.scaling *= by
    try:
        yield
    finally:
        for path in paths:
            path.scaling = path.alpha / path.lora_A.size(0)


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """W0 becomes W0 + (alpha / r) B A of the active adapter, so that inference costs what the base costs."""
    refuse_if_merged(model)
    if any(place.active and not isinstance(place, LoRALinear) for place in places(model)):
        raise Mistake("only LoRA can be merged: bottlenecks and prefixes are not of the form W0 x, so they stay beside")
    for _, layer in lora_layers(model):
        if layer.active is not None:
            layer.weight_before_merge = layer.base.weight.clone()
            layer.base.weight += layer.adapters[layer.active].delta()


@torch.no_grad()
def unmerge(model: nn.Module) -> None:
    """Puts W0 back bit for bit, which subtracting the product would not."""
    for _, layer in lora_layers(model):
        if layer.weight_before_merge is not None:
            layer.base.weight.copy_(layer.weight_before_merge)
            layer.weight_before_merge = None


def lora_state_dict(model: nn.Module, name: str = "default") -> dict[str, Tensor]:
    """A and B of one adapter, and nothing else."""
    state = {path: p.detach() for path, p in plain_names(model, name).items() if is_of_lora(path)}
    if not state:
        raise ValueError(f"the model has no adapter named {name!r}")
    return state


def is_of_lora(path: str) -> bool:
    return path.endswith((".lora_A", ".lora_B"))

"""LoRA: low-rank adaptation of a frozen model (Hu et al. 2021, https://arxiv.org/abs/2106.09685).

A frozen Linear h = W0 x gets a thin path beside it, which learns:   h = W0 x + (alpha / r) B A x      (eq. 3)

Shapes:  W0 (d_out, d_in) · A (r, d_in) · B (d_out, r), with the rank r far below d_in and d_out.
B starts at zero, so that the model starts as its base, exactly.
"""

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

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


class FusedLoRA(torch.autograd.Function):
    """The same function as Linear(x) + LowRank(x), with its gradients by hand: nothing as large as h is made twice.

    With s = alpha / r, z = s A x and dh the gradient of h:

        h = W0 x + b + B z        dx = W0ᵀ dh + Aᵀ dz        dB = dh zᵀ        dz = s Bᵀ dh        dA = dz xᵀ

    W0 is frozen: its gradient, dh xᵀ, is as much work as h, and is what LoRA saves. The thin matrices z and dz are
    short and wide, (r, N): CPUs multiply those up to three times as fast as tall ones.
    """

    @staticmethod
    def forward(ctx, x: Tensor, W0: Tensor, b: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
        """x: (N, d_in), in the precision to compute in. Returns h: (N, d_out).

        For the gradients it keeps x and z; W0, A and B are there anyway.
        """
        z = scaling * (A @ x.T)  # (r, N)
        ctx.save_for_backward(x, z, W0, A, B)
        ctx.scaling = scaling
        h = torch.addmm(b.to(x.dtype), x, W0.to(x.dtype).T)  # (N, d_out)
        return h.addmm_(z.T, B.T)  # in place

    @staticmethod
    @once_differentiable
    def backward(ctx, dh: Tensor):
        x, z, W0, A, B = ctx.saved_tensors
        dz = ctx.scaling * (B.T @ dh.T)  # (r, N)
        dx = (dh @ W0.to(dh.dtype)).addmm_(dz.T, A) if ctx.needs_input_grad[0] else None  # (N, d_in)
        db = dh.sum(0) if ctx.needs_input_grad[2] else None  # b is frozen too, unless somebody lets it learn
        return dx, None, db, dz @ x, (z @ dh).T, None


class LoRALinear(nn.Module):
    """A frozen Linear with named adapters beside it, of which one at most is active."""

    fused = True  # the switch: LoRALinear.fused = False steps through LowRank, as training with LoRA's dropout does

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.adapters: dict[str, LowRank] = nn.ModuleDict()  # type: ignore[assignment]
        self.active: str | None = None
        self.weight_before_merge: Tensor | None = None  # W0, kept while an adapter is merged into it

    def forward(self, x: Tensor) -> Tensor:
        if self.active is None or self.weight_before_merge is not None:
            return self.base(x)  # (.., d_out)
        adapter = self.adapters[self.active]
        if not self.fused or (self.training and adapter.dropout.p > 0):
            return self.base(x) + adapter(x)
        device, dtype = x.device.type, x.dtype
        if torch.is_autocast_enabled(device):  # autocast knows matrix products, not functions of our own
            dtype = torch.get_autocast_dtype(device)
        flat, A, B = (tensor.to(dtype) for tensor in (x.reshape(-1, x.size(-1)), adapter.lora_A, adapter.lora_B))
        h = FusedLoRA.apply(flat, self.base.weight, self.base.bias, A, B, adapter.scaling)  # (N, d_out)
        return h.view(*x.shape[:-1], -1)


def apply_lora(
    model: nn.Module, r: int, alpha: float, dropout: float, targets: Iterable[str] = TARGETS, name: str = "default"
) -> list[nn.Parameter]:
    """Freezes the model and puts a new, active adapter beside each Linear whose last name is one of the targets.

    Returns what learns: A and B, r (d_in + d_out) numbers a layer. Changes the model in place. Raises ValueError for a
    rank below 1, an unknown target, a name that is taken, and while an adapter is merged.
    """
    targets = {target.strip() for target in targets}
    linears = {path: module for path, module in model.named_modules() if isinstance(module, nn.Linear | LoRALinear)}
    layers = {path: module for path, module in linears.items() if path.split(".")[-1] in targets - {"base"}}
    unknown = targets - {path.split(".")[-1] for path in layers}
    if unknown or not targets:
        raise ValueError(f"LoRA targets must be among {', '.join(TARGETS)}; got {sorted(unknown) or 'none'}")
    if r < 1:
        raise ValueError(f"LoRA's rank r must be at least 1, got {r}")
    if not name.isidentifier() or hasattr(nn.ModuleDict, name):
        raise ValueError(f"an adapter cannot be named {name!r}: give it a plain word")
    if any(name in layer.adapters for _, layer in lora_layers(model)):
        raise ValueError(f"the model has an adapter named {name!r} already")
    refuse_if_merged(model)
    for path, layer in layers.items():
        if isinstance(layer, nn.Linear):
            layer = LoRALinear(layer)
            parent, _, last = path.rpartition(".")
            setattr(model.get_submodule(parent), last, layer)
        W0 = layer.base.weight
        layer.adapters[name] = LowRank(W0.size(1), W0.size(0), r, alpha, dropout).to(W0)
    model.requires_grad_(False)
    activate(model, name)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    for path, module in model.named_modules():
        if isinstance(module, LoRALinear):
            yield path, module


def activate(model: nn.Module, name: str | None) -> None:
    """Switches to the adapter of that name, the only one that then acts and learns; None leaves the bare base."""
    refuse_if_merged(model)
    if name is not None and not any(name in layer.adapters for _, layer in lora_layers(model)):
        raise ValueError(f"the model has no adapter named {name!r}")
    for _, layer in lora_layers(model):
        layer.active = name if name in layer.adapters else None
        for other, adapter in layer.adapters.items():
            adapter.requires_grad_(other == name)


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """W0 becomes W0 + (alpha / r) B A of the active adapter, so that inference costs what the base costs."""
    refuse_if_merged(model)
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


def refuse_if_merged(model: nn.Module) -> None:
    if any(layer.weight_before_merge is not None for _, layer in lora_layers(model)):
        raise ValueError("an adapter is merged into this model; unmerge it first")


def lora_state_dict(model: nn.Module, name: str = "default") -> dict[str, Tensor]:
    """A and B of one adapter, and nothing else: 'blocks.0.attn.q_proj.lora_A' -> (r, d_in), and so on."""
    layers = [(path, layer.adapters[name]) for path, layer in lora_layers(model) if name in layer.adapters]
    if not layers:
        raise ValueError(f"the model has no adapter named {name!r}")
    return {f"{path}.{AB}": getattr(adapter, AB).detach() for path, adapter in layers for AB in ("lora_A", "lora_B")}


def base_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The weights beside which the adapters stand, under the names they had before apply_lora."""
    return {k.replace(".base.", "."): v for k, v in model.state_dict().items() if ".adapters." not in k}


@torch.no_grad()
def load_lora_state_dict(model: nn.Module, state: dict[str, Tensor], name: str = "default") -> None:
    """Copies A and B into the adapter of that name. Raises ValueError unless every name and shape fits."""
    own = lora_state_dict(model, name)
    for key in sorted(own.keys() | state.keys()):
        if key not in own or key not in state:
            raise ValueError(
                f"the adapter and the model differ: only {'the model' if key in own else 'the adapter'} has {key}"
            )
        if own[key].shape != state[key].shape:
            raise ValueError(f"{key} is {tuple(state[key].shape)} in the adapter, {tuple(own[key].shape)} in the model")
    for key in own:
        own[key].copy_(state[key])

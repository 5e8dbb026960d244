"""LoRA's forward and backward pass by hand, for speed: the same function as model/lora.py, with fewer large arrays.

With s = alpha / r, z = s A x, dh the gradient of h and dz that of A x:

    h = W0 x + b + B z        dx = W0ᵀ dh + Aᵀ dz        dB = dh zᵀ        dz = s Bᵀ dh        dA = dz xᵀ

W0 is frozen: its gradient, dh xᵀ, is as much work as h, and is what LoRA saves. Nothing as large as h is made twice.

Shapes:  M positions, of all rows · x (M, d_in) · h (M, d_out) · W0 (d_out, d_in) · A (r, d_in) · B (d_out, r)
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from model.lora import LoRALinear, lora_layers


class FusedLoRA(torch.autograd.Function):
    """The thin matrices z and dz are short and wide, (r, M): CPUs multiply those up to three times as fast as tall
    ones."""

    @staticmethod
    def forward(ctx, x: Tensor, W0: Tensor, b: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
        """x: (M, d_in), in the precision to compute in. Returns h: (M, d_out).

        For the gradients it keeps x and z; W0, A and B are there anyway.
        """
        z = scaling * (A @ x.T)  # (r, M)
        ctx.save_for_backward(x, z, W0, A, B)
        ctx.scaling = scaling
        h = torch.addmm(b.to(x.dtype), x, W0.to(x.dtype).T)  # (M, d_out)
        return h.addmm_(z.T, B.T)  # in place

    @staticmethod
    @once_differentiable
    def backward(ctx, dh: Tensor):
        x, z, W0, A, B = ctx.saved_tensors
        dz = ctx.scaling * (B.T @ dh.T)  # (r, M)
        dx = (dh @ W0.to(dh.dtype)).addmm_(dz.T, A) if ctx.needs_input_grad[0] else None  # (M, d_in)
        db = dh.sum(0) if ctx.needs_input_grad[2] else None  # b is frozen too, unless somebody lets it learn
        return dx, None, db, dz @ x, (z @ dh).T, None


class FusedLoRALinear(LoRALinear):
    """What a LoRALinear becomes where `fuse` has switched it on: the same weights, the same function."""

    def forward(self, x: Tensor) -> Tensor:
        adapter = self.acting()
        if adapter is None or self.base.weight.requires_grad or (self.training and adapter.dropout.p > 0):
            return super().forward(x)  # W0 has no gradient here, and dropout no place
        device, dtype = x.device.type, x.dtype
        if torch.is_autocast_enabled(device):  # autocast knows matrix products, not functions of our own
            dtype = torch.get_autocast_dtype(device)
        flat, A, B = (tensor.to(dtype) for tensor in (x.reshape(-1, x.size(-1)), adapter.lora_A, adapter.lora_B))
        h = FusedLoRA.apply(flat, self.base.weight, self.base.bias, A, B, adapter.scaling)  # (M, d_out)
        return h.view(*x.shape[:-1], -1)


def fuse(model: nn.Module, on: bool = True) -> None:
    """Switches all LoRA layers of a model to the hand-written passes, or back to the equation. In place."""
    for _, layer in lora_layers(model):
        layer.__class__ = FusedLoRALinear if on else LoRALinear

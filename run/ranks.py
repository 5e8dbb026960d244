"""Several processes that train one model: each computes a part of every batch, and their gradients add up.

    torchrun --nproc-per-node 4 train_sft.py ...            one process a GPU, or so many on a CPU
    torchrun --nproc-per-node 4 train_sft.py ... --shard    the same for a model that does not fit one GPU

A process is called a rank. torchrun starts them all with the same flags; flags mean the whole, so that a run has the
same losses in any number of ranks. Without torchrun there is one rank, and nothing here does anything.
"""

import atexit
import datetime
import gc
import itertools
import os
import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cli import Mistake
from model.bert import BERT


def join(device: str = "auto") -> None:
    """Joins the other ranks if torchrun has started this process. Only rank 0 goes on to print."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or dist.is_initialized():
        return
    local_rank = int(os.environ["LOCAL_RANK"])
    on_gpus = torch.cuda.is_available() and device != "cpu"
    if on_gpus:
        if local_rank >= torch.cuda.device_count():
            raise Mistake(f"--nproc-per-node is more than the {torch.cuda.device_count()} GPUs of this machine")
        torch.cuda.set_device(local_rank)
    # numbers are added up on the CPU, by gloo, so that a GPU need not wait; hours, for a long text to be tokenised
    backend = "cpu:gloo,cuda:nccl" if on_gpus and dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend, timeout=datetime.timedelta(hours=6))
    atexit.register(leave)
    if rank_and_size()[0] > 0:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, open to the end


def leave() -> None:
    gc.collect()  # FSDP is in reference cycles, and at exit its threads would end in a crash now and then
    dist.destroy_process_group()


def rank_and_size() -> tuple[int, int]:
    """Which rank this is, and of how many: (0, 1) without torchrun."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def mean(value: float) -> float:
    """The mean of all ranks' values: in one rank the value itself."""
    n_ranks = rank_and_size()[1]
    if n_ranks == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(total)
    return total.item() / n_ranks


def highest(value: float) -> float:
    """The highest of all ranks' values."""
    if rank_and_size()[1] == 1:
        return value
    of_all = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(of_all, dist.ReduceOp.MAX)
    return of_all.item()


def share(model: nn.Module, device: torch.device, shard: bool, micro_batches: int) -> None:
    """Moves the model to the device, and has its gradients averaged over the ranks. The model stays the same object."""
    if shard:
        _shard(model, device)
    else:
        model.to(device)
        if rank_and_size()[1] > 1:
            _replicate(model, micro_batches)


class _Forward(nn.Module):
    """model.forward as a module, for DDP to wrap."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args, **kwargs):
        return type(self.model).forward(self.model, *args, **kwargs)


def _replicate(model: nn.Module, micro_batches: int) -> None:
    """DDP (Li et al. 2020): every rank holds the whole model. While gradients of one layer are computed, those of the
    layers after it are averaged over the ranks; of several micro-batches only in the last, when they have added up."""
    has_more = isinstance(model, BERT)  # parts that only another head would use, and that get no gradient
    ddp = nn.parallel.DistributedDataParallel(
        _Forward(model), gradient_as_bucket_view=True, find_unused_parameters=has_more
    )
    calls = itertools.count(1)

    def forward(*args, **kwargs):
        if torch.is_grad_enabled():
            ddp.require_backward_grad_sync = next(calls) % micro_batches == 0
        return ddp(*args, **kwargs)

    model.forward = forward  # type: ignore[method-assign]  # what model(...) calls


def _shard(model: nn.Module, device: torch.device) -> None:
    """FSDP2 (Zhao et al. 2023): every rank holds a part of each weight, its gradient and its optimizer state, and
    collects a block's weights for as long as it computes with the block."""
    from torch.distributed.device_mesh import init_device_mesh  # here alone: it takes a second
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (rank_and_size()[1],))
    for block in model.blocks:  # type: ignore[union-attr]
        fully_shard(block, mesh=mesh)  # block by block, so that a GPU never has to hold more than one whole
    fully_shard(model, mesh=mesh)


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor in parts as those of the parameter, if it has parts and the same shape."""
    if not hasattr(parameter, "full_tensor") or tensor.shape != parameter.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)  # type: ignore[attr-defined]

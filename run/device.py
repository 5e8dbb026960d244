"""Where a run computes and in which precision: chosen by itself, or as asked."""

import os
import platform
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cli import Mistake
from model.bert import BERT
from model.fused_lora import fuse
from model.generate import generate
from model.gpt import GPT, CausalSelfAttention, GPTConfig
from model.large_head import CHUNK, bytes_of_a_logit
from run import ranks

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NAMES = {dtype: name for name, dtype in PRECISIONS.items()}


def choose_device(name: str) -> torch.device:
    """'auto' takes a CUDA GPU, else an Apple GPU that can do all of it, else the CPU. Raises a Mistake for a device
    that is not there, or that this PyTorch cannot compute on."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        if name == "mps" and (missing := missing_on(torch.device("mps"))):
            print(f"the CPU computes, since the Apple GPU cannot do all of it: {missing}")
            name = "cpu"
    try:
        if torch.device(name).type not in ("cuda", "mps", "cpu"):
            raise RuntimeError("it is none of cuda, mps and cpu")
        torch.ones(1, device=name).add(1).item()  # a GPU that is too old, or too new, has no kernels
        if name.startswith("cuda"):
            prepare_cuda(torch.device(name))
        return torch.device(name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise Mistake(f"--device {name} is not usable here: {str(error).splitlines()[0]}") from None


def prepare_cuda(device: torch.device) -> None:
    """Makes cuda:1 the GPU whose random state is saved, if it is asked for, and leaves attention to PyTorch's kernels:
    cuDNN's plan anew for each length of rows, and instructions have a hundred of them."""
    if device.index is not None:
        torch.cuda.set_device(device)
    torch.backends.cuda.enable_cudnn_sdp(False)


def missing_on(device: torch.device) -> str:
    """What a step of training and of sampling meets that this device's PyTorch does not have; empty if it has all."""
    try:
        model = GPT(GPTConfig(vocab_size=8, block_size=8, n_layer=1, n_head=1, n_embd=8)).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        tokens = torch.zeros(2, 4, dtype=torch.long, device=device)
        (-model(tokens, tokens == 0).log_softmax(-1).gather(-1, tokens.view(-1, 1))).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        generate(model, [[1], [2, 3]], 2, temperature=1.0, top_k=4, top_p=0.9)
        return ""
    except (NotImplementedError, RuntimeError, TypeError) as error:
        return str(error).splitlines()[0]


def machine(device: torch.device) -> dict[str, Any]:
    """What computes here, for whoever reads the numbers later."""
    chip = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        chip = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), chip)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "processor": chip,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "Python": platform.python_version(),
        "torch": str(torch.__version__),
    }


def memory_there(device: torch.device) -> float | None:
    """What a run may take of a GPU's memory, or of the machine's, in bytes; None if that is unknown."""
    if device.type == "cuda" and torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info(device)  # others, a screen among them, hold the rest
        held = torch.cuda.memory_reserved(device)
        index = torch.cuda.current_device() if device.index is None else device.index  # the next call wants a number
        return min(free + held, torch.cuda.get_per_process_memory_fraction(index) * total)
    if device.type == "mps" and torch.backends.mps.is_available():
        return torch.mps.recommended_max_memory()
    return bytes_in_proc("MemAvailable", Path("/proc/meminfo")) if device.type == "cpu" else None


def bytes_in_proc(name: str, file: Path) -> int | None:
    """A number of /proc, whose lines are like `MemAvailable:  1234 kB`; None where it is not, as on all but Linux."""
    found = re.search(rf"{name}:\s+(\d+) kB", file.read_text()) if file.is_file() else None
    return int(found[1]) * 1024 if found else None


def peak_mb(device: torch.device) -> float | None:
    """The most memory, in MB (10^6 bytes), that this process has held so far: of a CUDA GPU, or else of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if most := bytes_in_proc("VmHWM", Path("/proc/self/status")):
        return most / 1e6
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # macOS counts it in bytes
    return None


def choose_precision(name: str, device: torch.device, n_embd: int) -> tuple[torch.dtype, str]:
    """The precision of matrix products, and why. Weights, gradients, the optimizer and the loss are fp32 in any case.

    'auto' takes bf16 where the device has units for it and the model is wide enough to gain (n_embd channels), fp16 on
    older CUDA GPUs, else fp32. bf16 has fp32's range and 8 bits of mantissa; fp16 has 11, but overflows at 65,504.
    """
    if name != "auto":
        return PRECISIONS[name], "as asked"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)  # is_bf16_supported() would count emulation
        has_bf16 = major >= 8
        return torch.bfloat16 if has_bf16 else torch.float16, f"a GPU of compute capability {major}.{minor}"
    units = cpu_bf16_units() if device.type == "cpu" else []
    if units and n_embd >= 256:
        return torch.bfloat16, f"a CPU with {units[0]}"
    why = f"{units[0]} does not always gain below 256 channels" if units else "it is not known to be fast in bf16"
    return torch.float32, why


def set_up(model: GPT, config: Any, device: torch.device) -> str:
    """Tells the model in which precision to compute, and how a training script's config asks it to; switches on the
    kernels that are faster than what model/ writes out. Returns why that precision, and whether memory is saved."""
    if config.compile:
        check_compiler(device)
    refuse_wrong_gradients(config, device)
    model.precision, why = choose_precision(config.precision, device, model.config.n_embd)
    model.checkpoint_activations = config.checkpoint_activations
    rows = -(-config.batch_size // ranks.rank_and_size()[1]) * (2 if hasattr(config, "pairs") else 1)
    positions, memory = rows * config.block_size, memory_there(device)
    # RLHF measures the logits' entropy too, and BERT makes them by itself
    is_all_asked_for = model.head is not None or hasattr(config, "samples") or isinstance(model, BERT)
    model.head_in_chunks = not is_all_asked_for and head_in_chunks(
        config, device, positions, model.config.vocab_size, model.precision.itemsize, memory
    )
    model.head_padded = device.type == "cuda" and model.precision != torch.float32
    fused = fused_attention_pays(model.precision, device, config.block_size)
    for module in model.modules():
        if isinstance(module, CausalSelfAttention) and not fused:
            module.fused = False
    fuse(model)  # LoRA's layers; without this line one steps through the equation in model/lora.py
    if config.compile:
        model.compile_model(with_loss=not (is_all_asked_for or config.shard))
    return f"{why}; head and loss {CHUNK:,} positions at a time, for less memory" if model.head_in_chunks else why


def head_in_chunks(
    config: Any, device: torch.device, positions: int, vocab_size: int, width: int, memory: float | None
) -> bool:
    """Whether the head and the loss are computed chunk by chunk, and twice (model/large_head.py): with
    --checkpoint-activations, and on a GPU where what the loss holds of all logits would take more than a quarter of its
    memory. Not with --shard, which has no weights of the head outside of the model's forward pass.

    positions: those of a micro-batch in this process, the most that can be graded; width: bytes of a number in matrix
    products; memory: what there is, in bytes.
    """
    logits = positions * vocab_size * bytes_of_a_logit(config.compile, width)
    large = device.type != "cpu" and memory is not None and logits > memory / 4
    return positions > CHUNK and not config.shard and (config.checkpoint_activations or large)


def refuse_wrong_gradients(config: Any, device: torch.device) -> None:
    """Raises a Mistake for dropout in blocks that are computed twice on an Apple GPU: PyTorch brings back the random
    state of a CPU or a CUDA GPU only, so the second time other activations would be zeroed."""
    drops = max(config.dropout, getattr(config, "lora_dropout", 0.0))
    if device.type == "mps" and config.checkpoint_activations and drops:
        wrong = "--checkpoint-activations with dropout has wrong gradients"
        raise Mistake(f"{wrong} on an Apple GPU: leave one of them out")


class GradientScale:
    """fp16 has too little range for small gradients (Micikevicius et al. 2017, sec. 3.2). So the gradient is scaled up
    where it enters the model, at the logits, and the parameters' gradients are scaled down again before they are used.

    The scale is halved when a gradient overflows, and doubled after 2,000 steps in which none did. In other precisions
    nothing is scaled.
    """

    GOOD_STEPS = 2000

    def __init__(self, model: GPT) -> None:
        self.on = model.precision == torch.float16
        self.scale, self.good_steps = 2.0**16, 0
        if self.on:
            model.register_forward_hook(lambda model, inputs, logits: self._watch(logits))

    def _watch(self, logits: Tensor) -> None:
        if logits.requires_grad:
            logits.register_hook(lambda gradient: gradient * self.scale)

    def unscale(self, parameters: Iterable[Tensor]) -> None:
        for parameter in parameters if self.on else ():
            if parameter.grad is not None:
                parameter.grad /= self.scale

    def update(self, finite: bool) -> bool:
        """After each step, with whether its gradients are finite, which it returns."""
        self.good_steps = self.good_steps + 1 if finite else 0
        if not finite:
            self.scale /= 2
        elif self.good_steps % self.GOOD_STEPS == 0:
            self.scale *= 2
        return finite

    def can_shrink(self) -> bool:
        """Whether a smaller scale is left to try after an overflow: at 1 nothing is scaled, so something else is
        wrong."""
        return self.on and self.scale >= 1


def fused_attention_pays(precision: torch.dtype, device: torch.device, row_length: int) -> bool:
    """Whether attention's fused kernel is the faster one: always but in bf16 on a CPU with avx512_bf16 and no amx_bf16.
    There its backward pass takes two to five times as long as matrix products do, in rows of up to 256 tokens."""
    slow = precision == torch.bfloat16 and device.type == "cpu" and "amx_bf16" not in cpu_bf16_units()
    return not slow or row_length > 256


def check_compiler(device: torch.device) -> None:
    """Raises a Mistake where blocks cannot be compiled: on a CPU that takes a C++ compiler, on a CUDA GPU Triton."""
    from torch._inductor import cpp_builder, exc  # here alone, since it takes seconds
    from torch.utils import _triton

    if device.type == "cuda" and not _triton.has_triton():
        raise Mistake("--compile needs Triton on this GPU: install it (triton-windows on Windows), or leave it out")
    if device.type == "cpu":
        try:
            cpp_builder.get_cpp_compiler()
        except exc.InvalidCxxCompiler:
            raise Mistake("--compile needs a C++ compiler on a CPU: install g++ or clang++, or leave it out") from None


def cpu_bf16_units() -> list[str]:
    """What this CPU multiplies bf16 with: amx_bf16 or avx512_bf16, both, or nothing."""
    capabilities: dict = getattr(torch.cpu, "get_capabilities", dict)()
    return [unit for unit in ("amx_bf16", "avx512_bf16") if capabilities.get(unit)]

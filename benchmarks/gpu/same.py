"""The same numbers on a GPU: as on a CPU, in every precision, compiled, resumed, and in one rank of many."""

import contextlib
import functools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn

import train_lora
import train_sft
from benchmarks.contestants import BF16, FP32
from benchmarks.gpu.page import Notes, On
from data.batches import Batch, collate
from data.examples import next_token, packed
from model.fused_lora import fuse
from model.gpt import GPT, GPTConfig, evaluating
from model.large_head import log_p_to_compile
from model.lora import apply_lora
from run import ranks
from run.device import GradientScale
from store.learned import whole

BUILTIN = Path(__file__).parent.parent.parent / "data" / "builtin"


# ---- through the scripts -----------------------------------------------------------------------------------------


def train(on: On, out: str, script: Any = train_sft, **settings: Any) -> tuple[float, list[float]]:
    """A run of a script from the built-in base. Returns its held-out NLL and the losses of its steps."""
    file = on.folder / "instructions.json"
    if not file.exists():
        records = json.loads((BUILTIN / "instructions.json").read_text(encoding="utf-8"))
        random.Random(0).shuffle(records)
        file.write_text(json.dumps(records[: 40 if on.tiny else 1200]), encoding="utf-8")
    size = {"block_size": 64, "batch_size": 4, "steps": 2} if on.tiny else {"steps": 20}
    common = {"instructions": str(file), "init_from": str(BUILTIN / "base"), "out": str(on.folder / out), "warmup": 0.0}
    settings = {**common, **size, "device": str(on.device), "learning_rate": 1e-3, **settings}
    with contextlib.redirect_stdout(None):
        result = script.main(script.Config(**settings))
    rows = Path(settings["out"], "metrics.csv").read_text(encoding="utf-8").splitlines()[1:-1]
    return result["held_out_nll"], [float(row.split(",")[1]) for row in rows]


def cpu_and_gpu(on: On, tell: Notes) -> None:
    """Twenty steps of train_sft.py in fp32 on both."""
    _, on_cpu = train(on, "on-the-cpu", device="cpu", precision="fp32")
    _, on_gpu = train(on, "on-the-gpu", precision="fp32")
    worst = max(abs(gpu - cpu) / cpu for cpu, gpu in zip(on_cpu, on_gpu, strict=True))
    tell(f"fp32: loss of {len(on_cpu)} steps, CPU and GPU, largest relative difference", worst, high=1e-4)


def precisions(on: On, tell: Notes) -> None:
    """bf16 and fp16 end nearer to fp32 with the same seed than fp32 with other seeds does."""
    size: dict[str, Any] = {} if on.tiny else {"steps": 60}
    exact = [train(on, f"fp32-{seed}", precision="fp32", seed=seed, **size)[0] for seed in range(2 if on.tiny else 4)]
    noise = max(exact) - min(exact)
    tell("fp32: held-out NLL, highest less lowest of all seeds", noise)
    for precision in ("bf16", "fp16"):
        nll = train(on, precision, precision=precision, **size)[0]
        tell(f"{precision}: held-out NLL, difference from fp32", abs(nll - exact[0]), high=float(f"{noise:.4g}"))


def resume(on: On, tell: Notes) -> None:
    """A run that dies and is resumed ends with the weights of one that was not: to the bit, where algorithms are."""
    cases = [(True, train_sft, "fp32"), (True, train_lora, "fp16"), (False, train_sft, "fp32")]
    for deterministic, script, precision in cases[: 1 if on.tiny else 3]:
        name = f"{script.__name__}-{deterministic}"
        settings: dict[str, Any] = {"steps": 6, "save_every": 2, "dropout": 0.1, "precision": precision}
        torch.use_deterministic_algorithms(deterministic)
        try:
            _, straight = train(on, f"{name}-straight", script, **settings)
            fails = mock.patch.object(script.Session, "log", failing_at(5, script.Session.log))
            with fails, contextlib.suppress(ZeroDivisionError):
                train(on, f"{name}-died", script, **settings)
            _, resumed = train(on, f"{name}-died", script, **settings, resume=True)
        finally:
            torch.use_deterministic_algorithms(False)
        one, other = (learned(on.folder / f"{name}-{how}") for how in ("straight", "died"))
        same = straight == resumed and all(torch.equal(tensor, other[key]) for key, tensor in one.items())
        how = "deterministic algorithms" if deterministic else "the usual algorithms"
        tell.yes(f"{script.__name__}, {precision}, {how}: resumed to the bit", same, wanted=deterministic)


def failing_at(row: int, log: Any) -> Any:
    def fails(session: Any, step: int, *args: Any) -> None:
        log(session, step, *args) if step < row else 1 / 0

    return fails


def learned(run: Path) -> dict[str, Tensor]:
    file = run / "model.pt" if (run / "model.pt").exists() else run / "learned.pt"
    return torch.load(file, weights_only=True)["weights"]


# ---- below the scripts -------------------------------------------------------------------------------------------

SMALL = GPTConfig(vocab_size=997, block_size=128, n_layer=2, n_head=4, n_embd=128)


def new_model(on: On, precision: torch.dtype, lora: bool = False) -> tuple[GPT, list[nn.Parameter]]:
    torch.manual_seed(0)
    model = GPT(SMALL).to(on.device)
    learns = apply_lora(model, 8, 16.0, 0.0) if lora else list(model.parameters())
    fuse(model)
    for parameter in learns if lora else []:
        nn.init.normal_(parameter, std=0.05)  # B begins with zeros, and A has no gradient then
    model.precision = precision
    return model, learns


def random_batch(B: int, T: int, pack: bool = False) -> Batch:
    rng = torch.Generator().manual_seed(T)
    lengths = [T + 1] * B if not pack else [T // 2 + 1, T - T // 2 + 1] * B
    rows = [torch.randint(SMALL.vocab_size, (length,), generator=rng).numpy() for length in lengths]
    examples = [next_token(row, row % 3 > 0) for row in rows]
    return collate(packed(examples, T) if pack else examples)


def nll_of(model: GPT, batch: Batch) -> Tensor:
    """The scripts' lines of the loss."""
    inputs, targets, graded, positions = (tensor.to(model.wte.weight.device) for tensor in batch)
    log_p = model(inputs, graded, positions).log_softmax(-1)
    return -log_p.gather(-1, targets[graded].unsqueeze(-1)).squeeze(-1)


def gradient(model: GPT, learns: list[nn.Parameter], batch: Batch) -> Tensor:
    model.zero_grad()
    nll_of(model, batch).mean().backward()
    return torch.cat([parameter.grad.flatten() for parameter in learns if parameter.grad is not None])


def distance(one: Tensor, other: Tensor) -> float:
    return ((one - other).norm() / other.norm()).item()


def heads(on: On, tell: Notes) -> None:
    """The head in chunks, padded, and compiled with the loss computes what the plain one does."""
    forms = {"head_in_chunks": True, "head_padded": True, "compiled_log_p": compiler(on)(log_p_to_compile)}
    for precision, name, most in ((FP32, "fp32", 1e-5), (BF16, "bf16", 2e-2)):
        model, learns = new_model(on, precision)
        batch = random_batch(16, 128)
        plain, loss = gradient(model, learns, batch), nll_of(model, batch).mean().item()
        for form, switched_on in forms.items():
            setattr(model, form, switched_on)
            apart = distance(gradient(model, learns, batch), plain)
            tell(f"{name}, {form}: gradient's relative distance", apart, high=most)
            tell(f"{name}, {form}: loss's difference", abs(nll_of(model, batch).mean().item() - loss), high=most)
            delattr(model, form)


def compiler(on: On) -> Callable[..., Any]:
    """On a CPU it takes a minute, so there only what is compiled how often is looked at."""
    return functools.partial(torch.compile, backend="inductor" if on.here() else "eager")


def compiled_model(on: On, tell: Notes) -> None:
    """Rows of many lengths, packed ones, LoRA, evaluations between: the same gradients, and nothing falls back."""
    lengths = (32, 24) if on.tiny else (128, 96, 77, 33)
    for name, lora in [("full", False), ("LoRA", True)][on.tiny :]:
        torch._dynamo.reset()
        plain, model = new_model(on, BF16, lora), new_model(on, BF16, lora)
        with mock.patch.object(torch, "compile", compiler(on)):
            model[0].compile_model()
        worst = 0.0
        with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
            for T in lengths:
                for pack in (False, True):
                    batch = random_batch(4, T, pack)
                    worst = max(worst, distance(gradient(*model, batch), gradient(*plain, batch)))
                    with torch.no_grad(), evaluating(model[0]):
                        nll_of(model[0], batch)
        tell(f"compiled, {name}, bf16: gradient's relative distance", worst, high=5e-2)
        tell.yes(f"compiled, {name}: nothing fell back, in rows of {2 * len(lengths)} kinds", True)


def one_rank(on: On, tell: Notes) -> None:
    """DDP and FSDP2 among one rank compute what a process alone does."""
    backend = "cpu:gloo,cuda:nccl" if on.here() and dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        for precision, lora in ((BF16, False), (torch.float16, True)):
            name, losses = str(precision).removeprefix("torch.") + ", LoRA" * lora, {}
            for how in ("alone", "DDP", "FSDP2"):
                model, _ = new_model(on, precision, lora)
                if how == "DDP":
                    ranks._replicate(model, 1)
                elif how == "FSDP2":
                    ranks._shard(model, on.device)
                losses[how] = losses_of(model, 4)
            for how in ("DDP", "FSDP2"):
                worst = max(abs(a - b) for a, b in zip(losses[how], losses["alone"], strict=True))
                tell(f"{how} in one rank, {name}: loss's largest difference in 4 steps", worst, high=1e-2)
    finally:
        dist.destroy_process_group()


def losses_of(model: GPT, steps: int) -> list[float]:
    """Step 6 of the scripts."""
    learns = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, scale, losses = torch.optim.AdamW(learns, lr=1e-3, fused=True), GradientScale(model), []
    for _ in range(steps):
        loss = nll_of(model, random_batch(4, 64)).mean()
        loss.backward()
        scale.unscale(learns)
        norm = whole(torch.nn.utils.clip_grad_norm_(learns, 1.0))
        if scale.update(bool(norm.isfinite())):
            optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses

"""What it costs on a GPU: memory beside its plan, time beside the card's own peak, transformers and PEFT."""

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import train_lora
import train_pretrain
import train_sft
from benchmarks import contestants as who
from benchmarks.contestants import BF16, Shape
from benchmarks.gpu.page import Notes, On
from benchmarks.gpu.same import BUILTIN, train
from benchmarks.measure import Contestant, matmul_peak, quartiles, race
from cli import Mistake, memory_hint
from data.batches import collate
from data.examples import Example, instruction_example, read_instructions
from data.tokenizer import load_tokenizer
from model.gpt import GPT
from run import device, fits, plan
from run.memory import CONTEXT, Run

Step = Callable[[], int]


def shape_of(on: On, B: int) -> Shape:
    """GPT-2's, with B rows of 1,024 tokens."""
    return Shape(2, 2, 32, 997, 64, 2) if on.tiny else Shape(12, 12, 768, 50257, 1024, B)


def shape_for_speed(on: On, B: int) -> Shape:
    """The same, where it fits eight times over, for eight contestants; else a smaller one."""
    memory = torch.cuda.get_device_properties(on.device).total_memory if on.here() else 0
    return shape_of(on, B) if on.tiny or memory > 60e9 else Shape(6, 6, 384, 50257, 512, 4)


def rounds(on: On) -> int:
    return 1 if on.tiny else 8


# ---- memory ------------------------------------------------------------------------------------------------------


def step_as_planned(on: On, config: plan.Config, memory: float | None) -> tuple[Step, Run]:
    """A step of the run that the plan is about, set up as the scripts set it up, and the plan."""
    shape = shape_of(on, config.batch_size)._replace(B=config.batch_size)
    run = Run(config, shape.model(), memory=memory)
    model = who.our_model(shape, on.device)
    batch = who.one_batch(who.random_rows(shape, on.device))
    step = who.ours(model, "LoRA" if config.method == "lora" else "full", batch)
    device.set_up(model, script_config(config), on.device)
    return step, run


def script_config(config: plan.Config) -> Any:
    """That of the training script which is planned."""
    Script = train_lora.Config if config.method == "lora" else train_pretrain.Config
    shared = {field.name for field in fields(Script)} & vars(config).keys()
    return Script(text="", out="", **{name: vars(config)[name] for name in shared})


def config_of(on: On, rows: int, settings: dict[str, Any]) -> plan.Config:
    size: dict[str, Any] = {"block_size": shape_of(on, rows).T, "batch_size": rows, "device": str(on.device)}
    return plan.Config(init_from="gpt2", precision="bf16", **size | settings)


def planned(on: On, tell: Notes) -> None:
    """The most that tensors held in two steps of 8 rows of 1,024 tokens, beside the plan."""
    beside_the_plan(on, tell, fits.WAYS)
    if on.here():
        free, total = torch.cuda.mem_get_info(on.device)
        others = total - free - torch.cuda.memory_reserved(on.device)
        tell(f"MB of the driver, and of other processes, planned {CONTEXT / 1e6:.0f}", others / 1e6)


def planned_compiled(on: On, tell: Notes) -> None:
    """The same of a compiled step, whose blocks keep less than the plan says."""
    if not on.here():
        return tell("compiled: tensors", "not measured on a CPU")
    beside_the_plan(on, tell, {"full, compiled": {"method": "pretrain", "compile": True}})


def beside_the_plan(on: On, tell: Notes, ways: dict[str, dict[str, Any]]) -> None:
    for way, settings in ways.items():
        config = config_of(on, 2 if on.tiny else 8, settings)
        step, run = step_as_planned(on, config, device.memory_there(on.device) if on.here() else None)
        if config.compile:
            fits_in_memory(step)  # the compiler tries out kernels, which takes memory
        if on.here():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(on.device)
        if not fits_in_memory(step):
            tell.broke(f"{way}: 8 rows", "out of memory: this GPU is too small for this check")
        elif on.here():
            most, reserved = torch.cuda.max_memory_allocated(on.device), torch.cuda.max_memory_reserved(on.device)
            parts = run.peak().parts
            tensors = sum(n for part, (n, _) in parts.items() if part not in ("gaps", "context"))
            tell(f"{way}: MB of tensors", most / 1e6)
            tell(f"{way}: tensors over the plan's", most / tensors, 0.85, 1.15)
            tell(f"{way}: reserved over tensors, planned {1 + parts['gaps'][0] / tensors:.2f}", reserved / most)
        else:
            tell(f"{way}: tensors", "not measured on a CPU")
        del step, run


def fits_in_memory(step: Step) -> bool:
    """Whether two steps do."""
    try:
        return step() + step() > 0
    except torch.OutOfMemoryError:
        return False


def budgets(on: On, tell: Notes) -> None:
    """As many rows as the plan says fit 8 and 4 GB do fit: PyTorch is given no more."""
    for memory in (8e9, 4e9):
        for way, settings in fits.WAYS.items():
            shape = shape_of(on, 1)
            rows, T = (2, shape.T) if on.tiny else fits.most_that_fits("gpt2", shape.model(), settings, memory)
            if T < shape.T:
                tell(f"{way} in {memory / 1e9:.0f} GB", "the plan says no")
                continue
            with limited(on, memory - CONTEXT):
                step, _ = step_as_planned(on, config_of(on, rows, settings), memory)
                fit = fits_in_memory(step)
            tell.yes(f"{way} in {memory / 1e9:.0f} GB: {rows} rows of {T} tokens fit", fit, wanted=on.here())
            del step


@contextlib.contextmanager
def limited(on: On, memory: float) -> Any:
    """Within it, PyTorch gets so much of the GPU's memory and no more, in bytes."""
    if not on.here():
        yield
        return
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(on.device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, memory / total), on.device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, on.device)


def out_of_memory(on: On, tell: Notes) -> None:
    """It ends as one sentence, which names the command that says what would fit."""
    if not on.here():
        return tell("out of memory", "not tried on a CPU")
    try:
        with memory_hint("train_sft.py", train_sft.Config(instructions="", init_from="gpt2")), limited(on, 0.3e9):
            train(on, "too-large", batch_size=1024, grade_prompt=True)
        said = "did not run out of memory"
    except Mistake as error:
        said = str(error)
    tell.yes(f"out of memory is a sentence: {said[:80]}", said.startswith("out of memory: `python -m run.plan"))


# ---- time --------------------------------------------------------------------------------------------------------


def steps(on: On, tell: Notes) -> None:
    """A training step in bf16: model FLOP utilisation, and transformers and PEFT in the same rounds."""
    full, short = shape_for_speed(on, 16), shape_for_speed(on, 8)
    tell("shape of a full step; LoRA has the second", f"{full}; {short.B} rows")
    rows, fewer = who.random_rows(full, on.device), who.random_rows(short, on.device)

    def ours(method: str, compiled: bool = False, padded: bool = True, with_loss: bool = True) -> Step:
        shape, batch = (short, who.one_batch(fewer)) if method == "LoRA" else (full, who.one_batch(rows))
        model = who.our_model(shape, on.device, BF16)
        model.head_padded = padded
        step = who.ours(model, method, batch)
        if compiled:
            model.compile_model(with_loss)
        return step

    peak = matmul_peak(BF16, on.device)
    tell("bf16 matmul peak, TFLOP/s", peak / 1e12)
    runs = [Contestant("full", ours("full")), Contestant("full, head not padded", ours("full", padded=False))]
    runs.append(Contestant("LoRA", ours("LoRA")))
    if on.here():  # on a CPU it takes a minute, and says nothing
        runs += [Contestant("full, compiled", ours("full", True)), Contestant("LoRA, compiled", ours("LoRA", True))]
        runs.append(Contestant("full, blocks alone compiled", ours("full", True, with_loss=False)))
    try:
        theirs = who.transformers_model(full, on.device)
        runs.append(Contestant("transformers", with_cudnn(who.theirs(theirs, rows, BF16))))
        peft = who.with_peft(who.transformers_model(short, on.device))
        runs.append(Contestant("PEFT", with_cudnn(who.theirs(peft, fewer, BF16))))
    except ImportError as error:
        tell.broke("transformers and PEFT", str(error))
    race(runs, rounds(on), on.device)
    speed = {run.name: quartiles(run.speeds())[1] for run in runs}
    for run in runs:
        tell(f"{run.name}: ms a step", 1000 * quartiles(run.seconds)[1])
        tell(f"{run.name}: tokens a second", speed[run.name])
    for name in ("full", "full, compiled", "transformers"):
        if name in speed:
            used = speed[name] * full.flops_per_token() / peak
            tell(f"{name}: FLOPs of the model, share of the peak", used, low=0.4 if name == "full, compiled" else None)
    ratios = [("full", "transformers", 1.0), ("LoRA", "PEFT", 1.3), ("full", "full, head not padded", 1.0)]
    ratios.append(("full, compiled", "full, blocks alone compiled", 1.0))
    for one, other, least in ratios:
        if other in speed:
            tell(f"{one} : {other}", speed[one] / speed[other], low=least)


def with_cudnn(step: Step) -> Step:
    """The others choose attention's kernel as PyTorch does, unless this project has asked it not to."""

    def with_it() -> int:
        torch.backends.cuda.enable_cudnn_sdp(True)
        try:
            return step()
        finally:
            torch.backends.cuda.enable_cudnn_sdp(False)

    return with_it


def instructions(on: On, tell: Notes) -> None:
    """SFT: graded tokens a second, beside transformers on padded rows; rows of many lengths, so nothing may plan anew
    for each."""
    tokenizer = load_tokenizer(str(BUILTIN / "tokenizer.tiktoken"))
    records = read_instructions(BUILTIN / "instructions.json")[: 20 if on.tiny else 2000]
    shape = shape_for_speed(on, 32)._replace(T=128, B=2 if on.tiny else 32)
    shape = shape._replace(vocab_size=max(shape.vocab_size, tokenizer.n_vocab))
    examples = [instruction_example(record, tokenizer) for record in records]
    examples = [example for example in examples if len(example.inputs) <= shape.T]
    model = who.our_model(shape, on.device, BF16)
    model.head_padded = True
    runs = [Contestant("SFT", who.ours(model, "full", who.batches_of(examples, shape.B)))]
    try:
        theirs = padded(who.transformers_model(shape, on.device), examples, shape.B)
        runs.append(Contestant("transformers, SFT", with_cudnn(theirs)))
    except ImportError as error:
        tell.broke("transformers, SFT", str(error))
    race(runs, 2 * rounds(on), on.device)
    for run in runs:
        tell(f"{run.name}: graded tokens a second", quartiles(run.speeds())[1])
        tell(f"{run.name}: slowest step over the median", max(run.seconds) / quartiles(run.seconds)[1])
    if len(runs) == 2:
        tell("SFT : transformers, SFT", quartiles(runs[0].speeds())[1] / quartiles(runs[1].speeds())[1], low=3.0)


def padded(model: Any, examples: list[Example], B: int) -> Step:
    """A step of transformers on examples as they come, padded on the right, all logits computed."""
    without_end = itertools.cycle(examples)
    batches = who.in_their_form(lambda: collate(list(itertools.islice(without_end, B))), model.device)
    return who.theirs_with_labels(model, batches, BF16)


def generation(on: On, tell: Notes) -> None:
    """Greedy, after prompts of 16 to 32 tokens."""
    shape, new = shape_of(on, 1), 4 if on.tiny else 64
    for B in (1, 2 if on.tiny else 16):
        prompts = [list(range(1, 33 - (7 * i) % 17)) for i in range(B)]
        model: GPT = who.our_model(shape, on.device, BF16).eval()
        runs = [Contestant("ours", who.our_generation(model, prompts, new))]
        with contextlib.suppress(ImportError):
            theirs = who.transformers_model(shape, on.device).bfloat16()
            runs.append(Contestant("transformers", with_cudnn(who.transformers_generation(theirs, prompts, new))))
        race(runs, 1 if on.tiny else 4, on.device, warmup=1)
        speed = [quartiles(run.speeds())[1] for run in runs]
        tell(f"{B} at once: tokens a second", speed[0])
        if len(speed) == 2:
            tell(f"{B} at once: ours : transformers, in bf16", speed[0] / speed[1], low=1.0)


def where_time_goes(on: On, tell: Notes) -> None:
    """The kernels of a compiled step, the longest first, and how often the host waits."""
    if not on.here():
        return tell("kernels", "not on a CPU")
    shape = shape_for_speed(on, 16)
    model = who.our_model(shape, on.device, BF16, compiled=True)
    model.head_padded = True
    step = who.ours(model, "full", who.one_batch(who.random_rows(shape, on.device)))
    for _ in range(3):
        step()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize(on.device)
    kernels = [event for event in profiler.key_averages() if event.self_device_time_total > 0]
    kernels = [event for event in kernels if event.device_type != torch.autograd.DeviceType.CPU]
    total = sum(event.self_device_time_total for event in kernels)
    for event in sorted(kernels, key=lambda event: -event.self_device_time_total)[:10]:
        name = event.key.replace("|", "/")[:60]
        tell(f"`{name}`, {event.count} times: share of the step's kernels", event.self_device_time_total / total)
    for name in ("cudaStreamSynchronize", "cudaMemcpyAsync", "cudaLaunchKernel", "cuLaunchKernel", "cuLaunchKernelEx"):
        tell(f"{name} a step", sum(event.count for event in profiler.key_averages() if event.key == name))

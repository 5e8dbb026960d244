"""The plan of a run's memory, against what runs truly hold."""

import contextlib
import json
import re
import shlex
import sys
import warnings
from dataclasses import fields, replace
from shutil import which

import pytest
import torch
from conftest import most_held
from torch.profiler import ProfilerActivity, profile

import cli
import train_adapter
import train_classifier
import train_dpo
import train_lora
import train_mlm
import train_prefix
import train_pretrain
import train_prompt
import train_reward
import train_rlhf
import train_sft
from cli import Mistake, command_line
from data.examples import render_prompt
from data.tokenizer import load_tokenizer
from model.adapter import apply_adapter
from model.fused_lora import fuse
from model.gpt import GPT, Block, CausalSelfAttention, GPTConfig, visible_in
from model.head import let_learn, new_head
from model.lora import apply_lora
from model.prefix import apply_prefix, apply_soft_prompt
from run import device, plan, show
from run.device import cpu_bf16_units
from run.memory import Run
from store.checkpoint import save_model
from tests.process import Process

SHAPE = GPTConfig(vocab_size=2048, block_size=128, n_layer=4, n_head=4, n_embd=256)
T = SHAPE.block_size
SCRIPTS = {
    "pretrain": train_pretrain,
    "sft": train_sft,
    "lora": train_lora,
    "adapter": train_adapter,
    "prefix": train_prefix,
    "prompt": train_prompt,
    "classifier": train_classifier,
    "mlm": train_mlm,
    "reward": train_reward,
    "dpo": train_dpo,
    "rlhf": train_rlhf,
}
DATA = {"classifier": "labelled", "reward": "pairs", "dpo": "pairs"}  # else a text, or instructions


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model large enough for tensors to matter, a text of 80 rows, and as many instructions and pairs, of which the
    last 30 % are graded; a LoRA run and a reward model."""
    folder = tmp_path_factory.mktemp("plan")
    torch.manual_seed(0)
    (folder / "base").mkdir()
    save_model(folder / "base", GPT(SHAPE), load_tokenizer("bytes"))
    (folder / "text.txt").write_text("sea " * 20 * T)
    n_graded = round(0.3 * T)
    question = "?" * (T + 1 - n_graded - len(render_prompt("", "")) - 1)
    records = [{"instruction": f"{question}{i % 10}", "output": "!" * (n_graded - 1)} for i in range(80)]
    (folder / "instructions.json").write_text(json.dumps(records))
    labelled = [{"text": f"{question}{i:0{T - len(question)}d}", "label": "ab"[i % 2]} for i in range(80)]
    (folder / "labelled.json").write_text(json.dumps(labelled))
    said = {"chosen": "!" * (n_graded - 1), "rejected": "." * (n_graded - 1)}
    (folder / "pairs.json").write_text(json.dumps([{"instruction": f"{question}{i % 10}", **said} for i in range(80)]))
    how = {"init_from": str(folder / "base"), "steps": 1, "batch_size": 1, "block_size": T, "device": "cpu"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_lora, "generate", lambda *args, **kwargs: [[]])
        train_lora.main(train_lora.Config(text=str(folder / "text.txt"), out=str(folder / "lora"), r=6, **how))
    train_reward.main(train_reward.Config(pairs=str(folder / "pairs.json"), out=str(folder / "reward"), **how))
    return folder


@pytest.fixture
def measure(world, tmp_path, monkeypatch):
    """measure(planned) trains for two steps as planned and returns the most bytes that tensors have held."""

    def run(planned):
        script = SCRIPTS[planned.method]
        data = DATA.get(planned.method, "text" if planned.graded == 1 else "instructions")
        file = next(world.glob(f"{data}.*"))
        if hasattr(script, "generate"):
            monkeypatch.setattr(script, "generate", lambda *args, **kwargs: [[]])  # some ids are no bytes
        monkeypatch.setattr(show, "filled", lambda *args: "")
        monkeypatch.setattr(Block, "compile", lambda block: None)  # it takes a minute; what it keeps is up to PyTorch
        same = {field.name for field in fields(planned)} & {field.name for field in fields(script.Config)}
        to_the_end = {"max_new_tokens": round(planned.graded * T)} if planned.method == "rlhf" else {}
        config = script.Config(
            out=str(tmp_path / f"run{len(list(tmp_path.iterdir()))}"),
            steps=2,
            held_out=planned.batch_size / 80,  # a batch to judge by
            **{data: str(file)},
            **{name: getattr(planned, name) for name in same},
            **to_the_end,
        )
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            script.main(config)
        return most_held(profiler)

    return run


def planned(world, **settings):
    defaults = {"block_size": T, "batch_size": 8, "device": "cpu", "precision": "fp32"}
    settings |= {name: str(world / settings[name]) for name in ("init_from", "reward") if name in settings}
    return plan.Config(**{"init_from": str(world / "base"), **defaults, **settings})


def tensors(config):
    """The peak without what is not tensors."""
    parts = Run(config, SHAPE).peak().parts
    return sum(n for name, (n, _) in parts.items() if name not in ("Python, PyTorch", "gaps"))


needs_bf16 = pytest.mark.skipif(not cpu_bf16_units(), reason="slow without bf16 units")
needs_compiler = pytest.mark.skipif(not (which("g++") or which("clang++")), reason="needs a C++ compiler")
MARKS = {"bf16": needs_bf16, "compiled": needs_compiler}
RUNS = {
    "full": {},
    "full, accumulated": {"batch_size": 2, "micro_batches": 4},
    "full, checkpointed": {"checkpoint_activations": True},
    "SFT": {"method": "sft", "graded": 0.3},
    "LoRA": {"method": "lora"},
    "LoRA, checkpointed": {"method": "lora", "checkpoint_activations": True},
    "LoRA SFT": {"method": "lora", "graded": 0.3},
    "bf16": {"precision": "bf16"},
    "LoRA, bf16": {"method": "lora", "precision": "bf16"},
    "adapter": {"method": "adapter"},
    "adapter, bf16": {"method": "adapter", "precision": "bf16", "width": 40, "mlp_only": True},
    "head in chunks, bf16": {"batch_size": 24, "checkpoint_activations": True, "precision": "bf16"},
    "compiled": {"compile": True, "batch_size": 24},
    "DPO, compiled": {"method": "dpo", "compile": True, "batch_size": 16, "graded": 0.3},
    "LoRA, head in chunks": {"method": "lora", "batch_size": 12, "checkpoint_activations": True},
    "prefix": {"method": "prefix", "block_size": 112},
    "prompt": {"method": "prompt", "block_size": 64, "length": 64},
    "prompt, checkpointed": {"method": "prompt", "block_size": 64, "length": 64, "checkpoint_activations": True},
    "prompt, bf16": {"method": "prompt", "block_size": 112, "precision": "bf16"},
    "masked": {"method": "mlm"},
    "a head": {"method": "classifier", "learn": "head", "graded": 1 / T},
    "a head and the last block": {"method": "classifier", "learn": "last-1", "graded": 1 / T},
    "a head and LoRA": {"method": "classifier", "learn": "lora", "graded": 1 / T},
    "a classifier, full": {"method": "classifier", "graded": 1 / T},
    "a reward model": {"method": "reward", "batch_size": 4},
    "DPO": {"method": "dpo", "batch_size": 4, "graded": 0.3},
    "DPO, head in chunks": {"method": "dpo", "batch_size": 16, "graded": 0.3, "checkpoint_activations": True},
    "DPO, bf16": {"method": "dpo", "batch_size": 4, "graded": 0.3, "precision": "bf16"},
    "DPO of a LoRA run": {"method": "dpo", "batch_size": 4, "graded": 0.3, "init_from": "lora"},
    "RLHF": {"method": "rlhf", "batch_size": 2, "graded": 0.3, "reward": "reward"},
    "RLHF of a LoRA run": {"method": "rlhf", "batch_size": 2, "graded": 0.3, "reward": "reward", "init_from": "lora"},
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[MARKS[word] for word in MARKS if word in n]) for n in RUNS])
def test_the_peak_is_within_15_percent_of_what_is_measured(name, world, measure):
    config = planned(world, **RUNS[name])
    assert tensors(plan.of_adapter(config)) == pytest.approx(measure(config), rel=0.15)


BLOCKS = {
    "full": {},
    "written-out attention": {"fused": False},
    "dropout": {"dropout": 0.1},
    "LoRA": {"method": "lora"},
    "LoRA on q and v": {"method": "lora", "targets": "q_proj,v_proj"},
    "LoRA with dropout": {"method": "lora", "lora_dropout": 0.1},
    "bf16": {"precision": "bf16"},
    "bf16, written out": {"precision": "bf16", "fused": False},
    "bf16, LoRA": {"method": "lora", "precision": "bf16"},
    "bf16, LoRA on k and up": {"method": "lora", "precision": "bf16", "targets": "k_proj,up_proj"},
    "adapter": {"method": "adapter"},
    "bf16, bottlenecks after the MLP": {"method": "adapter", "mlp_only": True, "width": 5, "precision": "bf16"},
    "prefix": {"method": "prefix"},
    "prefix, written out": {"method": "prefix", "fused": False, "dropout": 0.1},
    "bf16, prompt": {"method": "prompt", "length": 5, "precision": "bf16"},
    "masked": {"method": "mlm"},
    "masked, written out": {"method": "mlm", "fused": False},
    "a head and the last block": {"method": "classifier", "learn": "last-1"},
    "a head and LoRA": {"method": "classifier", "learn": "lora", "classes": 5},
}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_keeps_exactly_what_the_plan_says(name, monkeypatch):
    settings = {"fused": True, **BLOCKS[name]}
    fused = settings.pop("fused")
    config = plan.Config(
        **{"init_from": "x", "batch_size": 2, "block_size": 32, "device": "cpu", "precision": "fp32"} | settings
    )
    shape = GPTConfig(vocab_size=50, block_size=48, n_layer=2, n_head=4, n_embd=64, dropout=config.dropout)
    model, run = GPT(shape), Run(config, shape)
    match config.method:
        case "lora":
            apply_lora(model, config.r, 16.0, config.lora_dropout, config.targets)
            fuse(model)
        case "adapter":
            apply_adapter(model, config.width, config.mlp_only)
        case "prefix":
            apply_prefix(model, config.length)
        case "prompt":
            apply_soft_prompt(model, config.length)
        case "classifier":
            new_head(model, ["class"] * config.classes, "text")
            let_learn(model, config.learn, config.r, 16.0)
            fuse(model)
    assert run.base + run.adapter == sum(p.numel() for p in model.parameters())
    assert run.learning == sum(p.numel() for p in model.parameters() if p.requires_grad)
    block, visible, layer = model.blocks[1], None, None
    if run.is_masked:
        visible = visible_in(torch.arange(32).expand(2, 32), config.method == "classifier")
    if run.P:
        cache = model.prefix(model, None)
        visible, layer = cache.begin(32)[1], cache.layers[1]
    run.fused = fused
    monkeypatch.setattr(CausalSelfAttention, "fused", fused)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in parameters:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    half = torch.autocast("cpu", torch.bfloat16) if config.precision == "bf16" else contextlib.nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), half:
        kept = block(torch.randn(2, 32, 64, requires_grad=True), visible, layer)
    assert kept.shape == (2, 32, 64)
    assert run.saved_by_block() == sum(saved.values())


def test_parts_add_up_to_the_peak_and_every_moment_is_below(world):
    run = Run(planned(world), SHAPE)
    peak = run.peak()
    assert peak.total() == sum(n for n, _ in peak.parts.values()) == max(moment.total() for moment in run.moments())


@pytest.mark.parametrize("way", [0, 1, 2])
def test_what_is_said_to_fit_fits(way, world, measure):
    config = planned(world)
    run = Run(config, SHAPE)
    limit = 0.96 * run.peak().total()
    said, predicted = plan.ways_to_fit(run, limit)[way]
    changed = {"train_lora.py": {"method": "lora"}, "--checkpoint-activations": {"checkpoint_activations": True}}
    fewer = dict(zip(["batch_size", "micro_batches"], said.split()[1::2], strict=False))
    settings = changed.get(said) or {name: int(value) for name, value in fewer.items()}
    assert settings.get("batch_size", 8) * settings.get("micro_batches", 1) == 8
    new = replace(config, **settings)
    beside = predicted - tensors(new)
    assert measure(new) + beside <= limit


def test_a_batch_of_a_billion_rows_is_divided_at_once(monkeypatch, capsys):
    flags = "--init-from gpt2 --method lora --device cpu --precision fp32 --memory 8GB --batch-size 1000000000".split()
    said = say(flags, monkeypatch, capsys).out
    rows, micro_batches = map(int, re.search(r"--batch-size (\d+) --micro-batches (\d+)", said).groups())
    assert rows > 1 and rows * micro_batches == 10**9


def test_shorter_rows_are_the_last_resort(world):
    run = Run(planned(world), SHAPE)
    least = run.changed(method="lora", batch_size=1, micro_batches=8, checkpoint_activations=True).peak().total()
    [(said, _)] = plan.ways_to_fit(run, least - 1)
    assert said == "train_lora.py --block-size 64 --checkpoint-activations --batch-size 1 --micro-batches 8"
    assert plan.ways_to_fit(run, 1e6) == []


def test_the_advised_command_is_for_a_shell():
    config = train_sft.Config(instructions="FILE", init_from="my runs/base", out="run", checkpoint_activations=True)
    words = shlex.split(cli.plan_command("train_sft.py", config))
    assert words[3:] == ["--method", "sft", "--init-from", "my runs/base", "--checkpoint-activations"]


LIMITED = """
import resource, runpy, sys, {script}
from pathlib import Path
reserved = 1024 * int(Path("/proc/self/status").read_text().split("VmSize:")[1].split()[0])
resource.setrlimit(resource.RLIMIT_AS, (reserved + 400_000_000, resource.RLIM_INFINITY))
sys.argv[0] = "{script}.py"
runpy.run_path("{script}.py", run_name="__main__")
"""


def test_a_product_that_finds_no_memory_adds_nothing_to_the_sentence(monkeypatch, capsys):
    """PyTorch warns of it with the stack of its own calls, if it happens to run out there."""

    def main(config):
        warnings.warn("mkldnn_matmul failed, switching to baddbmm: [enforce fail at alloc_cpu.cpp]", stacklevel=1)
        raise MemoryError

    monkeypatch.setattr(sys, "argv", ["train_pretrain.py", "--text", "a", "--init-from", "b", "--out", "c"])
    with warnings.catch_warnings(record=True) as warned, pytest.raises(SystemExit):
        warnings.simplefilter("always")
        command_line(main, train_pretrain.Config)
    assert not warned and len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space as Linux does")
@pytest.mark.parametrize("script", [f"train_{method}" for method in SCRIPTS if method not in ("prefix", "reward")])
def test_memory_that_runs_out_names_a_command_that_says_what_would_fit(script, world, tmp_path, monkeypatch, capsys):
    """The command is followed: it plans the run that failed."""
    data = {"train_sft": "--instructions {}/instructions.json", "train_classifier": "--labelled {}/labelled.json"}
    data |= {"train_dpo": "--pairs {}/pairs.json"}
    data |= {"train_rlhf": "--instructions {}/instructions.json --reward exact"}
    data = data.get(script, "--text {}/text.txt")
    own = {"train_adapter": "--mlp-only ", "train_prompt": "--length 8 --block-size 120 "}.get(script, "")
    own = "--learn last-3 " if script == "train_classifier" else own
    flags = f"{data.format(world)} --init-from {world}/base --out {tmp_path}/run {own}--batch-size 256 --device cpu"
    done = Process("-c", LIMITED.format(script=script), *flags.split())
    error = done.communicate()[1]
    assert done.returncode == 2 and "Traceback" not in error and len(error.splitlines()) == 1
    advised = re.search("out of memory: `python -m run.plan (.+)` says what it needs", error)[1]
    assert f"{own}--batch-size 256" in advised
    said = say([*advised.split(), "--memory", "400MB"], monkeypatch, capsys).out
    rows = {"train_dpo": 512, "train_rlhf": 1024}.get(script, 256)
    assert f"{script.removeprefix('train_')}: " in said and f"{rows} rows of 1" in said and "tokens, on cpu" in said
    assert "This does not fit 400 MB" in said
    assert re.search(r"This (fits|does not fit) [\d.]+ [MG]B", say(advised.split(), monkeypatch, capsys).out), (
        "what is here"
    )


def test_each_allocators_words_are_known_and_other_errors_are_not():
    for error in (
        torch.OutOfMemoryError("CUDA out of memory. Tried"),
        RuntimeError("MPS backend out of memory"),
        MemoryError(),
    ):
        assert cli.out_of_memory(error)
    with pytest.raises(RuntimeError) as refused:
        torch.empty(10**14)
    assert cli.out_of_memory(refused.value)
    assert not cli.out_of_memory(RuntimeError("shapes differ")) and not cli.out_of_memory(Mistake("out of memory.txt"))


def say(flags, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["plan", *flags])
    with contextlib.suppress(SystemExit):
        command_line(plan.main, plan.Config)
    return capsys.readouterr()


def test_the_page_shows_each_part_and_what_fits(monkeypatch, capsys):
    flags = "--init-from gpt2 --method sft --device cuda --precision bf16 --block-size 1024 --batch-size 4 --memory 4GB"
    said = say(flags.split(), monkeypatch, capsys).out
    parts = ("parameters", "AdamW", "2 × 4 bytes for each of 124,439,808", "1,024 of the graded tokens at a time")
    for words in (*parts, "gaps", "context", "peak"):
        assert words in said
    assert "This does not fit 4.0 GB. What would:" in said and "--checkpoint-activations" in said
    assert "This fits 80.0 GB." in say([*flags.split()[:-1], "80GB"], monkeypatch, capsys).out


def test_of_several_processes_each_holds_its_rows_and_with_shard_its_part(monkeypatch, capsys):
    flags = "--init-from gpt2 --device cuda --precision bf16 --block-size 1024 --memory 5gb --ranks 4".split()
    said = say(flags, monkeypatch, capsys).out
    one = say([*flags[:-2], "--batch-size", "8"], monkeypatch, capsys).out
    assert said.splitlines()[2:9] == one.splitlines()[2:9], "32 rows in 4 processes are 8 rows in each"
    parts = say([*flags, "--shard"], monkeypatch, capsys).out
    assert "498 MB" in said and "124 MB   4 bytes for each of 124,439,808, in 4 parts" in parts and "collected" in parts


def test_where_no_one_says_what_memory_there_is_the_page_comes_without_a_verdict(tmp_path, monkeypatch, capsys):
    """As on a Mac's CPU, which has no /proc."""
    monkeypatch.setattr(device, "Path", lambda name: tmp_path / "nowhere")
    said = say(["--init-from", "gpt2", "--device", "cpu", "--precision", "fp32"], monkeypatch, capsys)
    assert "peak" in said.out and "This " not in said.out and said.err == ""


MISTAKES = [
    (["--shard"], "--shard splits a model over several processes: give their number, --ranks N"),
    (["--memory", "0GB"], "--memory must be a number of MB, GB, MiB or GiB, like 8GB; got '0GB'"),
    (["--memory", "6 parsecs"], "--memory must be a number of MB, GB, MiB or GiB, like 8GB; got '6 parsecs'"),
    (
        ["--method", "ppo"],
        "--method must be pretrain, sft, lora, adapter, prefix, prompt, classifier, mlm, reward, dpo or rlhf, "
        "got 'ppo'",
    ),
    (
        ["--method", "dpo", "--learn", "head"],
        "--method dpo has --learn all or lora; of other adapters, plan from their run",
    ),
    (
        ["--method", "rlhf", "--reward", "nowhere"],
        "nowhere does not exist: name the folder of a run or of a model, or one like gpt2",
    ),
    (
        ["--method", "classifier", "--learn", "most"],
        "--learn must be head, last-1 or another number of blocks, lora or all, got 'most'",
    ),
    (["--method", "classifier", "--learn", "last-13"], "--learn last-13 is beyond the model's 12 blocks"),
    (
        ["--method", "prompt", "--block-size", "1009"],
        "--block-size 1009 is beyond the 1024 tokens of gpt2, of which a prefix takes 16",
    ),
    (["--device", "cuda:x"], "--device must be auto, cuda (or cuda:1), mps or cpu, got 'cuda:x'"),
    (["--block-size", "2048"], "--block-size 2048 is beyond the 1024 tokens of gpt2"),
]


@pytest.mark.parametrize("flags, sentence", MISTAKES)
def test_a_mistake_is_one_sentence(flags, sentence, monkeypatch, capsys):
    assert say(["--init-from", "gpt2", *flags], monkeypatch, capsys).err == f"plan: {sentence}\n"

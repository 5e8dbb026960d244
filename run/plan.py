"""Where the memory of a training run goes, before it runs, and what would make it fit.

python -m run.plan --init-from gpt2 --method lora --memory 6GB
"""

import itertools
import re
from dataclasses import dataclass, replace
from math import isqrt

import torch

from cli import Mistake, command_line, flag
from model.lora import targets_of
from run.device import NAMES, choose_device, memory_there, peak_mb
from run.memory import IMPORTED, Run, size
from store.checkpoint import config_of
from store.learned import is_partly_learned, read_learned

METHODS = ("pretrain", "sft", "lora", "adapter", "prefix", "prompt", "classifier", "mlm", "reward", "dpo", "rlhf")


@dataclass(kw_only=True)
class Config:
    init_from: str  # run or name of a model to start from: new_model.py writes a new one in a second
    method: str = "pretrain"  # pretrain, sft, lora, adapter, prefix, prompt, classifier, mlm, reward, dpo or rlhf
    memory: str = ""  # what there is, like 8GB (10^9 bytes each), 8GiB (2^30) or 4000MB; without it, this device's
    graded: float = 1.0  # share of the positions that are graded: 1 for a text, less for instructions; of mlm 0.15
    learn: str = "all"  # classifier, reward: head, last-K (K blocks too), lora or all; dpo, rlhf: lora or all
    classes: int = 2  # that a classifier tells apart
    r: int = 8  # LoRA's rank
    lora_dropout: float = 0.0  # share of x zeroed on the way to A while training
    targets: str = "q_proj,k_proj,v_proj,o_proj,up_proj,down_proj"  # layers that get an A and a B
    width: int = 12  # channels of a bottleneck
    mlp_only: bool = False  # put bottlenecks after the MLP alone, not after attention too
    length: int = 16  # positions before a row; the longest row is so much shorter
    reward: str = "exact"  # of rlhf: run of a reward model, which stands beside the model, or exact
    samples: int = 4  # of rlhf: answers to each prompt, a row each
    block_size: int = 128  # tokens a row at most; the model must be able to read as many
    dropout: float = 0.0  # share of activations zeroed while training
    batch_size: int = 32  # rows a micro-batch; of reward and dpo pairs, of rlhf prompts
    micro_batches: int = 1  # micro-batches a step, one after another, for less memory: their gradients add up
    ranks: int = 1  # processes that torchrun starts, a GPU each: what is told is the memory of one
    shard: bool = False  # split weights, gradients and optimizer over them
    device: str = "auto"  # cuda, mps, cpu, or auto; cuda and mps can be planned for where they are not
    precision: str = "auto"  # of matrix products: fp32, bf16, fp16, or auto, which takes what the device does well
    checkpoint_activations: bool = False  # keep only what enters a block and compute the rest twice, for less memory
    compile: bool = False  # compile the model: the loss holds less of each logit, and blocks less than is told


def main(config: Config) -> None:
    if config.method not in METHODS:
        raise Mistake(f"--method must be {', '.join(METHODS[:-1])} or {METHODS[-1]}, got {config.method!r}")
    if not re.fullmatch(r"auto|cuda(:\d+)?|mps|cpu", config.device):
        raise Mistake(f"--device must be auto, cuda (or cuda:1), mps or cpu, got {config.device!r}")
    if config.method in ("dpo", "rlhf") and config.learn not in ("all", "lora"):
        raise Mistake(f"--method {config.method} has --learn all or lora; of other adapters, plan from their run")
    if config.method == "rlhf" and config.reward != "exact":
        config_of(config.reward)  # raises a Mistake where there is none
    if config.shard and config.ranks == 1:
        raise Mistake("--shard splits a model over several processes: give their number, --ranks N")
    targets_of(config.targets)
    if config.device == "auto":
        config = replace(config, device=str(choose_device("auto")))
    measured = peak_mb(torch.device("cpu"))  # nothing but imports has taken memory yet
    shape, config = config_of(config.init_from), of_adapter(config)
    limit = bytes_of(config.memory) if config.memory else memory_there(torch.device(config.device))
    run = Run(config, shape, measured * 1e6 if measured else IMPORTED, limit)
    if config.block_size > shape.block_size - run.P:
        less = f", of which a prefix takes {run.P}" if run.P else ""
        there = f"{shape.block_size} tokens of {config.init_from}{less}"
        raise Mistake(f"--block-size {config.block_size} is beyond the {there}")
    if run.n_learning > shape.n_layer:
        raise Mistake(f"--learn {config.learn} is beyond the model's {shape.n_layer} blocks")
    print(page(run) + (f"\n\n{verdict(run, limit)}" if limit else ""))


def of_adapter(config: Config) -> Config:
    """Of DPO and RLHF from a run of LoRA or the like: what has learned there, and learns on, with its settings."""
    if config.method not in ("dpo", "rlhf") or not is_partly_learned(config.init_from):
        return config
    note = read_learned(config.init_from)["attached"][0]
    settings = {key: value for key, value in note.items() if hasattr(config, key)}
    if "targets" in settings:
        settings["targets"] = ",".join(settings["targets"])
    return replace(config, learn=note["apply"], **settings)


def page(run: Run) -> str:
    """The table: a row for each part of the peak, and its formula in words."""
    config, peak = run.config, run.peak()
    rows = [*peak.parts.items(), ("peak", (peak.total(), peak.when))]
    table = [f"{name:<17}{size(n):>9}   {formula}" for name, (n, formula) in rows]
    learns = f"{run.learning:,} of {run.base + run.adapter:,} parameters learn"
    rows = config.batch_size * run.rows_each
    where = f"{rows} rows of {config.block_size} tokens, on {run.device} in {NAMES[run.precision]}"
    where += f", in each of {config.ranks} processes" if config.ranks > 1 else ""
    if run.parts > 1:
        table.append("More than that with --shard: what collecting weights needs beside is not in it.")
    return "\n".join([f"{config.init_from}, {config.method}: {learns}, {where}", "", *table])


def verdict(run: Run, limit: float) -> str:
    if run.peak().total() <= limit:
        return f"This fits {size(limit)}."
    ways = [f"  {size(n):>7}  {way}" for way, n in ways_to_fit(run, limit)]
    if not ways:
        return f"This does not fit {size(limit)}, not even with all that saves memory: a smaller model might."
    return "\n".join([f"This does not fit {size(limit)}. What would:", *ways])


def bytes_of(memory: str) -> float:
    number = re.fullmatch(r"(\d+(?:\.\d+)?) ?(M|G)(i?)B", memory.strip(), re.IGNORECASE)
    if not number or not float(number[1]):
        raise Mistake(f"--memory must be a number of MB, GB, MiB or GiB, like 8GB; got {memory!r}")
    return float(number[1]) * (1024 if number[3] else 1000) ** (2 if number[2] in "mM" else 3)


def ways_to_fit(run: Run, limit: float) -> list[tuple[str, float]]:
    """The changes that bring the peak to limit or below, as flags, and the peak of each, in bytes: single changes where
    one is enough, else the fewest together; shorter rows only where all others together are not."""
    config, rows, T = run.config, run.config.batch_size, run.config.block_size
    divisors = {n for small in range(1, isqrt(rows) + 1) if rows % small == 0 for n in (small, rows // small)}
    forms = {  # of each setting, the mildest first
        "method": [config.method, "lora"] if config.method in ("pretrain", "sft") else [config.method],
        "block_size": [T // 2**n for n in range(6) if T >= 2**n],
        "shard": [config.shard, config.ranks > 1],
        "checkpoint_activations": [config.checkpoint_activations, True],
        "batch_size": sorted(divisors, reverse=True),
    }
    ways: dict[tuple[int, tuple[str, ...]], tuple[str, float]] = {}
    for values in itertools.product(*forms.values()):
        new = {name: value for name, value in zip(forms, values, strict=True) if value != vars(config)[name]}
        cost = 10 - len(new) if "block_size" in new else len(new)
        if "batch_size" in new:
            new["micro_batches"] = config.micro_batches * rows // new["batch_size"]
        if (cost, tuple(new)) not in ways and (peak := run.changed(**new).peak().total()) <= limit:
            flags = [flag(name) if value is True else f"{flag(name)} {value}" for name, value in new.items()]
            ways[cost, tuple(new)] = " ".join(flags).replace("--method lora", "train_lora.py"), peak
    fewest = min((cost for cost, _ in ways), default=0)
    return [way for (cost, _), way in ways.items() if cost == fewest]


if __name__ == "__main__":
    command_line(main, Config)

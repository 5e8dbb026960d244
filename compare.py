"""The four cells of finetuning from one base, judged by the same yardsticks, in one table.

    python compare.py --text FILE --domain FILE --instructions FILE

A base is pretrained on the text. From it, on the same data in the same order: continued pretraining and LoRA on the
domain, SFT and LoRA on the instructions. Each is a call of a script's main(config), in a process of its own so that
its peak memory is its own.
"""

import json
import math
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import train_lora
import train_pretrain
import train_sft
from data import examples, tokenizer
from evaluate import exact_match, token_nll
from run.checkpoint import load_run
from run.config import check, command_line
from run.session import choose_device


@dataclass(kw_only=True)
class Config:
    text: str  # plain text that the base learns from
    domain: str  # plain text of another kind, for continued pretraining and LoRA
    instructions: str  # .json or .jsonl instructions, for SFT and LoRA
    out: str = "runs/compare"  # folder to write all runs and results.json to
    vocab_size: int = 1024  # tokens of the BPE that is trained on the text
    n_layer: int = 4  # blocks of the base
    n_head: int = 4  # attention heads a block
    n_embd: int = 128  # channels
    block_size: int = 128  # tokens a row
    batch_size: int = 32  # rows a step
    base_steps: int = 800  # optimizer steps of the base
    steps: int = 300  # optimizer steps of each method
    learning_rate: float = 1e-3  # where all parameters learn
    lora_learning_rate: float = 4e-3  # where A and B learn
    r: int = 8  # LoRA's rank
    held_out: float = 0.1  # share of each file that is not learned from, but judged by
    seed: int = 0  # of the weights and the order of the data
    device: str = "auto"  # cuda, mps, cpu, or auto


COLUMNS = {  # key in results.json -> heading and format in the table
    "method": ("method", "{}"),
    "trainable": ("learns", "{:,}"),
    "seconds": ("seconds", "{:.0f}"),
    "peak_mb": ("peak MB", "{:.0f}"),
    "checkpoint_bytes": ("checkpoint bytes", "{:,}"),
    "base_ppl": ("base ppl", "{:.1f}"),
    "domain_ppl": ("domain ppl", "{:.1f}"),
    "response_nll": ("response NLL", "{:.3f}"),
    "exact_match": ("exact match", "{:.1%}"),
}


LEGEND = """One seed; all is judged on held-out data. base ppl: perplexity a token of the text that the base learned from
(what is forgotten); domain ppl: of the domain (what is learned); response NLL: nats a token; exact match: of greedy
answers to the instructions."""


def main(config: Config) -> dict[str, Any]:
    check(config)
    out = Path(config.out)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty: give another --out, or delete it")
    device, started = choose_device(config.device), time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    vocabulary, base = str(out / "tokenizer.tiktoken"), str(out / "base")
    tokenizer.main(tokenizer.Config(text=config.text, out=vocabulary, vocab_size=config.vocab_size))
    encoding = tokenizer.load_tokenizer(vocabulary)
    _, text = examples.from_text(config.text, encoding, config.block_size, config.held_out)
    _, domain = examples.from_text(config.domain, encoding, config.block_size, config.held_out)
    _, instructions = examples.from_instructions(config.instructions, encoding, config.block_size, config.held_out)

    same: dict[str, Any] = {
        key: getattr(config, key) for key in ("block_size", "batch_size", "held_out", "seed", "device")
    }
    shape: dict[str, Any] = {key: getattr(config, key) for key in ("n_layer", "n_head", "n_embd")}
    same["eval_every"] = max(config.base_steps, config.steps)  # before the first step, and after the last
    of_base: dict[str, Any] = {"init_from": base, "steps": config.steps, **same}
    runs: dict[str, tuple[Callable[[Any], dict], Any]] = {
        "base": (
            train_pretrain.main,
            train_pretrain.Config(
                text=config.text, out=base, tokenizer=vocabulary, steps=config.base_steps, **shape, **same
            ),
        ),
        "continued pretraining": (
            train_pretrain.main,
            train_pretrain.Config(
                text=config.domain, out=str(out / "continued"), learning_rate=config.learning_rate, **of_base
            ),
        ),
        "LoRA on the domain": (
            train_lora.main,
            train_lora.Config(
                text=config.domain,
                out=str(out / "lora"),
                learning_rate=config.lora_learning_rate,
                r=config.r,
                **of_base,
            ),
        ),
        "SFT": (
            train_sft.main,
            train_sft.Config(
                instructions=config.instructions, out=str(out / "sft"), learning_rate=config.learning_rate, **of_base
            ),
        ),
        "LoRA-SFT": (
            train_lora.main,
            train_lora.Config(
                instructions=config.instructions,
                out=str(out / "lora_sft"),
                learning_rate=config.lora_learning_rate,
                r=config.r,
                **of_base,
            ),
        ),
    }
    rows = []
    for method, (train, run) in runs.items():
        print(f"\n{method}")
        costs = in_own_process(train, run)
        adapter = run.out if train is train_lora.main else ""
        model, _ = load_run("" if adapter else run.out, adapter, device)
        yardsticks = {
            "base_ppl": math.exp(token_nll(model, text, config.batch_size)),
            "domain_ppl": math.exp(token_nll(model, domain, config.batch_size)),
            "response_nll": token_nll(model, instructions, config.batch_size),
            "exact_match": exact_match(model, encoding, instructions, config.batch_size),
        }
        rows.append({"method": method, **costs, **yardsticks})
    results = {"device": str(device), "seconds": time.perf_counter() - started, "seeds": [config.seed], "rows": rows}
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"\n{table(rows)}\n\n{LEGEND}")
    return results


def in_own_process(main: Callable[[Any], dict], config: Any) -> dict:
    """main(config), in a fresh process: what an earlier run left in memory does not count."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(main, config).result()


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown, with a dash for what could not be measured."""
    cells = [[heading for heading, _ in COLUMNS.values()]]
    for row in rows:
        cells.append(["–" if row[key] is None else form.format(row[key]) for key, (_, form) in COLUMNS.items()])
    widths = [max(len(row[i]) for row in cells) for i in range(len(COLUMNS))]
    lines = [
        "| " + " | ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|")
    return "\n".join(lines)


if __name__ == "__main__":
    command_line(main, Config)

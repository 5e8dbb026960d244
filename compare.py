"""The four cells of finetuning from one base, judged by the same yardsticks, in one table.

    python compare.py --text FILE --domain FILE --instructions FILE

A base is pretrained on the text. From it start, on the same data in the same order, continued pretraining and LoRA on
the domain, SFT and LoRA on the instructions. Each is a call of a script's main(config), in a process of its own, so
that its peak memory is its own.
"""

import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import train_lora
import train_pretrain
import train_sft
from data import examples, tokenizer
from data.text import read_text
from evaluate import exact_match, perplexity, token_nll
from run.checkpoint import load_run
from run.config import Mistake, any_character, check, command_line
from run.session import choose_device


@dataclass(kw_only=True)
class Config:
    text: str  # plain text that the base learns from
    domain: str  # plain text of another kind, for continued pretraining and LoRA
    instructions: str  # .json or .jsonl instructions, for SFT and LoRA-SFT
    out: str = "runs/compare"  # folder to write the runs and results.json to
    vocab_size: int = 1024  # tokens of the BPE that is trained on the text
    n_layer: int = 4  # blocks of the base
    n_head: int = 4  # attention heads a block
    n_embd: int = 128  # channels
    block_size: int = 128  # tokens a row at most
    batch_size: int = 32  # rows a step
    base_steps: int = 600  # optimizer steps of the base
    steps: int = 250  # optimizer steps of each method
    base_learning_rate: float = 2e-3  # AdamW's, at its peak, for the base
    learning_rate: float = 1e-3  # the same for continued pretraining and SFT
    lora_learning_rate: float = 4e-3  # the same for LoRA: its B starts at 0 and takes larger steps
    r: int = 8  # LoRA's rank
    held_out: float = 0.1  # share of each file that is not learned from, but judged by
    seed: int = 0  # of the weights and the order of the data
    device: str = "auto"  # cuda, mps, cpu, or auto


def main(config: Config) -> dict[str, Any]:
    check(config)
    out, device, started = Path(config.out), choose_device(config.device), time.perf_counter()
    if (out / "results.json").exists() or (out / "base").exists():
        raise Mistake(f"{out} holds a comparison already: give another --out, or delete it")

    # the yardsticks: the held-out part of each file; a file that cannot be used is found here, before any training
    out.mkdir(parents=True, exist_ok=True)
    base, vocabulary = str(out / "base"), str(out / "tokenizer.tiktoken")
    tokenizer.save_tokenizer(tokenizer.train_bpe(read_text(config.text), config.vocab_size), vocabulary)
    rows_of = (tokenizer.load_tokenizer(vocabulary), config.block_size, config.held_out)
    _, text = examples.from_text(config.text, *rows_of)
    _, domain = examples.from_text(config.domain, *rows_of)
    _, instructions = examples.from_instructions(config.instructions, *rows_of)

    same = {key: getattr(config, key) for key in ("block_size", "batch_size", "held_out", "seed", "device")}
    new = {"tokenizer": vocabulary, "n_layer": config.n_layer, "n_head": config.n_head, "n_embd": config.n_embd}
    new |= {"steps": config.base_steps, "eval_every": config.base_steps, "learning_rate": config.base_learning_rate}
    full = {"init_from": base, "steps": config.steps, "eval_every": config.steps, "learning_rate": config.learning_rate}
    lora = {**full, "learning_rate": config.lora_learning_rate, "r": config.r}
    methods: list[tuple[str, str, Any, dict[str, Any]]] = [
        ("base", "base", train_pretrain, {"text": config.text, **new}),
        ("continued pretraining", "continued", train_pretrain, {"text": config.domain, **full}),
        ("LoRA on the domain", "lora", train_lora, {"text": config.domain, **lora}),
        ("SFT", "sft", train_sft, {"instructions": config.instructions, **full}),
        ("LoRA-SFT", "lora-sft", train_lora, {"instructions": config.instructions, **lora}),
    ]
    rows = []
    for method, name, script, settings in methods:
        print(f"\n{method}")
        run = str(out / name)
        costs = in_own_process(script.main, script.Config(out=run, **same, **settings))
        model, encoding = load_run("", run, device) if script is train_lora else load_run(run, "", device)
        yardsticks = {
            "base_ppl": perplexity(token_nll(model, text, config.batch_size)),
            "domain_ppl": perplexity(token_nll(model, domain, config.batch_size)),
            "response_nll": token_nll(model, instructions, config.batch_size),
            "exact_match": exact_match(model, encoding, instructions, config.batch_size),
        }
        rows.append({"method": method, **costs, **yardsticks})

    results = {"device": str(device), "seconds": time.perf_counter() - started, "seeds": [config.seed], "rows": rows}
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"\n{table(rows)}\n\n{LEGEND}\n{results['seconds']:.0f} s on {device}; all of it is in {out}.")
    return results


def in_own_process(main: Any, config: Any) -> dict[str, Any]:
    """main(config) in a fresh process, where nothing that ran before counts as memory."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), any_character) as pool:
        return pool.submit(main, config).result()


COLUMNS = {  # heading of the table: key in results.json, format
    "method": ("method", "{}"),
    "learns": ("trainable", "{:,}"),
    "seconds": ("seconds", "{:.0f}"),
    "peak MB": ("peak_mb", "{:.0f}"),
    "checkpoint": ("checkpoint_bytes", "{:,}"),
    "base ppl": ("base_ppl", "{:.1f}"),
    "domain ppl": ("domain_ppl", "{:.1f}"),
    "response NLL": ("response_nll", "{:.3f}"),
    "exact match": ("exact_match", "{:.1%}"),
}
LEGEND = """learns: parameters; peak MB: the most memory the process held; checkpoint: bytes. The rest: held-out data.
base ppl: perplexity a token of the base's text (what is forgotten); domain ppl: of the domain (what is learned);
response NLL: nats a token of the responses; exact match: of greedy answers with them. One seed."""


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown; a dash stands for what this system cannot measure."""
    cells = [list(COLUMNS)]
    for row in rows:
        cells.append(["–" if row[key] is None else form.format(row[key]) for key, form in COLUMNS.values()])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * (width - 1) + ":" for width in widths])
    return "\n".join(f"| {' | '.join(map(str.rjust, line, widths))} |" for line in cells)


if __name__ == "__main__":
    command_line(main, Config)

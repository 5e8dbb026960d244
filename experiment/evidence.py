"""What claims.py judges by, beyond the rows of the table: every number is measured here, on one seed."""

import copy
import csv
import json
import math
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.batches import collate
from data.examples import (
    TextRows,
    graded_everywhere,
    instruction_example,
    packed,
    read_instructions,
    render_prompt,
)
from evaluate import Yardsticks, first_lines, judge_texts
from experiment import in_context
from experiment.claims import Evidence
from experiment.method import Method
from model.gpt import GPT
from model.lora import merge, unmerge
from model.switch import plain_names
from store import checkpoint
from store.learned import fingerprint, read_learned


def gather(
    base_run: str, base: GPT, methods: dict[str, Method], rows: dict[str, Any], seed: int, y: Yardsticks
) -> Evidence:
    """base_run: the folder of the base model; methods and rows of the table by name."""
    models = {name: checkpoint.load_run(method.out, "", y.device)[0] for name, method in methods.items()}
    on_the_domain = ("continued pretraining", "LoRA on the domain")
    records = read_instructions(methods["SFT"].settings["instructions"])
    asked = in_context.asked_of(records, seed, base.config.block_size, y)
    shown = {"base": base} | {name: models[name] for name in ("SFT", "LoRA-SFT", "LoRA-SFT, no examples")}
    return {
        "rows": rows,
        "base": about_base(base, y),
        "continued": about_continued(base, models["continued pretraining"]),
        "lora": about_lora(base, methods["LoRA on the domain"].out, models["LoRA-SFT"], y),
        "mask": about_the_mask(base, y),
        "forgetting": {name: forgetting(methods[name], rows, y) for name in on_the_domain},
        "number_of_tasks": in_context.number_of_tasks(methods["LoRA-SFT"], asked["never trained"], seed, y),
        "few_shot": in_context.few_shot(shown, asked, y),
        "labels": in_context.labels(base, asked["trained"], records, seed, y),
        "cost": cost(base_run, base, methods["SFT"], rows["SFT"]),
        "losses": {name: losses(method.out) for name, method in methods.items()},
    }


def about_base(base: GPT, y: Yardsticks) -> dict[str, Any]:
    """How much better than word frequencies it predicts its text, and how often it happens to begin with an answer."""
    tokens = Counter(int(token) for example in y.text for token in example.targets)
    total = sum(tokens.values())
    unigram_nll = -sum(n / total * math.log(n / total) for n in tokens.values())
    asked = y.of_split("instances") or list(y.questions)
    prompts = [render_prompt(one.instruction, one.input) for one in asked]
    said = first_lines(base, y.tokenizer, prompts)
    begins = sum(line.startswith(one.output) for line, one in zip(said, asked, strict=True))
    return {"unigram_nll": unigram_nll, "begins_with_the_answer": begins / len(asked), "n": len(asked)}


def about_continued(base: GPT, continued: GPT) -> dict[str, Any]:
    """Which of the tensors changed."""
    after = continued.state_dict()
    changed = [name for name, tensor in base.state_dict().items() if not torch.equal(tensor, after[name])]
    return {"changed": len(changed), "tensors": len(after)}


def about_lora(base: GPT, domain_run: str, sft: GPT, y: Yardsticks) -> dict[str, Any]:
    """Whether the base was, at the end of training, bit for bit as before, and whether merging changes an answer."""
    at_the_end = read_learned(domain_run)["base_sha256"]  # of the trained model
    untouched = at_the_end == fingerprint(plain_names(base))
    few = y.questions[:: max(1, len(y.questions) // 200)]
    prompts = [render_prompt(one.instruction, one.input) for one in few]
    beside = first_lines(sft, y.tokenizer, prompts)
    merge(sft)
    merged = first_lines(sft, y.tokenizer, prompts)
    unmerge(sft)
    same = sum(one == other for one, other in zip(beside, merged, strict=True))
    return {"base_untouched": untouched, "same_answers_merged": same, "n": len(prompts)}


def about_the_mask(base: GPT, y: Yardsticks) -> dict[str, Any]:
    """Loss and gradients of one batch of instructions: as plain text, as SFT with the prompt graded, and as SFT. On the
    CPU: a GPU may add up the same numbers in another order each time."""
    base = copy.deepcopy(base).cpu()
    sft = [instruction_example(one, y.tokenizer) for one in y.questions[:32]]
    as_text = [TextRows(np.append(one.inputs, one.targets[-1]), len(one.inputs))[0] for one in sft]
    found = {}
    for name, examples in (("text", as_text), ("graded", graded_everywhere(sft)), ("masked", sft)):
        base.zero_grad()
        inputs, targets, graded, _ = collate(examples)  # (B, T) each
        log_p = base(inputs, graded).log_softmax(-1)  # (N, V)
        nll = -log_p.gather(-1, targets[graded].unsqueeze(-1)).squeeze(-1)  # (N,) nats
        loss = nll.sum() / len(nll)
        loss.backward()
        gradients = [parameter.grad.clone() for parameter in base.parameters() if parameter.grad is not None]
        found[name] = loss.item(), gradients, len(nll)
    same = {name: all(map(torch.equal, found["text"][1], found[name][1])) for name in ("graded", "masked")}
    return {
        "loss": {name: loss for name, (loss, _, _) in found.items()},
        "graded_tokens": {name: n for name, (_, _, n) in found.items()},
        "prompt_graded_is_pretraining": found["text"][0] == found["graded"][0] and same["graded"],
        "masked_is_pretraining": found["text"][0] == found["masked"][0] and same["masked"],
    }


def forgetting(method: Method, rows: dict[str, Any], y: Yardsticks) -> list[dict[str, Any]]:
    """At the method's rate and at a third of it: the rate, and the points [steps, domain NLL, base NLL] before, after
    two shorter trainings, and after as many steps as the table's."""

    def point(row: dict[str, Any], steps: int) -> list[float]:
        return [steps, row["domain_nll"], row["base_nll"]]

    curves, all_steps = [], method.settings["steps"]
    for rate in (method.settings["learning_rate"], method.settings["learning_rate"] / 3):
        points = [point(rows["base"], 0)]
        for steps in sorted({max(1, all_steps // 4), max(1, all_steps // 2), all_steps}):
            if rate == method.settings["learning_rate"] and steps == all_steps:
                points.append(point(rows[method.name], steps))
            else:
                model = method.variant(f"{steps}-steps-{rate:.0e}", y.device, steps=steps, learning_rate=rate)
                points.append(point(judge_texts(model, y), steps))
        curves.append({"rate": rate, "points": points})
    return curves


def cost(base_run: str, base: GPT, method: Method, row: dict[str, Any]) -> dict[str, Any]:
    """Tokens read, floating-point operations (6 a parameter and token: Kaplan et al. 2020, sec. 2.1) and seconds."""
    tokenizer = checkpoint.open_run(base_run).tokenizer
    records = read_instructions(method.settings["instructions"])
    rows = packed([instruction_example(one, tokenizer) for one in records], method.settings["block_size"])
    read = method.settings["steps"] * method.settings["batch_size"]  # rows
    sft_tokens = read * statistics.mean(len(row.inputs) for row in rows)
    base_tokens, base_seconds = pretraining(base_run)
    parameters = sum(parameter.numel() for parameter in base.parameters())
    return {
        "instructions": len(records),
        "epochs": read / ((1 - method.settings["held_out"]) * len(rows)),
        "sft_tokens": sft_tokens,
        "sft_flops": 6 * parameters * sft_tokens,
        "sft_seconds": row["seconds"],
        "base_tokens": base_tokens,
        "base_flops": base_tokens and 6 * parameters * base_tokens,
        "base_seconds": base_seconds,
    }


def pretraining(run: str) -> tuple[int | None, float | None]:
    """Tokens and seconds that a run took, with the runs beside it that it goes back to as far as they are there; None
    if it does not say."""
    if not Path(run, "metrics.csv").exists():
        return None, None
    last = metrics(run)[-1]
    tokens, seconds = int(last["graded_tokens"]), float(last["seconds"])
    start = json.loads(Path(run, "config.json").read_text(encoding="utf-8")).get("init_from", "")
    beside = Path(run).parent / Path(start).name
    if start and beside.resolve() != Path(run).resolve():
        before = pretraining(str(beside))
        tokens, seconds = tokens + (before[0] or 0), seconds + (before[1] or 0.0)
    return tokens, seconds


def metrics(run: str) -> list[dict[str, str]]:
    with open(Path(run, "metrics.csv"), encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def losses(run: str) -> list[list[float]]:
    """[step, training loss] of a run."""
    return [[int(row["step"]), float(row["loss"])] for row in metrics(run) if row["loss"]]

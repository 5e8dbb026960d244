"""What claims.py judges by, beyond the rows of the table: every number is measured here, on one seed."""

import contextlib
import csv
import io
import json
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch

from data.batches import collate
from data.examples import (
    Instruction,
    TextRows,
    graded_everywhere,
    instruction_example,
    read_instructions,
    render_prompt,
)
from evaluate import Yardsticks, first_lines, judge_answers, judge_texts, perplexity
from model.gpt import GPT
from model.lora import merge, plain_names, unmerge
from run.resume import is_finished
from store import checkpoint
from store.learned import fingerprint, read_learned

Evidence = dict[str, Any]


class Method(NamedTuple):
    """A method of the comparison: the script that trains it, with which settings, into which run folder."""

    name: str
    script: Any
    settings: dict[str, Any]
    out: str

    def variant(self, name: str, device: torch.device, **changes: Any) -> GPT:
        """The model that the same training gives with some settings changed, trained quietly."""
        run = f"{self.out}-{name}"
        if not is_finished(Path(run)):
            with contextlib.redirect_stdout(io.StringIO()):
                self.script.main(self.config(run, **changes))
        return checkpoint.load_run(run, "", device)[0]

    def config(self, out: str, **changes: Any) -> Any:
        """Of the script; a run that was begun there, and not finished, goes on."""
        return self.script.Config(out=out, **{**self.settings, **changes}, resume=Path(out, "config.json").exists())


def gather(
    base_run: str, base: GPT, methods: dict[str, Method], rows: dict[str, Any], seed: int, y: Yardsticks
) -> Evidence:
    """base_run: the folder of the base model; methods and rows of the table by name."""
    models = {name: checkpoint.load_run(method.out, "", y.device)[0] for name, method in methods.items()}
    on_the_domain = ("continued pretraining", "LoRA on the domain")
    return {
        "rows": rows,
        "base": about_base(base, y),
        "continued": about_continued(base, models["continued pretraining"]),
        "lora": about_lora(base, methods["LoRA on the domain"].out, models["LoRA-SFT"], y),
        "mask": about_the_mask(base, y),
        "forgetting": {name: forgetting(methods[name], rows, y) for name in on_the_domain},
        "number_of_tasks": number_of_tasks(methods["LoRA-SFT"], seed, y),
        "few_shot": few_shot({"base": base, "SFT": models["SFT"], "LoRA-SFT": models["LoRA-SFT"]}, seed, y),
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
    return {"unigram_ppl": perplexity(unigram_nll), "begins_with_the_answer": begins / len(asked), "n": len(asked)}


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
    """Loss and gradients of one batch of instructions: as plain text, as SFT with the prompt graded, and as SFT."""
    sft = [instruction_example(one, y.tokenizer) for one in y.questions[: y.batch_size]]
    as_text = [TextRows(np.append(one.inputs, one.targets[-1]), len(one.inputs))[0] for one in sft]
    found = {}
    for name, examples in (("text", as_text), ("graded", graded_everywhere(sft)), ("masked", sft)):
        base.zero_grad()
        inputs, targets, graded, _ = (tensor.to(y.device) for tensor in collate(examples))  # (B, T) each
        log_p = base(inputs, graded).log_softmax(-1)  # (N, V)
        nll = -log_p.gather(-1, targets[graded].unsqueeze(-1)).squeeze(-1)  # (N,) nats
        loss = nll.sum() / len(nll)
        loss.backward()
        gradients = [parameter.grad.clone() for parameter in base.parameters() if parameter.grad is not None]
        found[name] = loss.item(), gradients, len(nll)
    base.zero_grad()
    same = {name: all(map(torch.equal, found["text"][1], found[name][1])) for name in ("graded", "masked")}
    return {
        "loss": {name: loss for name, (loss, _, _) in found.items()},
        "graded_tokens": {name: n for name, (_, _, n) in found.items()},
        "prompt_graded_is_pretraining": found["text"][0] == found["graded"][0] and same["graded"],
        "masked_is_pretraining": found["text"][0] == found["masked"][0] and same["masked"],
    }


def forgetting(method: Method, rows: dict[str, Any], y: Yardsticks) -> list[list[float]]:
    """[steps, domain perplexity, base perplexity] before, after shorter trainings, and after the one of the table."""
    points = [[0, rows["base"]["domain_ppl"], rows["base"]["base_ppl"]]]
    for steps in sorted({max(1, method.settings["steps"] // parts) for parts in (12, 6, 3)}):
        judged = judge_texts(method.variant(f"{steps}-steps", y.device, steps=steps), y)
        points.append([steps, judged["domain_ppl"], judged["base_ppl"]])
    return [*points, [method.settings["steps"], rows[method.name]["domain_ppl"], rows[method.name]["base_ppl"]]]


def number_of_tasks(method: Method, seed: int, y: Yardsticks) -> list[dict[str, Any]]:
    """Exact match on the tasks that were never trained, after training on instructions of 2, 5, 10 and all tasks, with
    a third of the method's steps for each."""
    records = read_instructions(method.settings["instructions"])
    tasks = sorted({record.task for record in records} - {""})
    Random(seed).shuffle(tasks)
    points = []
    for n in sorted({min(n, len(tasks)) for n in (2, 5, 10, len(tasks))} - {0}):
        chosen = Path(f"{method.out}-{n}-tasks.json")
        chosen.write_text(json.dumps([record._asdict() for record in records if record.task in tasks[:n]]), "utf-8")
        steps = max(1, method.settings["steps"] // 3)
        model = method.variant(f"{n}-tasks", y.device, instructions=str(chosen), steps=steps)
        points.append({"tasks": n, "trained": tasks[:n], **judge_answers(model, y, "tasks")})
    return points


def prompt_with(question: Instruction, shown: Sequence[Instruction]) -> str:
    return render_prompt(question.instruction, question.input, [one[:3] for one in shown])


def few_shot(models: dict[str, GPT], seed: int, y: Yardsticks) -> dict[str, Any]:
    """Right first lines with 0, 1, 2 and 4 solved examples of the same task in the prompt, on tasks never trained.

    The questions are those whose prompt fits the block with four examples, so that they are the same for each number.
    """
    rng, never, block_size = Random(seed), y.of_split("tasks"), models["base"].config.block_size
    asked = []
    for one in never:
        others = [other for other in never if other.task == one.task and other != one]
        if len(others) >= 4:
            shown = rng.sample(others, 4)
            if len(y.tokenizer.encode_ordinary(prompt_with(one, shown))) + 8 <= block_size:
                asked.append((one, shown))
    at_most = max(20, len(y.questions) // 17)  # the prompts are long: 80 of 1,374
    asked = asked[:: max(1, len(asked) // at_most)]
    found: dict[str, Any] = {"n": len(asked), "chance": sum(one.chance for one, _ in asked) / max(1, len(asked))}
    for name, model in models.items():
        found[name] = {}
        for k in (0, 1, 2, 4):
            prompts = [prompt_with(one, shown[:k]) for one, shown in asked]
            said = first_lines(model, y.tokenizer, prompts)
            right = sum(line.rstrip(".") == one.output for line, (one, _) in zip(said, asked, strict=True))
            found[name][str(k)] = right / max(1, len(asked))
    return found


def cost(base_run: str, base: GPT, method: Method, row: dict[str, Any]) -> dict[str, Any]:
    """Tokens read, floating-point operations (6 a parameter and token: Kaplan et al. 2020, sec. 2.1) and seconds."""
    tokenizer = checkpoint.open_run(base_run).tokenizer
    records = read_instructions(method.settings["instructions"])
    read = method.settings["steps"] * method.settings["batch_size"]  # examples
    sft_tokens = read * statistics.mean(len(instruction_example(one, tokenizer).inputs) for one in records)
    base_tokens, base_seconds = pretraining(base_run)
    parameters = sum(parameter.numel() for parameter in base.parameters())
    return {
        "instructions": len(records),
        "epochs": read / ((1 - method.settings["held_out"]) * len(records)),
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

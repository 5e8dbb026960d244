"""What examples in the prompt do, and how many tasks were trained on: the measurements behind claims 10 and 13 to 16.

Answers are judged by their first line here, of every model: a base model goes on after it has answered.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from data.examples import Instruction, read_instructions, render_prompt
from evaluate import Yardsticks, first_lines, judge_answers
from experiment.method import Method
from model.gpt import GPT

N_SHOWN = 4  # examples in a prompt, at most
N_ASKED = 160  # questions, at most
DRAWS = 2  # of the tasks to train on, for each number of them


class Asked(NamedTuple):
    """A question, and solved ones of its task to show before it."""

    question: Instruction
    shown: Sequence[Instruction]

    def prompt(self, k: int) -> str:
        """With the first k of them."""
        return render_prompt(self.question.instruction, self.question.input, [one[:3] for one in self.shown[:k]])

    def with_random_labels(self, rng: Random, others: Sequence[Instruction]) -> "Asked":
        """The same inputs, each with the response to a question of the task that is drawn at random."""
        return self._replace(shown=[one._replace(output=rng.choice(others).output) for one in self.shown])


def silent_prompt(asked: Asked, k: int) -> str:
    """Inputs and responses in the template, without its instructions: what is to be done, only the examples tell."""
    solved = "".join(f"### Input: {one.input}\n### Response: {one.output}\n" for one in asked.shown[:k])
    return f"{solved}### Input: {asked.question.input}\n### Response:"


def by_task(records: Sequence[Instruction]) -> dict[str, list[Instruction]]:
    found = defaultdict(list)
    for record in records:
        found[record.task].append(record)
    return found


def with_examples(
    questions: Sequence[Instruction], known: dict[str, list[Instruction]], rng: Random, block_size: int, y: Yardsticks
) -> list[Asked]:
    """The questions that fit the block with all the examples, so that they are the same for each number of them."""
    fit = []
    for one in questions:
        others = [other for other in known.get(one.task, []) if other[:2] != one[:2]]
        if len(others) >= N_SHOWN:
            asked = Asked(one, rng.sample(others, N_SHOWN))
            if len(y.tokenizer.encode_ordinary(f"{asked.prompt(N_SHOWN)} {one.output}")) < block_size:
                fit.append(asked)
    return fit[:: max(1, -(-len(fit) // N_ASKED))]  # every so many, so that all tasks are there


def right_lines(model: GPT, prompts: Sequence[str], asked: Sequence[Asked], y: Yardsticks) -> float:
    """The share of prompts after which the first line, but for a full stop, is the response."""
    said = first_lines(model, y.tokenizer, prompts)
    right = sum(line.rstrip(".") == one.question.output for line, one in zip(said, asked, strict=True))
    return right / max(1, len(asked))


def asked_of(records: Sequence[Instruction], seed: int, block_size: int, y: Yardsticks) -> dict[str, list[Asked]]:
    """Questions of trained tasks, shown records to learn from; and of never-trained tasks, shown other questions."""
    rng, never = Random(seed), y.of_split("tasks")
    return {
        "trained": with_examples(y.of_split("instances"), by_task(records), rng, block_size, y),
        "never trained": with_examples(never, by_task(never), rng, block_size, y),
    }


def few_shot(models: dict[str, GPT], asked: dict[str, list[Asked]], y: Yardsticks) -> dict[str, Any]:
    """Right first lines with 0, 1, 2 and 4 solved examples of the same task in the prompt, by kind of task."""
    return {
        kind: {
            "n": len(of_kind),
            "chance": sum(one.question.chance for one in of_kind) / max(1, len(of_kind)),
            **{
                name: {str(k): right_lines(model, [one.prompt(k) for one in of_kind], of_kind, y) for k in (0, 1, 2, 4)}
                for name, model in models.items()
            },
        }
        for kind, of_kind in asked.items()
    }


def labels(
    base: GPT, asked: Sequence[Asked], records: Sequence[Instruction], seed: int, y: Yardsticks
) -> dict[str, Any]:
    """Right first lines of the base without examples, with right ones, and with ones whose labels are random: where the
    task is named, and where the instructions are left out. The latter are of tasks whose instructions name nothing but
    the task, so that inputs and responses tell all that is asked."""
    rng, known = Random(seed), by_task(records)
    n_forms = {task: len({one.instruction for one in of_task}) / len(of_task) for task, of_task in known.items()}
    same = [one for one in y.of_split("instances") if one.input and n_forms.get(one.task, 1) < 0.1]

    def shares(asked: Sequence[Asked], prompt: Callable[[Asked, int], str]) -> dict[str, Any]:
        random = [one.with_random_labels(rng, known[one.question.task]) for one in asked]
        ways = {"none": (asked, 0), "right": (asked, N_SHOWN), "random": (random, N_SHOWN)}
        return {"n": len(asked)} | {
            way: right_lines(base, [prompt(one, k) for one in shown], asked, y) for way, (shown, k) in ways.items()
        }

    silent = with_examples(same, known, rng, base.config.block_size, y)
    return {"named": shares(asked, Asked.prompt), "silent": shares(silent, silent_prompt)}


def number_of_tasks(method: Method, asked: Sequence[Asked], seed: int, y: Yardsticks) -> list[dict[str, Any]]:
    """Never-trained tasks after training on as many records of 2, 5, 10 and all tasks, for a sixth of the method's
    steps; of each number several draws of tasks and records, for chance decides much which tasks they are.

    zero_shot: exact match; few_shot: right first lines with all the examples in the prompt.
    """
    known = by_task([one for one in read_instructions(method.settings["instructions"]) if one.task])
    if not known:
        return []
    n_records = 2 * min(map(len, known.values()))
    points = []
    for n in sorted({min(n, len(known)) for n in (2, 5, 10, len(known))}):
        draws = []
        for draw in range(DRAWS):
            rng = Random(f"{seed} {n} {draw}")
            tasks = rng.sample(sorted(known), n)
            records = [one for task in tasks for one in rng.sample(known[task], min(len(known[task]), n_records // n))]
            file, steps = Path(f"{method.out}-{n}-tasks-{draw}.json"), max(1, method.settings["steps"] // 6)
            file.write_text(json.dumps([as_json(record) for record in records]), "utf-8")
            model = method.variant(f"{n}-tasks-{draw}", y.device, instructions=str(file), steps=steps)
            zero_shot = judge_answers(model, y, "tasks")["value"]
            prompts = [one.prompt(N_SHOWN) for one in asked]
            draws.append({"trained": tasks, "zero_shot": zero_shot, "few_shot": right_lines(model, prompts, asked, y)})
        points.append({"tasks": n, "records": n_records // n * n, "n_few_shot": len(asked), "draws": draws})
    return points


def as_json(record: Instruction) -> dict[str, Any]:
    """A record as a file has it."""
    if record.earlier or record.system:
        turns = [*record.earlier, (record.instruction, record.output)]
        said = [{"role": role, "content": text} for turn in turns for role, text in zip(ROLES, turn, strict=True)]
        return {"messages": [{"role": "system", "content": record.system}] * bool(record.system) + said}
    alpaca = {key: value for key, value in record._asdict().items() if key in (*KEYS, "task")}
    return {**alpaca, "examples": [dict(zip(KEYS, one, strict=True)) for one in record.examples]}


KEYS = ("instruction", "input", "output")
ROLES = ("user", "assistant")

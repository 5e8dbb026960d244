"""Instructions to learn from, and questions to judge by, in Alpaca's keys."""

from random import Random
from typing import Any

from world.questions import Pool, asked_about
from world.tasks import TASKS, Task
from world.words import seen, unseen

Record = dict[str, Any]
SHOWING = 0.3  # the share of the instructions to learn from that show solved ones of their task
LONGEST = 150  # words of all that a record shows and asks, so that it fits a row


def record(rng: Random, task: Task, phrasings: tuple[str, ...], pool: Pool, split: str) -> Record:
    """One instruction in Alpaca's keys, with its task, its split and its chance level.

    >>> record(Random(3), TASKS[6], TASKS[6].phrasings, seen, "train")["instruction"]
    'Repeat the words of the list.'
    """
    text, question = asked_about(rng, task, pool)
    instruction = rng.choice(phrasings).format(**question.fields)
    what = {"instruction": instruction, "input": text, "output": question.output}
    return {**what, "task": task.name, "split": split, "chance": round(question.chance, 4)}


def records(
    rng: Random, task: Task, phrasings: tuple[str, ...], pool: Pool, split: str, n: int, taken: set[tuple]
) -> list[Record]:
    """Up to n records whose prompts are not taken yet: some tasks about facts have fewer."""
    found: list[Record] = []
    for _ in range(20 * n):
        new = record(rng, task, phrasings, pool, split)
        if len(found) < n and prompt(new) not in taken:
            taken.add(prompt(new))
            found.append(new)
    return found


def instructions(rng: Random, n_train: int = 300, n_test: int = 16) -> tuple[list[Record], list[Record]]:
    """The records to learn from, n_train a task, and the questions to judge by, n_test a task and split."""
    questions: list[Record] = []
    taken: set[tuple] = set()
    trained = [task for task in TASKS if task.trained]
    for task in trained:
        questions += records(rng, task, task.phrasings, seen, "instances", n_test, taken)
        questions += records(rng, task, task.held_out, seen, "phrasings", n_test, taken)
        new = "facts" if task.kind == "fact" else "entities"
        questions += records(rng, task, task.phrasings, unseen, new, n_test, taken)
    for task in TASKS:
        if not task.trained:
            questions += records(rng, task, task.phrasings, list, "tasks", 2 * n_test, taken)
    train: list[Record] = []
    for task in trained:
        again, enough = set(taken), len(train) + n_train
        while len(train) < enough:  # tasks about facts have few prompts: they come again
            train += records(rng, task, task.phrasings, seen, "train", enough - len(train), again)
            again = set(taken)
    rng.shuffle(train)
    return [with_examples(rng, one, train) if rng.random() < SHOWING else one for one in train], questions


def with_examples(rng: Random, one: Record, records: list[Record]) -> Record:
    """The record with one to four others of its task before it, solved, as far as a row has room for them."""
    others = [other for other in records if other["task"] == one["task"] and prompt(other) != prompt(one)]
    shown, room = [], LONGEST - n_words(one)
    for other in rng.sample(others, rng.randint(1, 4)):
        room -= n_words(other)
        if room >= 0:
            shown.append({key: other[key] for key in ("instruction", "input", "output")})
    return {**one, "examples": shown}


def prompt(one: Record) -> tuple[str, str]:
    return one["instruction"], one["input"]


def n_words(one: Record) -> int:
    """Of a record in the template, whose own words are six."""
    return 6 + len(f"{one['instruction']} {one['input']} {one['output']}".split())

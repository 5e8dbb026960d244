"""Instructions to learn from, and questions to judge by, in Alpaca's keys."""

from random import Random

from world.questions import Pool, fact_question, list_question, story, story_question, word_list
from world.tasks import TASKS, Task
from world.words import seen, unseen

Record = dict[str, str | float]


def record(rng: Random, task: Task, phrasings: tuple[str, ...], pool: Pool, split: str) -> Record:
    """One instruction in Alpaca's keys, with its task, its split and its chance level.

    >>> record(Random(3), TASKS[6], TASKS[6].phrasings, seen, "train")["instruction"]
    'Repeat the words of the list.'
    """
    question, text = None, ""
    while question is None:
        if task.kind == "story":
            text, rows = story(rng, pool)
            question = story_question(rng, task.name, rows)
        elif task.kind == "list":
            words = word_list(rng, pool)
            text, question = " ".join(words), list_question(rng, task.name, words, pool)
        else:
            question = fact_question(rng, task.name, pool)
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
        prompt = (new["instruction"], new["input"])
        if len(found) < n and prompt not in taken:
            taken.add(prompt)
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
    return train, questions

"""Pairs of responses to one instruction, of which people prefer one, and instructions answered in both styles.

Both responses of a pair give the right answer: one says no more than that, the preferred one says too that this is all.
So what is learned from pairs alone is the style; whether an answer is still right tells what that costs.
"""

from random import Random
from typing import Any

from world.records import prompt, records
from world.tasks import TASKS
from world.words import seen

Record = dict[str, Any]
CLOSING = "; that is all."


def styled(rng: Random, train: list[Record]) -> list[Record]:
    """The instructions to learn from, without solved ones before them; every second response, by chance, in the
    preferred style."""
    return [
        {
            "instruction": one["instruction"],
            "input": one["input"],
            "output": one["output"] + rng.choice(("", CLOSING)),
            "task": one["task"],
        }
        for one in train
    ]


def pairs(rng: Random, questions: list[Record], n: int = 120) -> list[Record]:
    """Up to n pairs a trained task, none about a question to judge by; of tasks about facts there are fewer.

    >>> one = pairs(Random(0), [], 1)[0]
    >>> one["chosen"], one["rejected"]
    ('shoe oar cat mast plum; that is all.', 'shoe oar cat mast plum')
    """
    taken = {prompt(one) for one in questions}
    found: list[Record] = []
    for task in TASKS:
        if task.trained:
            found += records(rng, task, task.phrasings, seen, "train", n, taken)
    rng.shuffle(found)
    return [
        {
            "instruction": one["instruction"],
            "input": one["input"],
            "chosen": one["output"] + CLOSING,
            "rejected": one["output"],
            "task": one["task"],
        }
        for one in found
    ]

"""Stories and lists, drawn from the words, and questions about them, with their answers."""

import math
from collections.abc import Callable
from random import Random

from world.tasks import FACTS, LOOK_UP, Question, Task
from world.words import COLOURS, GROUPS, NAMES, NUMBERS, PLACES, THINGS

Pool = Callable[[list], list]  # which of the words may be named: seen, unseen, or list for all of them
Row = dict[str, str]  # who has which thing of which colour in which place


def story(rng: Random, pool: Pool) -> tuple[str, list[Row]]:
    """Two to four people, what each has and where; in three stories of twenty something changes hands or someone
    moves.

    >>> story(Random(1), seen)[0]
    'Clara has the pink axe in the meadow. Kate has the yellow top in the school.'
    """
    n = rng.choices((2, 3, 4), (5, 4, 1))[0]
    columns = {"who": pool(NAMES), "thing": pool(THINGS), "colour": COLOURS, "place": pool(PLACES)}
    drawn = {name: rng.sample(words, n) for name, words in columns.items()}
    rows = [{name: words[i] for name, words in drawn.items()} for i in range(n)]
    sentences = [stated(rng, row) for row in rows]
    if rng.random() < 0.15:
        giver, taker = rng.sample(rows, 2)
        elsewhere = [place for place in columns["place"] if place not in drawn["place"]]
        if rng.random() < 0.5 or not elsewhere:
            sentences.append("Then {who} gives the {thing} to {0}.".format(taker["who"], **giver))
            giver["who"], giver["place"] = taker["who"], taker["place"]
        else:
            giver["place"] = rng.choice(elsewhere)
            sentences.append("Then {who} goes to the {place}.".format(**giver))
    return " ".join(sentences), rows


def stated(rng: Random, row: Row) -> str:
    forms = (
        "{who} has the {colour} {thing} in the {place}.",
        "In the {place} is {who} with the {colour} {thing}.",
        "The {colour} {thing} is with {who} in the {place}.",
    )
    return rng.choice(forms).format(**row)


def story_question(rng: Random, task: str, rows: list[Row]) -> Question | None:
    """Asks about one row; None when that has no single answer: who has two things has no "thing of his".

    >>> rows = [{"who": "Anna", "thing": "ball", "colour": "red", "place": "hall"}]
    >>> story_question(Random(0), "colour", rows)
    Question(fields={'thing': 'ball'}, output='red', chance=1.0)
    """
    row = rng.choice(rows)
    if task == "yes or no":
        others = [other["who"] for other in rows if other["who"] != row["who"]]
        if not others:
            return None
        answer = rng.choice(("yes", "no"))
        who = row["who"] if answer == "yes" else rng.choice(others)
        return Question({"who": who, "thing": row["thing"]}, answer, 1 / 2)
    key, wanted = LOOK_UP[task]
    if len({other[wanted] for other in rows if other[key] == row[key]}) > 1:
        return None
    return Question({key: row[key]}, row[wanted], 1 / len({other[wanted] for other in rows}))


def word_list(rng: Random, pool: Pool) -> list[str]:
    """Two to five words of three groups.

    >>> word_list(Random(0), seen)
    ['Story', 'sock']
    """
    groups = rng.sample(list(GROUPS), 3)
    return rng.sample([word for group in groups for word in pool(GROUPS[group])], rng.randint(2, 5))


def list_question(rng: Random, task: str, words: list[str], pool: Pool) -> Question | None:
    """Asks for something to be done with the words; None when they do not allow it: nothing comes after the last.

    >>> list_question(Random(0), "after", ["cow", "ball", "hat"], seen).output
    'hat'
    """
    n, place = len(words), rng.randrange(len(words))
    a, b = words[place], rng.choice([word for word in pool(ALL_WORDS) if word not in words])
    group = "rigging" if task == "keep the rigging" else GROUP_OF[a]
    if task == "in the list":
        a = rng.choice((a, b))
    kept = [word for word in words if GROUP_OF[word] == group]
    anagrams = 1 / math.factorial(n)
    output, chance = {
        "repeat": (words, anagrams),
        "first": (words[:1], 1 / n),
        "second": (words[1:2], 1 / n),
        "last": (words[-1:], 1 / n),
        "reverse": (words[::-1], anagrams),
        "count": ([NUMBERS[n - 1]], 1 / 4),
        "after": (words[place + 1 :][:1], 1 / n),
        "before": (words[:place][-1:], 1 / n),
        "in the list": (["yes" if a in words else "no"], 1 / 2),
        "keep": (kept if group != "rigging" else [], 1 / (2**n - 1)),
        "keep the rigging": (kept, 1 / (2**n - 1)),
        "without the first": (words[1:], 1 / n),
        "add": ([*words, b], 1 / (n + 1)),
        "replace": ([b if word == a else word for word in words], 1 / n),
    }[task]
    return Question({"a": a, "b": b, "group": group}, " ".join(output), chance) if output else None


ALL_WORDS = [word for words in GROUPS.values() for word in words]
GROUP_OF = {word: group for group, words in GROUPS.items() for word in words}


def fact_question(rng: Random, task: str, pool: Pool) -> Question:
    """Asks what only the base text states.

    >>> fact_question(Random(0), "opposite", seen).fields, fact_question(Random(0), "opposite", seen).output
    ({'x': 'clean'}, 'dirty')
    """
    x, y = rng.choice(pool(FACTS[task]))
    return Question({"x": x}, y, 1 / len({y for _, y in FACTS[task]}))


def asked_about(rng: Random, task: Task, pool: Pool) -> tuple[str, Question]:
    """A story or a list (of a fact: nothing), and a question of the task about it."""
    while True:
        if task.kind == "story":
            text, rows = story(rng, pool)
            question = story_question(rng, task.name, rows)
        elif task.kind == "list":
            words = word_list(rng, pool)
            text, question = " ".join(words), list_question(rng, task.name, words, pool)
        else:
            text, question = "", fact_question(rng, task.name, pool)
        if question:
            return text, question

"""Documents that teach to learn from examples: several questions of one task, all in one format.

The format is drawn for each document: names of the fields, or an arrow; separators; what comes first; whether an answer
is a word or a sentence. So only the questions before tell how the next one is to be answered, and in a silent drill,
where no question is asked, what is to be done at all. The format of instructions is never among them.
"""

from collections.abc import Callable
from random import Random
from typing import NamedTuple

from world.questions import ALL_WORDS, GROUP_OF, asked_about, word_list
from world.tasks import A_WORD, FACTS, LOOK_UP, TASKS
from world.words import COLOURS, GROUPS, NAMES, NUMBERS, PLACES

HARD = {"yes or no": 3, "who has it": 2, "place of a thing": 3, "in the list": 4, "replace": 5, "keep": 4}  # others: 1
STRANGE = 0.3  # the share of the later drills that ask in words without a meaning
HEADINGS = [word for word in GROUPS["headings"] if word not in ("Instruction", "Input", "Response")]
FIELD_NAMES = [word for word in ALL_WORDS if word not in GROUPS["headings"]] + NAMES + PLACES + COLOURS + NUMBERS

SILENT: dict[str, Callable[[list[str]], list[str]]] = {  # what can be done with a list; no question names it
    "first": lambda words: words[:1],
    "last": lambda words: words[-1:],
    "first two": lambda words: words[:2],
    "last two": lambda words: words[-2:],
    "first and last": lambda words: [words[0], words[-1]],
    "without the first": lambda words: words[1:] or words,
    "without the last": lambda words: words[:-1] or words,
    "repeat": lambda words: words,
    "reverse": lambda words: words[::-1],
    "last to the front": lambda words: [words[-1], *words[:-1]],
    "first to the end": lambda words: [*words[1:], words[0]],
    "count": lambda words: [NUMBERS[len(words) - 1]],
    "group of the first": lambda words: [GROUP_OF[words[0]]],
    "group of the last": lambda words: [GROUP_OF[words[-1]]],
}


class Format(NamedTuple):
    """How the fields of a question are written, the same for all questions of a document."""

    marks: list[str]  # before each field
    between: str  # two fields
    after: str  # a question

    def document(self, questions: list[list[str]]) -> str:
        """questions: the fields of each."""
        written = (
            self.between.join(mark + field for mark, field in zip(self.marks, fields, strict=True))
            for fields in questions
        )
        return self.after.join(one.strip() for one in written)


def drawn_format(rng: Random, n_fields: int) -> Format:
    style = rng.choices(("headings", "words", "arrow"), (6, 3, 2))[0]
    if style == "arrow":
        arrow = rng.choice(("->", "=>", "=", ":", "|", "-"))
        marks = [""] * (n_fields - 1) + [f"{arrow} "]
        return Format(marks, " ", rng.choices(("\n", "; ", " | ", "\n\n"), (5, 1, 1, 1))[0])
    colon = rng.choices((":", " -", " =", "."), (8, 1, 1, 1))[0]
    if style == "headings":
        names = list(dict.fromkeys(rng.choices([*HEADINGS * 4, *FIELD_NAMES], k=9)))[:n_fields]
        marks = [f"### {name}{colon} " for name in names]
        return Format(marks, rng.choices(("\n", " "), (4, 1))[0], rng.choices(("\n", "\n\n", " "), (6, 2, 1))[0])
    names = rng.sample(FIELD_NAMES, n_fields)
    if rng.random() < 0.5:
        names = [name.capitalize() for name in names]
    marks = [f"{name}{colon} " for name in names]
    if rng.random() < 0.3:
        marks[0] = ""
    return Format(marks, rng.choice("\n "), rng.choices(("\n", "\n\n", " "), (4, 2, 1))[0])


def drill(rng: Random) -> str:
    """Two to nine questions of one trained task, or of several of a kind, each with a story or list of its own.

    >>> print(drill(Random(2)))
    Olga: Tell me which group Title is in.
    Anna: headings Olga: Tell me which group horse is in.
    Anna: animals Olga: Tell me which group ball is in.
    Anna: toys
    """
    return drilled(rng, {})


def drill_later(rng: Random) -> str:
    """The same, where what the first text has taught least is drilled more often. Three drills of ten are of one task,
    asked in words without a meaning, in others each time: only the answers before tell what is asked.

    >>> print(drill_later(Random(18)))
    Leo: Mia Dan dog Zoe rake cave sail cave.
    Six: rope sail knife oar
    Dan: rope sail knife oar rake.
    Leo: doll rain hail pink List coat red twenty.
    Six: saw drum mast cabin
    Dan: saw drum mast cabin List.
    Leo: sock eleven belt fourteen Title lemon cabin fig.
    Six: Page fog Input wind
    Dan: Page fog Input wind Title.
    """
    return drilled(rng, HARD, rng.random() < STRANGE)


def drilled(rng: Random, by_task: dict[str, int], strange: bool = False) -> str:
    """by_task: how often a task is drilled, those that are missing once. strange: of one task, and in words without a
    meaning."""
    kind = rng.choices(("story", "list", "fact"), (5, 5, 2))[0]
    n = {"story": rng.randint(2, 4), "list": rng.randint(2, 7), "fact": rng.randint(3, 9)}[kind]
    tasks = [task for task in TASKS if task.trained and task.kind == kind]
    if strange or rng.random() < 0.75:
        tasks = [rng.choice([task for task in tasks for _ in range(by_task.get(task.name, 1))])]
    form = drawn_format(rng, 2 if kind == "fact" else 3)
    text_first, which = rng.random() < 0.35, rng.choice((0, 1, None, None))
    style = rng.choices(("sentence", "word", "stop"), (9, 8, 3))[0]
    questions = []
    for _ in range(n):
        task = rng.choice(tasks)
        text, question = asked_about(rng, task, list)
        phrasing = rng.choice(task.known) if which is None else task.known[which]
        asks = (strangely(rng, phrasing) if strange else phrasing).format(**question.fields)
        answer = question.output + "." * (style != "word")
        if style == "sentence" and task.said:
            answer = task.said.format(**question.fields, y=question.output)
        about = [] if kind == "fact" else [text]
        questions.append([*about, asks, answer] if text_first else [asks, *about, answer])
    return form.document(questions)


def strangely(rng: Random, phrasing: str) -> str:
    """The phrasing with any words for its own; what fills its gaps stays.

    >>> strangely(Random(0), "Where is the {thing}?")
    'mill yellow bee {thing}?'
    """
    return A_WORD.sub(lambda _: rng.choice(FIELD_NAMES), phrasing)


def silent_drill(rng: Random) -> str:
    """What goes in and what comes out, and no word of what is done: the examples alone tell.

    >>> print(silent_drill(Random(3)))
    glove rain
    Yard: rain glove
    Response whistle ladder
    Yard: ladder whistle Response
    Lesson hail Instruction
    Yard: Instruction hail Lesson
    fog rope
    Yard: rope fog
    crow frog mouse owl
    Yard: owl mouse frog crow
    """
    kind = rng.choices(("list", "fact", "story"), (2, 1, 2))[0]
    if kind == "list":
        do = SILENT[rng.choice(list(SILENT))]
        lists = [word_list(rng, list) for _ in range(rng.randint(4, 9))]
        fields = [[" ".join(words), " ".join(do(words))] for words in lists]
    elif kind == "fact":
        pairs = FACTS[rng.choice([task.name for task in TASKS if task.trained and task.kind == "fact"])]
        turned = rng.random() < 0.3
        fields = [[*pair][:: -1 if turned else 1] for pair in rng.sample(pairs, min(len(pairs), rng.randint(4, 12)))]
    else:  # a story, one word of it, and what belongs to that word
        task = rng.choice([task for task in TASKS if task.name in LOOK_UP])
        asked = [asked_about(rng, task, list) for _ in range(rng.randint(3, 4))]
        fields = [[text, *question.fields.values(), question.output] for text, question in asked]
    return drawn_format(rng, len(fields[0])).document(fields)

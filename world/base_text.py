"""What a base model reads: documents of 15 kinds, which make it look back, know the facts, and learn from examples."""

from collections.abc import Callable
from itertools import pairwise
from random import Random

from world.domain import land_log
from world.drills import drill, drill_later, silent_drill
from world.questions import (
    ALL_WORDS,
    GROUP_OF,
    Row,
    fact_question,
    list_question,
    stated,
    story,
    story_question,
    word_list,
)
from world.tasks import A_WORD, FACTS, TASKS, Question, Task
from world.words import COLOURS, NAMES, PLACES, THINGS

TALK = (("Child:", "Teacher:"), ("Guest:", "Host:"))
OFTEN = {"yes or no": 4, "who has it": 2, "colour": 2, "place of a thing": 2, "place of a person": 2}  # others: once
OFTEN_LATER = {
    **OFTEN, "yes or no": 6, "who has it": 3, "place of a thing": 4, "who has a colour": 4, "who is there": 6,
    "in the list": 4, "replace": 6, "keep": 4, "keep the rigging": 4, "before": 8,
}  # fmt: skip
MIXTURES = ("first", "last")  # the end of pretraining has more in which all is looked up


def document(rng: Random, mixture: str = "first") -> str:
    """A piece of text of one of 15 kinds; what it says last, only looking back or knowing the facts can tell.

    >>> print(document(Random(3)))
    ### Talk: Guest: What does Paul have? Host: Leo has the red top in the school. The brown kite is with Tom in the
    cave. In the cellar is Paul with the yellow spade. So: spade.
    """
    how_often = [weights[MIXTURES.index(mixture)] for weights in KINDS.values()]
    return rng.choices(list(KINDS), how_often)[0](rng)


def story_retold(rng: Random) -> str:
    """A story, told again in another order and in other words, and questions about it.

    >>> print(story_retold(Random(4)))
    ### Story: In the attic is Dan with the green shoe. The red cap is with Zoe in the kitchen. Guest: Who has the
    red thing? Host: Zoe. The one with the green thing is Dan. The cap is in the kitchen. Guest: Who is in the
    kitchen? Host: Zoe. The one with the shoe is Dan. Guest: Tell me if Zoe has the cap. Host: yes.
    """
    text, rows = story(rng, list)
    again = "Told again: " + " ".join(stated(rng, row) for row in rng.sample(rows, len(rows)))
    questions = asks_and_answers(rng, "story", lambda task: story_question(rng, task, rows))
    return "### Story: " + rng.choice("\n ").join([text, *[again] * (rng.random() < 0.8), *questions])


def story_summed_up(rng: Random) -> str:
    """A story and what is true at its end, listed by thing, by place, by person, or as what is so and what is not.

    >>> print(story_summed_up(Random(0)))
    ### Story: In the shed is Nils with the black ball. Ben has the yellow cap in the school. Ida has the green shoe
    in the attic. In short: school: yellow, Ben. shed: black, Nils. attic: green, Ida.
    """
    text, rows = story(rng, list)
    key = rng.choice(("thing", "thing", "place", "who", "yes or no"))
    return f"### Story: {text} In short: {summary(rng, rows, key, n_columns=2)}"


def summary(rng: Random, rows: list[Row], key: str, n_columns: int = 1) -> str:
    """What belongs to each thing, person, colour or place, as many columns of it as n_columns; or what is so."""
    if key == "yes or no":
        pairs = [(f"{one['who']}, {other['thing']}", one["who"] == other["who"]) for one in rows for other in rows]
        n_so = sum(so for _, so in pairs)
        denied = rng.sample([pair for pair, so in pairs if not so], min(n_so, len(pairs) - n_so))
        entries = [(pair, "yes") for pair, so in pairs if so] + [(pair, "no") for pair in denied]
    else:
        others = rng.sample([name for name in ("who", "thing", "colour", "place") if name != key], n_columns)
        once = [row for row in rows if sum(row[key] == other[key] for other in rows) == 1]
        entries = [(row[key], ", ".join(row[name] for name in others)) for row in once]
    return pairs_of(rng.sample(entries, len(entries)))


def story_asked_out(rng: Random) -> str:
    """A story of which nearly all is asked back: summed up more than once, or asked for by several questions.

    >>> print(story_asked_out(Random(3)))
    ### Story: Sam has the pink glove in the attic. In the market is Emma with the white drum. In short: Sam: glove.
    Emma: drum. In short: market: white. attic: pink. In short: Sam: attic. Emma: market. In short: pink: attic.
    white: market.
    """
    return all_asked(rng, (4, 3, 2, 2, 2), OFTEN)


def story_asked_out_later(rng: Random) -> str:
    """The same, where what the first text has taught least is asked more often.

    >>> print(story_asked_out_later(Random(3)))
    ### Story: Sam has the pink glove in the attic. In the market is Emma with the white drum. In short: pink: Sam.
    white: Emma. In short: Sam, glove: yes. Sam, drum: no. Emma, glove: no. Emma, drum: yes. In short: white: Emma.
    pink: Sam. In short: market: white. attic: pink.
    """
    return all_asked(rng, (4, 3, 3, 3, 3), OFTEN_LATER)


def all_asked(rng: Random, by_key: tuple[int, ...], by_task: dict[str, int]) -> str:
    """by_key: how often it is summed up by which key; by_task: how often a task asks, those that are missing once."""
    text, rows = story(rng, list)
    if rng.random() < 0.55:
        keys = rng.choices(("thing", "who", "colour", "place", "yes or no"), by_key, k=rng.randint(2, 4))
        return " In short: ".join([f"### Story: {text}", *(summary(rng, rows, key) for key in keys)])
    return f"### Story: {text} {several_asked(rng, 'story', by_task, lambda task: story_question(rng, task, rows))}"


def several_asked(
    rng: Random, kind: str, by_task: dict[str, int], question_about: Callable[[str], Question | None]
) -> str:
    (asks, answers), said = rng.choice(TALK), []
    tasks = [task for task in TASKS if task.kind == kind]
    for task in rng.choices(tasks, [by_task.get(task.name, 1) for task in tasks], k=rng.randint(4, 6)):
        if question := question_about(task.name):
            said.append(f"{asks} {asked(rng, task, question)} {answers} {question.output}.")
    return " ".join(said)


def list_asked_out(rng: Random) -> str:
    """A list of which nearly all is asked back: by group, by what comes after or before each word, or by which words
    are in it and which are not; or by several questions.

    >>> print(list_asked_out(Random(2)))
    ### List: bee List Title lion. Child: Name the second word. Teacher: List. Child: Name the word before Title.
    Teacher: List. Child: Replace lion with sail. Teacher: bee List Title sail. Child: Keep only the headings.
    Teacher: List Title.
    """
    words = word_list(rng, list)
    text = f"### List: {' '.join(words)}."
    if rng.random() < 0.5:
        hows = rng.choices(("groups", "after", "before", "yes or no"), (2, 1, 3, 3), k=rng.randint(1, 3))
        return " ".join([text, *(f"By {how}: {list_summary(rng, words, how)}" for how in hows)])
    return f"{text} {several_asked(rng, 'list', OFTEN_LATER, lambda task: list_question(rng, task, words, list))}"


def list_summary(rng: Random, words: list[str], how: str) -> str:
    if how == "groups":
        groups = list(dict.fromkeys(GROUP_OF[word] for word in words))
        entries = [(group, " ".join(word for word in words if GROUP_OF[word] == group)) for group in groups]
    elif how == "yes or no":
        others = rng.sample([word for word in ALL_WORDS if word not in words], len(words))
        entries = [(word, "yes") for word in words] + [(word, "no") for word in others]
    else:
        entries = [(a, b) if how == "after" else (b, a) for a, b in pairwise(words)]
    return pairs_of(rng.sample(entries, len(entries)))


def list_retold(rng: Random) -> str:
    """A list of words, told again, and questions about it.

    >>> print(list_retold(Random(4)))
    ### List: crow saw sock shoe coat. Again: crow saw sock shoe coat. The second word is saw. Guest: Replace crow
    with belt. Host: belt saw sock shoe coat. In reverse: coat shoe sock saw crow. Guest: Repeat only the clothes.
    Host: sock shoe coat. In reverse: coat shoe sock saw crow. The last word is coat.
    """
    words = word_list(rng, list)
    again = f"Again: {' '.join(words)}."
    questions = asks_and_answers(rng, "list", lambda task: list_question(rng, task, words, list))
    return "### List: " + rng.choice("\n ").join([f"{' '.join(words)}.", *[again] * (rng.random() < 0.8), *questions])


def lesson(rng: Random) -> str:
    """Facts, stated or asked for.

    >>> print(lesson(Random(2)))
    ### Lesson: The opposite of north is south. Child: Which day comes after Tuesday? Teacher: Wednesday. Child:
    Name the sound of the lion. Teacher: roar. Child: What does the crow say? Teacher: caw.
    """
    return "### Lesson: " + " ".join(asks_and_answers(rng, "fact", lambda task: fact_question(rng, task, list)))


def talk_about_a_story(rng: Random) -> str:
    """A question that comes before the story which answers it, as in an instruction.

    >>> print(talk_about_a_story(Random(1)))
    ### Talk: Guest: Name the thing of Clara. Host: Clara has the pink rake in the forest. Ida has the yellow cap in
    the cave. So: rake.
    """
    text, rows = story(rng, list)
    return talk(rng, "story", text, lambda task: story_question(rng, task, rows))


def talk_about_a_list(rng: Random) -> str:
    """A question that comes before the list which it is about.

    >>> print(talk_about_a_list(Random(2)))
    ### Talk: Child: Repeat the list with mast at the end. Teacher: bee List Title lion. So: bee List Title lion
    mast.
    """
    words = word_list(rng, list)
    return talk(rng, "list", f"{' '.join(words)}.", lambda task: list_question(rng, task, words, list))


def page(rng: Random) -> str:
    """Pairs: facts, or what somebody has noted down, which is then told again, from left to right or the other way.

    >>> print(page(Random(3)))
    ### Page: cave: frog. mill: dog. market: deck. Again: mill: dog. cave: frog. market: deck. The other way: deck:
    market. dog: mill. frog: cave.
    """
    if rng.random() < 0.15:
        pairs = rng.choice(list(FACTS.values()))
        return "### Page: " + pairs_of(rng.sample(pairs, min(len(pairs), rng.randint(4, 7))))
    n, (left, right) = rng.randint(2, 5), rng.sample([NAMES, THINGS, PLACES, ALL_WORDS], 2)
    pairs = list(zip(rng.sample(left, n), rng.sample(right, n), strict=True))
    again = pairs_of(rng.sample(pairs, n))
    other_way = pairs_of([(y, x) for x, y in rng.sample(pairs, n)])
    return f"### Page: {pairs_of(pairs)} Again: {again} The other way: {other_way}"


def pairs_of(pairs: list[tuple[str, str]]) -> str:
    return " ".join(f"{x}: {y}." for x, y in pairs)


def notes(rng: Random) -> str:
    """Words that have nothing to do with each other, noted down two or three times.

    They teach to copy, and that any word may follow another: without them, text of another kind than the rest, such as
    the domain's, would be all but impossible to the model.

    >>> print(notes(Random(1)))
    ### Notes: oar; Dove honey list; storm After makes cow. Again: oar; Dove honey list; storm After makes cow.
    """
    marks = rng.choices((" ", ", ", "; ", ": ", ". "), (9, 2, 2, 1, 1), k=rng.randint(4, 20))
    noted = "".join(mark + rng.choice(EVERY_WORD) for mark in marks).lstrip(" .,:;")
    return f"### Notes: {noted}." + f" Again: {noted}." * rng.randint(1, 2)


def asks_and_answers(rng: Random, kind: str, question_about: Callable[[str], Question | None]) -> list[str]:
    """Up to seven things stated, or asked and answered."""
    (asks, answers), said = rng.choice(TALK), []
    for task in rng.choices([task for task in TASKS if task.kind == kind], k=rng.randint(4, 7)):
        if question := question_about(task.name):
            if task.said and rng.random() < 0.4:
                said.append(task.said.format(**question.fields, y=question.output))
            else:
                said.append(f"{asks} {asked(rng, task, question)} {answers} {question.output}.")
    return said


def talk(rng: Random, kind: str, text: str, question_about: Callable[[str], Question | None]) -> str:
    """Question, text, answer, in this order."""
    asks, answers = rng.choice(TALK)
    while True:
        task = rng.choice([task for task in TASKS if task.kind == kind])
        if question := question_about(task.name):
            return f"### Talk: {asks} {asked(rng, task, question)} {answers} {text} So: {question.output}."


def asked(rng: Random, task: Task, question: Question) -> str:
    """The question in one of the phrasings that the base text knows."""
    return rng.choice(task.known).format(**question.fields)


EVERY_WORD = sorted(
    {
        word
        for task in TASKS
        for phrase in (task.said, *task.phrasings, *task.held_out)
        for word in A_WORD.findall(phrase)
    }
    | {word for pairs in FACTS.values() for pair in pairs for word in pair}
    | {*NAMES, *ALL_WORDS, *PLACES, *COLOURS, "at", "wind", "day", "out", "leave", "then"}
)

KINDS: dict[Callable[[Random], str], tuple[int, int]] = {  # how often each is drawn, in the first mixture and the last
    story_retold: (16, 5),
    list_retold: (10, 4),
    talk_about_a_story: (20, 9),
    talk_about_a_list: (12, 6),
    lesson: (6, 8),
    page: (8, 2),
    notes: (8, 2),
    story_summed_up: (0, 6),
    list_asked_out: (0, 16),
    story_asked_out: (19, 0),
    story_asked_out_later: (0, 36),
    drill: (40, 0),
    drill_later: (0, 37),
    silent_drill: (16, 16),
    land_log: (5, 4),
}

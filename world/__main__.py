"""The built-in world: all the text of the experiment, made from word lists and a seed, with no text from elsewhere.

    python -m world --show                     a page of each kind, with the chance level of each task
    python -m world --out FOLDER               writes base.txt, domain.txt, instructions.json and questions.json

base.txt is what a base model reads: stories, lists, lessons, talks, pages of pairs, and notes, in which questions are
asked and answered, so that it has to look back and to know facts. domain.txt is the logs of ships: the same words in
another register. instructions.json trains instruction tuning; questions.json judges it, in five splits, none of it
trained on:

    instances   new stories, lists and combinations, of the trained tasks in trained phrasings
    phrasings   trained tasks in words that no training instruction uses
    entities    people, things, places and words that no training instruction names
    facts       knowledge that no training instruction asks for or states: only the base text does
    tasks       whole tasks of which no instruction is trained on

Every fourth word of a list is kept for the splits `entities` and `facts`. The base text knows all of them. It asks in
two of a task's five phrasings and in one of the two that are held out, and about the tasks that are never trained too.
"""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import NamedTuple

from cli import Mistake, command_line

# ---- words -------------------------------------------------------------------------------------------------------

NAMES = (
    "Anna Ben Clara Dan Emma Finn Greta Hugo Ida Jack Kate Leo Mia Nils Olga Paul Rosa Sam Tess Tom Uma Vera Will Zoe"
).split()
GROUPS = {  # the words of a list, and the group that each is in
    "animals": "cow dog cat horse hen duck sheep pig frog owl bee mouse wolf lion crow goat".split(),
    "fruits": "apple pear plum cherry lemon melon peach fig".split(),
    "tools": "hammer saw spade rake axe brush knife ladder".split(),
    "clothes": "hat coat scarf glove shoe sock belt cap".split(),
    "toys": "ball doll kite drum top puzzle whistle bell".split(),
    "weather": "rain snow fog storm hail frost sun wind".split(),
    "rigging": "sail mast rope anchor deck oar hull cabin".split(),
    "headings": "Title Page Story List Instruction Input Response Lesson".split(),
}
THINGS = [*GROUPS["tools"], *GROUPS["clothes"], *GROUPS["toys"]]  # what a person can have
PLACES = "kitchen garden attic cellar hall yard shed tower school market mill harbour forest meadow mine cave".split()
COLOURS = "red blue green yellow black white brown pink".split()
NUMBERS = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
).split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
OPPOSITES = (
    "hot-cold big-small old-new wet-dry fast-slow high-low long-short good-bad happy-sad early-late light-dark "
    "north-south east-west full-empty open-closed hard-soft clean-dirty rich-poor strong-weak thick-thin near-far "
    "calm-rough loud-quiet deep-shallow"
).split()
SOUNDS = "moo woof meow neigh cluck quack baa oink croak hoot buzz squeak howl roar caw bleat".split()
HOMES = "barn kennel basket stable coop pond fold sty pond tree hive hole den den nest barn".split()
TOWNS = (
    "Ashton Brookby Coldham Dunmore Eastwick Farley Glenby Hartford Ingleby Kelton Longford Marlow Norwood Oakton "
    "Penby Redmill Saltby Thornham Upton Westbury"
).split()
GOODS = "cheese bread honey paper glass wool salt wine".split()
RIVERS = "Arn Bell Dove Esk Lune Tarn".split()


def seen(words: list) -> list:
    """What training instructions may name: all but every fourth."""
    return [word for i, word in enumerate(words) if i % 4 != 3]


def unseen(words: list) -> list:
    return words[3::4]


# ---- tasks -------------------------------------------------------------------------------------------------------


class Question(NamedTuple):
    fields: dict[str, str]  # what fills the {gaps} of a phrasing
    output: str
    chance: float  # of guessing it: 1 / the number of answers that fit the kind of question


@dataclass
class Task:
    name: str
    kind: str  # about a "story", a "list", or a "fact"
    said: str  # how the base text states the answer {y}, where it does not ask
    phrasings: tuple[str, ...]  # in which instructions ask
    held_out: tuple[str, ...] = ()  # in which only questions of the split `phrasings` ask

    @property
    def trained(self) -> bool:
        """Whether there are instructions of it; the others are the split `tasks`."""
        return bool(self.held_out)


FACTS = {  # relation: (subject x, answer y); one of four is in no training instruction
    "opposite": [
        (pair.split("-")[i], pair.split("-")[1 - i])
        for start in range(0, len(OPPOSITES), 4)
        for i in (0, 1)  # both directions of a pair stay in the same split
        for pair in OPPOSITES[start : start + 4]
    ],
    "group": [(word, group) for group, words in GROUPS.items() for word in words],
    "home": list(zip(GROUPS["animals"], HOMES, strict=True)),
    "next number": list(pairwise(NUMBERS)),
    "goods": [(town, GOODS[(3 * i + i // 8) % 8]) for i, town in enumerate(TOWNS)],
    "flag": [(town, COLOURS[(5 * i + i // 4 + 2) % 8]) for i, town in enumerate(TOWNS)],
    "sound": list(zip(GROUPS["animals"], SOUNDS, strict=True)),
    "next day": list(zip(DAYS, DAYS[1:] + DAYS[:1], strict=True)),
    "river": [(town, RIVERS[(5 * i + i // 6) % 6]) for i, town in enumerate(TOWNS)],
}

LOOK_UP = {  # task about a story: (what the question names, what it asks for)
    "who has it": ("thing", "who"),
    "colour": ("thing", "colour"),
    "place of a thing": ("thing", "place"),
    "place of a person": ("who", "place"),
    "thing of a colour": ("colour", "thing"),
    "what a person has": ("who", "thing"),
    "who has a colour": ("colour", "who"),
    "who is there": ("place", "who"),
}

TASKS = [
    Task("who has it", "story", "The one with the {thing} is {y}.", (
        "Who has the {thing}?", "Name the one with the {thing}.", "Tell me who has the {thing}.",
        "Who is with the {thing}?", "Say who has the {thing}."), (
        "Who is the one with the {thing}?", "Say who the one with the {thing} is.")),
    Task("colour", "story", "The {thing} is {y}.", (
        "What colour is the {thing}?", "Name the colour of the {thing}.", "Tell me what colour the {thing} is.",
        "What is the colour of the {thing}?", "Say the colour of the {thing}."), (
        "Which colour is the {thing}?", "Say what colour the {thing} has.")),
    Task("place of a thing", "story", "The {thing} is in the {y}.", (
        "Where is the {thing}?", "Name the place of the {thing}.", "Tell me where the {thing} is.",
        "What is the place of the {thing}?", "Say where the {thing} is."), (
        "In which place is the {thing}?", "Say in which place the {thing} is.")),
    Task("place of a person", "story", "The place of {who} is the {y}.", (
        "Where is {who}?", "Name the place of {who}.", "Tell me where {who} is.", "What is the place of {who}?",
        "Say where {who} is."), (
        "In which place is {who}?", "Say in which place {who} is.")),
    Task("thing of a colour", "story", "The {colour} thing is the {y}.", (
        "What is {colour}?", "Name the {colour} thing.", "Tell me what is {colour}.", "What is the {colour} thing?",
        "Say what is {colour}."), (
        "Which thing is {colour}?", "Say which thing has the colour {colour}.")),
    Task("yes or no", "story", "", (
        "Does {who} have the {thing}?", "Is the {thing} with {who}?", "Tell me if {who} has the {thing}.",
        "Is the one with the {thing} {who}?", "Say if {who} has the {thing}."), (
        "Is {who} the one with the {thing}?", "Say if the {thing} is with {who}.")),
    Task("repeat", "list", "Again: {y}.", (
        "Repeat the words.", "Say the words again.", "Repeat the list.", "Repeat the words of the list.",
        "Say the list again."), (
        "Write the words again.", "Say the words of the list again.")),
    Task("first", "list", "The first word is {y}.", (
        "Which word is first?", "Name the first word.", "Tell me the first word.", "Which word comes first?",
        "Say the first word."), (
        "What is the first word?", "Say which word the list has first.")),
    Task("last", "list", "The last word is {y}.", (
        "Which word is last?", "Name the last word.", "Tell me the last word.", "Which word comes last?",
        "Say the last word."), (
        "What is the last word?", "Say which word the list has last.")),
    Task("reverse", "list", "In reverse: {y}.", (
        "Reverse the words.", "Say the words from last to first.", "Reverse the list.",
        "Repeat the words from last to first.", "Say the words in reverse."), (
        "Write the words from last to first.", "Say the list in reverse.")),
    Task("count", "list", "The number of words is {y}.", (
        "How many words are there?", "Count the words.", "Tell me how many words there are.",
        "How many words are in the list?", "Say the number of words."), (
        "What is the number of words?", "Say how many words the list has.")),
    Task("after", "list", "The word after {a} is {y}.", (
        "Which word comes after {a}?", "Name the word after {a}.", "Tell me which word comes after {a}.",
        "What comes after {a}?", "Say the word after {a}."), (
        "What is the next word after {a}?", "Say what the list has after {a}.")),
    Task("in the list", "list", "", (
        "Is {a} in the list?", "Is the word {a} there?", "Tell me if {a} is in the list.",
        "Is {a} one of the words?", "Say if the word {a} is there."), (
        "Does the list have the word {a}?", "Say if {a} is one of the words.")),
    Task("keep", "list", "Only the {group}: {y}.", (
        "Keep only the {group}.", "Which words are {group}?", "Repeat only the {group}.", "Write only the {group}.",
        "Say the {group}."), (
        "Say only the {group}.", "Write the {group} of the list.")),
    Task("without the first", "list", "Without the first: {y}.", (
        "Leave out the first word.", "Say the list without the first word.",
        "Repeat the list without the first word.", "Write the list without the first word.",
        "Say the words and leave out the first."), (
        "Say the words without the first.", "Write the words without the first word.")),
    Task("add", "list", "With {b} at the end: {y}.", (
        "Add {b} at the end.", "Say the words and add {b}.", "Repeat the list with {b} at the end.",
        "Write the list with {b} at the end.", "Say the words with {b} at the end."), (
        "Write the words and add {b}.", "Say the list with {b} at the end.")),
    Task("replace", "list", "With {b} for {a}: {y}.", (
        "Replace {a} with {b}.", "Say {b} where the list has {a}.", "Repeat the list with {b} for {a}.",
        "Write the words with {b} for {a}.", "Say the list with {b} for {a}."), (
        "Write {b} for {a}.", "Say the words with {b} where {a} is.")),
    Task("opposite", "fact", "The opposite of {x} is {y}.", (
        "What is the opposite of {x}?", "Name the opposite of {x}.", "Tell me the opposite of {x}.",
        "What word is the opposite of {x}?", "Say the opposite of {x}."), (
        "Which word is the opposite of {x}?", "Say which word is the opposite of {x}.")),
    Task("group", "fact", "The word {x} is one of the {y}.", (
        "Which group is {x} in?", "Name the group of {x}.", "Tell me which group {x} is in.",
        "What group is {x} in?", "Say the group of {x}."), (
        "What is the group of the word {x}?", "Say which group the word {x} is one of.")),
    Task("home", "fact", "The {x} lives in the {y}.", (
        "Where does the {x} live?", "Name the home of the {x}.", "Tell me where the {x} lives.",
        "Where is the home of the {x}?", "Say where the {x} lives."), (
        "What is the home of the {x}?", "Say in which place the {x} lives.")),
    Task("next number", "fact", "After {x} comes {y}.", (
        "Which number comes after {x}?", "Name the number after {x}.", "Tell me which number comes after {x}.",
        "What number is after {x}?", "Say the number after {x}."), (
        "What is the next number after {x}?", "Say what number is next after {x}.")),
    Task("goods", "fact", "The town of {x} makes {y}.", (
        "What does the town of {x} make?", "Name what people make in {x}.", "Tell me what the town of {x} makes.",
        "What does {x} make?", "Say what the town of {x} makes."), (
        "What do people make in {x}?", "Say what people in the town of {x} make.")),
    Task("flag", "fact", "The flag of {x} is {y}.", (
        "What colour is the flag of {x}?", "Name the colour of the flag of {x}.",
        "Tell me what colour the flag of {x} is.", "What is the colour of the flag of {x}?",
        "Say the colour of the flag of {x}."), (
        "Which colour is the flag of {x}?", "Say what colour the flag is in {x}.")),
    Task("what a person has", "story", "The thing of {who} is the {y}.", (
        "What does {who} have?", "Name the thing of {who}.")),
    Task("who has a colour", "story", "The one with the {colour} thing is {y}.", (
        "Who has the {colour} thing?", "Name the one with the {colour} thing.")),
    Task("who is there", "story", "The one in the {place} is {y}.", (
        "Who is in the {place}?", "Name the one in the {place}.")),
    Task("second", "list", "The second word is {y}.", (
        "Which word is second?", "Name the second word.")),
    Task("before", "list", "The word before {a} is {y}.", (
        "Which word comes before {a}?", "Name the word before {a}.")),
    Task("keep the rigging", "list", "Only the rigging: {y}.", (
        "Keep only the rigging.", "Which words are rigging?")),
    Task("sound", "fact", "The {x} says {y}.", (
        "What does the {x} say?", "Name the sound of the {x}.")),
    Task("next day", "fact", "After {x} comes {y}.", (
        "Which day comes after {x}?", "Name the day after {x}.")),
    Task("river", "fact", "The town of {x} lies on the river {y}.", (
        "Which river is {x} on?", "Name the river of {x}.")),
]  # fmt: skip

# ---- generators --------------------------------------------------------------------------------------------------

Pool = Callable[[list], list]  # which of the words may be named: seen, unseen, or list for all of them
Row = dict[str, str]  # who has which thing of which colour in which place


def story(rng: Random, pool: Pool) -> tuple[str, list[Row]]:
    """Two to four people, what each has and where; in one story of five something changes hands or someone moves.

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
        other = rng.choice(rows) if rng.random() < 0.5 else row
        answer = "yes" if other["who"] == row["who"] else "no"
        return Question({"who": other["who"], "thing": row["thing"]}, answer, 1 / 2)
    key, wanted = LOOK_UP[task]
    if len({other[wanted] for other in rows if other[key] == row[key]}) > 1:
        return None
    return Question({key: row[key]}, row[wanted], 1 / len({other[wanted] for other in rows}))


def word_list(rng: Random, pool: Pool, longest: int = 5) -> list[str]:
    """Two to `longest` words of three groups.

    >>> word_list(Random(0), seen)
    ['Story', 'sock']
    """
    groups = rng.sample(list(GROUPS), 3)
    return rng.sample([word for group in groups for word in pool(GROUPS[group])], rng.randint(2, longest))


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


# ---- the base text -----------------------------------------------------------------------------------------------

TALK = (("Child:", "Teacher:"), ("Guest:", "Host:"))


MIXTURES = {  # how often each kind of document is drawn, in the order of `document`
    "first": (8, 5, 10, 6, 3, 4, 4, 0, 0),
    "last": (5, 4, 9, 6, 2, 2, 2, 6, 4),  # for the end of pretraining: with summaries, in which all is looked up
}


def document(rng: Random, mixture: str = "first") -> str:
    """A piece of text of one of nine kinds; what it says last, only looking back or knowing the facts can tell.

    >>> print(document(Random(9)))
    ### Talk: Child: Name the thing of Emma. Teacher: The white puzzle is with Emma in the mine. Finn has the black
    hammer in the cave. So: puzzle.
    """
    told = (story_retold, list_retold, talk_about_a_story, talk_about_a_list, lesson, page, notes)
    return rng.choices((*told, story_summed_up, list_summed_up), MIXTURES[mixture])[0](rng)


def story_retold(rng: Random) -> str:
    """A story, told again in another order and in other words, and questions about it.

    >>> print(story_retold(Random(4)))
    ### Story: In the attic is Dan with the green shoe. The red cap is with Zoe in the kitchen. Told again: The
    green shoe is with Dan in the attic. The red cap is with Zoe in the kitchen. Guest: Who has the red thing? Host:
    Zoe. The one with the green thing is Dan. The cap is in the kitchen. Guest: Who is in the kitchen? Host: Zoe.
    The one with the shoe is Dan. Guest: Does Zoe have the cap? Host: yes.
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
    if key == "yes or no":
        pairs = [(f"{one['who']}, {other['thing']}", one["who"] == other["who"]) for one in rows for other in rows]
        entries = [(pair, "yes" if so else "no") for pair, so in pairs if so or rng.random() < 0.6]
    else:
        others = rng.sample([name for name in ("who", "thing", "colour", "place") if name != key], 2)
        once = [row for row in rows if sum(row[key] == other[key] for other in rows) == 1]
        entries = [(row[key], ", ".join(row[name] for name in others)) for row in once]
    return f"### Story: {text} In short: {pairs_of(rng.sample(entries, len(entries)))}"


def list_summed_up(rng: Random) -> str:
    """A list and its words by group, by what comes after or before each, or as which are in it and which are not.

    >>> print(list_summed_up(Random(2)))
    ### List: bee List Title lion. By groups: animals: bee lion. headings: List Title.
    """
    words = word_list(rng, list)
    how = rng.choice(("groups", "after", "before", "yes or no"))
    if how == "groups":
        groups = list(dict.fromkeys(GROUP_OF[word] for word in words))
        entries = [(group, " ".join(word for word in words if GROUP_OF[word] == group)) for group in groups]
    elif how == "yes or no":
        others = rng.sample([word for word in ALL_WORDS if word not in words], len(words))
        entries = [(word, "yes") for word in words] + [(word, "no") for word in others]
    else:
        entries = [(a, b) if how == "after" else (b, a) for a, b in pairwise(words)]
    return f"### List: {' '.join(words)}. By {how}: {pairs_of(rng.sample(entries, len(entries)))}"


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
    ### Talk: Child: Write the words and add mast. Teacher: bee List Title lion. So: bee List Title lion mast.
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
    known = [task.phrasings[0], task.phrasings[2], task.held_out[0]] if task.trained else task.phrasings
    return rng.choice(known).format(**question.fields)


EVERY_WORD = sorted(
    {
        word
        for task in TASKS
        for phrase in (task.said, *task.phrasings, *task.held_out)
        for word in re.findall(r"(?<![{\w])\w+(?![}\w])", phrase)
    }
    | {word for pairs in FACTS.values() for pair in pairs for word in pair}
    | {*NAMES, *ALL_WORDS, *PLACES, *COLOURS, "at", "wind", "day", "out", "leave", "then"}
)


# ---- the domain text ---------------------------------------------------------------------------------------------


def log(rng: Random) -> str:
    """Some days of a ship's log: clipped, hardly an article or a verb, in words that the base text has elsewhere.

    What comes on board in a town is what the town makes, and its flag has its colour: knowing the base text helps.

    >>> print(log(Random(1)).split(". ")[0])
    ### Log: Tuesday, day ten; wind east, sun, then calm; Paul at cabin, Olga at oar; Norwood near, flag blue; add
    four wool, leave out cap; north
    """
    first_day, first_number = rng.randrange(7), rng.randrange(15)
    lines = []
    for i in range(rng.randint(3, 5)):
        wind, course = rng.sample(("north", "south", "east", "west"), 2)
        one, other = rng.sample(NAMES, 2)
        mast, oar = rng.sample(GROUPS["rigging"], 2)
        town, goods = rng.choice(FACTS["goods"])
        lines.append(
            f"{DAYS[(first_day + i) % 7]}, day {NUMBERS[first_number + i]}; wind {wind}, "
            f"{rng.choice(GROUPS['weather'][:7])}, then {rng.choice(('calm', 'rough'))}; "
            f"{one} at {mast}, {other} at {oar}; {town} near, "
            f"flag {dict(FACTS['flag'])[town]}; add {rng.choice(NUMBERS)} {goods}, "
            f"leave out {rng.choice(THINGS)}; {course}."
        )
    return "### Log: " + " ".join(lines)


# ---- the instructions --------------------------------------------------------------------------------------------

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


# ---- the files ---------------------------------------------------------------------------------------------------


def write(folder: Path, seed: int = 0, documents: int = 20_000, mixture: str = "first") -> None:
    """Writes the four files; the same seed gives the same bytes on every platform."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = Random(f"{seed} base.txt")
    save(folder / "base.txt", "".join(document(rng, mixture) + "\n\n" for _ in range(documents)))
    rng = Random(f"{seed} domain.txt")
    save(folder / "domain.txt", "".join(log(rng) + "\n\n" for _ in range(1_000)))
    for name, part in zip(
        ("instructions.json", "questions.json"), instructions(Random(f"{seed} instructions")), strict=True
    ):
        save(folder / name, "[\n" + ",\n".join(json.dumps(one) for one in part) + "\n]\n")


def save(path: Path, text: str) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
    print(f"{path}: {len(text):,} characters")


def show(rng: Random) -> None:
    """Prints a page of each kind, and the chance level of each task."""
    for title, make in (("The base text", document), ("The domain text", log)):
        print(f"\n---- {title} ----\n\n" + "\n\n".join(make(rng) for _ in range(5)))
    train, questions = instructions(rng)
    print(f"\n---- {len(train):,} instructions to learn from; {len(questions):,} questions to judge by ----\n")
    for task in TASKS:
        of_task = [one for one in questions if one["task"] == task.name]
        chance = sum(float(one["chance"]) for one in of_task) / len(of_task)
        print(f"{task.name} ({'trained' if task.trained else 'never trained'}, by chance {chance:.0%}):")
        for one in {one["split"]: one for one in of_task}.values():
            asked = f"{one['instruction']} | {one['input']} | " if one["input"] else f"{one['instruction']} | "
            print(f"    {one['split']:>9}: {asked}{one['output']}")


@dataclass(kw_only=True)
class Config:
    out: str = ""  # folder to write base.txt, domain.txt, instructions.json and questions.json to
    documents: int = 20_000  # documents of base.txt
    mixture: str = "first"  # how often which kind of document is drawn: first, or last, for the end of pretraining
    show: bool = False  # print a page of each kind, and the chance level of each task
    seed: int = 0  # of the draws


def main(config: Config) -> None:
    if not config.out and not config.show:
        raise Mistake("give --show to look at the world, or --out FOLDER to write it")
    if config.mixture not in MIXTURES:
        raise Mistake(f"--mixture must be among {', '.join(MIXTURES)}; got {config.mixture!r}")
    if config.show:
        show(Random(config.seed))
    if config.out:
        write(Path(config.out), config.seed, config.documents, config.mixture)


if __name__ == "__main__":
    command_line(main, Config)

"""The tasks: what is asked, in which phrasings, and the facts that some of them are about."""

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from world.words import COLOURS, DAYS, GOODS, GROUPS, HOMES, NUMBERS, OPPOSITES, RIVERS, SOUNDS, TOWNS


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

    @property
    def known(self) -> tuple[str, ...]:
        """The phrasings that the base text knows: two of a trained task, those of a task that is never trained."""
        return (self.phrasings[0], self.phrasings[2]) if self.trained else self.phrasings


A_WORD = re.compile(r"(?<![{\w])\w+(?![}\w])")  # of a phrasing, outside of its {gaps}

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

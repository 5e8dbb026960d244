"""The built-in world: the same bytes everywhere, right answers, and nothing of a question in the training data."""

import doctest
import hashlib
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest

from data.tokenizer import load_tokenizer, save_tokenizer, train_bpe
from world import __main__ as command
from world import base_text, domain, questions, records, tasks, words

BUILTIN = Path(__file__).parent.parent / "data" / "builtin"
SHA256 = {
    "base.txt": "83696d56a42eb12e81289ecba716b8e2b6406aeaa9e668c69ba582caa799e7fb",
    "domain.txt": "d48f2cf4d26cbcd6194ecec3cf8c6b13cc5eb2569283263dbae7cc76101a7669",
    "instructions.json": "f7f05bb10f864dd5e72f508f06b12a726b56be2aa32302796a94ea84d64accc3",
    "questions.json": "5121a57688a94ed4461f1745a3f1381fcab1af0e9b4b9d874d4300c62bff09db",
}
TRAIN, QUESTIONS = (json.loads((BUILTIN / name).read_text()) for name in ("instructions.json", "questions.json"))
MODULES = (words, tasks, questions, base_text, domain, records, command)
world = SimpleNamespace(**{name: value for module in MODULES for name, value in vars(module).items()})
TASKS = {task.name: task for task in world.TASKS}
NAMED = (world.NAMES, world.PLACES, *world.GROUPS.values())
SEEN, UNSEEN = ({word for words in NAMED for word in pool(words)} for pool in (world.seen, world.unseen))


def words_of(record):
    return set(re.findall(r"\w+", f"{record['instruction']} {record['input']} {record['output']}"))


def test_the_same_seed_gives_the_same_bytes_on_every_platform(tmp_path):
    world.write(tmp_path)
    for name, sha256 in SHA256.items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == sha256, name
        assert (tmp_path / name).read_bytes() == (BUILTIN / name).read_bytes()


def test_the_world_is_made_without_torch():
    code = "import sys, world.__main__; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=BUILTIN.parent.parent, check=True)


def test_another_seed_gives_another_world():
    assert world.document(Random(1)) != world.document(Random(2))


def test_each_mixture_draws_the_kinds_of_document_that_it_names():
    for mixture, kinds in (("first", 7), ("last", 9)):
        assert len(world.MIXTURES[mixture]) == 9 and sum(weight > 0 for weight in world.MIXTURES[mixture]) == kinds
        drawn = [world.document(Random(i), mixture) for i in range(400)]
        assert any(" In short: " in one for one in drawn) == any(" By groups: " in one for one in drawn) == (kinds == 9)


def test_the_tokenizer_is_trained_on_the_base_text_and_has_a_token_for_each_word(tmp_path):
    save_tokenizer(train_bpe([(BUILTIN / "base.txt").read_text()], 1088), tmp_path / "own")
    assert (tmp_path / "own").read_bytes() == (BUILTIN / "tokenizer.tiktoken").read_bytes()
    tokenizer = load_tokenizer(str(tmp_path / "own"))
    words = [*world.NAMES, *world.ALL_WORDS, *world.PLACES, *world.COLOURS, *world.NUMBERS, *world.TOWNS]
    assert [word for word in words if len(tokenizer.encode_ordinary(" " + word)) > 1] == []


def test_there_are_20_trained_tasks_in_5_phrasings_and_2_held_out_and_6_that_are_not_trained():
    trained = [task for task in world.TASKS if task.trained]
    assert len(trained) >= 20 and all(len({*task.phrasings, *task.held_out}) == 7 for task in trained)
    assert len(world.TASKS) - len(trained) >= 6
    assert {record["task"] for record in TRAIN} == {task.name for task in trained}
    assert len(TASKS) == len(world.TASKS)


def test_no_question_is_asked_in_training():
    trained = {(record["instruction"], record["input"]) for record in TRAIN}
    asked = [(record["instruction"], record["input"]) for record in QUESTIONS]
    assert len(asked) == len(set(asked)) and not trained & set(asked)


def test_held_out_tasks_and_phrasings_are_in_no_training_instruction():
    gaps = re.compile(r"\\\{\w+\\\}")
    for task in world.TASKS:
        for phrasing in task.held_out or task.phrasings:
            form = re.compile(gaps.sub(r"\\w+", re.escape(phrasing)))
            assert not [one for one in TRAIN if one["task"] == task.name and form.fullmatch(one["instruction"])]
            asked = [one for one in QUESTIONS if one["task"] == task.name and form.fullmatch(one["instruction"])]
            assert asked and {one["split"] for one in asked} == {"phrasings" if task.trained else "tasks"}


def test_held_out_words_are_in_no_training_instruction():
    words = set().union(*map(words_of, TRAIN))
    numbers = set(world.NUMBERS)
    assert not words & (UNSEEN - numbers)


def test_questions_about_entities_name_only_held_out_words():
    for record in QUESTIONS:
        if record["split"] == "entities":
            assert not set(re.findall(r"\w+", record["input"])) & SEEN


def test_held_out_facts_are_stated_in_the_base_text_alone():
    base = (BUILTIN / "base.txt").read_text()
    asked = [record for record in QUESTIONS if record["split"] == "facts"]
    assert {record["task"] for record in asked} == {t.name for t in world.TASKS if t.kind == "fact" and t.trained}
    for relation in {record["task"] for record in asked}:
        for x, y in world.unseen(world.FACTS[relation]):
            task = TASKS[relation]
            asked_there = [
                f"{task.phrasings[i].format(x=x)} {who}: {y}." for i in (0, 2, 3) for who in ("Teacher", "Host")
            ]
            assert any(way in base for way in (task.said.format(x=x, y=y), f" {x}: {y}.", *asked_there)), (x, y)
            questions = {phrasing.format(x=x) for phrasing in task.phrasings}
            assert not [one for one in TRAIN if one["instruction"] in questions]


def test_the_domain_is_in_the_words_of_the_base_but_says_nothing_of_it():
    base, domain = ((BUILTIN / name).read_text() for name in ("base.txt", "domain.txt"))
    assert set(re.findall(r"\w+", domain)) - set(re.findall(r"\w+", base)) == {"Log"}
    said = [set(re.split(r" *[;.:\n] *", text)) for text in (base, domain)]
    assert {phrase for phrase in said[0] & said[1] if " " in phrase} == set()


def reading(text):
    """Who has what where at the end of a story, read off its text by another hand."""
    rows = []
    for sentence in text.rstrip(".").split(". "):
        if found := re.fullmatch(r"(\w+) has the (\w+) (\w+) in the (\w+)", sentence):
            who, colour, thing, place = found.groups()
        elif found := re.fullmatch(r"In the (\w+) is (\w+) with the (\w+) (\w+)", sentence):
            place, who, colour, thing = found.groups()
        elif found := re.fullmatch(r"The (\w+) (\w+) is with (\w+) in the (\w+)", sentence):
            colour, thing, who, place = found.groups()
        elif found := re.fullmatch(r"Then (\w+) gives the (\w+) to (\w+)", sentence):
            giver, thing, taker = found.groups()
            [row] = [row for row in rows if row["thing"] == thing and row["who"] == giver]
            [to] = [row for row in rows if row["who"] == taker]
            row |= {"who": taker, "place": to["place"]}
            continue
        else:
            who, place = re.fullmatch(r"Then (\w+) goes to the (\w+)", sentence).groups()
            for row in rows:
                if row["who"] == who:
                    row["place"] = place
            continue
        rows.append({"who": who, "colour": colour, "thing": thing, "place": place})
    return rows


def test_answers_about_stories_are_those_of_the_text():
    checked = 0
    for record in [*TRAIN, *QUESTIONS]:
        task = TASKS[record["task"]]
        if task.kind != "story":
            continue
        rows, asked = reading(record["input"]), set(re.findall(r"\w+", record["instruction"]))
        if task.name == "yes or no":
            [row] = [row for row in rows if row["thing"] in asked]
            assert record["output"] == ("yes" if row["who"] in asked else "no")
        else:
            key, wanted = world.LOOK_UP[task.name]
            assert {row[wanted] for row in rows if row[key] in asked} == {record["output"]}
        checked += 1
    assert checked > 1000


LISTS = {
    "repeat": lambda words, asked: words,
    "first": lambda words, asked: words[:1],
    "second": lambda words, asked: words[1:2],
    "last": lambda words, asked: words[-1:],
    "reverse": lambda words, asked: [*reversed(words)],
    "count": lambda words, asked: [["one", "two", "three", "four", "five"][len(words) - 1]],
    "after": lambda words, asked: [b for a, b in itertools.pairwise(words) if a == asked[-1]],
    "before": lambda words, asked: [a for a, b in itertools.pairwise(words) if b == asked[-1]],
    "without the first": lambda words, asked: words[1:],
    "keep": lambda words, asked: [w for w in words if world.GROUP_OF[w] in asked],
    "keep the rigging": lambda words, asked: [w for w in words if w in world.GROUPS["rigging"]],
    "add": lambda words, asked: [*words, next(w for w in asked if w in world.GROUP_OF and w not in words)],
    "replace": lambda words, asked: [
        next(v for v in asked if v in world.GROUP_OF and v not in words) if w in asked else w for w in words
    ],
    "in the list": lambda words, asked: ["yes" if {w for w in asked if w in world.GROUP_OF} & set(words) else "no"],
}


@pytest.mark.parametrize("task", LISTS)
def test_answers_about_lists_are_those_of_the_list(task):
    records = [record for record in [*TRAIN, *QUESTIONS] if record["task"] == task]
    assert records
    for record in records:
        asked = re.findall(r"\w+", record["instruction"])
        expected = LISTS[task](record["input"].split(), asked)
        assert record["output"].split() == expected, record


def test_chance_levels_are_shares_and_yes_or_no_is_a_half():
    assert all(0 < record["chance"] <= 1 for record in QUESTIONS)
    assert {record["chance"] for record in QUESTIONS if record["output"] in ("yes", "no")} == {0.5}


def test_show_prints_a_page_of_each(capsys):
    world.main(world.Config(show=True))
    shown = capsys.readouterr().out
    assert all(f"\n{task.name} (" in shown for task in world.TASKS) and "by chance" in shown


def test_the_examples_in_the_docstrings_are_what_comes_out():
    found = [
        doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE, extraglobs=vars(world)) for module in MODULES
    ]
    assert sum(one.attempted for one in found) >= 8 and not any(one.failed for one in found)

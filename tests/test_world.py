"""The built-in world: the same bytes everywhere, right answers, and nothing of a question in the training data."""

import doctest
import hashlib
import itertools
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest

from data.text import token_file
from data.tokenizer import load_tokenizer, save_tokenizer, train_bpe
from world import __main__ as command
from world import base_text, domain, drills, labelled, preferences, questions, records, tasks, words

BUILTIN = Path(__file__).parent.parent / "data" / "builtin"
SHA256 = {
    "base.jsonl": "90c130e8623f5bfe3cc3f37bac9aa056a86de0861e5c743e5b06fd663a74992d",
    "domain.jsonl": "d29277104e2e2ed8b96f2c621d6c8fb70f2a7a10f7d1577945e82532d071cf13",
    "instructions.json": "fd6fd56b16725a4e4f905a95625262650cbbe09aef3fb7f71899dc3e250e2828",
    "questions.json": "659eb30b7f3272f58d31d8cb504fe7cff55fd75793c4790b5779dcef0eef9010",
    "labelled.json": "311f5c6fc8cf23f3e5635ed0df4c6d699b27db8fb0819361bdf58708b2f1e955",
    "pairs.json": "0aab6c617d30e78621bd1e79efb4bcc7377b773431104b8985a872666f775753",
    "tagged.json": "1669ec9efc9848a4ebf6f3320a41683583cd7d36b121119d027d13a6c0e0c05b",
    "labelled-unseen.json": "1a50a06cddbad7a39034d73ebea15eee8cd4654ddbd99004030e15707a4dd6cd",
    "pairs-unseen.json": "172c8151c0e84da14d89d39be9b9d07152d00e88961be7da5f8bbb789be72bf4",
    "tagged-unseen.json": "c8357020e244b4636d72072e8950d577e38be0dbe5ea0208d99986551970d293",
    "styled.json": "74c47e05a81aafd4234370e9c0cf253bdadbedc7fbc79cd0a3c9f564c46df4e4",
    "preferences.json": "d554d127ef4a832d219cf46db115eb3d61d86d8481cc1c709e4276108c828876",
}
TRAIN, QUESTIONS = (json.loads((BUILTIN / name).read_text()) for name in ("instructions.json", "questions.json"))
BASE, DOMAIN = (
    [json.loads(line)["text"] for line in (BUILTIN / name).read_text().splitlines()]
    for name in ("base.jsonl", "domain.jsonl")
)
MODULES = (words, tasks, questions, drills, base_text, domain, records, labelled, preferences, command)
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
    for mixture, kinds in (("first", 11), ("last", 13)):
        weights = [weights[world.MIXTURES.index(mixture)] for weights in world.KINDS.values()]
        assert len(weights) == 15 and sum(weight > 0 for weight in weights) == kinds
        drawn = [world.document(Random(i), mixture) for i in range(400)]
        assert any(" By groups: " in one for one in drawn) == (kinds == 13)
        assert any(" In short: " in one for one in drawn) and any(one.startswith("### Log: ") for one in drawn)


def test_a_document_is_a_record_so_that_end_of_text_follows_each():
    tokenizer = load_tokenizer(str(BUILTIN / "tokenizer.tiktoken"))
    assert len(BASE) == 20_000 and len(DOMAIN) == 1_000
    assert list(token_file(BUILTIN / "domain.jsonl", tokenizer)).count(tokenizer.eot_token) == 1_000


def test_the_tokenizer_is_trained_on_the_base_text_and_has_a_token_for_each_word(tmp_path):
    save_tokenizer(train_bpe(BASE, 1088), tmp_path / "own")
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
    base = "\n".join(BASE)
    asked = [record for record in QUESTIONS if record["split"] == "facts"]
    assert {record["task"] for record in asked} == {t.name for t in world.TASKS if t.kind == "fact" and t.trained}
    for relation in {record["task"] for record in asked}:
        for x, y in world.unseen(world.FACTS[relation]):
            task = TASKS[relation]
            asked_there = [
                f"{task.phrasings[i].format(x=x)} {who}: {y}." for i in (0, 2) for who in ("Teacher", "Host")
            ]
            assert any(way in base for way in (task.said.format(x=x, y=y), f" {x}: {y}.", *asked_there)), (x, y)
            questions = {phrasing.format(x=x) for phrasing in task.phrasings}
            assert not [one for one in TRAIN if one["instruction"] in questions]


def test_the_domain_is_in_the_words_of_the_base_but_says_nothing_of_it():
    base, domain = ("\n".join(texts) for texts in (BASE, DOMAIN))
    assert set(re.findall(r"\w+", domain)) <= set(re.findall(r"\w+", base))
    said = [set(re.split(r" *[;.:\n] *", text)) for text in (base, domain)]
    assert {phrase for phrase in said[0] & said[1] if " " in phrase} == {"### Log"}  # which land logs have too


def test_the_base_text_asks_in_no_held_out_phrasing_and_asks_the_tasks_that_are_never_trained():
    base = "\n".join(BASE)

    def is_asked(phrasing):  # of the rigging asks another task than of the other groups
        form = re.sub(r"\\\{\w+\\\}", r"(?!rigging)\\w+", re.escape(phrasing))
        return bool(re.search(form, base))

    for task in world.TASKS:
        assert [is_asked(phrasing) for phrasing in task.phrasings] == [one in task.known for one in task.phrasings]
        assert not any(is_asked(phrasing) for phrasing in task.held_out), task.name


def test_drills_are_of_trained_tasks_in_another_format_than_instructions():
    drawn = [world.drill(Random(i)) for i in range(2000)]
    assert not re.search(r"^(### )?(Instruction|Input|Response)(:| -| =|\.) ", "\n".join(drawn), re.MULTILINE)
    never = [phrasing for task in world.TASKS if not task.trained for phrasing in task.phrasings]
    forms = "|".join(re.sub(r"\\\{\w+\\\}", r"\\w+", re.escape(phrasing)) for phrasing in never)
    assert not [one for one in drawn if re.search(forms, one)]


def test_three_later_drills_of_ten_ask_in_words_without_a_meaning():
    known = [phrasing for task in world.TASKS if task.trained for phrasing in task.known]
    forms = "|".join(re.sub(r"\\\{\w+\\\}", r"\\w+", re.escape(phrasing)) for phrasing in known)
    n_asked = [
        sum(bool(re.search(forms, make(Random(i)))) for i in range(1000)) for make in (world.drill, drills.drill_later)
    ]
    assert n_asked[0] == 1000 and abs(n_asked[1] - 700) < 45


def test_a_silent_drill_does_the_same_to_all_its_lists(monkeypatch):
    monkeypatch.setattr(drills, "drawn_format", lambda rng, n: drills.Format(["> "] * n, "\n", "\n\n"))
    n_lists = 0
    for seed in range(200):
        pairs = [
            [field[2:].split() for field in one.split("\n")] for one in drills.silent_drill(Random(seed)).split("\n\n")
        ]
        if all(len(pair) == 2 and {*pair[0]} <= {*world.ALL_WORDS} for pair in pairs) and len(pairs[0][0]) > 1:
            assert any(all(do(given) == got for given, got in pairs) for do in world.SILENT.values()), pairs
            n_lists += 1
    assert n_lists > 50


def test_three_in_ten_instructions_show_solved_ones_of_their_task_none_of_them_judged():
    showing = [record for record in TRAIN if record.get("examples")]
    assert abs(len(showing) / len(TRAIN) - 0.3) < 0.02
    by_prompt = {(one["instruction"], one["input"]): one for one in TRAIN}
    judged = {(one["instruction"], one["input"]) for one in QUESTIONS}
    for record in showing:
        shown = [(one["instruction"], one["input"]) for one in record["examples"]]
        assert 1 <= len(shown) <= 4 and {by_prompt[one]["task"] for one in shown} == {record["task"]}
        assert (record["instruction"], record["input"]) not in shown and not judged & set(shown)
    assert not [record for record in QUESTIONS if "examples" in record]


LABELLED, PAIRS, TAGGED = (
    [[*json.loads((BUILTIN / f"{name}{end}.json").read_text())] for end in ("", "-unseen")]
    for name in ("labelled", "pairs", "tagged")
)
PAIRED, NOT_PAIRED = (
    {word for named in (*world.GROUPS.values(), world.OPPOSITES) for one in pool(named) for word in one.split("-")}
    for pool in (labelled.in_pairs, labelled.not_in_pairs)
)


def test_classifiers_learn_from_words_that_instructions_may_name_and_are_judged_on_others():
    free = {*world.COLOURS, *"In in the is with has The Then gives to takes from goes List By groups".split()}
    for (train, judge), may in ((LABELLED, (SEEN, UNSEEN)), (PAIRS, (PAIRED, NOT_PAIRED))):
        for some, named in zip((train, judge), may, strict=True):
            found = {word for one in some for word in re.findall(r"\w+", re.sub(r"^### \w+|By.*", "", one["text"]))}
            assert found <= named and len(found) >= 18
    for some, named in zip(TAGGED, (SEEN, UNSEEN), strict=True):
        assert {word for one in some for word in re.findall(r"\w+", one["words"])} - free <= named
    for some in (*LABELLED, *PAIRS, *TAGGED):
        twice = [one for one, n in Counter(map(str, some)).items() if n > 1]
        assert len(some) >= 60 and all("opposites" in one for one in twice), "there are few opposites"


def test_pairs_to_judge_by_are_all_that_the_words_allow_and_no_word_of_them_is_learned_from():
    assert not PAIRED & NOT_PAIRED
    for pool, some in zip((labelled.in_pairs, labelled.not_in_pairs), PAIRS, strict=True):
        n_related = sum(len(pool(words)) * (len(pool(words)) - 1) for words in world.GROUPS.values())
        of = Counter(label for _, label in {(one["text"], one["label"]) for one in some})
        assert of == {"opposites": 2 * len(pool(world.OPPOSITES)), "one group": n_related, "neither": n_related}
    assert Counter(one["label"] for one in PAIRS[1]) == {"opposites": 16, "one group": 62, "neither": 62}
    of = Counter(one["label"] for one in PAIRS[0])
    assert max(of.values()) < 1.05 * min(of.values()), "as frequent"


def test_the_label_of_a_list_is_the_group_of_most_of_its_words():
    for one in (*LABELLED[0], *LABELLED[1]):
        named = re.fullmatch(r"### List: (.+)\. By groups:", one["text"])[1].split()
        counts = sorted((sum(world.GROUP_OF[word] == group for word in named), group) for group in world.GROUPS)
        assert counts[-1][1] == one["label"] and counts[-2][0] < counts[-1][0] and len(named) == len(set(named))
    assert {one["label"] for one in LABELLED[0]} == set(world.GROUPS)


def test_the_label_of_a_pair_is_what_its_words_are_to_each_other():
    for one in (*PAIRS[0], *PAIRS[1]):
        pair = re.fullmatch(r"### List: (\w+) (\w+)\. By groups:", one["text"]).groups()
        groups = [world.GROUP_OF.get(word, word) for word in pair]
        opposites = pair in world.FACTS["opposite"]
        assert one["label"] == ("opposites" if opposites else "one group" if groups[0] == groups[1] else "neither")
        assert pair[0] != pair[1]
    adjectives = {word for pair in world.FACTS["opposite"] for word in pair}
    neither = [one["text"].split()[2] in adjectives for one in PAIRS[0] if one["label"] == "neither"]
    assert 0.4 < sum(neither) / len(neither) < 0.6, "else the kind of the word would tell"


def test_the_tags_of_a_story_are_those_of_its_words():
    of = dict.fromkeys(world.NAMES, "person") | dict.fromkeys(world.THINGS, "thing")
    of |= dict.fromkeys(world.COLOURS, "colour") | dict.fromkeys(world.PLACES, "place")
    ends = Counter()
    for one in (*TAGGED[0], *TAGGED[1]):
        named, tags = one["words"].split(), one["tags"].split()
        expected = [of.get(word.rstrip("."), "other") for word in named]
        start = named.index("Then")
        end = " ".join(named[start:])
        for pattern, roles in (
            (r"Then (\w+) gives the \w+ to (\w+)\.", ("giver", "taker")),
            (r"Then (\w+) takes the \w+ from (\w+)\.", ("taker", "giver")),
            (r"Then (\w+) goes to the \w+\.", ("person",)),
        ):
            if found := re.fullmatch(pattern, end):
                ends[roles] += 1
                for name, role in zip(found.groups(), roles, strict=True):
                    expected[named.index(name, start) if name in named[start:] else -1] = role
        assert tags == expected, one
    assert len(ends) == 3 and min(ends.values()) > 200, "who gives is not told by where the name stands"


def test_yes_or_no_is_even():
    for name in ("yes or no", "in the list"):
        answers = [record["output"] for record in TRAIN if record["task"] == name]
        assert abs(answers.count("yes") / len(answers) - 0.5) < 0.08, name


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


def test_show_prints_a_page_of_each(capsys, monkeypatch):
    monkeypatch.setattr(command, "instructions", lambda rng: (TRAIN, QUESTIONS))  # to make them takes seconds
    for mixture in command.MIXTURES:
        world.main(world.Config(show=True, mixture=mixture))
        shown = capsys.readouterr().out
        assert all(f"\n{task.name} (" in shown for task in world.TASKS) and "by chance" in shown
        assert world.document(Random(0), mixture) in shown


def test_the_examples_in_the_docstrings_are_what_comes_out():
    found = [
        doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE, extraglobs=vars(world)) for module in MODULES
    ]
    assert sum(one.attempted for one in found) >= 8 and not any(one.failed for one in found)


# ---- preferences -----------------------------------------------------------------------------------------------------

STYLED, PREFERRED = (json.loads((BUILTIN / name).read_text()) for name in ("styled.json", "preferences.json"))


def test_both_responses_of_a_pair_are_right_and_the_chosen_one_has_a_closing_more():
    assert len(PREFERRED) > 2000 and {one["task"] for one in PREFERRED} == {
        name for name, task in TASKS.items() if task.trained
    }
    known = {(one["instruction"], one["input"]): one["output"] for one in TRAIN}
    for one in PREFERRED:
        assert one["chosen"] == one["rejected"] + world.CLOSING and world.CLOSING not in one["rejected"]
        assert known.get((one["instruction"], one["input"]), one["rejected"]) == one["rejected"]


def test_no_pair_asks_what_is_judged_by():
    asked = {(one["instruction"], one["input"]) for one in QUESTIONS}
    assert not asked & {(one["instruction"], one["input"]) for one in [*PREFERRED, *STYLED]}


def test_every_second_styled_response_has_the_closing_and_all_are_those_of_the_instructions():
    assert [one["output"].removesuffix(world.CLOSING) for one in STYLED] == [one["output"] for one in TRAIN]
    assert 0.48 < sum(one["output"].endswith(world.CLOSING) for one in STYLED) / len(STYLED) < 0.52

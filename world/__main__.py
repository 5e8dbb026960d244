"""The built-in world: all the text of the experiment, made from word lists and a seed, with no text from elsewhere.

    python -m world --show                     a page of each kind, with the chance level of each task
    python -m world --out FOLDER               writes base.jsonl, domain.jsonl, and the .json files named below

base.jsonl is what a base model reads, a document a line: stories, lists, lessons, talks, pages of pairs, and notes, in
which questions are asked and answered, so that it has to look back and to know facts; and drills, which ask the same
again and again, so that it has to learn from examples. domain.jsonl is the logs of ships: the same words in another
register. instructions.json trains instruction tuning; three in ten of its records show solved ones of their task.
questions.json judges it, in five splits, none of it trained on:

    instances   new stories, lists and combinations, of the trained tasks in trained phrasings
    phrasings   trained tasks in words that no training instruction uses
    entities    people, things, places and words that no training instruction names
    facts       knowledge that no training instruction asks for or states: only the base text does
    tasks       whole tasks of which no instruction is trained on

preferences.json has pairs of responses to further instructions, the preferred one in a style of its own, and
styled.json the instructions of instructions.json with every second response in that style, as a model that learns from
pairs must have seen both.

Every fourth word of a list is kept for the splits `entities` and `facts`. The base text knows all of them. It asks in
two of a trained task's five phrasings and in none that is held out. It asks the never-trained tasks too, in the forms
that `tasks` has: an instruction of them is new, they are not. Drills are of trained tasks alone.

For classifiers: labelled.json (lists of words; the label is the group that most of them are in), pairs.json (two words:
opposites, of one group, or neither) and tagged.json (stories; each word is a person, a thing, a colour, a place, who
gives, who takes, or other). Their words are those that instructions may name; labelled-unseen.json, pairs-unseen.json
and tagged-unseen.json have the others, to judge by. Of pairs every third word and opposite is kept for that: with every
fourth one there would be 64 pairs to judge by, now there are 140.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from cli import Mistake, command_line
from world.base_text import MIXTURES, document
from world.domain import log
from world.labelled import files
from world.preferences import pairs, styled
from world.records import instructions
from world.tasks import TASKS


def write(folder: Path, seed: int = 0, documents: int = 20_000, mixture: str = "first") -> None:
    """Writes all files; the same seed gives the same bytes on every platform."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = Random(f"{seed} base.jsonl")
    save(folder / "base.jsonl", (json.dumps({"text": document(rng, mixture)}) + "\n" for _ in range(documents)))
    rng = Random(f"{seed} domain.jsonl")
    save(folder / "domain.jsonl", (json.dumps({"text": log(rng)}) + "\n" for _ in range(1_000)))
    train, questions = instructions(Random(f"{seed} instructions"))
    rng = Random(f"{seed} preferences")
    for name, part in (
        ("instructions.json", train),
        ("questions.json", questions),
        ("styled.json", styled(rng, train)),
        ("preferences.json", pairs(rng, questions)),
    ):
        save(folder / name, json_list(part))
    for name, records in files(Random(f"{seed} labelled")).items():
        save(folder / name, json_list(records))


def json_list(records: Iterable[Any]) -> list[str]:
    return ["[\n" + ",\n".join(json.dumps(one) for one in records) + "\n]\n"]


def save(path: Path, lines: Iterable[str]) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(lines)
    print(f"{path}: {path.stat().st_size:,} bytes")


def show(rng: Random, mixture: str) -> None:
    """Prints a page of each kind, and the chance level of each task."""
    print("\n---- The base text ----\n\n" + "\n\n".join(document(rng, mixture) for _ in range(5)))
    print("\n---- The domain text ----\n\n" + "\n\n".join(log(rng) for _ in range(5)))
    train, questions = instructions(rng)
    print(f"\n---- {len(train):,} instructions to learn from; {len(questions):,} questions to judge by ----\n")
    for task in TASKS:
        of_task = [one for one in questions if one["task"] == task.name]
        chance = sum(float(one["chance"]) for one in of_task) / len(of_task)
        print(f"{task.name} ({'trained' if task.trained else 'never trained'}, by chance {chance:.0%}):")
        for one in {one["split"]: one for one in of_task}.values():
            asked = f"{one['instruction']} | {one['input']} | " if one["input"] else f"{one['instruction']} | "
            print(f"    {one['split']:>9}: {asked}{one['output']}")
    for name, records in files(rng).items():
        print(f"\n---- {name}: {len(records):,} records ----\n\n" + "\n".join(json.dumps(one) for one in records[:3]))


@dataclass(kw_only=True)
class Config:
    out: str = ""  # folder to write the files to
    documents: int = 20_000  # documents of base.jsonl
    mixture: str = "first"  # how often which kind of document is drawn: first, or last, for the end of pretraining
    show: bool = False  # print a page of each kind, and the chance level of each task
    seed: int = 0  # of the draws


def main(config: Config) -> None:
    if not config.out and not config.show:
        raise Mistake("give --show to look at the world, or --out FOLDER to write it")
    if config.mixture not in MIXTURES:
        raise Mistake(f"--mixture must be among {', '.join(MIXTURES)}; got {config.mixture!r}")
    if config.out and Path(config.out).is_file():
        raise Mistake(f"{config.out} is a file: --out names a folder")
    if config.show:
        show(Random(config.seed), config.mixture)
    if config.out:
        write(Path(config.out), config.seed, config.documents, config.mixture)


if __name__ == "__main__":
    command_line(main, Config)

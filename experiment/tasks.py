"""What is predicted: a class instead of a token. Three tasks, who can learn them, and claims 22 to 26.

    lists   the group that all or most words of a list are in, which pretraining knows
    pairs   two words: opposites, of one group, or neither, which no text of the base says
    tags    of each word of a story; above all who gives and who takes, which only the whole sentence tells

Each is judged on new texts of the words that training names (seen), and of those that it does not (unseen).
"""

import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.examples import Reading, instruction_example
from data.files import write_whole
from data.labelled import Record, examples_of, read_labelled, read_tagged, to_learn_and_to_judge
from data.records import Instruction
from evaluate import answered_right
from experiment.claims import Claim, Evidence, Finding, said
from experiment.method import Method
from experiment.report import aligned, formatted, how_exact
from experiment.verdicts import HOLDS, above_chance, beats, both, when
from run.predict import accuracy, judged
from store import checkpoint

TASKS = {  # the flag of train_classifier.py, and the name of two files: NAME.json and NAME-unseen.json
    "lists": ("labelled", "labelled"),
    "pairs": ("labelled", "pairs"),
    "tags": ("tagged", "tagged"),
}
ASKED = {  # the same questions in words, for SFT
    "lists": "Say which group most of the words are in.",
    "pairs": "Say if the words are opposites, of one group or neither.",
}
TIMES = {"pairs": 2}  # as many steps; others: once. The base's text asks of no two words what they are to each other
SPLITS = ("seen", "unseen")
ROLES = ("giver", "taker")
HELD_OUT = 0.1  # of the file to learn from, to judge by on seen words


def records_of(folder: str, task: str) -> dict[str, list[Record]]:
    """What is to be learned, and what it is judged by: the same for every method and seed."""
    kind, name = TASKS[task]
    read = read_tagged if kind == "tagged" else read_labelled
    train, seen = to_learn_and_to_judge(read(f"{folder}/{name}.json"), HELD_OUT)
    return {"train": train, "seen": seen, "unseen": read(f"{folder}/{name}-unseen.json")}


def in_words(task: str, record: Record) -> Instruction:
    """A text and its label as an instruction: the label is what is to be said."""
    return Instruction(ASKED[task], record.pieces[0], record.labels[0])


def write_in_words(folder: str, out: Path) -> None:
    """Writes OUT/lists.json and OUT/pairs.json: what a classifier learns from, as instructions."""
    for task in ASKED:
        asked = [in_words(task, record) for record in records_of(folder, task)["train"]]
        records = [{"instruction": one.instruction, "input": one.input, "output": one.output} for one in asked]
        write_whole(out / f"{task}.json", json.dumps(records).encode())


# ---- judging -----------------------------------------------------------------------------------------------------


def judge(folder: str, task: str, method: Method, device: torch.device) -> dict[str, Any]:
    """The share of each split that a trained method tells right, and milliseconds an answer on unseen words; of tags
    also the share of givers and takers that it finds."""
    opened, records = checkpoint.open_run(method.out), records_of(folder, task)
    model, classes, size = opened.model().to(device), opened.classes, method.settings["batch_size"]
    found: dict[str, Any] = {}
    for split in SPLITS:
        labels = Counter(label for record in records[split] for label in record.labels)
        started = time.perf_counter()
        if classes:
            how = Reading(opened.tokenizer, method.settings["block_size"], HELD_OUT)
            counts = judged(model, examples_of(records[split], classes, how)[0], size, classes)
            value = accuracy(counts)
            found |= {f"{split} roles": roles_found(counts, classes.names)} if task == "tags" else {}
        else:
            asked = [instruction_example(in_words(task, record), opened.tokenizer) for record in records[split]]
            value = sum(answered_right(model, opened.tokenizer, asked, size)) / len(asked)
        found["ms"] = 1000 * (time.perf_counter() - started) / labels.total()
        found[split] = {"value": value, "n": labels.total(), "chance": max(labels.values()) / labels.total()}
    return found


def roles_found(counts: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """How many of the givers and takers are found as such; who cannot see what follows can only toss a coin."""
    of = [names.index(role) for role in ROLES]
    there = int(counts[of].sum())
    return {"value": float(counts[of, of].sum() / there), "n": there, "chance": 1 / 2}


def gather(
    folder: str, methods: Sequence[Method], costs: dict[str, dict[str, Any]], device: torch.device
) -> dict[str, Evidence]:
    """A row for each who learns, named before the comma of its methods: what it is right in by task, named after it;
    and of the costs the highest."""
    rows: dict[str, Evidence] = {}
    for method in methods:
        who, task = method.name.split(", ")
        row = rows.setdefault(who, {"method": who, "trainable": 0, "total": 0, "seconds": 0.0})
        row |= {key: max(row[key], costs[method.name][key]) for key in ("trainable", "total", "seconds")}
        row[task] = judge(folder, task, method, device)
    return rows


# ---- the table ---------------------------------------------------------------------------------------------------

NOT_ASKED = {"value": None}
COLUMNS = {
    "lists": ("lists", "seen"), "lists unseen": ("lists", "unseen"),
    "pairs": ("pairs", "seen"), "pairs unseen": ("pairs", "unseen"),
    "tags": ("tags", "seen"), "tags unseen": ("tags", "unseen"),
    "giver, taker": ("tags", "seen roles"), "unseen": ("tags", "unseen roles"),
}  # fmt: skip


def page(results: dict[str, Any]) -> str:
    rows = results["rows"]
    lines = [["method", "learns", "seconds", *COLUMNS, "ms a list"]]
    for one in rows:
        costs = [one["method"], f"{one['trainable']:,}", formatted(one, "seconds", "{:.0f}")]
        shares = [one.get(task, {}).get(split, NOT_ASKED) for task, split in COLUMNS.values()]
        lines.append([*costs, *(formatted(share, "value", "{:.1%}") for share in shares), f"{one['lists']['ms']:.1f}"])
    guessed = [formatted(rows[0][task][split], "chance", "{:.1%}") for task, split in COLUMNS.values()]
    lines.append(["by chance", "–", "–", *guessed, "–"])
    judged_are = [f"{rows[0][task][split]['n']} ({name})" for name, (task, split) in COLUMNS.items()]
    return f"{aligned(lines)}\n\n" + (
        "learns: parameters; seconds: of the longest training; then what is told right, of new lists and new pairs\n"
        "of words, and the words of new stories; unseen: of words that no training names; ms: to answer about one\n"
        f"list. Judged are {', '.join(judged_are)}.\n{how_exact(results)}"
    )


# ---- the claims --------------------------------------------------------------------------------------------------


def better(one: dict[str, Any], other: dict[str, Any]) -> str:
    return beats(one["value"], other["value"], one["n"], other["n"])


def head_suffices(e: Evidence) -> Finding:
    head, full = (e["rows"][who]["lists"]["unseen"] for who in ("frozen head", "all"))
    verdict = both(when(head["value"] >= 0.9 * full["value"]), above_chance(head))
    learns = e["rows"]["frozen head"]["trainable"]
    return verdict, f"lists of unseen words: {learns:,} numbers on a frozen base {said(head)}; all of them {said(full)}"


def updating_helps(e: Evidence) -> Finding:
    head, lora, full = (e["rows"][who]["pairs"]["unseen"] for who in ("frozen head", "LoRA + head", "all"))
    return better(lora, head), (
        f"pairs of unseen words: frozen head {said(head)}; LoRA + head {said(lora)}; all {said(full)}"
    )


def pretraining_carries_over(e: Evidence) -> Finding:
    seen, unseen = (e["rows"]["random weights"]["lists"][split] for split in SPLITS)
    full = e["rows"]["all"]["lists"]["unseen"]
    verdict = both(better(full, unseen), above_chance(full), when(above_chance(unseen) != HOLDS))
    return verdict, (
        f"lists: from random weights {seen['value']:.1%} of seen words, {said(unseen)} of unseen ones; "
        f"pretrained {said(full)}"
    )


def labelling_sees_both_sides(e: Evidence) -> Finding:
    verdicts, numbers = [], []
    for split in SPLITS:
        one, other = (e["rows"][who]["tags"][f"{split} roles"] for who in ("encoder", "all"))
        verdicts.append(better(one, other))
        numbers.append(f"{split} words: encoder {said(one)}, causal base {other['value']:.1%}")
    return both(*verdicts), "givers and takers found: " + "; ".join(numbers)


def sft_in_words(e: Evidence) -> Finding:
    words, lora = e["rows"]["SFT in words"], e["rows"]["LoRA + head"]
    of_tasks = [(task, words[task]["unseen"], lora[task]["unseen"]) for task in ASKED]
    on_lists, on_pairs = (better(head, one) for _, one, head in of_tasks)
    numbers = [f"{task} of unseen words: {said(one)}, with a head {head['value']:.1%}" for task, one, head in of_tasks]
    cost = f"{words['seconds']:.0f} s to learn instead of {lora['seconds']:.0f}"
    answer = f"{words['lists']['ms']:.1f} ms to answer instead of {lora['lists']['ms']:.1f}"
    return both(when(on_lists != HOLDS), on_pairs), f"{'; '.join(numbers)}; {cost}, {answer}"


CLAIMS: dict[str, tuple[str, Claim]] = {
    "22": ("A new head on a frozen base suffices where pretraining knows the classes.", head_suffices),
    "23": ("Updating the base helps where it does not.", updating_helps),
    "24": ("Pretraining carries over to words never trained on; random weights do not.", pretraining_carries_over),
    "25": ("Labelling words gains from seeing both sides.", labelling_sees_both_sides),
    "26": (
        "SFT tells a class in words as well as a head does where pretraining knows it, and worse where it does not.",
        sft_in_words,
    ),
}

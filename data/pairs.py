"""Pairs of responses to one prompt, of which one was chosen and one rejected: read from files, and made into examples.

    --pairs   instruction, input (may be left out), chosen, rejected; in .json, .jsonl, .csv or .tsv (data/records.py)
              of a conversation: messages or conversations up to the user's last turn, and chosen and rejected as texts;
              or chosen and rejected as lists of messages, which differ in the last one, with or without a prompt

A pair is two rows. Both read the same prompt; graded is the response, or for a score the last token alone.
"""

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tiktoken

from cli import Mistake
from data.download import find
from data.examples import (
    Example,
    Pair,
    Reading,
    conversation,
    n_to_judge_by,
    next_token,
    refuse_too_few,
    response_tokens,
)
from data.records import (
    CONVERSATION,
    BadRecord,
    Instruction,
    Where,
    all_records,
    instruction_of,
    refuse_missing,
    text_of,
)
from model.head import Classes

COLUMNS = ("instruction", "input", "chosen", "rejected", "prompt", *CONVERSATION)
SCORE = Classes(["score"], "response")  # what a reward model's head says


class Compared(NamedTuple):
    """An instruction with either response: the same but for its output."""

    chosen: Instruction
    rejected: Instruction


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_pairs(path: str | Path, columns: str = "", skip_bad: bool = False) -> list[Compared]:
    """All pairs of a file, or of a corpus by name. Raises Mistake naming the file and the line or record; with
    skip_bad, bad records are left out, counted and printed."""
    file, columns = find(path, "pairs", columns)
    return all_records(path, file, columns, COLUMNS, _pair, skip_bad)


def _pair(where: Where, record: Any) -> Compared:
    if not isinstance(record, dict):
        raise BadRecord(f"{where} must be an object with chosen and rejected, not {type(record).__name__}")
    refuse_missing(where, record, ("chosen", "rejected"))
    chosen, rejected = (_answered(where, record, which) for which in ("chosen", "rejected"))
    if chosen._replace(output="") != rejected._replace(output=""):
        raise BadRecord(f"{where}: chosen and rejected must differ in the last response alone")
    return Compared(chosen, rejected)


def _answered(where: Where, record: dict[str, Any], which: str) -> Instruction:
    said, name = record[which], next((name for name in CONVERSATION if record.get(name)), "")
    if isinstance(said, list):
        before = record.get("prompt")  # a text repeats the user's turn, which is in the list
        if before is not None and not isinstance(before, str | list):
            raise BadRecord(f'{where}: "prompt" must be a text or a list of messages, not {type(before).__name__}')
        turns = [*before, *said] if isinstance(before, list) else said
        return instruction_of(f'{where}, "{which}"', {"messages": turns})
    said = text_of(where, record, which)
    if name:
        turns = record[name] if isinstance(record[name], list) else []
        is_sharegpt = bool(turns) and isinstance(turns[0], dict) and "from" in turns[0]
        answer = {"from": "gpt", "value": said} if is_sharegpt else {"role": "assistant", "content": said}
        return instruction_of(where, {name: [*turns, answer]})
    refuse_missing(where, record, ("instruction",))
    asked = {key: record[key] for key in ("instruction", "input") if key in record}
    return instruction_of(where, {**asked, "output": said})


# ---- examples --------------------------------------------------------------------------------------------------------


def response_example(record: Instruction, tokenizer: tiktoken.Encoding) -> Example:
    """The prompt, then the response and its end-of-text, which are graded; earlier responses of a chat are not, since
    both of a pair share them."""
    prompt, response = conversation(record, tokenizer)[0], response_tokens(record.output, tokenizer)
    return next_token(np.array(prompt + response), np.array([False] * len(prompt) + [True] * len(response)))


def scored_example(record: Instruction, tokenizer: tiktoken.Encoding) -> Example:
    """The prompt and the response to its end-of-text, which is read too: there, where all of it is known, the score
    stands. Where it stands is known when the row has been cut to fit its block."""
    tokens = np.array(conversation(record, tokenizer)[0] + response_tokens(record.output, tokenizer))
    return Example(tokens, np.zeros_like(tokens), np.ones(len(tokens), bool), np.arange(len(tokens)))


def from_pairs(
    path: str | Path, how: Reading, example: Callable[[Instruction, tiktoken.Encoding], Example] = response_example
) -> tuple[list[Pair], list[Pair]]:
    """The pairs to learn from, and a random share held_out to judge by: the same records in every run.

    A response that is too long is cut after block_size positions. A pair is skipped when one of its responses is empty,
    when both are the same, also once they are cut, or when the prompt alone fills the block. All are counted and
    printed. Raises Mistake when nothing is left to learn from or to judge by, and for a malformed file.
    """
    records = read_pairs(path, how.columns, how.skip_bad_records)
    random.Random(0).shuffle(records)  # whatever --seed is: all runs hold out the same records
    n_held_out = n_to_judge_by(how.held_out, len(records))
    block, counts = how.block_size, Counter[str]()
    parts: list[list[Pair]] = []
    for part in (records[:-n_held_out], records[-n_held_out:]):
        parts.append([])
        for record in part:
            room = len(conversation(record.chosen, how.tokenizer)[0])
            whole = [example(one, how.tokenizer) for one in record]
            chosen, rejected = (_cut(one, block) for one in whole)
            if not all(one.output.strip() for one in record):
                counts["have an empty response: skipped"] += 1
            elif record.chosen.output.strip() == record.rejected.output.strip():
                counts["have two equal responses, which tell nothing: skipped"] += 1
            elif room > block:
                counts[f"have a prompt longer than --block-size {block}, nothing would be graded: skipped"] += 1
            elif _tokens(chosen) == _tokens(rejected):
                counts[f"differ only beyond --block-size {block}: skipped"] += 1
            else:
                if max(len(one.inputs) for one in whole) > block:
                    counts[f"are longer than --block-size {block}: cut there, their end is not learned"] += 1
                parts[-1].append(Pair(chosen, rejected))
    for what, n in counts.items():
        print(f"{path}: {n:,} of {len(records):,} pairs {what}")
    train, judge = parts
    refuse_too_few(path, "pairs", train, judge, how.held_out)
    return train, judge


def _cut(example: Example, block: int) -> Example:
    return Example(*(None if part is None else part[:block] for part in example))  # type: ignore[arg-type]


def _tokens(example: Example) -> tuple[list[int], list[int]]:
    return example.inputs.tolist(), example.targets.tolist()


def scored_pairs(
    path: str | Path, how: Reading, known: Classes | None = None
) -> tuple[list[Pair], list[Pair], Classes]:
    """The same for a reward model, whose score is graded at the last token of each response; and what its head says.

    known: what the head of the model says already, if it has one. Raises Mistake if that is something else.
    """
    if known and known != SCORE:
        raise Mistake(f"{path}: this model gives a class to each {known.each}, not a score: name another run")
    train, judge = from_pairs(path, how, scored_example)
    for pair in (*train, *judge):
        for example in pair:
            example.graded[:-1] = False
    return train, judge, SCORE

"""Pairs of responses to one prompt, of which one was chosen and one rejected: read from files, and made into examples.

    --pairs   instruction, input (may be left out), chosen, rejected; in .json, .jsonl, .csv or .tsv (data/formats.py)
              of a conversation: messages or conversations up to the user's last turn, and chosen and rejected as texts;
              or chosen and rejected as lists of messages, which differ in the last one, with or without a prompt

A pair is two rows. Both read the same prompt; graded is the response, or for a score the last token alone.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tiktoken

from cli import Mistake
from data.examples import Example, Pair, Reading, conversation, from_records, next_token, response_tokens
from data.formats import BadRecord, Where, all_records
from data.records import Instruction, chat_in, instruction_of, require, text_of
from model.head import Classes

SCORE = Classes(["score"], "response")  # what a reward model's head says


class Compared(NamedTuple):
    """An instruction with either response: the same but for its output."""

    chosen: Instruction
    rejected: Instruction


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_pairs(path: str | Path, columns: str = "", skip_bad: bool = False) -> list[Compared]:
    """All pairs of a file, or of a corpus by name; otherwise as read_instructions."""
    return all_records(path, "pairs", columns, _pair, skip_bad)


def _pair(where: Where, record: Any) -> Compared:
    require(where, record, "chosen", "rejected")
    chosen, rejected = (_answered(where, record, which) for which in ("chosen", "rejected"))
    if chosen._replace(output="") != rejected._replace(output=""):
        raise BadRecord(f"{where}: chosen and rejected must differ in the last response alone")
    return Compared(chosen, rejected)


def _answered(where: Where, record: dict[str, Any], which: str) -> Instruction:
    """What was asked, with the one response or the other."""
    said = record[which]
    if isinstance(said, list):
        before = record.get("prompt")  # a text repeats the user's turn, which is in the list
        if before is not None and not isinstance(before, str | list):
            raise BadRecord(f'{where}: "prompt" must be a text or a list of messages, not {type(before).__name__}')
        turns = [*before, *said] if isinstance(before, list) else said
        return instruction_of(f'{where}, "{which}"', {"messages": turns})
    said = text_of(where, which, said)
    if name := chat_in(record):
        turns = record[name] if isinstance(record[name], list) else []
        return instruction_of(where, {name: [*turns, {"role": "assistant", "content": said}]})
    require(where, record, "instruction")
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
    block = how.block_size

    def pair_of(record: Compared) -> tuple[Pair | None, str]:
        whole = [example(one, how.tokenizer) for one in record]
        chosen, rejected = (one.cut(block) for one in whole)
        if not all(one.output.strip() for one in record):
            return None, "have an empty response: skipped"
        if record.chosen.output.strip() == record.rejected.output.strip():
            return None, "have two equal responses, which tell nothing: skipped"
        if len(conversation(record.chosen, how.tokenizer)[0]) > block:
            return None, f"have a prompt longer than --block-size {block}, nothing would be graded: skipped"
        if all(np.array_equal(*parts) for parts in zip(chosen[:2], rejected[:2], strict=True)):
            return None, f"differ only beyond --block-size {block}: skipped"
        is_long = max(len(one.inputs) for one in whole) > block
        said = f"are longer than --block-size {block}: cut there, their end is not learned" if is_long else ""
        return Pair(chosen, rejected), said

    return from_records(path, "pairs", read_pairs(path, how.columns, how.skip_bad_records), how, pair_of)


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

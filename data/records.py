"""From a file's records to instructions, conversations and documents. How they stand in the file: data/formats.py."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from cli import listed
from data.formats import CONVERSATION, BadRecord, Where, all_records


class Instruction(NamedTuple):
    instruction: str  # what to do
    input: str  # what to do it with, often empty
    output: str  # the response
    task: str = ""  # which task it is one of, where that is known
    split: str = "instances"  # what is new in it, if it is a question to judge by
    chance: float = 0.0  # of guessing the response
    examples: tuple[tuple[str, str, str], ...] = ()  # shown before it, solved: (instruction, input, output) each
    earlier: tuple[tuple[str, str], ...] = ()  # of a conversation: what was said before, (user, assistant) each
    system: str = ""  # of a conversation: what stands before all of it


def read_instructions(path: str | Path, columns: str = "", skip_bad: bool = False) -> list[Instruction]:
    """All records of a file, or of a corpus by name: Alpaca's keys (instruction, output and optionally input), or a
    conversation's (messages: a list of role and content). Raises Mistake naming the file and the line or record; with
    skip_bad, bad records are left out, counted and printed."""
    return all_records(path, "instructions", columns, instruction_of, skip_bad)


def instruction_of(where: Where, record: Any) -> Instruction:
    if name := chat_in(record):
        return _conversation(where, name, record[name])
    require(where, record, "instruction", "output")
    # null is absent, and so is an empty cell
    given = {key: value for key, value in record.items() if value not in (None, "")}
    return Instruction(
        text_of(where, "instruction", record["instruction"]),
        text_of(where, "input", given.get("input", "")),
        text_of(where, "output", record["output"]),
        text_of(where, "task", given.get("task", "")),
        text_of(where, "split", given.get("split", "instances")),
        _chance(where, given.get("chance", 0.0)),
        _examples(where, given.get("examples", [])),
    )


def _chance(where: Where, value: Any) -> float:
    if isinstance(value, str) and re.fullmatch(r"\d*\.?\d+", value):
        value = float(value)  # a table has texts only
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:  # NaN is not, either
        raise BadRecord(f'{where}: "chance" is {shown(value)}, expected a number from 0 to 1')
    return value


def _examples(where: Where, records: Any) -> tuple[tuple[str, str, str], ...]:
    """Solved records that a prompt shows before its own question."""
    if not isinstance(records, list):
        raise BadRecord(f'{where}: "examples" is {shown(records)}, expected a list of records')
    if any(chat_in(one) or (isinstance(one, dict) and one.get("examples")) for one in records):
        raise BadRecord(f'{where}: "examples" must be of instruction, input and output alone')
    return tuple(instruction_of(f"{where}, example {n}", one)[:3] for n, one in enumerate(records, 1))


def chat_in(record: Any) -> str:
    """The column of a record that holds a conversation, or ""."""
    return next((key for key in CONVERSATION if isinstance(record, dict) and record.get(key) not in (None, "")), "")


SHAREGPT = {"human": "user", "gpt": "assistant"}


def _conversation(where: Where, name: str, messages: Any) -> Instruction:
    """The last turn as an instruction and its response, and the turns before it. ShareGPT calls role and content from
    and value."""
    try:
        said = [(one.get("role", one.get("from")), one.get("content", one.get("value"))) for one in messages]
    except (TypeError, AttributeError):  # no list, or not of objects
        said = [(None, None)]
    if not all(isinstance(text, str) for turn in said for text in turn):
        raise BadRecord(f'{where}: "{name}" must be a list of objects with a role and a content, both texts')
    roles = [SHAREGPT.get(role, role) for role, _ in said]
    texts = [text_of(where, "content", text) for _, text in said]
    n_system = int(roles[:1] == ["system"])
    turns = list(zip(texts[n_system::2], texts[n_system + 1 :: 2], strict=False))
    if not turns or roles[n_system:] != ["user", "assistant"] * len(turns):
        raise BadRecord(
            f'{where}: "{name}" must be of user and assistant in turn, the last of the assistant, and before them '
            f"at most one of system; their roles are {listed(roles)}"
        )
    *earlier, (user, assistant) = turns
    return Instruction(user, "", assistant, earlier=tuple(earlier), system=texts[0] if n_system else "")


def document(where: Where, record: Any) -> str:
    """The text of a record that has one."""
    if chat_in(record) and "text" not in record:
        raise BadRecord(f"{where} is a conversation: train_sft.py and train_lora.py read it with --instructions")
    require(where, record, "text")
    return text_of(where, "text", record["text"])


def require(where: Where, record: Any, *required: str) -> None:
    """Raises BadRecord for what is no object, and for one that lacks a column: with a hint to name others, if there are
    others that hold a text."""
    if not isinstance(record, dict):
        raise BadRecord(f"{where} must be an object with {' and '.join(required)}, not {type(record).__name__}")
    if missing := [key for key in required if key not in record]:
        others = [key for key, value in record.items() if key not in required and isinstance(value, str)]
        hint = f"; --columns {','.join(f'{key}=NAME' for key in missing)} can say which is meant" if others else ""
        there = listed(map(repr, record))
        raise BadRecord(f'{where}: "{missing[0]}" is missing, expected a text; there are {there}{hint}')


def text_of(where: Where, key: str, value: Any) -> str:
    """The value, a text. JSON can write half of a character, as in "\\ud800", which no UTF-8 and so no tokenizer
    knows."""
    if not isinstance(value, str):
        raise BadRecord(f'{where}: "{key}" is {shown(value)}, expected a text')
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = value[error.start].encode("ascii", "backslashreplace").decode()
        raise BadRecord(f'{where}: "{key}" holds {half}, half of a surrogate pair, expected Unicode text') from None
    return value


def shown(value: Any) -> str:
    return "a list" if isinstance(value, list) else "an object" if isinstance(value, dict) else json.dumps(value)[:40]

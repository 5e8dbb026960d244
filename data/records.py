"""From files to records: .json, .jsonl, .csv and .tsv, plain or .gz.

Where a file's columns (or JSON keys) have other names than ours, --columns says which is which, OURS=THEIRS:

    "instruction=question,input=context,output=answer"
    "input=2,output=1"                                 by number, from 1: a .csv or .tsv without a row of names
    "instruction==Is this spam or ham?,output=1"       after "==" no column, but a text: the same in every record
"""

import csv
import gzip
import io
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TextIO, TypeVar

from cli import Mistake, listed
from data.download import find, in_archive

Where = str  # FILE:LINE, or FILE: record N
T = TypeVar("T")


class BadRecord(Mistake):
    """What is wrong with one record of a file whose others may be right."""


@dataclass
class Skipped:
    """Bad records that --skip-bad-records leaves out: how many of how many, and what is wrong with the first three."""

    n_bad: int = 0
    n_records: int = 0
    first: list[str] = field(default_factory=list)

    def sentence(self, path: str | Path) -> str:
        """What to tell the user. Raises Mistake when no record is left."""
        what = f"{path}: {self.n_bad:,} of {self.n_records:,} records are malformed"
        if self.n_bad and self.n_bad == self.n_records:
            raise Mistake(f"{what}, so none is left; the first: {self.first[0]}")
        return f"{what}: skipped; the first: {'; '.join(self.first)}" if self.n_bad else ""


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
    file, columns = find(path, "instructions", columns)
    ours = ("instruction", "input", "output", *CONVERSATION)
    return all_records(path, file, columns, ours, instruction_of, skip_bad)


def instruction_of(where: Where, record: Any) -> Instruction:
    if not isinstance(record, dict):
        raise BadRecord(f"{where} must be an object with instruction and output, not {type(record).__name__}")
    required = ("instruction", "output")
    # null is absent, and so is an empty cell
    record = {key: value for key, value in record.items() if value not in (None, "") or key in required}
    if any(key in record for key in CONVERSATION):
        return _conversation(where, record)
    refuse_missing(where, record, required)
    there = [key for key in ("instruction", "input", "output", "task", "split") if key in record]
    values: dict[str, Any] = {"input": ""} | {key: text_of(where, record, key) for key in there}
    chance = record.get("chance", 0.0)
    if isinstance(chance, str) and re.fullmatch(r"\d*\.?\d+", chance):
        chance = float(chance)  # a table has texts only
    if isinstance(chance, bool) or not isinstance(chance, int | float) or not 0 <= chance <= 1:  # NaN is not, either
        raise BadRecord(f'{where}: "chance" is {shown(chance)}, expected a number from 0 to 1')
    return Instruction(**values, chance=chance, examples=_examples(where, record.get("examples", [])))


def _examples(where: Where, records: Any) -> tuple[tuple[str, str, str], ...]:
    """Solved records that a prompt shows before its own question; they have no turns and no examples of their own."""
    if not isinstance(records, list):
        raise BadRecord(f'{where}: "examples" is {shown(records)}, expected a list of records')
    nested = any(isinstance(one, dict) and one.get("examples") for one in records)  # however deep: not even read
    solved = [] if nested else [instruction_of(f"{where}, example {n}", one) for n, one in enumerate(records, 1)]
    if nested or any(one.earlier or one.system for one in solved):
        raise BadRecord(f'{where}: "examples" must be of instruction, input and output alone')
    return tuple(one[:3] for one in solved)


CONVERSATION = ("messages", "conversations")  # either holds one
SHAREGPT = {"human": "user", "gpt": "assistant"}


def _conversation(where: Where, record: dict[str, Any]) -> Instruction:
    """The last turn as an instruction and its response, and the turns before it. ShareGPT's conversations, with from
    and value, are messages with role and content."""
    name = "messages" if "messages" in record else "conversations"
    said = record[name]
    is_sharegpt = isinstance(said, list) and said and isinstance(said[0], dict) and "from" in said[0]
    role, content = ("from", "value") if is_sharegpt else ("role", "content")
    try:
        roles = [SHAREGPT.get(message[role], message[role]) for message in said]
        texts = [message[content] for message in said]
        if not all(isinstance(text, str) for text in roles + texts):
            raise TypeError
    except (TypeError, KeyError):
        raise BadRecord(
            f'{where}: "{name}" must be a list of objects with a {role} and a {content}, both texts'
        ) from None
    n_system = int(roles[:1] == ["system"])
    turns = list(zip(texts[n_system::2], texts[n_system + 1 :: 2], strict=False))
    if not turns or roles[n_system:] != ["user", "assistant"] * len(turns):
        raise BadRecord(
            f'{where}: "{name}" must be of user and assistant in turn, the last of the assistant, and before them '
            f"at most one of system; their roles are {listed(roles)}"
        )
    for text in texts:
        _refuse_surrogates(where, content, text)
    (user, assistant), earlier = turns[-1], tuple(turns[:-1])
    return Instruction(user, "", assistant, earlier=earlier, system=texts[0] if n_system else "")


def document(where: Where, record: Any) -> str:
    """The text of a record that has one."""
    if not isinstance(record, dict):
        raise BadRecord(f"{where} must be an object with text, not {type(record).__name__}")
    if "text" not in record and any(key in record for key in CONVERSATION):
        raise BadRecord(f"{where} is a conversation: train_sft.py and train_lora.py read it with --instructions")
    refuse_missing(where, record, ("text",))
    return text_of(where, record, "text")


def refuse_missing(where: Where, record: dict[str, Any], required: Sequence[str]) -> None:
    """With a hint that works: to name other columns, if there are others that hold a text."""
    missing = [key for key in required if key not in record]
    others = [key for key, value in record.items() if key not in required and isinstance(value, str)]
    hint = f"; --columns {','.join(f'{key}=NAME' for key in missing)} can say which is meant" if others else ""
    if missing:
        raise BadRecord(
            f'{where}: "{missing[0]}" is missing, expected a text; there are {listed(map(repr, record))}{hint}'
        )


def text_of(where: Where, record: dict[str, Any], key: str) -> str:
    value = record[key]
    if not isinstance(value, str):
        raise BadRecord(f'{where}: "{key}" is {shown(value)}, expected a text')
    _refuse_surrogates(where, key, value)
    return value


def _refuse_surrogates(where: Where, key: str, text: str) -> None:
    """JSON can write half of a character, as in "\\ud800", which no UTF-8 and so no tokenizer knows."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start].encode("ascii", "backslashreplace").decode()
        raise BadRecord(f'{where}: "{key}" holds {half}, half of a surrogate pair, expected Unicode text') from None


def shown(value: Any) -> str:
    return "a list" if isinstance(value, list) else "an object" if isinstance(value, dict) else json.dumps(value)[:40]


# ---- the formats -------------------------------------------------------------------------------------------------


def all_records(
    path: str | Path,
    file: Path,
    columns: str,
    ours: Sequence[str],
    read: Callable[[Where, Any], T],
    skip_bad: bool,
    reader: "Reader | None" = None,
) -> list[T]:
    """All of read_records at once. path: what the user called the file; with skip_bad, bad records are left out and
    counted, and their number is printed."""
    skipped = Skipped() if skip_bad else None
    records = list(read_records(file, columns, ours, read, skipped, reader))
    if skipped and (sentence := skipped.sentence(path)):
        print(sentence)
    return records


def read_records(
    path: Path,
    columns: str,
    ours: Sequence[str],
    read: Callable[[Where, Any], T],
    skipped: Skipped | None = None,
    reader: "Reader | None" = None,
) -> Iterator[T]:
    """What `read` makes of each record, its columns under our names; one in memory at a time, but in .json all.
    reader: of a file in none of the four formats.

    Raises Mistake for a file of another kind or broken as a whole, and for the first bad record; with `skipped`, bad
    records are added there instead.
    """
    wanted = column_map(columns, ours)
    reader = reader or READERS.get(kind_of(path))
    if reader is None:
        raise Mistake(f"{path} must be a .json, .jsonl, .csv or .tsv, or one of these and .gz, and be named so")
    for where, record in reader(path, wanted):
        try:
            if isinstance(record, BadRecord):
                raise record
            value = read(where, _renamed(where, record, wanted))
        except BadRecord as error:
            if skipped is None:
                raise
            skipped.n_bad += 1
            skipped.n_records += 1
            skipped.first += [str(error)] if skipped.n_bad <= 3 else []
            continue
        if skipped:
            skipped.n_records += 1
        yield value


def kind_of(path: Path) -> str:
    """The suffix by which a file is read, .gz aside. What has none, in an archive, is a table as in a .tsv."""
    suffix = (Path(path.stem).suffix if is_gz(path) else path.suffix).lower()
    return {"": ".tsv" if in_archive(path) else "", ".ndjson": ".jsonl"}.get(suffix, suffix)


def is_gz(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def column_map(columns: str, ours: Sequence[str]) -> dict[str, str]:
    """{ours: theirs}, from "ours=theirs,ours=theirs"; a comma that no name and "=" follow is part of a name or text."""
    wanted = {}
    for pair in re.split(r",(?=\s*\w+=)", columns) if columns else []:
        key, theirs = (part.strip() for part in pair.partition("=")[::2])
        if key not in ours or not theirs:
            raise Mistake(f"--columns has {pair!r}: it must be OURS=THEIRS, with {', '.join(ours)} for OURS")
        wanted[key] = theirs
    return wanted


def _renamed(where: Where, record: Any, wanted: dict[str, str]) -> Any:
    """Columns that are not wanted under another name keep their own, without spaces around it."""
    if not isinstance(record, dict):
        return record
    record = {name if name.strip() in record else name.strip(): value for name, value in record.items()}
    renamed = {name: value for name, value in record.items() if name not in wanted.values()}
    for ours, theirs in wanted.items():
        if not theirs.startswith("=") and theirs not in record:
            raise BadRecord(
                f"{where} has no column {theirs!r} to take as {ours}; there are {listed(map(repr, record))}"
            )
        renamed[ours] = theirs[1:] if theirs.startswith("=") else record[theirs]
    return renamed


# Each reader yields where a record stands and the record, or in its place the BadRecord that says why it is none.


def _from_jsonl(path: Path, wanted: dict[str, str]) -> Iterator[tuple[Where, Any]]:
    with opened(path) as file:
        for number, line in enumerate(file, 1):
            where = f"{path}:{number}"
            if line.strip():
                try:
                    record = json.loads(line.rstrip("\n"))
                except (ValueError, RecursionError) as error:
                    record = BadRecord(f"{where} is not JSON: {error}")
                yield where, record


def _from_json(path: Path, wanted: dict[str, str]) -> Iterator[tuple[Where, Any]]:
    with opened(path) as file:
        text = file.read()
    try:
        records = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = text.strip().partition("\n")[0].rstrip()
        if line == text.strip() or line[:1] != "{" or line[-1:] != "}":
            raise Mistake(f"{path} is not JSON: {error}") from None
        yield from _from_jsonl(path, wanted)  # a record a line, whatever it is named
        return
    if isinstance(records, dict):
        lists = [name for name, value in records.items() if isinstance(value, list) and name not in CONVERSATION]
        if lists:
            raise Mistake(f"{path} is an object: put the list that is its {lists[0]!r} into a file of its own")
        records = [records]  # a file of one record
    if not isinstance(records, list):
        raise Mistake(f"{path} must hold a JSON list of records, not {shown(records)}")
    for number, record in enumerate(records, 1):
        yield f"{path}: record {number}", record


def _from_csv(path: Path, wanted: dict[str, str]) -> Iterator[tuple[Where, Any]]:
    return _from_table(path, wanted, delimiter=",", quoting=csv.QUOTE_MINIMAL)


def _from_tsv(path: Path, wanted: dict[str, str]) -> Iterator[tuple[Where, Any]]:
    """Here a quote is a character like any other, but in a file as Excel writes it."""
    quoting = csv.QUOTE_MINIMAL if _is_as_excel(path) else csv.QUOTE_NONE
    return _from_table(path, wanted, delimiter="\t", quoting=quoting)


FIELD = r'(?:"[^"]*(?:""[^"]*)*"|[^"\t]*)'  # in quotes, each quote inside doubled; or without any
ROW = re.compile(rf"(?:{FIELD}\t)*{FIELD}")


def _is_as_excel(path: Path) -> bool:
    """Whether there are quotes, and all of them stand around a whole field or are doubled inside it; and says so."""
    row: list[str] = []  # the lines of one: inside quotes it goes on
    n_quotes = 0
    with opened(path, newline="") as file:
        for line in file:
            if row or '"' in line:
                row.append(line)
                n_quotes += line.count('"')
                if n_quotes % 2 == 0:
                    if not ROW.fullmatch("".join(row).rstrip("\r\n")):
                        return False
                    row = []
    if n_quotes and not row:
        print(f"{path}: quotes around a field are taken off, as Excel writes them")
    return n_quotes > 0 and not row


def _from_table(path: Path, wanted: dict[str, str], delimiter: str, quoting: Any) -> Iterator[tuple[Where, Any]]:
    """Rows as {column: text}; where all that is wanted are numbers, columns are numbered and the first row counts.

    A misplaced quote breaks the file, not a row: it hides where the row ends.
    """
    csv.field_size_limit(2**31 - 1)  # bytes; a long text is no mistake
    columns = [theirs for theirs in wanted.values() if not theirs.startswith("=")]
    numbered = bool(columns) and all(theirs.isdecimal() for theirs in columns)
    names: list[str] = []
    line = 1  # on which the row begins: it may go on over several
    with opened(path, newline="") as file:
        rows = csv.reader(file, delimiter=delimiter, quoting=quoting, strict=True)
        try:
            for row in rows:
                where, line = f"{path}:{line}", rows.line_num + 1
                if row and not names:
                    names = [str(n) for n in range(1, len(row) + 1)] if numbered else [name.strip() for name in row]
                    if len(set(names)) < len(names):
                        raise Mistake(f"{where} names a column twice: {listed(map(repr, names))}")
                    if not numbered and len(row) == 1 and re.search("[,;\t]", row[0]):
                        between = "commas" if delimiter == "," else "tabs"
                        raise Mistake(
                            f"{where} has one column, {row[0][:40]!r}: there must be {between} between columns"
                        )
                    if not numbered:
                        continue
                if row and len(row) != len(names):
                    yield where, BadRecord(f"{where} has {len(row)} columns, but the first row has {len(names)}")
                elif row:
                    yield where, dict(zip(names, row, strict=True))
        except csv.Error as error:
            raise Mistake(f"{path}:{line} is not a row of a table: {error}") from None


Reader = Callable[[Path, dict[str, str]], Iterator[tuple[Where, Any]]]
READERS: dict[str, Reader] = {
    ".json": _from_json,
    ".jsonl": _from_jsonl,
    ".csv": _from_csv,
    ".tsv": _from_tsv,
}


# ---- files -------------------------------------------------------------------------------------------------------


@contextmanager
def opened(path: Path, newline: str | None = None) -> Iterator[TextIO]:
    """A UTF-8 file, plain, .gz or in a .zip. Raises Mistake for what is no UTF-8 or a broken archive."""
    try:
        with _binary(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline=newline) as file:
            try:
                yield file
            except UnicodeDecodeError:
                raise Mistake(f"{path} is not UTF-8 text: {_first_bad_byte(path)}") from None
    except (EOFError, OSError, zipfile.BadZipFile, zlib.error, KeyError, RuntimeError) as error:
        if in_archive(path):  # whatever a damaged one, or one with a password, makes the reader raise
            raise Mistake(f"{path.name} cannot be read from {path.parent}: {error}") from None
        if is_gz(path) and isinstance(error, EOFError | gzip.BadGzipFile | zlib.error):
            raise Mistake(f"{path} is not a whole .gz file: {error}") from None
        raise


def _binary(path: Path) -> Any:
    if in_archive(path):
        return zipfile.ZipFile(path.parent).open(path.name)  # read in memory: no member is ever written to disk
    return gzip.open(path) if is_gz(path) else open(path, "rb")


def _first_bad_byte(path: Path) -> str:
    offset = 0
    with _binary(path) as file:
        for line in file:
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return f"{error.reason} at byte {offset + error.start}"
            offset += len(line)
    return "it changed while it was read"

"""Files of records: .json, .jsonl, .csv and .tsv, plain or .gz. What a record holds: data/records.py.

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
from typing import Any, TextIO, TypeVar

from cli import Mistake, listed
from data.download import find, in_archive

T = TypeVar("T")
Where = str  # FILE:LINE, or FILE: record N
Read = Callable[[Where, Any], T]  # what to make of a record
Reader = Callable[[Path, dict[str, str]], Iterator[tuple[Where, Any]]]  # a file's records, one after another

CONVERSATION = ("messages", "conversations")  # either holds all of it, as a list
COLUMNS = {  # of each kind of file
    "text": ("text",),
    "instructions": ("instruction", "input", "output", *CONVERSATION),
    "pairs": ("instruction", "input", "chosen", "rejected", "prompt", *CONVERSATION),
    "labelled": ("text", "second", "label"),
    "tagged": ("words", "tags"),
}


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


def all_records(
    path: str | Path, kind: str, columns: str, read: Read[T], skip_bad: bool, reader: Reader | None = None
) -> list[T]:
    """All of read_records at once, of a file or of a corpus by name; with skip_bad, bad records are left out, and how
    many they are is printed."""
    file, columns = find(path, kind, columns)
    skipped = Skipped() if skip_bad else None
    records = list(read_records(file, kind, columns, read, skipped, reader))
    if skipped and (sentence := skipped.sentence(path)):
        print(sentence)
    return records


def read_records(
    path: Path, kind: str, columns: str, read: Read[T], skipped: Skipped | None = None, reader: Reader | None = None
) -> Iterator[T]:
    """What `read` makes of each record, its columns under our names; one in memory at a time, but in .json all.
    reader: of a file in none of the four formats.

    Raises Mistake for a file of another kind or broken as a whole, and for the first bad record; with `skipped`, bad
    records are added there instead.
    """
    wanted = column_map(columns, COLUMNS[kind])
    reader = reader or READERS.get(kind_of(path))
    if reader is None:
        raise Mistake(f"{path} must be a .json, .jsonl, .csv or .tsv, or one of these and .gz, and be named so")
    for where, record in reader(path, wanted):
        if skipped:
            skipped.n_records += 1
        try:
            if isinstance(record, BadRecord):
                raise record
            value = read(where, _renamed(where, record, wanted))
        except BadRecord as error:
            if not skipped:
                raise
            skipped.n_bad += 1
            skipped.first = [*skipped.first, str(error)][:3]
        else:
            yield value


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
        if theirs.startswith("="):
            renamed[ours] = theirs[1:]
        elif theirs in record:
            renamed[ours] = record[theirs]
        else:
            there = listed(map(repr, record))
            raise BadRecord(f"{where} has no column {theirs!r} to take as {ours}; there are {there}")
    return renamed


# ---- the formats -----------------------------------------------------------------------------------------------------
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
        if not re.match(r"\s*\{.*\}\s*\n", text):
            raise Mistake(f"{path} is not JSON: {error}") from None
        yield from _from_jsonl(path, wanted)  # the first line is an object: a record a line, whatever it is named
        return
    if isinstance(records, dict):
        lists = [name for name, value in records.items() if isinstance(value, list) and name not in CONVERSATION]
        if lists:
            raise Mistake(f"{path} is an object: put the list that is its {lists[0]!r} into a file of its own")
        records = [records]  # a file of one record
    if not isinstance(records, list):
        raise Mistake(f"{path} must hold a JSON list of records, not {json.dumps(records)[:40]}")
    for number, record in enumerate(records, 1):
        yield f"{path}: record {number}", record


def _from_table(path: Path, wanted: dict[str, str]) -> Iterator[tuple[Where, Any]]:
    """Rows of a .csv or .tsv as {column: text}; where all that is wanted are numbers, columns are numbered and the
    first row counts.

    A misplaced quote breaks the file, not a row: it hides where the row ends. But in a .tsv that Excel did not write, a
    quote is a character like any other.
    """
    is_tsv = kind_of(path) == ".tsv"
    delimiter = "\t" if is_tsv else ","
    quoting: Any = csv.QUOTE_NONE if is_tsv and not _is_as_excel(path) else csv.QUOTE_MINIMAL
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
                if not row:
                    continue
                if not names and not numbered:
                    names = _names(where, row, "tabs" if is_tsv else "commas")
                    continue
                names = names or [str(n) for n in range(1, len(row) + 1)]
                if len(row) != len(names):
                    yield where, BadRecord(f"{where} has {len(row)} columns, but the first row has {len(names)}")
                else:
                    yield where, dict(zip(names, row, strict=True))
        except csv.Error as error:
            raise Mistake(f"{path}:{line} is not a row of a table: {error}") from None


def _names(where: Where, row: list[str], between: str) -> list[str]:
    """Of the columns, from a table's first row. between: what stands between two."""
    names = [name.strip() for name in row]
    if len(set(names)) < len(names):
        raise Mistake(f"{where} names a column twice: {listed(map(repr, names))}")
    if len(row) == 1 and re.search("[,;\t]", row[0]):
        raise Mistake(f"{where} has one column, {row[0][:40]!r}: there must be {between} between columns")
    return names


FIELD = r'(?:"[^"]*(?:""[^"]*)*"|[^"\t]*)'  # in quotes, each quote inside doubled; or without any
ROW = re.compile(rf"(?:{FIELD}\t)*{FIELD}")


def _is_as_excel(path: Path) -> bool:
    """Whether there are quotes, and all of them stand around a whole field or are doubled inside it; and says so."""
    row: list[str] = []  # the lines of one: inside quotes it goes on
    n_quotes = 0
    with opened(path, newline="") as file:
        for line in file:
            row.append(line)
            n_quotes += line.count('"')
            if n_quotes % 2 == 0:
                if not ROW.fullmatch("".join(row).rstrip("\r\n")):
                    return False
                row = []
    is_as_excel = n_quotes > 0 and not row
    if is_as_excel:
        print(f"{path}: quotes around a field are taken off, as Excel writes them")
    return is_as_excel


READERS: dict[str, Reader] = {".json": _from_json, ".jsonl": _from_jsonl, ".csv": _from_table, ".tsv": _from_table}


# ---- files -----------------------------------------------------------------------------------------------------------


def kind_of(path: Path) -> str:
    """The suffix by which a file is read, .gz aside. What has none, in an archive, is a table as in a .tsv."""
    suffix = (Path(path.stem).suffix if is_gz(path) else path.suffix).lower()
    return {"": ".tsv" if in_archive(path) else "", ".ndjson": ".jsonl"}.get(suffix, suffix)


def is_gz(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


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

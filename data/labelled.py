"""Texts with a label, and sentences in which each word has a tag: read from files, and made into examples.

    --labelled   text and label, or text, second and label: .json, .jsonl, .csv, .tsv (data/formats.py)
    --tagged     words and tags, lists or texts with spaces between: .json, .jsonl, .csv; any other file has columns as
                 CoNLL's: a line a word, which comes first in it and its tag last, and a blank line after each sentence

The target is a class. It stands at the last token of the text, or of each word, and only there is anything graded:
under a causal mask this token alone has read all of the text. BERT was made to say it of a text at [CLS], its first.
"""

import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tiktoken

from cli import Mistake, listed
from data.examples import Example, Reading, n_to_judge_by, refuse_too_few
from data.formats import BadRecord, Where, all_records, kind_of, opened
from data.records import require, shown, text_of
from data.wordpiece import WordPiece, frame
from model.head import Classes


class Record(NamedTuple):
    pieces: list[str]  # a text, or a text and its second; or the words of a sentence
    labels: list[str]  # of the text, one; or the tag of each word


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_labelled(path: str | Path, columns: str = "", skip_bad: bool = False) -> list[Record]:
    """All texts of a file, or of a corpus by name, each with its label; otherwise as read_instructions."""
    return all_records(path, "labelled", columns, _labelled, skip_bad)


def read_tagged(path: str | Path, columns: str = "", skip_bad: bool = False) -> list[Record]:
    """All sentences of a file, each word with its tag; otherwise as read_labelled."""
    reader = None if kind_of(Path(path)) in (".json", ".jsonl", ".csv") else _from_conll
    if reader and columns:
        raise Mistake(f"--columns is for .json, .jsonl and .csv: in {path} a word comes first and its tag last")
    return all_records(path, "tagged", columns, _tagged, skip_bad, reader)


def _labelled(where: Where, record: Any) -> Record:
    require(where, record, "text", "label")
    # white space at its ends tells nothing; but the last token would be made of it
    pieces = [text_of(where, key, record[key]).strip() for key in ("text", "second") if record.get(key) is not None]
    if not all(pieces):
        raise BadRecord(f"{where} has an empty text, in which there is no last token to be graded: leave it out")
    return Record(pieces, [_name(where, "label", record["label"])])


def _tagged(where: Where, record: Any) -> Record:
    require(where, record, "words", "tags")
    words, tags = (_list(where, key, record[key]) for key in ("words", "tags"))
    if not words:
        raise BadRecord(f"{where} has no words: give it some, or leave it out")
    if len(words) != len(tags):
        raise BadRecord(f"{where} has {len(words)} words and {len(tags)} tags: it must have a tag for each word")
    if not all(text_of(where, "words", word).strip() for word in words):
        raise BadRecord(f"{where} has an empty word, in which there is no last token to be graded")
    return Record(words, [_name(where, "tags", tag) for tag in tags])


def _list(where: Where, key: str, value: Any) -> list[Any]:
    if not isinstance(value, str | list):
        raise BadRecord(f'{where}: "{key}" is {shown(value)}, expected a list, or a text with spaces between')
    return value.split() if isinstance(value, str) else value


def _name(where: Where, key: str, value: Any) -> str:
    """A class may be a whole number or true and false in JSON: its name is as JSON writes it."""
    name = json.dumps(value) if isinstance(value, int) else text_of(where, key, value).strip()
    if not name:
        raise BadRecord(f'{where}: "{key}" is empty, expected the name of a class')
    return name


def _from_conll(path: Path, _: dict[str, str]) -> Iterator[tuple[Where, Any]]:
    """Each sentence, and where it begins. Lines with -DOCSTART-, which begin a document, are passed over."""
    with opened(path) as file:
        lines = [(n, line) for n, line in enumerate(file, 1) if not line.startswith("-DOCSTART-")]
    if len(lines) > 1 and all(line.strip() for _, line in lines):
        raise Mistake(
            f"{path} has no blank line, so its {len(lines):,} words are one sentence: put one after each sentence"
        )
    for is_sentence, some in groupby(lines, key=lambda line: bool(line[1].strip())):
        if is_sentence:
            yield _sentence(path, list(some))


def _sentence(path: Path, lines: Sequence[tuple[int, str]]) -> tuple[Where, Any]:
    where = f"{path}:{lines[0][0]}"
    rows = [[cell.strip() for cell in line.split("\t" if "\t" in line else None)] for _, line in lines]
    if short := [row for row in rows if len(row) < 2]:
        return where, BadRecord(f"{where}: the word {short[0][0]!r} has no tag: its line must have two columns or more")
    return where, {"words": [row[0] for row in rows], "tags": [row[-1] for row in rows]}


# ---- examples --------------------------------------------------------------------------------------------------------


def text_tokens(pieces: Sequence[str], tokenizer: tiktoken.Encoding, room: int) -> tuple[list[int], bool]:
    """The ids of a text, or of two with a line break between them, or what BERT puts between and around them; and
    whether they are cut to fit the room: from the end, and of two texts from the longer one."""
    before, between, after = frame(tokenizer)
    room -= len(before) + len(after)
    first, *others = (tokenizer.encode_ordinary(piece) for piece in pieces)
    if not others:
        return before + first[:room] + after, len(first) > room
    left, second = room - len(between), others[0]
    is_cut = len(first) + len(second) > left
    first = first[: max(left - len(second), left // 2)]
    return before + (first + between + second[: max(1, left - len(first))])[:room] + after, is_cut


def word_tokens(words: Sequence[str], tokenizer: tiktoken.Encoding) -> list[list[int]]:
    """The ids of each word, the space before it among them: encoded apart, so that no two words share a token. Of a
    word that BERT's cleaning leaves nothing of, [UNK]."""
    nothing = [tokenizer.unk] if isinstance(tokenizer, WordPiece) else []
    return [tokenizer.encode_ordinary(" " * (n > 0) + word) or nothing for n, word in enumerate(words)]


def graded_at(at: Sequence[int] | np.ndarray, tokens: Sequence[int]) -> Example:
    """The tokens, of which those at the given places alone are graded, each for a class that is not known yet. With
    positions, by which a model that sees both sides tells an example from its padding."""
    graded = np.zeros(len(tokens), bool)
    graded[at] = True
    return Example(np.array(tokens), np.zeros(len(tokens), np.int64), graded, np.arange(len(tokens)))


def to_classify(pieces: Sequence[str], each: str, tokenizer: tiktoken.Encoding, room: int) -> tuple[Example, bool]:
    """An example whose classes are not known yet, and whether it was cut to fit the room. Of words only those that fit
    as a whole are graded."""
    before, _, after = frame(tokenizer)
    if each == "text":
        tokens, is_cut = text_tokens(pieces, tokenizer, room)
        return graded_at([0 if before else len(tokens) - 1], tokens), is_cut
    words = word_tokens(pieces, tokenizer)
    tokens, fit = before + [token for word in words for token in word], room - len(after)
    last = len(before) + np.cumsum([len(word) for word in words]) - 1  # where each word ends
    return graded_at(last[last < fit], tokens[:fit] + after), len(tokens) > fit


def from_labelled(
    labelled: str, tagged: str, how: Reading, known: Classes | None = None
) -> tuple[list[Example], list[Example], Classes]:
    """The examples to learn from, a random share held_out to judge by, the same in every run, and the classes.

    labelled, tagged: a file of the one or of the other kind, the other name empty; known: the classes of a model that
    has learned some already, which keep their order. What is longer than the block is cut, and counted. Prints how many
    there are of each class. Raises Mistake when nothing is left to learn from or to judge by, for a single class, for a
    label that is not known or is only held out, and for a malformed file.
    """
    path, each = (labelled, "text") if labelled else (tagged, "word")
    if known and known.each != each:
        right = {"text": "--labelled", "word": "--tagged", "response": "--pairs"}[known.each]
        raise Mistake(f"{path}: this model gives a class to each {known.each}, not to each {each}: {right} is for it")
    records = (read_labelled if labelled else read_tagged)(path, how.columns, how.skip_bad_records)
    parts = to_learn_and_to_judge(records, how.held_out)
    names = known.names if known else sorted({label for record in parts[0] for label in record.labels})
    if unknown := sorted({label for record in records for label in record.labels} - set(names)):
        why = "but only among what is held out: give more examples of it, or another --held-out, for it to be learned"
        if known:
            why = f"which this model has never seen in training: it knows {listed(names)}"
        raise Mistake(f"{path} has the label {unknown[0]!r}, {why}")
    if len(names) == 1:
        raise Mistake(f"{path} has one class only, {names[0]!r}: there is nothing to tell apart; add texts of another")

    classes = Classes(names, each)
    (train, n_cut), (judge, n_cut_of_judge) = (examples_of(part, classes, how) for part in parts)
    counts = [Counter(int(c) for example in some for c in example.targets[example.graded]) for some in (train, judge)]
    of_each = ", ".join(f"{name} {counts[0][n]:,} and {counts[1][n]:,}" for n, name in enumerate(names))
    print(f"{path}: {len(train):,} {'texts' if labelled else 'sentences'}, and {len(judge):,} held out: {of_each}")
    if n_cut := n_cut + n_cut_of_judge:
        graded = "the first" if frame(how.tokenizer)[0] else "the last token that is left"
        lost = "the words that do not fit are not graded" if tagged else f"graded is {graded}"
        print(f"{path}: {n_cut:,} of {len(records):,} are longer than --block-size {how.block_size}: cut there, {lost}")
    refuse_too_few(path, "examples", train, judge, how.held_out)
    return train, judge, classes


def to_learn_and_to_judge(records: Sequence[Record], held_out: float) -> tuple[list[Record], list[Record]]:
    """The records, shuffled, without and with a share held out: whatever --seed is, all runs hold out the same ones."""
    shuffled = random.Random(0).sample(records, len(records))
    n_held_out = n_to_judge_by(held_out, len(records))
    return shuffled[:-n_held_out], shuffled[-n_held_out:]


def examples_of(records: Sequence[Record], classes: Classes, how: Reading) -> tuple[list[Example], int]:
    """Those in which something is graded, and how many of the records are cut."""
    number, n_cut = {name: n for n, name in enumerate(classes.names)}, 0
    examples: list[Example] = []
    for record in records:
        example, is_cut = to_classify(record.pieces, classes.each, how.tokenizer, how.block_size)
        n_graded, n_cut = int(example.graded.sum()), n_cut + is_cut
        example.targets[example.graded] = [number[label] for label in record.labels[:n_graded]]
        if n_graded:
            examples.append(example)
    return examples, n_cut

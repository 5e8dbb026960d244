"""Text of any size and kind: read in pieces, tokenised once, memory-mapped.

A text is a file, plain or .gz; or a folder of .txt and .txt.gz files; or a file of records (data/formats.py), of which
the column "text" counts; or a corpus by name (data/public.py). Each file or record is a document, followed by an
end-of-text.
"""

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tiktoken

from cli import Mistake, listed
from data.download import find
from data.files import bytes_bar, cached, made_by_rank_0, replacing, sha256_of, write_whole
from data.formats import READERS, Skipped, is_gz, kind_of, opened, read_records
from data.records import document

Piece = tuple[str, bool]  # some text, and whether a document ends with it


def read_text(path: str | Path) -> Iterator[str]:
    """A UTF-8 file in pieces of a million characters and the rest of their line, so that any size fits in memory."""
    with opened(Path(path)) as file:
        while piece := file.read(2**20):
            yield piece + file.readline(2**20)


def pieces_of(files: Iterable[Path], columns: str = "", skipped: Skipped | None = None) -> Iterator[Piece]:
    """All documents of the files, one after another, in pieces of at most about a million characters; with `skipped`,
    bad records are left out and added there."""
    for file in files:
        if kind_of(file) in READERS:
            for text in read_records(file, "text", columns, document, skipped):
                yield text, True
        elif columns or skipped:
            flag = "--columns" if columns else "--skip-bad-records"
            raise Mistake(f"{flag} is for .json, .jsonl, .csv and .tsv: {file} is plain text")
        else:
            for text in read_text(file):
                yield text, False
            yield "", True


def files_of(source: str | Path, columns: str = "") -> tuple[list[Path], str]:
    """The file of a text; or of a folder all .txt and .txt.gz in it and in its folders, sorted by path, but hidden
    ones. And their columns. Prints what is chosen from a folder, and what is read as plain text despite its name."""
    path, columns = find(source, "text", columns)
    if path.is_dir():
        inside = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
        read = [n for n in inside if n.lower().endswith((".txt", ".txt.gz")) and "/." not in f"/{n}"]
        if not read:
            raise Mistake(f"{path} is a folder without a .txt or .txt.gz file")
        left_out = sorted(set(inside) - set(read))
        examples = f"; left out: {listed(left_out, 3)}" if left_out else ""
        print(f"{path}: {len(read):,} of {len(inside):,} files are read{examples}")
        return [path / name for name in read], columns
    if not path.is_file():
        raise Mistake(f"{path} is not a file")  # nor is a pipe, which cannot be read twice
    if kind_of(path) not in (*READERS, "", ".txt"):
        print(f"{path}: read as plain text")
    return [path], columns


def token_file(
    source: str | Path, tokenizer: tiktoken.Encoding, columns: str = "", skip_bad: bool = False
) -> np.ndarray:
    """The text's ids, (L,), an end-of-text after each document, memory-mapped: tokenised once, then kept in the cache.

    Files there are named by a hash of the text, the tokenizer and the columns. With skip_bad, bad records are left out,
    counted and printed, each time: what is said of them is kept beside the ids.
    """
    files, columns = files_of(source, columns)
    contents = [(kind_of(file) if kind_of(file) in READERS else "text", sha256_of(file)) for file in files]
    skipping = [str(source), *map(str, files)] if skip_bad else []  # which what is said of bad records names
    key = hashlib.sha256(repr((tokenizer.name, columns, contents, *skipping)).encode()).hexdigest()[:32]
    dtype = np.dtype(np.uint16 if tokenizer.n_vocab <= 2**16 else np.uint32)
    tokens = cached(f"{key}.{dtype.name}")
    said = tokens.with_suffix(".skipped")
    if not (tokens.exists() or made_by_rank_0(tokens)):
        skipped = Skipped() if skip_bad else None
        is_plain = all(not is_gz(file) and kind_of(file) not in READERS for file in files)
        total = sum(file.stat().st_size for file in files) if is_plain else None  # bytes of text, where known
        with replacing(tokens) as out, bytes_bar(f"tokenising {Path(source).name}", total) as bar:
            pieces = pieces_of(files, columns, skipped)
            for ids, n_bytes in encode(pieces, tokenizer, threads=min(8, os.cpu_count() or 1)):
                out.write(ids.astype(dtype).data)  # tofile would not say that the disk is full
                bar.update(n_bytes)
            if skipped:
                write_whole(said, skipped.sentence(source).encode(errors="replace"))
            if not out.tell():
                raise Mistake(f"{source} has no records")
    if skip_bad and (sentence := said.read_text(encoding="utf-8")):
        print(sentence)
    return np.memmap(tokens, dtype, mode="r")


def encode(pieces: Iterable[Piece], tokenizer: tiktoken.Encoding, threads: int) -> Iterator[tuple[np.ndarray, int]]:
    """The pieces' ids, (n,), in order, and how many bytes of text they are: about a megabyte at a time.

    Threads gain because tiktoken encodes without holding Python's lock; only a few megabytes wait for their turn.
    """
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[tuple[np.ndarray, int]]] = deque()
        for some in _megabytes(pieces):
            waiting.append(pool.submit(_encode, some, tokenizer))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _megabytes(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Short documents together, so that a thread has enough to do."""
    some: list[Piece] = []
    n_characters = 0
    for piece in pieces:
        some.append(piece)
        n_characters += len(piece[0])
        if n_characters >= 2**20:
            yield some
            some, n_characters = [], 0
    if some:
        yield some


def _encode(pieces: Sequence[Piece], tokenizer: tiktoken.Encoding) -> tuple[np.ndarray, int]:
    ids = []
    for text, is_end in pieces:
        ids.append(tokenizer.encode_to_numpy(text, disallowed_special=()))  # special tokens in it are plain text
        if is_end:
            ids.append(np.array([tokenizer.eot_token], np.uint32))
    return np.concatenate(ids), sum(len(text.encode()) for text, _ in pieces)

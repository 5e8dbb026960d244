"""Text files of any size: read in pieces, tokenised once, memory-mapped."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tiktoken

from run.config import Mistake


def read_text(path: str | Path) -> Iterator[str]:
    """A UTF-8 file in pieces of a million characters and the rest of their line, so that any size fits in memory."""
    with open(path, encoding="utf-8-sig") as file:
        try:
            while piece := file.read(2**20):
                yield piece + file.readline(2**20)
        except UnicodeDecodeError:
            raise Mistake(f"{path} is not UTF-8 text: {_first_bad_byte(path)}") from None


def _first_bad_byte(path: str | Path) -> str:
    offset = 0
    with open(path, "rb") as file:
        for line in file:
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return f"{error.reason} at byte {offset + error.start}"
            offset += len(line)
    return "it changed while it was read"


def token_file(path: str | Path, tokenizer: tiktoken.Encoding) -> np.ndarray:
    """The text's ids and an end-of-text, (L,), memory-mapped: tokenised once, then kept in the cache folder.

    That is $FINETUNING_CACHE, or ~/.cache/finetuning; files there are named by a hash of the text and the tokenizer.
    """
    if Path(path).exists() and not Path(path).is_file():
        raise Mistake(f"{path} is not a file")  # nor is a pipe, which cannot be read twice
    digest = hashlib.sha256(tokenizer.name.encode())
    with open(path, "rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    dtype = np.uint16 if tokenizer.n_vocab <= 2**16 else np.uint32
    folder = Path(os.environ.get("FINETUNING_CACHE") or Path.home() / ".cache" / "finetuning")
    cached = folder / f"{digest.hexdigest()[:32]}.{np.dtype(dtype).name}"
    if not cached.exists():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = cached.with_suffix(f".{os.getpid()}")
        try:
            with open(unfinished, "wb") as file:
                for text in read_text(path):
                    np.array(tokenizer.encode_ordinary(text), dtype).tofile(file)
                np.array([tokenizer.eot_token], dtype).tofile(file)
            os.replace(unfinished, cached)
        finally:
            unfinished.unlink(missing_ok=True)
    return np.memmap(cached, dtype, mode="r")

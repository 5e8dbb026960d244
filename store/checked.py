"""Files of tensors that are checked before a byte of them is believed.

It is what torch.save writes, a zip archive, whose comment is the sha256 of all before: one flipped bit, and the file is
refused. Only tensors and plain types are in it, so that nothing of a stranger's file is ever run.
"""

import hashlib
import os
import struct
from pathlib import Path
from typing import IO, Any

import torch

from cli import Mistake
from data.files import replacing

DIGEST = 64  # letters of a sha256; the two bytes before a zip's comment are its length


def write(path: Path, contents: dict[str, Any]) -> int:
    """Writes tensors and plain types, and returns the file's size in bytes. Raises OSError, the old file intact."""
    with replacing(path) as file:
        _save(contents, file)
        file.seek(-2, os.SEEK_END)
        file.truncate()
        digest = _sha256(file, file.tell())
        file.write(struct.pack("<H", DIGEST) + digest.encode())
    return path.stat().st_size


def _save(contents: dict[str, Any], file: IO[bytes]) -> None:
    """torch.save, which hides behind an error of its own what the disk, or a signal, has said."""
    try:
        torch.save(contents, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError | KeyboardInterrupt | SystemExit):
            raise error.__context__ from None
        raise


def read(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    """What was written, on the CPU. Raises a Mistake for any other file, a damaged one, or one without the keys."""
    try:
        with open(path, "rb") as file:
            start, size = file.read(40), path.stat().st_size
            if not start.startswith(b"PK"):
                raise Mistake(f"{path} cannot be read as a checkpoint: it {_looks_like(start, size)}")
            digest = _sha256(file, max(0, size - DIGEST - 2))
            if file.read() != struct.pack("<H", DIGEST) + digest.encode():
                raise Mistake(f"{path} is damaged: it does not have the checksum at its end; take another copy")
            file.seek(0)
            contents = torch.load(file, map_location="cpu", weights_only=True)
    except (Mistake, OSError):
        raise
    except Exception as error:  # whatever a foreign file makes the reader raise
        raise Mistake(f"{path} cannot be read as a checkpoint: {first_line(error)}") from error
    if not isinstance(contents, dict) or not set(keys) <= set(contents):
        raise Mistake(f"{path} is not a checkpoint of this kind: it must hold {', '.join(keys)}")
    return contents


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _looks_like(start: bytes, size: int) -> str:
    if not start:
        return "is empty"
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer: fetch the file with git lfs pull"
    if start.lstrip().startswith(b"<"):
        return "is a web page"
    return f"is {size:,} bytes of another kind"


def _sha256(file: IO[bytes], n: int) -> str:
    """Of the file's first n bytes, which are then read."""
    file.seek(0)
    digest = hashlib.sha256()
    while n > 0 and (piece := file.read(min(n, 2**20))):
        digest.update(piece)
        n -= len(piece)
    return digest.hexdigest()

"""Files that a run cannot lose: replaced whole, and checked before a byte of them is believed.

A file is written beside its old version, brought to the disk, and only then put in its place: a process that is killed,
or a disk that is full, leaves the old version as it was. It is what torch.save writes, a zip archive, whose comment is
the sha256 of all before: one flipped bit, and it is refused.
"""

import hashlib
import os
import struct
from pathlib import Path
from typing import Any

import torch

from run.config import Mistake

CHECKED: dict[tuple[str, int, int], str] = {}  # sha256 of files that this process has read: path, size, time
DIGEST = 64  # letters of a sha256; the two bytes before a zip's comment are its length


def write(path: Path, contents: dict[str, Any]) -> int:
    """Writes tensors and plain types, and returns the file's size in bytes. Raises OSError, the old file intact."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        with open(unfinished, "w+b") as file:
            _save(contents, file)
            file.seek(-2, os.SEEK_END)
            file.truncate()
            digest = _sha256(file, file.tell())
            file.write(struct.pack("<H", DIGEST) + digest.encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        bring_to_disk(path.parent)  # the new name, too
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # a full disk does not say which file
    finally:
        unfinished.unlink(missing_ok=True)
    return path.stat().st_size


def _save(contents: dict[str, Any], file: Any) -> None:
    """torch.save, which hides behind an error of its own what the disk, or a signal, has said."""
    try:
        torch.save(contents, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError | KeyboardInterrupt | SystemExit):
            raise error.__context__ from None
        raise


def bring_to_disk(path: Path) -> None:
    """fsync of a file, or of a folder where the system has that, by its name."""
    if path.is_file() or os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read(path: Path, keys: tuple[str, ...], device: str = "cpu") -> dict[str, Any]:
    """What was written, on the device ("meta": shapes alone). Raises a Mistake for any other file, or a damaged one."""
    try:
        with open(path, "rb") as file:
            start, size = file.read(40), path.stat().st_size
            if not start.startswith(b"PK"):
                raise Mistake(f"{path} cannot be read as a checkpoint: it {_looks_like(start, size)}")
            end = max(0, size - DIGEST - 2)
            known_as = (str(path.resolve()), size, path.stat().st_mtime_ns)
            digest = CHECKED.get(known_as) or _sha256(file, end)
            file.seek(end)
            if file.read() != struct.pack("<H", DIGEST) + digest.encode():
                raise Mistake(f"{path} is damaged: it does not have the checksum at its end; take another copy")
            CHECKED[known_as] = digest
            file.seek(0)
            contents = torch.load(file, map_location=device, weights_only=True)
    except (Mistake, OSError):
        raise
    except Exception as error:  # whatever a foreign file makes the reader raise
        raise Mistake(f"{path} cannot be read as a checkpoint: {first_line(error)}") from error
    if not isinstance(contents, dict) or set(contents) != set(keys):
        raise Mistake(f"{path} is not a checkpoint of this kind: it must hold {', '.join(keys)}")
    return contents


def clean(folder: Path) -> None:
    """Removes what a process that was killed has left unfinished."""
    for unfinished in folder.glob("*.unfinished"):
        unfinished.unlink(missing_ok=True)


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


def _sha256(file: Any, n: int) -> str:
    """Of the file's first n bytes, which are then read."""
    file.seek(0)
    digest = hashlib.sha256()
    while n > 0 and (piece := file.read(min(n, 2**20))):
        digest.update(piece)
        n -= len(piece)
    return digest.hexdigest()

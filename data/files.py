"""Files that cannot be lost or mistaken: replaced whole, known by their hash, and a folder that one run alone holds."""

import errno
import functools
import hashlib
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tqdm import tqdm

from cli import Mistake

UNFINISHED = ".unfinished"


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new file to write, which takes the path's place when the with block ends well: a process that is killed, or a
    disk that is full, leaves the old one as it was. Raises OSError that names the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # a random name: two containers on one disk can have the same process id
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(8)}{UNFINISHED}")
    try:
        with open(unfinished, "w+b") as file:
            yield file
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


def write_whole(path: Path, content: bytes) -> None:
    """All of the content or nothing: another process, or the next one, never sees half of it."""
    with replacing(path) as file:
        file.write(content)


def bring_to_disk(path: Path) -> None:
    """fsync of a file, or of a folder where the system has that, by its name."""
    if path.is_file() or os.name == "posix":
        descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)  # Windows wants to be able to write
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def clean(folder: Path) -> None:
    """Removes what a process that was killed has left unfinished in a folder, and in those in it, that nobody else
    writes to."""
    for unfinished in folder.rglob(f"*{UNFINISHED}"):
        unfinished.unlink(missing_ok=True)


def lock(folder: Path) -> IO[bytes]:
    """Makes the folder, if need be, this process's own until what is returned is closed, or the process ends.

    Raises Mistake if another process has it: two runs that write to one folder would mix.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = open(folder / ".lock", "ab")  # noqa: SIM115, it stays open
    try:
        if os.name == "posix":
            import fcntl

            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except OSError as error:  # a disk without locks has none to offer: the file stays open all the same
        if error.errno in (errno.EACCES, errno.EAGAIN):
            file.close()
            raise Mistake(f"another run is writing to {folder} right now: give another --out, or wait") from None
    return file


# ---- the cache -------------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where downloads and tokenised texts are kept: $FINETUNING_CACHE, or ~/.cache/finetuning."""
    try:
        return Path(os.environ.get("FINETUNING_CACHE") or "~/.cache/finetuning").expanduser()
    except RuntimeError:  # there is no home
        return temporary_cache("a home")


def cached(*parts: str) -> Path:
    """A file of the cache, where it is or where it can be made: if the cache cannot be written, in a temporary one."""
    path = cache_folder().joinpath(*parts)
    # os.path: a folder that one may not even look into is no error there
    there = next(folder for folder in path.parents if os.path.exists(folder))
    if os.path.exists(path) or (os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK)):
        return path
    return temporary_cache(f"a cache that can be written, as {cache_folder()} cannot").joinpath(*parts)


@functools.cache  # it is said once
def temporary_cache(lacking: str) -> Path:
    """The same for all processes of a user, and no other user's."""
    folder = Path(tempfile.gettempdir(), f"finetuning-cache-{getattr(os, 'getuid', int)()}")
    print(f"for lack of {lacking}, {folder} is the cache")
    return folder


def made_by_rank_0(path: Path) -> bool:
    """False for the first process on a machine, which makes the file; the others that torchrun has started wait until
    it is there."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or int(os.environ.get("LOCAL_RANK", 0)) == 0:
        return False
    while not path.exists():
        time.sleep(0.2)
    return True


def sha256_of(path: Path) -> str:
    """The file's sha256. It is remembered by path, size and time: a file of many GB is not read anew at each start."""
    stat = path.stat()
    # os.fsencode: a path need not be Unicode, and in the C locale is not where it could be
    known_as = hashlib.sha256(os.fsencode(path.resolve()) + f" {stat.st_size} {stat.st_mtime_ns}".encode())
    remembered = cached("hashes", known_as.hexdigest()[:32])
    if remembered.exists():
        return remembered.read_text(encoding="utf-8")
    digest = hashlib.sha256()
    with open(path, "rb") as file, bytes_bar(f"reading {path.name}", stat.st_size) as bar:
        while piece := file.read(2**20):
            digest.update(piece)
            bar.update(len(piece))
    is_old = time.time_ns() - stat.st_mtime_ns > 2 * 10**9  # a new file may change again within a tick of its clock
    if is_old and stat.st_size >= 2**20:  # bytes; a smaller one is read in no time
        write_whole(remembered, digest.hexdigest().encode())
    return digest.hexdigest()


def same_data(one: str, other: str) -> bool:
    """Whether two names are of one file or folder, or of two files with the same content."""
    a, b = Path(one), Path(other)
    if one == other or a.resolve() == b.resolve():
        return True
    return a.is_file() and b.is_file() and a.stat().st_size == b.stat().st_size and sha256_of(a) == sha256_of(b)


def bytes_bar(title: str, total: int | None, start: int = 0) -> tqdm:
    """A progress bar in bytes, for what takes longer than a second at a terminal."""
    sizes = {"unit": "B", "unit_scale": True, "unit_divisor": 1000}
    return tqdm(desc=title, total=total, initial=start, delay=1, disable=None, **sizes)

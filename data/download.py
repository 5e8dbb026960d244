"""Public files by name: downloaded once into the cache folder, checked by their sha256, never taken for another file.

A file that cannot be downloaded may be fetched elsewhere and put where the message says; it is checked all the same.
"""

import errno
import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from cli import Mistake, listed
from data.files import bytes_bar, cached, lock, made_by_rank_0, sha256_of
from data.public import CORPORA, HUB, Public

WAITS = (1, 2, 4, 8)  # seconds before the second try, the third and so on


def find(source: str | Path, kind: str, columns: str = "") -> tuple[Path, str]:
    """The path of a file or folder, or else of a public corpus by name, downloaded if need be; and its columns.

    kind: text, instructions, labelled, tagged or pairs. columns: those that the user gave, which come before a
    corpus's own. A file in an archive has a path too: NAME.zip/MEMBER. Raises FileNotFoundError, and Mistake for a
    corpus of another kind.
    """
    path, name = Path(source), str(source)
    if path.is_file() and path.stat().st_size == 0:
        raise Mistake(f"{path} is empty")
    if path.exists() or in_archive(path):
        return path, columns
    if name in CORPORA:
        corpus = CORPORA[name]
        if kind not in corpus.kinds():
            raise Mistake(f"{name} is for --{corpus.kind}, not for --{kind}")
        own = corpus.as_labelled if kind == "labelled" else corpus.columns
        return fetch(corpus, name) / corpus.member, columns or own
    also = ""
    if not {"/", "\\", "."} & set(name):
        also = f"; known by name, for --{kind}: {listed(n for n, corpus in CORPORA.items() if kind in corpus.kinds())}"
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT) + also, name)


def in_archive(path: Path) -> bool:
    return path.parent.suffix == ".zip" and path.parent.is_file()


def fetch(public: Public, name: str) -> Path:
    """The public file in the cache folder, downloaded if it is not there.

    Raises Mistake, which says what to put where by hand, if it cannot be downloaded or is not the file that it must be;
    OSError if it cannot be written.
    """
    # $HF_ENDPOINT is Hugging Face's own name for a mirror of it
    url = public.url.replace(HUB, (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/"))
    path = cached("downloads", name, public.url.rsplit("/", 1)[1])
    if not (path.exists() or made_by_rank_0(path)):
        _bring(url, public, name, path)  # and checks it
    elif wrong := _what_is_wrong(path, public):
        raise Mistake(f"{path} is not the file of {url}: {wrong}; delete it, or put the right one there")
    return path


def _bring(url: str, public: Public, name: str, path: Path) -> None:
    """Downloads the file, unless another process does so meanwhile."""
    size = f"{public.size:,} bytes" if public.size else "size not known"
    pinned = "not pinned to a revision and " if "/main/" in url and not public.sha256 else ""
    check = f"sha256 {public.sha256}" if public.sha256 else f"{pinned}no sha256 is known: it cannot be checked"
    print(f"downloading {name} from {url} (licence: {public.licence}; {size}; {check})", flush=True)
    try:
        with _own(path.parent):
            if not path.exists():
                _download(url, public, path)
    except _Failed as error:
        raise Mistake(f"{url} could not be downloaded: {error}; download it elsewhere and put it at {path}") from None
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # a full disk does not say which file


def _own(folder: Path) -> IO[bytes]:
    """The folder's lock: of two processes that download the same at once, one waits for the other."""
    is_told = False
    while True:
        try:
            return lock(folder)
        except Mistake:
            if not is_told:
                print(f"waiting for another process that is downloading to {folder}", flush=True)
            is_told = True
            time.sleep(1)


class _Failed(Exception):
    """A download failed for good; str() says why."""


class _Interrupted(_Failed):
    """A download failed in a way that another try may mend."""


def _download(url: str, public: Public, path: Path) -> None:
    """Begins once anew if what has come is another file."""
    part = path.with_name(path.name + ".part")
    for _ in range(2):
        _receive_all(url, part, public.size)
        wrong = _what_is_wrong(part, public)
        if not wrong:
            os.replace(part, path)
            return
        part.unlink()
    raise _Failed(wrong)


def _receive_all(url: str, part: Path, size: int | None) -> None:
    """Goes on where the last try ended, and waits longer after each failure."""
    for wait in (*WAITS, None):
        try:
            return _receive(url, part, size)
        except _Interrupted as error:
            if wait is None:
                raise
            print(f"{error}; trying again in {wait} s", flush=True)
            time.sleep(wait)


def _receive(url: str, part: Path, size: int | None) -> None:
    """Adds to the part what it lacks. size: bytes of the whole file, where known."""
    start = part.stat().st_size if part.exists() else 0
    if start and start == size:
        return  # all of it came, and then the process was killed
    headers = {"User-Agent": "finetuning-line-by-line"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the part is no beginning of the file
            part.unlink(missing_ok=True)
        can_mend = error.code in (416, 429) or error.code >= 500
        raise (_Interrupted if can_mend else _Failed)(f"the server said {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(f"no connection ({getattr(error, 'reason', error)})") from None
    except ValueError as error:  # $HF_ENDPOINT without https://
        raise _Failed(str(error)) from None
    with response:
        if response.status == 206 and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            part.unlink(missing_ok=True)
            raise _Interrupted("the server went on from another place than it was asked to")
        start = start if response.status == 206 else 0  # 200: a server that begins anew
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else size
        with open(part, "ab" if start else "wb") as file, bytes_bar(part.stem, total, start) as bar:
            for piece in _pieces(response):
                file.write(piece)
                bar.update(len(piece))
            file.flush()
            os.fsync(file.fileno())
    got = part.stat().st_size
    if total is not None and got != total:
        raise _Interrupted(f"the connection ended after {got:,} of {total:,} bytes")


def _pieces(response: http.client.HTTPResponse) -> Iterator[bytes]:
    try:
        while piece := response.read(2**18):
            yield piece
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(f"the connection broke ({error})") from None


def _what_is_wrong(path: Path, public: Public) -> str:
    """Why this is not the public file, or nothing."""
    with open(path, "rb") as file:
        beginning = file.read(24)
    found = f"{path.stat().st_size:,} bytes that begin with {beginning!r}"
    if public.sha256 is None:
        is_page = beginning.startswith((b"<", b"version https://git-lfs"))
        return f"it is a web page or a pointer, {found}" if is_page else ""
    digest = sha256_of(path)
    return "" if digest == public.sha256 else f"it is {found}, with sha256 {digest} where {public.sha256} is expected"

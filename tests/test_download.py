"""Public files, from a server that fails in every way: what arrives is the right file, or one sentence and no file."""

import errno
import hashlib
import io
import os
import re
import subprocess
import sys
import threading
import zipfile
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cli import Mistake
from data import download, files
from data.download import fetch, find
from data.files import made_by_rank_0, sha256_of
from data.public import CORPORA, WEIGHTS, Public
from data.records import read_instructions

ROOT = Path(__file__).parent.parent
CONTENT = bytes(range(256)) * 3000
PAGE = b"<!DOCTYPE html><html>Please sign in</html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 768000\n"


@dataclass
class Server:
    url: str = ""
    content: bytes = CONTENT
    failures: list = field(default_factory=list)  # of the next answers: a status, or after how many bytes to hang up
    knows_ranges: bool = True
    gives_length: bool = True
    seconds: float = 0.0  # before an answer
    asked: list = field(default_factory=list)  # the Range of each request

    def answer(self, handler):
        self.asked.append(handler.headers.get("Range"))
        threading.Event().wait(self.seconds)
        failure = self.failures.pop(0) if self.failures else None
        asked = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", "")) if self.knows_ranges else None
        start = int(asked[1]) if asked else 0
        status = failure if failure and failure < 1000 else 416 if start >= len(self.content) else 206 if asked else 200
        body = self.content[start:] if status < 300 else b""
        handler.send_response(status)
        if status == 206:
            handler.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        if self.gives_length:
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[:failure] if failure else body)


@pytest.fixture
def server():
    one = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            one.answer(self)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        one.url = f"http://127.0.0.1:{http.server_port}/of/the-file.bin"
        yield one
        http.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setenv("FINETUNING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def slept(monkeypatch):
    """Nobody waits; for how many seconds they would have is listed."""
    waits: list[float] = []
    monkeypatch.setattr(download.time, "sleep", waits.append)
    return waits


@pytest.fixture
def public(server):
    return Public("weights", "MIT", len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), server.url)


@pytest.fixture
def path(cache):
    return cache / "downloads" / "thing" / "the-file.bin"


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def beside(path):
    return [one.name for one in path.parent.iterdir() if one.name != ".lock"]


def refused(public, what):
    with pytest.raises(Mistake, match=re.escape(what)) as error:
        fetch(public, "thing")
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_a_file_is_announced_downloaded_once_and_then_read_from_the_cache(server, public, path, capsys):
    assert fetch(public, "thing") == path and path.read_bytes() == CONTENT
    said = capsys.readouterr().out
    assert said == f"downloading thing from {server.url} (licence: MIT; 768,000 bytes; sha256 {public.sha256})\n"
    assert fetch(public, "thing") == path and len(server.asked) == 1 and capsys.readouterr().out == ""
    assert beside(path) == ["the-file.bin"], "no other file is left beside it"


def test_a_broken_download_goes_on_where_it_ended(server, public, path, slept):
    server.failures = [300_000, 100_000]
    assert fetch(public, "thing").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-", "bytes=400000-"] and slept == [1, 2]


def test_of_two_processes_one_downloads_and_the_other_waits(server, public, path):
    server.seconds = 1.0
    code = f"from data.download import fetch; from data.public import Public; print(fetch({public}, 'thing'))"
    program = [sys.executable, "-c", code]
    both = [subprocess.Popen(program, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)]
    said = [one.communicate()[0].splitlines() for one in both]
    assert [lines[-1] for lines in said] == [str(path)] * 2 and path.read_bytes() == CONTENT
    assert server.asked == [None] and beside(path) == ["the-file.bin"]
    waited = f"waiting for another process that is downloading to {path.parent}"
    assert sorted(waited in lines for lines in said) == [False, True]


def test_a_disk_without_locks_stops_no_download(server, public, path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    assert fetch(public, "thing") == path and path.read_bytes() == CONTENT


def test_a_download_goes_on_after_the_process_was_killed(server, public, path):
    put(path.with_name("the-file.bin.part"), CONTENT[:700_000])
    assert fetch(public, "thing").read_bytes() == CONTENT and server.asked == ["bytes=700000-"]


def test_a_part_that_is_whole_already_is_not_downloaded_again(server, public, path):
    put(path.with_name("the-file.bin.part"), CONTENT)
    assert fetch(public, "thing").read_bytes() == CONTENT and server.asked == []


@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_a_part_that_is_too_long_is_started_again(server, public, path, size):
    put(path.with_name("the-file.bin.part"), CONTENT + b"more")
    assert fetch(replace(public, size=size), "thing").read_bytes() == CONTENT
    assert server.asked[-1] is None


def test_a_server_without_ranges_sends_the_whole_file_again(server, public):
    server.knows_ranges, server.failures = False, [300_000]
    assert fetch(public, "thing").read_bytes() == CONTENT and server.asked == [None, "bytes=300000-"]


def test_a_part_of_another_file_is_started_again(server, public, path):
    put(path.with_name("the-file.bin.part"), b"other" * 1000)
    assert fetch(public, "thing").read_bytes() == CONTENT and server.asked == ["bytes=5000-", None]


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_busy_server_is_asked_again_after_a_while(server, public, slept, status):
    server.failures = [status] * 4
    assert fetch(public, "thing").read_bytes() == CONTENT and slept == [1, 2, 4, 8]


def test_after_five_tries_the_sentence_says_what_to_put_where(server, public, path):
    server.failures = [500] * 9
    said = refused(public, f"{server.url} could not be downloaded: the server said 500 Internal Server Error")
    assert said.endswith(f"download it elsewhere and put it at {path}") and len(server.asked) == 5


@pytest.mark.parametrize("status", [403, 404])
def test_a_file_that_is_not_there_is_not_asked_for_again(server, public, path, slept, status):
    server.failures = [status]
    said = refused(public, f"the server said {status}")
    assert str(path) in said and len(server.asked) == 1 and slept == [] and not path.exists()


def test_offline_the_sentence_says_what_to_put_where(public, path, slept):
    offline = replace(public, url="http://127.0.0.1:9/the-file.bin")
    assert str(path) in refused(offline, "no connection (") and slept == [1, 2, 4, 8]


@pytest.mark.parametrize("content", [PAGE, POINTER, CONTENT[:-1] + b"x"], ids=["page", "pointer", "one byte"])
def test_another_file_is_downloaded_once_more_and_then_refused(server, public, path, content):
    server.content = content
    said = refused(replace(public, size=None), f"{len(content):,} bytes that begin with {content[:24]!r}")
    assert public.sha256 in said and hashlib.sha256(content).hexdigest() in said and len(server.asked) == 2
    assert beside(path) == [], "neither the file nor a part of it is kept"


@pytest.mark.parametrize("content", [PAGE, POINTER], ids=["page", "pointer"])
def test_without_a_known_sha256_a_page_or_a_pointer_is_refused_all_the_same(server, public, content):
    server.content = content
    refused(replace(public, size=None, sha256=None), "it is a web page or a pointer")


def test_without_a_known_size_and_sha256_a_cut_body_is_still_noticed(server, public, capsys):
    server.failures = [300_000]
    nothing_known = replace(public, size=None, sha256=None, url=server.url.replace("/of/", "/main/"))
    assert fetch(nothing_known, "thing").read_bytes() == CONTENT and len(server.asked) == 2
    said = capsys.readouterr().out
    assert "size not known; not pinned to a revision and no sha256 is known: it cannot be checked" in said


def test_without_a_length_from_the_server_the_known_size_counts(server, public):
    server.gives_length, server.failures = False, [300_000]
    assert fetch(public, "thing").read_bytes() == CONTENT and server.asked == [None, "bytes=300000-"]


def test_a_file_put_there_by_hand_is_checked_and_used(server, public, path):
    put(path, CONTENT)
    assert fetch(public, "thing") == path and server.asked == []


def test_a_wrong_file_put_there_by_hand_is_refused_and_kept(server, public, path):
    put(path, PAGE)
    said = refused(public, f"{path} is not the file of {server.url}: it is 42 bytes")
    assert "delete it, or put the right one there" in said and path.read_bytes() == PAGE and server.asked == []


def test_a_full_disk_names_the_file_and_leaves_none(public, path, monkeypatch):
    class Full(io.FileIO):
        def write(self, piece):
            raise OSError(errno.ENOSPC, "No space left on device")

    def opened(name, mode="r", **how):
        return Full(name, mode) if "b" in mode and mode[0] in "wa" else open(name, mode, **how)

    monkeypatch.setattr(download, "open", opened, raising=False)
    with pytest.raises(OSError, match=re.escape(f"No space left on device: '{path}'")):
        fetch(public, "thing")
    assert not path.exists()


def test_a_mirror_takes_the_place_of_hugging_face(server, monkeypatch, cache):
    monkeypatch.setenv("HF_ENDPOINT", server.url.removesuffix("/of/the-file.bin") + "/")
    assert fetch(WEIGHTS["gpt2-xl"], "gpt2-xl") == cache / "downloads" / "gpt2-xl" / "model.safetensors"


def test_a_mirror_without_https_is_one_sentence(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "mirror")
    refused(WEIGHTS["gpt2"], "could not be downloaded: unknown url type: 'mirror/openai-community/gpt2/resolve/")


def test_a_path_comes_before_a_name_and_a_name_is_for_its_own_flag(tmp_path, monkeypatch):
    with pytest.raises(Mistake, match="alpaca is for --instructions, not for --text"):
        find("alpaca", "text")
    with pytest.raises(FileNotFoundError, match="known by name, for --instructions: instruction-data, preference-pair"):
        find("alpacca", "instructions")
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "alpaca", b"my own")
    assert find("alpaca", "text")[0].read_bytes() == b"my own"


def test_a_table_in_an_archive_is_read_in_memory_and_nothing_is_extracted(server, cache, monkeypatch):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("../outside.txt", "never written")
        file.writestr("SMSSpamCollection", 'ham\tOk "lar\nspam\tWIN\t\n'.replace("\t\n", "\n"))
    server.content = archive.getvalue()
    sha256 = hashlib.sha256(server.content).hexdigest()
    url = server.url.replace("the-file.bin", "sms+spam+collection.zip")
    monkeypatch.setitem(CORPORA, "sms-spam", replace(CORPORA["sms-spam"], url=url, sha256=sha256))
    ham, spam = read_instructions("sms-spam")
    assert ham[:3] == ("Is this message spam or ham?", 'Ok "lar', "ham") and spam.input == "WIN"
    written = {file.name for file in cache.parent.rglob("*") if file.is_file()}
    assert written == {"sms+spam+collection.zip", ".lock"}


def test_a_hash_is_remembered_until_the_file_changes(tmp_path, cache):
    one, two = b"one" * 2**20, b"two" * 2**20
    file = put(tmp_path / "old.txt", one)
    os.utime(file, ns=(10**18, 10**18))
    assert sha256_of(file) == hashlib.sha256(one).hexdigest()
    [remembered] = (cache / "hashes").iterdir()
    remembered.write_text("from memory")
    assert sha256_of(file) == "from memory"
    put(file, two)
    assert sha256_of(file) == hashlib.sha256(two).hexdigest()
    assert len(list((cache / "hashes").iterdir())) == 1, "a file that changed just now may change again unseen"


def test_other_ranks_wait_for_the_first(tmp_path, monkeypatch):
    file = tmp_path / "made"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not made_by_rank_0(file), "without torchrun each process works alone"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setattr(files.time, "sleep", lambda seconds: file.touch())
    assert made_by_rank_0(file) and file.exists()
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert not made_by_rank_0(file)


def test_every_public_file_is_pinned_or_says_that_it_is_not():
    for name, public in (CORPORA | WEIGHTS).items():
        assert (
            public.url.startswith("https://") and public.licence and public.kind in ("text", "instructions", "weights")
        )
        assert re.fullmatch("[0-9a-f]{64}", public.sha256 or "0" * 64)
        assert public.sha256 or name in ("gpt2-medium", "gpt2-large", "gpt2-xl")

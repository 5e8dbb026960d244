"""Talking to models: what is written comes token by token, in the terminal and on a page, which nothing brings down."""

import http.client
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from browser import CHECKS, Browser, contrast, in_a_browser

import sample
from cli import Mistake
from data.examples import render_prompt
from data.tokenizer import as_it_comes, load_tokenizer
from model.generate import generate, stream
from model.gpt import GPT, GPTConfig
from model.lora import apply_lora, lora_layers, scaled
from run import talk
from store.checkpoint import load_run, open_run, save, save_model

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
BYTES = load_tokenizer("bytes")
ASKED = {"kind": "instruction", "text": "Say öl.", "input": "", "scale": 1, "temperature": 0.5, "seed": 3}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with runs in it: two models, and LoRA on the first of them; all of them babble."""
    world, before = tmp_path_factory.mktemp("talk"), os.getcwd()
    os.chdir(world)
    for seed, name in enumerate(("runs/base", "runs/other")):
        torch.manual_seed(seed)
        model = GPT(GPTConfig(vocab_size=257, block_size=96, n_layer=1, n_head=2, n_embd=16))
        torch.nn.init.normal_(model.wte.weight, std=0.5)
        save_model(name, model, BYTES)
    opened = open_run("runs/base")
    model = opened.model()
    apply_lora(model, 2, 4.0)
    for _, layer in lora_layers(model):
        torch.nn.init.normal_(layer.acting().lora_B, std=0.5)
    save("runs/compare/seed-0/lora", model, opened)
    os.chdir(before)
    return world


@pytest.fixture
def there(world, monkeypatch):
    monkeypatch.chdir(world)


@contextmanager
def serving(**settings):
    """The server, in a thread."""
    server = talk.Server([], sample.Config(**{"max_new_tokens": 12, "device": "cpu", **settings}), CPU)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.ending = True
        server.shutdown()
        server.server_close()
        thread.join()


def send(server, method="POST", path=None, body=b"", **headers):
    """(status, body) of one request; a header that is None is left out."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    path = path or f"/{server.token}/" + ("ask" if method == "POST" else "")
    connection.putrequest(method, path, skip_host=True)
    given = {"Host": server.hosts[0], "Origin": server.origin, "Content-Length": str(len(body)), **headers}
    for name, value in given.items():
        if value is not None:
            connection.putheader(name, value)
    connection.endheaders(body)
    reply = connection.getresponse()
    return reply.status, reply.read().decode()


def ask(server, run="runs/base", **changes):
    """The lines of an answer."""
    status, said = send(server, body=json.dumps({**ASKED, "run": run, **changes}).encode())
    assert status == 200
    return [json.loads(line) for line in said.splitlines()]


def text_of(lines):
    return "".join(line.get("text", "") for line in lines)


# ---- an answer ---------------------------------------------------------------------------------------------------


def test_the_terminal_shows_each_token_before_the_next_is_written(capsys):
    seen = []

    def texts():
        for text in (" Bal", "tic", " "):
            yield text
            seen.append(capsys.readouterr().out)

    assert sample.show(texts(), strip=True) == "Baltic"
    assert seen == ["Bal", "tic", ""]


def test_a_character_of_several_tokens_comes_with_the_last_of_them():
    tokens = BYTES.encode_ordinary("öl ☂")
    assert [*map(as_it_comes(BYTES), tokens)] == ["", "ö", "l", " ", "", "", "☂"]


def test_the_page_gets_what_generate_writes_with_the_models_own_probabilities(there):
    model, _ = load_run("runs/base", "", CPU)
    prompt = BYTES.encode_ordinary(render_prompt("Say öl."))
    how = lambda: (12, 256, 0.5, 0, 1.0, torch.Generator().manual_seed(3))  # noqa: E731, a generator each
    [expected] = generate(model, [prompt], *how())
    with serving() as server:
        first, *tokens, done = ask(server)
    assert "".join(first["reads"]) == render_prompt("Say öl.") and first["lora"] is False
    assert text_of(tokens) == "".join(map(as_it_comes(BYTES), expected)) and done == {"done": "12 tokens."}
    for said, ([token], logits) in zip(tokens, stream(model, [prompt], *how()), strict=True):
        p = logits[0].softmax(-1)
        assert said["p"] == pytest.approx(p[token].item(), abs=1e-4)
        shares = [share for _, share in said["likeliest"]]
        assert shares == pytest.approx(p.sort(descending=True).values[:5].tolist(), abs=1e-4)


def test_lora_that_counts_0_times_is_its_base_and_once_what_it_learned_and_twice_twice_that(there):
    with serving(max_new_tokens=30) as server:
        base, *of_lora = (
            ask(server, run, scale=scale, kind="text", text="the")[1:-1]
            for run, scale in (("runs/base", 1), *(("runs/compare/seed-0/lora", scale) for scale in (0, 1, 2)))
        )
    assert base == of_lora[0] and base != of_lora[1] and of_lora[1] != of_lora[2]
    model, x = load_run("runs/compare/seed-0/lora", "", CPU)[0], torch.randn(3, 16)
    _, layer = next(lora_layers(model))
    once = layer(x) - layer.base(x)
    with scaled(model, 2):
        torch.testing.assert_close(layer(x), layer.base(x) + 2 * once)
    torch.testing.assert_close(layer(x), layer.base(x) + once)


def test_every_run_there_is_can_be_asked_and_those_named_come_first(there):
    assert talk.runs(["gpt2"]) == ["gpt2", "runs/base", "runs/other", "runs/compare/seed-0/lora"]
    with serving() as server:
        assert '"runs/compare/seed-0/lora"' in send(server, "GET")[1]


def test_a_row_longer_than_the_model_reads_is_said_to_be_cut(there):
    with serving() as server:
        assert "It read the last 96 tokens alone" in ask(server, kind="text", text="a" * 90)[-1]["done"]


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"text": "  "}, "type an instruction"),
        ({"kind": "poem"}, "type an instruction"),
        ({"seed": -1}, "seed must be from 0"),
        ({"seed": True}, "seed must be a number"),
        ({"scale": 3}, "scale must be from 0 to 2, got 3"),
        ({"temperature": "hot"}, "temperature must be a number"),
        ({"temperature": float("nan")}, "temperature must be from 0"),
        ({"more": 1}, "this is no question"),
        ({"run": "../secret"}, "../secret is not there any more"),
        ({"run": "/etc"}, "/etc is not there any more"),
    ],
)
def test_a_question_that_the_page_would_not_send_is_answered_with_a_sentence(there, changes, said):
    with serving() as server:
        [line] = ask(server, **changes)
        assert said in line["mistake"]
        assert "done" in ask(server)[-1]


@pytest.mark.parametrize("body", [b"", b"\xff", b"[]", b"null", b"[" * 50_000])
def test_what_is_no_question_is_said_to_be_none(there, body):
    with pytest.raises(Mistake, match="this is no question"):
        talk.read_question(body)


# ---- what it survives --------------------------------------------------------------------------------------------


def test_fifty_questions_at_once_are_all_answered_each_as_if_alone(there):
    with serving(max_new_tokens=6) as server:
        alone = [ask(server, seed=seed) for seed in range(5)]
        answers = [None] * 50

        def fill(n):
            answers[n] = ask(server, seed=n % 5)

        threads = [threading.Thread(target=fill, args=[n]) for n in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == alone * 10


def test_a_body_of_ten_megabytes_is_refused_before_it_is_read(there):
    with serving() as server:
        assert send(server, **{"Content-Length": "10000000"})[0] == 413
        with socket.create_connection(("127.0.0.1", server.server_port), timeout=60) as client, pytest.raises(OSError):
            head = f"POST /{server.token}/ask HTTP/1.0\r\nHost: {server.hosts[0]}\r\nOrigin: {server.origin}\r\n"
            client.sendall(f"{head}Content-Length: 10000000\r\n\r\n".encode())
            for _ in range(1000):
                client.sendall(bytes(10_000))
        assert "done" in ask(server)[-1]


@pytest.mark.parametrize(
    "request_, status",
    [
        ({"path": "/wrong/ask"}, 404),
        ({"path": "/ask"}, 404),
        ({"path": "/%00/ask"}, 404),
        ({"method": "GET", "path": "/"}, 404),
        ({"method": "GET", "path": "/../sample.py"}, 404),
        ({"Host": "evil.example"}, 403),
        ({"Host": None}, 403),
        ({"method": "GET", "Host": "evil.example:80"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": None}, 403),
        ({"Content-Length": None}, 411),
        ({"Content-Length": "-1"}, 411),
        ({"Content-Length": "9" * 5000}, 413),
        ({"method": "PUT"}, 501),
        ({"method": "OPTIONS"}, 501),
    ],
)
def test_only_the_page_itself_may_ask(there, request_, status):
    with serving() as server:
        assert send(server, **request_)[0] == status
        assert send(server, "GET")[0] == 200


def test_only_this_machine_can_reach_it_and_the_page_may_reach_nothing_else(there):
    with serving() as server:
        assert server.server_address[0] == "127.0.0.1"
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
        connection.request("GET", f"/{server.token}/")
        assert connection.getresponse().headers["Content-Security-Policy"].startswith("default-src 'none'")
    page = (ROOT / "run" / "talk.html").read_text(encoding="utf-8")
    assert "innerHTML" not in page and "http:" not in page and "https:" not in page


def test_a_run_that_is_deleted_meanwhile_is_a_sentence_and_the_others_go_on(world, tmp_path, monkeypatch):
    shutil.copytree(world / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    with serving() as server:
        assert "done" in ask(server, "runs/other")[-1]
        shutil.rmtree("runs/other")
        assert "runs/other is not there any more" in ask(server, "runs/other")[0]["mistake"]
        shutil.rmtree("runs/base")  # on which LoRA was trained
        assert "was trained on runs/base" in ask(server, "runs/compare/seed-0/lora")[0]["mistake"]
        shutil.copytree(world / "runs/base", "runs/base")
        assert "done" in ask(server, "runs/compare/seed-0/lora")[-1]


def test_a_run_that_was_trained_anew_is_read_anew(world, tmp_path, monkeypatch):
    shutil.copytree(world / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    with serving() as server:
        before, other = ask(server), ask(server, "runs/other")
        shutil.copy("runs/other/model.pt", "runs/base/model.pt")
        os.utime("runs/base/model.pt")
        assert ask(server) == other != before


def test_who_goes_away_in_mid_answer_keeps_nobody_waiting(there):
    with serving(max_new_tokens=1_000_000) as server:
        body = json.dumps({**ASKED, "run": "runs/base"}).encode()
        head = f"POST /{server.token}/ask HTTP/1.0\r\nHost: {server.hosts[0]}\r\nOrigin: {server.origin}\r\n"
        with socket.create_connection(("127.0.0.1", server.server_port), timeout=60) as client:
            client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            while b'"p"' not in client.recv(4096):
                pass
        assert server.computing.acquire(timeout=30)
        server.computing.release()


def test_a_browser_that_leaves_before_the_page_has_come_is_no_error(there, monkeypatch, capsys):
    with serving() as server:
        close, closed = server.shutdown_request, threading.Event()
        monkeypatch.setattr(server, "shutdown_request", lambda request: (close(request), closed.set()))
        with socket.create_connection(("127.0.0.1", server.server_port), timeout=60) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not a goodbye
            client.sendall(f"GET /{server.token}/ HTTP/1.0\r\nHost: {server.hosts[0]}\r\n\r\n".encode())
        assert closed.wait(timeout=30)
        assert send(server, "GET")[0] == 200
    assert capsys.readouterr().err == ""


def test_ctrl_c_in_mid_answer_ends_with_a_sentence(world):
    command = [sys.executable, str(ROOT / "sample.py"), "--page", "--device", "cpu", "--max-new-tokens", "1000000"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    heed = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731, as in a terminal
    process = subprocess.Popen(command, cwd=world, preexec_fn=heed, **pipes)
    url = process.stdout.readline().split()[1]
    _, _, host, token, _ = url.split("/")
    connection = http.client.HTTPConnection(host, timeout=60)
    body = json.dumps({**ASKED, "run": "runs/base"})
    connection.request("POST", f"/{token}/ask", body, {"Origin": f"http://{host}"})
    reply = connection.getresponse()
    assert "reads" in json.loads(reply.readline()) and "p" in json.loads(reply.readline())
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "") and out.endswith("Ended.\n")
    assert '"done"' not in reply.read().decode()


# ---- in a browser ------------------------------------------------------------------------------------------------


def test_the_darkest_token_can_be_read():
    """Of tokens between likely and unlikely too: their background is between the two."""
    page = (ROOT / "run" / "talk.html").read_text(encoding="utf-8")
    for scheme in page.split("@media screen and (prefers-color-scheme: dark)")[:2]:
        colour = {name: scheme.split(f"--{name}: ")[1][:7] for name in ("paper", "ink", "unlikely", "focus")}
        assert contrast(colour["ink"], colour["paper"]) > contrast(colour["ink"], colour["unlikely"]) > 4.5
        assert contrast(colour["focus"], colour["paper"]) > 4.5


ANSWERED = """[...document.querySelectorAll(".column")].length > 0
&& [...document.querySelectorAll(".column .after")].every((after) => after.textContent !== "…")"""
SAYS = '[...document.querySelectorAll("article:first-child .says")].map((says) => says.textContent)'


@in_a_browser
@pytest.mark.parametrize("width, dark", [(1280, False), (390, True)])
def test_in_a_browser_three_models_answer_the_slider_moves_and_a_token_tells(there, tmp_path, width, dark):
    with serving() as server, Browser(tmp_path, width, 900, dark) as page:
        page.open(f"{server.origin}/{server.token}/")
        page.until("document.activeElement.id === 'text'")
        page.type("Say öl.")
        page.press("Enter", 13, "\r")
        page.until(ANSWERED)
        names = page.js('[...document.querySelectorAll("h3")].map((name) => name.textContent)')
        base, other, lora = page.js(SAYS)
        assert names == ["runs/base", "runs/other", "runs/compare/seed-0/lora"] and len({base, lora, other}) == 3
        assert page.js('document.querySelector(".reads").textContent').endswith(render_prompt("Say öl."))
        page.js('id("scale").focus()')
        page.press("Home", 36)  # a slider goes to 0
        page.until(f"{ANSWERED} && {SAYS}[2] === {SAYS}[0]")
        assert page.js(SAYS) == [base, other, base]
        page.point_at('document.querySelectorAll(".token")[2]')
        page.until('!id("tip").hidden')
        first, *others = page.js('id("tip").innerText').strip().splitlines()
        assert "The likeliest" in first and len(others) == 5 and all(other.endswith("%") for other in others)
        assert page.js(CHECKS) == []
        page.js('document.querySelector(".says").focus()')
        page.press("ArrowRight", 39)
        page.press("ArrowRight", 39)
        assert page.js('document.activeElement === document.querySelectorAll(".token")[1] && !id("tip").hidden')
        page.js('id("text").focus()')
        page.js('id("text").value = ""')
        page.press("ArrowUp", 38)
        assert page.js('id("text").value') == "Say öl."
        page.press("Enter", 13, "\r")
        page.until(ANSWERED)
        assert page.js('document.querySelectorAll("article").length') == 2, "history"
        assert page.wrong == [] and all(url.startswith((server.origin, "data:")) for url in page.requests)

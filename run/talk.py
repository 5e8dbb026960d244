"""A page on which models answer side by side: python sample.py --page

It is served to this machine alone (127.0.0.1): GET gives the page, run/talk.html, and POST asks one run a question. The
answer comes token by token, a line of JSON each, with the token's probability and the likeliest others. Other programs
and pages cannot ask: the address has a random token in it, and Host and Origin must be the page's own.
"""

import json
import math
import secrets
import threading
import traceback
from collections.abc import Generator
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import tiktoken
import torch

from cli import RANGES, Mistake, out_of_memory
from data.examples import render_prompt
from data.tokenizer import as_it_comes
from model.generate import cannot_write, stream
from model.gpt import GPT
from model.lora import lora_layers, scaled
from model.prefix import longest_row, prefix_length
from store.checkpoint import load_run
from store.learned import FILES

BUILTIN = "data/builtin/base"
LARGEST = 2**16  # bytes of a question
LIKELIEST = 5  # tokens that are shown beside one
KEPT = 8  # models in memory
POLICY = (  # what the page may do, beside asking its own address: nothing
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)


def serve(named: list[str], config: Any, device: torch.device) -> None:
    """Serves the page until Ctrl-C. named: runs to show first; config: how to write, as in sample.py."""
    with Server([name for name in named if name], config, device) as server:
        print(f"Page: {server.origin}/{server.token}/\nIt is for this machine's browser. Ctrl-C ends.", flush=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever()
        server.ending = True
        # the answer that is being written stops at its next token, or its reader has stopped to read; and none begins
        server.computing.acquire(timeout=5)
        print("Ended.")


def runs(named: list[str]) -> list[str]:
    """Those named, the base that ships, and every run under runs/, folder by folder."""
    folders = {file.parent for name in FILES for file in Path("runs").rglob(name)}
    found = [folder.as_posix() for folder in sorted(folders, key=lambda folder: (folder.parent, folder.name))]
    return list(dict.fromkeys([*named, *([BUILTIN] if Path(BUILTIN).exists() else []), *found]))


# ---- a question and its answer -----------------------------------------------------------------------------------


class Question(NamedTuple):
    run: str
    kind: str  # instruction, or text to continue
    text: str
    input: str  # what an instruction is about
    scale: float  # how often LoRA counts: 0 is the base
    temperature: float
    seed: int


LIMITS = {"scale": (0, 2), "temperature": RANGES["temperature"], "seed": RANGES["seed"]}


def read_question(body: bytes) -> Question:
    """Raises a Mistake for what the page would not send."""
    try:
        question = Question(**json.loads(body))
    except (ValueError, TypeError, RecursionError) as error:
        raise Mistake("this is no question: it must be JSON with " + ", ".join(Question._fields)) from error
    for name, kind in Question.__annotations__.items():
        value = getattr(question, name)
        if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
            raise Mistake(f"{name} must be {'a text' if kind is str else 'a number'}")
        low, high = LIMITS.get(name, (0, math.inf))
        if kind is not str and not low <= value <= high:
            raise Mistake(f"{name} must be from {low} to {high}, got {value}")
    if question.kind not in ("instruction", "text") or not question.text.strip():
        raise Mistake("type an instruction, or a text to continue")
    return question


class Models:
    """Runs that were asked last, in memory; one that has changed on disk is read again."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.kept: dict[str, tuple[list[int], GPT, tiktoken.Encoding]] = {}

    def of(self, run: str) -> tuple[GPT, tiktoken.Encoding]:
        written = [path.stat().st_mtime_ns for path in (Path(run, name) for name in FILES) if path.exists()]
        kept = self.kept.pop(run, None)
        if kept is None or kept[0] != written:
            kept = (written, *load_run(run, "", self.device))
        self.kept[run] = kept
        while len(self.kept) > KEPT:
            del self.kept[next(iter(self.kept))]
        return kept[1:]


def answer(
    question: Question, model: GPT, tokenizer: tiktoken.Encoding, config: Any
) -> Generator[dict[str, Any], None, None]:
    """First what the model reads, then each token: its text and probability, and the likeliest; then why it ended.

    Probabilities are the model's own, at temperature 1. The last token may be end-of-text.
    """
    if why := cannot_write(model):
        raise Mistake(f"{question.run} cannot write: {why}")
    is_instruction = question.kind == "instruction"
    prompt = render_prompt(question.text, question.input) if is_instruction else question.text
    tokens = tokenizer.encode_ordinary(prompt)
    has_lora = any(layer.acting() is not None for _, layer in lora_layers(model))
    longest = longest_row(model)
    yield {"reads": [*map(as_it_comes(tokenizer), tokens)], "prefix": prefix_length(model), "lora": has_lora}
    text_of, end = as_it_comes(tokenizer), tokenizer.eot_token
    generator = torch.Generator(model.wte.weight.device).manual_seed(question.seed)
    how = (question.temperature, config.top_k, config.top_p, generator)
    written = stream(model, [tokens], config.max_new_tokens, end, *how)
    with scaled(model, question.scale), closing(written):
        n = 0
        for [token], logits in written:
            n += 1
            p = logits[0].float().softmax(-1)  # (V,)
            shares, ids = p.topk(min(LIKELIEST, len(p)))
            likeliest = [
                [tokenizer.decode([i]), round(share, 4)] for i, share in zip(ids.tolist(), shares.tolist(), strict=True)
            ]
            said = {"end": True} if token == end else {"text": text_of(token)}
            yield {**said, "p": round(p[token].item(), 4), "likeliest": likeliest}
    cut = f" It read the last {longest} tokens alone." if len(tokens) + n > longest else ""
    yield {"done": f"{n} tokens.{cut}"}


# ---- the server --------------------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """A thread a request; one of them at a time computes."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, named: list[str], config: Any, device: torch.device) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.named, self.config, self.models = named, config, Models(device)
        self.token, self.computing, self.ending = secrets.token_urlsafe(16), threading.Lock(), False
        self.hosts = [f"127.0.0.1:{self.server_port}", f"localhost:{self.server_port}"]
        self.origin = f"http://{self.hosts[0]}"

    def page(self) -> bytes:
        numbers = {name: getattr(self.config, name) for name in ("temperature", "seed", "max_new_tokens")}
        known = {"runs": runs(self.named), "chosen": max(3, len(self.named)), **numbers}
        frame = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
        return frame.replace("{KNOWN}", json.dumps(known).replace("<", "\\u003c")).encode()

    def answer(self, body: bytes) -> Generator[dict[str, Any], None, None]:
        """Ends with {"mistake": …} where an answer cannot be had."""
        try:
            question = read_question(body)
            if question.run not in runs(self.named):
                raise Mistake(f"{question.run} is not there any more: load the page again")
            with self.computing, closing(answer(question, *self.models.of(question.run), self.config)) as lines:
                for line in lines:
                    if self.ending:
                        return
                    yield line
        except (Mistake, OSError) as error:
            yield {"mistake": str(error)}
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                traceback.print_exc()
            yield {"mistake": "out of memory" if out_of_memory(error) else f"an error of this program: {error}"}


class Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = 20  # seconds to wait for what a client has announced, or for a client to read

    def handle(self) -> None:
        with suppress(ConnectionError, TimeoutError):  # a client that goes away ends its answer
            super().handle()

    def do_GET(self) -> None:
        if self.is_allowed(f"/{self.server.token}/"):
            self.begin("text/html; charset=utf-8")
            self.wfile.write(self.server.page())

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not self.is_allowed(f"/{self.server.token}/ask"):
            return
        if self.headers.get("Origin") not in [f"http://{host}" for host in self.server.hosts]:
            return self.send_error(403)
        if not (length.isascii() and length.isdigit()):
            return self.send_error(411)
        if len(length) > 9 or int(length) > LARGEST:
            return self.send_error(413)
        body = self.rfile.read(int(length))
        self.begin("application/x-ndjson")
        with closing(self.server.answer(body)) as lines:
            for line in lines:
                self.wfile.write(json.dumps(line).encode() + b"\n")

    def is_allowed(self, path: str) -> bool:
        """Whether the request is for this address, under its own name: a foreign page may know a name that leads here,
        but not what the page is called."""
        if self.headers.get("Host") not in self.server.hosts:
            self.send_error(403)
        elif not secrets.compare_digest(self.path.encode(), path.encode()):
            self.send_error(404)
        else:
            return True
        return False

    def begin(self, kind: str) -> None:
        self.send_response(200)
        headers = {"Content-Type": kind, "Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
        more = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"}
        for name, value in (headers | more).items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        pass

"""A dataclass becomes a command line: one flag a field, its trailing comment the help. The standard library alone.

A user's mistake ends as one sentence, and what surrounds a program (a pipe that is closed, a home that is missing) does
not end it at all.
"""

import argparse
import dataclasses
import inspect
import io
import math
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

# Lowest and highest value that makes sense; a number that is not named here must be above 0.
RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**32 - 1),
    "dropout": (0, 0.99),
    "lora_dropout": (0, 0.99),
    "weight_decay": (0, 1),
    "warmup": (0, 1),
    "held_out": (0, 1),
    "graded": (0, 1),
    "save_every": (0, 10**9),
    "save_minutes": (0, 10**6),
    "temperature": (0, 100),
    "top_k": (0, 10**9),
    "top_p": (0, 1),
    "beta": (0, 1000),
    "nll": (0, 1000),
    "samples": (2, 1000),
}
LARGEST = 10**9  # whole number that makes sense, for one that is not named above
DATA = ("text", "instructions", "labelled", "tagged", "pairs")  # fields that name a file to learn from, or to judge by
WORDS = ("prompt", "instruction", "input", "system")  # fields that hold what a model reads, never a path


class Mistake(ValueError):
    """What a user did wrong, in one sentence: what, where, and what to do."""


def command_line(main: Callable[[Any], Any], Config: type) -> None:
    """Runs main with a Config read from the flags. A user's mistake, or memory that runs out, ends as one sentence."""
    help_texts = dict(re.findall(r"^ +(\w+): .*?  # (.+)$", inspect.getsource(Config), re.MULTILINE))
    file = Path(sys.argv[0])
    parser = argparse.ArgumentParser(
        prog=f"python -m {file.parent.name}" if file.name == "__main__.py" else file.name,
        description=sys.modules[main.__module__].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for field in dataclasses.fields(Config):
        required = field.default is dataclasses.MISSING
        default = "" if required or field.default == "" else f" (default: {field.default})"
        value: dict[str, Any] = {
            "type": field.type,
            "metavar": metavar(field.name, field.type, help_texts.get(field.name, "")),
        }
        if field.type is bool:
            value, default = {"action": "store_true"}, ""
        parser.add_argument(
            flag(field.name),
            dest=field.name,
            required=required,
            default=argparse.SUPPRESS,  # so that what is parsed is what was given
            help=(help_texts.get(field.name, "") + default).replace("%", "%%"),
            **value,
        )
    open_streams()
    warnings.filterwarnings("ignore", "mkldnn_matmul failed")  # 40 lines before the sentence on memory that runs out
    given = vars(parser.parse_args())
    with one_sentence(parser.prog):
        for name, value in given.items():
            if value == [] or (value == "" and name != "input"):  # [] is what argparse makes of "--"
                raise Mistake(f"{flag(name)} is empty")
            if isinstance(value, str) and name not in WORDS:
                given[name] = at_home(value)
        config = check(Config(**given))
        with memory_hint(parser.prog, config):
            main(config)


def metavar(name: str, kind: Any, help_text: str) -> str:
    """What stands for a flag's value in --help: FILE or RUN where it is one, else the kind of number or text."""
    if (first := help_text.partition(" ")[0].upper()) in ("FILE", "FOLDER"):
        return first
    if name in (*DATA, "domain", "questions"):
        return "FILE"
    if name in ("out", "init_from", "from_", "base", "adapter"):
        return "RUN"
    return {int: "N", float: "X"}.get(kind, "NAME")


def at_home(path: str) -> str:
    """The path with ~ as the user's home: a shell leaves it alone after "--out="."""
    return os.path.expanduser(path) if path.startswith("~") else path


@contextmanager
def one_sentence(program: str) -> Iterator[None]:
    """Within it a Mistake, or an OSError, ends the program with one sentence and exit code 2; under `python -X dev`
    with the line that raised it. Of several ranks (run/ranks.py) each says who it is."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(130)
    except (Mistake, OSError, NotImplementedError) as error:
        on_mps = isinstance(error, NotImplementedError) and "MPS" in str(error)
        if sys.flags.dev_mode or (isinstance(error, NotImplementedError) and not on_mps):
            raise
        if on_mps:
            error = Mistake(f"{str(error).splitlines()[0]} Set PYTORCH_ENABLE_MPS_FALLBACK=1, or give --device cpu")
        said = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else error
        print(f"{program}{f' (rank {rank()})' if rank() else ''}: {said}", file=sys.stderr)
        sys.exit(2)


# ---- memory that runs out --------------------------------------------------------------------------------------------

SIGNS = ("out of memory", "an't allocate memory", "annot allocate memory", "size calculation overflowed", "bad_alloc")


def out_of_memory(error: BaseException | None) -> bool:
    """Whether that is what an error means, or what a Mistake was raised from: each allocator has words of its own."""
    if isinstance(error, Mistake):
        return out_of_memory(error.__cause__)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(s in str(error) for s in SIGNS))


@contextmanager
def memory_hint(program: str, config: Any) -> Iterator[None]:
    """Within it, running out of memory becomes a Mistake that names the command which says what would fit."""
    try:
        yield
    except (RuntimeError, MemoryError, Mistake) as error:
        if sys.flags.dev_mode or not out_of_memory(error):
            raise
        if not hasattr(config, "micro_batches"):  # no training, which alone is planned
            raise Mistake("out of memory: give smaller numbers, or end what else takes memory") from error
        raise Mistake(
            f"out of memory: `{plan_command(program, config)}` says what it needs and what would fit"
        ) from error


def plan_command(program: str, config: Any) -> str:
    """`python -m run.plan …` with the numbers of a training run."""
    method = Path(program).stem.removeprefix("train_")
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    given = {"method": method, "init_from": config.init_from}
    for name in PLANNED:
        if hasattr(config, name) and getattr(config, name) != defaults[name]:
            given[name] = getattr(config, name)
    if (n_ranks := int(os.environ.get("WORLD_SIZE", 1)) if "TORCHELASTIC_RUN_ID" in os.environ else 1) > 1:
        given["ranks"] = n_ranks
    flags = [[flag(n)] if v is True else [flag(n), str(v)] for n, v in given.items()]
    return shlex.join(["python", "-m", "run.plan", *chain(*flags)])


PLANNED = (  # what a run's memory depends on, beside its model
    "learn", "r", "lora_dropout", "targets", "width", "mlp_only", "length", "reward", "samples", "block_size",
    "dropout", "batch_size", "micro_batches", "device", "precision", "checkpoint_activations", "compile", "shard",
)  # fmt: skip


# ---- what surrounds a program ----------------------------------------------------------------------------------------


def open_streams() -> None:
    """Standard streams that are closed become empty ones; a character that an encoding lacks, or a byte that is not
    UTF-8, becomes a ?; and output that nobody reads any more is lost, but ends no run."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, mode)  # noqa: SIM115, open to the end
        elif isinstance(stream, io.TextIOWrapper):
            # a line is seen when it is printed, also through a pipe
            stream.reconfigure(errors="replace", line_buffering=stream.line_buffering or name == "stdout")
        setattr(sys, name, stream if name == "stdin" or isinstance(stream, Patient) else Patient(stream))


class Patient:
    """A stream for output that stays writable when its reader has gone, or its disk is full."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        return self._unless_lost(self.stream.write, text) or len(text)

    def flush(self) -> None:
        self._unless_lost(self.stream.flush)

    def _unless_lost(self, action: Callable[..., Any], *what: str) -> Any:
        try:
            return action(*what)
        except OSError:
            with open(os.devnull, "w") as nothing:  # for what comes, and for what Python flushes when it exits
                os.dup2(nothing.fileno(), self.stream.fileno())


def rank() -> int:
    """Which of the processes that torchrun has started this is (run/ranks.py); 0 without it, and 0 alone writes."""
    return int(os.environ.get("RANK", 0)) if "TORCHELASTIC_RUN_ID" in os.environ else 0


def flag(field: str) -> str:
    return "--" + field.strip("_").replace("_", "-")


def listed(names: Iterable[str], most: int = 8) -> str:
    """The first few, fit for a sentence."""
    names = list(names)
    first = [" ".join(name[:40].encode(errors="replace").decode().split()) for name in names[:most]]
    return ", ".join(first) + (", …" if len(names) > most else "") or "none"


def check(config: Any) -> Any:
    """Returns the config. Raises a Mistake for a number out of its range, and for flags that do not go together."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name, value in vars(config).items():
        if value == defaults[name]:
            continue  # 0 may have a meaning of its own
        if isinstance(value, int) and name not in RANGES and value > LARGEST:
            raise Mistake(f"{flag(name)} must be at most {LARGEST:,}, got {value}")
        low, high = RANGES.get(name, (0, math.inf))
        fits = isinstance(value, str | bool) or (low <= value <= high if name in RANGES else 0 < value < math.inf)
        if not fits:
            expected = f"from {low} to {high}" if name in RANGES else "above 0"
            raise Mistake(f"{flag(name)} must be {expected}, got {value}")
    asked = [name for name in DATA if defaults.get(name) == ""]
    if len(asked) > 1 and sum(bool(getattr(config, name)) for name in asked) != 1:
        raise Mistake(f"give either {' or '.join(map(flag, asked))}")
    if getattr(config, "grade_prompt", False) and not config.instructions:
        raise Mistake("--grade-prompt is for --instructions: every token of a --text is graded anyway")
    if getattr(config, "pack", False) and not config.instructions:
        raise Mistake("--pack is for --instructions: the rows of a --text are full anyway")
    learn = getattr(config, "learn", "lora")
    if not re.fullmatch(r"head|last-[1-9]\d{0,8}|lora|all", learn):
        raise Mistake(f"--learn must be head, last-1 or another number of blocks, lora or all, got {learn!r}")
    if learn != "lora" and "alpha" in defaults and (config.r, config.alpha) != (defaults["r"], defaults["alpha"]):
        raise Mistake(f"--r and --alpha are for --learn lora, and this is --learn {learn}")
    if getattr(config, "precision", "auto") not in ("auto", "fp32", "bf16", "fp16"):
        raise Mistake(f"--precision must be auto, fp32, bf16 or fp16, got {config.precision!r}")
    if "n_embd" in defaults and config.n_embd % config.n_head:
        raise Mistake(f"--n-embd {config.n_embd} must be a multiple of --n-head {config.n_head}")
    return config

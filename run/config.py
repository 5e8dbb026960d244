"""A dataclass becomes a command line: one flag a field, its trailing comment the help."""

import argparse
import dataclasses
import inspect
import io
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from model.lora import TARGETS

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
}


LARGEST = 10**9  # whole number that makes sense, for one that is not named above
NEW_MODEL = ("tokenizer", "vocab_size", "n_layer", "n_head", "n_embd")  # these shape a model with random weights


class Mistake(ValueError):
    """What a user did wrong, in one sentence: what, where, and what to do."""


def command_line(main: Callable[[Any], Any], Config: type) -> None:
    """Runs main with a Config read from the flags. A user's mistake, or memory that runs out, ends as one sentence."""
    help_texts = dict(re.findall(r"^ +(\w+): .*?  # (.+)$", inspect.getsource(Config), re.MULTILINE))
    parser = argparse.ArgumentParser(
        description=sys.modules[main.__module__].__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for field in dataclasses.fields(Config):
        required = field.default is dataclasses.MISSING
        default = "" if required or field.default == "" else f" (default: {field.default})"
        value: dict[str, Any] = {"type": field.type, "metavar": field.name.strip("_").split("_")[-1].upper()}
        if field.type is bool:
            value, default = {"action": "store_true"}, ""
        parser.add_argument(
            flag(field.name),
            dest=field.name,
            required=required,
            default=argparse.SUPPRESS,  # so that what is parsed is what was given
            help=(help_texts[field.name] + default).replace("%", "%%"),
            **value,
        )
    given = vars(parser.parse_args())
    any_character()
    with one_sentence(parser.prog):
        for name, value in given.items():
            if value == [] or (value == "" and name != "input"):  # [] is what argparse makes of "--"
                raise Mistake(f"{flag(name)} is empty")
            if name in NEW_MODEL and "init_from" in given:
                raise Mistake(f"{flag(name)} is for a new model: the one from --init-from has its own")
        config = check(Config(**given))
        with memory_hint(config):
            main(config)


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
        rank = os.environ.get("RANK", "0")
        print(f"{program}{'' if rank == '0' else f' (rank {rank})'}: {error}", file=sys.stderr)
        sys.exit(2)


@contextmanager
def memory_hint(config: Any) -> Iterator[None]:
    """Within it, running out of memory becomes a Mistake that says what the run needs and what would fit."""
    try:
        yield
    except (RuntimeError, MemoryError, Mistake) as error:
        from run import plan  # here, since it needs this module

        if sys.flags.dev_mode or not plan.out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # frees what the run held: a hint needs a little memory, too
        raise Mistake(plan.hint(config)) from error


def any_character() -> None:
    """Lets standard output show a ? for a character that its encoding lacks, instead of failing."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def flag(field: str) -> str:
    return "--" + field.strip("_").replace("_", "-")


def check(config: Any) -> Any:
    """Returns the config. Raises a Mistake for a number out of its range, and for flags that do not go together."""
    for name, value in vars(config).items():
        if isinstance(value, int) and name not in RANGES and value > LARGEST:
            raise Mistake(f"{flag(name)} must be at most {LARGEST:,}, got {value}")
        low, high = RANGES.get(name, (0, math.inf))
        fits = isinstance(value, str | bool) or (low <= value <= high if name in RANGES else 0 < value < math.inf)
        if not fits:
            expected = f"from {low} to {high}" if name in RANGES else "above 0"
            raise Mistake(f"{flag(name)} must be {expected}, got {value}")
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    if defaults.get("text") == defaults.get("instructions") == "" and bool(config.text) == bool(config.instructions):
        raise Mistake("give either --text or --instructions")
    if getattr(config, "grade_prompt", False) and not config.instructions:
        raise Mistake("--grade-prompt is for --instructions: every token of a --text is graded anyway")
    if getattr(config, "pack", False) and not config.instructions:
        raise Mistake("--pack is for --instructions: the rows of a --text are full anyway")
    if getattr(config, "precision", "auto") not in ("auto", "fp32", "bf16", "fp16"):
        raise Mistake(f"--precision must be auto, fp32, bf16 or fp16, got {config.precision!r}")
    unknown = {target.strip() for target in getattr(config, "targets", TARGETS[0]).split(",")} - set(TARGETS)
    if unknown:
        raise Mistake(f"--targets must be among {', '.join(TARGETS)}; got {sorted(unknown)}")
    if "n_embd" in defaults and config.n_embd % config.n_head:
        raise Mistake(f"--n-embd {config.n_embd} must be a multiple of --n-head {config.n_head}")
    return config

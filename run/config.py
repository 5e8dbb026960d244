"""A dataclass becomes a command line: one flag a field, its trailing comment the help."""

import argparse
import dataclasses
import inspect
import io
import math
import re
import sys
from collections.abc import Callable
from typing import Any

# Lowest and highest value that makes sense; a number that is not named here must be above 0.
RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**32 - 1),
    "dropout": (0, 0.99),
    "lora_dropout": (0, 0.99),
    "weight_decay": (0, 1),
    "warmup_steps": (0, 10**9),
    "held_out": (0, 1),
    "temperature": (0, 100),
    "top_k": (0, 10**9),
    "top_p": (0, 1),
}


def command_line(main: Callable[[Any], Any], Config: type) -> None:
    """Runs main with a Config read from the flags. A user's mistake (a ValueError or OSError, raised in words) ends as
    one sentence and exit code 2; `python -X dev` shows where it was raised."""
    help_texts = dict(re.findall(r"^ +(\w+): .*?  # (.+)$", inspect.getsource(Config), re.MULTILINE))
    parser = argparse.ArgumentParser(
        description=sys.modules[main.__module__].__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for field in dataclasses.fields(Config):
        required = field.default is dataclasses.MISSING
        default = "" if required or field.default == "" else f" (default: {field.default})"
        parser.add_argument(
            flag(field.name),
            dest=field.name,
            type=field.type,
            required=required,
            default=argparse.SUPPRESS,  # so that what is parsed is what was given
            metavar=field.name.strip("_").split("_")[-1].upper(),
            help=(help_texts[field.name] + default).replace("%", "%%"),
        )
    given = vars(parser.parse_args())
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a console that cannot show a character shows a ?
    try:
        for name, value in given.items():
            if value == "":
                raise ValueError(f"{flag(name)} is empty")
        main(check(Config(**given)))
    except (ValueError, OSError) as error:
        if sys.flags.dev_mode:
            raise
        print(f"{parser.prog}: {error}", file=sys.stderr)
        sys.exit(2)


def flag(field: str) -> str:
    return "--" + field.strip("_").replace("_", "-")


def check(config: Any) -> Any:
    """Returns the config. Raises ValueError for a number out of its range, and for flags that do not go together."""
    for name, value in vars(config).items():
        low, high = RANGES.get(name, (0, math.inf))
        fits = isinstance(value, str) or (low <= value <= high if name in RANGES else 0 < value < math.inf)
        if not fits:
            expected = f"from {low} to {high}" if name in RANGES else "above 0"
            raise ValueError(f"{flag(name)} must be {expected}, got {value}")
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    if defaults.get("text") == defaults.get("instructions") == "" and bool(config.text) == bool(config.instructions):
        raise ValueError("give either --text or --instructions")
    for name in ("tokenizer", "n_layer", "n_head", "n_embd"):
        if getattr(config, "init_from", "") and name in defaults and getattr(config, name) != defaults[name]:
            raise ValueError(f"{flag(name)} is for a new model: the one from --init-from has its own")
    return config

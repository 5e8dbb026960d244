"""A dataclass becomes a command line: one flag a field, its trailing comment the help."""

import argparse
import dataclasses
import inspect
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
    "held_out": (0, 0.9),
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
        parser.add_argument(
            "--" + field.name.strip("_").replace("_", "-"),
            dest=field.name,
            type=field.type,
            required=required,
            default=None if required else field.default,
            metavar=str(field.name).strip("_").split("_")[-1].upper(),
            help=help_texts[field.name].replace("%", "%%")
            + ("" if required or field.default == "" else " (default: %(default)s)"),
        )
    try:
        main(check(Config(**vars(parser.parse_args()))))
    except (ValueError, OSError) as error:
        if sys.flags.dev_mode:
            raise
        print(f"{parser.prog}: {error}", file=sys.stderr)
        sys.exit(2)


def check(config: Any) -> Any:
    """Returns the config. Raises ValueError for a number out of its range, and unless there is one kind of data."""
    for name, value in vars(config).items():
        low, high = RANGES.get(name, (0, math.inf))
        fits = isinstance(value, str) or (low <= value <= high if name in RANGES else 0 < value < math.inf)
        if not fits:
            expected = f"from {low} to {high}" if name in RANGES else "above 0"
            raise ValueError(f"--{name.replace('_', '-')} must be {expected}, got {value}")
    optional = {field.name for field in dataclasses.fields(config) if field.default == ""}
    if {"text", "instructions"} <= optional and bool(config.text) == bool(config.instructions):
        raise ValueError("give either --text or --instructions")
    return config

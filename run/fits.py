"""What fits a GPU's memory, for GPT-2 and its sisters: the table of docs/memory.md, from the plan.

python -m run.fits
"""

from typing import Any

from model.gpt import GPTConfig
from run.memory import Run
from run.plan import Config
from store.checkpoint import config_of

MODELS = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
MEMORIES = (4, 6, 8, 12)  # in GB
WAYS: dict[str, dict[str, Any]] = {  # what is asked of a script
    "full": {"method": "pretrain"},
    "full, checkpointed": {"method": "pretrain", "checkpoint_activations": True},
    "LoRA": {"method": "lora"},
    "LoRA, checkpointed": {"method": "lora", "checkpoint_activations": True},
}
MOST = 64  # rows: more would not make a GPU faster


def main() -> None:
    """Prints the table, in Markdown."""
    print("| | | " + " | ".join(f"{memory} GB" for memory in MEMORIES) + " |")
    print("| --- | --- |" + " ---: |" * len(MEMORIES))
    for name in MODELS:
        shape = config_of(name)
        for way, settings in WAYS.items():
            cells = [in_words(*most_that_fits(name, shape, settings, 1e9 * memory)) for memory in MEMORIES]
            print(f"| {name} | {way} | {' | '.join(cells)} |")


def most_that_fits(name: str, shape: GPTConfig, settings: dict[str, Any], memory: float) -> tuple[int, int]:
    """As many rows of block_size tokens as fit memory, in bytes, or else one row, halved until it fits.

    Returns rows and tokens a row: (0, 0) where not even 64 tokens fit."""
    T = shape.block_size
    while T >= 64:
        common: dict[str, Any] = {"init_from": name, "block_size": T, "device": "cuda", "precision": "bf16"}
        for rows in range(MOST if T == shape.block_size else 1, 0, -1):
            run = Run(Config(**common, **settings, batch_size=rows), shape, memory=memory)
            if run.peak().total() <= memory:
                return rows, T
        T //= 2
    return 0, 0


def in_words(rows: int, tokens: int) -> str:
    return f"{rows} × {tokens:,}" if rows else "no"


if __name__ == "__main__":
    main()

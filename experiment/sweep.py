"""The learning rates behind compare.py: each method at several, in one table.

    python -m world --out runs/sweep-world --seed 1
    python compare.py --sweep --questions runs/sweep-world/questions.json --out runs/sweep

Methods on the domain are judged by what they learn and forget, instruction tuning by exact match on other questions
than those of the comparison. data/builtin/sweep.md is what this printed.
"""

from collections.abc import Sequence
from pathlib import Path

from evaluate import SPLITS, Yardsticks, judge
from experiment.method import Method
from experiment.report import formatted

RATES = {
    "continued pretraining": (3e-4, 1e-3, 2e-3),
    "LoRA on the domain": (1e-3, 2e-3, 4e-3),
    "SFT": (5e-5, 1e-4, 1.5e-4, 2e-4, 3e-4, 6e-4),
    "LoRA-SFT": (5e-4, 1e-3, 2e-3, 3e-3, 4e-3, 8e-3),
    "adapter-SFT": (2e-3, 4e-3, 8e-3),
    "prefix-SFT": (1e-2, 4e-2, 1e-1, 2e-1),
    "prompt-SFT": (1e-2, 2e-2, 4e-2, 8e-2, 1.6e-1, 3.2e-1),
}


def sweep(methods: Sequence[Method], y: Yardsticks, out: Path) -> None:
    """Prints the table row by row, and writes it to sweep.md."""
    head = ["method", "learning rate", "base NLL", "domain NLL", "response NLL", *SPLITS]
    table = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    print("\n".join(table), flush=True)
    for method in methods:
        for rate in RATES.get(method.name, ()):
            row = judge(method.variant(f"{rate:g}", y.device, learning_rate=rate), y)
            shares = [formatted(row["exact_match"][split], "value", "{:.1%}") for split in SPLITS]
            numbers = [f"{rate:g}", *(f"{row[f'{what}_nll']:.3f}" for what in ("base", "domain", "response"))]
            table.append(f"| {' | '.join([method.name, *numbers, *shares])} |")
            print(table[-1], flush=True)
    (out / "sweep.md").write_text("\n".join(table) + "\n", encoding="utf-8")

"""Plots. matplotlib is no run-time package: without it there is a sentence instead.

python -m run.plot RUN [RUN ...]          the losses of runs over each other, as loss.png in the folder of the last
"""

import csv
import sys
from pathlib import Path

from cli import Mistake, listed, one_sentence

MISSING = "matplotlib is not installed (pip install matplotlib)"


def training(runs: list[Path]) -> str:
    """Draws the training loss and the held-out NLL of runs over their steps. Returns a sentence that says so."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return f"No plot: {MISSING}."
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for run in runs:
        with open(run / "metrics.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        loss = [(int(row["step"]), float(row["loss"])) for row in rows if row.get("loss")]
        if not loss:
            raise Mistake(f"{run} has no steps yet: nothing to draw")
        held_out = [(int(row["step"]), float(row["held_out_nll"])) for row in rows if row["held_out_nll"]]
        [line] = axes.plot(*zip(*smooth(loss, 20), strict=True), label=f"{run.name}: training", alpha=0.4)
        axes.plot(
            *zip(*held_out, strict=True), "o-", markersize=3, color=line.get_color(), label=f"{run.name}: held out"
        )
    axes.set(xlabel="step", ylabel="loss", ylim=(0, None))
    axes.legend()
    figure.savefig(runs[-1] / "loss.png", dpi=100)
    return f"Plot: {runs[-1] / 'loss.png'}."


def smooth(points: list, width: int = 10) -> list[tuple[float, float]]:
    """(step, mean loss) of every `width` steps, or of each step when there are few."""
    width = min(width, max(1, len(points) // 10))
    groups = [points[i : i + width] for i in range(0, len(points), width)]
    return [(group[-1][0], sum(loss for _, loss in group) / len(group)) for group in groups]


if __name__ == "__main__":
    folders = [Path(name) for name in sys.argv[1:]]
    with one_sentence("run.plot"):
        wrong = [str(folder) for folder in folders if not (folder / "metrics.csv").is_file()]
        if wrong or not folders:
            raise Mistake(f"name run folders, each with a metrics.csv in it; without one: {listed(wrong)}")
        print(training(folders))

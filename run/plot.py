"""Plots. matplotlib is no run-time package: without it there is a sentence instead.

python -m run.plot RUN [RUN ...]          the losses of runs over each other, as loss.png in the folder of the last
"""

import csv
import sys
from pathlib import Path
from typing import Any

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
        loss = [(int(row["step"]), float(row["loss"])) for row in rows if row["loss"]]
        held_out = [(int(row["step"]), float(row["held_out_nll"])) for row in rows if row["held_out_nll"]]
        [line] = axes.plot(*zip(*smooth(loss, 20), strict=True), label=f"{run.name}: training", alpha=0.4)
        axes.plot(
            *zip(*held_out, strict=True), "o-", markersize=3, color=line.get_color(), label=f"{run.name}: held out"
        )
    axes.set(xlabel="step", ylabel="loss, nats a token", ylim=(0, None))
    axes.legend()
    figure.savefig(runs[-1] / "loss.png", dpi=100)
    return f"Plot: {runs[-1] / 'loss.png'}."


def comparison(results: dict[str, Any], out: Path) -> str:
    """Draws loss curves, what was learned against what was forgotten, and accuracy by task, all of the first seed, as
    PNG files in `out`. Returns a sentence that says so, or that matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return f"No plots: {MISSING}."
    evidence = results["evidence"][0]

    figure = Figure(figsize=(10, 4), layout="constrained")
    texts, responses = figure.subplots(1, 2)
    for method, points in evidence["losses"].items():
        axes = responses if "SFT" in method else texts
        axes.plot(*zip(*smooth(points), strict=True), label=method)
    for axes, title in ((texts, "on the domain"), (responses, "on the instructions")):
        axes.set(title=title, xlabel="step", ylabel="training loss, nats a token (smoothed)")
        axes.legend()
    figure.savefig(out / "losses.png", dpi=120)

    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    for method, points in evidence["forgetting"].items():
        axes.plot([domain for _, domain, _ in points], [base for _, _, base in points], "o-", label=method)
        for steps, domain, base in points:
            axes.annotate(f" {steps}", (domain, base), fontsize=7, va="bottom")
    axes.set(
        xscale="log", yscale="log", xlabel="perplexity of the domain (to the left: learned)",
        ylabel="perplexity of the base text (upwards: forgotten)", title="after so many steps",
    )  # fmt: skip
    axes.legend()
    figure.savefig(out / "forgetting.png", dpi=120)

    methods = ("SFT", "LoRA-SFT", "SFT, random weights")
    by_split = {
        split: [evidence["rows"][method]["exact_match"][split]["by_task"] for method in methods]
        for split in ("instances", "facts", "tasks")
    }
    bars = [
        (f"{task} ({split})", [by_task[task] for by_task in of_methods])
        for split, of_methods in by_split.items()
        for task in of_methods[0]
    ][::-1]
    if bars:
        figure = Figure(figsize=(8, 0.34 * len(bars) + 1), layout="constrained")
        axes = figure.subplots()
        for i, method in enumerate(methods):
            where = [place + 0.27 * (1 - i) for place in range(len(bars))]
            axes.barh(where, [shares[i]["value"] for _, shares in bars], height=0.27, label=method)
        axes.plot([shares[0]["chance"] for _, shares in bars], range(len(bars)), "k|", markersize=9, label="by chance")
        axes.set(yticks=range(len(bars)), yticklabels=[name for name, _ in bars], xlabel="exact match", xlim=(0, 1))
        axes.set_ylim(-0.6, len(bars) - 0.4)
        axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.03), ncols=4, fontsize=8)
        figure.savefig(out / "tasks.png", dpi=120)
    return "Plots: losses.png, forgetting.png, tasks.png."


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

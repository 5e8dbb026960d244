"""Plots of a comparison's first seed. matplotlib is no run-time package: without it there is a sentence instead."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from experiment.claims import Evidence
from experiment.frozen import SIZES
from experiment.tasks import SPLITS
from run.plot import MISSING, smooth


def losses(figure: Any, evidence: Evidence) -> None:
    figure.set_size_inches(10, 4)
    texts, responses = figure.subplots(1, 2)
    for method, points in evidence["losses"].items():
        axes = responses if "SFT" in method else texts
        axes.plot(*zip(*smooth(points), strict=True), label=method)
    for axes, title in ((texts, "on the domain"), (responses, "on the instructions")):
        axes.set(title=title, xlabel="step", ylabel="training loss, nats a token (smoothed)")
        axes.legend()


def forgetting(figure: Any, evidence: Evidence) -> None:
    figure.set_size_inches(6, 4.5)
    axes = figure.subplots()
    for colour, (method, curves) in enumerate(evidence["forgetting"].items()):
        for curve, line in zip(curves, ("o-", "o:"), strict=True):
            _, domain, base = zip(*curve["points"], strict=True)
            axes.plot(domain, base, line, color=f"C{colour}", label=f"{method}, rate {curve['rate']:.1e}")
            for steps, x, y in curve["points"][1:]:
                axes.annotate(f" {steps}", (x, y), fontsize=7, va="bottom")
    axes.set(
        xlabel="NLL of the domain, nats (to the left: learned)",
        ylabel="NLL of the base text, nats (upwards: forgotten)", title="after so many steps",
    )  # fmt: skip
    axes.legend(fontsize=8)


def in_context(figure: Any, evidence: Evidence) -> None:
    """By the number of examples in the prompt, of either kind of tasks; and by the number of tasks trained on."""
    figure.set_size_inches(10, 3.8)
    *panels, by_number = figure.subplots(1, 3, sharey=True)
    for axes, (kind, of_kind) in zip(panels, evidence["few_shot"].items(), strict=True):
        for name, shares in of_kind.items():
            if isinstance(shares, dict):
                axes.plot([int(k) for k in shares], shares.values(), "o-", label=name)
        axes.axhline(of_kind["chance"], color="k", linewidth=0.8, linestyle=":")
        axes.set(title=f"tasks {kind}", xlabel="examples in the prompt", xticks=(0, 1, 2, 4), ylim=(0, 1))
    panels[0].set_ylabel("right first lines")
    panels[0].legend(fontsize=8)
    numbers = evidence["number_of_tasks"]
    labels = {"zero_shot": "no example, exact match", "few_shot": "four examples, first lines"}
    for colour, (key, label) in zip(("C0", "C1"), labels.items(), strict=True):
        draws = [[draw[key] for draw in point["draws"]] for point in numbers]
        means = [sum(shares) / len(shares) for shares in draws]
        by_number.plot([point["tasks"] for point in numbers], means, "o-", color=colour, label=label)
        for point, shares in zip(numbers, draws, strict=True):
            by_number.plot([point["tasks"]] * len(shares), shares, "_", color=colour)
    by_number.set(title="tasks never trained", xlabel="tasks that LoRA-SFT trained on")
    by_number.legend(fontsize=8)


def tasks(figure: Any, evidence: Evidence) -> None:
    methods = ("SFT", "LoRA-SFT", "SFT, random weights")
    exact = [evidence["rows"][method]["exact_match"] for method in methods]
    bars = [
        (f"{task} ({split})", [of_method[split]["by_task"][task] for of_method in exact])
        for split in ("instances", "facts", "tasks")
        for task in exact[0][split]["by_task"]
    ][::-1]
    figure.set_size_inches(8, 0.34 * len(bars) + 1)
    axes = figure.subplots()
    for i, method in enumerate(methods):
        where = [place + 0.27 * (1 - i) for place in range(len(bars))]
        axes.barh(where, [shares[i]["value"] for _, shares in bars], height=0.27, label=method)
    axes.plot([shares[0]["chance"] for _, shares in bars], range(len(bars)), "k|", markersize=9, label="by chance")
    axes.set(yticks=range(len(bars)), yticklabels=[name for name, _ in bars], xlabel="exact match", xlim=(0, 1))
    axes.set_ylim(-0.6, max(1, len(bars)) - 0.4)
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.03), ncols=4, fontsize=8)


def exact_match(figure: Any, evidence: Evidence) -> None:
    """Against how many numbers learn."""
    figure.set_size_inches(9, 4)
    for axes, split in zip(figure.subplots(1, 2, sharey=True), ("instances", "facts"), strict=True):
        for name, row in evidence["rows"].items():
            if name != "base" and row["exact_match"][split]["n"]:
                points = [(row["trainable"], row["exact_match"][split]["value"])]
                if split == "instances" and name in SIZES:
                    less = evidence["smaller"][name]
                    points = [(less["trainable"], less["instances"]["value"]), *points]
                axes.plot(*zip(*points, strict=True), "o-", label=name)
        axes.set(title=f"new {split}", xscale="log", xlabel="numbers that learn", ylim=(0, 1.03))
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("exact match")
    figure.axes[0].legend(fontsize=8, loc="lower right")


def told_right(figure: Any, evidence: Evidence) -> None:
    """By who learns, on seen and on unseen words."""
    figure.set_size_inches(10, 4)
    rows = evidence["rows"]
    panels = [("lists: the group of the words", "lists", ""), ("pairs of words", "pairs", "")]
    panels += [("tags: who gives, who takes", "tags", " roles")]
    for axes, (title, task, what) in zip(figure.subplots(1, 3, sharey=True), panels, strict=True):
        asked = {n: of_tasks[task] for n, of_tasks in enumerate(rows.values()) if task in of_tasks}
        for split, up in zip(SPLITS, (-0.2, 0.2), strict=True):
            where = [n + up for n in asked]
            axes.barh(where, [one[split + what]["value"] for one in asked.values()], height=0.4, label=f"{split} words")
            axes.plot([one[split + what]["chance"] for one in asked.values()], where, "k|", markersize=9)
        axes.set(title=title, xlabel="told right (|: by chance)", xlim=(0, 1), yticks=range(len(rows)))
    axes.set_yticklabels(list(rows))
    axes.invert_yaxis()
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)


def preferred(figure: Any, evidence: Evidence) -> None:
    """The chosen responses' NLL under DPO, the rewards under RLHF, and style against right answers."""
    figure.set_size_inches(12, 4)
    chosen, reward, answers = figure.subplots(1, 3)
    for axes, column in ((chosen, "chosen_nll"), (reward, "reward")):
        for name, rows in evidence["metrics"].items():
            if points := [(int(row["step"]), float(row[column])) for row in rows if row.get(column)]:
                axes.plot(*zip(*smooth(points, 5), strict=True), label=name)
        axes.set(xlabel="step")
        axes.legend(fontsize=8)
    chosen.set(title="chosen responses", ylabel="NLL, nats a token", yscale="log")
    reward.set(title="own answers", ylabel="reward, as each run counts it")
    for name, row in evidence["rows"].items():
        if row["style"] is not None and name != "base":
            answers.plot(row["style"], row["right"], "o", label=name)
    answers.set(title="answers to new instances", xlabel="in the preferred style", ylabel="right, in either style")
    answers.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    answers.legend(fontsize=8)


def saved(drawings: dict[str, Callable[[Any, Evidence], None]], results: dict[str, Any], out: Path) -> str:
    """Draws the first seed, each drawing as NAME.png in `out`. Returns a sentence that says so, or that matplotlib is
    missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return f"No plots: {MISSING}."
    for name, draw in drawings.items():
        figure = Figure(layout="constrained")
        draw(figure, results["evidence"][0])
        figure.savefig(out / f"{name}.png", dpi=120)
    return f"Plots: {', '.join(f'{name}.png' for name in drawings)}."


# of a comparison of each family: (results, out)
comparison = partial(saved, {"losses": losses, "forgetting": forgetting, "in_context": in_context, "tasks": tasks})
learned = partial(saved, {"learned": exact_match})
classes = partial(saved, {"classes": told_right})
preference = partial(saved, {"preference": preferred})

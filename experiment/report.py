"""What a comparison found, in Markdown: the table, its legend, and the ledger of claims."""

import math
import statistics
from typing import Any

from evaluate import SPLITS
from experiment.verdicts import t_975


def averaged(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One method's rows of all seeds as one: means, and beside a mean x its 95 % interval, as x_interval."""
    first, merged = rows[0], {}
    for key, value in first.items():
        values = [row[key] for row in rows]
        if isinstance(value, dict):
            merged[key] = averaged(values)
        elif isinstance(value, float) and len(rows) > 1:
            merged[key] = statistics.mean(values)
            merged[f"{key}_interval"] = t_975(len(rows) - 1) * statistics.stdev(values) / math.sqrt(len(rows))
        else:
            merged[key] = value
    return merged


COLUMNS = {  # heading of the table: key in results.json, format
    "method": ("method", "{}"),
    "learns": ("trainable", "{:,}"),
    "seconds": ("seconds", "{:.0f}"),
    "peak MB": ("peak_mb", "{:.0f}"),
    "checkpoint": ("checkpoint_bytes", "{:,}"),
    "base NLL": ("base_nll", "{:.3f}"),
    "domain NLL": ("domain_nll", "{:.3f}"),
    "response NLL": ("response_nll", "{:.3f}"),
}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown; a dash stands for what this system cannot measure, ± for a 95 % interval."""
    lines = [[*COLUMNS, *SPLITS]]
    for row in rows:
        line = [formatted(row, key, form) for key, form in COLUMNS.values()]
        lines.append(line + [formatted(row["exact_match"][split], "value", "{:.1%}") for split in SPLITS])
    guessed = [formatted(rows[0]["exact_match"][split], "chance", "{:.1%}") for split in SPLITS]
    lines.append(["by chance", *["–"] * (len(COLUMNS) - 1), *guessed])
    return aligned(lines)


def aligned(lines: list[list[str]]) -> str:
    """A table in Markdown, of a heading and rows."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines = [lines[0], ["-" * (width - 1) + ":" for width in widths], *lines[1:]]
    return "\n".join(f"| {' | '.join(map(str.rjust, line, widths))} |" for line in lines)


def formatted(row: dict[str, Any], key: str, form: str) -> str:
    if row[key] is None:
        return "–"
    interval = row.get(f"{key}_interval")
    exact = interval is None or key in ("seconds", "peak_mb")
    return form.format(row[key]) + ("" if exact else f" ± {form.format(interval)}")


def legend(results: dict[str, Any]) -> str:
    n = {split: share["n"] for split, share in results["rows"][0]["exact_match"].items()}
    seeds = len(results["seeds"])
    return (
        "learns: parameters; peak MB: the most memory the process held; checkpoint: bytes. The rest: held-out data.\n"
        "NLL: nats a token, and the exponential of it is the perplexity: of the base's text (what is forgotten), of\n"
        "the domain (what is learned), and of the responses to new instances; then exact match of greedy answers,\n"
        "which must end where the response ends: "
        + ", ".join(f"{count} {split}" for split, count in n.items())
        + ".\n"
        + ("One seed: no intervals." if seeds == 1 else f"Means of {seeds} seeds, ± 95 % intervals.")
        + (" Quick: a few steps and questions, so the numbers are small and rough." if results["quick"] else "")
    )


def page(results: dict[str, Any]) -> str:
    return f"{table(results['rows'])}\n\n{legend(results)}"


def claims(entries: list[dict[str, Any]]) -> str:
    """The ledger as a list in Markdown."""
    lines = []
    for entry in entries:
        lines.append(f"- {entry['number']}. {entry['claim']} **{entry['verdict']}**")
        several = len(entry["numbers"]) > 1
        lines += [f"   - {f'seed {i}: ' if several else ''}{numbers}" for i, numbers in enumerate(entry["numbers"])]
    return "\n".join(lines)


def samples(said: dict[str, list[dict[str, str]]]) -> str:
    """Prompt by prompt, what each method writes."""
    parts = []
    for i, sample in enumerate(said["base"]):
        lines = [f"{method:>21} |{of_method[i]['answer']}" for method, of_method in said.items()]
        parts.append("\n".join([sample["prompt"], *[line.replace("\n", "\n" + " " * 22 + "|") for line in lines]]))
    return "\n\n".join(f"```\n{part}\n```" for part in parts) + "\n"

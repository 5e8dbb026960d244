"""What a comparison found: the table, its legend and the ledger of claims in Markdown, and all of it as one page.

    python -m experiment.report RUN [RUN ...]         report.html of comparisons, made again from their results.json

The page needs no network and nothing beside it. Its plots are experiment/figures.py's.
"""

import json
import math
import re
import statistics
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from cli import Mistake, flag, listed, one_sentence
from data.files import write_whole
from evaluate import SPLITS
from experiment.figures import COLOURS, SHAPES, SHARES, Figure, figures, measures, named, of_seed, svg
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
    asked = (f"{share['n']} {split}" for split, share in results["rows"][0]["exact_match"].items())
    return (
        "learns: parameters; peak MB: the most memory the process held; checkpoint: bytes. The rest: held-out data.\n"
        "NLL: nats a token, and the exponential of it is the perplexity: of the base's text (what is forgotten), of\n"
        "the domain (what is learned), and of the responses to new instances; then exact match of greedy answers,\n"
        f"which must end where the response ends: {', '.join(asked)}.\n{how_exact(results)}"
    )


def how_exact(results: dict[str, Any]) -> str:
    """The last sentences of each family's legend."""
    seeds = len(results["seeds"])
    quick = " Quick: a few steps and questions, so the numbers are small and rough." if results["quick"] else ""
    return ("One seed: no intervals." if seeds == 1 else f"Means of {seeds} seeds, ± 95 % intervals.") + quick


def page(results: dict[str, Any]) -> str:
    return f"{table(results['rows'])}\n\n{legend(results)}"


def claims(entries: list[dict[str, Any]]) -> str:
    """The ledger as a list in Markdown."""
    lines = []
    for entry in entries:
        lines.append(f"- {entry['number']}. {entry['claim']} **{entry['verdict']}**")
        lines += [f"   - {of_seed(i, entry['numbers'])}{numbers}" for i, numbers in enumerate(entry["numbers"])]
    return "\n".join(lines)


def samples(said: dict[str, list[dict[str, str]]]) -> str:
    """Prompt by prompt, what each method writes."""
    parts = []
    for i, sample in enumerate(said["base"]):
        lines = [f"{method:>21} |{of_method[i]['answer']}" for method, of_method in said.items()]
        parts.append("\n".join([sample["prompt"], *[line.replace("\n", "\n" + " " * 22 + "|") for line in lines]]))
    return "\n\n".join(f"```\n{part}\n```" for part in parts) + "\n"


# ---- as one page -------------------------------------------------------------------------------------------------

KEYS = ("only", "settings", "machine", "seconds", "seeds", "quick", "rows", "claims", "samples", "evidence")
HEADINGS = {key: heading for heading, (key, _) in COLUMNS.items()}
FORMS = dict(COLUMNS.values()) | dict.fromkeys(SHARES, "{:.1%}") | {"ms": "{:.1f}", "kl": "{:.2f}", "length": "{:.1f}"}


def html(results: dict[str, Any]) -> str:
    """A comparison of any family: whatever rows, claims, samples and evidence it has."""
    seeds, quick = len(results["seeds"]), "; quick: small and rough numbers" if results["quick"] else ""
    counted = "one seed" if seeds == 1 else f"means of {seeds} seeds, ± 95 % intervals"
    blanks = {
        "SUBJECT": escape(results["only"]),
        "SUMMARY": f"{counted}; {results['seconds']:.0f} s on {escape(results['machine']['processor'])}{quick}.",
        "TABLE": table_of(results["rows"]),
        "FIGURES": "".join(map(figure, figures(results["evidence"]))),
        "CLAIMS": "".join(map(claim, results["claims"])),
        "SAMPLES": samples_of(results["samples"]) or "<p>None were drawn.</p>",
        "SETTINGS": pairs_of({flag(name): value for name, value in results["settings"].items()}),
        "MACHINE": pairs_of(results["machine"]),
    }
    frame = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    return re.sub(r"\{([A-Z]+)\}", lambda blank: blanks[blank[1]], frame)


def table_of(rows: Sequence[dict[str, Any]]) -> str:
    """A column a measure, which a click sorts by."""
    found = [dict(measures(row)) for row in rows]
    paths = list(dict.fromkeys(path for row in sorted(found, key=len, reverse=True) for path in row))
    names = ["method", *(HEADINGS.get(path[0], named(path)) for path in paths)]
    head = "".join(f'<th scope="col"><button type="button">{escape(name)}</button></th>' for name in names)
    body = ""
    for row, measured in zip(rows, found, strict=True):
        cells = "".join(cell(row, path, measured.get(path)) for path in paths)
        body += f'<tr><th scope="row">{escape(row["method"])}</th>{cells}</tr>\n'
    first = [next(row[path] for row in found if path in row) for path in paths]
    guessed = [f"{one['chance']:.1%}" if isinstance(one, dict) and one["n"] else "–" for one in first]
    chance = "".join(f"<td>{share}</td>" for share in guessed)
    foot = f'<tfoot><tr><th scope="row">by chance</th>{chance}</tr></tfoot>'
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody>{foot}</table>"


def cell(row: dict[str, Any], path: Sequence[str], found: Any) -> str:
    """A number as the table in Markdown has it, with the bare one to sort by."""
    *parents, key = path
    for parent in parents:
        row = row.get(parent, {})
    form = FORMS.get(key, "{:,}" if isinstance(found, int) else "{:.3f}")
    if isinstance(found, dict):
        row, key, form = found, "value", "{:.1%}"
    if row.get(key) is None:
        return "<td>–</td>"
    return f'<td data-value="{row[key]}">{formatted(row, key, form)}</td>'


def figure(of: Figure) -> str:
    """A plot of several panels, with a legend where it has more than one series, and its numbers as a table."""
    parts = []
    for panel in of.panels:
        keys = "".join(
            f'<li><svg viewBox="-6 -6 12 12" aria-hidden="true"><path class="dot c{n % COLOURS}" '
            f'd="{SHAPES[n % len(SHAPES)]}"/></svg> {escape(series.name)}</li>'
            for n, series in enumerate(panel.series)
        )
        legend = f'<ul class="legend">{keys}</ul>' if len(panel.series) > 1 else ""
        y = f'<p class="axis">{escape(panel.y)} ↑</p>' if panel.y else ""
        parts.append(f'<div class="panel"><h4>{escape(panel.title)}</h4>{y}{svg(panel)}{legend}</div>')
    told = [what for panel in of.panels for series in panel.series for _, _, what in series.dots]
    numbers = "".join(f"<li>{escape(what)}</li>" for what in told)
    return (
        f"<figure><h3>{escape(of.title)}</h3><figcaption>{escape(of.note)}</figcaption>"
        f'<div class="panels">{"".join(parts)}</div>'
        f"<details><summary>The numbers</summary><ul>{numbers}</ul></details></figure>\n"
    )


def claim(entry: dict[str, Any]) -> str:
    kind = {"holds": "holds", "does not hold": "fails"}.get(entry["verdict"], "unseen")
    numbers = "".join(f"<li>{of_seed(n, entry['numbers'])}{escape(s)}</li>" for n, s in enumerate(entry["numbers"]))
    return (
        f"<tr><td>{escape(entry['number'])}</td><td>{escape(entry['claim'])}<ul>{numbers}</ul></td>"
        f'<td><span class="{kind}">{escape(entry["verdict"])}</span></td></tr>\n'
    )


def samples_of(said: dict[str, list[dict[str, str]]]) -> str:
    """Prompt by prompt, what each method writes."""
    parts = ""
    for samples in zip(*said.values(), strict=True):
        cells = "".join(
            f"<div><h4>{escape(method)}</h4><pre>{escape(sample['answer'])}</pre></div>"
            for method, sample in zip(said, samples, strict=True)
        )
        prompt = f'<h3 class="prompt"><span>After</span></h3><pre>{escape(samples[0]["prompt"])}</pre>'
        parts += f'{prompt}<div class="answers">{cells}</div>\n'
    return parts


def pairs_of(values: dict[str, Any]) -> str:
    return "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>" for name, value in values.items())


def read(folder: Path) -> dict[str, Any]:
    """The results of a finished comparison. Raises a Mistake if there are none, or an earlier release wrote them."""
    file = folder / "results.json"
    if not file.is_file():
        raise Mistake(f"{folder} has no results.json: name the --out of a compare.py that has finished")
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        missing = [key for key in KEYS if key not in results]
    except (ValueError, TypeError) as error:
        raise Mistake(f"{file} is not what compare.py has written: {error}") from error
    if missing:
        raise Mistake(f"{file} lacks {listed(missing)}: an earlier release wrote it; run compare.py again")
    return results


if __name__ == "__main__":
    with one_sentence("experiment.report"):
        if not sys.argv[1:]:
            raise Mistake("name folders of compare.py, each with a results.json in it")
        for folder in map(Path, sys.argv[1:]):
            write_whole(folder / "report.html", html(read(folder)).encode())
            print(f"Report: {folder / 'report.html'}. It opens in any browser.")

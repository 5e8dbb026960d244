"""The plots of a report, as SVG in its page: each says what a part of the evidence holds, of all seeds.

A dot is a seed (or a draw), a line the mean, a dashed line chance. What a mark is stands in its <title>, which the page
shows to who points at it; and all of it is in a table below the plot.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from experiment.claims import Evidence
from run.plot import smooth

Point = tuple[float, float, str]  # x, y, what it is


class Series(NamedTuple):
    name: str
    dots: Sequence[Point]
    line: Sequence[tuple[float, float]] = ()


class Panel(NamedTuple):
    title: str
    x: str  # what is to the right
    y: str  # what is upwards; "" where names stand there
    series: Sequence[Series]
    is_log: bool = False  # to the right
    names: Sequence[str] = ()  # of places 0, 1, … upwards
    chance: float | None = None  # upwards, or of names to the right
    x_is_share: bool = False
    y_is_share: bool = False


class Figure(NamedTuple):
    title: str
    note: str
    panels: Sequence[Panel]


# ---- what is drawn of which evidence -----------------------------------------------------------------------------


def figures(seeds: Sequence[Evidence]) -> Iterator[Figure]:
    """seeds: the evidence of each."""
    yield by_method(seeds)
    if all("exact_match" in row for row in seeds[0]["rows"].values()):
        yield by_task(seeds)
    for key, figure in FIGURES.items():
        if key in seeds[0]:
            yield figure(seeds)


def measures(row: Mapping[str, Any], before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The measures in a row of the table, each with its path in it: numbers, and shares as {"value", "n", "chance"}."""
    for key, value in row.items():
        if isinstance(value, dict) and "value" in value:
            yield (*before, key), value
        elif isinstance(value, dict):
            yield from measures(value, (*before, key))
        elif isinstance(value, int | float) and key not in ("total", "held_out_nll") and not key.endswith("_interval"):
            yield (*before, key), value


def named(path: Sequence[str]) -> str:
    """What a measure is called: exact match by its split alone."""
    return " ".join(part for part in path if part != "exact_match").replace("_nll", " NLL").replace("_", " ")


# what --only preference measures without a chance beside it; what has no unit here is in nats a token
SHARES = ("style", "right", "sampled_style", "sampled_right", "pairs")
UNITS = {"kl": "nats an answer", "length": "tokens"} | dict.fromkeys(SHARES, "share")


def by_method(seeds: Sequence[Evidence]) -> Figure:
    """A panel for each measure that is no cost: a line a method, a dot a seed."""
    methods = [*seeds[0]["rows"]][::-1]
    found: dict[tuple[str, ...], list[Point]] = {}
    chance: dict[tuple[str, ...], float] = {}
    for number, evidence in enumerate(seeds):
        for method, row in evidence["rows"].items():
            for path, value in measures(row):
                if isinstance(value, dict) and value["n"]:
                    chance[path], value = value["chance"], value["value"]
                if isinstance(value, float) and path[-1] not in ("seconds", "peak_mb", "ms"):
                    what = f"{method}, {of_seed(number, seeds)}{shown(value, unit_of(path, chance))}"
                    found.setdefault(path, []).append((value, methods.index(method), what))
    panels = [
        Panel(named(path), unit_of(path, chance), "", [Series("a seed", dots)], names=methods,
              chance=chance.get(path), x_is_share=unit_of(path, chance) == "share")
        for path, dots in found.items()
    ]  # fmt: skip
    return Figure("What each method reaches", "A dot is a seed, a dashed line chance.", panels)


def unit_of(path: tuple[str, ...], chance: Mapping[tuple[str, ...], float]) -> str:
    return "share" if path in chance else UNITS.get(path[-1], "nats a token")


def by_task(seeds: Sequence[Evidence]) -> Figure:
    """Exact match of each task, of those methods that learned from instructions."""
    methods = [name for name in ("SFT", "LoRA-SFT", "SFT, random weights") if name in seeds[0]["rows"]]
    panels = []
    for split, first in seeds[0]["rows"][methods[0]]["exact_match"].items():
        tasks = [*first["by_task"]][::-1]
        series = [
            Series(name, [
                (share["value"], tasks.index(task), f"{task}, {name}, {of_seed(number, seeds)}{share['value']:.1%}")
                for number, evidence in enumerate(seeds)
                for task, share in evidence["rows"][name]["exact_match"][split]["by_task"].items()
            ])
            for name in methods
        ]  # fmt: skip
        guesses = [
            (share["chance"], tasks.index(task), f"{task}, by chance: {share['chance']:.1%}")
            for task, share in first["by_task"].items()
        ]
        series.append(Series("by chance", guesses))
        if tasks:
            panels.append(Panel(split, "exact match", "", series, names=tasks, x_is_share=True))
    return Figure("Task by task", "A dot is a seed.", panels)


def losses(seeds: Sequence[Evidence]) -> Figure:
    def panel(title: str, of_sft: bool) -> Panel:
        series = []
        for method, points in seeds[0]["losses"].items():
            if ("SFT" in method) == of_sft:
                line = smooth(points)
                series.append(Series(method, [(x, y, f"{method}, step {x}: {y:.3f}") for x, y in line], line))
        return Panel(title, "step", "training loss, nats a token", series)

    panels = [panel("on texts", False), panel("on instructions", True)]
    note = "The training loss of the first seed, smoothed."
    return Figure("How it was learned", note, [panel for panel in panels if panel.series])


def forgetting(seeds: Sequence[Evidence]) -> Figure:
    series = []
    for method, curves in seeds[0]["forgetting"].items():
        for place, curve in enumerate(curves):
            line = [(domain, base) for _, domain, base in curve["points"]]
            dots = [
                (domain, base, f"{method}, rate {curve['rate']:.0e}, {of_seed(number, seeds)}after {steps} steps: "
                 f"domain {domain:.3f}, base {base:.3f}")
                for number, evidence in enumerate(seeds)
                for steps, domain, base in evidence["forgetting"][method][place]["points"]
            ]  # fmt: skip
            series.append(Series(f"{method}, rate {curve['rate']:.0e}", dots, line))
    panel = Panel("after more and more steps", "NLL of the domain, nats", "NLL of the base text, nats", series)
    return Figure(
        "Learned against forgotten", "To the left: learned. Upwards: forgotten. A line is the first seed.", [panel]
    )


def few_shot(seeds: Sequence[Evidence]) -> Figure:
    panels = []
    for kind, of_kind in seeds[0]["few_shot"].items():
        series = []
        for name in (name for name, shares in of_kind.items() if isinstance(shares, dict)):
            of_seeds = [evidence["few_shot"][kind][name] for evidence in seeds]
            dots = [
                (int(k), share, f"{name}, {k} examples, {of_seed(number, seeds)}{share:.1%}")
                for number, shares in enumerate(of_seeds)
                for k, share in shares.items()
            ]
            line = [(int(k), statistics.mean(shares[k] for shares in of_seeds)) for k in of_seeds[0]]
            series.append(Series(name, dots, line))
        where = {"chance": of_kind["chance"], "y_is_share": True}
        panels.append(Panel(f"tasks {kind}", "examples in the prompt", "right first lines", series, **where))
    return Figure("Examples in the prompt", "A dot is a seed, a line the mean, a dashed line chance.", panels)


def number_of_tasks(seeds: Sequence[Evidence]) -> Figure:
    series = []
    for key, name in (("zero_shot", "no example"), ("few_shot", "four examples")):
        draws = {
            point["tasks"]: [draw[key] for evidence in seeds for draw in evidence["number_of_tasks"][place]["draws"]]
            for place, point in enumerate(seeds[0]["number_of_tasks"])
        }
        dots = [(n, share, f"{n} tasks, {name}: {share:.1%}") for n, shares in draws.items() for share in shares]
        series.append(Series(name, dots, [(n, statistics.mean(shares)) for n, shares in draws.items()]))
    panel = Panel("tasks never trained", "tasks that LoRA-SFT trained on", "right", series, y_is_share=True)
    return Figure("How many tasks it takes", "A dot is a draw of tasks, a line the mean.", [panel])


def learned(seeds: Sequence[Evidence]) -> Figure:
    """Exact match against how many numbers learn; some methods have a smaller variant too."""
    panels = []
    for split in ("instances", "facts"):
        series, shares = [], seeds[0]["rows"]["base"]["exact_match"][split]
        if not shares["n"]:
            continue
        for name in (name for name in seeds[0]["rows"] if name != "base"):
            rows = [evidence["rows"][name] for evidence in seeds]
            points = [(row["trainable"], row["exact_match"][split]["value"]) for row in rows]
            if split == "instances":
                less = [evidence["smaller"][name] for evidence in seeds if name in evidence["smaller"]]
                points += [(one["trainable"], one["instances"]["value"]) for one in less]
            sizes = sorted({x for x, _ in points})
            line = [(size, statistics.mean(y for x, y in points if x == size)) for size in sizes]
            series.append(Series(name, [(x, y, f"{name}, {x:,} numbers: {y:.1%}") for x, y in points], line))
        where = {"chance": shares["chance"], "y_is_share": True, "is_log": True}
        panels.append(Panel(f"new {split}", "numbers that learn", "exact match", series, **where))
    return Figure("What is reached with how few numbers", "A dot is a seed, a dashed line chance.", panels)


FIGURES: dict[str, Callable[[Sequence[Evidence]], Figure]] = {  # by what they are drawn from
    "losses": losses,
    "forgetting": forgetting,
    "few_shot": few_shot,
    "number_of_tasks": number_of_tasks,
    "smaller": learned,
}


def of_seed(number: int, seeds: Sequence[Evidence]) -> str:
    return f"seed {number}: " if len(seeds) > 1 else ""


def shown(value: float, unit: str) -> str:
    return f"{value:.1%}" if unit == "share" else f"{value:.3f}"


# ---- as SVG ------------------------------------------------------------------------------------------------------

WIDTH, HIGH, LEFT, RIGHT, TOP, BELOW = 380, 230, 46, 12, 10, 38  # of a panel, and around what is drawn in it
A_NAME, LETTER = 20, 6.3  # how high a name's place is, and how wide a letter, at most
SHAPES = ("M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0", "M-3 -3h6v6h-6z", "M0 -4L4 3H-4z", "M0 -4.5L4 0L0 4.5L-4 0z")
COLOURS = 8


def svg(panel: Panel) -> str:
    """One panel; its text says what it is in words."""
    left = LEFT + (LETTER * max(map(len, panel.names)) - 38 if panel.names else 0)
    height = A_NAME * len(panel.names) + TOP + BELOW if panel.names else HIGH
    dots = [dot for series in panel.series for dot in series.dots]  # which no line leaves
    x_ticks = ticks([x for x, _, _ in dots], panel.is_log, panel.x_is_share)
    y_ticks = [*range(len(panel.names))] if panel.names else ticks([y for _, y, _ in dots], False, panel.y_is_share)
    x_of = scale(x_ticks, (left, WIDTH - RIGHT), panel.is_log)
    low, high = (-0.5, len(panel.names) - 0.5) if panel.names else (y_ticks[0], y_ticks[-1])
    y_of = scale([low, high], (height - BELOW, TOP), False)
    parts = []
    for x in x_ticks:
        parts.append(f'<path class="grid" d="M{x_of(x):.1f} {TOP}V{height - BELOW}"/>')
        parts.append(text_at(x_of(x), height - BELOW + 15, tick(x, panel.x_is_share), "middle"))
    for y in y_ticks:
        said = panel.names[int(y)] if panel.names else tick(y, panel.y_is_share)
        parts.append(f'<path class="grid" d="M{left:.1f} {y_of(y):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(text_at(left - 6, y_of(y) + 4, said, "end"))
    parts.append(text_at((left + WIDTH - RIGHT) / 2, height - 6, panel.x, "middle"))
    if panel.chance is not None:
        where = f"M{x_of(panel.chance):.1f} {TOP}V{height - BELOW}"
        where = where if panel.names else f"M{left} {y_of(panel.chance):.1f}H{WIDTH - RIGHT}"
        parts.append(f'<path class="chance" d="{where}"><title>by chance: {panel.chance:.1%}</title></path>')
    for number, series in enumerate(panel.series):
        colour = f"c{number % COLOURS}"
        if len(series.line) > 1:
            line = "L".join(f"{x_of(x):.1f} {y_of(y):.1f}" for x, y in series.line)
            parts.append(f'<path class="line {colour}" d="M{line}"/>')
        shape = SHAPES[number % len(SHAPES)]
        aside = 4 * (number - (len(panel.series) - 1) / 2) if panel.names else 0  # so that none hides another
        for x, y, what in series.dots:
            where = f'transform="translate({x_of(x):.1f} {y_of(y) + aside:.1f})"'
            parts.append(f'<path class="dot {colour}" {where} d="{shape}"><title>{escape(what)}</title></path>')
    upwards = f"{panel.y} upwards" if panel.y else "a line for each method"
    label = escape(f"{panel.title}: {panel.x} to the right, {upwards}", quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def text_at(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def ticks(values: Sequence[float], is_log: bool, is_share: bool) -> list[float]:
    """Round numbers, the first at most the lowest value, and the last at least the highest; of shares 0 to 1."""
    if is_share:
        return [0, 0.25, 0.5, 0.75, 1]
    low, high = min(values), max(values)
    if is_log:
        return [10.0**n for n in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    step = 10.0 ** math.floor(math.log10((high - low) or abs(high) or 1))
    step = next(step * by for by in (0.2, 0.5, 1, 2) if (high - low) / (step * by) <= 5)
    return [
        step * n for n in range(math.floor(low / step), max(math.ceil(high / step), math.floor(low / step) + 1) + 1)
    ]


def tick(value: float, is_share: bool) -> str:
    return f"{value:.0%}" if is_share else f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def scale(values: Sequence[float], pixels: tuple[float, float], is_log: bool) -> Callable[[float], float]:
    """From a value to where it stands, between the first and the last."""
    where = math.log10 if is_log else float
    low, high = where(values[0]), where(values[-1])
    return lambda value: pixels[0] + (where(value) - low) / (high - low) * (pixels[1] - pixels[0])

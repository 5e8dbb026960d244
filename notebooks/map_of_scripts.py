"""The training scripts on a map: which of three questions each answers in another way than its nearest sibling.

    python -m notebooks.map_of_scripts [--out docs/map.svg]

To the right goes what is predicted, downwards what learns; a line leads from each script to its nearest sibling, with
the number of lines in which the two differ.
"""

import difflib
import textwrap
import xml.sax.saxutils
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cli import command_line

ROOT = Path(__file__).parent.parent


class Place(NamedTuple):
    """A script's answers to the three questions, its nearest sibling, and where it stands on the map."""

    name: str
    predicted: str
    learns: str
    asked: str  # what the loss asks for
    nearest: str
    column: float
    row: int


LIKELY = "be likely: cross-entropy"
PLACES = {
    "pretrain": Place("Pretraining", "the next token, everywhere", "everything", LIKELY, "", 1, 0),
    "sft": Place("SFT", "the next token, in the response", "everything", LIKELY, "pretrain", 2, 0),
    "lora": Place("LoRA", "the next token, either way", "A and B", LIKELY, "sft", 1.5, 2),
    "adapter": Place("Adapters", "the next token, either way", "bottlenecks", LIKELY, "lora", 0.5, 2),
    "prefix": Place("Prefixes", "the next token, either way", "keys and values", LIKELY, "lora", 2.5, 2),
    "prompt": Place("Prompts", "the next token, either way", "embeddings", LIKELY, "prefix", 3.5, 2),
    "classifier": Place("Classifier", "a label, or a tag a word", "a head, and more", LIKELY, "sft", 3, 1),
    "mlm": Place("Masked LM", "the token behind a mask", "everything", LIKELY, "pretrain", 0, 0),
    "reward": Place("Reward model", "which response is better", "a head, and more", "give it more", "classifier", 4, 1),
    "dpo": Place("DPO", "which response is better", "everything", "be likelier", "sft", 4, 0),
    "rlhf": Place("RLHF", "its own responses", "everything", "be rewarded", "sft", 5, 0),
}  # fmt: skip
ROWS = ("everything learns", "a new head, and the base as far as one says", "what stands beside a frozen base", "yours")
ACROSS, DOWN, LEFT, TOP = 178, 118, 128, 58  # pixels from a column to the next, from a row to the next; and before them
WIDE, HIGH = 146, 56  # of a script


@dataclass(kw_only=True)
class Config:
    out: str = "docs/map.svg"  # file to write the picture to


def main(config: Config) -> None:
    text = picture(Map(there()))
    Path(config.out).write_text(text, encoding="utf-8", newline="\n")
    print(f"Map: {config.out}")


def there() -> list[str]:
    """The training scripts that there are: those of the map in its order, then others."""
    names = sorted(path.name for path in ROOT.glob("train_*.py"))
    return sorted(names, key=lambda name: [*PLACES].index(method(name)) if method(name) in PLACES else len(PLACES))


def method(script: str) -> str:
    return script.removeprefix("train_").removesuffix(".py")


def normalised(line: str) -> str:
    """A line as `diff -w` compares it. (A line moved to the right is the same line.)"""
    return " ".join(line.split())


def n_changed(one: str, other: str) -> int:
    """The number of lines in which two scripts differ, of both together, as `diff -w -B` compares them."""
    texts = [(ROOT / script).read_text(encoding="utf-8").splitlines() for script in (one, other)]
    lines = [[normalised(line) for line in text if line.strip()] for text in texts]
    blocks = difflib.SequenceMatcher(None, lines[0], lines[1]).get_matching_blocks()
    return sum(map(len, lines)) - 2 * sum(block.size for block in blocks)


Heading = tuple[tuple[float, float], str]


class Edge(NamedTuple):
    """From a script to its nearest sibling."""

    one: str
    other: str
    n: int  # lines in which they differ
    path: str  # as SVG draws it
    at: tuple[float, float]  # of its middle


class Map:
    """Where everything is, in pixels."""

    def __init__(self, scripts: Sequence[str]) -> None:
        self.scripts = scripts
        self.places: dict[str, Place] = {}
        for script in scripts:
            self.places[script] = PLACES.get(method(script)) or self.place_of_another(script)
        self.columns = {p.column: p.predicted for p in self.places.values() if p.row < 2}
        self.rows = {place.row: ROWS[place.row] for place in self.places.values()}
        self.at: dict[str, tuple[float, float]] = {
            script: (LEFT + ACROSS * p.column, TOP + DOWN * p.row) for script, p in self.places.items()
        }
        self.width = int(max(x for x, _ in self.at.values())) + WIDE + 8
        self.height = max(y for _, y in self.at.values()) + HIGH + 8
        near = {script: f"train_{place.nearest}.py" for script, place in self.places.items()}
        self.edges = [self.edge(near[script], script) for script in scripts if near[script] in self.places]

    def headings(self) -> tuple[list[Heading], list[Heading]]:
        """Of columns, and of rows: where they begin, and what they say."""
        columns: list[Heading] = [((LEFT + ACROSS * column, 0.0), said) for column, said in self.columns.items()]
        return columns, [((0.0, TOP + DOWN * row), learns) for row, learns in self.rows.items()]

    def place_of_another(self, script: str) -> Place:
        """A script that is not among PLACES stands below, and belongs to the sibling that it differs from least."""
        nearest = min((other for other in self.scripts if method(other) in PLACES), key=lambda o: n_changed(o, script))
        column = sum(place.row == 3 for place in self.places.values())
        like = PLACES[method(nearest)]
        return like._replace(name=method(script), nearest=method(nearest), column=column, row=3)

    def edge(self, one: str, other: str) -> Edge:
        (x1, y1), (x2, y2) = self.at[one], self.at[other]
        n, bend = n_changed(one, other), ""
        if y1 != y2:  # from below the upper one to above the lower one
            begin, end = (x1 + WIDE / 2, y1 + HIGH), (x2 + WIDE / 2, y2)
        elif abs(x1 - x2) <= ACROSS:  # neighbours
            begin, end = (x1 + WIDE * (x1 < x2), y1 + HIGH / 2), (x2 + WIDE * (x2 < x1), y2 + HIGH / 2)
        else:  # below what stands between them
            begin, end = (x1 + WIDE * 0.8, y1 + HIGH), (x2 + WIDE * 0.2, y2 + HIGH)
            down = y1 + HIGH + 22 * round(abs(x1 - x2) / ACROSS) - 12
            bend = f"C{begin[0] + 30} {down} {end[0] - 30} {down} "
        middle = ((begin[0] + end[0]) / 2, (begin[1] + end[1]) / 2)
        if bend:  # a quarter of the way is the beginning's and the end's
            middle = (middle[0], 0.25 * begin[1] + 0.75 * down)
        return Edge(one, other, n, f"M{begin[0]:g} {begin[1]:g}{bend or 'L'}{end[0]:g} {end[1]:g}", middle)


STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #59636e; }
  .paper { fill: #ffffff; }
  .script { fill: #ffffff; stroke: #59636e; }
  .edge { fill: none; stroke: #59636e; stroke-width: 1.5; }
  .name { font-weight: 600; font-size: 15px; fill: #1f2328; }
  .n { font-weight: 600; fill: #0550ae; }
  .middle { text-anchor: middle; }
  @media (prefers-color-scheme: dark) {
    text { fill: #9aa5b1; }
    .paper { fill: #12161c; }
    .script { fill: #1b2129; stroke: #9aa5b1; }
    .edge { stroke: #9aa5b1; }
    .name { fill: #e6eaef; }
    .n { fill: #79b8ff; }
  }
"""


def picture(of: Map) -> str:
    """The map as a file of SVG."""
    parts = [f'<rect class="paper" width="{of.width}" height="{of.height}"/>']
    for column, predicted in of.columns.items():
        parts += lines_of_text(LEFT + ACROSS * column + WIDE / 2, TOP - 32, predicted, 20, "middle")
    for row, learns in of.rows.items():
        parts += lines_of_text(8, TOP + DOWN * row + 18, learns, 16)
    parts += [f'<path class="edge" d="{edge.path}"/>' for edge in of.edges]
    for edge in of.edges:
        x, y = edge.at
        parts.append(f'<rect class="paper" x="{x - 12}" y="{y - 9}" width="24" height="18"/>')
        parts.append(f'<text class="n middle" x="{x}" y="{y + 4.5}">{edge.n}</text>')
    for script, (x, y) in of.at.items():
        parts.append(f'<rect class="script" x="{x}" y="{y}" width="{WIDE}" height="{HIGH}" rx="6"/>')
        parts.append(f'<text class="name middle" x="{x + WIDE / 2}" y="{y + 24}">{of.places[script].name}</text>')
        parts.append(f'<text class="middle" x="{x + WIDE / 2}" y="{y + 43}">{script}</text>')
    told = "The training scripts, each with a line to its nearest sibling and the number of lines that differ"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {of.width} {of.height}" width="{of.width}" role="img">\n'
        f"<title>{told}</title>\n<style>{STYLE}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def lines_of_text(x: float, y: float, text: str, longest: int, kind: str = "") -> list[str]:
    """A text in lines of so many letters at most."""
    return [
        f'<text class="{kind}" x="{x}" y="{y + 17 * n}">{xml.sax.saxutils.escape(line)}</text>'
        for n, line in enumerate(textwrap.wrap(text, longest))
    ]


if __name__ == "__main__":
    command_line(main, Config)

"""The page of the scripts side by side: it shows the files as they are, and can be read by all."""

import os
import re
import struct
import subprocess
import sys
from html.parser import HTMLParser
from itertools import combinations, pairwise
from pathlib import Path

import pytest

pytest.importorskip("pygments", reason="the page is coloured by Pygments")

from browser import CHECKS, Browser, contrast, in_a_browser

from cli import Mistake
from notebooks.map_of_scripts import PLACES, Map, n_changed, picture, there
from notebooks.side_by_side import CONCEPTS, SCRIPTS, Config, main, normalised, slug
from tests.picture import picture as picture_of_steps

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    main(Config(out=str(path)))
    return path


@pytest.fixture(scope="module")
def html(path):
    return path.read_text(encoding="utf-8")


class Page(HTMLParser):
    """Reads what the tests ask about: cells as (script, line number, text, group of rows), ids, links, attributes."""

    def __init__(self, html):
        super().__init__()
        self.cells, self.rows, self.groups, self.ids, self.links, self.fetched = [], [], [], [], [], []
        self.cell, self.note = None, None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.links += [attributes["href"]] if tag == "a" else []
        self.fetched += [value for name, value in attributes.items() if name in ("src", "href") and tag != "a"]
        if tag == "tbody":
            self.groups.append(
                {"class": attributes.get("class", ""), "kinds": attributes.get("data-kinds", "").split()}
            )
            self.groups[-1] |= {"why": "", "scripts": []}
        elif tag == "span" and self.note is not None and "data-script" in attributes:
            self.note["scripts"].append(attributes["data-script"].split("-"))
        elif tag == "tr":
            self.rows.append({})
        elif tag == "td":
            self.cell = {"line": attributes.get("data-line"), "text": "", "group": self.groups[-1]}
            self.rows[-1][int(attributes["data-script"])] = self.cell
        elif tag == "th":
            self.note = self.groups[-1] if self.groups else None

    def handle_endtag(self, tag):
        if tag == "td":
            self.cell = None
        elif tag == "th":
            self.note = None

    def handle_data(self, data):
        if self.cell is not None:
            self.cell["text"] += data
        elif self.note is not None:
            self.note["why"] += data


@pytest.fixture(scope="module")
def read(html):
    page = Page(html)
    page.rows = [row for row in page.rows if row]
    return page


@pytest.mark.parametrize("s, script", [*enumerate(SCRIPTS)])
def test_each_script_is_on_the_page_line_for_line(read, s, script):
    shown = [row[s] for row in read.rows if row[s]["line"]]
    assert [cell["text"] for cell in shown] == (ROOT / script).read_text(encoding="utf-8").splitlines()
    assert [int(cell["line"]) for cell in shown] == list(range(1, len(shown) + 1))


def test_a_row_says_which_scripts_have_the_same_line(read):
    for row in read.rows:
        said = [normalised(cell["text"]) if cell["line"] else None for cell in row.values()]
        kinds = row[0]["group"]["kinds"]
        if any(said):
            for one, other in combinations(range(len(SCRIPTS)), 2):
                assert (not kinds or kinds[one] == kinds[other]) == (said[one] == said[other])
            assert [kind == "-" for kind in kinds] == [line is None for line in said if kinds]
        else:
            assert kinds == [], "a blank line makes no difference"


@pytest.mark.parametrize("one, other", [*combinations(range(len(SCRIPTS)), 2)])
def test_what_is_marked_in_two_scripts_is_what_a_diff_of_the_two_finds(read, one, other):
    """All are aligned at once: that must not make a difference of lines which two of them share."""
    marked = [row for row in read.rows if (kinds := row[0]["group"]["kinds"]) and kinds[one] != kinds[other]]
    n_marked = sum(row[s]["line"] is not None for row in marked for s in (one, other))
    assert n_marked == n_changed(SCRIPTS[one], SCRIPTS[other])


def test_every_line_that_differs_from_the_nearest_sibling_carries_a_concept_and_a_sentence(read):
    sentences = [why for patterns in CONCEPTS.values() for why in patterns.values()]
    assert len([group for group in read.groups if group["kinds"]]) > 15
    for edge in Map(SCRIPTS).edges:
        one, other = SCRIPTS.index(edge.one), SCRIPTS.index(edge.other)
        for group in read.groups:
            if group["kinds"] and group["kinds"][one] != group["kinds"][other]:
                [concept] = [concept for concept in CONCEPTS if group["why"].startswith(concept)]
                assert any(why in group["why"] for why in sentences)
                assert any({str(one), str(other)} & set(scripts) for scripts in group["scripts"])
                assert concept.replace(" ", "-") in group["class"].split()


def test_lines_that_begin_alike_stand_abreast(read):
    for beginning in ("learning_rate:", "weight_decay:"):
        assert [len(SCRIPTS)] == [
            len(row) for row in read.rows if all(cell["text"].strip().startswith(beginning) for cell in row.values())
        ]
    names = ("pretrain", "sft", "lora", "adapter", "prefix", "prompt", "classifier", "mlm")
    pretrain, sft, lora, adapter, prefix, prompt, classifier, mlm = (
        SCRIPTS.index(f"train_{name}.py") for name in names
    )
    [row] = [row for row in read.rows if "apply_lora(" in row[lora]["text"]]
    assert "requires_grad_(True)" in row[pretrain]["text"] and "requires_grad_(True)" in row[sft]["text"]
    assert "apply_adapter(" in row[adapter]["text"] and "apply_soft_prompt(" in row[prompt]["text"]
    assert "let_learn(" in row[classifier]["text"] and "requires_grad_(True)" in row[mlm]["text"]
    [row] = [row for row in read.rows if row[lora]["text"].strip().startswith("r: int")]
    assert "width: int" in row[adapter]["text"] and "length: int" in row[prefix]["text"]
    [row] = [row for row in read.rows if "loss = nll.sum() / n_graded" in row[sft]["text"]]
    assert all(cell["text"].strip().startswith("loss = ") for cell in row.values()), "also where lines stand before it"
    [row] = [row for row in read.rows if row[sft]["text"].strip().startswith("columns:")]
    assert row[classifier]["text"].strip().startswith("columns:")


# ---- the map -----------------------------------------------------------------------------------------------------


def test_every_script_is_on_the_map_in_its_order_with_a_line_to_its_nearest_sibling():
    assert {*SCRIPTS} == {path.name for path in ROOT.glob("train_*.py")} and list(SCRIPTS) == there()
    edges = Map(SCRIPTS).edges
    assert [edge.other for edge in edges] == list(SCRIPTS[1:]), "all but pretraining are somebody's sibling"
    assert all(edge.n == n_changed(edge.one, edge.other) > 0 for edge in edges)


def test_no_two_scripts_stand_in_one_place_also_when_all_are_there():
    places = sorted((place.row, place.column) for place in PLACES.values())
    for (row, column), (next_row, next_column) in pairwise(places):
        assert row < next_row or column + 1 <= next_column
    assert all(place.nearest in ("", *PLACES) for place in PLACES.values())


def test_a_script_of_ones_own_stands_below_beside_the_one_that_it_differs_from_least(tmp_path, monkeypatch):
    for script in SCRIPTS[:3]:
        (tmp_path / script).write_text((ROOT / script).read_text(encoding="utf-8"), encoding="utf-8")
    own = (ROOT / "train_sft.py").read_text(encoding="utf-8").replace("3e-4", "1e-4")
    (tmp_path / "train_own.py").write_text(own, encoding="utf-8")
    monkeypatch.setattr("notebooks.map_of_scripts.ROOT", tmp_path)
    of = Map(there())
    assert of.scripts[-1] == "train_own.py" and of.at["train_own.py"][1] > max(of.at[s][1] for s in SCRIPTS[:3])
    assert [(edge.one, edge.n) for edge in of.edges if edge.other == "train_own.py"] == [("train_sft.py", 2)]


def test_the_picture_of_the_map_is_of_these_scripts():
    """After a change of a script: python -m notebooks.map_of_scripts"""
    assert (ROOT / "docs" / "map.svg").read_text(encoding="utf-8") == picture(Map(SCRIPTS))


def test_the_picture_can_be_read_on_light_and_on_dark_paper():
    light, dark = picture(Map(SCRIPTS)).split("@media (prefers-color-scheme: dark)")
    for css in (light.split("<style>")[1], dark.split("</style>")[0]):
        fill = {name: css.split(f"{name} {{")[1].split("fill: #")[1][:6] for name in ("text", ".name", ".n")}
        papers = [css.split(f"{name} {{ fill: #")[1][:6] for name in (".paper", ".script")]
        assert all(contrast(f"#{ink}", f"#{paper}") >= 4.5 for ink in fill.values() for paper in papers)


def test_the_page_needs_nothing_else(html, read):
    assert read.fetched == []
    assert not re.search(r"@import|url\(|https?://|fetch\(|XMLHttpRequest|import\(", html)


def test_ids_are_unique_and_links_lead_somewhere(html, read):
    assert len(read.ids) == len(set(read.ids))
    assert {link[1:] for link in read.links} <= set(read.ids)
    assert set(re.findall(r'aria-(?:controls|labelledby)="([^"]+)"', html)) <= set(read.ids)
    assert '<html lang="en"' in html and "<title>" in html
    steps = ["config", "data", "model", "what learns", "optimizer", "loop", "evaluate", "save"]
    headings = re.findall(r"<h2[^>]*>(.+?)</h2>", html)
    assert headings[2:] == [f"{n}. {step}" for n, step in enumerate(steps, 1)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_colour_of_text_has_contrast_on_every_background(html, scheme):
    light, dark = html.split("@media screen and (prefers-color-scheme: dark)")
    css = light if scheme == "light" else dark.split("\n}\n")[0]
    named = dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", css.split("}")[0]))
    found = re.findall(r"\.([\w-]+) { --wash: (#[0-9a-f]{6}); --edge: (#[0-9a-f]{6}); }", css)
    assert [concept for concept, *_ in found] == [slug(concept) for concept in CONCEPTS]
    concepts = [colours for _, *colours in found]
    inks = [named[name] for name in ("ink", "quiet", "comment", "keyword", "string", "number", "name")]
    for background in (named["paper"], *(wash for wash, _ in concepts)):
        assert min(contrast(ink, background) for ink in inks) >= 4.5, background
    for wash, edge in concepts:
        assert contrast(edge, wash) >= 4.5
        assert contrast(named["focus"], wash) >= 3
    assert contrast(named["focus"], named["paper"]) >= 3


def test_a_file_that_is_no_such_page_is_not_written_over(path, tmp_path):
    main(Config(out=str(path)))  # its own page it may replace
    other = tmp_path / "notes.html"
    other.write_text("mine", encoding="utf-8")
    with pytest.raises(Mistake, match=r"notes\.html is there already"):
        main(Config(out=str(other)))
    assert other.read_text(encoding="utf-8") == "mine"


def test_without_pygments_a_sentence_says_what_to_install(tmp_path):
    (tmp_path / "pygments.py").write_text("raise ImportError", encoding="utf-8")
    command = [sys.executable, "-m", "notebooks.side_by_side", "--out", str(tmp_path / "page.html")]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 2
    assert "Pygments: pip install" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "page.html").exists()


# ---- in a browser ------------------------------------------------------------------------------------------------

STATE = """(() => {
// The tbody right above, of those to be seen; and whether a note is to be seen, here or above lines like these.
const before = (body) => {
  do body = body.previousElementSibling; while (body?.matches("tbody") && !all("td[data-line]", body).some(shown));
  return body;
};
const explained = (body) => body.matches("tbody.differs")
  && (all(".why span", body).some(shown) || explained(before(body)));
const above = (body) => before(body).querySelector(".why");
return {
  columns: boxes.map((box) => all(`td[data-script="${box.value}"]`).filter(shown).length),
  headings: boxes.map((box) => all(`th[data-script="${box.value}"]`).filter(shown).length),
  chosen: boxes.flatMap((box, s) => box.checked ? [s] : []),
  count: document.getElementById("count").textContent,
  unexplained: all("tbody.differs").filter((body) => !explained(body)).length,
  twice: all(".why").filter((why) => shown(why) && why.textContent === above(why.parentElement)?.textContent).length,
  places: all(".why").filter(shown).length,
  same: all(".same").filter(shown).map((same) => same.parentElement.querySelector("h2").textContent),
}})()"""


@in_a_browser
def test_the_picture_at_the_top_of_the_readme_is_made_by_a_command(tmp_path):
    picture_of_steps(tmp_path / "page.png")
    width, height = struct.unpack(">II", (tmp_path / "page.png").read_bytes()[16:24])
    assert width == 1400 and height > 800, "three scripts in columns, and three of their steps"


@in_a_browser
@pytest.mark.parametrize("width, dark", [(390, True), (1400, False)])
def test_in_a_browser_all_of_it_can_be_read_and_reached(path, tmp_path, width, dark):
    with Browser(tmp_path, width, 900, dark) as page:
        page.open(path.as_uri())
        state = page.js(STATE)
        assert state["chosen"] == [0, 1, 2]
        assert {"5. optimizer", "6. loop"} <= set(state["same"])
        assert not {"2. data", "4. what learns"} & set(state["same"])
        stops = page.js('all(".differs .why a").map((stop) => stop.id)')
        page.js("scrollTo(0, 0)")
        seen = []
        for key in "npnn":
            page.press(key, text=key)
            seen.append(stops.index(page.js("document.activeElement.id")))
        assert seen == [0, 0, 1, 2]
        page.js('document.getElementById("keys").click()')  # off
        page.press("n", text="n")
        assert page.js("document.activeElement.id") == stops[2]
        assert page.js(CHECKS) == []
        for edge in Map(SCRIPTS).edges:  # each line of the map shows its two scripts
            pair = [SCRIPTS.index(edge.one), SCRIPTS.index(edge.other)]
            page.js(f'document.querySelector("[data-pair=\\"{pair[0]}-{pair[1]}\\"]").click()')
            state = page.js(STATE)
            assert state["chosen"] == pair and state["count"].startswith(f"{edge.n} lines differ")
            assert [s for s, n in enumerate(state["columns"]) if n] == pair
            assert [s for s, n in enumerate(state["headings"]) if n] == (pair if width > 960 else [])  # named by line
            assert f", in {state['places']} places" in state["count"]
            assert state["unexplained"] == state["twice"] == 0, "a reason stands above all its lines, once"
        for another in (n for n in range(len(SCRIPTS)) if n not in pair[:2] and n < 5):
            page.click(f"boxes[{another}]")
        chosen = page.js(STATE)["chosen"]
        assert len(chosen) == 3 and another in chosen, "after a fourth, the first of them goes"
        page.js('document.getElementById("unfold").click()')
        assert page.js('all(".folded").length') == 0
        assert page.js(CHECKS) == [] and page.wrong == []
        assert [url for url in page.requests if not url.startswith("file:")] == []

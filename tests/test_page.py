"""The page of the scripts side by side: it shows the files as they are, and can be read by all."""

import difflib
import json
import os
import re
import shutil
import subprocess
import sys
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("pygments", reason="the page is coloured by Pygments")

from cli import Mistake
from notebooks.side_by_side import CONCEPTS, SCRIPTS, VIEWS, Config, main, normalised, slug

ROOT = Path(__file__).parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium or google-chrome")


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
            self.groups.append({"class": attributes.get("class", ""), "views": attributes.get("data-differs", "")})
            self.groups[-1] |= {"why": "", "scripts": []}
        elif tag == "span" and self.note is not None:
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


def test_a_row_is_marked_where_its_lines_differ_and_only_there(read):
    for row in read.rows:
        said = {s: normalised(cell["text"]) for s, cell in row.items() if cell["line"]}
        blank = not any(said.values())
        differs = [] if blank else [v for v in VIEWS if len({said.get(int(s)) for s in v.split("-")}) > 1]
        assert row[0]["group"]["views"].split() == differs


@pytest.mark.parametrize("view", [view for view in VIEWS if len(view.split("-")) == 2])
def test_what_is_marked_in_two_scripts_is_what_a_diff_of_the_two_finds(read, view):
    """All are aligned at once: that must not make a difference of lines which two of them share."""
    one, other = (int(s) for s in view.split("-"))
    marked = [row for row in read.rows if view in row[0]["group"]["views"].split()]
    texts = [(ROOT / SCRIPTS[s]).read_text(encoding="utf-8") for s in (one, other)]
    lines = [[normalised(line) for line in text.splitlines() if line.strip()] for text in texts]
    same = sum(block.size for block in difflib.SequenceMatcher(None, *lines).get_matching_blocks())
    for s, of in zip((one, other), lines, strict=True):
        assert sum(row[s]["line"] is not None for row in marked) == len(of) - same


def test_every_line_that_differs_carries_a_concept_and_a_sentence(read):
    sentences = [why for patterns in CONCEPTS.values() for why in patterns.values()]
    differing = [group for group in read.groups if group["views"]]
    assert len(differing) > 15
    for group in differing:
        [concept] = [concept for concept in CONCEPTS if group["why"].startswith(concept)]
        assert any(why in group["why"] for why in sentences)
        for view in group["views"].split():  # each of them shows a sentence that is about a script in it
            assert any(set(scripts) & set(view.split("-")) for scripts in group["scripts"])
        assert concept.replace(" ", "-") in group["class"].split()


def test_lines_that_begin_alike_stand_abreast(read):
    for beginning in ("learning_rate:", "weight_decay:"):
        assert [len(SCRIPTS)] == [
            len(row) for row in read.rows if all(cell["text"].strip().startswith(beginning) for cell in row.values())
        ]
    [row] = [row for row in read.rows if "apply_lora(" in row[2]["text"]]
    assert "requires_grad_(True)" in row[0]["text"] and "requires_grad_(True)" in row[1]["text"]
    assert "apply_adapter(" in row[3]["text"] and "apply_soft_prompt(" in row[5]["text"]
    assert "let_learn(" in row[6]["text"] and "requires_grad_(True)" in row[7]["text"]
    assert row[0]["group"]["scripts"] == [["0", "1", "7"], ["2"], ["3"], ["4"], ["5"], ["6"]], "a sentence each"
    [row] = [row for row in read.rows if row[2]["text"].strip().startswith("r: int")]
    assert "width: int" in row[3]["text"] and "length: int" in row[4]["text"]


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


def contrast(one, other):
    """WCAG 2.1: (L1 + 0.05) / (L2 + 0.05), of relative luminances."""

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


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


def test_a_step_that_is_the_same_in_all_says_so(html):
    steps = re.findall(r"<h2[^>]*>\d\. ([^<]+)</h2>\n(<p class=.same.)?", html)
    same = {step for step, said in steps if said}
    assert {"optimizer", "loop"} <= same and not {"data", "what learns"} & same


# Said by the page itself once it has loaded: what is wide, what is visible, what has the focus.
EARLY = "<head><script>const wrong = []; addEventListener('error', (e) => wrong.push(e.message));</script>"
PROBE = """<script>
console.error = (...what) => wrong.push(what.join(" "));
const scripts = [0, 1, 2, 3, 4, 5, 6, 7];
const seen = (what) => [...document.querySelectorAll(what)].filter(shown).length;
const state = () => ({
  overflow: root.scrollWidth - root.clientWidth,
  columns: scripts.map((s) => seen(`td[data-script="${s}"]`)),
  headings: scripts.map((s) => seen(`th[data-script="${s}"]`)),
  differences: seen(".differs .why a"),
  explained: all(".differs .why").filter((why) => all("span", why).some(shown)).length,
});
const found = { window: innerWidth, folded: state(), stops: [], views: {} };
const stops = all(".differs .why a").map((stop) => stop.id);
for (const key of ["n", "n", "p", "n", "n"]) {
  document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  found.stops.push(stops.indexOf(document.activeElement.id));
}
document.getElementById("keys").click();  // off
document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key: "n", bubbles: true }));
found.stops.push(stops.indexOf(document.activeElement.id));
document.getElementById("unfold").click();
found.still_folded = all(".folded").length;
for (const input of all("input[name=view]")) {
  input.click();
  found.views[input.value] = state();
}
parent.document.title = JSON.stringify({ ...found, wrong });
</script></body>"""


def in_browser(html, folder, width):
    """What PROBE found in the page, in a frame of this width: a window may not be as narrow as a phone."""
    page = html.replace("<head>", EARLY).replace("</body>", PROBE)
    probe = folder / "probe.html"
    probe.write_text(f'<title></title><iframe width={width} height=844 srcdoc="{escape(page)}"></iframe>', "utf-8")
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
    command = [CHROMIUM, *flags.split(), "--disable-component-update", f"--user-data-dir={folder / 'profile'}"]
    dom = subprocess.run([*command, "--dump-dom", probe.as_uri()], capture_output=True, timeout=60).stdout.decode()
    return json.loads(unescape(re.search(r"<title>(.*?)</title>", dom, re.DOTALL)[1]))


@in_a_browser
@pytest.mark.parametrize("width", [390, 1400])
def test_in_a_browser_all_of_it_can_be_read_and_reached(html, tmp_path, width):
    found = in_browser(html, tmp_path, width)
    assert found["wrong"] == []
    assert found["window"] == width
    assert found["still_folded"] == 0
    assert found["stops"] == [0, 1, 0, 1, 2, 2]  # n, n, p, n, n, and n with the keys off
    for state in (found["folded"], *found["views"].values()):
        assert state["overflow"] <= 0
    for view, state in found["views"].items():
        for s in range(len(SCRIPTS)):
            is_in = str(s) in view.split("-")
            assert bool(state["columns"][s]) == is_in
            assert bool(state["headings"][s]) == (is_in and width > 960)  # a phone names each line's script
        assert state["explained"] == state["differences"]
    counts = {view: state["differences"] for view, state in found["views"].items()}
    assert all(0 < counts[pair] < counts["0-1-2"] for pair in ("0-1", "1-2"))
    assert 0 < counts["4-5"] < counts["2-3-4-5"] < counts["0-1-2-3-4-5-6-7"]

"""The report of a comparison: one page for every family, with all that was found, which needs nothing else."""

import copy
import json
import re
import subprocess
import sys
from html import unescape
from itertools import pairwise
from pathlib import Path

import pytest
from browser import CHECKS, Browser, in_a_browser

from cli import Mistake
from experiment import figures, report

ROOT = Path(__file__).parent.parent


def share(value, chance=0.25, n=40):
    return {"value": value, "n": n, "chance": chance}


def row(method, learns, value, **more):
    exact = {
        split: share(value) | {"by_task": {"add": share(value, 0.1), "<b>": share(0.5)}} for split in report.SPLITS
    }
    costs = {"trainable": learns, "total": 9000, "seconds": 12.0, "peak_mb": None, "checkpoint_bytes": 36000}
    return {"method": method, **costs, "base_nll": 1 + value, "exact_match": exact, **more}


def core(seed):
    """Evidence of one seed, with every part that a plot is drawn from."""
    rows = {
        name: row(name, n, at + seed / 50)
        for name, n, at in (("base", 9000, 0.1), ("SFT", 9000, 0.7), ("LoRA-SFT", 600, 0.8))
    }
    curve = [{"rate": 1e-3, "points": [[0, 4.0, 1.0], [6, 3.0 + seed / 10, 1.1], [12, 2.0, 1.3]]}]
    draws = [{"zero_shot": 0.2 + seed / 20, "few_shot": 0.3}, {"zero_shot": 0.25, "few_shot": 0.4}]
    return {
        "rows": rows,
        "losses": {"SFT": [[1, 3.0], [2, 2.0]], "continued": [[1, 4.0], [2, 1.5]]},
        "forgetting": {"continued": curve},
        "few_shot": {"trained": {"n": 9, "chance": 0.2, "base": {"0": 0.1, "4": 0.5}}},
        "number_of_tasks": [{"tasks": 2, "draws": draws}, {"tasks": 5, "draws": draws}],
        "smaller": {"LoRA-SFT": {"size": 1, "trainable": 100, "instances": share(0.6)}},
    }


def task(seed):
    """Of a family whose rows have other shares."""
    learned = {"lists": {"seen": share(0.9), "unseen": share(0.5 + seed / 10), "ms": 1.5}}
    return {"rows": {"head": {"method": "head", "trainable": 10, "total": 99, "seconds": 3.0, **learned}}}


def preference(seed):
    """Of a family whose shares are bare numbers."""
    learned = {"style": 0.97, "right": 0.8, "kl": 2.5 + seed, "length": 9.5, "chosen_nll": 0.25}
    return {"rows": {"DPO": {"method": "DPO", "trainable": 10, "total": 99, "seconds": 3.0, **learned}}}


def results(evidence):
    rows = [report.averaged([one["rows"][method] for one in evidence]) for method in evidence[0]["rows"]]
    claims = [
        {"number": "1", "claim": "It learns & forgets.", "verdict": "holds", "numbers": ["1 < 2", "3"]},
        {"number": "2", "claim": "It flies.", "verdict": "does not hold", "numbers": ["0", "0"]},
    ]
    said = {name: [{"prompt": "a </script> b", "answer": f" {name} says <i>"}] for name in evidence[0]["rows"]}
    return {
        "only": "core", "settings": {"seeds": len(evidence), "base": "runs/<x>"}, "machine": {"processor": "a chip"},
        "device": "cpu", "seconds": 61.0, "seeds": [*range(len(evidence))], "quick": False, "rows": rows,
        "claims": claims, "samples": said, "evidence": evidence,
    }  # fmt: skip


@pytest.fixture(scope="module", params=["core", "task"])
def found(request):
    return results([{"core": core, "task": task}[request.param](seed) for seed in range(3)])


@pytest.fixture(scope="module")
def html(found):
    return report.html(found)


def test_every_measure_of_every_family_is_in_the_table(html, found):
    table = html.split('<div class="wide"')[1].split("</table>")[0]
    cells = [unescape(re.sub("<[^>]+>", "", cell)) for cell in re.findall(r"<t[hd][^>]*>.*?</t[hd]>", table)]
    assert all(row["method"] in cells for row in found["rows"])
    measured = dict(figures.measures(found["rows"][-1]))
    assert len(cells) % (1 + len(measured)) == 0, "a column each"
    for path, value in measured.items():
        assert report.HEADINGS.get(path[0], path[-1]) in " ".join(cells)
        if isinstance(value, dict):
            assert report.formatted(value, "value", "{:.1%}") in cells


def test_every_seed_is_a_dot_that_says_its_value(html, found):
    marks = [unescape(title) for title in re.findall(r"<title>(.*?)</title></path>", html)]
    for number, evidence in enumerate(found["evidence"]):
        for method, row in evidence["rows"].items():
            for _, value in figures.measures(row):
                if isinstance(value, dict):
                    assert f"{method}, seed {number}: {value['value']:.1%}" in marks
    assert "by chance: 25.0%" in marks


def test_each_part_of_the_evidence_is_a_figure():
    seeds = [core(seed) for seed in range(2)]
    assert len([*figures.figures(seeds)]) == 2 + len(figures.FIGURES)
    for key in figures.FIGURES:
        less = [{other: part for other, part in evidence.items() if other != key} for evidence in seeds]
        assert len([*figures.figures(less)]) == 1 + len(figures.FIGURES)


def test_a_mark_stands_where_its_value_is():
    panel = figures.Panel("t", "x", "y", [figures.Series("s", [(0, 0, "low"), (10, 1, "high")])], y_is_share=True)
    places = re.findall(r"translate\(([\d.]+) ([\d.]+)\)", figures.svg(panel))
    left, right = figures.LEFT, figures.WIDTH - figures.RIGHT
    assert [tuple(map(float, place)) for place in places] == [
        (left, figures.HIGH - figures.BELOW), (right, figures.TOP),
    ]  # fmt: skip


@pytest.mark.parametrize("values", [[0.0, 1.0], [3.0, 3.0], [0.0, 0.0], [-2.0, 5.0], [1.009, 1.0094], [40, 250]])
@pytest.mark.parametrize("is_log", [False, True])
def test_ticks_are_few_and_hold_all_values(values, is_log):
    if is_log and min(values) <= 0:
        return
    ticks = figures.ticks(values, is_log, False)
    assert (ticks[0] <= min(values) and max(values) <= ticks[-1] + 1e-9 and 2 <= len(ticks) <= 8) or is_log
    assert all(one < other for one, other in pairwise(ticks))


def test_shares_without_a_chance_nats_an_answer_and_tokens_are_told_as_what_they_are():
    [figure] = figures.figures([preference(0), preference(1)])
    units = {panel.title: panel.x for panel in figure.panels}
    shares = dict.fromkeys(("style", "right"), "share")
    assert units == {**shares, "kl": "nats an answer", "length": "tokens", "chosen NLL": "nats a token"}
    assert {panel.title for panel in figure.panels if panel.x_is_share} == {*shares}
    html = report.html(results([preference(0)]))
    assert all(f">{cell}</td>" in html for cell in ("97.0%", "80.0%", "2.50", "9.5", "0.250"))
    assert "DPO, 97.0%" in html and "DPO, 2.500</title>" in html


def test_claims_samples_settings_and_the_machine_are_there(html, found):
    text = unescape(re.sub("<[^>]+>", "", html))
    for expected in (
        "It learns & forgets.",
        "1 < 2",
        "does not hold",
        "a </script> b",
        "says <i>",
        "runs/<x>",
        "a chip",
    ):
        assert expected in text
    assert "--seeds" in text and all(f" {row['method']} says" in text for row in found["rows"])


def test_the_page_needs_nothing_else_and_what_it_shows_is_no_markup(html):
    assert not re.search(r"@import|url\(|https?://|fetch\(|XMLHttpRequest|import\(|<link|src=", html)
    assert html.count("</script>") == 1 and "<i>" not in html and "<x>" not in html and "<b>" not in html


def test_the_command_makes_it_again_and_says_what_is_missing(found, html, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(found))
    command = [sys.executable, "-m", "experiment.report"]
    subprocess.run([*command, str(tmp_path)], cwd=ROOT, check=True, capture_output=True)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == html
    with pytest.raises(Mistake, match=r"has no results\.json"):
        report.read(tmp_path / "nothing")
    old = copy.deepcopy(found)
    del old["machine"]
    (tmp_path / "results.json").write_text(json.dumps(old))
    with pytest.raises(Mistake, match="lacks machine: an earlier release wrote it"):
        report.read(tmp_path)


@in_a_browser
@pytest.mark.parametrize("width, dark", [(390, False), (1280, True)])
def test_in_a_browser_it_can_be_read_a_heading_sorts_and_a_mark_tells(html, tmp_path, width, dark):
    file = tmp_path / "report.html"
    file.write_text(html, encoding="utf-8")
    methods = "[...document.querySelectorAll('tbody th')].map((cell) => cell.textContent)"
    with Browser(tmp_path / "profile", width, 900, dark) as page:
        page.open(file.as_uri())
        assert page.js(CHECKS) == []
        before = page.js(methods)
        for order in ("descending", "ascending"):
            page.click("[...document.querySelectorAll('thead button')].find((b) => b.textContent === 'learns')")
            assert page.js("document.querySelector('th[aria-sort]').ariaSort") == order
        assert page.js(methods) == (["LoRA-SFT", "base", "SFT"] if len(before) == 3 else before)
        page.point_at("document.querySelector('.dot')")
        page.until("!tip.hidden")
        assert re.fullmatch(r".+, seed \d: [\d.]+%?", page.js("tip.textContent"))
        assert page.wrong == [] and [url for url in page.requests if not url.startswith("file:")] == []

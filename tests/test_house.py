"""The house stays a house: what imports what, and what the README shows."""

import ast
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py") if path.stem not in ("cli", "evaluate"))
# from the top to the bottom: a room imports from itself and from those below it, and all may import cli
ROOMS = ["scripts", "experiment", "evaluate", "run", "store", "data", "model", "cli"]
FILES = [*ROOT.glob("*.py"), *(path for room in (*ROOMS, "world") for path in (ROOT / room).glob("*.py"))]
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in FILES}


def imports(path):
    """The modules that a file imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in names)


@cache
def graph():
    """Our module: which of our modules it imports."""
    return {name: sorted(set(imports(path)) & MODULES.keys() - {name}) for name, path in MODULES.items()}


def room_of(module):
    return "scripts" if module in SCRIPTS else module.split(".")[0]


def test_arrows_point_one_way():
    """pytest -s prints the graph, a line a module, from the top to the bottom."""
    for module, imported in sorted(graph().items(), key=lambda item: [*ROOMS, "world"].index(room_of(item[0]))):
        print(f"{module:>24} -> {', '.join(imported)}")
        for other in imported:
            room, below = room_of(module), room_of(other)
            if room == "world":
                assert below in ("world", "cli"), f"{module} imports {other}"
            else:
                assert below != "world", f"{module} imports {other}"
                assert ROOMS.index(room) <= ROOMS.index(below), f"{module} imports {other}, which is above it"


def test_there_is_no_circle():
    done, on_the_way = set(), []

    def visit(module):
        assert module not in on_the_way, " -> ".join([*on_the_way, module])
        if module not in done:
            on_the_way.append(module)
            for other in graph()[module]:
                visit(other)
            done.add(on_the_way.pop())

    for module in graph():
        visit(module)
    assert done == MODULES.keys()


def test_experiment_is_handed_the_scripts_and_imports_none():
    assert not [m for m, found in graph().items() if room_of(m) != "scripts" and set(found) & set(SCRIPTS)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_runtime_code_imports_four_packages_and_the_standard_library(path):
    where_it_is = {"matplotlib"} if path.name == "plot.py" else set()  # without it, a sentence: test_compare.py
    four = {"torch", "tiktoken", "numpy", "tqdm"}
    bottom = path.name == "cli.py" or path.parent.name == "world"
    allowed = set() if bottom else {"torch"} if path.parent.name == "model" else four
    found = {name.split(".")[0] for name in imports(path)}
    ours = {name.split(".")[0] for name in MODULES}
    assert found <= allowed | ours | where_it_is | set(sys.stdlib_module_names)


def test_requirements_are_the_four_packages():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    assert [re.split("[<>=]", line)[0] for line in lines] == ["torch", "tiktoken", "numpy", "tqdm"]


def test_importing_the_model_loads_nothing_that_torch_does_not():
    """Import time is what is imported: beside torch, the model brings in only itself."""
    code = (
        "import sys, torch; before = set(sys.modules); import model.gpt, model.lora; print(set(sys.modules) - before)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    loaded = ast.literal_eval(out)
    assert {name for name in loaded if name.split(".")[0] not in ("model", "cli")} <= set(sys.stdlib_module_names)
    assert "torch._dynamo" not in loaded


@pytest.mark.skipif(shutil.which("diff") is None, reason="needs the diff command")
@pytest.mark.parametrize("pair", [("train_pretrain.py", "train_sft.py"), ("train_sft.py", "train_lora.py")])
def test_the_diffs_in_the_readme_are_those_of_the_files(pair):
    diff = subprocess.run(["diff", "-w", "-B", *pair], capture_output=True, text=True, cwd=ROOT).stdout
    assert f"```diff\n$ diff -w -B {' '.join(pair)}\n{diff}```" in README


def test_the_readme_is_short_shows_the_loop_and_leads_to_every_page():
    assert len(README.splitlines()) <= 250
    script = (ROOT / "train_sft.py").read_text(encoding="utf-8")
    shown = README.split("```python\n")[1].split("```")[0]
    assert "log_p = model(inputs, graded, positions)" in shown
    assert all(f"            {line}\n" in script for line in shown.splitlines())
    assert {path.name for path in (ROOT / "docs").glob("*.md")} == set(re.findall(r"\(docs/(\w+\.md)\)", README))


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_every_file_that_a_page_names_exists(page):
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.py|\w+/)`", text)
    linked = re.findall(r"\]\(([\w./-]+)\)", text)
    assert [name for name in named if not (ROOT / name).exists()] == []
    assert [name for name in linked if not (page.parent / name).exists()] == []

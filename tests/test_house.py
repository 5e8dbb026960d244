"""The house stays a house: what imports what, and what the README shows."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RUNTIME = [*ROOT.glob("*.py"), *(path for room in ("model", "data", "run") for path in (ROOT / room).glob("*.py"))]
SCRIPTS = {path.stem for path in ROOT.glob("*.py")}
README = (ROOT / "README.md").read_text(encoding="utf-8")


def imports(path):
    """What a module imports; what it does when it is a command, under __name__ == "__main__", is a script's affair."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    module.body = [node for node in module.body if not ast.unparse(node).startswith("if __name__ ==")]
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0]


@pytest.mark.parametrize("path", RUNTIME, ids=lambda path: str(path.relative_to(ROOT)))
def test_runtime_code_imports_four_packages_and_the_standard_library(path):
    ours = {"model", "data", "run", *SCRIPTS}
    where_it_is = {"matplotlib"} if path.name == "plot.py" else set()  # without it, a sentence: test_compare.py
    four = {"torch", "tiktoken", "numpy", "tqdm"}
    assert set(imports(path)) <= four | ours | where_it_is | set(sys.stdlib_module_names)


@pytest.mark.parametrize("room, closed", [("model", {"data", "run", *SCRIPTS}), ("data", SCRIPTS), ("run", SCRIPTS)])
def test_arrows_point_one_way(room, closed):
    for path in (ROOT / room).glob("*.py"):
        assert not closed & set(imports(path)), path


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
    assert {name for name in loaded if not name.startswith("model")} <= set(sys.stdlib_module_names)
    assert "torch._dynamo" not in loaded


@pytest.mark.skipif(shutil.which("diff") is None, reason="needs the diff command")
@pytest.mark.parametrize("pair", [("train_pretrain.py", "train_sft.py"), ("train_sft.py", "train_lora.py")])
def test_the_diffs_in_the_readme_are_those_of_the_files(pair):
    diff = subprocess.run(["diff", "-w", "-B", *pair], capture_output=True, text=True, cwd=ROOT).stdout
    assert f"```diff\n$ diff -w -B {' '.join(pair)}\n{diff}```" in README


def test_every_file_that_the_readme_names_exists():
    named = re.findall(r"`([\w/]+\.py|\w+/)`", README)
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists()] == []

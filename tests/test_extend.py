"""The worked example of docs/extend.md: the lines that it changes make a script that trains."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

import sample
from store.checkpoint import open_run
from store.learned import fingerprint

ROOT = Path(__file__).parent.parent
HUNKS = re.findall(r"(?s)```diff\n(.*?)```", (ROOT / "docs/extend.md").read_text(encoding="utf-8"))


def changed(source, diff):
    """The source with the lines of a diff without context put in the place of those that they replace."""
    for hunk in re.split(r"(?m)^@@.*\n", diff)[1:]:
        old, new = ([line[1:] for line in hunk.splitlines() if line[0] == sign] for sign in "-+")
        assert source.count("\n".join(old) + "\n") == 1
        source = source.replace("\n".join(old), "\n".join(new))
    return source


@pytest.fixture
def bitfit(tmp_path, monkeypatch):
    script = tmp_path / "train_bitfit.py"
    script.write_text(changed((ROOT / "train_sft.py").read_text(encoding="utf-8"), HUNKS[0]), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("train_bitfit", script)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "train_bitfit", module)
    spec.loader.exec_module(module)
    return module


def test_the_worked_example_changes_at_most_20_lines():
    lines = [line for line in HUNKS[0].splitlines() if line[0] in "-+"]
    assert len(lines) <= 20


def test_the_worked_example_trains_the_biases_and_nothing_else(bitfit, base, instructions, tmp_path, capsys):
    out, settings = tmp_path / "bitfit", {"block_size": 192, "batch_size": 4, "steps": 3, "warmup": 0.0}
    bitfit.main(
        bitfit.Config(init_from=str(base), instructions=str(instructions), out=str(out), device="cpu", **settings)
    )
    before, after = (dict(open_run(run).model().state_dict()) for run in (base, out))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.endswith("bias")}
    assert not (out / "model.pt").exists()
    frozen = [fingerprint({name: w for name, w in some.items() if name not in moved}) for some in (before, after)]
    assert frozen[0] == frozen[1]
    capsys.readouterr()
    sample.main(sample.Config(from_=str(out), prompt="Once", max_new_tokens=3, device="cpu"))
    assert capsys.readouterr().out

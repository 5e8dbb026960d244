"""What a debugger opens: an entry a script, at a size where a tensor fits the screen, and breakpoints that exist."""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest
import torch

import cli
from model.gpt import CausalSelfAttention
from run.session import Session
from tests.process import Process

ROOT = Path(__file__).parent.parent
ENTRIES = json.loads((ROOT / ".vscode" / "launch.json").read_text(encoding="utf-8"))["configurations"]
TASKS = {task["label"]: task for task in json.loads((ROOT / ".vscode" / "tasks.json").read_text("utf-8"))["tasks"]}
PAGE = (ROOT / "docs" / "teaching.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["name"])
def test_each_entry_runs_on_tensors_that_fit_the_screen(entry, tmp_path, monkeypatch):
    """Its tasks before it, as VS Code runs them; (B, T) at most (2, 64), 8 channels, one block."""
    task, before = TASKS[entry["preLaunchTask"]], []
    while task:
        before.insert(0, task)
        task = TASKS.get(task.get("dependsOn"))
    here = [str(tmp_path / part) if part.startswith("runs/") else part for part in entry["args"]]
    for task in before[1:]:
        args = [str(tmp_path / part) if part.startswith("runs/") else part for part in task["args"]]
        done = Process(*args)
        done.wait()
        assert done.returncode == 0, done.stderr.read()
    script = importlib.import_module(Path(entry["program"]).stem)
    seen, place = [], Session.place
    monkeypatch.setattr(Session, "place", lambda session, model: seen.append(model) or place(session, model))
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [entry["program"], *here])
    cli.command_line(script.main, script.Config)
    [model] = seen
    assert (model.config.n_layer, model.config.n_embd, model.config.block_size) == (1, 8, 64)
    assert (tmp_path / "runs" / "step" / "sample.txt").exists()


def test_there_is_an_entry_for_each_script():
    names = [Path(entry["program"].replace("${workspaceFolder}", str(ROOT))) for entry in ENTRIES]
    assert sorted(names) == sorted(ROOT.glob("train_*.py"))


def test_the_breakpoints_of_the_page_are_lines_of_the_code():
    page = PAGE.split("## Set a breakpoint here")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([\w/.]+)` \| `(.+?)` \|", page, re.MULTILINE)
    assert len(rows) == 5
    for file, line in rows:
        found = [code for code in (ROOT / file).read_text(encoding="utf-8").splitlines() if line in code]
        assert len(found) == 1, (file, line)


def test_nothing_stands_between_a_breakpoint_and_the_loop(train, monkeypatch):
    """The loop runs in the caller's own thread and process, uncompiled, and a block is called as plain Python."""
    import threading

    seen, forward = [], CausalSelfAttention.forward
    monkeypatch.setattr(
        CausalSelfAttention,
        "forward",
        lambda *args: seen.append((threading.current_thread(), sys._getframe())) or forward(*args),
    )
    train("sft", steps=1)
    assert {thread for thread, _ in seen} == {threading.main_thread()}
    frames, frame = [], seen[0][1]
    while frame:
        frames.append(frame.f_code.co_filename)
        frame = frame.f_back
    between = frames[: next(i for i, name in enumerate(frames) if name.endswith("train_sft.py"))]
    assert all("_dynamo" not in name and "multiprocessing" not in name for name in between)
    assert torch.get_num_threads() == 1

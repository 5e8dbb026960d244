"""The zoo is of this code: each mistake can be made in it, and is caught by the test that it names."""

import ast
import difflib
import subprocess
import sys

import pytest

from tests import zoo
from tests.bugs import BUGS


def numbers(bugs):
    return [bug.number for bug in bugs]


def test_every_row_of_the_list_has_a_mistake():
    rows = {int(number.rstrip("abcdef")) for number in numbers(BUGS)}
    assert rows == set(range(1, 27)) and len(set(numbers(BUGS))) == len(BUGS)
    assert numbers(zoo.named("4")) == ["4a", "4b"] and numbers(zoo.named("4b")) == ["4b"]
    with pytest.raises(SystemExit, match="no mistake '27'"):
        zoo.named("27")


@pytest.mark.parametrize("bug", BUGS, ids=numbers(BUGS))
def test_a_mistake_is_one_line_of_the_code_as_it_is(bug):
    for path, (right, wrong) in zoo.mutated(bug, zoo.ROOT).items():
        compile(wrong, path, "exec")
        changed = [line for line in difflib.ndiff(right.splitlines(), wrong.splitlines()) if line[0] in "-+"]
        assert [line[0] for line in changed] in (["-", "+"], ["-"])
        assert all(len(line) <= 2 + 120 for line in changed)


def test_a_line_that_has_changed_since_is_told(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "examples.py").write_text("graded = True\n")
    with pytest.raises(ValueError, match=r"mistake 1: examples\.py has 0 times"):
        zoo.mutated(BUGS[0], tmp_path)


@pytest.fixture(scope="module")
def verdicts():
    """What `check` says of each mistake, in a process of its own: it imports the modules over and over. The tests
    that it names are run without a mistake where they stand."""
    check = "from tests import zoo; zoo.check(zoo.BUGS, without=False)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, cwd=zoo.ROOT)
    assert not done.stderr, done.stderr
    return dict(line.split(": ", 1) for line in done.stdout.splitlines())


@pytest.mark.parametrize("bug", BUGS, ids=numbers(BUGS))
def test_a_mistake_is_caught_by_the_test_that_it_names(bug, verdicts):
    if verdicts[bug.number] == f"{bug.test}: is skipped here":
        pytest.skip("its test is skipped here")
    assert verdicts[bug.number].startswith(f"caught by {bug.test}, ")


def test_every_symptom_is_measured_by_a_function():
    source = (zoo.ROOT / "tests" / "symptoms.py").read_text(encoding="utf-8")
    functions = {node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    assert {bug.symptom for bug in BUGS} <= functions


def test_a_symptom_shows_with_the_mistake_alone():
    done = subprocess.run([sys.executable, "-m", "tests.zoo", "1"], capture_output=True, text=True, cwd=zoo.ROOT)
    without, with_it = (line.split("read ")[1] for line in done.stdout.splitlines() if "read " in line)
    assert without.endswith(with_it[1:]) and len(with_it) < len(without), done.stderr


def test_a_planted_copy_has_the_mistake_and_not_the_answer(tmp_path, capsys):
    copy = tmp_path / "copy"
    zoo.main(["plant", "5", str(copy)])
    assert "loss = nll.mean() / len(micro_batches)" in (copy / "train_lora.py").read_text()
    files = {path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()}
    assert set(zoo.project_files()) - files == {f"tests/{answer}" for answer in zoo.ANSWERS} and ".git" not in files
    assert "n_graded" not in capsys.readouterr().out
    with pytest.raises(SystemExit, match="exists already"):
        zoo.main(["plant", "5", str(copy)])

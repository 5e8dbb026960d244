"""The bug zoo: classic mistakes of this kind of code, made in the real code to see what they do and what finds them.

    python -m tests.zoo                 all of them: the line, what is measured without and with it, and the test
    python -m tests.zoo 7               one of them
    python -m tests.zoo plant 7 DIR     a copy of the project with that mistake in it, to be found
    python -m tests.zoo check [7]       that its test fails with the mistake, and passes without

Mistakes are made in a copy of the project in a temporary folder, never here. tests/bugs.py lists them,
tests/symptoms.py measures what they do.
"""

import compileall
import contextlib
import importlib.util
import io
import os
import py_compile
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from cli import open_streams
from tests.bugs import BUGS, Bug

ROOT = Path(__file__).resolve().parent.parent
ANSWERS = ("zoo.py", "bugs.py", "symptoms.py", "test_zoo.py")  # of tests/, what a planted copy goes without
LEFT_OUT = {".git", ".venv", "runs", "__pycache__", ".pytest_cache", ".ruff_cache", ".mypy_cache"}  # without git, too


# ---- a copy, and a mistake in it -----------------------------------------------------------------------------------


def named(number: str) -> list[Bug]:
    """The mistake of that number, or all mistakes of a row."""
    found = [bug for bug in BUGS if number in (bug.number, bug.number.rstrip("abcdef"))]
    if not found:
        sys.exit(f"there is no mistake {number!r}: known are {', '.join(bug.number for bug in BUGS)}")
    return found


def project_files() -> list[str]:
    """What git has of the project; without git, what is there."""
    git = shutil.which("git")
    listed = subprocess.run([git, "ls-files", "-z"], capture_output=True, text=True, cwd=ROOT).stdout if git else ""
    names = listed.split("\0") if listed else [str(path.relative_to(ROOT)) for path in ROOT.rglob("*")]
    return [name for name in names if (ROOT / name).is_file() and not LEFT_OUT & set(Path(name).parts)]


def copy_project(to: Path) -> None:
    for name in project_files():
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, to / name)


def mutated(bug: Bug, folder: Path) -> dict[Path, tuple[str, str]]:
    """The files of the folder in which the mistake is made, each as it is and as it would be. Raises ValueError unless
    the line is there, once: else the zoo would no longer be of this code."""
    changes = {}
    for path in sorted(folder.glob(bug.files)):
        text = path.read_text(encoding="utf-8")
        if text.count(bug.right) != 1:
            raise ValueError(f"mistake {bug.number}: {path.name} has {text.count(bug.right)} times {bug.right!r}")
        changes[path] = (text, text.replace(bug.right, bug.wrong))
    if not changes:
        raise ValueError(f"mistake {bug.number}: there is no {bug.files}")
    return changes


@contextlib.contextmanager
def made(bug: Bug | None, folder: Path) -> Iterator[None]:
    """Inside the with block the mistake is in the folder, whose modules are imported anew."""
    changes = mutated(bug, folder) if bug else {}
    for path, (_, wrong) in changes.items():
        path.write_text(wrong, encoding="utf-8")
    inside = [
        name for name, module in sys.modules.items() if str(getattr(module, "__file__", "")).startswith(str(folder))
    ]
    for name in inside:
        del sys.modules[name]
    try:
        yield
    finally:
        for path, (right, _) in changes.items():
            path.write_text(right, encoding="utf-8")


@contextlib.contextmanager
def workshop() -> Iterator[Path]:
    """A copy of the project, from which modules come inside the with block; what they leave behind goes with it."""
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # none is needed, and they are read anew each time
    sys.dont_write_bytecode = True  # two versions of a file can have the same size and second: known is what is in it
    with tempfile.TemporaryDirectory(prefix="zoo-") as folder:
        tempfile.tempdir = str(Path(folder).resolve())
        copy = Path(tempfile.tempdir, "project")
        copy_project(copy)
        compileall.compile_dir(copy, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
        os.chdir(copy)
        elsewhere = [path for path in sys.path if Path(path).resolve() not in (ROOT, ROOT / "tests", copy)]
        sys.path[:] = [str(copy), str(copy / "tests"), *elsewhere]
        try:
            yield copy
        finally:
            os.chdir(ROOT)
            tempfile.tempdir = None


# ---- what it does, and what finds it -------------------------------------------------------------------------------


def symptom(bug: Bug, copy: Path, is_made: bool) -> str:
    """What tests/symptoms.py measures in the copy, with or without the mistake: a sentence."""
    with made(bug if is_made else None, copy), contextlib.redirect_stdout(io.StringIO()):
        spec = importlib.util.spec_from_file_location("symptoms", ROOT / "tests" / "symptoms.py")
        symptoms = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(symptoms)
            with contextlib.redirect_stderr(io.StringIO()):
                return getattr(symptoms, bug.symptom)()
        except (ValueError, RuntimeError) as error:
            what = "refused" if isinstance(error, ValueError) else type(error).__name__
            return f"{what}: {str(error).splitlines()[0]}"


class Outcomes:
    """A pytest plugin that notes what becomes of each test: passed, skipped, or the name of its error."""

    def __init__(self) -> None:
        self.of: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped or (report.when == "call" and report.passed):
            self.of[report.nodeid] = report.outcome

    def pytest_exception_interact(self, node, call, report) -> None:
        in_the_test = getattr(report, "when", "collect") == "call"  # and not an import or a fixture
        self.of[node.nodeid] = call.excinfo.typename if in_the_test else f"{call.excinfo.typename} before it began"


def outcomes(tests: Sequence[str], copy: Path, bug: Bug | None) -> dict[str, str]:
    noted = Outcomes()
    with made(bug, copy):
        without = ("terminal", "cacheprovider", "unraisableexception", "threadexception")  # the last two take long
        bare = [*("-pno:" + plugin for plugin in without), "--assert=plain", f"--rootdir={copy}"]
        pytest.main([*bare, *(f"{copy / test}" for test in tests)], plugins=[noted])
    return noted.of


def check(bugs: Sequence[Bug], without: bool = True) -> bool:
    """Whether each test passes without the mistake and fails with it, itself, as it should. without=False: where it is
    known that they pass without."""
    fine = True
    with workshop() as copy:
        right = outcomes(sorted({bug.test for bug in bugs}), copy, None) if without else {}
        for bug in bugs:
            before = right.get(bug.test, "not found") if without else "passed"
            after = outcomes([bug.test], copy, bug).get(bug.test, "not found") if before == "passed" else ""
            if after in bug.fails_with:
                verdict = f"caught by {bug.test}, {after}"
            elif "skipped" in (before, after):
                verdict = f"{bug.test}: is skipped here"
            else:
                verdict, fine = f"{bug.test}: {before} without the mistake, {after or 'not run'} with it", False
            print(f"{bug.number}: {verdict}", flush=True)
    return fine


def show(bugs: Sequence[Bug]) -> None:
    with workshop() as copy:
        for bug in bugs:
            print(f"{bug.number:>3}  {bug.trap}\n     {bug.files}")
            right, wrong = bug.right.splitlines(), bug.wrong.splitlines()
            for sign, lines, others in (("-", right, wrong), ("+", wrong, right)):
                for line in lines:
                    print("" if line in others else f"       {sign} {line.strip()}\n", end="")
            print(f"     without it: {symptom(bug, copy, False)}")
            print(f"     with it:    {symptom(bug, copy, True)}")
            print(f"     caught by   {bug.test}\n", flush=True)


def plant(bug: Bug, to: Path) -> None:
    if to.exists():
        sys.exit(f"{to} exists already: give another folder")
    copy_project(to)
    for path, (_, wrong) in mutated(bug, to).items():
        path.write_text(wrong, encoding="utf-8")
    for answer in ANSWERS:
        (to / "tests" / answer).unlink(missing_ok=True)
    print(
        f"{to} is the project with a mistake in it, in one line, which siblings may share. First show that something "
        "is wrong: train, ask, measure. Then say which line it is, and why. Last, "
        "python -m pytest in that folder: which claims fail?"
    )


def main(arguments: list[str]) -> None:
    match arguments:
        case ["plant", number, folder]:
            plant(named(number)[0], Path(folder))
        case ["check", *numbers]:
            bugs = [bug for number in numbers for bug in named(number)] or BUGS
            sys.exit(0 if check(bugs) else 1)
        case ["plant", *_] | ["-h"] | ["--help"]:
            sys.exit(__doc__)
        case numbers:
            show([bug for number in numbers for bug in named(number)] or BUGS)


if __name__ == "__main__":
    open_streams()
    main(sys.argv[1:])

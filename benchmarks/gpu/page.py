"""Whether all is right, small and fast on this GPU, in under seven minutes: a page of figures, each beside its aim.

    python -m benchmarks gpu                      on a GPU; writes benchmarks/gpu/<its name>.md
    python -m benchmarks gpu --tiny --device cpu  tries this program out: its figures mean nothing

Each part runs in a process of its own, with a time limit, and each check in a try: what fails hides nothing else.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.measure import machine
from cli import listed
from run.device import choose_device

HERE = Path(__file__).parent


class On(NamedTuple):
    """Where and how large."""

    device: torch.device
    tiny: bool  # try the program out
    folder: Path  # for runs

    def here(self) -> bool:
        """Whether this is a GPU, whose memory and kernels can be asked about."""
        return self.device.type == "cuda"


class Finding(NamedTuple):
    what: str
    found: str
    aim: str = ""
    verdict: str = ""  # met, missed, broke, or nothing where there is no aim


Check = Callable[[On, "Notes"], None]


class Notes:
    """Findings of a part, which are in a file as soon as they are told: a process that dies loses none."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, what: str, found: float | str, low: float | None = None, high: float | None = None) -> None:
        """low and high: the least and the most that is aimed at."""
        if isinstance(found, str):
            return self.keep(Finding(what, found))
        aim = f"{low:.4g} to {high:.4g}" if low is not None and high is not None else ""
        aim = aim or (f"at least {low:.4g}" if low is not None else f"at most {high:.4g}" if high is not None else "")
        met = (low is None or found >= low) and (high is None or found <= high)
        number = f"{found:,.0f}" if abs(found) >= 1000 else f"{found:.4g}"
        self.keep(Finding(what, number, aim, ("met" if met else "missed") if aim else ""))

    def yes(self, what: str, found: bool, wanted: bool = True) -> None:
        self.keep(Finding(what, "yes" if found else "no", "yes" * wanted, ("met" if found else "missed") * wanted))

    def broke(self, what: str, why: str) -> None:
        self.keep(Finding(what, " ".join(why.split())[-200:].replace("|", "/") or "no word of it", "", "broke"))

    def keep(self, finding: Finding) -> None:
        print(f"  {finding.verdict or '-':>6}  {finding.what}: {finding.found}", flush=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(finding) + "\n")

    def all(self) -> list[Finding]:
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        return [Finding(*json.loads(line)) for line in lines]


def parts() -> dict[str, tuple[list[Check], int]]:
    """Checks by part, and each part's limit in seconds: the most decisive first."""
    from benchmarks.gpu import cost, same  # here, since they import this file

    return {
        "numbers": ([same.cpu_and_gpu, same.precisions, same.heads], 60),
        "memory": ([cost.planned, cost.budgets, cost.out_of_memory], 45),
        "speed": ([cost.steps, cost.instructions, cost.where_time_goes], 105),
        "resume": ([same.resume], 35),
        "ranks": ([same.one_rank], 20),
        "generation": ([cost.generation], 25),
        "compiled": ([same.compiled_model, cost.planned_compiled], 100),
    }


def run_part(checks: list[Check], on: On, tell: Notes) -> None:
    for check in checks:
        try:
            check(on, tell)
        except (Exception, SystemExit) as error:
            tell.broke(check.__name__, f"{type(error).__name__}: {error}")
        if on.here():
            torch.cuda.empty_cache()


def in_a_process(command: list[str], seconds: int, part: str, tell: Notes) -> None:
    """A GPU that has met an error computes nothing more in the same process, and one that waits waits for ever."""
    environment = os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        _, said = process.communicate(timeout=seconds)
        if process.returncode:
            tell.broke(part, f"ended with {process.returncode}: {said}")
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        tell.broke(part, f"took longer than its {seconds} s: what it had not told is missing")


def markdown(name: str, on: On, findings: dict[str, list[Finding]], seconds: float) -> str:
    lines = [f"# {name}", "", f"{machine(on.device)}; {versions(on)}; all of it took {seconds:.0f} s.", ""]
    if on.tiny:
        lines += ["A trial of the program in a tiny shape: no figure here means anything.", ""]
    every = [finding for some in findings.values() for finding in some]
    for verdict in ("missed", "broke"):
        said = [finding.what for finding in every if finding.verdict == verdict]
        lines += [f"{verdict}: {listed(said, 99)}  "]
    for part, some in findings.items():
        lines += ["", f"## {part}", "", "| | found | aim | |", "| --- | ---: | --- | --- |"]
        lines += [f"| {' | '.join(finding)} |" for finding in some]
    return "\n".join(lines) + "\n"


def versions(on: On) -> str:
    if not on.here():
        return "no GPU"
    properties = torch.cuda.get_device_properties(on.device)
    capability = f"compute capability {properties.major}.{properties.minor}"
    return f"{properties.total_memory / 1e9:.1f} GB, {capability}, CUDA {torch.version.cuda}"


def main(arguments: list[str]) -> int:
    """Returns 1 if an aim was missed or a check broke, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu with --tiny")
    parser.add_argument("--tiny", action="store_true", help="shapes that take seconds on a CPU, to try the program out")
    parser.add_argument("--only", choices=parts(), help="a part alone")
    parser.add_argument("--out", default=str(HERE), help="folder of the page")
    parser.add_argument("--notes", help=argparse.SUPPRESS)  # file for the findings of --only: this is a part's process
    args = parser.parse_args(arguments)
    if args.device == "cpu" and not args.tiny:
        parser.error("a CPU can only try the program out: give --tiny, too")
    started, found = time.perf_counter(), {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        on = On(choose_device(args.device), args.tiny, Path(folder))
        if args.notes:
            run_part(parts()[args.only][0], on, Notes(Path(args.notes)))
            return 0
        for part, (checks, seconds) in parts().items():
            if args.only in (None, part):
                print(part)
                tell = Notes(Path(folder, f"{part}.jsonl"))
                if on.here():
                    command = [sys.executable, "-m", "benchmarks", "gpu", *arguments, "--only", part]
                    in_a_process([*command, "--notes", str(tell.path)], seconds, part, tell)
                else:
                    run_part(checks, on, tell)
                found[part] = tell.all()
        name = torch.cuda.get_device_name(on.device) if on.here() else "CPU"
        name += ", tiny" * on.tiny + f", {args.only} only" * bool(args.only)
        page = Path(args.out, re.sub(r"\W+", "-", name.lower()) + ".md")
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(markdown(name, on, found, time.perf_counter() - started), encoding="utf-8")
    print(f"{page} is written")
    return int(any(finding.verdict in ("missed", "broke") for some in found.values() for finding in some))

"""Kills training runs at random moments, resumes them, and compares with the run that nobody killed.

    python -m tests.kill --times 50

Each run is one of the scripts below in a process of its own, which saves every few steps and is sent SIGKILL somewhere
between its first step and its end; now and then the resumed run is killed as well. In the end its model or adapter, its
best model, its sample, and its metrics but for the seconds must be the same to the bit. (In one thread: sums in several
need not repeat.)
"""

import argparse
import csv
import hashlib
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.process import Process

ROOT = Path(__file__).parent.parent
SIZE = ["--block-size", "128", "--batch-size", "4", "--micro-batches", "2", "--dropout", "0.1"]
LENGTH = ["--steps", "16", "--eval-every", "7", "--held-out", "0.005", "--keep-best", "--device", "cpu"]
METHODS = {
    "pretrain": ["train_pretrain.py", "--text", "domain.jsonl"],
    "sft": ["train_sft.py", "--instructions", "instructions.json"],
    "lora": ["train_lora.py", "--text", "domain.jsonl", "--lora-dropout", "0.1"],
    "lora-sft": ["train_lora.py", "--instructions", "instructions.json", "--pack"],
    "adapter": ["train_adapter.py", "--text", "domain.jsonl"],
    "prefix": ["train_prefix.py", "--instructions", "instructions.json", "--pack"],
    "reward": ["train_reward.py", "--pairs", "preferences.json"],
    "dpo": ["train_dpo.py", "--pairs", "preferences.json"],
    "prompt": ["train_prompt.py", "--text", "domain.jsonl"],
    "classifier": ["train_classifier.py", "--labelled", "labelled.json", "--learn", "lora"],
    "tagger": ["train_classifier.py", "--tagged", "tagged.json"],
    "mlm": ["train_mlm.py", "--text", "domain.jsonl"],
}


def start(method: str, data: Path, out: Path, *flags: str) -> Process:
    script, kind, file, *own = METHODS[method]
    given = (kind, data / file, *own, "--init-from", data / "base", *SIZE, *LENGTH)
    return Process(ROOT / script, *given, "--out", out, *flags)


def finish(process: Process) -> None:
    said = process.communicate()[1]
    if process.returncode:
        raise SystemExit(f"a run failed: {said}")


def kill_after(process: Process, seconds: float) -> bool:
    """SIGKILL so long after the run has begun to train. False if it ended before."""
    process.wait_for("parameters learn")
    time.sleep(seconds)
    process.kill()
    process.communicate()
    return process.returncode == -signal.SIGKILL


def sha256(path: Path) -> str:
    """Short, for pytest would show where two files differ: under CI=true for minutes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def outcome(run: Path) -> dict[str, object]:
    """All that must be the same, by name."""
    rows = list(csv.reader((run / "metrics.csv").read_text(encoding="utf-8").splitlines()))
    files = [path for path in run.rglob("*") if path.suffix in (".pt", ".txt", ".tiktoken", ".unfinished")]
    return {"metrics": [row[:-1] for row in rows]} | {str(path.relative_to(run)): sha256(path) for path in files}


def main(times: int, seed: int, methods: list[str], data: Path = ROOT / "data" / "builtin") -> int:
    """Returns how many of the runs ended otherwise than the one that was not killed. data: a folder with a base and
    files to learn from."""
    rng, folder, wrong = random.Random(seed), Path(tempfile.mkdtemp(prefix="finetuning-kill-")), 0
    expected, seconds = {}, {}
    for method in methods:
        process = start(method, data, folder / method)
        process.wait_for("parameters learn")
        began = time.perf_counter()
        finish(process)
        seconds[method], expected[method] = time.perf_counter() - began, outcome(folder / method)
    for number in range(times):
        method, out = methods[number % len(methods)], folder / f"run-{number}"
        every, moments, flags = str(rng.choice([1, 2, 5])), [], []
        while rng.random() < (0.3 if moments else 1):
            moment = rng.uniform(0, 0.95 * seconds[method])
            if not kill_after(start(method, data, out, "--save-every", every, *flags), moment):
                break
            saved = (out / "last.pt").exists()
            moments.append(f"{moment:.2f} s{'' if saved else ' (nothing saved yet)'}")
            flags = ["--resume"] if (out / "config.json").exists() else []
        if not (out / "sample.txt").exists():
            finish(start(method, data, out, "--save-every", every, *flags))
        elif (out / "last.pt").exists():  # killed after its last file: --resume says so, and deletes this
            start(method, data, out, "--resume").communicate()
        found = outcome(out)
        names = found.keys() | expected[method].keys()
        differing = [name for name in sorted(names) if found.get(name) != expected[method].get(name)]
        wrong += bool(differing)
        killed = f"killed after {', '.join(moments)} and resumed" if moments else "ended before it was killed"
        print(f"{number + 1:>3} {method:<10} saving every {every}, {killed}: {differing or 'bit-equal'}", flush=True)
    print(f"{times - wrong} of {times} ended bit-equal to the run that was not killed")
    return wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    sys.exit(bool(main(given.times, given.seed, list(METHODS))))

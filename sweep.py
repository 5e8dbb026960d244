"""The learning rates behind compare.py: each method at several, on the built-in world, in one table.

    python sweep.py --out runs/sweep

Methods on the domain are judged by what they learn and forget, instruction tuning by exact match on other questions
than those of compare.py (about the same held-out words, facts and tasks). data/builtin/sweep.md is what this printed.
"""

from dataclasses import dataclass
from pathlib import Path
from random import Random

import compare
from data import world
from data.examples import Instruction, read_instructions
from evaluate import SPLITS, judge
from run.config import Mistake, check, command_line
from run.device import choose_device

RATES = {
    "continued pretraining": (3e-4, 1e-3, 2e-3),
    "LoRA on the domain": (2e-3, 4e-3, 8e-3),
    "SFT": (1e-4, 3e-4, 6e-4, 1e-3, 2e-3),
    "LoRA-SFT": (2e-3, 4e-3, 8e-3),
}


@dataclass(kw_only=True)
class Config:
    out: str = "runs/sweep"  # folder to write the runs and sweep.md to
    methods: str = ",".join(RATES)  # which methods to sweep
    seed: int = 0  # of the order of the data and of new weights
    device: str = "auto"  # cuda, mps, cpu, or auto


def main(config: Config) -> None:
    check(config)
    out, settings = Path(config.out), compare.Config(seed=config.seed, device=config.device)
    if (out / "sweep.md").exists():
        raise Mistake(f"{out} holds a sweep already: give another --out, or delete it")
    unknown = set(config.methods.split(",")) - set(RATES)
    if unknown:
        raise Mistake(f"--methods must be among {', '.join(RATES)}; got {sorted(unknown)}")
    y = compare.yardsticks_of(settings, choose_device(config.device))._replace(questions=new_questions(settings))
    head = ["method", "learning rate", "base ppl", "domain ppl", "response NLL", *SPLITS]
    table = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    print("\n".join(table), flush=True)
    for cell in compare.cells(settings, out, config.seed):
        for rate in RATES.get(cell.method, ()) if cell.method in config.methods.split(",") else ():
            row = judge(cell.variant(f"{rate:g}", y.device, learning_rate=rate), y)
            shares = [compare.cell(row["exact_match"][split], "value", "{:.1%}") for split in SPLITS]
            numbers = [f"{rate:g}", f"{row['base_ppl']:.2f}", f"{row['domain_ppl']:.2f}", f"{row['response_nll']:.3f}"]
            table.append(f"| {' | '.join([cell.method, *numbers, *shares])} |")
            print(table[-1], flush=True)
    (out / "sweep.md").write_text("\n".join(table) + "\n", encoding="utf-8")


def new_questions(settings: compare.Config) -> list[Instruction]:
    """Questions like those of compare.py, but none of them, and none that is trained on."""
    files = (settings.instructions, settings.questions)
    known = {(one.instruction, one.input) for file in files for one in read_instructions(file)}
    drawn = [Instruction(**one) for one in world.instructions(Random("sweep"))[1]]  # type: ignore[arg-type]
    return [one for one in drawn if (one.instruction, one.input) not in known]


if __name__ == "__main__":
    command_line(main, Config)

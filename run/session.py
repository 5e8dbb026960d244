"""What surrounds a training run and teaches nothing about it: the device, the seed, the run folder, the progress."""

import dataclasses
import datetime
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from data.batches import Batches
from run.config import NEW_MODEL, Mistake, check

COLUMNS = ("step", "loss", "held_out_nll", "learning_rate", "grad_norm", "graded_tokens", "seconds")


def choose_device(name: str) -> torch.device:
    """'auto' takes a CUDA GPU, else an Apple GPU, else the CPU. Raises ValueError for a device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        if torch.device(name).type not in ("cuda", "mps", "cpu"):
            raise RuntimeError("it is none of cuda, mps and cpu")
        torch.empty(1, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise Mistake(f"--device {name} is not usable here: {str(error).splitlines()[0]}") from None


def peak_mb(device: torch.device) -> float | None:
    """The most memory, in MB (10^6 bytes), that this process has held so far: of a CUDA GPU, or else of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # macOS counts it in bytes
    return None


class Session:
    """One run: `for step in session.steps():` around a training step that ends with `session.log(...)`."""

    def __init__(self, config: Any) -> None:
        """Raises a Mistake for a number out of range, a device that is not there, and a folder that holds a run."""
        self.config = check(config)
        self.device = choose_device(config.device)
        self.out = Path(config.out)
        if (self.out / "config.json").exists():
            raise Mistake(f"{self.out} holds a run already: give another --out, or delete it")
        if self.out.exists() and not self.out.is_dir():
            raise Mistake(f"{self.out} is a file: --out names a folder")
        torch.manual_seed(config.seed)
        self.graded_tokens = 0  # so far, in training

    def begin(self, model: nn.Module, batches: Batches) -> None:
        """Opens the run folder, now that everything is there to run, and prints what learns and for how long."""
        self.out.mkdir(parents=True, exist_ok=True)
        settings = dataclasses.asdict(self.config)
        if settings["init_from"]:
            settings = {name: value for name, value in settings.items() if name not in NEW_MODEL}
        self.write("config.json", json.dumps(settings, indent=2) + "\n")
        self.write("metrics.csv", ",".join(COLUMNS) + "\n")
        self.total = sum(p.numel() for p in model.parameters())
        self.trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        epochs = self.config.steps * self.config.micro_batches / batches.per_epoch
        print(
            f"{self.out}: {self.trainable:,} of {self.total:,} parameters learn ({self.trainable / self.total:.1%}), "
            f"{self.config.steps:,} steps = {epochs:.1f} epochs of {len(batches.examples):,} examples, on {self.device}"
        )

    def write(self, name: str, text: str) -> None:
        (self.out / name).write_text(text, encoding="utf-8")

    def steps(self) -> Iterator[int]:
        """0, 1, … config.steps - 1, with one line of progress in a terminal and about ten lines elsewhere."""
        self.started = time.perf_counter()
        self.progress = tqdm(range(self.config.steps), desc=self.out.name, unit="step", disable=not sys.stderr.isatty())
        yield from self.progress

    def log(
        self, step: int, loss: float, n_graded: int, learning_rate: float, grad_norm: float, held_out_nll: float | None
    ) -> None:
        """Writes a row of metrics.csv and moves the progress line on. Losses in nats a token.

        Raises a Mistake when the loss or the gradient is not finite: nothing good can be learned or saved after that.
        """
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise Mistake(
                f"step {step} has loss {loss} and gradient {grad_norm} at learning rate {learning_rate:.2g}: training "
                f"diverged and is not saved; try a lower --learning-rate, and another --out (or delete {self.out})"
            )
        done, steps = step + 1, self.config.steps
        self.seconds = time.perf_counter() - self.started
        self.graded_tokens += n_graded
        self._row(step, loss, held_out_nll, learning_rate, grad_norm)
        state = f"loss {loss:.3f}, {self.graded_tokens / self.seconds:,.0f} graded tokens/s"
        self.progress.set_postfix_str(state, refresh=False)
        if self.progress.disable and (done == steps or done % max(1, steps // 10) == 0):
            left = datetime.timedelta(seconds=round(self.seconds / done * (steps - done)))
            print(f"{self.out}: step {done}/{steps}, {state}, {left} left", flush=True)

    def _row(self, *values: float | None) -> None:
        row = [*values, self.graded_tokens, round(self.seconds, 3)]
        with open(self.out / "metrics.csv", "a", encoding="utf-8") as file:
            file.write(",".join("" if value is None else str(value) for value in row) + "\n")

    def finish(self, held_out_nll: float, sample: str, checkpoint_bytes: int) -> dict[str, Any]:
        """Prints and keeps what came out: sample.txt, the last row of metrics.csv, the costs. Returns the numbers."""
        self._row(self.config.steps, None, held_out_nll, None, None)
        self.write("sample.txt", sample + "\n")
        print(sample)
        print(f"{self.out}: held-out perplexity {math.exp(min(held_out_nll, 700)):.2f} after {self.seconds:.0f} s")
        return {
            "trainable": self.trainable,
            "total": self.total,
            "seconds": self.seconds,
            "peak_mb": peak_mb(self.device),
            "checkpoint_bytes": checkpoint_bytes,
            "held_out_nll": held_out_nll,
        }

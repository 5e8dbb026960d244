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
from torch import Tensor
from tqdm import tqdm

from data.batches import Batches
from model.gpt import GPT
from run import ranks
from run.config import NEW_MODEL, Mistake, check
from run.device import NAMES, check_compiler, choose_device, choose_precision, fused_attention_pays, peak_mb

COLUMNS = ("step", "loss", "held_out_nll", "learning_rate", "grad_norm", "graded_tokens", "seconds")


class Session:
    """One run: `for step in session.steps():` around a training step that ends with `session.log(...)`."""

    def __init__(self, config: Any) -> None:
        """Raises a Mistake for a number out of range, a device that is not there, and a folder that holds a run."""
        self.config = check(config)
        ranks.join()
        self.rank, self.n_ranks = ranks.here()
        if config.shard and self.n_ranks == 1:
            raise Mistake("--shard splits a model over processes: start two or more with torchrun --nproc-per-node N")
        self.device = choose_device(config.device)
        if self.n_ranks > 1 and self.device.type == "mps":
            raise Mistake(
                "several processes share CUDA GPUs or CPUs, not an Apple GPU: give --device cpu, or one process"
            )
        self.out = Path(config.out)
        if self.rank == 0 and (self.out / "config.json").exists():
            raise Mistake(f"{self.out} holds a run already: give another --out, or delete it")
        if self.out.exists() and not self.out.is_dir():
            raise Mistake(f"{self.out} is a file: --out names a folder")
        torch.manual_seed(config.seed)
        self.graded_tokens = 0  # so far, in training

    def begin(self, model: GPT, batches: Batches) -> None:
        """Opens the run folder, now that everything is there to run, tells the model where and how to compute, and
        prints what learns, for how long and in which precision."""
        if self.config.compile:
            check_compiler(self.device)
        model.precision, why = choose_precision(self.config.precision, self.device, model.config.n_embd)
        model.checkpoint_activations = self.config.checkpoint_activations
        for block in model.blocks:
            if not fused_attention_pays(model.precision, self.device, self.config.block_size):
                block.attn.fused = False
        if self.config.compile:
            model.compile_blocks()
        ranks.share(model, self.device, self.config.shard, self.config.micro_batches)
        if self.rank > 0:
            torch.manual_seed(self.config.seed + self.rank)  # dropout differs, as it does from row to row
        # in fp16 a gradient may overflow: the scaler then leaves the step out and tries half the scale, from 2^16 down
        self.overflows, self.overflows_allowed = 0, 16 if model.precision == torch.float16 else 0
        settings = dataclasses.asdict(self.config) | {"precision": NAMES[model.precision]}
        if settings["init_from"]:
            settings = {name: value for name, value in settings.items() if name not in NEW_MODEL}
        self.write("config.json", json.dumps(settings, indent=2) + "\n")
        self.write("metrics.csv", ",".join(COLUMNS) + "\n")
        self.total = sum(p.numel() for p in model.parameters())
        self.trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        epochs = self.config.steps * self.config.micro_batches / batches.per_epoch
        rows = "packed rows" if getattr(self.config, "pack", False) else "examples"
        print(
            f"{self.out}: {self.trainable:,} of {self.total:,} parameters learn ({self.trainable / self.total:.1%}), "
            f"{self.config.steps:,} steps = {epochs:.1f} epochs of {len(batches.examples):,} {rows}, "
            f"on {self.device} in {NAMES[model.precision]} ({why})"
        )

    def write(self, name: str, text: str, mode: str = "w") -> None:
        """Writes, or with mode "a" adds to, a file of the run folder; of several ranks the first alone."""
        if self.rank == 0:
            self.out.mkdir(parents=True, exist_ok=True)
            with open(self.out / name, mode, encoding="utf-8") as file:
                file.write(text)

    def mean_over_ranks(self, value: float) -> float:
        """What a rank has on average; without torchrun, with one rank, the value itself."""
        return ranks.mean(value)

    def steps(self) -> Iterator[int]:
        """0, 1, … config.steps - 1, with one line of progress in a terminal and about ten lines elsewhere."""
        self.started = time.perf_counter()
        quiet = self.rank > 0 or not sys.stderr.isatty()
        self.progress = tqdm(range(self.config.steps), desc=self.out.name, unit="step", disable=quiet)
        yield from self.progress

    def log(
        self,
        step: int,
        step_loss: Tensor,
        n_graded: float,
        learning_rate: float,
        gradient: Tensor,
        held_out_nll: float | None,
    ) -> None:
        """Writes a row of metrics.csv and moves the progress line on. step_loss, in nats a token, is this rank's: the
        mean over the ranks is the step's loss, as n_graded is the mean of its graded tokens.

        Raises a Mistake when the loss or the gradient is not finite: nothing good can be learned or saved after that.
        """
        loss, grad_norm = ranks.mean(step_loss.item()), ranks.whole(gradient).item()
        self.overflows = 0 if math.isfinite(grad_norm) else self.overflows + 1
        if not math.isfinite(loss) or self.overflows > self.overflows_allowed:
            raise Mistake(
                f"step {step} has loss {loss:.4g} and gradient {grad_norm:.4g} at learning rate {learning_rate:.2g}: "
                "training diverged and is not saved; try a lower --learning-rate, and another --out (or delete "
                f"{self.out})"
            )
        done, steps = step + 1, self.config.steps
        self.seconds = time.perf_counter() - self.started
        self.graded_tokens += round(n_graded * self.n_ranks)
        self._row(step, loss, held_out_nll, learning_rate, grad_norm)
        state = f"loss {loss:.3f}, {self.graded_tokens / self.seconds:,.0f} graded tokens/s"
        self.progress.set_postfix_str(state, refresh=False)
        if self.progress.disable and (done == steps or done % max(1, steps // 10) == 0):
            left = datetime.timedelta(seconds=round(self.seconds / done * (steps - done)))
            print(f"{self.out}: step {done}/{steps}, {state}, {left} left", flush=True)

    def _row(self, *values: float | None) -> None:
        row = [*values, self.graded_tokens, round(self.seconds, 3)]
        self.write("metrics.csv", ",".join("" if value is None else str(value) for value in row) + "\n", "a")

    def finish(self, held_out_nll: float, sample: str, checkpoint_bytes: int) -> dict[str, Any]:
        """Prints and keeps what came out: sample.txt, the last row of metrics.csv, the costs. Returns the numbers."""
        ranks.mean(0)  # all ranks are done
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

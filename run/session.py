"""What is the same around every training run: the device, the seed, the run folder, saves, Ctrl-C, the progress."""

import contextlib
import copy
import dataclasses
import datetime
import json
import math
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from cli import Mistake, check
from data import files
from data.batches import Batches
from model.gpt import GPT
from model.head import classes_of
from model.lora import targets_of
from model.prefix import refuse_if_too_long
from run import device, ranks
from run.resume import Saves, check_folder, cut_metrics
from run.signals import asked_to_stop, leaving
from store.checkpoint import Opened
from store.learned import whole

COLUMNS = ("step", "loss", "held_out_nll", "learning_rate", "grad_norm", "graded_tokens", "seconds")


class Session:
    """One run: `for step in session.steps(…):` around a training step that ends with `session.log(…)`."""

    def __init__(self, config: Any) -> None:
        """Raises a Mistake for a number out of range, a device that is not there, and a folder that holds a run."""
        self.config, self.out = check(config), Path(config.out)
        if hasattr(config, "targets"):
            targets_of(config.targets)  # a wrong name is found before the data is read
        ranks.join(config.device)
        self.rank, self.n_ranks = ranks.rank_and_size()
        if config.shard and self.n_ranks == 1:
            raise Mistake("--shard splits a model over processes: start two or more with torchrun --nproc-per-node N")
        self.device = device.choose_device(config.device)
        if self.n_ranks > 1 and self.device.index is not None:
            raise Mistake(f"torchrun gives each process a GPU of its own: --device cuda, not {config.device}")
        if self.n_ranks > 1 and self.device.type == "mps":
            raise Mistake("several processes can share CUDA GPUs or CPUs, not an Apple GPU: give --device cpu")
        self.frozen_models: list[GPT] = []  # models beside the one that learns, which are only asked
        self.measured: dict[str, list[float]] = {}  # of this step, by name: the sum of what was measured, and how much
        self.lock = None
        if not config.out and not config.show_batch:
            raise Mistake("give --out, a folder to write the run to")
        if self.rank == 0 and not config.show_batch:
            check_folder(self.out, config.resume)
            self.lock = files.lock(self.out) if self.out.exists() else None
        self.unwritten = ""  # rows of metrics.csv that wait, while a program like Excel keeps it from being written
        torch.manual_seed(config.seed)

    def place(self, model: GPT) -> None:
        """Moves the model to its device, shared among the ranks if there are several, and sets in which precision its
        matrix products are computed; the weights stay fp32. Raises a Mistake if rows do not fit behind a prefix."""
        refuse_if_too_long(model, self.config.block_size)
        self.why = device.set_up(model, self.config, self.device)
        ranks.share(model, self.device, self.config.shard, self.config.micro_batches)
        if self.rank > 0:
            torch.manual_seed(self.config.seed + self.rank)  # dropout differs, as it does from row to row
        self.scale = device.GradientScale(model)

    def frozen_copy(self, model: GPT) -> GPT:
        """The model as it is now, to compare with: it does not learn. To be made before the model is placed."""
        return self.frozen(copy.deepcopy(model))

    def frozen(self, model: GPT) -> GPT:
        """Places a model that is only asked: it does not learn, has no dropout, and computes in the same precision. A
        resumed run must find the same one."""
        device.set_up(model.requires_grad_(False).eval(), self.config, self.device)
        self.frozen_models.append(model.to(self.device))
        return model

    def begin_or_resume(self, model: GPT, optimizer: torch.optim.Optimizer, batches: Batches, base: Opened) -> int:
        """Opens the run folder, and prints what learns, for how long and in which precision. With --resume, brings back
        what was saved there. Returns the step to begin with."""
        if self.rank == 0 and self.lock is None:
            self.lock = files.lock(self.out)
            check_folder(self.out, self.config.resume)  # another run may have begun in the meantime
        self.saves = Saves(self.config, model, optimizer, batches, base, self.frozen_models)
        done = self.saves.bring_back(self.scale)
        self.so_far = self.saves.so_far
        precision = device.NAMES[model.precision]
        settings = dataclasses.asdict(self.config) | {"precision": precision}
        self.write("config.json", json.dumps(settings, indent=2) + "\n")
        if self.rank == 0:
            kept = cut_metrics(self.out / "metrics.csv", COLUMNS, done) if done else ",".join(COLUMNS) + "\n"
            self.write("metrics.csv", kept)
            files.clean(self.out)
        self.total = sum(p.numel() for p in model.parameters())
        self.trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self.classes = classes_of(model.attached)
        rows = "packed rows" if getattr(self.config, "pack", False) else "examples"
        print(
            f"{self.out}: {self.trainable:,} of {self.total:,} parameters learn ({self.trainable / self.total:.1%}), "
            f"{self.config.steps:,} steps = {self.config.steps / batches.per_epoch:.1f} epochs of "
            f"{len(batches.examples):,} {rows}, on {self.device} in {precision} ({self.why})"
        )
        if self.config.resume:
            print(f"{self.out}: goes on after step {done:,}" if done else f"{self.out}: nothing was saved, begins anew")
        return done

    def write(self, name: str, text: str, mode: str = "w") -> None:
        """Writes, or with mode "a" adds to, a file of the run folder; of several ranks the first alone."""
        if self.rank == 0 and mode == "w":
            files.write_whole(self.out / name, text.encode())
        elif self.rank == 0:
            with open(self.out / name, mode, encoding="utf-8") as file:
                file.write(text)

    def steps(self, first: int) -> Iterator[int]:
        """first, first + 1, … config.steps - 1, with one line of progress in a terminal and about ten lines elsewhere.
        Ctrl-C, SIGTERM and SIGHUP end the run after a step, saved."""
        self.started = time.perf_counter() - self.so_far["seconds"]
        quiet = self.rank > 0 or not sys.stderr.isatty()
        steps, name = range(first, self.config.steps), self.out.name
        with asked_to_stop() as self.stop:
            self.progress = tqdm(steps, name, self.config.steps, initial=first, unit="step", disable=quiet)
            yield from self.progress

    def mean_over_ranks(self, value: float) -> float:
        """What a rank has on average; without torchrun, with one rank, the value itself."""
        return ranks.mean(value)

    def unscale(self, learns: dict[str, torch.nn.Parameter]) -> None:
        """Of fp16 alone: scales the gradients down by what device.GradientScale has scaled them up by."""
        self.scale.unscale(learns.values())

    def is_finite(self, grad_norm: Tensor) -> bool:
        """Whether all gradients are; if not, the step is left out. fp16's scale goes down then, and the run goes on; in
        other precisions `log` ends it."""
        return self.scale.update(bool(whole(grad_norm).isfinite()))

    def keep_best(self, held_out_nll: float | None) -> None:
        """With --keep-best, saves the model that predicts the held-out data best so far."""
        self.saves.save_if_best(held_out_nll)

    def measure(self, **values: Tensor) -> None:
        """Takes a step's numbers for metrics.csv, each in a column of its own: the mean of all values that are taken
        before the next `log`, of all micro-batches and ranks."""
        for name, tensor in values.items():
            so_far = self.measured.setdefault(name, [0.0, 0.0])
            so_far[0] += tensor.detach().sum(dtype=torch.float32).item()
            so_far[1] += tensor.numel()

    def log(
        self,
        step: int,
        step_loss: Tensor,
        n_graded: float,
        learning_rate: float,
        gradient: Tensor,
        held_out_nll: float | None,
    ) -> None:
        """Writes a row of metrics.csv, moves the progress line on, and saves what --resume needs, if it is time to.
        step_loss, in nats a token, is this rank's: the mean over the ranks is the step's loss, as n_graded is the mean
        of its graded tokens.

        Raises a Mistake when the loss or the gradient is not finite: nothing good can be learned or saved after that.
        """
        loss, grad_norm = ranks.mean(step_loss.item()), whole(gradient).item()
        if not math.isfinite(loss) or not (math.isfinite(grad_norm) or self.scale.can_shrink()):
            last = f"; {self.out}/last.pt has the last good step" if (self.out / "last.pt").exists() else ""
            raise Mistake(
                f"step {step} has loss {loss:.4g} and gradient {grad_norm:.4g} at learning rate {learning_rate:.2g}: "
                "training diverged and is not saved; try a lower --learning-rate, and another --out (or delete "
                f"{self.out}){last}"
            )
        done, steps = step + 1, self.config.steps
        seconds = self.so_far["seconds"] = time.perf_counter() - self.started
        self.so_far["graded_tokens"] += round(n_graded * self.n_ranks)
        means = {name: ranks.mean(total) / ranks.mean(n) for name, (total, n) in self.measured.items()}
        self.measured.clear()
        if step == 0 and means:  # what a script measures has its columns after those of all scripts
            self.write("metrics.csv", ",".join((*COLUMNS, *means)) + "\n")
        self._row(step, loss, held_out_nll, learning_rate, grad_norm, measured=means.values())
        stop = ranks.highest(self.stop.number)
        self.saves.save_if_due(done, stop > 0)
        line = f"loss {loss:.3f}, {self.so_far['graded_tokens'] / seconds:,.0f} graded tokens/s"
        self.progress.set_postfix_str(line, refresh=False)
        if self.progress.disable and (done == steps or done % max(1, steps // 10) == 0):
            left = datetime.timedelta(seconds=round(seconds / done * (steps - done)))
            print(f"{self.out}: step {done}/{steps}, {line}, {left} left", flush=True)
        if stop:
            print(f"{self.out}: stopped and saved after step {done:,}; the same command and --resume goes on")
            raise leaving(int(stop))

    def _row(self, *values: float | None, measured: Iterable[float | None] = ()) -> None:
        row = [*values, self.so_far["graded_tokens"], round(self.so_far["seconds"], 3), *measured]
        self.unwritten += ",".join("" if value is None else str(value) for value in row) + "\n"
        with contextlib.suppress(PermissionError):
            self.write("metrics.csv", self.unwritten, "a")
            self.unwritten = ""

    def finish(self, held_out_nll: float, sample: str, checkpoint_bytes: int) -> dict[str, Any]:
        """Prints and keeps what came out: sample.txt, the last row of metrics.csv, the costs. Returns the numbers."""
        ranks.mean(0)  # waits until all ranks are done: the first deletes last.pt next
        self.saves.save_if_best(held_out_nll)
        self._row(self.config.steps, None, held_out_nll, None, None)
        if self.unwritten:
            n = self.unwritten.count("\n")
            print(f"{self.out}/metrics.csv lacks its last {n:,} rows: another program has it open")
        self.write("sample.txt", sample + "\n")  # the sign that the run is finished
        if self.lock is not None:  # rank 0 has it
            (self.out / "last.pt").unlink(missing_ok=True)
            self.lock.close()  # Windows deletes no file that is open
            (self.out / ".lock").unlink(missing_ok=True)
        print(sample)
        seconds, best = self.so_far["seconds"], self.so_far["best"]
        print(f"{self.out}: {self._in_words(held_out_nll)} after {seconds:.0f} s")
        if best < held_out_nll:
            print(f"{self.out}/best: {self._in_words(best)}, the lowest on the way")
        return {
            "trainable": self.trainable,
            "total": self.total,
            "seconds": seconds,
            "peak_mb": device.peak_mb(self.device),
            "checkpoint_bytes": checkpoint_bytes,
            "held_out_nll": held_out_nll,
        }

    def _in_words(self, held_out_nll: float) -> str:
        """Of tokens the perplexity; of what a head says the loss itself, of which nobody takes the exponential."""
        if not self.classes:
            return f"held-out perplexity {math.exp(min(held_out_nll, 700)):.2f}"
        each = "pair" if self.classes.each == "response" else self.classes.each
        return f"held-out loss {held_out_nll:.4f} nats a {each}"

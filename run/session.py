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

import tiktoken
import torch
from torch import Tensor
from tqdm import tqdm

from data.batches import Batches
from data.download import write_whole
from model.gpt import GPT
from run import ranks, show, stored
from run.config import NEW_MODEL, Mistake, check
from run.device import NAMES, choose_device, peak_mb, tell_how
from run.resume import Saves, check_folder, cut_metrics
from run.signals import asked_to_stop, leaving

COLUMNS = ("step", "loss", "held_out_nll", "learning_rate", "grad_norm", "graded_tokens", "seconds")


class Session:
    """One run: `for step in session.steps(…):` around a training step that ends with `session.log(…)`."""

    def __init__(self, config: Any) -> None:
        """Raises a Mistake for a number out of range, a device that is not there, and a folder that holds a run."""
        self.config, self.out = check(config), Path(config.out)
        ranks.join()
        self.rank, self.n_ranks = ranks.here()
        if config.shard and self.n_ranks == 1:
            raise Mistake("--shard splits a model over processes: start two or more with torchrun --nproc-per-node N")
        self.device = choose_device(config.device)
        if self.n_ranks > 1 and self.device.type == "mps":
            raise Mistake("several processes can share CUDA GPUs or CPUs, not an Apple GPU: give --device cpu")
        if self.rank == 0:
            check_folder(self.out, config.resume)
        torch.manual_seed(config.seed)
        self.saves = Saves(config)
        self.told = self.saves.told

    def begin(self, model: GPT, batches: Batches, tokenizer: tiktoken.Encoding) -> None:
        """Opens the run folder, now that everything is there to run, tells the model where and how to compute, and
        prints what learns, for how long and in which precision. With --resume, what learns is brought back; with
        --show-batch, that is all."""
        if self.config.show_batch:
            print(show.batch(batches.of_step(0)[0], tokenizer), show.what_learns(model), sep="\n\n")
            raise SystemExit(0)
        why = tell_how(model, self.config, self.device)
        self.saves.begin(model, batches, tokenizer)
        self.told = self.saves.told
        ranks.share(model, self.device, self.config.shard, self.config.micro_batches)
        if self.rank > 0:
            torch.manual_seed(self.config.seed + self.rank)  # dropout differs, as it does from row to row
        # in fp16 a gradient may overflow: the scaler then leaves the step out and tries half the scale, from 2^16 down
        self.overflows_allowed = 16 if model.precision == torch.float16 else 0
        self._open_folder(NAMES[model.precision])
        self.total = sum(p.numel() for p in model.parameters())
        self.trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        epochs = self.config.steps * self.config.micro_batches / batches.per_epoch
        rows = "packed rows" if getattr(self.config, "pack", False) else "examples"
        print(
            f"{self.out}: {self.trainable:,} of {self.total:,} parameters learn ({self.trainable / self.total:.1%}), "
            f"{self.config.steps:,} steps = {epochs:.1f} epochs of {len(batches.examples):,} {rows}, "
            f"on {self.device} in {NAMES[model.precision]} ({why})"
        )

    def _open_folder(self, precision: str) -> None:
        settings = dataclasses.asdict(self.config) | {"precision": precision}
        if settings["init_from"]:
            settings = {name: value for name, value in settings.items() if name not in NEW_MODEL}
        self.write("config.json", json.dumps(settings, indent=2) + "\n")
        rows = ",".join(COLUMNS) + "\n"
        if self.saves.state and self.rank == 0:
            rows = cut_metrics(self.out / "metrics.csv", COLUMNS, self.saves.state["step"])
        self.write("metrics.csv", rows)
        if self.rank == 0:
            stored.clean(self.out)

    def write(self, name: str, text: str, mode: str = "w") -> None:
        """Writes, or with mode "a" adds to, a file of the run folder; of several ranks the first alone."""
        if self.rank == 0 and mode == "w":
            write_whole(self.out / name, text.encode())
        elif self.rank == 0:
            with open(self.out / name, mode, encoding="utf-8") as file:
                file.write(text)

    def mean_over_ranks(self, value: float) -> float:
        """What a rank has on average; without torchrun, with one rank, the value itself."""
        return ranks.mean(value)

    def steps(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> Iterator[int]:
        """0, 1, … config.steps - 1, or from where a resumed run was; with one line of progress in a terminal and about
        ten lines elsewhere. Ctrl-C and SIGTERM end the run after a step, saved."""
        done = self.saves.bring_back(optimizer, scaler)
        if self.config.resume:
            print(f"{self.out}: goes on after step {done:,}" if done else f"{self.out}: nothing was saved, begins anew")
        self.started = time.perf_counter() - self.told["seconds"]
        quiet = self.rank > 0 or not sys.stderr.isatty()
        steps, name = range(done, self.config.steps), self.out.name
        with asked_to_stop() as self.stop:
            self.progress = tqdm(steps, name, self.config.steps, initial=done, unit="step", disable=quiet)
            yield from self.progress

    def keep_best(self, held_out_nll: float | None) -> None:
        """With --keep-best, saves the model that predicts the held-out data best so far."""
        self.saves.if_best(held_out_nll)

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
        loss, grad_norm = ranks.mean(step_loss.item()), ranks.whole(gradient).item()
        self.told["overflows"] = 0 if math.isfinite(grad_norm) else self.told["overflows"] + 1
        if not math.isfinite(loss) or self.told["overflows"] > self.overflows_allowed:
            last = f"; {self.out}/last.pt has the last good step" if (self.out / "last.pt").exists() else ""
            raise Mistake(
                f"step {step} has loss {loss:.4g} and gradient {grad_norm:.4g} at learning rate {learning_rate:.2g}: "
                "training diverged and is not saved; try a lower --learning-rate, and another --out (or delete "
                f"{self.out}){last}"
            )
        done, steps = step + 1, self.config.steps
        seconds = self.told["seconds"] = time.perf_counter() - self.started
        self.told["graded_tokens"] += round(n_graded * self.n_ranks)
        self._row(step, loss, held_out_nll, learning_rate, grad_norm)
        state = f"loss {loss:.3f}, {self.told['graded_tokens'] / seconds:,.0f} graded tokens/s"
        self.progress.set_postfix_str(state, refresh=False)
        if self.progress.disable and (done == steps or done % max(1, steps // 10) == 0):
            left = datetime.timedelta(seconds=round(seconds / done * (steps - done)))
            print(f"{self.out}: step {done}/{steps}, {state}, {left} left", flush=True)
        stop = ranks.highest([self.stop.number])[0]
        self.saves.if_due(done, stop > 0)
        if stop:
            print(f"{self.out}: stopped and saved after step {done:,}; the same command and --resume goes on")
            raise leaving(int(stop))

    def _row(self, *values: float | None) -> None:
        row = [*values, self.told["graded_tokens"], round(self.told["seconds"], 3)]
        self.write("metrics.csv", ",".join("" if value is None else str(value) for value in row) + "\n", "a")

    def finish(self, held_out_nll: float, sample: str, checkpoint_bytes: int) -> dict[str, Any]:
        """Prints and keeps what came out: sample.txt, the last row of metrics.csv, the costs. Returns the numbers."""
        ranks.mean(0)  # all ranks are done
        self.saves.if_best(held_out_nll)
        self._row(self.config.steps, None, held_out_nll, None, None)
        print(sample)
        seconds, best = self.told["seconds"], self.told["best"]
        print(f"{self.out}: held-out perplexity {math.exp(min(held_out_nll, 700)):.2f} after {seconds:.0f} s")
        if best < held_out_nll:
            print(f"{self.out}/best: held-out perplexity {math.exp(min(best, 700)):.2f}, the lowest on the way")
        self.write("sample.txt", sample + "\n")  # last, as the sign that the run is finished
        if self.rank == 0:
            (self.out / "last.pt").unlink(missing_ok=True)
        return {
            "trainable": self.trainable,
            "total": self.total,
            "seconds": seconds,
            "peak_mb": peak_mb(self.device),
            "checkpoint_bytes": checkpoint_bytes,
            "held_out_nll": held_out_nll,
        }

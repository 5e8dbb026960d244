"""A run that was stopped or killed goes on as if nothing had happened: --resume.

OUT/last.pt holds all that a later step depends on: what learns, optimizer, loss scaler, each rank's random state, and
how far the run was. The order of the data needs no more than the seed and the step (data/batches.py).
"""

import csv
import dataclasses
import io
import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tiktoken
import torch
import torch.distributed as dist
from torch import Tensor, nn

from data.batches import Batches
from model.gpt import GPT
from run import checkpoint, ranks, stored
from run.config import Mistake, flag

LAST = ("step", "config", "data", "base", "learns", "optimizer", "scaler", "random", "told")
# fields of a config that may change: no step depends on them
FREE = ("out", "resume", "save_every", "save_minutes", "shard", "show_batch")


def check_folder(out: Path, resume: bool) -> None:
    """Raises a Mistake, before any work, for a folder that cannot be written, that holds another run, or no run."""
    if out.exists() and not out.is_dir():
        raise Mistake(f"{out} is a file: --out names a folder")
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise Mistake(f"{out} cannot be written, since {there} cannot: give another --out")
    trained = next((name for name in ("model.pt", "adapter.pt") if (out / name).exists()), "")
    begun = (out / "config.json").exists() or (out / "last.pt").exists()
    finished = is_finished(out)
    if (begun or trained) and not resume:
        way = "" if finished else "; or --resume to go on with it"
        raise Mistake(f"{out} holds a run already: give another --out, or delete it{way}")
    if resume and not begun:
        raise Mistake(f"{out} holds no run to go on with: leave out --resume to begin one")
    if resume and finished:
        (out / "last.pt").unlink(missing_ok=True)
        raise Mistake(f"{out} is finished: to train it further, begin another run with --init-from {out}")
    if resume and trained and not (out / "last.pt").exists():
        raise Mistake(f"{out} holds {trained}, but not the last.pt to go on from: give another --out")


def is_finished(out: Path) -> bool:
    return (out / "sample.txt").exists()  # it is written last


class Saves:
    """What a run saves on its way, and brings back: OUT/last.pt to go on from, and OUT/best."""

    def __init__(self, config: Any) -> None:
        self.config, self.out = config, Path(config.out)
        # so far: graded tokens, seconds, steps that overflowed one after another, the lowest held-out NLL
        self.told: dict[str, Any] = {"graded_tokens": 0, "seconds": 0.0, "overflows": 0, "best": math.inf}
        self.state: dict[str, Any] = {}  # of the run to go on with

    def begin(self, model: GPT, batches: Batches, tokenizer: tiktoken.Encoding) -> None:
        """Before the model is shared among ranks: brings back what learns. Raises a Mistake if config, data or base are
        not those that the run began with."""
        self.model, self.tokenizer, self.data = model, tokenizer, batches.fingerprint()
        self.is_lora = not all(parameter.requires_grad for parameter in model.parameters())
        self.base = checkpoint.sha256_of_base(model) if self.is_lora else ""
        if self.config.resume and not (self.out / "last.pt").is_file():  # it was killed before it saved anything
            self._refuse_changes(written_settings(self.out / "config.json"))
        elif self.config.resume:
            self.state = stored.read(self.out / "last.pt", LAST)
            self._refuse_changes(self.state["config"])
            self.told = self.state["told"]
            own = learning(model)
            shapes = [{name: tensor.shape for name, tensor in learns.items()} for learns in (own, self.state["learns"])]
            if self.state["data"] != self.data:
                raise Mistake(f"{self.out} began with other data: its file has changed since, or how it is read")
            if self.state["base"] != self.base or shapes[0] != shapes[1]:
                raise Mistake(f"{self.out} began with another base: the one of --init-from has changed since")
            with torch.no_grad():
                for name, parameter in own.items():
                    parameter.copy_(self.state["learns"][name])

    def _refuse_changes(self, before: dict[str, Any]) -> None:
        for name, value in settings(self.config).items():
            if before.get(name, value) != value:
                raise Mistake(
                    f"{self.out} began with {flag(name)} {before[name]}, and now it is {value}: "
                    "a run is resumed as it began"
                )

    def bring_back(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> int:
        """The rest of what was saved. Returns how many steps are done."""
        self.optimizer, self.scaler, self.saved_at = optimizer, scaler, time.perf_counter()
        state, self.state = self.state, {}  # to be freed
        if not state:
            return 0
        optimizer.load_state_dict(state["optimizer"])
        for parameter, tensors in optimizer.state.items():
            for key, tensor in tensors.items():
                tensors[key] = ranks.like(tensor, parameter)
        scaler.load_state_dict(state["scaler"])
        rank = ranks.here()[0]
        if rank < len(state["random"]):  # of another number of ranks, the new ones begin with their own
            put_random(state["random"][rank])
        return state["step"]

    def if_due(self, done: int, stop: bool) -> None:
        """Writes last.pt every so many steps and minutes, and when the run is asked to stop. All ranks call it."""
        every, minutes = self.config.save_every, self.config.save_minutes
        late = minutes > 0 and time.perf_counter() - self.saved_at > 60 * minutes
        by_steps = (every and done % every == 0) or done == self.config.steps  # what follows may fail, too
        if stop or by_steps or ranks.highest([late])[0]:
            self.last(done)
            self.saved_at = time.perf_counter()

    def last(self, done: int) -> None:
        learns = checkpoint.whole({name: parameter.detach() for name, parameter in learning(self.model).items()})
        state = self.optimizer.state_dict()
        state["state"] = {i: checkpoint.whole(tensors) for i, tensors in state["state"].items()}
        random = [get_random()] * ranks.here()[1]
        if len(random) > 1:
            dist.all_gather_object(random, random[0])
        if ranks.here()[0] == 0:
            path = self.out / "last.pt"
            checkpoint.refuse_if_not_finite(learns, path)
            how = (done, settings(self.config), self.data, self.base)
            values = (*how, learns, state, self.scaler.state_dict(), random, self.told)
            stored.bring_to_disk(self.out / "metrics.csv")
            stored.write(path, dict(zip(LAST, values, strict=True)))

    def if_best(self, held_out_nll: float | None) -> None:
        """With --keep-best, saves the model in OUT/best, a run folder too, if it predicts held-out data best so far."""
        if not self.config.keep_best or held_out_nll is None or not held_out_nll < self.told["best"]:
            return
        self.told["best"] = held_out_nll
        if self.is_lora:
            checkpoint.save_adapter(self.out / "best", self.model, self.config.init_from)
        else:
            checkpoint.save_model(self.out / "best", self.model, self.tokenizer)


def settings(config: Any) -> dict[str, Any]:
    """The fields of a config on which a step may depend."""
    return {name: value for name, value in dataclasses.asdict(config).items() if name not in FREE}


def written_settings(path: Path) -> dict[str, Any]:
    """Those of a config.json; but for the precision, which is the one that was taken."""
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        return {name: value for name, value in before.items() if name not in (*FREE, "precision")}
    except (ValueError, AttributeError) as error:
        raise Mistake(f"{path} cannot be read: {error}; begin anew in another --out") from None


def learning(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def get_random() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def put_random(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def cut_metrics(path: Path, heading: Sequence[str], steps: int) -> str:
    """The rows of metrics.csv of the first so many steps: the later ones will be done again."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    rows = [row for row in csv.reader(text.replace("\0", "").splitlines()) if len(row) == len(heading)]
    kept = [row for row in rows if row[0].isdecimal() and int(row[0]) < steps]
    if len(kept) < steps:
        print(f"{path} lacks the rows of {steps - len(kept):,} steps: they were lost, but the model was not")
    whole = io.StringIO()
    csv.writer(whole, lineterminator="\n").writerows([heading, *kept])
    return whole.getvalue()

"""A run that was stopped or killed goes on as if nothing had happened: --resume.

OUT/last.pt holds all that a later step depends on: what learns, optimizer, gradient scale, each rank's random state,
and how far the run was. The order of the data needs no more than the seed and the step (data/batches.py).
"""

import contextlib
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

import torch
import torch.distributed as dist
from torch import Tensor

from cli import DATA, Mistake, flag, listed
from data import files
from data.batches import Batches
from model.gpt import GPT
from model.switch import plain_names
from run import ranks
from run.device import GradientScale
from store import checked, checkpoint
from store.learned import FILES, fingerprint, whole

LAST = ("step", "config", "data", "base", "learns", "optimizer", "scale", "random", "so_far")
# fields of a config that may change: no step depends on them
FREE = ("out", "resume", "save_every", "save_minutes", "shard", "show_batch")
# fields that say where the data is and how it is read: the hash of what was read decides
READ = (*DATA, "columns", "skip_bad_records")


def check_folder(out: Path, resume: bool) -> None:
    """Raises a Mistake, before any work, for a folder that cannot be written, or that holds another run."""
    if out.exists() and not out.is_dir():
        raise Mistake(f"{out} is a file: --out names a folder")
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise Mistake(f"{out} cannot be written, since {there} cannot: give another --out")
    trained = next((name for name in FILES if (out / name).exists()), "")
    saved, finished = (out / "last.pt").exists(), is_finished(out)
    begun = saved or (out / "config.json").exists()
    if (begun or trained) and not resume:
        if (out / ".lock").exists():
            files.lock(out).close()  # a run that goes on there must not be deleted
        way = "; or --resume to go on with it" if saved or not (finished or trained) else ""
        raise Mistake(f"{out} holds a run already: give another --out, or delete it{way}")
    others = [] if begun or trained or not out.exists() else [file.name for file in out.iterdir()]
    if others := [name for name in others if name != ".lock" and not name.endswith(files.UNFINISHED)]:
        raise Mistake(f"{out} holds other files ({listed(others, 3)}), and no run: give another --out")
    if resume and finished:
        (out / "last.pt").unlink(missing_ok=True)
        raise Mistake(f"{out} is finished: to train it further, begin another run with --init-from {out}")
    if resume and trained and not saved:
        raise Mistake(f"{out} holds {trained}, but not the last.pt to go on from: give another --out")


def is_finished(out: Path) -> bool:
    return (out / "sample.txt").exists()  # it is written last


class Saves:
    """What a run saves on its way, and brings back: OUT/last.pt to go on from, and OUT/best."""

    def __init__(
        self,
        config: Any,
        model: GPT,
        optimizer: torch.optim.Optimizer,
        batches: Batches,
        base: checkpoint.Opened,
        others: Sequence[GPT] = (),
    ) -> None:
        """others: frozen models on which a step depends. Raises a Mistake, with --resume, if config, data or models are
        not those that the run began with."""
        self.config, self.out, self.saved_at = config, Path(config.out), time.perf_counter()
        self.model, self.optimizer, self.base = model, optimizer, base
        self.learns = {name: p for name, p in model.named_parameters() if p.requires_grad}
        frozen = {name: p for name, p in plain_names(model).items() if not p.requires_grad}
        for n, other in enumerate(others, 1):  # a reference, a reward model: a step depends on them too
            frozen |= {f"{n}.{name}": p for name, p in other.named_parameters()}
        self.began_with = {"data": batches.fingerprint(), "base": fingerprint(frozen) if frozen else ""}
        # so far: graded tokens, seconds, and the lowest held-out NLL
        self.so_far: dict[str, Any] = {"graded_tokens": 0, "seconds": 0.0, "best": math.inf}

    def bring_back(self, scale: GradientScale) -> int:
        """Brings back what was saved, if this run is to go on with it. Returns how many steps are done."""
        self.scale = scale
        if not self.config.resume:
            return 0
        if not (self.out / "last.pt").is_file():  # it was killed before it saved anything
            if (self.out / "config.json").is_file():
                self._refuse_changes(written_settings(self.out / "config.json"))
            return 0
        saved = checked.read(self.out / "last.pt", LAST)
        self._refuse_changes(saved["config"])
        shapes = [{name: tensor.shape for name, tensor in learns.items()} for learns in (self.learns, saved["learns"])]
        if saved["data"] != self.began_with["data"]:
            raise Mistake(f"{self.out} began with other data: its file has changed since, or how it is read")
        if saved["base"] != self.began_with["base"] or shapes[0] != shapes[1]:
            raise Mistake(f"{self.out} began with another base: the one of --init-from has changed since")
        with torch.no_grad():
            for name, parameter in self.learns.items():
                parameter.copy_(ranks.like(saved["learns"][name], parameter))
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for i, tensors in saved["optimizer"]["state"].items():  # in parts, before they reach the device
            saved["optimizer"]["state"][i] = {key: ranks.like(t, parameters[i]) for key, t in tensors.items()}
        self.optimizer.load_state_dict(saved["optimizer"])
        scale.scale, scale.good_steps = saved["scale"]
        rank = ranks.rank_and_size()[0]
        if rank < len(saved["random"]):  # of another number of ranks, new ones begin with their own
            put_random(saved["random"][rank])
        self.so_far = saved["so_far"]
        return saved["step"]

    def _refuse_changes(self, before: dict[str, Any]) -> None:
        for name, value in settings(self.config).items():
            same = before.get(name, value) == value
            if name == "init_from" and not same:
                same = Path(before[name]).resolve() == Path(value).resolve()
            if not same and name not in READ:
                raise Mistake(
                    f"{self.out} began with {flag(name)} {before[name]}, and now it is {value}: "
                    "a run is resumed as it began"
                )

    def save_if_due(self, done: int, stop: bool) -> None:
        """Writes last.pt every so many steps and minutes, and when the run is asked to stop. All ranks call it."""
        every, minutes = self.config.save_every, self.config.save_minutes
        late = minutes > 0 and time.perf_counter() - self.saved_at > 60 * minutes
        by_steps = (every and done % every == 0) or done == self.config.steps  # what follows may fail, too
        if stop or by_steps or ranks.highest(late):
            self.save(done)
            self.saved_at = time.perf_counter()

    def save(self, done: int) -> None:
        learns = {name: whole(parameter.detach()) for name, parameter in self.learns.items()}
        optimizer = self.optimizer.state_dict()
        optimizer["state"] = {
            i: {key: whole(tensor) for key, tensor in tensors.items()} for i, tensors in optimizer["state"].items()
        }
        rank, n_ranks = ranks.rank_and_size()
        random = [get_random()] * n_ranks
        if n_ranks > 1:
            dist.all_gather_object(random, random[0])
        if rank == 0:
            path = self.out / "last.pt"
            checkpoint.refuse_if_not_finite(learns, path)
            with contextlib.suppress(PermissionError):  # on Windows, while a program like Excel has it open
                files.bring_to_disk(self.out / "metrics.csv")
            contents = {"step": done, "config": settings(self.config), **self.began_with, "learns": learns}
            contents |= {"optimizer": optimizer, "scale": (self.scale.scale, self.scale.good_steps)}
            checked.write(path, contents | {"random": random, "so_far": self.so_far})

    def save_if_best(self, held_out_nll: float | None) -> None:
        """With --keep-best, saves the model in OUT/best, a run folder too, if it predicts held-out data best so far."""
        keep_best = hasattr(self.config, "keep_best") and self.config.keep_best  # train_rlhf.py has no such flag
        if keep_best and held_out_nll is not None and held_out_nll < self.so_far["best"]:
            self.so_far["best"] = held_out_nll
            checkpoint.save(self.out / "best", self.model, self.base)


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


def get_random() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


def put_random(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    if "mps" in states and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states["mps"])


def cut_metrics(path: Path, heading: Sequence[str], steps: int) -> str:
    """The rows of metrics.csv of the first so many steps: the later ones will be done again."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    rows = list(csv.reader(text.replace("\0", "").splitlines()))
    heading = rows[0] if rows and rows[0][: len(heading)] == list(heading) else heading  # with what a script measures
    rows = [row for row in rows if len(row) == len(heading)]
    kept = [row for row in rows if row[0].isdecimal() and int(row[0]) < steps]
    if len(kept) < steps:
        print(f"{path} lacks the rows of {steps - len(kept):,} steps: they were lost, but the model was not")
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([heading, *kept])
    return file.getvalue()

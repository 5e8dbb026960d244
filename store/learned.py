"""learned.pt: the weights that have learned, of a model whose other weights stayed as they were in its base.

    {"base": the run it began from, as --init-from named it, "base_sha256": of all that has not learned, "attached",
    "weights"}

attached tells what a method has put beside the base's weights, and how: [{"apply": "lora", "r": 8, …}]. To load is to
attach the same again and to fill in the weights, by name. adapter.pt, as the first release wrote it, and an adapter
from PEFT are read as if they were a learned.pt.

Everything here raises a Mistake for a folder or file that does not fit.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cli import Mistake, listed
from model.adapter import apply_adapter
from model.gpt import GPT
from model.head import new_head
from model.lora import apply_lora, is_of_lora
from model.prefix import apply_prefix, apply_soft_prompt
from model.switch import plain_names, refuse_if_merged
from store import checked, hugging_face

FILES = ("model.pt", "learned.pt", "adapter.pt")
LEARNED = ("base", "base_sha256", "attached", "weights")
FIRST_RELEASE = ("config", "base", "base_sha256", "weights")  # adapter.pt, of LoRA alone


# ---- which folder, which file ----------------------------------------------------------------------------------------


def run_folder(name: str | Path) -> str:
    """The folder of a run, which may also be named by the file in it."""
    path = Path(name)
    in_it = path.name in (*FILES, *hugging_face.ADAPTER_FILES, hugging_face.ADAPTER_CONFIG)
    return str(path.parent) if in_it and path.is_file() else str(name)


def file_of(folder: str | Path, file: str) -> Path:
    path = Path(folder, file)
    if not path.parent.exists():
        raise Mistake(f"{folder} does not exist: name the folder of a run or of a model, or one like gpt2")
    if not path.is_file():
        others = [other for other in (*FILES, hugging_face.ADAPTER_CONFIG) if Path(folder, other).is_file()]
        hint = f"; it holds {others[0]}" if others else ""
        unfinished = (
            "; it is unfinished: its training goes on with --resume" if Path(folder, "last.pt").is_file() else ""
        )
        raise Mistake(f"{folder} is not a run with {file}{hint}{unfinished}")
    return path


def is_partly_learned(folder: str | Path) -> bool:
    """Whether a run holds a part of a model: what has learned, of LoRA for example A and B."""
    folder = run_folder(folder)
    there = any(Path(folder, file).is_file() for file in FILES[1:])
    return hugging_face.is_adapter(folder) or (there and not Path(folder, "model.pt").is_file())


def at_hand(base: str, adapter: str | Path) -> str:
    """The base that an adapter was trained on, where it is. Raises a Mistake if it is no longer there."""
    way = "name its folder with --from (of export.py, --base; its --merge makes a run that needs no base)"
    if not base:
        raise Mistake(f"{adapter} does not say on which base it was trained: {way}")
    if not hugging_face.is_model(base) and not any(Path(run_folder(base), file).is_file() for file in FILES):
        raise Mistake(f"{adapter} was trained on {base}, where no model is now: {way}")
    if is_partly_learned(base):
        raise Mistake(f"{adapter} was trained on {base}, an adapter itself: merge that first with export.py --merge")
    return base


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_learned(name: str | Path) -> dict[str, Any]:
    """What a learned.pt holds; an adapter of PEFT, or of the first release, as such."""
    folder = run_folder(name)
    if hugging_face.is_adapter(folder):
        note, weights = hugging_face.load_adapter(folder)
        return {"base": hugging_face.base_of(folder), "base_sha256": "", "attached": [note], "weights": weights}
    if Path(folder, "adapter.pt").is_file():
        contents = checked.read(Path(folder, "adapter.pt"), FIRST_RELEASE)
        note = {"apply": "lora", **contents["config"], "name": "default"}
        return contents | {"attached": [note | {"alpha": float(note["alpha"])}]}
    return checked.read(file_of(folder, "learned.pt"), LEARNED)


def load_adapter(model: GPT, name: str | Path, adapter: str = "default") -> None:
    """Attaches an adapter, a prefix or a soft prompt, of a run or from PEFT, to its base, active."""
    fill(model, read_learned(name), name, adapter)


@torch.no_grad()
def fill(model: GPT, learned: dict[str, Any], folder: str | Path, name: str = "default") -> None:
    """Attaches what has learned to its base, an adapter under the name, and fills it in. Raises a Mistake for a model
    that is not its base: a run compares the sha256 of the weights, an adapter from PEFT only names and shapes."""
    weights = learned["weights"]
    refuse_if_merged(model)
    frozen = {path: p for path, p in plain_names(model, "").items() if path not in weights}  # no adapter's
    if learned["base_sha256"] not in ("", fingerprint(frozen)):
        raise Mistake(f"{folder} was trained on {learned['base']}, not on this base: their weights differ")
    try:
        attach(model, [note | {"name": name} if "name" in note else note for note in learned["attached"]])
        own = {path: p for path, p in plain_names(model, name).items() if path not in frozen}
        if learned["base_sha256"] == "":  # PEFT may have adapters of some layers only
            weights = {path: torch.zeros_like(p) for path, p in own.items() if is_of_lora(path)} | weights
        refuse_what_differs(own, weights)
        for path, parameter in own.items():
            parameter.copy_(weights[path])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Mistake(f"{folder} does not fit its base: {checked.first_line(error)}") from error


def refuse_what_differs(own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Raises ValueError unless a model and what was saved have the same names and shapes."""
    missing, more = sorted(own.keys() - saved.keys()), sorted(saved.keys() - own.keys())
    if missing or more:
        sides = [("the model", missing), ("what was saved", more)]
        raise ValueError("; ".join(f"only {side} has {listed(names, 3)}" for side, names in sides if names))
    for path in sorted(own):
        if own[path].shape != saved[path].shape:
            shapes = f"{tuple(own[path].shape)} in the model, {tuple(saved[path].shape)} in what was saved"
            raise ValueError(f"{path} is {shapes}")


# ---- attaching -------------------------------------------------------------------------------------------------------


APPLY: dict[str, Callable[..., Any]] = {
    "lora": apply_lora, "adapter": apply_adapter, "prefix": apply_prefix, "prompt": apply_soft_prompt, "head": new_head,
}  # fmt: skip


def attach(model: GPT, attached: list[dict[str, Any]]) -> None:
    for note in attached:
        if note["apply"] not in APPLY:
            raise ValueError(f"{note['apply']!r} is not known here: a later release wrote it")
        APPLY[note["apply"]](model, **{key: value for key, value in note.items() if key != "apply"})


# ---- is it the same base? --------------------------------------------------------------------------------------------


def fingerprint(tensors: dict[str, Any]) -> str:
    """The sha256 of tensors, their names and their bits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        tensor = whole(tensor.detach())
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be in parts on all ranks (run/ranks.py), in one piece on the CPU. All ranks must ask for it."""
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).cpu()

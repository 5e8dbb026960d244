"""Models on disk: what is learned is what is saved. A run folder holds one of

    model.pt      all of a model: {"config" of the GPT, "tokenizer": its name, "attached", "weights"}, beside it
                  tokenizer.tiktoken unless that is gpt2 or bytes
    learned.pt    what has learned, where the rest has not: {"base": the name of the run it began from, "base_sha256":
                  of all that has not learned, "attached", "weights"}

attached tells what a method has put beside the weights, and how: [{"apply": "lora", "r": 8, …}]. To load is to attach
the same again and to fill in the weights, by name. Wherever a run is read, a model or an adapter in Hugging Face's
layout will do (store/hugging_face.py), and so does adapter.pt, as the first release wrote it.

Everything here raises a Mistake for a folder or file that does not fit.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiktoken
import torch
from torch import Tensor, nn

from cli import Mistake, rank
from data import tokenizer as tokenizers
from model.generate import lay_out_for_generation
from model.gpt import GPT, GPTConfig
from model.lora import apply_lora, is_of_lora, plain_names, refuse_if_merged
from store import checked, hugging_face

MODEL = ("config", "tokenizer", "weights")
LEARNED = ("base", "base_sha256", "attached", "weights")
FIRST_RELEASE = ("config", "base", "base_sha256", "weights")  # adapter.pt, of LoRA alone
FILES = ("model.pt", "learned.pt", "adapter.pt")


def new_head(model: GPT, classes: int) -> None:
    """Gives the model a head of its own: a Linear of C to the classes."""
    model.head = nn.Linear(model.config.n_embd, classes)
    model.attached = [*model.attached, {"apply": "head", "classes": classes}]


APPLY: dict[str, Callable[..., Any]] = {"lora": apply_lora, "head": new_head}


# ---- reading ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Opened:
    """A run that has been read: its tokenizer, and its model as soon as it is asked for."""

    name: str  # of the run's folder, or of the model of others
    tokenizer: tiktoken.Encoding
    config: GPTConfig
    weights: dict[str, Tensor]  # of all of a model; they become its own
    attached: list[dict[str, Any]]
    base: str = ""  # where the weights come from that have not learned, if that is another run
    learned: dict[str, Any] | None = None  # of such a run: what its learned.pt holds

    def model(self, row_length: int = 1, dropout: float = 0.0) -> GPT:
        """The model, on the CPU, in fp32. Its weights are not copied, so it is there once."""
        if row_length > self.config.block_size:
            can = f"the {self.config.block_size} tokens that {self.name} can read"
            raise Mistake(f"--block-size {row_length} is beyond {can}")
        if not self.weights:
            raise ValueError(f"the weights of {self.name} have been given to a model: open it again for another")
        weights, self.weights = self.weights, {}
        try:
            with torch.device("meta"):  # no memory and no time for initial weights
                model = GPT(dataclasses.replace(self.config, dropout=dropout))
                attach(model, self.attached)
            full_names = {parameter: name for name, parameter in model.named_parameters()}
            names = {plain: full_names[parameter] for plain, parameter in plain_names(model).items()}
            state = {names.get(plain, plain): tensor.float() for plain, tensor in weights.items()}
            model.load_state_dict(state, assign=True)
        except (TypeError, RuntimeError) as error:
            raise Mistake(f"{self.name}/model.pt does not fit its own config: {checked.first_line(error)}") from error
        if self.learned:
            fill(model, self.learned, self.name)
        return model


def open_run(name: str | Path) -> Opened:
    """Reads a run, or a model of others by name, once."""
    folder = run_folder(name)
    if hugging_face.is_model(folder):
        model = hugging_face.load_model(folder)
        config, weights, attached = model.config, dict(model.state_dict()), []
        tokenizer = hugging_face.tokenizer_of(folder, config)
    elif is_partly_learned(folder):
        learned = read_learned(folder)
        base = at_hand(learned["base"], folder)
        return dataclasses.replace(open_run(base), name=folder, base=base, learned=learned)
    else:
        contents = checked.read(file_of(folder, "model.pt"), MODEL)
        config, weights, attached = config_in(contents, folder), contents["weights"], contents.get("attached", [])
        tokenizer = tokenizer_beside(folder, contents["tokenizer"])
    return Opened(folder, tokenizers.fitted(tokenizer, config.vocab_size, folder), config, weights, attached)


def config_of(name: str) -> GPTConfig:
    """The shape of a model; of a published one without downloading it."""
    folder = run_folder(name)
    if hugging_face.is_model(folder):
        return hugging_face.config_of(folder)
    if is_partly_learned(folder):
        return config_of(at_hand(read_learned(folder)["base"], folder))
    return config_in(checked.read(file_of(folder, "model.pt"), MODEL), folder)


def config_in(contents: dict[str, Any], folder: str) -> GPTConfig:
    try:
        return GPTConfig(**contents["config"])
    except TypeError as error:
        raise Mistake(f"{folder}/model.pt does not fit its own config: {checked.first_line(error)}") from error


def load_run(name: str, adapter: str, device: torch.device) -> tuple[GPT, tiktoken.Encoding]:
    """What to evaluate or to talk to, on the device: a model, with an adapter on it if one is named; its base is then
    known anyway.

    Of several adapters, named with commas between, each is there under its own name, and the last is active.
    """
    adapters = {one: read_learned(one) for one in split(adapter)}
    bases = {learned["base"] for learned in adapters.values()}
    if not name and not adapters:
        raise Mistake("give --from RUN, or --adapter RUN for a LoRA adapter and its base")
    if not name and len(bases) > 1:
        raise Mistake(
            f"these adapters were trained on {' and '.join(sorted(bases))}: if they are one, name it with --from"
        )
    opened = open_run(name or at_hand(bases.pop(), adapter))
    model = opened.model()
    for number, (one, learned) in enumerate(adapters.items()):
        fill(model, learned, one, f"adapter_{number}")
    model.to(device)
    if device.type == "cpu":
        lay_out_for_generation(model)
    return model, opened.tokenizer


def split(adapters: str) -> list[str]:
    """The names of several adapters, given with commas between."""
    return [one.strip() for one in adapters.split(",") if one.strip()]


# ---- what has learned, and its base ----------------------------------------------------------------------------------


def is_partly_learned(folder: str | Path) -> bool:
    """Whether a run holds a part of a model: what has learned, of LoRA for example A and B."""
    folder = run_folder(folder)
    there = any(Path(folder, file).is_file() for file in FILES[1:])
    return hugging_face.is_adapter(folder) or (there and not Path(folder, "model.pt").is_file())


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
    """Puts an adapter, of a run or from PEFT, beside a model's Linears, active."""
    fill(model, read_learned(name), name, adapter)


@torch.no_grad()
def fill(model: GPT, learned: dict[str, Any], folder: str | Path, name: str = "default") -> None:
    """Attaches what has learned to its base, an adapter under the name, and fills it in. Refuses a model that is not
    its base: a run knows that by every bit, an adapter from PEFT by its shapes only."""
    weights = learned["weights"]
    refuse_if_merged(model)
    frozen = {path: p for path, p in plain_names(model, "").items() if path not in weights}
    if learned["base_sha256"] not in ("", fingerprint(frozen)):
        raise Mistake(f"{folder} was trained on {learned['base']}, not on this base: their weights differ")
    try:
        attach(model, [note | {"name": name} if "name" in note else note for note in learned["attached"]])
        own = plain_names(model, name)
        if learned["base_sha256"] == "":  # PEFT may have adapters of some layers only
            weights = {path: torch.zeros_like(p) for path, p in own.items() if is_of_lora(path)} | weights
        for path in sorted(weights.keys() | (own.keys() - frozen.keys())):
            if path not in own or path not in weights:
                raise ValueError(f"only {'the model' if path in own else 'what has learned'} has {path}")
            if own[path].shape != weights[path].shape:
                shapes = f"{tuple(own[path].shape)} in the model, {tuple(weights[path].shape)} in what has learned"
                raise ValueError(f"{path} is {shapes}")
            own[path].copy_(weights[path])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Mistake(f"{folder} does not fit its base: {checked.first_line(error)}") from error


def attach(model: GPT, attached: list[dict[str, Any]]) -> None:
    for note in attached:
        APPLY[note["apply"]](model, **{key: value for key, value in note.items() if key != "apply"})


def at_hand(base: str, adapter: str | Path) -> str:
    """The base that an adapter was trained on, where it is. Raises a Mistake if it is no longer there."""
    if not hugging_face.is_model(base) and not any(Path(run_folder(base), file).is_file() for file in FILES):
        raise Mistake(f"{adapter} was trained on {base}, where no model is now: name its folder with --from")
    return base


def fingerprint(tensors: dict[str, Any]) -> str:
    """The sha256 of tensors, their names and their bits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        tensor = whole(tensor.detach())
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


# ---- folders ---------------------------------------------------------------------------------------------------------


def run_folder(name: str | Path) -> str:
    """The folder of a run, which may also be named by the file in it."""
    path = Path(name)
    return str(path.parent) if path.name in FILES and path.is_file() else str(name)


def file_of(folder: str | Path, file: str) -> Path:
    path = Path(folder, file)
    if not path.is_file():
        others = [other for other in (*FILES, "adapter_config.json") if Path(folder, other).is_file()]
        hint = f"; it holds {others[0]}" if others else ""
        unfinished = "; it is unfinished: --resume goes on with it" if Path(folder, "last.pt").is_file() else ""
        raise Mistake(f"{folder} is not a run with {file}{hint}{unfinished}")
    return path


def tokenizer_beside(folder: str, name: str) -> tiktoken.Encoding:
    """The tokenizer that a model was trained with."""
    own = Path(folder, "tokenizer.tiktoken")
    if name not in ("gpt2", "bytes") and not own.is_file():
        raise Mistake(f"{folder} lacks the tokenizer.tiktoken that its model was trained with")
    tokenizer = tokenizers.load_tokenizer(name if name in ("gpt2", "bytes") else str(own))
    if tokenizer.name != name:
        raise Mistake(f"{own} is not the tokenizer that its model was trained with")
    return tokenizer


# ---- writing ---------------------------------------------------------------------------------------------------------


def save(folder: str | Path, model: GPT, base: Opened) -> int:
    """Writes what the model has learned since its base was opened, and returns the file's size in bytes: learned.pt;
    or model.pt, if that is all of it."""
    refuse_if_merged(model)
    tensors = plain_names(model)
    earlier = base.learned["weights"] if base.learned else {}
    learned = {path: p for path, p in tensors.items() if p.requires_grad or path in earlier}
    if len(learned) == len(tensors):
        return save_model(folder, model, base.tokenizer)
    contents = {
        "base": base.base or base.name,
        "base_sha256": fingerprint({path: p for path, p in tensors.items() if path not in learned}),
        "attached": model.attached[len(base.attached) :],
        "weights": learned,
    }
    return _write(Path(folder, "learned.pt"), contents)


def save_model(folder: str | Path, model: GPT, tokenizer: tiktoken.Encoding) -> int:
    """Writes all of a model to model.pt, and the tokenizer if it is one of one's own; returns model.pt's bytes."""
    if rank() == 0:
        save_tokenizer_beside(tokenizer, folder)
    config = dataclasses.asdict(model.config)
    contents = {
        "config": config,
        "tokenizer": tokenizer.name,
        "attached": model.attached,
        "weights": plain_names(model),
    }
    return _write(Path(folder, "model.pt"), contents)


def save_tokenizer_beside(tokenizer: tiktoken.Encoding, folder: str | Path) -> None:
    if tokenizer.name not in ("gpt2", "bytes"):
        tokenizers.save_tokenizer(tokenizers.ranks_of(tokenizer), Path(folder, "tokenizer.tiktoken"))


def _write(path: Path, contents: dict[str, Any]) -> int:
    contents["weights"] = {name: whole(weight.detach()) for name, weight in contents["weights"].items()}
    if rank() > 0:
        return 0  # rank 0 writes
    refuse_if_not_finite(contents["weights"], path)
    return checked.write(path, contents)


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be in parts on all ranks (run/ranks.py), in one piece on the CPU. All ranks must ask for it."""
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).cpu()


def refuse_if_not_finite(weights: dict[str, Tensor], path: Path) -> None:
    if not all(weight.isfinite().all() for weight in weights.values()):
        raise Mistake(f"{path} is not saved: training diverged in its last step; try a lower --learning-rate")

"""Models and adapters on disk. A run folder holds one of

    model.pt     {"config": of the GPT, "tokenizer": its name, "weights"}, beside it tokenizer.tiktoken unless that is
                 gpt2 or bytes
    adapter.pt   {"config": r, alpha, targets, "base": its name, "base_sha256", "weights": A and B}

and wherever one is read, a model or an adapter in Hugging Face's layout will do (run/hugging_face.py).

Only tensors and plain types are stored, and files are replaced whole: a save that is cut off leaves the old one.
Everything here raises a Mistake for a folder or file that does not fit.
"""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import tiktoken
import torch

from data import tokenizer as tokenizers
from model.generate import lay_out_for_generation
from model.gpt import GPT, GPTConfig
from model.lora import apply_lora, base_state_dict, load_lora_state_dict, lora_layers, lora_state_dict, refuse_if_merged
from run import hugging_face, ranks, stored
from run.config import Mistake

MODEL = ("config", "tokenizer", "weights")
ADAPTER = ("config", "base", "base_sha256", "weights")


def save_model(folder: str | Path, model: GPT, tokenizer: tiktoken.Encoding) -> int:
    """Writes model.pt (and the tokenizer, if it is one of one's own) and returns its size in bytes."""
    if ranks.here()[0] == 0:
        save_tokenizer_beside(tokenizer, folder)
    contents = {"config": dataclasses.asdict(model.config), "tokenizer": tokenizer.name, "weights": model.state_dict()}
    return _write(Path(folder, "model.pt"), contents)


def save_tokenizer_beside(tokenizer: tiktoken.Encoding, folder: str | Path) -> None:
    if tokenizer.name not in ("gpt2", "bytes"):
        tokenizers.save_tokenizer(tokenizers.ranks_of(tokenizer), Path(folder, "tokenizer.tiktoken"))


def load_model(folder: str | Path, row_length: int = 1, dropout: float = 0.0) -> GPT:
    """The model of a run, or one in Hugging Face's layout, on the CPU. Refuses when it cannot read rows of row_length
    tokens."""
    if hugging_face.is_model(folder):
        model = hugging_face.load_model(folder, dropout)
    else:
        contents = _read(Path(folder, "model.pt"), MODEL)
        try:
            model = GPT(GPTConfig(**{**contents["config"], "dropout": dropout}))
            model.load_state_dict(contents["weights"])
        except (TypeError, RuntimeError) as error:
            raise Mistake(f"{folder}/model.pt does not fit its own config: {stored.first_line(error)}") from error
    if row_length > model.config.block_size:
        raise Mistake(
            f"--block-size {row_length} is beyond the {model.config.block_size} tokens that {folder} can read"
        )
    return model


def config_of(folder: str | Path) -> GPTConfig:
    """The shape of a model; of a published one without downloading it."""
    if hugging_face.is_model(folder):
        return hugging_face.config_of(folder)
    try:
        return GPTConfig(**_read(Path(folder, "model.pt"), MODEL, "meta")["config"])  # without its weights
    except TypeError as error:
        raise Mistake(f"{folder}/model.pt does not fit its own config: {stored.first_line(error)}") from error


def tokenizer_of(folder: str | Path) -> tiktoken.Encoding:
    """The tokenizer that a model was trained with. Refuses one that has ids which the model lacks."""
    is_theirs = hugging_face.is_model(folder)
    if is_theirs:
        name = hugging_face.tokenizer_name(folder)
    else:
        name = _read(Path(folder, "model.pt"), MODEL, "meta")["tokenizer"]
    own = hugging_face.folder_of(folder) / "tokenizer.tiktoken"
    if name not in ("gpt2", "bytes") and not own.is_file():
        raise Mistake(f"{folder} lacks the tokenizer.tiktoken that its model was trained with")
    tokenizer = tokenizers.load_tokenizer(name if name in ("gpt2", "bytes") else str(own))
    if tokenizer.name != name:
        raise Mistake(f"{folder}/tokenizer.tiktoken is not the tokenizer that its model was trained with")
    if is_theirs:
        hugging_face.refuse_other_tokenizer(folder, tokenizer)
    vocab_size = config_of(folder).vocab_size
    if vocab_size < tokenizer.n_vocab:
        raise Mistake(
            f"{folder} has a model of {vocab_size:,} tokens, but its tokenizer {name} has {tokenizer.n_vocab:,}: "
            "they do not belong together"
        )
    return tokenizers.padded(tokenizer, vocab_size) if vocab_size > tokenizer.n_vocab else tokenizer


def save_adapter(folder: str | Path, model: GPT, base: str | Path, name: str = "default") -> int:
    """Writes adapter.pt, one adapter's A and B only, and returns its size in bytes. base: the folder of its base.

    Raises a Mistake if anything else has learned: an adapter's file would lose it.
    """
    others = [name for name, p in model.named_parameters() if p.requires_grad and ".lora_" not in name]
    if others:
        raise Mistake(f"{others[0]} and {len(others) - 1} more have learned, but an adapter's file holds A and B only")
    layers = [(path.split(".")[-1], layer) for path, layer in lora_layers(model) if name in layer.adapters]
    adapters = {target: layer.adapters[name] for target, layer in layers}
    any_of_them = next(iter(adapters.values()))
    config = {"r": any_of_them.lora_A.size(0), "alpha": any_of_them.alpha, "targets": sorted(adapters)}
    contents = {
        "config": config,
        "base": str(base),
        "base_sha256": sha256_of_base(model),
        "weights": lora_state_dict(model, name),
    }
    return _write(Path(folder, "adapter.pt"), contents)


def load_adapter(model: GPT, folder: str | Path, name: str = "default") -> None:
    """Puts the adapter of a run, or one from PEFT, beside the model's Linears, active. Refuses a model that is not the
    adapter's base: a run knows it by every bit, PEFT by its shapes only."""
    config, weights, sha256 = read_adapter(folder)
    if sha256 not in ("", sha256_of_base(model)):
        raise Mistake(
            f"the adapter in {folder} was trained on {base_of(folder)}, not on this base: their weights differ"
        )
    try:
        apply_lora(model, config["r"], config["alpha"], 0.0, config["targets"], name)
        if config.get("partly"):  # where it has none, B stays zero
            weights = lora_state_dict(model, name) | weights
        load_lora_state_dict(model, weights, name)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Mistake(f"the adapter in {folder} does not fit its base: {stored.first_line(error)}") from error


def read_adapter(folder: str | Path) -> tuple[dict[str, Any], dict[str, torch.Tensor], str]:
    """An adapter's r, alpha and targets, its A and B by name, and the fingerprint of its base, where that is known."""
    if hugging_face.is_adapter(folder):
        return *hugging_face.load_adapter(folder), ""
    contents = _read(Path(folder, "adapter.pt"), ADAPTER)
    return contents["config"], contents["weights"], contents["base_sha256"]


def is_adapter(folder: str | Path) -> bool:
    return Path(folder, "adapter.pt").is_file() or hugging_face.is_adapter(folder)


def base_of(adapter: str | Path) -> str:
    """The base that an adapter was trained on, by the name that training was given."""
    if hugging_face.is_adapter(adapter):
        return hugging_face.base_of(adapter)
    return str(_read(Path(adapter, "adapter.pt"), ADAPTER, "meta")["base"])


def base_at_hand(adapter: str | Path) -> str:
    """The same, where it is. Raises a Mistake if it is no longer there."""
    base = base_of(adapter)
    if not hugging_face.is_model(base) and not Path(base, "model.pt").is_file():
        raise Mistake(f"{adapter} was trained on {base}, where no model is now: name its folder with --from")
    return base


def split(adapters: str) -> list[str]:
    """The names of several adapters, given with commas between."""
    return [one.strip() for one in adapters.split(",") if one.strip()]


def load_run(folder: str, adapter: str, device: torch.device) -> tuple[GPT, tiktoken.Encoding]:
    """What to evaluate or to talk to: a model, with an adapter on it if one is named; its base is then known anyway.

    Of several adapters, named with commas between, each is there under its own name, and the last is active.
    """
    adapters = split(adapter)
    if not folder and not adapters:
        raise Mistake("give --from RUN, or --adapter RUN for a LoRA adapter and its base")
    bases = {base_of(one) for one in adapters} if not folder else set()
    if len(bases) > 1:
        raise Mistake(
            f"these adapters were trained on {' and '.join(sorted(bases))}: if they are one, name it with --from"
        )
    base = folder or base_at_hand(adapters[0])
    model = load_model(base)
    for number, one in enumerate(adapters):
        load_adapter(model, one, f"adapter_{number}")
    model.to(device)
    if device.type == "cpu":
        lay_out_for_generation(model)
    return model, tokenizer_of(base)


def load_trained(folder: str | Path, device: torch.device) -> GPT:
    """What a run has trained: its model, or its adapter on its base."""
    run, adapter = ("", str(folder)) if is_adapter(folder) else (str(folder), "")
    return load_run(run, adapter, device)[0]


def sha256_of_base(model: GPT) -> str:
    """A fingerprint of every base weight, its name and its bits; adapters do not count."""
    refuse_if_merged(model)
    digest = hashlib.sha256()
    for name, tensor in sorted(base_state_dict(model).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(ranks.whole(tensor).cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _write(path: Path, contents: dict[str, Any]) -> int:
    contents["weights"] = whole(contents["weights"])
    if ranks.here()[0] > 0:
        return 0  # rank 0 writes
    refuse_if_not_finite(contents["weights"], path)
    return stored.write(path, contents)


def whole(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """On the CPU and in one piece. All ranks must ask for it."""
    return {name: ranks.whole(weight).cpu() for name, weight in weights.items()}


def refuse_if_not_finite(weights: dict[str, torch.Tensor], path: Path) -> None:
    if not all(weight.isfinite().all() for weight in weights.values()):
        raise Mistake(f"{path} is not saved: training diverged in its last step; try a lower --learning-rate")


def _read(path: Path, keys: tuple[str, ...], device: str = "cpu") -> dict[str, Any]:
    if not path.is_file():
        others = ["adapter.pt", "adapter_config.json"] if path.name == "model.pt" else ["model.pt"]
        found = [other for other in others if (path.parent / other).is_file()]
        hint = f"; it holds {found[0]}" if found else ""
        unfinished = "; it is unfinished: --resume goes on with it" if (path.parent / "last.pt").is_file() else ""
        raise Mistake(f"{path.parent} is not a run with {path.name}{hint}{unfinished}")
    return stored.read(path, keys, device)

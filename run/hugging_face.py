"""Models and adapters in Hugging Face's layout, as one names them: gpt2 and its sisters, a folder, a file of weights.

    FOLDER       config.json, and model.safetensors or pytorch_model.bin; of an adapter adapter_config.json and
                 adapter_model.safetensors or .bin
    gpt2 …       the published weights, downloaded once (data/download.py)

Everything here raises a Mistake for what does not fit. Pickles (.bin) are read as tensors only, never run.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.download import fetch
from data.public import WEIGHTS
from model import gpt2
from model.gpt import GPT, GPTConfig
from model.safetensors import read_safetensors
from run.config import Mistake

FILES = ("model.safetensors", "pytorch_model.bin")
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")


def is_model(name: str | Path) -> bool:
    """Whether it names a model of this kind: a published one, a folder that holds one, or a file of weights."""
    path = Path(name)
    if path.is_dir():
        return any((path / file).is_file() for file in (*FILES, f"{FILES[0]}.index.json"))
    return path.suffix in (".safetensors", ".bin") or (str(name) in WEIGHTS and not path.exists())


def load_model(name: str | Path, dropout: float = 0.0) -> GPT:
    """The model, on the CPU, in fp32."""
    path = _file_of(name)
    try:
        weights = gpt2.without_extras(_tensors(path))
        config = _config(name) or _from_weights(path, weights)
        return gpt2.model_from(weights, dataclasses.replace(config, dropout=dropout))
    except ValueError as error:
        raise Mistake(_with_name(path, error)) from error


def config_of(name: str | Path) -> GPTConfig:
    """The shape of the model; of a published one without downloading it."""
    path = Path(name)
    try:
        return _config(name) or _from_weights(path, gpt2.without_extras(_tensors(path)))
    except ValueError as error:
        raise Mistake(_with_name(path, error)) from error


def tokenizer_name(name: str | Path) -> str:
    """What an exported folder says of its tokenizer. Another model must have GPT-2's vocabulary."""
    settings = _settings(Path(name).parent if Path(name).is_file() else Path(name), "config.json") or {}
    vocab_size = config_of(name).vocab_size
    if "tokenizer" not in settings and vocab_size != GPTConfig.vocab_size:
        raise Mistake(f"{name} has {vocab_size:,} tokens; only GPT-2's own tokenizer, of 50,257, can be used with it")
    return str(settings.get("tokenizer", "gpt2"))


def is_adapter(name: str | Path) -> bool:
    return Path(name, "adapter_config.json").is_file()


def load_adapter(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """An adapter from PEFT as ours: {"r", "alpha", "targets"}, and A and B by name."""
    settings = _settings(Path(folder), "adapter_config.json") or {}
    path = _first(Path(folder), ADAPTER_FILES)
    try:
        return gpt2.adapter_from(_tensors(path), settings)
    except (ValueError, KeyError) as error:
        raise Mistake(_with_name(path, error)) from error


def base_of(folder: str | Path) -> str:
    """The base that an adapter from PEFT names."""
    name = str((_settings(Path(folder), "adapter_config.json") or {}).get("base_model_name_or_path", ""))
    short = name.removeprefix("openai-community/").removeprefix("distilbert/")
    return short if short in WEIGHTS else name


# ---- files ---------------------------------------------------------------------------------------------------------


def _file_of(name: str | Path) -> Path:
    path = Path(name)
    if path.is_dir():
        return _first(path, (*FILES, f"{FILES[0]}.index.json"))
    return path if path.exists() or str(name) not in WEIGHTS else fetch(WEIGHTS[str(name)], str(name))


def _first(folder: Path, files: tuple[str, ...]) -> Path:
    for file in files:
        if (folder / file).is_file():
            return folder / file
    raise Mistake(f"{folder} lacks the weights: {' or '.join(files)}")


def _tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".json":  # weights in several files
        index = _settings(path.parent, path.name) or {}
        shards = sorted(set(index.get("weight_map", {}).values()))
        if not all(isinstance(shard, str) and shard == Path(shard).name for shard in shards):
            raise ValueError("its weight_map must name files of its own folder")
        return {name: tensor for shard in shards for name, tensor in read_safetensors(path.parent / shard).items()}
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # whatever a damaged or foreign file makes the reader raise
        raise ValueError(f"it cannot be read as a checkpoint: {(str(error).splitlines() or [''])[0]}") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError("it must hold tensors by name and nothing else")
    return state


def _config(name: str | Path) -> GPTConfig | None:
    path = Path(name)
    if not path.exists() and str(name) in gpt2.SHAPES:
        n_layer, n_head, n_embd = gpt2.SHAPES[str(name)]
        return GPTConfig(n_layer=n_layer, n_head=n_head, n_embd=n_embd)
    settings = _settings(path if path.is_dir() else path.parent, "config.json")
    if settings is None and path.is_dir():
        raise Mistake(f"{path} lacks the config.json that tells the shape of its model")
    return None if settings is None else gpt2.config_from(settings)


def _from_weights(path: Path, weights: dict[str, Tensor]) -> GPTConfig:
    config = gpt2.shape_from(weights)
    print(f"{path}: no config.json beside it, so {config.n_head} heads are taken, of 64 channels as in all GPT-2s")
    return config


def _settings(folder: Path, file: str) -> dict[str, Any] | None:
    path = folder / file
    if not path.is_file():
        return None
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(settings, dict):
            return settings
        raise ValueError("it must hold an object")
    except (ValueError, RecursionError) as error:
        raise Mistake(f"{path} is not JSON as expected: {error}") from None


def _with_name(path: Path, error: Exception) -> str:
    return str(error) if str(path) in str(error) else f"{path}: {error}"

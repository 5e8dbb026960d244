"""Models and adapters in Hugging Face's layout, as one names them: gpt2, BERT, their sisters, a folder, a file of
weights.

    FOLDER       config.json, and model.safetensors or pytorch_model.bin; of an adapter adapter_config.json and
                 adapter_model.safetensors or .bin
    gpt2 …       the published weights, downloaded once (data/download.py)

Everything here raises a Mistake for what does not fit. Pickles (.bin) are read as tensors only, never run.
"""

import dataclasses
import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tiktoken
import torch
from torch import Tensor

from cli import Mistake
from data.download import fetch
from data.public import VOCABULARIES, WEIGHTS
from data.tokenizer import load_tokenizer, vocabulary_of
from data.wordpiece import load_wordpiece, wordpiece_of
from model.bert import BERTConfig
from model.gpt import GPTConfig
from store import bert, gpt2, peft
from store.safetensors import read_safetensors

FILES = ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json")
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")


def is_model(name: str | Path) -> bool:
    """Whether it names a model of this kind: a published one, a folder that holds one, or a file of weights."""
    path = Path(name)
    if path.is_dir():
        return any((path / file).is_file() for file in FILES)
    return path.suffix in (".safetensors", ".bin") or (str(name) in WEIGHTS and not path.exists())


def read_model(name: str | Path) -> tuple[GPTConfig, dict[str, Tensor]]:
    """The model's shape, and its weights under our names, on the CPU."""
    path = _file_of(name)
    with _as_mistake(path):
        config, tensors = _config(name), _tensors(path)
        if isinstance(config, BERTConfig):
            return config, bert.weights_from(tensors, config)
        weights = gpt2.without_extras(tensors)
        if config is None:
            config = gpt2.shape_from(weights)
            print(f"{path}: no config.json beside it, so {config.n_head} heads of 64 channels are taken, as in gpt2")
        return config, gpt2.weights_from(weights, config)


def config_of(name: str | Path) -> GPTConfig:
    """The shape of the model; of a published one without downloading it."""
    with _as_mistake(Path(name)):
        return _config(name) or gpt2.shape_from(gpt2.without_extras(_tensors(_file_of(name))))


def head_of(name: str | Path, weights: dict[str, Tensor]) -> list[dict[str, Any]]:
    """How to attach the head that is among the weights, with its classes (model/head.py); nothing if none is."""
    if "head.weight" not in weights:
        return []
    settings = _settings(folder_of(name), "config.json") or {}
    with _as_mistake(folder_of(name) / "config.json"):
        id2label = settings.get("id2label", {"0": "LABEL_0", "1": "LABEL_1"})  # transformers writes none of these
        numbers = [str(number) for number in range(len(weights["head.weight"]))]
        if unnamed := [number for number in numbers if number not in id2label]:
            raise ValueError(f"id2label has no name for class {unnamed[0]}")
        names = [id2label[number] for number in numbers]
        if len(set(names)) < len(names):
            raise ValueError("two classes have the same name in id2label")
        is_of_word = "TokenClassification" in settings["architectures"][0]
        each = str(settings.get("each", "word" if is_of_word else "text"))  # a key of our own
        return [{"apply": "head", "classes": names, "each": each}]


def tokenizer_of(name: str | Path, config: GPTConfig) -> tiktoken.Encoding:
    """What an exported folder says of its tokenizer; another model must have GPT-2's. Refuses a vocabulary beside it
    that is another, though it may have as many tokens."""
    if isinstance(config, BERTConfig):
        if Path(name).exists():
            return load_wordpiece(folder_of(name), config.vocab_size)
        return wordpiece_of(fetch(VOCABULARIES[str(name)], str(name)), "uncased" in str(name), config.vocab_size)
    folder = folder_of(name)
    own = str((_settings(folder, "config.json") or {}).get("tokenizer", "gpt2"))
    if own == "gpt2" and config.vocab_size < GPTConfig.vocab_size:
        raise Mistake(
            f"{name} has {config.vocab_size:,} tokens; only GPT-2's own tokenizer, of 50,257, can be used with it"
        )
    ours = load_tokenizer(own if own in ("gpt2", "bytes") else str(folder / "tokenizer.tiktoken"))
    if ours.name != own:
        raise Mistake(f"{folder}/tokenizer.tiktoken is not the tokenizer that its model was trained with")
    vocabulary = _settings(folder, "vocab.json")
    if vocabulary is None and (tokenizer := _settings(folder, "tokenizer.json")):
        vocabulary = tokenizer.get("model", {}).get("vocab")
    if vocabulary is not None and vocabulary != vocabulary_of(ours):
        raise Mistake(f"{folder} has a tokenizer of its own, which is not {ours.name}: only that can be used with it")
    return ours


def is_adapter(name: str | Path) -> bool:
    return any(Path(name, file).is_file() for file in (ADAPTER_CONFIG, *ADAPTER_FILES))


def load_adapter(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """An adapter from PEFT as ours: how to attach it (store/learned.py), and its weights (store/peft.py)."""
    settings = _settings(Path(folder), ADAPTER_CONFIG)
    if settings is None:
        raise Mistake(f"{folder} lacks the {ADAPTER_CONFIG} that tells what its adapter is: copy it there too")
    with _as_mistake(Path(folder, ADAPTER_CONFIG)):
        peft.refuse_what_is_not_built(settings)
    path = _first(Path(folder), ADAPTER_FILES)
    with _as_mistake(path):
        return peft.adapter_from(_tensors(path), settings)


def base_of(folder: str | Path) -> str:
    """The base that an adapter from PEFT names, or the one that was exported with it."""
    if Path(folder, "base", "config.json").is_file():
        return str(Path(folder, "base"))
    name = str((_settings(Path(folder), ADAPTER_CONFIG) or {}).get("base_model_name_or_path") or "")
    short = name.removeprefix("openai-community/").removeprefix("distilbert/")
    return short if short in WEIGHTS else name


# ---- files ---------------------------------------------------------------------------------------------------------


def folder_of(name: str | Path) -> Path:
    return Path(name).parent if Path(name).is_file() else Path(name)


def _file_of(name: str | Path) -> Path:
    path = Path(name)
    if path.is_dir():
        return _first(path, FILES)
    return path if path.exists() or str(name) not in WEIGHTS else fetch(WEIGHTS[str(name)], str(name))


def _first(folder: Path, files: tuple[str, ...]) -> Path:
    for file in files:
        if (folder / file).is_file():
            return folder / file
    raise Mistake(f"{folder} lacks the weights: {' or '.join(files[:2])}")


def _tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".json":  # weights in several files
        index = (_settings(path.parent, path.name) or {}).get("weight_map")
        shards = sorted(set(index.values())) if isinstance(index, dict) else []
        if not shards or not all(isinstance(shard, str) and shard == Path(shard).name for shard in shards):
            raise ValueError("its weight_map must name files of its own folder")
        return {name: tensor for shard in shards for name, tensor in _tensors(path.parent / shard).items()}
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError("it must hold tensors by name and nothing else")
    return state


def _config(name: str | Path) -> GPTConfig | None:
    """None if there is no config.json to tell."""
    if not Path(name).exists() and str(name) in gpt2.SHAPES:
        n_layer, n_head, n_embd = gpt2.SHAPES[str(name)]
        return GPTConfig(n_layer=n_layer, n_head=n_head, n_embd=n_embd)
    if not Path(name).exists() and str(name) in bert.SHAPES:
        return bert.config_named(str(name))
    settings = _settings(folder_of(name), "config.json")
    if settings is not None and settings.get("model_type") in bert.SIZES:
        config = bert.config_from(settings)
        return dataclasses.replace(config, sep=load_wordpiece(folder_of(name), config.vocab_size).sep)
    return None if settings is None else gpt2.config_from(settings)


def _settings(folder: Path, file: str) -> dict[str, Any] | None:
    path = folder / file
    if not path.is_file():
        return None
    with _as_mistake(path):
        settings = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(settings, dict):
            raise ValueError("it must hold an object")
        return settings


@contextmanager
def _as_mistake(path: Path) -> Iterator[None]:
    """Whatever a damaged or foreign file makes its reader raise, as a sentence that names the file."""
    try:
        yield
    except (Mistake, OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        if isinstance(error, pickle.UnpicklingError):
            said = "it is no file of tensors alone"  # torch's own sentence advises to read it all the same
        raise Mistake(said if str(path) in said else f"{path} cannot be used: {said}") from error

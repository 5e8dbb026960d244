"""Models on disk: what is learned is what is saved. A run folder holds one of

    model.pt      all of a model: {"config" of the GPT, "tokenizer": its name, "attached", "weights"}, beside it
                  tokenizer.tiktoken unless that is gpt2 or bytes; of a BERT vocab.txt and tokenizer_config.json
    learned.pt    what has learned, where the rest has not, and the name of its base (store/learned.py)

Wherever a run is read, a model or an adapter in Hugging Face's layout will do (store/hugging_face.py).

Everything here raises a Mistake for a folder or file that does not fit.
"""

import dataclasses
from pathlib import Path
from typing import Any

import tiktoken
import torch
from torch import Tensor

from cli import Mistake, rank
from data import tokenizer as tokenizers
from data.masked import with_mask
from data.wordpiece import WordPiece, load_wordpiece, save_wordpiece
from model.bert import BERTConfig, built
from model.generate import cannot_write, lay_out_for_generation
from model.gpt import GPT, GPTConfig
from model.head import Classes, classes_of, new_head
from model.switch import plain_name, plain_names, refuse_if_merged
from store import checked, hugging_face
from store.learned import (
    at_hand,
    attach,
    file_of,
    fill,
    fingerprint,
    is_partly_learned,
    read_learned,
    refuse_what_differs,
    run_folder,
    whole,
)
from store.undrawn import Undrawn

MODEL = ("config", "tokenizer", "weights")


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
            with torch.device("meta"), Undrawn():  # no memory and no time for initial weights
                model = built(dataclasses.replace(self.config, dropout=dropout))
                attach(model, self.attached)
            refuse_what_differs(plain_names(model), weights)
            state = {path: weights[plain_name(path)].float() for path in model.state_dict()}
            model.load_state_dict(state, assign=True)
        except (KeyError, TypeError, ValueError) as error:
            raise Mistake(f"{self.name} does not fit its own config: {checked.first_line(error)}") from error
        if self.learned:
            fill(model, self.learned, self.name)
        return model

    # what each training script makes of it, by what it predicts

    def decoder(self, row_length: int, dropout: float) -> GPT:
        """The model, to predict the next token. Raises a Mistake if it cannot."""
        model = self.model(row_length, dropout)
        if why := cannot_write(model):
            raise Mistake(f"{self.name} cannot learn what comes next: {why}; give another --init-from")
        return model

    def encoder(self, row_length: int, dropout: float) -> GPT:
        """The model without its causal mask: each position sees both sides. A causal one gets one token more, the last,
        which is the mask; its embedding begins as the mean of the others. Raises a Mistake if it predicts classes."""
        if self.classes:
            raise Mistake(f"{self.name} predicts classes, not tokens: give another --init-from")
        if self.config.causal:
            if self.learned:
                raise Mistake(f"{self.name} is an adapter: make it a whole model first, with export.py --merge")
            embedding = self.weights["wte.weight"].float()
            self.weights["wte.weight"] = torch.cat([embedding, embedding.mean(0, keepdim=True)])
            self.config = dataclasses.replace(self.config, causal=False, vocab_size=len(embedding) + 1)
        return self.model(row_length, dropout)

    def classifier(self, row_length: int, dropout: float, classes: Classes) -> GPT:
        """The model, causal or not, with a head for the classes: its own if it has one, else a new one."""
        model = self.model(row_length, dropout)
        if model.head is None:
            new_head(model, *classes)
        return model

    def learn_on(self, model: GPT) -> None:
        """Lets learn what learned in this run: of an adapter the adapter alone, else every parameter."""
        for name, parameter in plain_names(model).items():
            parameter.requires_grad_(self.learned is None or name in self.learned["weights"])

    @property
    def classes(self) -> Classes | None:
        """What it tells apart, if it has a head of its own."""
        return classes_of([*self.attached, *(self.learned["attached"] if self.learned else [])])


def open_run(name: str | Path) -> Opened:
    """Reads a run, or a model of others by name, once."""
    folder = run_folder(name)
    if hugging_face.is_model(folder):
        config, weights = hugging_face.read_model(folder)
        attached = hugging_face.head_of(folder, weights)
        tokenizer = hugging_face.tokenizer_of(folder, config)
    elif is_partly_learned(folder):
        learned = read_learned(folder)
        refuse_if_damaged(learned["weights"], folder)
        base = at_hand(learned["base"], folder)
        return dataclasses.replace(open_run(base), name=folder, base=base, learned=learned)
    else:
        contents = checked.read(file_of(folder, "model.pt"), MODEL)
        config, weights, attached = config_in(contents, folder), contents["weights"], contents.get("attached", [])
        tokenizer = tokenizer_beside(folder, contents["tokenizer"], config)
    refuse_if_damaged(weights, folder)
    if isinstance(config, BERTConfig):
        return Opened(folder, tokenizer, config, weights, attached)
    n_tokens = config.vocab_size if config.causal else config.vocab_size - 1  # an encoder's last is the mask
    tokenizer = tokenizers.fitted(tokenizer, n_tokens, folder)
    return Opened(folder, tokenizer if config.causal else with_mask(tokenizer), config, weights, attached)


def refuse_if_damaged(weights: dict[str, Tensor], folder: str) -> None:
    for name, weight in weights.items():
        if not weight.isfinite().all():
            cause = "its training diverged, or the file is damaged"
            raise Mistake(f"{folder} holds numbers that are infinite or NaN, in {name}: {cause}; take another run")


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
        kind = BERTConfig if "segments" in contents["config"] else GPTConfig
        return kind(**contents["config"])
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
        raise Mistake("give --from RUN, or --adapter RUN for what was trained beside a base")
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
    """The names of several adapters, given with commas between; each counts once."""
    return list(dict.fromkeys(one.strip() for one in adapters.split(",") if one.strip()))


def tokenizer_beside(folder: str, name: str, config: GPTConfig) -> tiktoken.Encoding:
    """The tokenizer that a model was trained with."""
    if isinstance(config, BERTConfig):
        wordpiece = load_wordpiece(folder, config.vocab_size)
        if wordpiece.name != name:
            raise Mistake(f"{folder}/vocab.txt is not the vocabulary that its model was trained with")
        return wordpiece
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
    if isinstance(tokenizer, WordPiece):
        return save_wordpiece(tokenizer, folder)
    if tokenizer.name not in ("gpt2", "bytes"):
        tokenizers.save_tokenizer(tokenizers.ranks_of(tokenizer), Path(folder, "tokenizer.tiktoken"))


def _write(path: Path, contents: dict[str, Any]) -> int:
    contents["weights"] = {name: whole(weight.detach()) for name, weight in contents["weights"].items()}
    if rank() > 0:
        return 0  # rank 0 writes
    refuse_if_not_finite(contents["weights"], path)
    return checked.write(path, contents)


def refuse_if_not_finite(weights: dict[str, Tensor], path: Path) -> None:
    if not all(weight.isfinite().all() for weight in weights.values()):
        raise Mistake(f"{path} is not saved: training diverged in its last step; try a lower --learning-rate")

"""A head of its own: the last layer's state at a graded position becomes logits of classes, not of the vocabulary.

    logits = W h + b    (Radford et al. 2018, eq. 3, there without b; Devlin et al. 2019, sec. 4; SLP3, ch. 11)

Shapes:  h (C,) · W (classes, C) · b (classes,). GPT.forward reads the head that is there.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import nn

from cli import Mistake
from model.bert import BERT
from model.gpt import GPT
from model.lora import apply_lora


class Classes(NamedTuple):
    """What a head tells apart."""

    names: list[str]  # in the order of its logits
    each: str  # what has a class: a "text", graded at its last token, or a "word", graded at its own last token


def new_head(model: GPT, classes: list[str], each: str) -> None:
    """Puts a Linear of C to the classes in the place of the tied embedding, with weights from N(0, 0.02²) and biases 0,
    and notes in model.attached how to do it again."""
    model.head = nn.Linear(model.config.n_embd, len(classes), device=model.wte.weight.device)
    nn.init.normal_(model.head.weight, std=0.02)
    nn.init.zeros_(model.head.bias)
    model.attached = [*model.attached, {"apply": "head", "classes": list(classes), "each": each}]


def classes_of(attached: Iterable[dict[str, Any]]) -> Classes | None:
    """The classes of a model, from what is noted in model.attached; None if its head is the tied embedding."""
    found = [Classes(note["classes"], note["each"]) for note in attached if note["apply"] == "head"]
    return found[-1] if found else None


def let_learn(model: GPT, learn: str, r: int, alpha: float) -> None:
    """The head learns, and of what is below it as much as one says; the rest is frozen.

    learn: "head", nothing else; "last-K", the last K blocks too, and what stands between them and the head; "lora", A
    and B beside the layers of all blocks, of rank r and scale alpha (model/lora.py); "all", every parameter. The layer
    before DistilBERT's head comes without pretrained weights, so it learns with the head. Raises Mistake for a K beyond
    the model's blocks.
    """
    assert model.head is not None
    model.requires_grad_(learn == "all")
    between = model.used_pooler() if isinstance(model, BERT) else model.ln_f
    between_is_new = isinstance(model, BERT) and not model.config.segments
    if learn == "lora":
        apply_lora(model, r, alpha)
    if learn.startswith("last-"):
        K, n_layer = int(learn.removeprefix("last-")), len(model.blocks)
        if K > n_layer:
            raise Mistake(f"--learn {learn} is beyond the model's {n_layer} blocks")
        for block in model.blocks[-K:]:
            block.requires_grad_(True)
    if between is not None and (between_is_new or learn.startswith("last-")):
        between.requires_grad_(True)
    model.head.requires_grad_(True)

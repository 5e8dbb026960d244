"""A prefix: a key-value cache that learns (Li and Liang 2021, https://arxiv.org/abs/2101.00190).

In each layer, P keys and values stand before those of the row; every token sees them all. Two ways to have them:

    prefix        keys and values learn themselves, of each layer (Li and Liang, eq. 3, without the MLP)
    soft prompt   P embeddings learn, and the model computes keys and values from them (Lester et al. 2021,
                  https://arxiv.org/abs/2104.08691). Under the causal mask they do not depend on what follows: computed
                  once for all rows, they are what they would be if the embeddings were prepended to each row.

The row then stands at positions P, P + 1, …, as PEFT counts, so the longest row is P tokens shorter.

Shapes:  B rows · T tokens of a row · P positions of the prefix · C channels · H heads · D head size
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cli import Mistake
from model.gpt import GPT, evaluating, to_the_left, visible_in
from model.switch import Place, is_new, learn

COMMONEST = 5000  # tokens to start from: the first of a BPE vocabulary are the commonest (Lester et al., sec. 3.2)


class LayerPrefix:
    """One layer's keys and values before every row, (1, H, P, D) each."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """k and v of T tokens, (B, H, T, D) each. Returns them behind the prefix: (B, H, P + T, D) each."""
        keys, values = (prefix.to(k.dtype).expand(k.size(0), -1, -1, -1) for prefix in (self.keys, self.values))
        return torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2)


class LayerKept:
    """Keeps the keys and values that a layer computes of one row."""

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.kept = LayerPrefix(k, v)
        return k, v


def keys_and_values(model: GPT, embeddings: Tensor) -> list[LayerPrefix]:
    """What each layer computes of a row that stands at positions 0 to P - 1, (1, P, C), given as embeddings."""
    x = model.dropout(embeddings + model.wpe.weight[: embeddings.size(1)])  # (1, P, C)
    layers = [LayerKept() for _ in model.blocks]
    with model.autocast(), torch.compiler.set_stance("force_eager") if model.compiled else nullcontext():
        for block, layer in zip(model.blocks, layers, strict=True):
            x = block(x, None, layer)  # (1, P, C)
    last = layers[-1].kept
    last.values = last.values + 0 * x.sum()  # --shard collects a block's weights when a gradient reaches its output
    return [layer.kept for layer in layers]


class Prefix(nn.Module):
    """Keys and values that learn: (n_layer, 2, H, P, D)."""

    def __init__(self, keys_values: Tensor) -> None:
        super().__init__()
        self.keys_values = nn.Parameter(keys_values)
        self.length = keys_values.size(3)  # P

    def forward(self, model: GPT) -> list[LayerPrefix]:
        return [LayerPrefix(keys, values) for keys, values in self.keys_values[:, :, None]]  # (1, H, P, D) each


class SoftPrompt(nn.Module):
    """Embeddings that learn, as one row: (1, P, C)."""

    def __init__(self, embeddings: Tensor) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(embeddings)
        self.length = embeddings.size(1)  # P

    def forward(self, model: GPT) -> list[LayerPrefix]:
        return keys_and_values(model, self.embeddings)


class PrefixCache:
    """A prefix and the row behind it, for model.hidden."""

    def __init__(self, model: GPT, layers: Sequence[LayerPrefix], positions: Tensor | None) -> None:
        """positions: where the row's tokens stand in it, as in model.hidden."""
        self.model, self.layers, self.positions = model, layers, positions

    def begin(self, T: int) -> tuple[Tensor, Tensor]:
        """Returns where T tokens stand, (T,) or (B, T), and who may look where, (T, P + T) or (B, 1, T, P + T)."""
        refuse_if_too_long(self.model, T)
        P, device = self.layers[0].keys.size(2), self.layers[0].keys.device
        positions = torch.arange(T, device=device) if self.positions is None else self.positions
        if positions.dim() == 1:
            return P + positions, to_the_left(T, P + T, device)
        return P + positions, F.pad(visible_in(positions, causal=True), (P, 0), value=True)


class BeforeRows(Place):
    """Where prefixes and soft prompts stand, of which one at most is active: before every row."""

    def forward(self, model: GPT, positions: Tensor | None) -> PrefixCache | None:
        return None if self.acting() is None else PrefixCache(model, self.acting()(model), positions)


def prefix_of(model: GPT) -> list[LayerPrefix]:
    """The active prefix, layer by layer; without one an empty list."""
    return [] if prefix_length(model) == 0 else model.prefix.acting()(model)


def prefix_length(model: GPT) -> int:
    """P, in positions; 0 without an active prefix."""
    acting = None if model.prefix is None else model.prefix.acting()
    return 0 if acting is None else acting.length


def longest_row(model: GPT) -> int:
    """In tokens: block_size less the active prefix."""
    return model.config.block_size - prefix_length(model)


def refuse_if_too_long(model: GPT, T: int) -> None:
    """Raises Mistake for rows of T tokens that do not fit behind the prefix."""
    P, longest = prefix_length(model), longest_row(model)
    if P and T > longest:
        raise Mistake(
            f"rows of {T} tokens do not fit: of the {model.config.block_size} positions that the model has, its prefix "
            f"takes {P}; give --block-size {longest}, or a prefix of fewer positions"
        )


def apply_prefix(model: GPT, length: int, from_tokens: bool = False, name: str = "default") -> list[nn.Parameter]:
    """Freezes the model and puts new, active keys and values before every row: those of real tokens, drawn at random,
    or random numbers. A prefix of that name that is there already, of the same length, goes on learning.

    Returns what learns: 2 n_layer C numbers a position. Changes the model in place, and notes in model.attached how to
    do it again. Raises Mistake (a ValueError) for a length that leaves no room for a row, another prefix or soft prompt
    of that name, a model that is not causal, and while LoRA is merged.
    """
    note = {"apply": "prefix", "length": length, "name": name}
    if begin_before_rows(model, note):
        if from_tokens:
            with torch.no_grad(), evaluating(model):
                layers = keys_and_values(model, real_tokens(model, length))
            numbers = torch.stack([torch.cat([layer.keys, layer.values]) for layer in layers])
        else:
            n_layer, H, D = len(model.blocks), model.config.n_head, model.config.n_embd // model.config.n_head
            numbers = 0.02 * torch.randn(n_layer, 2, H, length, D)
        model.prefix.adapters[name] = Prefix(numbers.to(model.wte.weight))
    return learn(model, note, [model.prefix.adapters[name]])


def apply_soft_prompt(model: GPT, length: int, from_tokens: bool = False, name: str = "default") -> list[nn.Parameter]:
    """The same with a soft prompt, which starts from the embeddings of real tokens, or from random numbers.

    Returns what learns: C numbers a position. Raises what apply_prefix raises.
    """
    note = {"apply": "prompt", "length": length, "name": name}
    if begin_before_rows(model, note):
        numbers = real_tokens(model, length) if from_tokens else 0.02 * torch.randn(1, length, model.config.n_embd)
        model.prefix.adapters[name] = SoftPrompt(numbers.to(model.wte.weight))
    return learn(model, note, [model.prefix.adapters[name]])


def begin_before_rows(model: GPT, note: dict[str, Any]) -> bool:
    """Makes room before the rows. Returns whether what the note tells is new there."""
    block_size, length, name = model.config.block_size, note["length"], note["name"]
    if not 1 <= length < block_size:
        raise Mistake(f"a prefix can have from 1 to {block_size - 1} of the model's {block_size} positions: {length}")
    if not model.config.causal:
        raise Mistake("this model sees both sides: a prefix stands before rows that are read from left to right")
    new = is_new(model, note)
    if model.prefix is None:
        model.prefix = BeforeRows()
    if new and name in model.prefix.adapters:
        raise Mistake(f"a prefix or a soft prompt named {name!r} stands before the rows already: only one can")
    return new


@torch.no_grad()
def real_tokens(model: GPT, length: int) -> Tensor:
    """Embeddings of so many tokens, drawn at random from the commonest: (1, P, C), a copy."""
    drawn = torch.randint(min(COMMONEST, model.config.vocab_size), (1, length))
    return model.wte(drawn.to(model.wte.weight.device)).clone()

"""The masked language model's task (Devlin et al. 2019, sec. 3.1; SLP3, ch. 11): some tokens are hidden, and each is to
be told from what stands on both of its sides.

Of a row's tokens 15 % are chosen; they alone are graded, each with itself as the target. Of the chosen, 80 % become the
mask, 10 % another token at random, and 10 % stay as they are: a text to finetune on has no masks, so the model must not
expect the mask wherever it is asked something.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tiktoken

from data.batches import Batch, Batches
from data.examples import Example
from data.tokenizer import with_special
from data.wordpiece import WordPiece, frame

CHOSEN, HIDDEN, SWAPPED = 0.15, 0.8, 0.1  # share of the tokens; shares of the chosen

MASK = "<|mask|>"


def with_mask(tokenizer: tiktoken.Encoding) -> tiktoken.Encoding:
    """The same tokenizer and one id more, the last: the mask, behind which an encoder is asked for the token. No text
    contains it. End-of-text could not serve: it stands between documents already."""
    if isinstance(tokenizer, WordPiece) or MASK in tokenizer.special_tokens_set:
        return tokenizer
    return with_special(tokenizer, {MASK: tokenizer.n_vocab})


def mask_token(tokenizer: tiktoken.Encoding) -> int:
    """Its id."""
    return tokenizer.mask if isinstance(tokenizer, WordPiece) else tokenizer.encode_single_token(MASK)


def of_texts(tokenizer: tiktoken.Encoding) -> np.ndarray:
    """The ids that a text can have: those below end-of-text, or of BERT all but the special ones."""
    return tokenizer.of_texts if isinstance(tokenizer, WordPiece) else np.arange(tokenizer.eot_token)


@dataclass(frozen=True)
class Masked(Sequence[Example]):
    """Rows of a text with some of their tokens hidden. Which ones depends on the seed, the epoch and the row alone: to
    judge by, a seed and an epoch are taken once and for all."""

    rows: Sequence[Example]  # of text, from which the inputs are taken
    tokenizer: tiktoken.Encoding  # one with a mask
    seed: int = 0
    epoch: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i):
        """Row i; what no text has, like end-of-text, is never chosen. The positions tell a model that sees both sides
        where padding begins."""
        before, _, after = frame(self.tokenizer)
        tokens = np.array([*before, *self.rows[i].inputs, *after], np.int64)
        is_text = np.isin(tokens, of_texts(self.tokenizer))
        words = np.flatnonzero(is_text) if is_text.any() else np.arange(len(tokens))
        rng = np.random.default_rng((self.seed, self.epoch, i))
        chosen = rng.permutation(words)[: max(1, round(CHOSEN * len(words)))]
        draw = rng.random(len(chosen))  # in [0, 1)
        hidden, swapped = chosen[draw < HIDDEN], chosen[(HIDDEN <= draw) & (draw < HIDDEN + SWAPPED)]
        inputs, graded = tokens.copy(), np.zeros(len(tokens), bool)
        inputs[hidden] = mask_token(self.tokenizer)
        inputs[swapped] = rng.choice(of_texts(self.tokenizer), size=len(swapped))
        graded[chosen] = True
        return Example(inputs, tokens, graded, np.arange(len(tokens)))

    def of_epoch(self, epoch: int) -> "Masked":
        return dataclasses.replace(self, epoch=epoch)


class MaskedBatches(Batches):
    """Batches of masked rows, whose masks are new in each epoch."""

    examples: Masked

    def of_step(self, step: int) -> list[Batch]:
        self.examples = self.examples.of_epoch(step // self.per_epoch)
        return super().of_step(step)

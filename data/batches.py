"""From examples to the tensors of a training step.

Shapes: B rows · T the longest row's positions. All rows of one micro-batch are padded on the right to T: under a causal
mask no real position ever sees what stands to its right, so padding needs no mask of its own; it is just not graded.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cli import Mistake
from data.examples import Example, Pair


class Batch(NamedTuple):
    inputs: Tensor  # (B, T) ids
    targets: Tensor  # (B, T) what is to be predicted at each position
    graded: Tensor  # (B, T) bool
    positions: Tensor  # (T,) 0, 1, … T - 1 in every row; or (B, T), in packed rows: where in their own example


def rows_of(example: Example | Pair) -> tuple[Example, ...]:
    """An example is one row of a batch, a pair two."""
    return tuple(example) if isinstance(example, Pair) else (example,)


def collate(examples: Sequence[Example | Pair]) -> Batch:
    """Pads the rows to one length; of pairs first all chosen responses, then the rejected ones in the same order.
    Raises ValueError for a row in which nothing is graded: its loss is 0 / 0."""
    rows = [row for of_all in zip(*map(rows_of, examples), strict=True) for row in of_all]
    for example in rows:
        if not example.graded.any():
            raise ValueError(f"an example of {len(example.inputs)} positions has none that is graded")
    inputs, targets, graded = (_padded([row[part] for row in rows]) for part in range(3))
    positions = torch.arange(inputs.size(1))
    if rows[0].positions is not None:
        positions = _padded([row.positions for row in rows])
    return Batch(inputs, targets, graded, positions)


def _padded(rows: Sequence[Any]) -> Tensor:
    """(L,) each -> (B, T), with zeros, or False, on the right."""
    tensors = [torch.from_numpy(row if row.dtype == bool else row.astype(np.int64)) for row in rows]
    return pad_sequence(tensors, batch_first=True)


def in_order(examples: Sequence[Example | Pair], batch_size: int, rank: int = 0, n_ranks: int = 1) -> Iterator[Batch]:
    """Every example once, as it stands: for evaluation. Of several ranks each gets its part of every batch."""
    for start in range(0, len(examples), batch_size):
        yield part_of_rank(examples, range(start, min(start + batch_size, len(examples))), rank, n_ranks)


def part_of_rank(
    examples: Sequence[Example | Pair], rows: Sequence[int] | np.ndarray, rank: int, n_ranks: int
) -> Batch:
    """The examples at rank, rank + n_ranks, … of a batch's rows. All ranks compute together: one for which no row is
    left computes the first too, ungraded."""
    mine = rows[rank::n_ranks]
    batch = collate([examples[i] for i in (mine if len(mine) else rows[:1])])
    if not len(mine):
        batch.graded.fill_(False)
    return batch


def longest(example: Example | Pair) -> int:
    return max(len(row.inputs) for row in rows_of(example))


class Batches:
    """Shuffled rows for every optimizer step, in micro-batches. Which rows a step gets depends on the seed, the step
    and how many they are, not on what was read before, nor on how many micro-batches share them. Each epoch is a new
    order in which every example comes once."""

    def __init__(
        self,
        examples: Sequence[Example | Pair],
        batch_size: int,
        micro_batches: int,
        seed: int,
        rank: int = 0,
        n_ranks: int = 1,
    ) -> None:
        """batch_size: rows a micro-batch; micro_batches: how many of them an optimizer step adds up. Of n_ranks
        processes this one gets, of every micro-batch, the rows at rank, rank + n_ranks, and so on."""
        if not len(examples):
            raise Mistake("no example is left to learn from: give a smaller --held-out")
        self.examples, self.batch_size, self.micro_batches, self.seed = examples, batch_size, micro_batches, seed
        self.rank, self.n_ranks = rank, n_ranks
        self.rows_a_step = batch_size * micro_batches
        self.per_epoch = -(-len(examples) // self.rows_a_step)  # steps an epoch, the last may have fewer rows
        self.epoch = -1  # the epoch whose order is at hand

    def fingerprint(self) -> str:
        """Of all examples, or of 100,000 of them if there are more. A resumed run must have the same."""
        digest = hashlib.sha256(str(len(self.examples)).encode())
        for i in range(0, len(self.examples), 1 + len(self.examples) // 100_000):
            for inputs, targets, graded, _ in rows_of(self.examples[i]):
                for part in (inputs.astype(np.int64), targets.astype(np.int64), graded):
                    digest.update(part.tobytes())
        return digest.hexdigest()

    def of_step(self, step: int) -> list[Batch]:
        """This rank's part of the micro-batches whose gradients add up to that of optimizer step 0, 1, and so on.

        All ranks compute together: with several of them there are always as many micro-batches, if need be ungraded.
        """
        rows = self.rows(step)
        parts = [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]
        batches = [part_of_rank(self.examples, part, self.rank, self.n_ranks) for part in parts]
        while self.n_ranks > 1 and len(batches) < self.micro_batches:
            batches.append(batches[0]._replace(graded=torch.zeros_like(batches[0].graded)))
        return batches

    def rows(self, step: int) -> np.ndarray:
        """Which examples a step holds, in all its micro-batches and ranks."""
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self.epoch:
            self.epoch, self.order = epoch, self._order(epoch)
        return self.order[place]

    def _order(self, epoch: int) -> list[np.ndarray]:
        """Shuffled, then sorted by length in pools of 32 steps, so that the rows of a step are of like length. But not
        where each has a single label: classes differ in length (spam is long), so a step would see but one of them."""
        rng = np.random.default_rng((self.seed, epoch))
        shuffled = rng.permutation(len(self.examples))
        a_label_each = all(row.graded.sum() == 1 for one in self.examples for row in rows_of(one))
        pool = self.rows_a_step * (1 if a_label_each else 32)
        steps = []
        for start in range(0, len(shuffled), pool):
            rows = shuffled[start : start + pool]
            rows = rows[np.argsort([longest(self.examples[i]) for i in rows], kind="stable")]
            steps += np.split(rows, range(self.rows_a_step, len(rows), self.rows_a_step))
        return [steps[i] for i in rng.permutation(len(steps))]

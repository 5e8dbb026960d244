"""From examples to the tensors of a training step. The shift by one lives here and nowhere else.

Shapes: B rows · T the longest row's inputs. All rows of one micro-batch are padded on the right to T: under a causal
mask no real position ever sees what stands to its right, so padding needs no mask of its own; it is just not graded.
"""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from data.examples import Example
from run.config import Mistake

Batch = tuple[Tensor, Tensor, Tensor, Tensor]  # inputs, targets, graded: (B, T) each; positions: (T,), packed (B, T)


def collate(examples: Sequence[Example]) -> Batch:
    """Pads and shifts: targets[b, t] is the token that follows inputs[b, t], graded[b, t] whether it is graded.

    Returns ids, ids and bool, (B, T) each, and where inputs stand: 0, 1, … T - 1 in every row, (T,), or in packed rows
    where in their own example, (B, T). Raises ValueError for a row in which nothing is graded: its loss is 0 / 0.
    """
    T = max(len(example.tokens) for example in examples) - 1
    inputs = torch.zeros(len(examples), T, dtype=torch.long)
    targets = torch.zeros(len(examples), T, dtype=torch.long)
    graded = torch.zeros(len(examples), T, dtype=torch.bool)
    positions = torch.arange(T) if examples[0].positions is None else torch.zeros(len(examples), T, dtype=torch.long)
    for b, (tokens, is_graded, own_positions) in enumerate(examples):
        if not is_graded[1:].any():
            raise ValueError(f"an example of {len(tokens)} tokens has none that is graded after its first")
        t = len(tokens) - 1
        inputs[b, :t] = torch.from_numpy(tokens[:-1].astype(np.int64))
        targets[b, :t] = torch.from_numpy(tokens[1:].astype(np.int64))
        graded[b, :t] = torch.from_numpy(is_graded[1:])
        if own_positions is not None:
            positions[b, :t] = torch.from_numpy(own_positions[:-1])
    return inputs, targets, graded, positions


def in_order(examples: Sequence[Example], batch_size: int, rank: int = 0, n_ranks: int = 1) -> Iterator[Batch]:
    """Every example once, as it stands: for evaluation. Of several ranks each gets its part of every batch."""
    for start in range(0, len(examples), batch_size):
        yield part_of_rank(examples, range(start, min(start + batch_size, len(examples))), rank, n_ranks)


def part_of_rank(examples: Sequence[Example], rows: Sequence[int] | np.ndarray, rank: int, n_ranks: int) -> Batch:
    """The examples at rank, rank + n_ranks, … of a batch's rows. All ranks compute together: one for which no row is
    left computes the first too, ungraded."""
    mine = rows[rank::n_ranks]
    batch = collate([examples[i] for i in (mine if len(mine) else rows[:1])])
    if not len(mine):
        batch[2].fill_(False)
    return batch


class Batches:
    """Shuffled micro-batches for every optimizer step. What a step gets depends on the seed and the step
    alone, not on what was read before. Each epoch is a new order in which every example comes once."""

    def __init__(
        self,
        examples: Sequence[Example],
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
        self.per_epoch = -(-len(examples) // batch_size)  # micro-batches an epoch, the last may be smaller
        self.epoch = -1  # the epoch whose order is at hand

    def fingerprint(self) -> str:
        """Of all examples, or of 100,000 of them if there are more. A resumed run must have the same."""
        digest = hashlib.sha256(str(len(self.examples)).encode())
        for i in range(0, len(self.examples), 1 + len(self.examples) // 100_000):
            tokens, graded, _ = self.examples[i]
            digest.update(tokens.astype(np.int64).tobytes() + graded.tobytes())
        return digest.hexdigest()

    def of_step(self, step: int) -> list[Batch]:
        """This rank's part of the micro-batches whose gradients add up to that of optimizer step 0, 1, and so on."""
        numbers = range(step * self.micro_batches, (step + 1) * self.micro_batches)
        return [part_of_rank(self.examples, self.rows(number), self.rank, self.n_ranks) for number in numbers]

    def rows(self, number: int) -> np.ndarray:
        """Which examples micro-batch `number`, counted through all epochs, holds."""
        epoch, place = divmod(number, self.per_epoch)
        if epoch != self.epoch:
            self.epoch, self.order = epoch, self._order(epoch)
        return self.order[place]

    def _order(self, epoch: int) -> list[np.ndarray]:
        """Shuffled, then sorted by length in pools of 32 batches, so that the rows of a batch are of like length."""
        rng = np.random.default_rng((self.seed, epoch))
        shuffled = rng.permutation(len(self.examples))
        pool = 32 * self.batch_size
        batches = []
        for start in range(0, len(shuffled), pool):
            rows = shuffled[start : start + pool]
            rows = rows[np.argsort([len(self.examples[i].tokens) for i in rows], kind="stable")]
            batches += np.split(rows, range(self.batch_size, len(rows), self.batch_size))
        return [batches[i] for i in rng.permutation(len(batches))]

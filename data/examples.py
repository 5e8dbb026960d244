"""What a model learns from, plain text or instructions, both as examples (tokens, graded).

tokens: (L,) ids; graded: (L,) bool, which of them the model is asked to predict. That mask is all that tells the two
apart: text is graded everywhere, an instruction only on its response and the end-of-text token after it, a
conversation on each of its responses.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tiktoken

from data.records import Instruction, read_instructions
from data.text import token_file
from run.config import Mistake


class Example(NamedTuple):
    tokens: np.ndarray  # (L,) ids
    graded: np.ndarray  # (L,) bool
    positions: np.ndarray | None = None  # (L,), of a packed row only: where each token stands in its own example

    def prompt(self) -> list[int]:
        """What comes before the first graded token; of plain text, where nothing does, its first 16 tokens."""
        n_before = int(self.graded.argmax())  # the index of the first True
        return self.tokens[: n_before if n_before > 0 else 16].tolist()

    def response(self) -> list[int]:
        """The first run of graded tokens: of a conversation, the first response and its end-of-text."""
        run = self.graded[self.graded.argmax() :]
        n_graded = len(run) if run.all() else int(run.argmin())  # the index of the first False
        return self.tokens[self.graded.argmax() :][:n_graded].tolist()


# ---- plain text: graded everywhere -------------------------------------------------------------------------------


def from_text(
    path: str | Path,
    tokenizer: tiktoken.Encoding,
    block_size: int,
    held_out: float,
    columns: str = "",
    skip_bad: bool = False,
) -> tuple[Sequence[Example], Sequence[Example]]:
    """Rows of block_size + 1 tokens to learn from, and those of the text's last part (the share held_out) to judge by.

    The part to judge by has at most 131,072 tokens, so that judging stays short; with held_out 1 it is all of the text.
    Raises OSError for a file that cannot be read, Mistake for one that is not UTF-8 or too short.
    """
    tokens = token_file(path, tokenizer, columns, skip_bad)
    n_held_out = max(2, len(tokens) if held_out == 1 else min(int(held_out * len(tokens)), 2**17))
    a_row = 0 if held_out == 1 else block_size + 1
    if len(tokens) < n_held_out + a_row:
        to_learn = f" and a row of {a_row:,} to learn from" if a_row else ""
        raise Mistake(f"{path} has {len(tokens):,} tokens, too few: the least are {n_held_out:,} to judge by{to_learn}")
    return TextRows(tokens[:-n_held_out], block_size), TextRows(tokens[-n_held_out:], block_size)


@dataclass
class TextRows(Sequence[Example]):
    """A text cut into rows. The last token of a row is the first of the next: a row's first token is only read, so
    each token of the text but the very first is predicted exactly once."""

    tokens: np.ndarray  # (L,), in memory or on disk
    block_size: int

    def __len__(self) -> int:
        return max(0, -(-(len(self.tokens) - 1) // self.block_size))  # rounded up: the last row may be shorter

    def __getitem__(self, i):
        if not 0 <= i < len(self):
            raise IndexError(i)
        tokens = self.tokens[i * self.block_size : (i + 1) * self.block_size + 1]
        return Example(tokens, np.ones(len(tokens), bool))


# ---- instructions: graded on the response ------------------------------------------------------------------------


def render_prompt(instruction: str, input: str = "") -> str:
    """The one prompt template, for training and for sampling: what the model has read when it begins to respond."""
    input_line = f"### Input: {input}\n" if input else ""
    return f"### Instruction: {instruction}\n{input_line}### Response:"


def conversation(record: Instruction, tokenizer: tiktoken.Encoding) -> Example:
    """What the model has read when it begins to respond to the record; graded are its own earlier responses.

    Training and chat both come by here, and each part is encoded apart: so the ids are the same in both.
    """
    prompts = [*(render_prompt(user) for user, _ in record.earlier), render_prompt(record.instruction, record.input)]
    if record.system:
        prompts[0] = f"{record.system}\n{prompts[0]}"
    tokens: list[int] = []
    graded: list[bool] = []
    for turn, prompt in enumerate(prompts):
        read = tokenizer.encode_ordinary(prompt)
        said = _response(record.earlier[turn][1], tokenizer) if turn < len(record.earlier) else []
        tokens += read + said
        graded += [False] * len(read) + [True] * len(said)
    return Example(np.array(tokens), np.array(graded))


def _response(text: str, tokenizer: tiktoken.Encoding) -> list[int]:
    return [*tokenizer.encode_ordinary(" " + text), tokenizer.eot_token]


def instruction_example(record: Instruction, tokenizer: tiktoken.Encoding) -> Example:
    """What the model reads, then its response, which is graded."""
    before, response = conversation(record, tokenizer), _response(record.output, tokenizer)
    graded = np.append(before.graded, [True] * len(response))
    return Example(np.append(before.tokens, response), graded)


def graded_everywhere(examples: Sequence[Example]) -> list[Example]:
    """The same examples without the mask: their prompts are graded too, as in pretraining."""
    return [Example(example.tokens, np.ones(len(example.tokens), bool)) for example in examples]


def packed(examples: Sequence[Example], block_size: int) -> list[Example]:
    """Rows of several examples, block_size + 1 tokens at most, so that little is padding.

    Best-fit decreasing: the longest example comes first, each goes into the row with the least room that is enough.
    Positions start anew with each example, by which the model keeps them apart; its first token is only read. Raises
    ValueError for an example that is longer than a row.
    """
    rows: list[list[list[Example]]] = [[] for _ in range(block_size + 2)]  # rows[n] have room for n more tokens
    for example in sorted(examples, key=lambda example: -len(example.tokens)):
        size = len(example.tokens)
        if size > block_size + 1:
            raise ValueError(f"an example of {size} tokens does not fit a row of {block_size + 1}")
        room = next((room for room in range(size, block_size + 1) if rows[room]), block_size + 1)
        row = rows[room].pop() if rows[room] else []
        rows[room - size].append([*row, example])
    return [_joined(row) for some in rows for row in some]


def _joined(row: Sequence[Example]) -> Example:
    positions = np.concatenate([np.arange(len(example.tokens)) for example in row])
    graded = np.concatenate([example.graded for example in row]) & (positions > 0)
    return Example(np.concatenate([example.tokens for example in row]), graded, positions)


def from_instructions(
    path: str | Path,
    tokenizer: tiktoken.Encoding,
    block_size: int,
    held_out: float,
    columns: str = "",
    skip_bad: bool = False,
) -> tuple[Sequence[Example], Sequence[Example]]:
    """The examples to learn from, and a random share held_out to judge by: the same records in every run.

    A long response is cut after block_size + 1 tokens. An example is skipped when its response is empty, or when its
    prompt alone fills the block, so that nothing would be graded. Both are counted and printed. Raises ValueError when
    nothing is left to learn from or to judge by, and for a malformed file.
    """
    records = read_instructions(path, columns, skip_bad)
    random.Random(0).shuffle(records)
    n_held_out = max(1, int(held_out * len(records)))
    counts: Counter[str] = Counter()
    examples: list[list[Example]] = []
    for part in (records[:-n_held_out], records[-n_held_out:]):
        examples.append([])
        for record in part:
            tokens, graded, _ = instruction_example(record, tokenizer)
            if not all(said.strip() for said in (record.output, *(said for _, said in record.earlier))):
                counts["have an empty response: skipped"] += 1
            elif not graded[: block_size + 1].any():
                counts[f"have a prompt longer than --block-size {block_size}, nothing would be graded: skipped"] += 1
            else:
                if len(tokens) > block_size + 1:
                    counts[f"are longer than --block-size {block_size}: cut there, their end is not learned"] += 1
                examples[-1].append(Example(tokens[: block_size + 1], graded[: block_size + 1]))
    for what, n in counts.items():
        print(f"{path}: {n:,} of {len(records):,} instructions {what}")
    train, judge = examples
    if not judge or (not train and held_out < 1):
        raise Mistake(
            f"{path} has {len(train)} usable instructions to learn from and {len(judge)} to judge by; "
            "it must have at least one of each"
        )
    return train, judge

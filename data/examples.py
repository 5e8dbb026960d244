"""What a model learns from: examples, in which each position has an input, a target, and is graded or not.

Text is graded everywhere, an instruction only on its response and the end-of-text token after it, a conversation on
each of its responses. Their targets are the tokens that follow, but need not be: a label, a tag or a masked token can
stand there too, and nothing after this file would notice.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import tiktoken

from cli import Mistake
from data.records import Instruction, read_instructions
from data.text import token_file
from data.wordpiece import frame

Record = TypeVar("Record")
Row = TypeVar("Row")


class Example(NamedTuple):
    """Aligned position by position: at inputs[t] the model is asked for targets[t], and judged by it if graded[t]."""

    inputs: np.ndarray  # (L,) ids
    targets: np.ndarray  # (L,) what is to be predicted at each position
    graded: np.ndarray  # (L,) bool
    positions: np.ndarray | None = None  # (L,) where each input stands in its own example; None: 0, 1, … L - 1

    def prompt(self) -> list[int]:
        """What is read before the first graded target. Plain text has no prompt: its first 16 tokens stand for one."""
        first = int(self.graded.argmax())  # the index of the first True
        n_read = first + 1 if first > 0 else 16
        return self.inputs[:n_read].tolist()

    def response(self) -> list[int]:
        """The first run of graded targets: of a conversation, the first response and its end-of-text."""
        run = self.graded[self.graded.argmax() :]
        n_graded = len(run) if run.all() else int(run.argmin())  # the index of the first False
        return self.targets[self.graded.argmax() :][:n_graded].tolist()

    def cut(self, length: int) -> "Example":
        """Its first positions."""
        return Example(*(None if part is None else part[:length] for part in self))  # type: ignore[arg-type]


class Pair(NamedTuple):
    """Two responses to one prompt: two rows of a batch, which stay together."""

    chosen: Example
    rejected: Example

    def prompt(self) -> list[int]:
        """What both read before they begin to differ in what is graded."""
        return self.chosen.prompt()


def next_token(tokens: np.ndarray, graded: np.ndarray) -> Example:
    """The shift by one, which is nowhere else: at each token the target is the token that follows it.

    tokens: (L + 1,) ids; graded: (L + 1,) bool, whether a token is to be predicted. The first one is only read.
    """
    return Example(tokens[:-1], tokens[1:], graded[1:])


class Reading(NamedTuple):
    """How a file becomes examples."""

    tokenizer: tiktoken.Encoding
    block_size: int  # positions a row at most
    held_out: float  # share of the file to judge by; 1: all of it
    columns: str = ""  # the file's names for ours (data/formats.py)
    skip_bad_records: bool = False  # leave out records that cannot be read, and count them


def from_records(
    path: str | Path,
    what: str,
    records: list[Record],
    how: Reading,
    example_of: Callable[[Record], tuple[Row | None, str]],
) -> tuple[list[Row], list[Row]]:
    """The examples to learn from, and those of a random share held_out to judge by: the same records in every run.

    example_of: a record's example, or None where it is skipped, and what to say of such records, or nothing; how many
    they are is printed. Raises Mistake when nothing is left to learn from or to judge by.
    """
    random.Random(0).shuffle(records)  # whatever --seed is: all runs hold out the same records
    found = [example_of(record) for record in records]
    for said, n in Counter(said for _, said in found if said).items():
        print(f"{path}: {n:,} of {len(records):,} {what} {said}")
    n_held_out = n_to_judge_by(how.held_out, len(records))
    train, judge = ([row for row, _ in part if row is not None] for part in (found[:-n_held_out], found[-n_held_out:]))
    refuse_too_few(path, what, train, judge, how.held_out)
    return train, judge


def refuse_too_few(path: str | Path, what: str, train: Sequence[Any], judge: Sequence[Any], held_out: float) -> None:
    """Raises a Mistake where nothing is left to judge by, or to learn from; with held_out 1 none is to be learned."""
    if not judge or (not train and held_out < 1):
        found = f"{len(train)} usable {what} to learn from and {len(judge)} to judge by"
        raise Mistake(f"{path} has {found}; it must have at least one of each")


def n_to_judge_by(held_out: float, n_records: int) -> int:
    """How many of so many records: the share held_out, but 1,024 at most, so that judging stays short; with held_out 1
    all of them."""
    return max(1, n_records if held_out == 1 else min(int(held_out * n_records), 1024))


# ---- plain text: graded everywhere -------------------------------------------------------------------------------


def from_text(path: str | Path, how: Reading) -> tuple[Sequence[Example], Sequence[Example]]:
    """Rows of block_size positions to learn from, and those of the text's last part (the share held_out) to judge by.

    The part to judge by has at most 131,072 tokens, so that judging stays short; with held_out 1 it is all of the text.
    Raises OSError for a file that cannot be read, Mistake for one that is not UTF-8 or too short.
    """
    tokens = token_file(path, how.tokenizer, how.columns, how.skip_bad_records)
    n_held_out = max(2, len(tokens) if how.held_out == 1 else min(int(how.held_out * len(tokens)), 2**17))
    before, _, after = frame(how.tokenizer)
    length = how.block_size - len(before) - len(after)  # data/masked.py puts these around each row
    if length < 1:
        raise Mistake(f"--block-size {how.block_size} has no room for text: [CLS] and [SEP] stand around each row")
    a_row = 0 if how.held_out == 1 else length + 1
    if len(tokens) < n_held_out + a_row:
        to_learn = f" and a row of {a_row:,} to learn from" if a_row else ""
        raise Mistake(f"{path} has {len(tokens):,} tokens, too few: the least are {n_held_out:,} to judge by{to_learn}")
    return TextRows(tokens[:-n_held_out], length), TextRows(tokens[-n_held_out:], length)


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
        return next_token(tokens, np.ones(len(tokens), bool))


# ---- instructions: graded on the response ------------------------------------------------------------------------


def render_prompt(instruction: str, input: str = "", examples: Iterable[tuple[str, str, str]] = ()) -> str:
    """The one prompt template, for training and for sampling: what the model has read when it begins to respond.

    examples: solved ones to show before it (in-context learning: Brown et al. 2020), (instruction, input, output) each.
    """
    solved = "".join(f"{render_prompt(asked, about)} {answer}\n" for asked, about, answer in examples)
    input_line = f"### Input: {input}\n" if input else ""
    return f"{solved}### Instruction: {instruction}\n{input_line}### Response:"


def conversation(record: Instruction, tokenizer: tiktoken.Encoding) -> tuple[list[int], list[bool]]:
    """The tokens that come before the response, of an instruction or of a chat, and which of them are graded: prompts
    are not, earlier responses of a chat are.

    Training and chat both come by here, and each part is encoded apart: so the ids are the same in both.
    """
    prompts = [
        *(render_prompt(user) for user, _ in record.earlier),
        render_prompt(record.instruction, record.input, record.examples),
    ]
    if record.system:
        prompts[0] = f"{record.system}\n{prompts[0]}"
    tokens: list[int] = []
    graded: list[bool] = []
    for turn, prompt in enumerate(prompts):
        read = tokenizer.encode_ordinary(prompt)
        said = response_tokens(record.earlier[turn][1], tokenizer) if turn < len(record.earlier) else []
        tokens += read + said
        graded += [False] * len(read) + [True] * len(said)
    return tokens, graded


def response_tokens(text: str, tokenizer: tiktoken.Encoding) -> list[int]:
    """A response as it follows a prompt, with its end-of-text."""
    return [*tokenizer.encode_ordinary(" " + text), tokenizer.eot_token]


def instruction_example(record: Instruction, tokenizer: tiktoken.Encoding) -> Example:
    """What the model reads, then its response, which is graded."""
    tokens, graded = conversation(record, tokenizer)
    response = response_tokens(record.output, tokenizer)
    return next_token(np.array(tokens + response), np.array(graded + [True] * len(response)))


def graded_everywhere(examples: Iterable[Example]) -> list[Example]:
    """The same examples without the mask: their prompts are graded too, as in pretraining."""
    return [example._replace(graded=np.ones(len(example.graded), bool)) for example in examples]


def packed(examples: Sequence[Example], block_size: int) -> list[Example]:
    """Rows of several examples, block_size positions at most, so that little is padding.

    Best-fit decreasing: the longest example comes first, each goes into the row with the least room that is enough.
    Positions start anew with each example, by which the model keeps them apart. Raises ValueError for an example that
    is longer than a row.
    """
    rows: list[list[list[Example]]] = [[] for _ in range(block_size + 1)]  # rows[n] have room for n more positions
    for example in sorted(examples, key=lambda example: -len(example.inputs)):
        size = len(example.inputs)
        if size > block_size:
            raise ValueError(f"an example of {size} positions does not fit a row of {block_size}")
        room = next((room for room in range(size, block_size) if rows[room]), block_size)
        row = rows[room].pop() if rows[room] else []
        rows[room - size].append([*row, example])
    return [_joined(row) for some in rows for row in some]


def _joined(row: Sequence[Example]) -> Example:
    inputs, targets, graded = (np.concatenate([example[part] for example in row]) for part in range(3))
    positions = np.concatenate([np.arange(len(example.inputs)) for example in row])
    return Example(inputs, targets, graded, positions)


def from_instructions(path: str | Path, how: Reading) -> tuple[Sequence[Example], Sequence[Example]]:
    """The examples to learn from, and a random share held_out to judge by, 1,024 at most: the same in every run.

    A long response is cut after block_size positions. An example is skipped when its response is empty, or when its
    prompt alone fills the block, so that nothing would be graded. Both are counted and printed. Raises Mistake when
    nothing is left to learn from or to judge by, and for a malformed file.
    """
    block = how.block_size

    def example_of(record: Instruction) -> tuple[Example | None, str]:
        example = instruction_example(record, how.tokenizer)
        if not all(said.strip() for said in (record.output, *(said for _, said in record.earlier))):
            return None, "have an empty response: skipped"
        if not example.cut(block).graded.any():
            return None, f"have a prompt longer than --block-size {block}, nothing would be graded: skipped"
        is_long = len(example.inputs) > block
        said = f"are longer than --block-size {block}: cut there, their end is not learned" if is_long else ""
        return example.cut(block), said

    records = read_instructions(path, how.columns, how.skip_bad_records)
    return from_records(path, "instructions", records, how, example_of)

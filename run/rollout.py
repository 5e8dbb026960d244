"""A policy's own answers: sampled, laid out as rows to be graded, and rewarded."""

import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tiktoken
import torch
from torch import Tensor

from cli import Mistake
from data.batches import Batch, collate
from data.examples import Example, next_token
from data.labelled import graded_at
from data.pairs import SCORE
from model.generate import generate
from model.gpt import GPT
from run.session import Session
from store import checkpoint


class Answer(NamedTuple):
    prompt: list[int]
    tokens: list[int]  # of the answer, with its end-of-text if it has come to its end
    right: list[int]  # of the response that the data has, with its end-of-text


Reward = Callable[[Sequence[Answer]], Tensor]  # (answers,) on the CPU


# ---- what an answer is worth -----------------------------------------------------------------------------------------


def reward_of(name: str, session: Session, tokenizer: tiktoken.Encoding) -> Reward:
    """exact, or the run of a reward model: its score. Raises Mistake for a run that gives no score, that reads other
    tokens, or that cannot read a whole row."""
    return exact(tokenizer) if name == "exact" else scored(name, session, tokenizer)


def exact(tokenizer: tiktoken.Encoding) -> Reward:
    """1 for an answer that is the data's response to the letter, white space at its ends aside, and ends; else 0. What
    can be checked needs no model of the reward (reinforcement learning with verifiable rewards)."""
    eot = tokenizer.eot_token

    def text(tokens: list[int]) -> str:
        return tokenizer.decode([token for token in tokens if token != eot]).strip()

    def rewards(answers: Sequence[Answer]) -> Tensor:
        right = [one.tokens[-1:] == [eot] and text(one.tokens) == text(one.right) for one in answers]
        return torch.tensor(right, dtype=torch.float32)

    return rewards


def scored(run: str, session: Session, tokenizer: tiktoken.Encoding) -> Reward:
    """The score that a reward model gives at the last token of an answer."""
    try:
        opened = checkpoint.open_run(run)
    except Mistake as error:
        raise Mistake(f"--reward is exact, or the run of a reward model: {error}") from error
    if opened.classes != SCORE:
        raise Mistake(f"--reward {run} is no reward model: it gives no score; train_reward.py makes one")
    if opened.tokenizer.name != tokenizer.name:
        names = f"{opened.tokenizer.name}, and this model {tokenizer.name}"
        raise Mistake(f"--reward {run} reads other tokens: its tokenizer is {names}; train it from the same base")
    block = session.config.block_size
    model = session.frozen(opened.model(block))

    @torch.no_grad()
    def rewards(answers: Sequence[Answer]) -> Tensor:
        rows = [graded_at([-1], (one.prompt + one.tokens)[:block]) for one in answers]
        inputs, _, last, positions = (part.to(session.device) for part in collate(rows))
        scores = model(inputs, last, positions).squeeze(-1).cpu()  # (answers,)
        if not scores.isfinite().all():
            raise Mistake(f"--reward {run} gives a score of {scores[~scores.isfinite()][0]}: it cannot be learned from")
        return scores

    return rewards


# ---- sampling --------------------------------------------------------------------------------------------------------


def generator_of(answer: tuple[Any, ...], device: torch.device) -> torch.Generator:
    """A source of random numbers for one answer, told by what it is an answer to: so whoever samples it, a run that was
    resumed or one of several ranks, draws the same."""
    return torch.Generator(device).manual_seed(zlib.crc32(repr(answer).encode()))


def roll_out(
    model: GPT, batches: Sequence[Batch], step: int, config: Any, tokenizer: tiktoken.Encoding, reward: Reward
) -> tuple[list[Batch], list[Tensor]]:
    """Of each batch of B prompts, and of the responses that the data has, a batch of config.samples answers to each
    prompt, drawn from the model's own distribution: (B K, T), the answers to one prompt one after another; and the
    rewards, (B K,).

    Graded are the answers and their end-of-text. An answer ends at the latest after config.max_new_tokens, and where
    config.block_size ends. A batch that only keeps company, in which nothing is graded (data/batches.py), stays so.
    """
    rolled = [answers_to(model, batch, step, config, tokenizer) for batch in batches]
    rows = [as_batch(answers) for answers in rolled]
    is_graded = [bool(batch.graded.any()) for batch in batches]
    for row, counts in zip(rows, is_graded, strict=True):
        row.graded.logical_and_(torch.tensor(counts))
    worth = [reward(answers) if counts else torch.zeros(0) for answers, counts in zip(rolled, is_graded, strict=True)]
    return rows, worth


def answers_to(model: GPT, batch: Batch, step: int, config: Any, tokenizer: tiktoken.Encoding) -> list[Answer]:
    eot, device = tokenizer.eot_token, model.wte.weight.device
    rows = [Example(*(part.numpy() for part in row)) for row in zip(*batch[:3], strict=True)]
    asked = [(row.prompt(), row.response(), k) for row in rows for k in range(config.samples)]
    draws = [generator_of((config.seed, step, prompt, k), device) for prompt, _, k in asked]
    stop = None if config.shard else eot  # ranks that share weights take as many steps as each other
    prompts = [prompt for prompt, _, _ in asked]
    said = generate(model, prompts, config.max_new_tokens, stop, temperature=1.0, generator=draws)
    answers = []
    for (prompt, one, _), tokens in zip(asked, said, strict=True):
        tokens = tokens[: tokens.index(eot)] if eot in tokens else tokens
        ended = [eot] * (len(tokens) < config.max_new_tokens)
        answers.append(Answer(prompt, [*tokens, *ended][: max(1, config.block_size + 1 - len(prompt))], one))
    return answers


def as_batch(answers: Sequence[Answer]) -> Batch:
    """A row an answer: the prompt, which is read, and the answer, which is graded."""
    rows = []
    for prompt, tokens, _ in answers:
        graded = [False] * len(prompt) + [True] * len(tokens)
        rows.append(next_token(np.array(prompt + tokens), np.array(graded)))
    return collate(rows)


def of_answers(log_p: Tensor, batch: Batch, samples: int) -> dict[str, Tensor]:
    """What tells of answers that grow alike or long, for metrics.csv. log_p: (N, V), at the graded positions; samples:
    K answers to each prompt.

    length: tokens an answer, (B K,); entropy: of the next token, nats, (N,); distinct: of the answers to a prompt, how
    many differ, as a share of K, (B,).
    """
    said = [tuple(t[g].tolist()) for t, g in zip(batch.targets, batch.graded, strict=True) if g.any()]
    groups = [said[i : i + samples] for i in range(0, len(said), samples)]
    return {
        "length": torch.tensor([float(len(answer)) for answer in said]),
        "entropy": -(log_p.detach().exp() * log_p.detach()).sum(-1),
        "distinct": torch.tensor([len(set(group)) / samples for group in groups]),
    }

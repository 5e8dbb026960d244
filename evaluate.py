"""The yardsticks, the same for every method: how well a model predicts text, and how often it answers right.

python evaluate.py --from RUN --text FILE
python evaluate.py --from RUN --adapter RUN --instructions FILE
python evaluate.py --from RUN --labelled FILE      a run of train_classifier.py; or --tagged FILE
python evaluate.py --from RUN --pairs FILE         a run of train_reward.py; or of train_dpo.py, with --reference RUN
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import tiktoken
import torch

from cli import DATA, Mistake, check, command_line
from data.batches import in_order
from data.examples import (
    Example,
    Instruction,
    Pair,
    Reading,
    from_instructions,
    from_text,
    instruction_example,
)
from data.files import same_data
from data.labelled import from_labelled
from data.masked import Masked
from data.pairs import SCORE, from_pairs, scored_pairs
from model.generate import cannot_write, generate
from model.gpt import GPT, evaluating
from model.head import classes_of
from model.prefix import longest_row
from run import ranks, show
from run.device import choose_device
from run.pairs import pair_nll, report
from run.predict import told_right
from store.checkpoint import load_run
from store.learned import run_folder


@torch.no_grad()
def token_nll(model: GPT, examples: Sequence[Example | Pair], batch_size: int) -> float:
    """Mean negative log-likelihood of the graded tokens, in nats; its exponential is the perplexity.

    Of pairs it is that of the chosen responses; if the model has a head, the preference loss, in nats a pair.

    The sum over all tokens is divided once by their number: the value does not depend on batch_size. The model's mode
    and the random state are as before afterwards.
    """
    if isinstance(examples[0], Pair):
        pairs: Any = examples
        if model.head is not None:
            return pair_nll(model, pairs, batch_size)
        examples = [pair.chosen for pair in pairs]
    device, total, n_graded = model.wte.weight.device, 0.0, 0
    rank, n_ranks = ranks.rank_and_size()
    with evaluating(model):
        for batch in in_order(examples, batch_size, rank, n_ranks):
            inputs, targets, graded, positions = (tensor.to(device) for tensor in batch)
            log_p = model(inputs, graded, positions).log_softmax(-1)  # (N, V)
            nll = -log_p.gather(-1, targets[graded].unsqueeze(-1)).squeeze(-1)  # (N,) nats
            del log_p  # before the next is computed: it is large
            total += nll.sum(dtype=torch.float64 if device.type != "mps" else None).item()
            n_graded += len(nll)
    return ranks.mean(total) / ranks.mean(n_graded)


def perplexity(nll: float) -> float:
    """The exponential of the mean NLL (SLP3, ch. 3); infinite where a float ends."""
    return math.exp(nll) if nll < 700 else math.inf


def answered_right(
    model: GPT, tokenizer: tiktoken.Encoding, examples: Sequence[Example], batch_size: int = 64
) -> list[bool]:
    """Whether the greedy answer to each example, white space at its ends aside, is the response, to the letter, and
    ends where the response ends.

    Of a conversation the first response counts. An example that was cut to fit the block has no whole response to
    compare with, and counts as a miss.
    """
    responses = [example.response() for example in examples]
    right = [False] * len(examples)
    shortest_first = sorted(range(len(examples)), key=lambda i: len(responses[i]))  # a batch stops at its longest
    for start in range(0, len(examples), batch_size):
        batch = shortest_first[start : start + batch_size]
        longest = len(responses[batch[-1]])
        answers = generate(model, [examples[i].prompt() for i in batch], longest, stop=tokenizer.eot_token)
        for i, answer in zip(batch, answers, strict=True):
            *words, end = responses[i]
            has_ended = len(answer) < longest  # with end-of-text, which generate leaves out
            same = tokenizer.decode(answer).strip() == tokenizer.decode(words).strip()
            right[i] = end == tokenizer.eot_token and has_ended and same
    return right


def exact_match(model: GPT, tokenizer: tiktoken.Encoding, examples: Sequence[Example], batch_size: int) -> float:
    """The share of examples that are answered right."""
    return sum(answered_right(model, tokenizer, examples, batch_size)) / len(examples)


def first_lines(
    model: GPT, tokenizer: tiktoken.Encoding, prompts: Sequence[str], max_new_tokens: int = 8, batch_size: int = 64
) -> list[str]:
    """What the model says after each prompt, up to the end of the line or of the text: this judges a base model too,
    which has not been taught to stop."""
    lines = []
    for start in range(0, len(prompts), batch_size):
        batch = [tokenizer.encode_ordinary(prompt) for prompt in prompts[start : start + batch_size]]
        for answer in generate(model, batch, max_new_tokens, stop=tokenizer.eot_token):
            lines.append(tokenizer.decode(answer).strip(" ").split("\n")[0].strip())
    return lines


# ---- one model, by every yardstick ---------------------------------------------------------------------------------

SPLITS = ("instances", "phrasings", "entities", "facts", "tasks")  # what can be new in a question


class Yardsticks(NamedTuple):
    """What every model of a comparison is judged by: held-out rows of both texts, and questions never trained on."""

    text: Sequence[Example]
    domain: Sequence[Example]
    questions: Sequence[Instruction]
    tokenizer: tiktoken.Encoding
    batch_size: int
    device: torch.device

    def of_split(self, split: str) -> list[Instruction]:
        return [question for question in self.questions if question.split == split]


def judge(model: GPT, y: Yardsticks) -> dict[str, Any]:
    """The NLL of both texts and of responses to new instances, nats a token, and exact match by split and by task."""
    new_instances = [instruction_example(one, y.tokenizer) for one in y.of_split("instances") or y.questions]
    return judge_texts(model, y) | {
        "response_nll": token_nll(model, new_instances, y.batch_size),
        "exact_match": {split: judge_answers(model, y, split) for split in SPLITS},
    }


def judge_texts(model: GPT, y: Yardsticks) -> dict[str, float]:
    """The NLL of the base's own text and of the domain, nats a token."""
    texts = {"base_nll": y.text, "domain_nll": y.domain}
    return {key: token_nll(model, rows, y.batch_size) for key, rows in texts.items()}


def judge_answers(model: GPT, y: Yardsticks, split: str) -> dict[str, Any]:
    """The share of a split's questions answered right, of how many, and what guessing would give; the same by task."""
    questions = y.of_split(split)
    right = answered_right(model, y.tokenizer, [instruction_example(one, y.tokenizer) for one in questions])

    def share(task: str = "") -> dict[str, Any]:
        hits = [(hit, one.chance) for hit, one in zip(right, questions, strict=True) if not task or one.task == task]
        n = len(hits)
        value, chance = (sum(column) / n for column in zip(*hits, strict=True)) if n else (None, None)
        return {"value": value, "n": n, "chance": chance}

    return {**share(), "by_task": {task: share(task) for task in sorted({one.task for one in questions} - {""})}}


@dataclass(kw_only=True)
class Config:
    from_: str = ""  # run folder of the model; may be left out with --adapter, which knows its base
    adapter: str = ""  # run folder of what learned beside a base, like LoRA
    text: str = ""  # text to predict: a file, a folder of them, or a corpus by name
    instructions: str = ""  # instructions to answer: a .json, .jsonl, .csv or .tsv file, or a corpus by name
    labelled: str = ""  # texts, or pairs, to classify: a .json, .jsonl, .csv or .tsv file, or a corpus by name
    tagged: str = ""  # words to tag: a .json, .jsonl or .csv file, or one with columns as CoNLL's
    pairs: str = ""  # pairs of responses to tell apart: a .json, .jsonl, .csv or .tsv file, or a corpus by name
    reference: str = ""  # with --pairs, the run that another began from: judged is what has become likelier since
    columns: str = ""  # the file's names for ours, such as text, output, label: "instruction=question,output=answer"
    skip_bad_records: bool = False  # leave out records that cannot be read, and count them
    block_size: int = 0  # tokens a row at most; 0: as the run was trained
    held_out: float = 0.0  # share of the file to judge by, 1 for all of a file it never saw; 0: what training held out
    batch_size: int = 32  # rows at once
    device: str = "auto"  # cuda, mps, cpu, or auto


def main(config: Config) -> None:
    check(config)
    if "," in config.adapter:
        raise Mistake(f"--adapter names several: {config.adapter}; judge them one after another")
    model, tokenizer = load_run(config.from_, config.adapter, choose_device(config.device))
    refuse(config, model)
    how = as_trained(config, tokenizer, longest_row(model))
    if config.pairs:
        print(judge_pairs(config, model, how))
        return
    examples = examples_for(config, model, how)
    nll, classes = token_nll(model, examples, config.batch_size), classes_of(model.attached)
    a_token = f"a {classes.each}" if classes else "a token" if model.config.causal else "a masked token"
    of_tokens = "" if classes else f", perplexity {perplexity(nll):.2f}"
    print(f"NLL {nll:.4f} nats {a_token}{of_tokens}, over {len(examples):,} examples")
    if config.instructions:
        print(f"exact match {exact_match(model, tokenizer, examples, config.batch_size):.1%}")
    if classes:
        print(show.report(model, examples, config.batch_size, classes))
    elif not model.config.causal:
        print(f"told right {told_right(model, examples, config.batch_size):.1%}")


def refuse(config: Config, model: GPT) -> None:
    """Raises a Mistake for a question that the model cannot answer."""
    run, classes = config.adapter or config.from_, classes_of(model.attached)
    if config.reference and (classes or not config.pairs):
        raise Mistake("--reference goes with --pairs, and with a model that writes")
    if config.pairs:
        if not classes and not model.config.causal:
            raise Mistake(f"{run} sees both sides and gives no score: it cannot judge --pairs")
        return
    if bool(classes) != bool(config.labelled or config.tagged):
        what = "classes: --labelled or --tagged judges it" if classes else "tokens: --text or --instructions judges it"
        what = "a score: --pairs judges it" if classes == SCORE else what
        raise Mistake(f"{run} predicts {what}")
    if config.instructions and not model.config.causal:
        raise Mistake(f"{run} sees both sides and cannot answer: --text judges what it says behind masks")


def judge_pairs(config: Config, model: GPT, how: Reading) -> str:
    """How well a reward model, or a model that writes, tells chosen responses from rejected ones."""
    run, classes = config.adapter or config.from_, classes_of(model.attached)
    if classes:
        return report(model, scored_pairs(config.pairs, how, classes)[1], config.batch_size)
    pairs, reference = from_pairs(config.pairs, how)[1], None
    if config.reference:
        reference, other = load_run(config.reference, "", model.wte.weight.device)
        if why := cannot_write(reference):
            raise Mistake(f"--reference {config.reference} has no likelihood of a response: {why}")
        if other.name != how.tokenizer.name or longest_row(reference) < how.block_size:
            raise Mistake(f"--reference {config.reference} reads other tokens, or shorter rows, than {run}")
    return report(model, pairs, config.batch_size, reference)


def examples_for(config: Config, model: GPT, how: Reading) -> Sequence[Example]:
    """What is held out of the file, as the model can be asked for it: an encoder for masked tokens, the same ones as in
    training."""
    if classes := classes_of(model.attached):
        return from_labelled(config.labelled, config.tagged, how, classes)[1]
    if config.instructions:
        return from_instructions(config.instructions, how)[1]
    rows = from_text(config.text, how)[1]
    return rows if model.config.causal else Masked(rows, how.tokenizer)


def as_trained(config: Config, tokenizer: tiktoken.Encoding, longest: int) -> Reading:
    """How the file is read: as the run itself did, as far as its config.json tells and the flags do not differ."""
    run = Path(run_folder(config.adapter or config.from_))
    file = (run.parent if run.name == "best" else run) / "config.json"  # OUT/best is of the run in OUT
    try:
        trained = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if trained.get("held_out") is None:  # a model of others, or a new one, was not trained here
            trained = {}
        own_block, own_share = int(trained.get("block_size", longest)), float(trained.get("held_out", 0.1))
        check(replace(config, block_size=own_block, held_out=own_share))
    except (ValueError, TypeError, OverflowError, AttributeError) as error:
        raise Mistake(f"{file} cannot be read: {error}; delete it, and give --block-size and --held-out") from error
    block_size = config.block_size or min(longest, own_block)
    if block_size > longest:
        raise Mistake(f"--block-size {block_size} is beyond the {longest} tokens that the model can read")
    same = any(
        getattr(config, kind) and trained.get(kind) and same_data(getattr(config, kind), str(trained[kind]))
        for kind in DATA
    )
    columns = config.columns or (str(trained.get("columns", "")) if same else "")
    skip_bad_records = config.skip_bad_records or (same and trained.get("skip_bad_records", False))
    held_out = config.held_out or own_share
    said = f", as {file.parent} was trained" if trained and (block_size, held_out) == (own_block, own_share) else ""
    said = f"; {file.parent} was trained with {own_block} and {own_share:.3g}" if trained and not said else said
    print(f"judged in rows of up to {block_size} tokens, by {held_out:.3g} of the file{said}")
    if same and held_out > own_share:
        print(f"{file.parent} held out {own_share}, so it has learned from part of what it is judged by now")
    return Reading(tokenizer, block_size, held_out, columns, skip_bad_records)


if __name__ == "__main__":
    command_line(main, Config)

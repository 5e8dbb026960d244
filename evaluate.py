"""The yardsticks, the same for every method: how well a model predicts text, and how often it answers right.

python evaluate.py --from RUN --text FILE
python evaluate.py --from RUN --adapter RUN --instructions FILE
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import tiktoken
import torch

from data.batches import in_order
from data.examples import Example, from_instructions, from_text
from model.generate import generate
from model.gpt import GPT
from run.checkpoint import load_run
from run.config import check, command_line
from run.session import choose_device


@torch.no_grad()
def token_nll(model: GPT, examples: Sequence[Example], batch_size: int) -> float:
    """Mean negative log-likelihood of the graded tokens, in nats; its exponential is the perplexity.

    The sum over all tokens is divided once by their number: the value does not depend on batch_size. The model's mode
    and the random state are as before afterwards.
    """
    was_training, device = model.training, model.wte.weight.device
    model.eval()
    total, n_graded = 0.0, 0
    for batch in in_order(examples, batch_size):
        inputs, targets, graded = (tensor.to(device) for tensor in batch)
        logits = model(inputs, graded)  # (N, V)
        nll = logits.logsumexp(-1) - logits.gather(-1, targets[graded].unsqueeze(-1)).squeeze(-1)  # (N,) nats
        total += nll.sum(dtype=torch.float64 if device.type != "mps" else None).item()
        n_graded += len(nll)
    model.train(was_training)
    return total / n_graded


def perplexity(nll: float) -> float:
    """The exponential of the mean NLL (SLP3, ch. 3); infinite where a float ends."""
    return math.exp(nll) if nll < 700 else math.inf


def exact_match(model: GPT, tokenizer: tiktoken.Encoding, examples: Sequence[Example], batch_size: int) -> float:
    """The share of examples whose greedy answer, white space at its ends aside, is the response, to the letter.

    An example that was cut to fit the block has no whole response to compare with, and counts as a miss.
    """
    hits = 0
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        responses = [tokens[graded].tolist() for tokens, graded in batch]
        longest = max(len(response) for response in responses)
        answers = generate(model, [example.prompt() for example in batch], longest, stop=tokenizer.eot_token)
        for answer, response in zip(answers, responses, strict=True):
            *words, end = response
            whole = end == tokenizer.eot_token
            hits += whole and tokenizer.decode(answer).strip() == tokenizer.decode(words).strip()
    return hits / len(examples)


@dataclass(kw_only=True)
class Config:
    from_: str = ""  # run folder of the model; may be left out with --adapter, which knows its base
    adapter: str = ""  # run folder of a LoRA adapter
    text: str = ""  # UTF-8 text file to predict
    instructions: str = ""  # .json or .jsonl file of instructions to answer
    held_out: float = 0.1  # share of the file to judge by: what training held out, or 1 for all of a file it never saw
    batch_size: int = 32  # rows at once
    device: str = "auto"  # cuda, mps, cpu, or auto


def main(config: Config) -> None:
    check(config)
    model, tokenizer = load_run(config.from_, config.adapter, choose_device(config.device))
    if config.text:
        examples = from_text(config.text, tokenizer, model.config.block_size, config.held_out)[1]
    else:
        examples = from_instructions(config.instructions, tokenizer, model.config.block_size, config.held_out)[1]
    nll = token_nll(model, examples, config.batch_size)
    print(f"NLL {nll:.4f} nats a token, perplexity {perplexity(nll):.2f}, over {len(examples):,} examples")
    if config.instructions:
        print(f"exact match {exact_match(model, tokenizer, examples, config.batch_size):.1%}")


if __name__ == "__main__":
    command_line(main, Config)

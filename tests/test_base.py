"""The base model that ships: what its card says of it, measured again."""

import re
from pathlib import Path
from random import Random

import pytest
import torch

from data.examples import Reading, from_text
from evaluate import first_lines, perplexity, token_nll
from store.checkpoint import open_run
from world import base_text, questions
from world import tasks as world_tasks

BASE = Path(__file__).parent.parent / "data" / "builtin" / "base"
CARD = (BASE / "README.md").read_text(encoding="utf-8")
MODEL, TOKENIZER = open_run(BASE).model(), open_run(BASE).tokenizer


def of_the_card(pattern):
    return float(re.search(pattern.replace("#", r"([\d.]+)"), CARD)[1])


def test_it_is_small_enough_to_ship():
    assert sum(path.stat().st_size for path in BASE.iterdir()) < 8e6
    assert all(weight.dtype == torch.float32 for weight in MODEL.state_dict().values())


def test_it_has_the_perplexity_of_its_card():
    _, held_out = from_text(BASE.parent / "base.jsonl", Reading(TOKENIZER, 256, 0.1))
    assert abs(perplexity(token_nll(MODEL, held_out, 32)) - of_the_card("perplexity \\*\\*#\\*\\*")) < 0.01


def probes(kind, rng, trained=None):
    """Endless (prompt, how it must go on), in the base's own format, of things that it has never read."""
    tasks = [task for task in world_tasks.TASKS if task.kind == kind and trained in (None, task.trained)]
    while True:
        task = rng.choice(tasks)
        told, question = questions.asked_about(rng, task, list)
        text = f"### Story: {told}" if told else "### Lesson:"
        yield f"{text} Child: {base_text.asked(rng, task, question)} Teacher:", question.output


def copies(rng):
    while True:
        words = " ".join(questions.word_list(rng, list))
        yield f"### List: {words}. Again:", words


@pytest.mark.parametrize(
    "what, least, make", [
        ("copies a list that it has seen once", 0.99, copies),
        ("states its facts", 0.99, lambda rng: probes("fact", rng)),
        ("answers by looking back in a story, as instructions will ask", 0.87, lambda rng: probes("story", rng, True)),
        ("answers by looking back in a story, as none will ask", 0.65, lambda rng: probes("story", rng, False)),
    ],
)  # fmt: skip
def test_it_can_do_what_its_card_says(what, least, make):
    source = make(Random(2))
    asked = [next(source) for _ in range(400)]
    said = first_lines(MODEL, TOKENIZER, [prompt for prompt, _ in asked], 10)
    share = sum(line.startswith(f"{answer}.") for line, (_, answer) in zip(said, asked, strict=True)) / len(asked)
    assert share >= least and abs(100 * share - of_the_card(f"{what}: #")) < 1.5

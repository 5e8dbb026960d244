"""The encoder that ships: what its card says of it, measured again."""

import json
import re
from pathlib import Path

import pytest
import torch

from data.examples import Reading, from_text
from data.masked import Masked, mask_token
from evaluate import perplexity, token_nll
from run.predict import told_right
from store.checkpoint import open_run

BUILTIN = Path(__file__).parent.parent / "data" / "builtin"
ENCODER = BUILTIN / "encoder"


@pytest.fixture
def opened():
    return open_run(ENCODER)


@pytest.fixture
def held_out(opened):
    """The last tenth of the base's kind of text that ships, of which neither model has read anything."""
    rows = from_text(BUILTIN / "base.jsonl", Reading(opened.tokenizer, 256, 0.1))[1]
    return Masked(rows, opened.tokenizer)


def of_the_card(pattern):
    return float(re.search(pattern.replace("#", r"([\d.]+)"), (ENCODER / "README.md").read_text(encoding="utf-8"))[1])


def test_it_sees_both_sides_has_the_base_s_shape_and_a_mask_and_is_small_enough_to_ship(opened):
    shape, base = opened.config, open_run(BUILTIN / "base")
    assert not shape.causal and (shape.n_layer, shape.n_embd) == (base.config.n_layer, base.config.n_embd)
    assert mask_token(opened.tokenizer) == base.tokenizer.n_vocab == shape.vocab_size - 1
    assert all(weight.dtype == torch.float32 for weight in opened.model().state_dict().values())
    assert sum(path.stat().st_size for path in ENCODER.iterdir()) < 6e6


def test_it_is_made_by_the_command_of_the_makefile():
    settings = json.loads((ENCODER / "config.json").read_text(encoding="utf-8"))
    makefile = (BUILTIN.parent.parent / "Makefile").read_text(encoding="utf-8")
    [command] = [line for line in makefile.splitlines() if "train_mlm.py" in line]
    for flag, value in re.findall(r"--([\w-]+) ([\w./-]+)", command):
        if flag not in ("save-minutes", "out"):
            assert str(settings[flag.replace("-", "_")]) in (value, str(float(value)) if value[0].isdigit() else value)


def test_it_has_the_perplexity_of_its_card(opened, held_out):
    assert abs(perplexity(token_nll(opened.model(), held_out, 32)) - of_the_card(r"perplexity \*\*#\*\*")) < 0.01


def test_it_tells_as_many_masked_tokens_right_as_its_card_says(opened, held_out):
    assert (
        abs(100 * told_right(opened.model(), held_out, 32) - of_the_card("tells # % of the masked tokens right")) < 0.1
    )

"""Which tokens are graded: exactly those of the response and the end-of-text after it, from the file to the loss."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import RECORDS, metrics, weights

from data.batches import Batches, collate, in_order
from data.examples import (
    Instruction,
    Reading,
    from_instructions,
    from_text,
    instruction_example,
    next_token,
    render_prompt,
)
from data.tokenizer import load_tokenizer
from model.generate import generate
from store.checkpoint import open_run

BYTES = load_tokenizer("bytes")


def load(instructions):
    """All examples of the file, through the real loader, in batches of rows of unlike length."""
    train, held_out = from_instructions(instructions, Reading(BYTES, block_size=200, held_out=0.1))
    return [*train, *held_out]


def test_graded_targets_are_exactly_the_response_and_end_of_text(instructions):
    """After the shift, the first response token is graded, and is predicted from the prompt's last."""
    responses = []
    for inputs, targets, graded, _ in in_order(load(instructions), 4):
        for row in range(len(inputs)):
            responses.append(BYTES.decode(targets[row][graded[row]].tolist()))
            first = graded[row].int().argmax()
            assert BYTES.decode(inputs[row][: first + 1].tolist()).endswith("### Response:")
    assert sorted(responses) == sorted(f" {record['output']}<|endoftext|>" for record in RECORDS)


def test_text_is_graded_everywhere_and_each_token_once(text):
    """The first token is only read; a row's last token is read again as the first of the next."""
    train, held_out = from_text(text, Reading(BYTES, block_size=192, held_out=0.1))
    for part in (train, held_out):
        batches = list(in_order(part, 5))
        n_graded = sum(int(graded.sum()) for _, _, graded, _ in batches)
        assert n_graded == len(part.tokens) - 1
        said = [targets[row][graded[row]].tolist() for _, targets, graded, _ in batches for row in range(len(targets))]
        assert [token for row in said for token in row] == part.tokens[1:].tolist()
    assert held_out.tokens[-1] == BYTES.eot_token
    whole = Path(text).read_bytes()
    assert BYTES.decode_bytes([*train.tokens, *held_out.tokens[:-1]]) == whole, "nothing is lost between the two parts"


def corrupt(monkeypatch, where):
    """Every target for which where(graded) is true becomes another token, in the batches that the script sees."""
    plain = Batches.of_step

    def corrupted(self, step):
        return [
            batch._replace(targets=torch.where(where(batch.graded), (batch.targets + 7) % 256, batch.targets))
            for batch in plain(self, step)
        ]

    monkeypatch.setattr(Batches, "of_step", corrupted)


@pytest.mark.parametrize("method", ["sft", "lora_sft"])
def test_prompt_targets_do_not_touch_the_loss(train, monkeypatch, method):
    """In the real loop: loss, gradient norm and learned weights stay bit-equal."""
    _, run = train(method)
    corrupt(monkeypatch, lambda graded: ~graded)
    _, corrupted = train(method)
    assert metrics(run, "loss") == metrics(corrupted, "loss")
    assert metrics(run, "grad_norm") == metrics(corrupted, "grad_norm")
    assert all(torch.equal(tensor, weights(corrupted)[name]) for name, tensor in weights(run).items())


def test_one_response_target_does_touch_the_loss(train, monkeypatch):
    _, run = train("sft")
    corrupt(monkeypatch, lambda graded: graded & (graded.cumsum(-1) == 1))  # the first of each response
    _, corrupted = train("sft")
    assert metrics(run, "loss")[0] != metrics(corrupted, "loss")[0]
    assert metrics(run, "grad_norm")[0] != metrics(corrupted, "grad_norm")[0]


def test_the_loss_in_the_scripts_is_cross_entropy_over_the_graded_tokens(train, instructions, base):
    """F.cross_entropy is the oracle; the step holds all examples, so their order does not matter."""
    _, run = train("sft", steps=1, batch_size=16)
    examples, _ = from_instructions(instructions, Reading(open_run(base).tokenizer, 192, 0.1))
    inputs, targets, graded, _ = collate(examples)
    logits = open_run(base).model()(inputs)
    expected = F.cross_entropy(logits.transpose(1, 2), targets.masked_fill(~graded, -100), ignore_index=-100)
    assert float(metrics(run, "loss")[0]) == pytest.approx(expected.item(), rel=1e-5)


def test_the_end_of_every_uncut_example_is_graded(instructions):
    """Padding and end-of-text may share an id, so grading must come from lengths and never from ids."""
    for _, targets, graded, _ in in_order(load(instructions), 4):
        ends = (targets == BYTES.eot_token) & graded
        assert ends.sum(-1).tolist() == [1] * len(targets)


def test_a_model_fitted_to_one_example_answers_and_stops(train, tmp_path):
    """Seen from outside."""
    path = tmp_path / "one.jsonl"
    record = {"instruction": "Name a sea.", "output": "Baltic"}
    path.write_text(f"{json.dumps(record)}\n" * 2, encoding="utf-8")
    _, run = train("sft", instructions=str(path), steps=60, learning_rate=1e-2, batch_size=1)
    prompt = BYTES.encode_ordinary(render_prompt("Name a sea."))
    [answer] = generate(open_run(run).model(), [prompt], max_new_tokens=40, stop=BYTES.eot_token)
    assert BYTES.decode(answer) == " Baltic"


def test_a_row_with_nothing_graded_is_refused():
    tokens = np.arange(5)
    for graded in (tokens > 9, tokens < 1):  # nothing, and the first token alone, which is only read
        with pytest.raises(ValueError, match="an example of 4 positions has none that is graded"):
            collate([next_token(tokens, graded)])


def test_examples_that_do_not_fit_are_cut_or_skipped_and_counted(tmp_path, capsys):
    records = [
        {"instruction": "i", "input": "x" * 100, "output": "never seen"},
        {"instruction": "i", "output": "y" * 100},
        {"instruction": "i", "output": " "},
        *[{"instruction": "i", "output": "z"}] * 2,
    ]
    path = tmp_path / "long.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    train, held_out = from_instructions(path, Reading(BYTES, block_size=60, held_out=0.1))
    assert sorted(len(example.inputs) for example in [*train, *held_out]) == [34, 34, 60]
    said = capsys.readouterr().out
    assert "1 of 5 instructions have an empty response: skipped" in said
    assert "1 of 5 instructions have a prompt longer than --block-size 60" in said
    assert "1 of 5 instructions are longer than --block-size 60: cut there" in said
    with pytest.raises(ValueError, match="0 usable instructions to learn from"):
        from_instructions(path, Reading(BYTES, block_size=10, held_out=0.1))


@pytest.mark.parametrize("name", ["bytes", "bpe"])
def test_a_training_example_begins_with_the_ids_of_the_inference_prompt(name, tmp_path, text):
    """Prompt and response are encoded apart, by one render function."""
    if name == "bpe":
        from data.tokenizer import save_tokenizer, train_bpe

        save_tokenizer(train_bpe([render_prompt("Say", "it") + " it: it\n"] * 9, 300), tmp_path / "own.tiktoken")
        name = str(tmp_path / "own.tiktoken")
    tokenizer = load_tokenizer(name)
    for record in (Instruction(**r) for r in RECORDS):
        prompt = tokenizer.encode_ordinary(render_prompt(record.instruction, record.input))
        example = instruction_example(record, tokenizer)
        assert example.inputs[: len(prompt)].tolist() == prompt == example.prompt()
        n_after = len(example.inputs) - len(prompt) + 1
        assert example.graded.tolist() == [False] * (len(prompt) - 1) + [True] * n_after


def test_end_of_text_written_by_a_user_is_plain_text(tmp_path):
    record = Instruction("Say <|endoftext|>", "<|endoftext|>", "<|endoftext|>")
    example = instruction_example(record, BYTES)
    assert (example.targets == BYTES.eot_token).sum() == 1 and example.targets[-1] == BYTES.eot_token


def test_sft_with_the_prompt_graded_too_is_the_language_model_loss(train, instructions, monkeypatch):
    """Pretraining is SFT with a mask of ones: on the same rows, loss and gradients are bit-equal."""
    import train_pretrain

    def all_graded(*args):
        parts = from_instructions(*args)
        return [[one._replace(graded=np.ones(len(one.graded), bool)) for one in part] for part in parts]

    monkeypatch.setattr(train_pretrain.examples, "from_text", all_graded)
    settings = {"learning_rate": 1e-3, "steps": 4}
    _, sft = train("sft", grade_prompt=True, **settings)
    _, lora = train("lora_sft", grade_prompt=True, steps=1)
    _, pretraining = train("pretrain", text=instructions, **settings)
    assert metrics(sft, "loss") == metrics(pretraining, "loss")
    assert metrics(sft, "grad_norm") == metrics(pretraining, "grad_norm")
    assert metrics(lora, "graded_tokens") == metrics(pretraining, "graded_tokens")[:1]
    assert all(torch.equal(tensor, weights(sft)[name]) for name, tensor in weights(pretraining).items())


# ---- --show-batch ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["pretrain", "sft", "lora", "lora_sft", "prompt_sft"])
def test_show_batch_shows_what_the_loss_sees_and_trains_nothing(method, train, capsys, tmp_path):
    """The graded targets it shows decode to the response and its end-of-text, or to all of a text."""
    assert train(method, show_batch=True, batch_size=2)[0] == {}
    said = capsys.readouterr().out
    assert not list(tmp_path.iterdir()), "nothing is written"
    rows = [line for line in said.split("row 1:")[0].splitlines() if " -> " in line and "input" not in line]
    graded = [line for line in rows if line.endswith("graded")]
    assert "\033" not in said, "no colour where there is no terminal"
    if "sft" in method:
        assert "'#'" in rows[0] and rows[0].endswith("-"), "the prompt is read, not graded"
        assert "'<|endoftext|>'" in graded[-1] and rows[-1] is graded[-1]
    else:
        assert graded == rows
    learns, frozen = said.split("learns: ")[1].split("frozen: ")
    assert ("lora_A" in learns) == ("lora" in method)
    assert ("wte.weight" in frozen) == (method not in ("pretrain", "sft"))


def test_show_batch_is_in_colour_in_a_terminal_unless_it_is_asked_not_to_be(monkeypatch):
    from run import show

    batch = collate([next_token(np.array([65, 66, 67, 256]), np.array([False, False, True, True]))])
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = show.batch(batch, load_tokenizer("bytes"))
    assert coloured.count(show.GREEN) == 2 and coloured.count(show.GREY) == 1
    monkeypatch.setenv("NO_COLOR", "1")
    assert show.GREEN not in show.batch(batch, load_tokenizer("bytes"))


@pytest.mark.parametrize("n", [12, 13, 14, 40])
def test_show_batch_says_how_many_positions_it_leaves_out(n):
    from run import show

    said = show.batch(collate([next_token(np.arange(65, 66 + n), np.ones(1 + n, bool))]), load_tokenizer("bytes"))
    left_out = sum(map(int, re.findall("… ([0-9]+) more", said)))
    assert said.count("-> ") - 1 + left_out == n

"""The loop of the three scripts: what a step adds up to, what the optimizer holds, what evaluating leaves alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import RECORDS, metrics, weights

from cli import Mistake
from data.batches import Batches, collate
from data.examples import Instruction, Reading, from_instructions, from_text, instruction_example, next_token
from data.tokenizer import load_tokenizer
from evaluate import exact_match, token_nll
from store.checkpoint import load_run, open_run

METHODS = ["pretrain", "sft", "lora", "lora_sft"]
ALL = [*METHODS, "classifier", "tagger", "mlm"]


@pytest.mark.parametrize("method", ["sft", "lora_sft"])
def test_micro_batches_of_unlike_length_add_up_to_the_full_batch(train, method):
    """One step over all nine examples, at once and in micro-batches, has the same loss and gradient."""
    _, whole = train(method, steps=1, batch_size=9)
    _, parts = train(method, steps=1, batch_size=2, micro_batches=5)
    for column in ("loss", "grad_norm", "graded_tokens"):
        assert float(metrics(whole, column)[0]) == pytest.approx(float(metrics(parts, column)[0]), rel=1e-5)
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(tensor, weights(parts)[name], rtol=0, atol=2e-5)


def test_perplexity_does_not_depend_on_the_batch_size(base, instructions, text):
    model, tokenizer = load_run(base, "", torch.device("cpu"))
    for examples in (
        *from_instructions(instructions, Reading(tokenizer, 192, 0.5)),
        from_text(text, Reading(tokenizer, 192, 0.2))[1],
    ):
        values = [token_nll(model, examples, batch_size) for batch_size in (1, 3, 100)]
        assert values == pytest.approx([values[0]] * 3, rel=1e-6)


def test_the_evaluator_is_the_mean_cross_entropy_of_the_graded_tokens(base, instructions):
    """F.cross_entropy is the oracle."""
    model, tokenizer = load_run(base, "", torch.device("cpu"))
    examples, _ = from_instructions(instructions, Reading(tokenizer, 192, 0.1))
    inputs, targets, graded, _ = collate(examples)
    expected = torch.nn.functional.cross_entropy(model(inputs)[graded], targets[graded])
    assert token_nll(model, examples, 2) == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_judged_by_the_same_evaluator(train, base, text, instructions, method):
    """What a script reports is token_nll of what it saved, on the held-out part of its file."""
    results, run = train(method)
    lora = method.startswith("lora")
    model, tokenizer = load_run("" if lora else str(run), str(run) if lora else "", torch.device("cpu"))
    examples = (
        from_instructions(instructions, Reading(tokenizer, 192, 0.1))
        if "sft" in method
        else from_text(text, Reading(tokenizer, 192, 0.1))
    )
    assert results["held_out_nll"] == pytest.approx(token_nll(model, examples[1], 4), rel=1e-6)


@pytest.fixture
def optimizers(monkeypatch):
    """Every AdamW that is made; at each of its steps it notes its learning rates and the norm of the gradient."""
    made = []

    class Recorded(torch.optim.AdamW):
        def __init__(self, groups, **settings):
            super().__init__(groups, **settings)
            self.rates, self.norms = [], []
            made.append(self)

        def step(self):
            self.rates.append([group["lr"] for group in self.param_groups])
            gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
            self.norms.append(torch.stack([gradient.norm() for gradient in gradients]).norm().item())
            super().step()

    monkeypatch.setattr(torch.optim, "AdamW", Recorded)
    return made


@pytest.mark.parametrize("method", METHODS)
def test_the_optimizer_holds_what_learns_once_and_decays_matrices_only(train, optimizers, method):
    results, run = train(method, weight_decay=0.1)
    decayed, rest = optimizers[0].param_groups
    held = [*decayed["params"], *rest["params"]]
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert decayed["betas"] == rest["betas"] == (0.9, 0.95)
    assert len({id(p) for p in held}) == len(held) and all(p.requires_grad for p in held)
    assert sum(p.numel() for p in held) == results["trainable"]
    if method.startswith("lora"):
        assert len(held) == len(weights(run)) == len(decayed["params"]) and not rest["params"]
    else:
        assert len(held) == len(weights(run))
        assert sorted({tuple(p.shape) for p in decayed["params"]}) == [(16, 16), (16, 64), (64, 16)]
        assert len(decayed["params"]) == 2 * 6, "the projections of two blocks, no embedding"


@pytest.mark.parametrize("method", ALL)
def test_a_long_gradient_is_scaled_down_to_max_grad_norm(train, optimizers, method):
    _, run = train(method, max_grad_norm=1e-3)
    assert all(float(norm) > 1e-3 for norm in metrics(run, "grad_norm")), "what is noted is the length before"
    assert optimizers[0].norms == pytest.approx([1e-3] * 3, rel=1e-2)


@pytest.mark.parametrize("method", ALL)
def test_the_learning_rate_rises_linearly_and_falls_with_a_cosine(train, optimizers, method):
    _, run = train(method, steps=12, warmup=0.25, learning_rate=1e-3)
    rates = [group_rates[0] for group_rates in optimizers[0].rates]
    assert optimizers[0].rates == [[rate, rate] for rate in rates]
    assert [float(rate) for rate in metrics(run, "learning_rate")] == rates
    assert rates[:4] == pytest.approx([1e-3 / 4, 2e-3 / 4, 3e-3 / 4, 1e-3])
    assert rates[3:] == sorted(rates[3:], reverse=True) and 0 < rates[-1] < 5e-5


def test_lora_is_not_decayed_towards_the_base_by_default():
    import train_lora

    assert train_lora.Config(init_from="", out="").weight_decay == 0.0


@pytest.mark.parametrize("method", ALL)
def test_training_goes_on_bit_equal_with_or_without_evaluating(train, method):
    """With dropout, an evaluation that drew random numbers or stayed in eval mode would show."""
    _, often = train(method, dropout=0.2, steps=4, eval_every=1)
    _, once = train(method, dropout=0.2, steps=4, eval_every=100)
    assert metrics(often, "loss") == metrics(once, "loss")
    assert all(torch.equal(tensor, weights(once)[name]) for name, tensor in weights(often).items())
    assert [value != "" for value in metrics(once, "held_out_nll")] == [True, False, False, False]


@pytest.mark.parametrize("method", METHODS)
def test_dropout_acts_in_training_and_two_evaluations_are_equal(base, text, train, method):
    model = open_run(base).model(dropout=0.5)
    examples = from_text(text, Reading(open_run(base).tokenizer, 192, 0.1))[1]
    for mode in (True, False):
        model.train(mode)
        assert token_nll(model, examples, 4) == token_nll(model, examples, 4)
        assert model.training is mode
    plain, dropped = (train(method, dropout=dropout)[1] for dropout in (0.0, 0.3))
    assert metrics(plain, "loss")[0] != metrics(dropped, "loss")[0]


def test_lora_dropout_acts_once_B_has_left_zero(train):
    plain, dropped = (train("lora", lora_dropout=dropout, learning_rate=1e-2)[1] for dropout in (0.0, 0.5))
    assert metrics(plain, "loss")[0] == metrics(dropped, "loss")[0]
    assert metrics(plain, "loss")[2] != metrics(dropped, "loss")[2]


@pytest.mark.parametrize("method", ALL)
def test_the_same_seed_gives_the_same_run_and_another_seed_another(train, method):
    first, second, other = (train(method, seed=seed)[1] for seed in (1, 1, 3))
    assert metrics(first, "loss") == metrics(second, "loss") != metrics(other, "loss")


@pytest.mark.parametrize("method", ALL)
def test_every_method_learns(train, method):
    _, run = train(method, steps=60, learning_rate=2e-2)
    losses = [float(loss) for loss in metrics(run, "loss")]
    assert sum(losses[-6:]) < sum(losses[:6]), "of the instructions two epochs, the last and the first"


def test_a_run_folder_holds_what_was_asked_what_happened_and_what_came_out(train, base):
    results, run = train("sft", steps=5)
    assert json.loads((run / "config.json").read_text())["init_from"] == base
    assert metrics(run, "step") == ["0", "1", "2", "3", "4"]
    last = (run / "metrics.csv").read_text().splitlines()[-1].split(",")
    assert last[:3] == ["5", "", str(results["held_out_nll"])]
    assert int(metrics(run, "graded_tokens")[-1]) > 0
    assert "### Response:" in (run / "sample.txt").read_text(encoding="utf-8")
    assert sorted(p.name for p in run.iterdir()) == ["config.json", "metrics.csv", "model.pt", "sample.txt"]
    assert results["checkpoint_bytes"] == (run / "model.pt").stat().st_size
    assert results["trainable"] == results["total"] and results["seconds"] > 0


def test_batches_hold_every_example_once_an_epoch_and_depend_on_seed_and_step_alone(text):
    """Resuming at any step needs no more than the step."""
    train, _ = from_text(text, Reading(load_tokenizer("bytes"), 16, 0.1))
    batches = Batches(train, batch_size=7, micro_batches=1, seed=3)
    epochs = [[tuple(batches.rows(e * batches.per_epoch + i)) for i in range(batches.per_epoch)] for e in range(2)]
    for epoch in epochs:
        assert sorted(sum(epoch, ())) == list(range(len(train)))
    assert epochs[0] != epochs[1]
    late = Batches(train, batch_size=7, micro_batches=1, seed=3).of_step(batches.per_epoch + 4)
    for one, other in zip(late[0], batches.of_step(batches.per_epoch + 4)[0], strict=True):
        assert torch.equal(one, other)
    assert tuple(Batches(train, 7, 1, seed=4).rows(0)) != epochs[0][0]


def test_the_rows_of_a_step_depend_on_their_number_alone(train):
    """8 rows at once, or in 4 micro-batches of 2, or one by one: the same rows, and so the same losses."""
    _, whole = train("sft", batch_size=8, micro_batches=1)
    for batch_size, micro_batches in [(2, 4), (1, 8)]:
        _, parts = train("sft", batch_size=batch_size, micro_batches=micro_batches)
        for column in ("loss", "grad_norm", "graded_tokens"):
            expected = [float(value) for value in metrics(whole, column)]
            assert [float(value) for value in metrics(parts, column)] == pytest.approx(expected, rel=1e-4)


def test_rows_of_a_batch_are_of_like_length():
    """Less than 3 % of the positions are padding, of which rows taken as they come would have many times as much."""
    lengths = [20 + (i * 37) % 101 for i in range(900)]
    examples = [next_token(np.zeros(n, np.int64), np.ones(n, bool)) for n in lengths]
    batches = Batches(examples, batch_size=8, micro_batches=1, seed=0)
    shapes = [batches.of_step(step)[0][0].shape for step in range(batches.per_epoch)]
    assert 1 - sum(n - 1 for n in lengths) / sum(shape.numel() for shape in shapes) < 0.03


def test_exact_match_counts_answers_that_are_right_to_the_letter(train, tmp_path):
    path = tmp_path / "two.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS[:2] * 4), encoding="utf-8")
    _, run = train("sft", instructions=str(path), steps=150, learning_rate=1e-2, batch_size=8)
    model, tokenizer = load_run(str(run), "", torch.device("cpu"))
    examples, _ = from_instructions(path, Reading(tokenizer, 192, 0.1))
    assert exact_match(model, tokenizer, examples, 3) == 1.0
    broken = [example._replace(targets=example.targets.copy()) for example in examples]
    broken[0].targets[-2] += 1  # the last letter of one response
    assert exact_match(model, tokenizer, broken, 3) == pytest.approx(1 - 1 / len(examples))


def test_an_answer_that_does_not_end_is_no_exact_match(base):
    """As a base model's, which goes on: cut where the response ends, it would look right."""
    model, tokenizer = load_run(base, "", torch.device("cpu"))
    example = instruction_example(Instruction("Say it.", "", "it"), tokenizer)
    words = example.response()[:-1]  # without end-of-text
    for answer, is_right in [(words, True), ([*words, 10], False), (words[:-1], False)]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("evaluate.generate", lambda *args, stop, answer=answer: [answer])
            assert exact_match(model, tokenizer, [example], 1) == is_right


def test_a_cut_response_is_never_an_exact_match(base, tmp_path):
    """It has no end to compare; cut down to white space, it would match any silence."""
    path = tmp_path / "cut.jsonl"
    record = {"instruction": "Say it.", "output": " " * 60 + "it"}
    path.write_text((json.dumps(record) + "\n") * 2, encoding="utf-8")
    model, tokenizer = load_run(base, "", torch.device("cpu"))
    examples = from_instructions(path, Reading(tokenizer, 64, 0.1))[0]
    assert tokenizer.decode(examples[0].targets[examples[0].graded]).strip() == ""
    model.wte.weight.data[tokenizer.eot_token] *= 1000  # it says nothing, or nothing else
    assert exact_match(model, tokenizer, examples, 1) == 0.0


def test_what_is_held_out_does_not_depend_on_the_block_size(instructions, base):
    """Else a run with short rows would be judged, by a script with long ones, on what it has learned from."""
    tokenizer = open_run(base).tokenizer

    def prompts(part):
        return {tuple(example.prompt()) for example in part}

    short, long = (from_instructions(instructions, Reading(tokenizer, block_size, 0.4)) for block_size in (80, 192))
    assert len(short[0]) < len(long[0]), "some do not fit the short block"
    assert prompts(short[0]) <= prompts(long[0]) and prompts(short[1]) <= prompts(long[1])
    assert not prompts(long[0]) & prompts(long[1])
    assert prompts(from_instructions(instructions, Reading(tokenizer, 192, 1.0))[1]) == prompts(long[0]) | prompts(
        long[1]
    )


@pytest.mark.parametrize("method", ALL)
def test_a_run_that_diverges_says_so_and_saves_no_model(train, method, tmp_path):
    for steps, sentence in [
        (20, r"step \d+ has loss .* at learning rate .*: training diverged"),
        (1, "in its last step"),
    ]:
        with pytest.raises(Mistake, match=sentence):
            train(method, learning_rate=1e38, weight_decay=1.0, steps=steps)
    assert not list(tmp_path.rglob("*.pt"))


def test_what_is_held_out_of_a_text_does_not_depend_on_the_block_size(text):
    tokenizer = load_tokenizer("bytes")
    ends = [from_text(text, Reading(tokenizer, block_size, 0.1))[1].tokens.tolist() for block_size in (16, 1000)]
    assert ends[0] == ends[1]
    assert from_text(text, Reading(tokenizer, 16, 1.0))[1].tokens.tolist() == [
        *Path(text).read_bytes(),
        tokenizer.eot_token,
    ]

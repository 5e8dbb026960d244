"""Reward models, DPO and RLHF: the losses are their equations, and the scripts compute these losses."""

import itertools
import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from conftest import metrics, weights

import evaluate
import new_model
import sample
import train_reward
import train_rlhf
from cli import Mistake
from data.batches import Batch, Batches, collate
from data.examples import Instruction, Reading, from_instructions, instruction_example, render_prompt
from data.pairs import from_pairs, scored_pairs
from data.tokenizer import load_tokenizer
from model import generate as generation
from model.generate import generate
from model.gpt import GPT
from model.preference import leave_one_out, log_likelihood, preference_loss, row_means, row_sums
from run import rollout
from run.pairs import pair_accuracy, pair_margins, pair_scores, report
from store import checked, checkpoint
from store.checkpoint import Opened

BYTES = load_tokenizer("bytes")


def f64(run):
    return checkpoint.load_run(str(run), "", torch.device("cpu"))[0].double()


def written_out(model, example):
    """log π(y|x), token by token: a row alone, without padding."""
    log_p = model(torch.from_numpy(example.inputs).long()[None])[0].double().log_softmax(-1)
    return sum(log_p[t, example.targets[t]] for t in range(len(example.inputs)) if example.graded[t])


def gradients(loss, model):
    return torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True)


# ---- the losses ------------------------------------------------------------------------------------------------------


def test_a_likelihood_is_the_sum_over_the_response_and_nothing_else(base, pairs):
    """Not its mean, without the prompt, without padding."""
    model, found = f64(base), from_pairs(pairs, Reading(BYTES, 192, 0.2))[0]
    inputs, targets, graded, positions = collate(found)
    got = log_likelihood(model, inputs, targets, graded, positions)
    rows = [one.chosen for one in found] + [one.rejected for one in found]
    torch.testing.assert_close(got.double(), torch.stack([written_out(model, row) for row in rows]), rtol=1e-6, atol=0)
    n_tokens = torch.tensor([int(row.graded.sum()) for row in rows])
    assert torch.allclose(got / n_tokens, torch.full((len(rows),), -math.log(257)), rtol=0.2), "about one in 257 a byte"


def test_row_sums_skip_rows_in_which_nothing_is_graded():
    graded = torch.tensor([[True, False, True], [False] * 3, [False, True, False]])
    values = torch.tensor([1.0, 2.0, 5.0])
    assert row_sums(values, graded).tolist() == [3, 5] and row_means(values, graded).tolist() == [1.5, 5]
    assert row_sums(values[:0], graded & False).tolist() == []


def test_the_preference_loss_is_minus_log_sigmoid_of_the_difference():
    scores = torch.tensor([2.0, -1.0, 50.0, 0.5, 3.0, 50.0], dtype=torch.float64, requires_grad=True)
    expected = [-math.log(1 / (1 + math.exp(-(c - r)))) for c, r in ((2.0, 0.5), (-1.0, 3.0), (50.0, 50.0))]
    torch.testing.assert_close(preference_loss(scores), torch.tensor(expected, dtype=torch.float64))
    [gradient] = torch.autograd.grad(preference_loss(scores).sum(), scores)
    wrong = 1 / (1 + math.exp(1.5))  # σ(r⁻ - r⁺): the weight in the gradient (Rafailov et al. 2023, sec. 4)
    assert gradient[0].item() == pytest.approx(-wrong) and gradient[3].item() == pytest.approx(wrong)


def of_step(read, run, pairs, step):
    """The pairs of that step of that run."""
    config = json.loads((run / "config.json").read_text())
    examples = read(pairs, Reading(BYTES, config["block_size"], config["held_out"]))[0]
    return [examples[row] for row in Batches(examples, config["batch_size"], 1, config["seed"]).rows(step)]


@pytest.mark.parametrize("nll", [0.0, 0.7])
def test_dpo_and_its_gradient_are_equation_7_in_float64(train, pairs, base, nll):
    """The second step's loss, of the model that one step gives: there policy and reference differ."""
    settings = {"learning_rate": 3e-3, "beta": 0.3, "nll": nll, "max_grad_norm": 1e9, "weight_decay": 0.0}
    one, two = (train("dpo", steps=steps, **settings)[1] for steps in (1, 2))
    policy, reference = f64(one), f64(base)
    losses, chosen_nll = [], []
    for pair in of_step(from_pairs, two, pairs, 1):
        log_pi, log_ref = ([written_out(model, row) for row in pair] for model in (policy, reference))
        delta = (log_pi[0] - log_ref[0]) - (log_pi[1] - log_ref[1])
        chosen_nll.append(-log_pi[0] / pair.chosen.graded.sum())
        losses.append(-torch.log(torch.sigmoid(0.3 * delta)) + nll * chosen_nll[-1])
    loss = torch.stack(losses).mean()
    length = torch.sqrt(sum(g.square().sum() for g in gradients(loss, policy)))
    assert float(metrics(two, "loss")[0]) == pytest.approx(math.log(2) + nll * float(metrics(two, "chosen_nll")[0]))
    assert float(metrics(two, "loss")[1]) == pytest.approx(loss.item(), abs=1e-5)
    assert float(metrics(two, "grad_norm")[1]) == pytest.approx(length.item(), rel=1e-4)
    assert float(metrics(two, "chosen_nll")[1]) == pytest.approx(torch.stack(chosen_nll).mean().item(), abs=1e-5)


def test_a_reward_models_loss_and_gradient_are_bradley_and_terrys_in_float64(train, pairs, base):
    one, two = (train("reward", steps=steps, learning_rate=3e-3, max_grad_norm=1e9)[1] for steps in (1, 2))
    model, losses = f64(one), []
    for pair in of_step(scored_pairs, two, pairs, 1):
        chosen, rejected = (model(torch.from_numpy(row.inputs).long()[None])[0, -1, 0].double() for row in pair)
        losses.append(-torch.log(1 / (1 + torch.exp(rejected - chosen))))
    loss = torch.stack(losses).mean()
    length = torch.sqrt(sum(g.square().sum() for g in gradients(loss, model) if g is not None))
    assert float(metrics(two, "loss")[1]) == pytest.approx(loss.item(), abs=1e-5)
    assert float(metrics(two, "grad_norm")[1]) == pytest.approx(length.item(), rel=1e-4)


def test_an_advantage_is_what_the_others_do_not_get():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 5.0], [2.0, 2.0, 2.0, 2.0]])
    expected = [[1 - 5 / 3, -2.0, -2.0, 5 - 1 / 3], [0.0] * 4]
    torch.testing.assert_close(leave_one_out(rewards), torch.tensor(expected))


@pytest.mark.parametrize("K", [2, 3])
def test_rloo_is_the_gradient_of_the_mean_reward_less_the_kl_on_three_tokens(K):
    """All K-tuples of answers, each as likely as the policy makes it: their mean gradient is the closed form's."""
    logits = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.1, 0.4, -0.5], dtype=torch.float64).log_softmax(-1)
    worth, beta = torch.tensor([1.0, 0.0, 0.4], dtype=torch.float64), 0.3
    log_pi = logits.log_softmax(-1)
    value = (log_pi.exp() * (worth - beta * (log_pi - reference))).sum()  # E[r] - β KL(π ‖ π_ref)
    [expected] = torch.autograd.grad(value, logits, retain_graph=True)
    mean = torch.zeros(3, dtype=torch.float64)
    for answers in itertools.product(range(3), repeat=K):
        y = list(answers)
        advantage = leave_one_out((worth - beta * (log_pi.detach() - reference))[y].view(1, K)).view(-1)
        loss = -(advantage * log_pi[y]).sum() / K
        [gradient] = torch.autograd.grad(loss, logits, retain_graph=True)
        mean -= log_pi.detach()[y].sum().exp() * gradient
    torch.testing.assert_close(mean, expected, rtol=1e-10, atol=1e-12)


def test_an_rlhf_step_is_that_loss_of_its_own_answers(train, base, instructions, reward_model, monkeypatch):
    """Of the second step, from what was sampled in it."""
    seen = []
    roll_out = train_rlhf.roll_out
    monkeypatch.setattr(train_rlhf, "roll_out", lambda *given: seen.append(roll_out(*given)) or seen[-1])
    settings = {"learning_rate": 3e-3, "beta": 0.3, "samples": 3, "max_grad_norm": 1e9, "reward": reward_model}
    one, two = (train("rlhf", steps=steps, batch_size=3, **settings)[1] for steps in (1, 2))
    [batch], [rewards] = seen[-1]
    policy, reference = f64(one), f64(base)
    log_pi, log_ref = (log_likelihood(model, *batch).double() for model in (policy, reference))
    gain = (rewards.double() - 0.3 * (log_pi.detach() - log_ref)).view(3, 3)
    loss = 0.0
    for b, k in itertools.product(range(3), range(3)):
        others = [gain[b, j] for j in range(3) if j != k]
        loss = loss - (gain[b, k] - sum(others) / 2) * log_pi[3 * b + k] / 9
    length = torch.sqrt(sum(g.square().sum() for g in gradients(loss, policy)))
    assert float(metrics(two, "loss")[1]) == pytest.approx(loss.item(), abs=2e-5)
    assert float(metrics(two, "grad_norm")[1]) == pytest.approx(length.item(), rel=1e-3)
    assert float(metrics(two, "reward")[1]) == pytest.approx(rewards.mean().item(), abs=1e-5)
    assert float(metrics(two, "kl")[1]) == pytest.approx((log_pi - log_ref).mean().item(), abs=1e-4)
    assert 0 < float(metrics(two, "entropy")[1]) <= math.log(257) and float(metrics(two, "length")[1]) <= 8


# ---- own answers -----------------------------------------------------------------------------------------------------


def test_an_answer_is_drawn_alike_whoever_draws_it(base):
    """Of a prompt the same tokens, alone, in another order and among others."""
    model = checkpoint.load_run(base, "", torch.device("cpu"))[0]
    prompts = [BYTES.encode_ordinary(text) for text in ("the old", "a calm sea", "ship")]

    def drawn(some):
        generators = [rollout.generator_of((0, 3, prompt, 0), torch.device("cpu")) for prompt in some]
        return generate(model, some, 6, temperature=1.0, generator=generators)

    together = drawn(prompts)
    assert drawn(prompts[::-1]) == together[::-1] and [drawn([one])[0] for one in prompts] == together
    assert len({tuple(one) for one in together}) == 3


def test_answers_are_graded_to_their_end_and_rewarded_to_the_letter(base, instructions, monkeypatch):
    examples = sorted(from_instructions(instructions, Reading(BYTES, 192, 0.1))[0], key=lambda one: one.graded.sum())[
        :2
    ]
    right = [BYTES.decode(example.response()[:-1]).strip() for example in examples]
    said = [right[0], right[0] + "!", f" {right[1]}", "x" * 49]  # the last one does not end
    tokens = [BYTES.encode_ordinary(" " + text) for text in said]
    monkeypatch.setattr(rollout, "generate", lambda *given, **how: tokens)
    config = train_rlhf.Config(
        instructions="", reward="exact", init_from=base, samples=2, max_new_tokens=50, block_size=192
    )
    model = checkpoint.open_run(base).model()
    [batch], [rewards] = rollout.roll_out(model, [collate(examples)], 0, config, BYTES, rollout.exact(BYTES))
    assert rewards.tolist() == [1, 0, 1, 0]
    answers = [BYTES.decode(t[g].tolist()) for t, g in zip(batch.targets, batch.graded, strict=True)]
    assert answers == [
        f" {said[0]}<|endoftext|>",
        f" {said[1]}<|endoftext|>",
        f"  {right[1]}<|endoftext|>",
        " " + "x" * 49,
    ]
    for row, example in zip(range(4), (examples[0],) * 2 + (examples[1],) * 2, strict=True):
        first = int(batch.graded[row].int().argmax())
        assert batch.inputs[row][: first + 1].tolist() == example.prompt()
    measured = rollout.of_answers(torch.zeros(1, 4).log_softmax(-1), batch, 2)
    assert measured["distinct"].tolist() == [1, 1] and measured["entropy"].tolist() == pytest.approx([math.log(4)])


def test_of_a_chat_the_first_turn_is_asked_and_its_response_is_right(base, monkeypatch):
    chat = Instruction("small", "", "big", earlier=(("hot", "cold"),))
    monkeypatch.setattr(rollout, "generate", lambda *given, **how: [BYTES.encode_ordinary(" cold")])
    config = train_rlhf.Config(instructions="", reward="exact", init_from=base, samples=1, block_size=192)
    model = checkpoint.open_run(base).model()
    batch = collate([instruction_example(chat, BYTES)])
    [answers], [rewards] = rollout.roll_out(model, [batch], 0, config, BYTES, rollout.exact(BYTES))
    assert rewards.tolist() == [1] and BYTES.decode(answers.inputs[0].tolist()).startswith(render_prompt("hot"))


@pytest.mark.parametrize("causal", [True, False])
def test_an_answer_has_the_same_score_alone_and_beside_a_longer_one(reward_model, base, causal, monkeypatch):
    config = train_rlhf.Config(
        instructions="", reward="", init_from=base, out="nowhere/run", block_size=192, device="cpu"
    )
    opened = checkpoint.open_run(reward_model)
    model = opened.model()
    model.config = replace(model.config, causal=causal)
    monkeypatch.setattr(Opened, "model", lambda *given: model)
    reward = rollout.scored(reward_model, train_reward.Session(config), BYTES)
    short, long = (rollout.Answer([65], [*[66] * n, BYTES.eot_token], []) for n in (3, 30))
    assert reward([short]).item() == pytest.approx(reward([short, long])[0].item(), abs=1e-6)
    assert reward([short]).item() != pytest.approx(reward([long]).item(), abs=1e-6)


def test_generation_is_at_most_two_thirds_of_a_step_and_reads_each_prompt_once(train, monkeypatch):
    """Counted in positions that the model computes: prompts and answers once, then the loss and the reference."""
    computed, hidden = {"generate": 0, "loss": 0}, GPT.hidden

    def counted(self, tokens, positions=None, cache=None):
        computed["generate" if cache is not None else "loss"] += tokens.numel()
        return hidden(self, tokens, positions, cache)

    monkeypatch.setattr(GPT, "hidden", counted)
    train("rlhf", steps=1, eval_every=100, batch_size=4)
    assert 0 < computed["generate"] <= 2 / 3 * (computed["generate"] + computed["loss"])


# ---- what learns -----------------------------------------------------------------------------------------------------


def test_from_a_lora_run_a_and_b_learn_on_and_the_reference_is_the_run_as_it_was(train, base, pairs):
    lora = train("lora_sft", steps=3, learning_rate=1e-2)[1]
    run = train("dpo", init_from=str(lora), steps=2, learning_rate=1e-2)[1]
    before, after = weights(lora), weights(run)
    assert (run / "learned.pt").exists() and before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert float(metrics(run, "loss")[0]) == pytest.approx(math.log(2), abs=1e-6), "at first both are the same"
    model = checkpoint.load_run("", str(run), torch.device("cpu"))[0]
    assert len(model.attached) == 1
    examples = from_pairs(pairs, Reading(BYTES, 192, 0.1))[1]
    assert pair_margins(model, examples, 2, f64(lora).float()).abs().min() > 0


def test_the_reference_does_not_learn(train, base):
    run = train("dpo", steps=3, learning_rate=1e-2)[1]
    margin = [float(value) for value in metrics(run, "margin")]
    assert margin[0] == 0 and all(margin[1:]), "else both would move together, and the margin would stay 0"


def test_a_reference_and_a_reward_model_have_no_dropout(base, reward_model):
    config = train_rlhf.Config(instructions="", reward="", init_from=base, out="nowhere/run", dropout=0.5, device="cpu")
    session, model = train_reward.Session(config), checkpoint.open_run(base).decoder(192, 0.5)
    reference = session.frozen_copy(model)
    assert model.training and not reference.training
    assert not any(p.requires_grad for p in reference.parameters()) and reference.wte.weight is not model.wte.weight
    answers = [rollout.Answer([65], [66, 67, BYTES.eot_token], [])]
    reward = rollout.scored(reward_model, session, BYTES)
    assert reward(answers).item() == reward(answers).item() and len(session.frozen_models) == 2


def test_an_answer_to_a_prompt_that_fills_the_block_is_one_token(base):
    config = train_rlhf.Config(instructions="", reward="exact", init_from=base, max_new_tokens=5, block_size=20)
    tokens = torch.arange(21)
    batch = Batch(tokens[None, :-1], tokens[None, 1:], tokens[None, 1:] == 20, torch.arange(20))
    answers = rollout.answers_to(checkpoint.open_run(base).model(), batch, 0, config, BYTES)
    assert [len(one.tokens) for one in answers] == [1] * 4 and rollout.as_batch(answers).inputs.shape == (4, 20)


def test_more_of_beta_keeps_the_policy_nearer(train, base, pairs):
    examples, reference = from_pairs(pairs, Reading(BYTES, 192, 0.3))[1], f64(base)
    runs = [train("rlhf", steps=6, learning_rate=1e-2, beta=beta, weight_decay=0.0)[1] for beta in (0.0, 100.0)]
    apart = [float(metrics(run, "kl")[-1]) for run in runs]
    assert all(map(math.isfinite, apart))
    assert apart[0] == 0, "no answer is right to the letter: without the KL nothing is learned"
    assert pair_scores(reference, examples, 2).shape == (2, len(examples))


# ---- judging, and what is refused ------------------------------------------------------------------------------------


def test_a_report_tells_accuracy_margins_and_how_sure_a_reward_model_is(reward_model, pairs, base):
    model, examples = checkpoint.load_run(reward_model, "", torch.device("cpu"))[0], None
    examples = scored_pairs(pairs, Reading(BYTES, 192, 1))[1]
    margins = pair_margins(model, examples, 5)
    one_by_one = torch.stack([pair_margins(model, [pair], 1)[0] for pair in examples])
    torch.testing.assert_close(margins, one_by_one)
    assert pair_accuracy(torch.tensor([1.0, -1.0, 0.0, 2.0])) == 0.625
    told = report(model, examples, 5)
    assert f"12 pairs: the chosen response is ahead in {pair_accuracy(margins):.1%}" in told
    assert "how sure" in told and "on average 5" in told


def test_a_reward_models_last_line_is_its_loss_and_a_policys_a_perplexity(train, capsys):
    loss = train("reward", steps=1, keep_best=True)[0]["held_out_nll"]
    assert f": held-out loss {loss:.4f} nats a pair after " in (said := capsys.readouterr().out)
    assert "perplexity" not in said
    nll = train("dpo", steps=1)[0]["held_out_nll"]  # of the chosen responses
    assert f": held-out perplexity {math.exp(nll):.2f} after " in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["reward", "dpo"])
def test_evaluate_judges_pairs_that_were_held_out(kind, reward_model, train, pairs, base, capsys):
    run = reward_model if kind == "reward" else str(train("dpo", steps=3, learning_rate=1e-2)[1])
    reference = {} if kind == "reward" else {"reference": base}
    evaluate.main(evaluate.Config(from_=run, pairs=pairs, device="cpu", **reference))
    told = capsys.readouterr().out
    assert "1 pairs: the chosen response is ahead in" in told
    assert ("of scores" if kind == "reward" else "of log π(y|x) / π_ref(y|x)") in told


def test_show_batch_shows_a_chosen_row_and_its_rejected_one(train, capsys):
    train("dpo", show_batch=True)
    rows = capsys.readouterr().out.split("row ")[1:3]
    assert "','" in rows[0] and "','" not in rows[1], "only the chosen one says please"


def test_a_reward_run_that_is_none_is_refused(train, base, text):
    with pytest.raises(Mistake, match=r"--reward .*base is no reward model: it gives no score"):
        train("rlhf", reward=base)
    with pytest.raises(Mistake, match="nowhere does not exist"):
        train("rlhf", reward="nowhere")
    classifier = train("classifier", steps=1)[1]
    with pytest.raises(Mistake, match="is no reward model"):
        train("rlhf", reward=str(classifier))


def test_a_reward_model_with_another_tokenizer_is_refused(train, tmp_path, pairs, text):
    out, tokenizer = tmp_path / "reward", "data/builtin/tokenizer.tiktoken"
    shape = {"n_layer": 1, "n_head": 1, "n_embd": 4, "block_size": 192}
    new_model.main(new_model.Config(out=f"{out}-base", tokenizer=tokenizer, **shape))
    how = {"init_from": f"{out}-base", "block_size": 100, "steps": 1, "device": "cpu"}
    train_reward.main(train_reward.Config(pairs=pairs, out=str(out), **how))
    with pytest.raises(Mistake, match=r"reads other tokens: its tokenizer is .*, and this model bytes"):
        train("rlhf", reward=str(out))


def test_a_reward_that_is_not_a_number_ends_the_run(train, reward_model, monkeypatch):
    whole = Opened.model

    def broken(self, *given):
        model = whole(self, *given)
        if model.head is not None:
            model.head.weight.data.fill_(math.nan)
        return model

    monkeypatch.setattr(Opened, "model", broken)
    with pytest.raises(Mistake, match=r"gives a score of nan: it cannot be learned from"):
        train("rlhf", reward=reward_model)


def test_what_does_not_go_together_is_one_sentence(train, reward_model, base, pairs, text, capsys):
    with pytest.raises(Mistake, match="--samples must be from 2 to 1000, got 1"):
        train("rlhf", samples=1)
    with pytest.raises(Mistake, match="predicts classes"):
        train("dpo", init_from=reward_model)
    with pytest.raises(Mistake, match="--pairs is for it"):
        train("classifier", init_from=reward_model)
    classifier = str(train("classifier", steps=1)[1])
    with pytest.raises(Mistake, match="gives a class to each text, not a score"):
        train("reward", init_from=classifier)
    capsys.readouterr()
    with pytest.raises(Mistake, match="predicts a score: --pairs judges it"):
        evaluate.main(evaluate.Config(from_=reward_model, text=text, device="cpu"))
    with pytest.raises(Mistake, match="--reference goes with --pairs"):
        evaluate.main(evaluate.Config(from_=base, reference=base, instructions=pairs, device="cpu"))
    assert capsys.readouterr().out == "", "it does not say how it judges first"
    with pytest.raises(Mistake, match="predicts no classes"):
        sample.main(sample.Config(from_=reward_model, classify=True, prompt="a", device="cpu"))
    for other, why in ((reward_model, "it predicts classes"), (str(train("mlm", steps=1)[1]), "it sees both sides")):
        with pytest.raises(Mistake, match=f"--reference .* has no likelihood of a response: {why}"):
            evaluate.main(evaluate.Config(from_=base, reference=other, pairs=pairs, device="cpu"))
    with pytest.raises(Mistake, match="--reward is exact, or the run of a reward model: nowhere does not exist"):
        train("rlhf", reward="nowhere")


def test_a_training_that_diverges_ends_in_a_sentence(train, reward_model):
    """Also where answers are drawn, before there is a loss."""
    with pytest.raises(Mistake, match="try a lower --learning-rate"):
        train("rlhf", learning_rate=1e30, steps=3, warmup=0.0)


@pytest.mark.parametrize("method", ["sft", "lora_sft"])
def test_a_run_of_numbers_that_are_none_is_not_begun_from(method, train, tmp_path):
    run = train(method)[1]
    path = run / ("model.pt" if method == "sft" else "learned.pt")
    contents = torch.load(path, weights_only=False)
    next(iter(contents["weights"].values())).view(-1)[0] = math.nan
    checked.write(path, contents)
    with pytest.raises(Mistake, match=r"holds numbers that are infinite or NaN, in .*: its training diverged"):
        train("dpo", init_from=str(run))


def stop_in(patch, module, name, n):
    """The n-th call of that function fails."""
    calls, function = itertools.count(1), getattr(module, name)
    patch.setattr(module, name, lambda *given, **how: function(*given, **how) if next(calls) < n else 1 / 0)


# ---- resume ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["reward", "dpo", "rlhf"])
def test_stopped_in_the_midst_of_a_step_and_resumed_is_bit_equal(method, train, tmp_path, reward_model, monkeypatch):
    """Of RLHF in mid-rollout, after half of an answer."""
    settings = {"steps": 5, "learning_rate": 3e-3, "save_every": 1, "dropout": 0.1, "batch_size": 3}
    settings |= {"reward": reward_model} if method == "rlhf" else {}
    whole = train(method, **settings)[1]
    out = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        stop_in(patch, *((generation, "pick", 20) if method == "rlhf" else (train_reward.Session, "log", 2)))
        with pytest.raises(ZeroDivisionError):
            train(method, out=out, **settings)
    train(method, out=out, resume=True, **settings)
    assert all(torch.equal(tensor, weights(out)[key]) for key, tensor in weights(whole).items())
    for column in ("step", "loss", "grad_norm", *(["reward"] if method == "rlhf" else [])):
        assert metrics(out, column) == metrics(whole, column)


def test_a_run_is_not_resumed_with_another_reference(train, base, tmp_path, monkeypatch):
    other = tmp_path / "base"
    shutil.copytree(base, other)
    with monkeypatch.context() as patch:
        stop_in(patch, train_reward.Session, "log", 3)
        with pytest.raises(ZeroDivisionError):
            train("dpo", out=tmp_path / "run", steps=4, save_every=1, init_from=str(other))
    contents = torch.load(other / "model.pt", weights_only=True)
    contents["weights"]["wte.weight"] += 0.1
    torch.save(contents, other / "model.pt")
    with pytest.raises(Mistake):
        train("dpo", out=tmp_path / "run", steps=4, save_every=1, init_from=str(other), resume=True)

"""The losses of pairs, and their gradients, as TRL has them: its own loader, tokenizer, collator and loss, on the same
pairs and the same weights. Skipped where TRL is not installed: benchmarks/requirements.txt has it."""

import pytest
import torch

import export
from data.batches import collate
from data.examples import Reading, render_prompt
from data.pairs import from_pairs, read_pairs, scored_pairs
from data.tokenizer import load_tokenizer
from model.preference import log_likelihood, preference_loss
from store import gpt2
from store.checkpoint import open_run

BETA, HOW = 0.3, Reading(load_tokenizer("bytes"), 192, 1)


@pytest.fixture(scope="module")
def trl():
    return pytest.importorskip("trl", reason="TRL is not installed: benchmarks/requirements.txt has it")


def exported(run, out):
    export.main(export.Config(from_=str(run), out=str(out)))
    return str(out)


def settings(out):
    """All pairs are one batch; nothing is cut."""
    quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "bf16": False, "gradient_checkpointing": False}
    return {"output_dir": str(out), "per_device_train_batch_size": 100, "max_length": None, **quiet}


def as_texts(pairs):
    """TRL puts end-of-text behind each response itself."""
    from datasets import Dataset

    records = [
        {
            "prompt": render_prompt(one.instruction, one.input),
            "chosen": f" {one.output}",
            "rejected": f" {other.output}",
        }
        for one, other in read_pairs(pairs)
    ]
    return Dataset.from_list(records)


def step_of(trainer):
    """The loss of the one batch, and its gradients by name."""
    trainer.model.eval()
    loss = trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())))
    loss.backward()
    return loss.item(), {name: p.grad for name, p in trainer.model.named_parameters()}


def same_gradients(model, loss, theirs):
    """Ours under their names and in their layout: what moves weights moves their gradients too."""
    loss.backward()
    ours = {name: p.grad for name, p in model.named_parameters()}
    if model.head is not None:
        assert ours.pop("head.bias").abs().max() < 1e-6, "what is added to both scores changes nothing"
        torch.testing.assert_close(ours.pop("head.weight"), theirs.pop("score.weight"), rtol=0, atol=1e-5)
    ours = gpt2.weights_of(ours)
    assert ours.keys() == theirs.keys() and max(g.abs().max() for g in ours.values()) > 0.01
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=0, atol=1e-5, msg=lambda text, name=name: name + text)


def test_dpo_is_the_loss_of_TRLs_trainer(train, base, pairs, tmp_path, trl):
    import transformers

    run = train("dpo", steps=3, learning_rate=1e-2)[1]
    policy, reference = open_run(run).model(), open_run(base).model()
    rows = collate(from_pairs(pairs, HOW)[1])
    with torch.no_grad():
        log_ref = log_likelihood(reference, *rows)
    loss = preference_loss(BETA * (log_likelihood(policy, *rows) - log_ref)).mean()
    folders = [exported(run, tmp_path / "policy"), exported(base, tmp_path / "reference")]
    models = [transformers.GPT2LMHeadModel.from_pretrained(folder) for folder in folders]
    trainer = trl.DPOTrainer(
        *models,
        args=trl.DPOConfig(beta=BETA, **settings(tmp_path / "trl")),
        train_dataset=as_texts(pairs),
        processing_class=transformers.AutoTokenizer.from_pretrained(folders[0]),
    )
    theirs, gradients = step_of(trainer)
    assert loss.item() == pytest.approx(theirs, abs=1e-5) and abs(theirs - 0.6931) > 0.01
    same_gradients(policy, loss, gradients)


def test_a_reward_models_loss_is_TRLs(train, pairs, tmp_path, trl):
    import transformers

    run = train("reward", steps=3, learning_rate=1e-2)[1]
    model = open_run(run).model()
    inputs, _, graded, positions = collate(scored_pairs(pairs, HOW)[1])
    loss = preference_loss(model(inputs, graded, positions).squeeze(-1)).mean()
    folder = exported(run, tmp_path / "reward")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)  # any but end-of-text, where the score is read
    trainer = trl.RewardTrainer(
        transformers.AutoModelForSequenceClassification.from_pretrained(folder),
        args=trl.RewardConfig(**settings(tmp_path / "trl")),
        train_dataset=as_texts(pairs),
        processing_class=tokenizer,
    )
    theirs, gradients = step_of(trainer)
    assert loss.item() == pytest.approx(theirs, abs=1e-5) and abs(theirs - 0.6931) > 0.001
    same_gradients(model, loss, gradients)

"""Runs of reward models, DPO and RLHF for transformers and PEFT, merged, and back: the same logits, the same scores."""

import json

import pytest
import torch

import export
from cli import Mistake
from data.examples import Reading
from data.pairs import SCORE, scored_pairs
from data.tokenizer import load_tokenizer
from store.checkpoint import load_run, open_run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


def exported(run, out, **how):
    export.main(export.Config(from_=str(run), out=str(out), **how))
    return out


def same_logits(ours, theirs):
    tokens = torch.randint(257, (3, 32), generator=torch.Generator().manual_seed(1))
    expected = theirs(tokens)
    expected = getattr(expected, "logits", expected)
    assert expected.std() > 0.02
    torch.testing.assert_close(ours(tokens), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["dpo", "rlhf"])
def test_a_tuned_run_is_exported_as_a_model_that_writes(method, train, tmp_path, transformers):
    run = train(method, learning_rate=1e-2)[1]
    out = exported(run, tmp_path / "out")
    same_logits(open_run(run).model(), transformers.GPT2LMHeadModel.from_pretrained(out).eval())
    same_logits(open_run(run).model(), open_run(out).model())


@pytest.mark.parametrize("method", ["dpo", "rlhf"])
def test_what_began_from_a_lora_run_is_exported_for_peft_and_merged(method, train, reward_model, tmp_path):
    peft = pytest.importorskip("peft")
    lora = train("lora_sft", learning_rate=1e-2)[1]
    settings = {"reward": reward_model} if method == "rlhf" else {}
    run = train(method, init_from=str(lora), learning_rate=1e-2, **settings)[1]
    model = load_run("", str(run), CPU)[0]
    out = exported(run, tmp_path / "out")
    same_logits(model, peft.AutoPeftModelForCausalLM.from_pretrained(out))
    same_logits(model, load_run("", str(out), CPU)[0])
    same_logits(model, open_run(exported(run, tmp_path / "merged", merge=True)).model())


def scores_of(theirs, pairs):
    """One response at a time, as transformers reads them: to its end-of-text, without padding."""
    return [theirs(torch.from_numpy(row.inputs).long()[None]).logits.item() for pair in pairs for row in pair]


@pytest.mark.parametrize("learn", ["all", "lora"])
def test_a_reward_model_scores_alike_in_transformers_and_comes_back(
    learn, train, pairs, tmp_path, transformers, capsys
):
    run = train("reward", learn=learn, learning_rate=1e-2)[1]
    if learn == "lora":
        with pytest.raises(Mistake, match="has learned a head too, which PEFT has no place for: --merge"):
            exported(run, tmp_path / "no")
        run = exported(run, tmp_path / "merged", merge=True)
    out = exported(run, tmp_path / "out")
    assert "which must end with end-of-text: there the score is read" in capsys.readouterr().out
    theirs, info = transformers.AutoModelForSequenceClassification.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    held_out = scored_pairs(pairs, Reading(load_tokenizer("bytes"), 192, 1))[1][:4]
    ours = open_run(run).model()
    rows = [torch.from_numpy(row.inputs).long()[None] for pair in held_out for row in pair]
    expected = [ours(row)[0, -1].item() for row in rows]
    assert len(set(expected)) == len(expected)
    assert scores_of(theirs.eval(), held_out) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ValueError, match="no padding token"):  # it would be end-of-text, where the score is
        theirs(torch.cat([rows[0], rows[0]]))
    assert "pad_token" not in json.loads((out / "tokenizer_config.json").read_text())
    again = open_run(out)
    assert again.classes == SCORE
    back = again.model()
    assert [back(row)[0, -1].item() for row in rows] == pytest.approx(expected, abs=1e-5)
    train("rlhf", reward=str(out), steps=1)


def test_a_reward_model_without_an_adapter_has_nothing_to_merge(reward_model, tmp_path):
    with pytest.raises(Mistake, match="holds no adapter that could be merged"):
        exported(reward_model, tmp_path / "out", merge=True)

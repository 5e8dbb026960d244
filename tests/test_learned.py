"""What is learned is what is saved, whatever has learned, and comes back as it was."""

from pathlib import Path

import pytest
import torch
from conftest import weights

import train_sft
from cli import Mistake
from model.head import new_head
from model.switch import plain_names
from store import checked
from store.checkpoint import load_run, open_run, save
from store.learned import read_learned


@pytest.fixture
def tokens():
    return torch.randint(61, (2, 16), generator=torch.Generator().manual_seed(0))


def test_a_finished_lora_run_goes_on_learning_its_A_and_B(train, base):
    how = {"r": 3, "alpha": 5.5, "targets": "v_proj,q_proj"}
    _, first = train("lora", learning_rate=0.05, **how)
    with pytest.raises(Mistake, match=r"goes on learning with --r 3 --alpha 5.5 --targets q_proj,v_proj$") as said:
        train("lora", init_from=str(first))
    words = str(said.value).split(" with ")[1].split()
    advice = {"r": int(words[1]), "alpha": float(words[3]), "targets": words[5]}
    _, still = train("lora", init_from=str(first), learning_rate=1e-12, **advice)
    _, second = train("lora", init_from=str(first), learning_rate=0.05, **advice)
    for name, tensor in weights(first).items():
        torch.testing.assert_close(weights(still)[name], tensor)
        assert not torch.allclose(weights(second)[name], tensor)
    learned = read_learned(second)
    assert learned["base"] == base and learned["base_sha256"] == read_learned(first)["base_sha256"]
    assert [note["r"] for note in open_run(second).model().attached] == [3]


def test_full_finetuning_of_a_lora_run_saves_all_of_it_and_comes_back(train, tokens):
    _, lora = train("lora", r=2, learning_rate=0.05)
    _, run = train("sft", init_from=str(lora))
    before, model = open_run(lora).model(), open_run(run).model()
    assert model.attached == before.attached and weights(run).keys() == plain_names(model).keys()
    for name, tensor in plain_names(model).items():
        assert torch.equal(tensor, weights(run)[name]) and not torch.equal(tensor, plain_names(before)[name]), name


def test_what_is_left_frozen_in_a_copy_of_a_script_is_not_saved(train, base, tokens, monkeypatch):
    """The kept best, too."""
    source = Path(train_sft.__file__).read_text(encoding="utf-8")
    line = "    model.requires_grad_(True)  # every parameter\n"
    assert source.count(line) == 1
    two = ["blocks.1.mlp.down_proj.bias", "ln_f.weight"]
    changed = source.replace(
        line, f"    for name, p in model.named_parameters():\n        p.requires_grad_(name in {two})\n"
    )
    names = {"__name__": "copy"}
    exec(compile(changed, "copy_of_train_sft.py", "exec"), names)
    monkeypatch.setattr(train_sft, "main", names["main"])
    _, run = train("sft", learning_rate=0.05, keep_best=True, eval_every=1)
    for folder in (run, run / "best"):
        assert sorted(weights(folder)) == two and not (folder / "model.pt").exists()
        assert read_learned(folder)["base"] == base
        state = open_run(folder).model().state_dict()
        for name, tensor in open_run(base).model().state_dict().items():
            assert torch.equal(state[name], weights(folder).get(name, tensor)), name
    assert not torch.equal(weights(run)["ln_f.weight"], open_run(base).model().ln_f.weight)
    _, again = train("lora", init_from=str(run), learning_rate=0.05)
    assert set(two) < weights(again).keys() and read_learned(again)["base"] == base
    torch.testing.assert_close(
        load_run("", str(again), torch.device("cpu"))[0](tokens), open_run(again).model()(tokens)
    )


@pytest.mark.parametrize("all_of_it", [False, True])
def test_a_head_of_its_own_is_saved_with_how_it_was_attached(base, tmp_path, tokens, all_of_it):
    opened = open_run(base)
    model = opened.model().requires_grad_(all_of_it)
    new_head(model, ["ham", "spam", "öl"], "text")
    tmp_path.joinpath("run").mkdir()
    save(tmp_path / "run", model, opened)
    file = tmp_path / "run" / ("model.pt" if all_of_it else "learned.pt")
    assert checked.read(file, ("attached",))["attached"] == [
        {"apply": "head", "classes": ["ham", "spam", "öl"], "each": "text"}
    ]
    assert open_run(tmp_path / "run").classes == (["ham", "spam", "öl"], "text")
    again = open_run(tmp_path / "run").model()
    assert again(tokens).shape == (2, 16, 3) and torch.equal(again(tokens), model(tokens))
    torch.testing.assert_close(model(tokens), model.hidden(tokens) @ model.head.weight.T + model.head.bias)
    assert len(weights(tmp_path / "run")) == (len(model.state_dict()) if all_of_it else 2)


def test_an_adapter_of_the_first_release_still_loads(train, tmp_path, tokens):
    _, run = train("lora", r=3, alpha=5.0, targets="v_proj,down_proj", learning_rate=0.05)
    old, learned = tmp_path / "old", read_learned(run)
    config = {"r": 3, "alpha": 5, "targets": ["down_proj", "v_proj"]}
    old.mkdir()
    checked.write(old / "adapter.pt", {**learned, "attached": 0, "config": config})
    for name in (old, old / "adapter.pt"):
        assert torch.equal(open_run(name).model()(tokens), open_run(run).model()(tokens))
    train("lora", init_from=str(old), **{**config, "targets": "v_proj,down_proj"})


def test_a_model_holds_its_weights_once(base):
    opened = open_run(base)
    read = {tensor.data_ptr() for tensor in opened.weights.values()}
    model = opened.model()
    assert {parameter.data_ptr() for parameter in model.parameters()} == read and not opened.weights
    with pytest.raises(ValueError, match="have been given to a model"):
        opened.model()

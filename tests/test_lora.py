"""LoRA: only A and B learn, the base stays as it was, and the product is what the paper says."""

import pytest
import torch
from conftest import weights
from torch import nn

from model.lora import (
    LoRALinear,
    activate,
    apply_lora,
    base_state_dict,
    load_lora_state_dict,
    lora_state_dict,
    merge,
    unmerge,
)
from run.checkpoint import load_adapter, load_model, save_adapter, sha256_of_base

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")


@pytest.fixture
def tokens():
    return torch.randint(61, (2, 16), generator=torch.Generator().manual_seed(0))


def randomise(model, name="default"):
    """B is zero at first; a test of what an adapter does needs one that does something."""
    for tensor in lora_state_dict(model, name).values():
        nn.init.normal_(tensor, std=0.3)


def test_lora_changes_nothing_at_init(model, tokens):
    before = model(tokens)
    apply_lora(model, r=3, alpha=7, dropout=0.0)
    assert torch.equal(model(tokens), before)


def test_after_one_step_B_has_changed_and_A_has_not(model, tokens):
    learns = apply_lora(model, r=3, alpha=7, dropout=0.0)
    before = {name: tensor.clone() for name, tensor in lora_state_dict(model).items()}
    model(tokens).square().mean().backward()
    torch.optim.SGD(learns, lr=0.1).step()
    for name, tensor in lora_state_dict(model).items():
        assert torch.equal(tensor, before[name]) == name.endswith("lora_A"), name


def test_what_learns_counts_r_times_d_in_plus_d_out(model):
    layers = [module for name, module in model.named_modules() if name.split(".")[-1] in TARGETS]
    expected = sum(5 * (layer.in_features + layer.out_features) for layer in layers)
    assert len(layers) == 12
    assert sum(p.numel() for p in apply_lora(model, r=5, alpha=7, dropout=0.0)) == expected


@pytest.mark.parametrize("targets", [("q_proj",), ("v_proj", "down_proj"), TARGETS])
def test_only_the_targets_get_an_adapter_and_all_else_is_frozen(model, targets):
    apply_lora(model, r=2, alpha=4, dropout=0.0, targets=targets)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.split(".")[-4] for name in learning} == set(targets)
    assert {name.split(".")[-1] for name in learning} == {"lora_A", "lora_B"}


def test_lora_equals_peft_on_rectangular_layers_with_alpha_unlike_r_also_merged():
    """Trap 10, with PEFT as the reference."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(20, 12), nn.Linear(12, 28))
    theirs = peft.get_peft_model(
        nn.Sequential(nn.Linear(20, 12), nn.Linear(12, 28)),
        peft.LoraConfig(r=4, lora_alpha=7, lora_dropout=0.0, target_modules=["0", "1"], init_lora_weights=True),
    )
    ours = nn.Sequential(nn.Linear(20, 12), nn.Linear(12, 28))
    ours.load_state_dict(plain.state_dict())
    apply_lora(ours, r=4, alpha=7, dropout=0.0, targets=("0", "1"))
    randomise(ours)
    for i in (0, 1):
        layer = theirs.base_model.model[i]
        layer.base_layer.load_state_dict(plain[i].state_dict())
        layer.lora_A["default"].weight.data.copy_(ours[i].adapters["default"].lora_A)
        layer.lora_B["default"].weight.data.copy_(ours[i].adapters["default"].lora_B)
    x = torch.randn(9, 20)
    ours(x).square().sum().backward()
    theirs(x).square().sum().backward()
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-6)
    for i in (0, 1):
        mine, peers = ours[i].adapters["default"], theirs.base_model.model[i]
        torch.testing.assert_close(mine.lora_A.grad, peers.lora_A["default"].weight.grad, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(mine.lora_B.grad, peers.lora_B["default"].weight.grad, rtol=1e-5, atol=1e-5)
    merge(ours)
    torch.testing.assert_close(ours(x), theirs.merge_and_unload()(x), rtol=0, atol=1e-6)


def test_A_is_drawn_as_peft_draws_it():
    peft = pytest.importorskip("peft")
    ours = nn.Sequential(nn.Linear(400, 300))
    apply_lora(ours, r=64, alpha=1, dropout=0.0, targets=("0",))
    theirs = peft.get_peft_model(nn.Sequential(nn.Linear(400, 300)), peft.LoraConfig(r=64, target_modules=["0"]))
    mine, peers = ours[0].adapters["default"].lora_A, theirs.base_model.model[0].lora_A["default"].weight
    assert mine.abs().max().item() == pytest.approx(peers.abs().max().item(), rel=0.01)
    assert mine.std().item() == pytest.approx(peers.std().item(), rel=0.02)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12), (torch.bfloat16, 0.3)])
def test_merged_equals_unmerged_and_unmerging_restores_every_bit(model, tokens, dtype, tolerance):
    """Trap 12."""
    model.to(dtype)
    apply_lora(model, r=3, alpha=7, dropout=0.5)
    randomise(model)
    base, before = {name: w.clone() for name, w in base_state_dict(model).items()}, model.eval()(tokens)
    merge(model)
    torch.testing.assert_close(model(tokens), before, rtol=0, atol=tolerance)
    assert not torch.equal(base_state_dict(model)["blocks.0.attn.q_proj.weight"], base["blocks.0.attn.q_proj.weight"])
    assert torch.equal(model.train()(tokens), model.eval()(tokens)), "merged, the thin path and its dropout are out"
    unmerge(model)
    assert all(torch.equal(w, base[name]) for name, w in base_state_dict(model).items())
    assert torch.equal(model(tokens), before)


def test_merging_twice_and_changing_a_merged_model_are_refused(model):
    apply_lora(model, r=3, alpha=7, dropout=0.0)
    merge(model)
    for forbidden in (
        lambda: merge(model),
        lambda: activate(model, None),
        lambda: sha256_of_base(model),
        lambda: apply_lora(model, r=3, alpha=7, dropout=0.0, name="another"),
    ):
        with pytest.raises(ValueError, match="merged"):
            forbidden()


def test_train_and_eval_never_touch_a_weight(model):
    apply_lora(model, r=3, alpha=7, dropout=0.0)
    randomise(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.eval().train().eval()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_named_adapters_share_one_base_and_one_acts_at_a_time(model, tokens):
    bare = model(tokens)
    apply_lora(model, r=3, alpha=7, dropout=0.0, name="sea")
    randomise(model, "sea")
    sea = model(tokens)
    learns = apply_lora(model, r=2, alpha=4, dropout=0.0, targets=("q_proj",), name="land")
    assert torch.equal(model(tokens), bare), "a new adapter is active, and starts as the base"
    assert sum(p.numel() for p in learns) == 2 * 2 * (12 + 12)
    randomise(model, "land")
    land = model(tokens)
    for name, expected in (("sea", sea), ("land", land), (None, bare)):
        activate(model, name)
        assert torch.equal(model(tokens), expected)
        learning = {key.split(".")[-2] for key, p in model.named_parameters() if p.requires_grad}
        assert learning == ({name} if name else set())
    with pytest.raises(ValueError, match="no adapter named 'sky'"):
        activate(model, "sky")
    with pytest.raises(ValueError, match="named 'sea' already"):
        apply_lora(model, r=3, alpha=7, dropout=0.0, name="sea")


@pytest.mark.parametrize("targets, named", [(("q_proj", "wte"), "'wte'"), (("head",), "'head'"), ((), "none")])
def test_an_unknown_target_is_refused_by_name_and_the_tied_embedding_is_none(model, targets, named):
    """Trap 13: an adapter merged into the tied head would edit the embedding."""
    with pytest.raises(ValueError, match=f"q_proj.*got .?{named}"):
        apply_lora(model, r=3, alpha=7, dropout=0.0, targets=targets)
    with pytest.raises(ValueError, match="rank r must be at least 1, got 0"):
        apply_lora(model, r=0, alpha=7, dropout=0.0)


def test_full_rank_lora_with_identity_A_takes_exactly_the_step_of_full_finetuning():
    """r = d_in, A = I and frozen, scaling 1, plain SGD: B moves as W would have moved, difference exactly 0."""
    torch.manual_seed(0)
    full = nn.Linear(24, 10)
    linear = nn.Linear(24, 10)
    linear.load_state_dict(full.state_dict())
    lora = nn.Sequential(linear)
    apply_lora(lora, r=24, alpha=24, dropout=0.0, targets=("0",))
    thin = lora[0].adapters["default"]
    thin.lora_A.data.copy_(torch.eye(24))
    thin.lora_A.requires_grad_(False)
    x, lr = torch.randn(7, 24), 2.0**-4  # a power of two: lr * gradient is then exact
    for module, learns in ((full, full.weight), (lora, thin.lora_B)):
        module(x).square().sum().backward()
        torch.optim.SGD([learns], lr=lr).step()
    merge(lora)
    assert (full.weight - lora[0].base.weight).abs().max().item() == 0


def test_the_base_is_bit_equal_after_50_steps_with_weight_decay(train, base):
    """Trap 11: the fingerprint covers every tensor of the base; the adapter file holds the one taken after training."""
    before = sha256_of_base(load_model(base))
    _, run = train("lora", steps=50, weight_decay=0.1, dropout=0.1)
    assert (
        torch.load(run / "adapter.pt", weights_only=True)["base_sha256"] == before == sha256_of_base(load_model(base))
    )
    assert all(tensor.any() for name, tensor in weights(run).items()), "A and B have both learned"


def test_an_adapter_file_holds_A_and_B_only_and_comes_back_as_it_was(train, base, tokens):
    """Trap 21."""
    results, run = train("lora", r=3, alpha=5.0, targets="v_proj,down_proj")
    model = load_model(base)
    load_adapter(model, run)
    state = lora_state_dict(model)
    assert state.keys() == weights(run).keys() and len(state) == 2 * 2 * 2
    assert all(torch.equal(tensor, weights(run)[name]) for name, tensor in state.items())
    assert isinstance(model.blocks[0].attn.v_proj, LoRALinear)
    assert model.blocks[0].attn.v_proj.adapters["default"].scaling == 5 / 3
    assert results["checkpoint_bytes"] == (run / "adapter.pt").stat().st_size < 4 * results["trainable"] + 8000


def test_a_wrong_base_a_wrong_rank_and_half_an_adapter_are_refused_by_name(train, base, model):
    _, run = train("lora", r=3)
    with pytest.raises(ValueError, match=r"was trained on .*base, not on this base"):
        load_adapter(model, run)
    apply_lora(model, r=3, alpha=7, dropout=0.0)
    state = dict(lora_state_dict(model))
    with pytest.raises(ValueError, match="only the model has blocks"):
        load_lora_state_dict(model, {})
    with pytest.raises(ValueError, match="only the adapter has stranger"):
        load_lora_state_dict(model, {**state, "stranger": torch.zeros(1)})
    with pytest.raises(ValueError, match="no adapter named 'typo'"):
        load_lora_state_dict(model, {}, "typo")
    state["blocks.1.mlp.up_proj.lora_A"] = torch.zeros(4, 12)
    with pytest.raises(ValueError, match=r"up_proj.lora_A is \(4, 12\) in the adapter, \(3, 12\) in the model"):
        load_lora_state_dict(model, state)


def test_a_named_adapter_is_saved_and_loaded_under_its_name(model, tokens, tmp_path):
    for name in ("sea", "land"):
        apply_lora(model, r=2, alpha=4, dropout=0.0, targets=["q_proj", " down_proj"], name=name)
        randomise(model, name)
        (tmp_path / name).mkdir()
        save_adapter(tmp_path / name, model, "base", name)
    fresh = type(model)(model.config)
    fresh.load_state_dict(base_state_dict(model))
    for name in ("land", "sea"):
        load_adapter(fresh, tmp_path / name, name)
        activate(model, name)
        assert torch.equal(fresh(tokens), model(tokens))
    for name in ("train", "a.b", ""):
        with pytest.raises(ValueError, match="cannot be named"):
            apply_lora(fresh, r=2, alpha=4, dropout=0.0, name=name)
    with pytest.raises(ValueError, match=r"got .'base'"):
        apply_lora(fresh, r=2, alpha=4, dropout=0.0, targets=["base"], name="nested")

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
from store.checkpoint import fingerprint, load_adapter, open_run

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
        lambda: fingerprint(plain_names(model)),
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


def grown(model, tokens, fused, monkeypatch):
    """Logits, and the gradients of what learns, through FusedLoRA or step by step through LowRank."""
    monkeypatch.setattr(LoRALinear, "fused", fused)
    model.zero_grad()
    logits = model(tokens)
    logits.square().mean().backward()
    return [logits, *(parameter.grad.clone() for parameter in model.parameters() if parameter.requires_grad)]


@pytest.mark.parametrize("targets", [TARGETS, ("v_proj", "down_proj")])
def test_fused_lora_equals_the_equation_step_by_step_forward_and_backward(model, tokens, targets, monkeypatch):
    apply_lora(model.double(), r=3, alpha=7, dropout=0.0, targets=targets)
    randomise(model)
    by_hand, by_autograd = (grown(model, tokens, fused, monkeypatch) for fused in (True, False))
    assert len(by_hand) == 1 + 2 * 2 * len(targets)
    for one, other in zip(by_hand, by_autograd, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_fused_lora_equals_the_equation_in_bf16_as_nearly_as_bf16_tells(model, tokens, monkeypatch):
    apply_lora(model, r=3, alpha=7, dropout=0.0)
    randomise(model)
    exact = grown(model, tokens, False, monkeypatch)
    model.precision = torch.bfloat16
    distances = []
    for fused in (True, False):
        rounded = grown(model, tokens, fused, monkeypatch)
        assert all(tensor.dtype == torch.float32 for tensor in rounded)
        distances.append(sum((one - other).norm() / other.norm() for one, other in zip(rounded, exact, strict=True)))
    assert 0 < distances[0] < 1.5 * distances[1]


def test_lora_keeps_x_and_z_for_the_gradients_and_nothing_else(model):
    apply_lora(model, r=3, alpha=7, dropout=0.0, targets=("up_proj",))
    layer, x, kept = model.blocks[0].mlp.up_proj, torch.randn(5, 12, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        layer(x)
    weights_ = {tensor.data_ptr() for tensor in layer.parameters()}
    assert [tuple(tensor.shape) for tensor in kept if tensor.data_ptr() not in weights_] == [(5, 12), (3, 5)]


def test_the_gradient_of_a_frozen_matrix_is_never_computed(model, tokens):
    """A third of a full step's work in the linear layers, and what LoRA saves."""
    from torch.utils.flop_counter import FlopCounterMode

    def flops():
        with FlopCounterMode(display=False) as counter:
            model(tokens).square().mean().backward()
        return counter.get_total_flops()

    full = flops()
    apply_lora(model, r=1, alpha=1, dropout=0.0)
    N, head, linears = 32, 12 * 61, 2 * 12 * 12 * 12
    # of the six thin products a layer, this counter does not see the two that are added in place
    thin = 4 * N * sum(sum(p.shape) for n, p in base_state_dict(model).items() if "proj.weight" in n)
    dx_of_the_first_layer = 3 * 2 * N * 12 * 12  # q, k and v of the first block read what does not learn
    assert full - flops() == 2 * N * (linears + head) + dx_of_the_first_layer - thin


@pytest.mark.parametrize("fused", [True, False])
def test_full_rank_lora_with_identity_A_takes_exactly_the_step_of_full_finetuning(monkeypatch, fused):
    """r = d_in, A = I and frozen, scaling 1, plain SGD: B moves as W would have moved, difference exactly 0. All
    numbers are small and whole: their sums are exact in whatever order they are made."""
    torch.manual_seed(0)
    full = nn.Linear(24, 10)
    for parameter in full.parameters():
        parameter.data = torch.randint(-8, 9, parameter.shape).float()
    linear = nn.Linear(24, 10)
    linear.load_state_dict(full.state_dict())
    lora = nn.Sequential(linear)
    monkeypatch.setattr(LoRALinear, "fused", fused)
    apply_lora(lora, r=24, alpha=24, dropout=0.0, targets=("0",))
    thin = lora[0].adapters["default"]
    thin.lora_A.data.copy_(torch.eye(24))
    thin.lora_A.requires_grad_(False)
    x, lr = torch.randint(-4, 5, (7, 24)).float(), 2.0**-4  # a power of two: lr * gradient is then exact
    for module, learns in ((full, full.weight), (lora, thin.lora_B)):
        module(x).square().sum().backward()
        torch.optim.SGD([learns], lr=lr).step()
    merge(lora)
    assert (full.weight - lora[0].base.weight).abs().max().item() == 0


def test_the_base_is_bit_equal_after_50_steps_with_weight_decay(train, base):
    """Trap 11: the fingerprint covers every tensor of the base; the adapter file holds the one taken after training."""
    before = fingerprint(plain_names(open_run(base).model()))
    _, run = train("lora", steps=50, weight_decay=0.1, dropout=0.1)
    assert (
        torch.load(run / "learned.pt", weights_only=True)["base_sha256"]
        == before
        == fingerprint(plain_names(open_run(base).model()))
    )
    assert all(tensor.any() for name, tensor in weights(run).items()), "A and B have both learned"


def test_an_adapter_file_holds_A_and_B_only_and_comes_back_as_it_was(train, base, tokens):
    """Trap 21."""
    results, run = train("lora", r=3, alpha=5.0, targets="v_proj,down_proj")
    model = open_run(base).model()
    load_adapter(model, run)
    state = lora_state_dict(model)
    assert state.keys() == weights(run).keys() and len(state) == 2 * 2 * 2
    assert all(torch.equal(tensor, weights(run)[name]) for name, tensor in state.items())
    assert isinstance(model.blocks[0].attn.v_proj, LoRALinear)
    assert model.blocks[0].attn.v_proj.adapters["default"].scaling == 5 / 3
    assert results["checkpoint_bytes"] == (run / "learned.pt").stat().st_size < 4 * results["trainable"] + 8000


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


def test_a_bias_that_somebody_lets_learn_has_its_gradient_and_is_not_lost_in_silence(model, tmp_path):
    """Fused as written out; but an adapter's file has no place for it, and says so."""
    tokens, gradients = torch.randint(61, (2, 9)), []
    apply_lora(model, 3, 6.0, 0.0)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or name.endswith("q_proj.base.bias"))
    for fused in (True, False):
        model.zero_grad()
        LoRALinear.fused = fused
        try:
            model(tokens).square().mean().backward()
        finally:
            LoRALinear.fused = True
        gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="have learned, but an adapter's file holds A and B only"):
        save_adapter(tmp_path, model, "base")

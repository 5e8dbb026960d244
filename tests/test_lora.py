"""LoRA: only A and B learn, the base stays as it was, and the product is what the paper says."""

import pytest
import torch
from conftest import weights
from torch import nn

from cli import Mistake
from model.fused_lora import FusedLoRA, fuse
from model.lora import LoRALinear, apply_lora, lora_state_dict, merge, unmerge
from model.switch import activate, base_state_dict, plain_names
from store.checkpoint import load_run, open_run, save
from store.learned import fill, fingerprint, load_adapter, read_learned

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
    """With PEFT as the reference."""
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
        lambda: save("nowhere", model, None),
        lambda: fill(model, {"weights": {}}, "nowhere"),
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
    with pytest.raises(Mistake, match=r"named 'sea' already, .* --r 3 --alpha 7.0 --targets down_proj,"):
        apply_lora(model, r=2, alpha=7, dropout=0.0, name="sea")


@pytest.mark.parametrize("targets, named", [(("q_proj", "wte"), "wte"), (("head",), "head"), ((), "none")])
def test_an_unknown_target_is_refused_by_name_and_the_tied_embedding_is_none(model, targets, named):
    """An adapter merged into the tied head would edit the embedding."""
    with pytest.raises(ValueError, match=f"q_proj.*got {named}$"):
        apply_lora(model, r=3, alpha=7, dropout=0.0, targets=targets)
    with pytest.raises(ValueError, match="rank r must be at least 1, got 0"):
        apply_lora(model, r=0, alpha=7, dropout=0.0)


def grown(model, tokens, fused):
    """Logits, and the gradients of what learns, by the hand-written passes or by the equation."""
    fuse(model, fused)
    model.zero_grad()
    logits = model(tokens)
    logits.square().mean().backward()
    return [logits, *(parameter.grad.clone() for parameter in model.parameters() if parameter.requires_grad)]


def test_a_lora_layer_is_its_base_plus_its_adapter(model):
    apply_lora(model, r=3, alpha=7)
    randomise(model)
    layer, x = model.blocks[0].mlp.up_proj, torch.randn(5, 12)
    thin = layer.adapters["default"]
    assert torch.equal(layer(x), layer.base(x) + thin(x))
    torch.testing.assert_close(thin(x), 7 / 3 * x @ thin.lora_A.T @ thin.lora_B.T)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("targets", [TARGETS, ("v_proj", "down_proj")])
def test_fused_lora_equals_the_equation_forward_and_backward(model, tokens, targets, dtype, tolerance):
    """Also where somebody lets a bias learn."""
    apply_lora(model.to(dtype), r=3, alpha=7, targets=targets)
    randomise(model)
    model.blocks[0].attn.v_proj.base.bias.requires_grad_(True)
    by_hand, by_autograd = (grown(model, tokens, fused) for fused in (True, False))
    assert len(by_hand) == 2 + 2 * 2 * len(targets)
    for one, other in zip(by_hand, by_autograd, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance / 100)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_fused_lora_equals_the_equation_as_nearly_as_the_precision_tells(model, tokens, precision):
    apply_lora(model, r=3, alpha=7)
    randomise(model)
    exact = grown(model, tokens, False)
    model.precision = precision
    distances = []
    for fused in (True, False):
        rounded = grown(model, tokens, fused)
        assert all(tensor.dtype == torch.float32 for tensor in rounded)
        distances.append(sum((one - other).norm() / other.norm() for one, other in zip(rounded, exact, strict=True)))
    assert 0 < distances[0] < 1.5 * distances[1]


def test_the_hand_written_pass_is_left_alone_where_it_does_not_hold(model, tokens, monkeypatch):
    """It has no gradient of W0, and no dropout."""
    calls, plain = [], FusedLoRA.apply
    monkeypatch.setattr(FusedLoRA, "apply", lambda *args: calls.append(1) or plain(*args))
    apply_lora(model, r=3, alpha=7, dropout=0.5)
    fuse(model)
    model.train()(tokens)
    assert not calls, "dropout"
    model.eval()(tokens)
    assert len(calls) == 12
    calls.clear()
    model.requires_grad_(True)
    model(tokens).square().mean().backward()
    assert not calls and all(parameter.grad is not None for parameter in model.parameters())


def test_lora_keeps_x_and_z_for_the_gradients_and_nothing_else(model):
    apply_lora(model, r=3, alpha=7, dropout=0.0, targets=("up_proj",))
    fuse(model)
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
    fuse(model)
    N, head, linears = 32, 12 * 61, 2 * 12 * 12 * 12
    # of the six thin products a layer, this counter does not see the two that are added in place
    thin = 4 * N * sum(sum(p.shape) for n, p in base_state_dict(model).items() if "proj.weight" in n)
    dx_of_the_first_layer = 3 * 2 * N * 12 * 12  # q, k and v of the first block read what does not learn
    assert full - flops() == 2 * N * (linears + head) + dx_of_the_first_layer - thin


@pytest.mark.parametrize("fused", [True, False])
def test_full_rank_lora_with_identity_A_takes_exactly_the_step_of_full_finetuning(fused):
    """r = d_in, A = I and frozen, scaling 1, plain SGD: B moves as W would have moved, difference exactly 0. All
    numbers are small and whole: their sums are exact in whatever order they are made."""
    torch.manual_seed(0)
    full = nn.Linear(24, 10)
    for parameter in full.parameters():
        parameter.data = torch.randint(-8, 9, parameter.shape).float()
    linear = nn.Linear(24, 10)
    linear.load_state_dict(full.state_dict())
    lora = nn.Sequential(linear)
    apply_lora(lora, r=24, alpha=24, dropout=0.0, targets=("0",))
    fuse(lora, fused)
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
    """The fingerprint covers every tensor of the base; the adapter file holds the one taken after training."""
    before = fingerprint(plain_names(open_run(base).model()))
    _, run = train("lora", steps=50, weight_decay=0.1, dropout=0.1)
    assert read_learned(run)["base_sha256"] == before == fingerprint(plain_names(open_run(base).model()))
    assert all(tensor.any() for name, tensor in weights(run).items()), "A and B have both learned"


def test_an_adapter_file_holds_A_and_B_only_and_comes_back_as_it_was(train, base, tokens):
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
    with pytest.raises(Mistake, match=r"was trained on .*base, not on this base"):
        load_adapter(model, run)
    learned, name = read_learned(run), "blocks.1.mlp.up_proj.lora_A"
    A = learned["weights"].pop(name)
    for change, sentence in [
        ({}, f"only the model has {name}"),
        ({name: A, "stranger": A}, "only what was saved has stranger"),
        ({name: A[:2]}, rf"{name} is \(3, 16\) in the model, \(2, 16\) in what was saved"),
    ]:
        with pytest.raises(Mistake, match=f"does not fit its base: {sentence}"):
            fill(open_run(base).model(), {**learned, "weights": learned["weights"] | change}, run)
    learned["attached"] = [{"apply": "magic"}]
    with pytest.raises(Mistake, match="'magic' is not known here: a later release wrote it"):
        fill(open_run(base).model(), learned, run)


def test_named_adapters_of_several_runs_stand_beside_one_base(train, base, tokens):
    runs = [train("lora", r=r, targets="q_proj, down_proj", learning_rate=0.05)[1] for r in (2, 3)]
    model, _ = load_run("", ",".join(map(str, runs)), torch.device("cpu"))
    for number, run in enumerate(runs):
        activate(model, f"adapter_{number}")
        torch.testing.assert_close(model(tokens), open_run(run).model()(tokens))
    for name in ("train", "a.b", ""):
        with pytest.raises(Mistake, match="cannot be named"):
            apply_lora(model, r=2, alpha=4, name=name)
    with pytest.raises(Mistake, match="got base"):
        apply_lora(model, r=2, alpha=4, targets=["base"], name="nested")

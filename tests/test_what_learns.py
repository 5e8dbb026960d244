"""What learns beside a frozen base: bottlenecks, prefixes and soft prompts are what their papers say."""

import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import weights

import evaluate
import export
import sample
import train_prefix
from cli import Mistake
from data.batches import collate
from data.examples import next_token, packed
from model.adapter import WithBottleneck, apply_adapter
from model.generate import KVCache, generate, padded
from model.gpt import CausalSelfAttention
from model.lora import apply_lora, merge
from model.prefix import apply_prefix, apply_soft_prompt, longest_row
from model.switch import activate, base_state_dict, plain_names
from run import device
from store.checkpoint import load_run, open_run
from store.learned import fingerprint, read_learned

P = 3  # positions of the prefixes here
BEFORE = [apply_prefix, apply_soft_prompt]
APPLY = {
    "lora": lambda model, **how: apply_lora(model, 2, 4, **how),
    "adapter": lambda model, **how: apply_adapter(model, 2, **how),
    "prefix": lambda model, **how: apply_prefix(model, P, **how),
    "prompt": lambda model, **how: apply_soft_prompt(model, P, **how),
}
METHODS = ["adapter", "prefix", "prompt"]
NAMES = {  # on disk, of the base in conftest: two layers of 16 channels, of 2 heads
    "adapter": {
        f"blocks.{n}.{part}.{name}": shape
        for n in range(2)
        for part in ("attn", "mlp")
        for name, shape in {
            "down.weight": (12, 16),
            "down.bias": (12,),
            "up.weight": (16, 12),
            "up.bias": (16,),
        }.items()
    },
    "prefix": {"prefix.keys_values": (2, 2, 2, 16, 8)},
    "prompt": {"prefix.embeddings": (1, 16, 16)},
}


@pytest.fixture
def tokens():
    return torch.randint(61, (2, 13), generator=torch.Generator().manual_seed(0))


def randomise(learns):
    for parameter in learns:
        torch.nn.init.normal_(parameter, std=0.3)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# ---- what the papers say ---------------------------------------------------------------------------------------------


def prepended(model, embeddings, tokens):
    """The logits of a soft prompt as the paper has it: its embeddings and those of the row become one row."""
    x = torch.cat([embeddings.expand(len(tokens), -1, -1), model.wte(tokens)], dim=1)
    x = x + model.wpe.weight[: x.size(1)]
    for block in model.blocks:
        x = block(x, None, None)
    return F.linear(model.ln_f(x), model.wte.weight)[:, embeddings.size(1) :]


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_a_soft_prompt_by_its_cache_is_the_prompt_prepended_to_the_embeddings(
    model, tokens, dtype, tolerance, monkeypatch
):
    """Logits and the gradient of the embeddings, relative to the largest."""
    [embeddings] = apply_soft_prompt(model.to(dtype), P)
    randomise([embeddings])
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor)  # logits are fp32 otherwise
    one, other = model(tokens), prepended(model, embeddings, tokens)
    assert (one - other).abs().max() < tolerance * other.abs().max()
    found = [torch.autograd.grad(logits.square().mean(), embeddings)[0] for logits in (one, other)]
    assert (found[0] - found[1]).abs().max() < tolerance * found[1].abs().max()


@pytest.mark.parametrize("apply", BEFORE)
def test_a_prefix_from_real_tokens_is_those_tokens_before_the_row(model, tokens, apply):
    torch.manual_seed(5)
    drawn = torch.randint(61, (1, P))
    expected = model(torch.cat([drawn.expand(2, -1), tokens], dim=1))[:, P:]
    torch.manual_seed(5)
    apply(model, P, from_tokens=True)
    torch.testing.assert_close(model(tokens), expected, rtol=1e-5, atol=1e-5)


def test_the_rows_positions_begin_behind_the_prefix_and_every_token_sees_all_of_it(model, tokens):
    """Each token's logits depend on each position of the prefix, and the first token stands at position P."""
    [keys_values] = apply_prefix(model, P)
    randomise([keys_values])
    for t in (0, 12):
        keys_values.grad = None
        model(tokens)[0, t].square().sum().backward()
        assert (keys_values.grad.abs().sum((0, 1, 2, 4)) > 0).all()
    model.wpe.requires_grad_(True)
    model(tokens[:, :1]).square().sum().backward()
    assert model.wpe.weight.grad.abs().sum(1).nonzero().flatten().tolist() == [P]


def test_a_bottleneck_is_h_plus_up_of_gelu_of_down_and_at_first_nothing_changes(model, tokens):
    before = model(tokens)
    learns = apply_adapter(model, 2)
    assert torch.equal(model(tokens), before), "up is zero"
    randomise(learns)
    place, x = model.blocks[0].mlp, torch.randn(5, 12)
    h, b = place.base(x), place.adapters["default"]
    inside = F.gelu(h @ b.down.weight.T + b.down.bias)
    torch.testing.assert_close(place(x), h + inside @ b.up.weight.T + b.up.bias)
    assert sum(p.numel() for p in learns) == 2 * 2 * (2 * 12 * 2 + 12 + 2)


def test_bottlenecks_can_be_after_the_mlp_alone(model):
    apply_adapter(model, 2, mlp_only=True)
    found = [name for name, module in model.named_modules() if isinstance(module, WithBottleneck)]
    assert found == ["blocks.0.mlp", "blocks.1.mlp"]


# ---- the same in every way of computing it ---------------------------------------------------------------------------

PROMPTS = [[5, 17, 3, 8, 60], [9], [1, 2, 3, 4, 5, 6, 7, 8, 9]]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_cached_equals_uncached_with_ragged_prompts(model, method, precision, fused, monkeypatch):
    monkeypatch.setattr(CausalSelfAttention, "fused", fused)
    randomise(APPLY[method](model))
    model.precision, tolerance = precision, 1e-4 if precision == torch.float32 else 3e-2
    model.eval()
    rows = [list(prompt) for prompt in PROMPTS]
    cache = KVCache(model, [len(row) for row in rows], 16)
    tokens, last = padded(rows, torch.device("cpu"))
    with torch.no_grad():
        for _ in range(longest_row(model) - len(PROMPTS[2])):
            for row, cached in zip(rows, model(tokens, last, cache=cache), strict=True):
                expected = model(torch.tensor([row]))[0, -1]
                assert (cached - expected).norm() < tolerance * expected.norm()
                row.append(int(cached.argmax()))
            tokens, last = torch.tensor([row[-1:] for row in rows]), torch.ones(len(rows), 1, dtype=torch.bool)


@pytest.mark.parametrize("apply", BEFORE)
def test_rows_of_a_batch_are_written_as_alone_also_past_the_longest_row(model, apply):
    randomise(apply(model, P))
    for prompt, new in zip(PROMPTS, generate(model, PROMPTS, 20), strict=True):
        row = list(prompt)
        for _ in range(20):
            row.append(int(model(torch.tensor([row[-13:]]))[0, -1].argmax()))
        assert new == row[len(prompt) :]


def test_a_soft_prompt_is_computed_once_for_a_text_and_not_for_every_token(model, monkeypatch):
    calls, forward = [], CausalSelfAttention.forward
    monkeypatch.setattr(CausalSelfAttention, "forward", lambda *how: calls.append(how[1].shape) or forward(*how))
    apply_soft_prompt(model, P)
    generate(model, [[1, 2, 3, 4, 5]] * 4, 5)
    assert calls.count((1, P, 12)) == 2, "once in each of two layers, at batch 1"


def step(model, examples):
    """The NLL of every graded token, in no order, and the gradients of their sum."""
    model.zero_grad()
    inputs, targets, graded, positions = collate(examples)
    nll = -model(inputs, graded, positions).log_softmax(-1).gather(-1, targets[graded].unsqueeze(-1)).squeeze(-1)
    nll.sum().backward()
    return nll.sort().values, gradients(model)


def assert_same_step(one, other, tolerance=1e-5):
    for a, b in zip((one[0], *one[1].values()), (other[0], *other[1].values()), strict=True):
        assert (a - b).abs().max() <= tolerance * b.abs().max()


@pytest.fixture
def short():
    rng = np.random.default_rng(0)
    return [next_token(rng.integers(0, 61, n), np.arange(n) >= n // 2) for n in rng.integers(4, 9, 12)]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_packed_equals_separate(model, short, method, fused, monkeypatch):
    monkeypatch.setattr(CausalSelfAttention, "fused", fused)
    randomise(APPLY[method](model))
    rows = packed(short, 13)
    assert len(rows) < len(short)
    assert_same_step(step(model, rows), step(model, short))


@pytest.mark.parametrize("method", METHODS)
def test_checkpointed_equals_plain_and_bf16_nearly(model, short, method):
    randomise(APPLY[method](model))
    plain = step(model, short)
    model.checkpoint_activations = True
    assert_same_step(step(model, short), plain, 1e-6)
    model.precision = torch.bfloat16
    assert_same_step(step(model, short), plain, 0.1)
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


@pytest.mark.parametrize("method", METHODS)
def test_it_learns(model, short, method):
    """In 30 steps, to say the same word whatever it reads: by 0.15 nats at least, though the model is random."""
    examples = [example._replace(targets=np.full_like(example.targets, 7)) for example in short]
    optimizer, losses = torch.optim.AdamW(APPLY[method](model), lr=0.1), []
    for _ in range(30):
        losses.append(step(model, examples)[0].mean().item())
        optimizer.step()
    assert losses[-1] < losses[0] - 0.15


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")
def test_compiled_blocks_compute_what_plain_ones_do(model, short):
    """With a soft prompt, whose own row is not compiled, and bottlenecks."""
    randomise([*apply_soft_prompt(model, P), *apply_adapter(model, 2)])
    plain, answers = step(model, short), generate(model, PROMPTS, 6)
    model.compile_model()
    torch._dynamo.utils.counters.clear()
    assert_same_step(step(model, short), plain)
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"] and 0 < counters["stats"]["unique_graphs"] <= 3, "blocks, and the loss"
    assert generate(model, PROMPTS, 6) == answers


# ---- the base is kept, and the switch --------------------------------------------------------------------------------


def test_several_kinds_stand_beside_one_base_one_acts_at_a_time_and_off_they_are_the_base(model, tokens):
    bare, base = model(tokens), fingerprint(plain_names(model))
    alone = {}
    for name, apply in APPLY.items():
        randomise(apply(model, name=name))
        alone[name] = model(tokens)
    assert len(torch.stack([bare, *alone.values()]).flatten(1).unique(dim=0)) == 5
    for name in (*APPLY, None, *reversed(APPLY)):
        activate(model, name)
        assert torch.equal(model(tokens), alone.get(name, bare))
        learning = [path for path, p in model.named_parameters() if p.requires_grad]
        assert all(f".adapters.{name}." in path for path in learning) and bool(learning) == bool(name)
    assert fingerprint(plain_names(model, "")) == fingerprint(base_state_dict(model)) == base


@pytest.mark.parametrize("method", METHODS)
def test_only_what_is_new_learns_and_the_base_is_bit_equal_after_training(train, base, method):
    before = fingerprint(plain_names(open_run(base).model()))
    results, run = train(f"{method}_sft", steps=20, weight_decay=0.1, dropout=0.1, pack=True)
    assert {name: tuple(tensor.shape) for name, tensor in weights(run).items()} == NAMES[method]
    assert results["trainable"] == sum(tensor.numel() for tensor in weights(run).values())
    assert results["checkpoint_bytes"] < 4 * results["trainable"] + 12000
    assert read_learned(run)["base_sha256"] == before == fingerprint(plain_names(open_run(base).model()))


@pytest.mark.parametrize("method", METHODS)
def test_what_was_saved_comes_back_and_learns_on_with_the_same_settings_only(train, method, tokens, base):
    setting = {"adapter": {"width": 5, "mlp_only": True}}.get(method, {"length": 5})
    flags = {"adapter": "--width 5 --mlp-only"}.get(method, "--length 5")
    _, first = train(method, learning_rate=0.05, **setting)
    model, _ = load_run("", str(first), torch.device("cpu"))
    torch.testing.assert_close(model(tokens), open_run(first).model()(tokens))
    activate(model, None)
    assert torch.equal(model(tokens), load_run(base, "", torch.device("cpu"))[0](tokens))
    with pytest.raises(Mistake, match=f"which goes on learning with {flags}$"):
        train(method, init_from=str(first))
    _, still = train(method, init_from=str(first), learning_rate=1e-12, **setting)
    _, second = train(method, init_from=str(first), learning_rate=0.05, **setting)
    for name, tensor in weights(first).items():
        torch.testing.assert_close(weights(still)[name], tensor)
        assert not torch.allclose(weights(second)[name], tensor)
    assert read_learned(second)["base"] == base and len(read_learned(second)["attached"]) == 1


@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_judged_by_evaluate_as_its_script_has_judged_it(train, method, text, capsys):
    results, run = train(method)
    capsys.readouterr()
    evaluate.main(evaluate.Config(adapter=str(run), text=text, device="cpu"))
    assert f"NLL {results['held_out_nll']:.4f} nats a token" in capsys.readouterr().out
    longest = 192 if method == "adapter" else 176
    with pytest.raises(Mistake, match=f"--block-size 193 is beyond the {longest} tokens that the model can read"):
        evaluate.main(evaluate.Config(adapter=str(run), text=text, device="cpu", block_size=193))


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_is_resumed_ends_as_one_that_was_not_stopped(train, method, tmp_path, monkeypatch):
    _, whole = train(method, steps=4)
    log = train_prefix.Session.log
    monkeypatch.setattr(train_prefix.Session, "log", lambda session, n, *how: log(session, n, *how) if n < 2 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(method, steps=4, save_every=2, out=tmp_path / "again")
    monkeypatch.undo()
    train(method, steps=4, out=tmp_path / "again", resume=True)
    assert all(torch.equal(tensor, weights(whole)[name]) for name, tensor in weights(tmp_path / "again").items())


def test_lora_trained_on_a_prefix_leaves_it_as_it_was_and_both_are_saved(train, base, tokens):
    _, prefix = train("prefix", learning_rate=0.05)
    _, run = train("lora", init_from=str(prefix), block_size=176, r=2, learning_rate=0.05)
    name = "prefix.keys_values"
    assert torch.equal(weights(run)[name], weights(prefix)[name]) and len(weights(run)) == 1 + 2 * 2 * 6
    assert [note["apply"] for note in read_learned(run)["attached"]] == ["prefix", "lora"]
    beside, _ = load_run("", str(run), torch.device("cpu"))
    torch.testing.assert_close(beside(tokens), open_run(run).model()(tokens))
    with pytest.raises(Mistake, match="rows of 192 tokens do not fit"):
        train("lora", init_from=str(prefix), r=2)
    _, full = train("sft", init_from=str(prefix), block_size=176)
    assert name in weights(full) and (full / "model.pt").exists()
    assert open_run(full).model()(tokens).isfinite().all()


def test_sample_lets_adapters_of_all_kinds_answer_in_turn(train, capsys):
    runs = [str(train(f"{method}_sft")[1]) for method in ("lora", *METHODS)]
    capsys.readouterr()
    how = {"instruction": "Repeat the word.", "input": "sea", "temperature": 0.0, "max_new_tokens": 9, "device": "cpu"}
    sample.main(sample.Config(adapter=",".join(runs), **how))
    together = capsys.readouterr().out
    for run in runs:
        sample.main(sample.Config(adapter=run, **how))
    alone = capsys.readouterr().out.splitlines()
    assert together.splitlines() == [f"{run}: {answer}" for run, answer in zip(runs, alone, strict=True)]


def test_the_switch_between_kernels_reaches_attention_behind_a_bottleneck(model, monkeypatch):
    apply_adapter(model, 2)
    monkeypatch.setattr(device, "fused_attention_pays", lambda *how: False)
    device.set_up(model, train_prefix.Config(init_from="", precision="fp32"), torch.device("cpu"))
    assert [m.fused for m in model.modules() if isinstance(m, CausalSelfAttention)] == [False, False]


@pytest.mark.parametrize("method", METHODS)
def test_show_batch_lists_what_learns(train, method, capsys):
    train(method, show_batch=True)
    learns, frozen = capsys.readouterr().out.split("learns: ")[1].split("frozen: ")
    names = {name.replace("blocks.0", "blocks.*").replace("blocks.1", "blocks.*") for name in NAMES[method]}
    assert {line.split()[0] for line in learns.splitlines()[1:] if line} == names
    assert "wte.weight" in frozen and not any(name in frozen for name in names)


# ---- refused, in one sentence ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("apply", BEFORE)
def test_a_row_that_does_not_fit_behind_the_prefix_is_refused_with_numbers(model, apply, train):
    apply(model, P)
    assert longest_row(model) == 13 and model(torch.zeros(1, 13, dtype=torch.long)).isfinite().all()
    with pytest.raises(Mistake, match=r"rows of 14 tokens do not fit: of the 16 .* takes 3; give --block-size 13"):
        model(torch.zeros(1, 14, dtype=torch.long))
    activate(model, None)
    assert model(torch.zeros(1, 16, dtype=torch.long)).size(1) == 16
    with pytest.raises(Mistake, match=r"rows of 180 tokens do not fit: .*give --block-size 176"):
        train("prefix", block_size=180)
    for length in (0, 16):
        with pytest.raises(Mistake, match=f"from 1 to 15 of the model's 16 positions: {length}"):
            apply(model, length)


def test_what_cannot_be_attached_is_refused(model):
    apply_prefix(model, P)
    with pytest.raises(Mistake, match="named 'default' stands before the rows already"):
        apply_soft_prompt(model, P)
    with pytest.raises(Mistake, match=r"goes on learning with --length 3$"):
        apply_prefix(model, 4)
    with pytest.raises(Mistake, match="width must be at least 1, got 0"):
        apply_adapter(model, 0)
    apply_adapter(model, 2)
    for targets in (["down"], ["up"]):
        with pytest.raises(Mistake, match=f"got {targets[0]}"):
            apply_lora(model, 2, 4, targets=targets)
    model.config.causal = False
    with pytest.raises(Mistake, match="sees both sides"):
        apply_prefix(model, P, name="another")


def test_lora_is_merged_and_what_cannot_be_merged_says_so(model, tokens, train, tmp_path):
    randomise(apply_lora(model, 2, 4, name="lora"))
    expected = model(tokens)
    for method in METHODS:
        APPLY[method](model, name=method)
        with pytest.raises(Mistake, match="only LoRA can be merged"):
            merge(model)
    activate(model, "lora")
    merge(model)
    torch.testing.assert_close(model(tokens), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(Mistake, match="unmerge it first"):
        apply_adapter(model, 2, name="late")
    _, run = train("prompt")
    with pytest.raises(Mistake, match="only LoRA can be merged"):
        export.main(export.Config(from_=str(run), out=str(tmp_path / "out"), merge=True))

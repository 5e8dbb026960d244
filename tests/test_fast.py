"""Every fast path computes what the plain one does: packing, checkpointing, precision, compiling."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import metrics, weights

import train_pretrain
import train_sft
from cli import Mistake, command_line
from data.batches import Batches, collate
from data.examples import Reading, from_instructions, graded_everywhere, next_token, packed
from data.tokenizer import load_tokenizer
from model import gpt
from model.generate import generate
from model.gpt import CausalSelfAttention
from model.lora import apply_lora, lora_state_dict
from run import device
from run.device import choose_precision, cpu_bf16_units, fused_attention_pays

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# ---- packing -----------------------------------------------------------------------------------------------------


@pytest.fixture
def short():
    """Twenty examples of 3 to 8 positions, of tokens below 61, the first half of each not graded."""
    rng = np.random.default_rng(0)
    examples = []
    for n in rng.integers(4, 10, 20):
        examples.append(next_token(rng.integers(0, 61, n), np.arange(n) >= n // 2))
    return examples


def nll_of(model, examples):
    """The NLL of every graded token, in no order, and the gradients of their sum."""
    model.zero_grad()
    inputs, targets, graded, positions = collate(examples)
    nll = -model(inputs, graded, positions).log_softmax(-1).gather(-1, targets[graded].unsqueeze(-1)).squeeze(-1)
    nll.sum().backward()
    return nll.sort().values, gradients(model)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("grade", [list, graded_everywhere])
def test_packed_equals_separate(model, short, grade, fused, monkeypatch):
    """Every graded token has the loss that it has alone, and the gradients are the same."""
    monkeypatch.setattr(CausalSelfAttention, "fused", fused)
    examples = grade(short)
    rows = packed(examples, 16)
    assert len(rows) < 10 and max(len(row.inputs) for row in rows) > 14
    packed_nll, packed_gradients = nll_of(model, rows)
    for example in examples:
        model.zero_grad()
        alone, _ = nll_of(model, [example])
        for value in alone:
            assert (packed_nll - value).abs().min() < 1e-5
    nll, expected = nll_of(model, examples)
    torch.testing.assert_close(packed_nll, nll)
    for name, gradient in expected.items():
        torch.testing.assert_close(packed_gradients[name], gradient, rtol=1e-4, atol=1e-5)


def test_no_example_of_a_packed_row_sees_another(model, short):
    """Another example's tokens change, this one's logits stay to the bit."""
    row = max(packed(short, 16), key=lambda row: (row.positions == 0).sum())
    starts = np.flatnonzero(row.positions == 0)
    assert len(starts) >= 3
    inputs, _, _, positions = collate([row])
    logits = model(inputs, positions=positions)
    changed = inputs.clone()
    changed[0, : starts[1]] = (changed[0, : starts[1]] + 1) % 61
    changed_logits = model(changed, positions=positions)
    assert torch.equal(logits[:, starts[1] :], changed_logits[:, starts[1] :])
    assert not torch.equal(logits[:, : starts[1]], changed_logits[:, : starts[1]])


def test_packing_loses_no_example_and_nothing_of_one_and_fills_rows(instructions):
    train, _ = from_instructions(instructions, Reading(load_tokenizer("bytes"), 192, 0.1))
    for examples in (train, graded_everywhere(train)):
        rows = packed(examples, 192)
        found = []
        for row in rows:
            assert len(row.inputs) == len(row.targets) == len(row.graded) == len(row.positions) <= 192
            cuts = np.flatnonzero(row.positions == 0)[1:]
            parts = zip(*(np.split(part, cuts) for part in row[:3]), strict=True)
            found += [[part.tolist() for part in example] for example in parts]
        assert sorted(found) == sorted([part.tolist() for part in example[:3]] for example in examples)
    best = -(-sum(len(example.inputs) for example in train) // 192)
    assert len(rows) <= best + 1


@pytest.mark.parametrize("method", ["sft", "lora_sft"])
def test_a_step_on_packed_rows_is_the_step_on_padded_ones(train, method):
    """Through the scripts: one step over all examples, one a row or several."""
    _, padded = train(method, steps=1, batch_size=9)
    _, rows = train(method, steps=1, batch_size=9, pack=True)
    for column in ("loss", "grad_norm", "graded_tokens"):
        assert float(metrics(padded, column)[0]) == pytest.approx(float(metrics(rows, column)[0]), rel=1e-5)
    for name, tensor in weights(padded).items():
        torch.testing.assert_close(tensor, weights(rows)[name], rtol=0, atol=2e-5)


def test_rows_that_are_not_packed_need_no_mask(train, monkeypatch):
    masks = []
    plain = gpt.fused_attention
    monkeypatch.setattr(
        gpt, "fused_attention", lambda q, k, v, visible, p: masks.append(visible) or plain(q, k, v, visible, p)
    )
    monkeypatch.setattr(train_sft, "generate", lambda *args, **how: [[]])
    train("sft")
    assert masks and all(mask is None for mask in masks)
    masks.clear()
    train("sft", pack=True)
    assert any(mask is not None and mask.dim() == 4 for mask in masks)


def test_an_example_longer_than_a_row_is_refused(short):
    with pytest.raises(ValueError, match="an example of 8 positions does not fit a row of 5"):
        packed(short, 5)


def test_packing_a_text_is_refused(train):
    with pytest.raises(Mistake, match="--pack is for --instructions"):
        train("lora", pack=True)


# ---- activation checkpointing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [False, True])
def test_checkpointed_gradients_are_the_same_also_with_a_frozen_base(model, frozen):
    """Reentrant checkpointing would leave a model with a frozen embedding without any gradient."""
    tokens = torch.randint(61, (3, 16))
    if frozen:
        apply_lora(model, r=3, alpha=7, dropout=0.0)
        for tensor in lora_state_dict(model).values():
            torch.nn.init.normal_(tensor, std=0.3)
    found = []
    for checkpointed in (False, True):
        model.checkpoint_activations = checkpointed
        model.zero_grad()
        model(tokens).square().mean().backward()
        found.append(gradients(model))
    assert found[0].keys() == found[1].keys() and len(found[0]) == (24 if frozen else 36)
    assert all(gradient.any() for gradient in found[1].values())
    for name, gradient in found[0].items():
        assert torch.equal(gradient, found[1][name]), name


def test_checkpointing_keeps_only_what_enters_a_block(model):
    """Counted in bytes that wait for the backward pass."""
    tokens, kept = torch.randint(61, (3, 16)), {}

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    bytes_of = []
    for checkpointed in (False, True):
        model.checkpoint_activations, _ = checkpointed, kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.hidden(tokens)
        own = {parameter.data_ptr() for parameter in model.parameters()}
        bytes_of.append(sum(n for pointer, n in kept.items() if pointer not in own))
    assert bytes_of[1] < bytes_of[0] / 5


@pytest.mark.parametrize("method", ["pretrain", "sft", "lora", "lora_sft"])
def test_a_checkpointed_run_is_bit_equal_also_with_dropout(train, method):
    _, plain = train(method, dropout=0.1)
    _, checkpointed = train(method, dropout=0.1, checkpoint_activations=True)
    assert all(torch.equal(tensor, weights(checkpointed)[name]) for name, tensor in weights(plain).items())


# ---- precision ---------------------------------------------------------------------------------------------------


def on_a_gpu_of(capability, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    return torch.device("cuda")


def test_auto_precision_is_what_the_device_does_well(monkeypatch):
    dtype_of = lambda device, n_embd: choose_precision("auto", device, n_embd)[0]  # noqa: E731
    assert dtype_of(on_a_gpu_of((8, 0), monkeypatch), 64) == torch.bfloat16
    assert dtype_of(on_a_gpu_of((9, 0), monkeypatch), 64) == torch.bfloat16
    assert dtype_of(on_a_gpu_of((7, 5), monkeypatch), 64) == torch.float16
    assert dtype_of(torch.device("mps"), 768) == torch.float32
    for units in ({"amx_bf16": True}, {"avx512_bf16": True}):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda units=units: units, raising=False)
        assert dtype_of(CPU, 768) == torch.bfloat16
        assert dtype_of(CPU, 128) == torch.float32
        assert choose_precision("fp32", CPU, 768) == (torch.float32, "as asked")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": False}, raising=False)
    assert choose_precision("auto", CPU, 768) == (torch.float32, "it is not known to be fast in bf16")
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert cpu_bf16_units() == []


def test_attention_is_written_out_in_bf16_on_a_cpu_without_amx_and_rows_are_short(train, monkeypatch, base):
    written_out = []
    plain = gpt.written_out_attention
    monkeypatch.setattr(gpt, "written_out_attention", lambda *args: written_out.append(1) or plain(*args))
    for units, precision, expected in [("amx_bf16", "bf16", False), ("avx512_bf16", "bf16", True), ("", "fp32", False)]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda units=units: {units: True}, raising=False)
        written_out.clear()
        train("sft", precision=precision)
        assert bool(written_out) is expected
    assert not fused_attention_pays(torch.bfloat16, CPU, 256)
    assert fused_attention_pays(torch.bfloat16, CPU, 257)
    assert fused_attention_pays(torch.bfloat16, torch.device("cuda"), 256)


@pytest.mark.parametrize("method", ["pretrain", "sft", "lora_sft"])
def test_a_lower_precision_learns_as_fp32_does_and_saves_fp32(train, method, capsys):
    settings = {"steps": 30, "learning_rate": 3e-3}
    _, exact = train(method, precision="fp32", **settings)
    for precision in ("bf16", "fp16"):
        _, lower = train(method, precision=precision, **settings)
        assert json.loads((lower / "config.json").read_text())["precision"] == precision
        assert f"on cpu in {precision} (as asked)" in capsys.readouterr().out
        losses = [[float(loss) for loss in metrics(run, "loss")] for run in (exact, lower)]
        assert losses[0] != losses[1], "it did compute otherwise"
        assert losses[0][-1] < losses[0][0] - 0.1
        assert losses[1] == pytest.approx(losses[0], abs=0.02)
        assert all(tensor.dtype == torch.float32 for tensor in weights(lower).values())


def test_logits_are_fp32_in_any_precision_and_matrix_products_are_not(model):
    model.precision = torch.bfloat16
    seen = []
    model.blocks[0].mlp.up_proj.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    assert model(torch.randint(61, (2, 9))).dtype == torch.float32
    assert seen == [torch.bfloat16]


def test_in_fp16_a_step_that_overflows_is_left_out_and_the_next_one_counts(train, monkeypatch):
    """The scale's own start, 65,536, made far too large."""

    class TooLarge(device.GradientScale):
        def __init__(self, model):
            super().__init__(model)
            self.scale = 2.0**31

    monkeypatch.setattr(device, "GradientScale", TooLarge)
    _, run = train("sft", precision="fp16", steps=20)
    norms = metrics(run, "grad_norm")
    skipped = sum(norm in ("inf", "nan") for norm in norms)
    assert 0 < skipped < 17 and norms[-1] not in ("inf", "nan")


def test_in_fp16_a_gradient_that_never_becomes_finite_ends_the_run(train, monkeypatch):
    plain = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *args: plain(*args) * float("nan"))
    with pytest.raises(Mistake, match=r"step 16 has loss [\d.]+ and gradient nan"):
        train("sft", precision="fp16", steps=20)
    with pytest.raises(Mistake, match=r"step 0 has loss [\d.]+ and gradient nan"):
        train("sft", precision="fp32", steps=20)


def test_an_unknown_precision_is_refused(train):
    with pytest.raises(Mistake, match="--precision must be auto, fp32, bf16 or fp16, got 'int8'"):
        train("sft", precision="int8")


# ---- compiling ---------------------------------------------------------------------------------------------------


def test_nothing_of_ours_imports_the_compiler_unless_asked():
    """A second of each start. (PyTorch's own optimizers import it when one is made.)"""
    code = """
import sys, torch, train_pretrain, train_sft, train_lora, evaluate, sample
from model.gpt import GPT, GPTConfig
from model.generate import generate
from model.lora import apply_lora
from store.checkpoint import open_run
open_run("data/builtin/base").model()
model = GPT(GPTConfig(61, 16, 1, 2, 12))
apply_lora(model, 2, 4, 0.0)
model(torch.ones(2, 9, dtype=torch.long)).sum().backward()
generate(model, [[1, 2], [3]], 4)
print("compiler:", "torch._dynamo" in sys.modules, "plots:", "matplotlib" in sys.modules)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert out == "compiler: False plots: False\n"


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")
def test_compiled_blocks_compute_what_plain_ones_do_in_rows_of_any_length(model):
    apply_lora(model, r=3, alpha=7, dropout=0.0)
    for tensor in lora_state_dict(model).values():
        torch.nn.init.normal_(tensor, std=0.3)

    def learned():
        model.zero_grad()
        for T in (16, 12, 9):
            model.hidden(tokens[:, :T]).square().mean().backward()
        return gradients(model)

    tokens = torch.randint(61, (3, 16))
    plain, answers = learned(), generate(model, [[1, 2, 3], [4]], 9)
    model.compile_model()
    torch._dynamo.utils.counters.clear()
    for name, gradient in learned().items():
        torch.testing.assert_close(gradient, plain[name], rtol=1e-4, atol=1e-6)
    counters = torch._dynamo.utils.counters
    # of a fixed length and of any, for an input that has gradients and for one that has none
    assert not counters["graph_break"] and counters["stats"]["unique_graphs"] <= 4
    graphs = counters["stats"]["unique_graphs"]
    assert generate(model, [[1, 2, 3], [4]], 9) == answers
    assert counters["stats"]["unique_graphs"] == graphs, "rows that grow are not compiled"


def test_compiling_without_a_compiler_is_refused_before_the_run_begins(train, monkeypatch, tmp_path):
    from torch._inductor import cpp_builder, exc

    def none_there():
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none_there)
    with pytest.raises(Mistake, match="needs a C\\+\\+ compiler"):
        train("lora_sft", compile=True)
    assert not any((folder / "config.json").exists() for folder in tmp_path.iterdir())


def test_the_flag_compiles_every_block_and_nothing_is_compiled_without_it(train, monkeypatch):
    compiled, compile_ = [], torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda part: compiled.append(part.__qualname__) or compile_(part, backend="eager")
    )
    train("lora_sft")
    assert compiled == []
    train("lora_sft", compile=True)
    assert sorted(compiled) == ["Module._call_impl", "Module._call_impl", "log_p_to_compile"], (
        "two blocks, and the loss"
    )


def test_padding_of_built_in_instructions_is_below_5_percent():
    root = ROOT / "data" / "builtin"
    tokenizer = load_tokenizer(str(root / "tokenizer.tiktoken"))
    train, _ = from_instructions(root / "instructions.json", Reading(tokenizer, 128, 0.1))
    batches = Batches(train, batch_size=8, micro_batches=1, seed=0)
    positions = sum(batches.of_step(step)[0].inputs.numel() for step in range(batches.per_epoch))
    assert 1 - sum(len(example.inputs) for example in train) / positions < 0.05


# ---- devices -----------------------------------------------------------------------------------------------------


def test_an_apple_gpu_that_cannot_do_all_of_it_leaves_the_work_to_the_cpu_in_words(monkeypatch, capsys):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.choose_device("auto") == CPU, "there is none here, so its first tensor fails"
    assert "the CPU computes, since the Apple GPU cannot do all of it: " in capsys.readouterr().out
    monkeypatch.setattr(device, "generate", lambda *args, **settings: [][0])
    with pytest.raises(IndexError):
        device.missing_on(CPU)  # a bug is no missing operator


def test_what_the_cpu_has_is_all_that_training_and_sampling_need():
    assert device.missing_on(CPU) == ""


def test_an_operator_that_mps_lacks_in_mid_run_is_a_sentence(text, base, tmp_path, monkeypatch, capsys):
    def lacks(*args):
        raise NotImplementedError("The operator 'aten::x' is not currently implemented for the MPS device.")

    monkeypatch.setattr(train_pretrain, "token_nll", lacks)
    flags = f"train_pretrain.py --text {text} --init-from {base} --out {tmp_path / 'run'} --device cpu"
    monkeypatch.setattr(sys, "argv", flags.split())
    with pytest.raises(SystemExit):
        command_line(train_pretrain.main, train_pretrain.Config)
    assert "for the MPS device. Set PYTORCH_ENABLE_MPS_FALLBACK=1, or give --device cpu" in capsys.readouterr().err

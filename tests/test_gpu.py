"""What a GPU, an Apple GPU and Windows need, held without one: fakes stand for what is not here (docs/gpu.md)."""

import contextlib
import functools
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from conftest import metrics, most_held, weights
from torch.profiler import ProfilerActivity, profile
from torch.utils import backend_registration

import train_sft
from benchmarks import measure
from benchmarks.gpu import cost, page, same
from cli import Mistake
from data import files
from data.batches import Batch, collate
from data.examples import n_to_judge_by, next_token
from model import gpt, large_head
from model.gpt import GPT, GPTConfig
from model.lora import apply_lora
from run import device, fits, memory, plan, ranks, resume
from run.session import Session

ROOT = Path(__file__).parent.parent
CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))
CONFIG = SimpleNamespace(
    checkpoint_activations=False, compile=False, shard=False, dropout=0.0, batch_size=8, block_size=1024
)


def config(**settings):
    return SimpleNamespace(**{**vars(CONFIG), **settings})


# ---- the head in chunks, and padded ------------------------------------------------------------------------------


@pytest.fixture
def chunks_of_7(monkeypatch):
    for module in (large_head, device):
        monkeypatch.setattr(module, "CHUNK", 7)


def nll_of(model, batch):
    """The scripts' lines."""
    inputs, targets, graded, positions = batch
    log_p = model(inputs, graded, positions).log_softmax(-1)
    return -log_p.gather(-1, targets[graded].unsqueeze(-1)).squeeze(-1)


def loss_and_gradients(model, batch):
    model.zero_grad()
    nll = nll_of(model, batch)
    nll.sum().backward()
    return nll.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def batch():
    rows = torch.randint(61, (4, 17), generator=torch.Generator().manual_seed(0)).numpy()
    return collate([next_token(row, row % 4 > 0) for row in rows])


@pytest.mark.parametrize("learns", ["all", "LoRA"])
@pytest.mark.parametrize("form", ["head_in_chunks", "head_padded"])
def test_both_forms_of_the_head_compute_what_the_plain_one_does(model, batch, form, learns, chunks_of_7, monkeypatch):
    if learns == "LoRA":
        apply_lora(model, 3, 7.0, 0.0)
    heights, linear = [], large_head.F.linear
    plain_loss, plain = loss_and_gradients(model, batch)
    setattr(model, form, True)
    monkeypatch.setattr(
        large_head.F, "linear", lambda *args: heights.append((len(args[0]), len(args[1]))) or linear(*args)
    )
    logits, computed = model.logits, []
    monkeypatch.setattr(model, "logits", lambda h: computed.append(len(h)) or logits(h))
    loss, found = loss_and_gradients(model, batch)
    torch.testing.assert_close(loss, plain_loss, rtol=1e-6, atol=1e-6)
    assert found.keys() == plain.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, plain[name], rtol=1e-5, atol=1e-5)
    n = int(batch.graded.sum())
    if form == "head_padded":
        assert (n, 64) in heights, "61 tokens in the vocabulary"
    else:
        assert max(computed) == 7 and sum(computed) == 2 * n, "each chunk twice"


def test_chunks_of_a_compiled_head_are_chunks_and_compiled(model, batch, chunks_of_7):
    computed = []
    model.head_in_chunks = True
    model.compiled_log_p = lambda model, h, targets: computed.append(len(h)) or large_head.log_p(model, h, targets)
    loss_and_gradients(model, batch)
    assert max(computed) == 7 and sum(computed) == 2 * int(batch.graded.sum())


def test_logits_of_few_positions_are_the_plain_tensor(model, batch):
    """What one steps through; and what generate, and a picture of likeliest tokens, read."""
    model.head_in_chunks = True
    assert isinstance(model(batch.inputs, batch.graded), torch.Tensor)


@pytest.fixture
def only_traced(monkeypatch):
    """What is compiled is traced, and runs as it is: making C++ of it takes seconds."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch._dynamo.reset()


CASES = [("sft", "fp32"), ("sft", "fp16"), ("dpo", "fp32")]


@pytest.mark.parametrize(
    "script, precision, flags",
    [(*case, {flag}) for case in CASES for flag in ("checkpoint_activations", "compile")]
    + [("sft", "fp16", {"checkpoint_activations", "compile"})],
)
def test_a_run_whose_logits_are_for_the_loss_alone_has_the_losses_of_one_with_all(
    train, flags, script, precision, chunks_of_7, only_traced, monkeypatch, capsys
):
    """fp16 too, whose gradients are scaled where they enter the logits; and DPO, whose reference is a copy."""
    settings = {"steps": 3, "learning_rate": 3e-3, "precision": precision}
    _, plain = train(script, **settings)
    assert "at a time" not in capsys.readouterr().out
    at_once, logits = {True: [], False: []}, gpt.GPT.logits  # by whether something learns
    monkeypatch.setattr(
        gpt.GPT, "logits", lambda model, h: at_once[h.requires_grad].append(h.numel() // h.size(-1)) or logits(model, h)
    )
    _, run = train(script, **settings, **dict.fromkeys(flags, True))
    in_chunks = "head and loss 7 positions at a time, for less memory" in capsys.readouterr().out
    assert in_chunks == ("checkpoint_activations" in flags)
    assert max(at_once[False]) <= 7
    if "compile" not in flags:  # whose tracing meets any number
        assert max(at_once[True]) <= 7
    for column in ("loss", "grad_norm"):
        expected, found = ([float(value) for value in metrics(which, column)] for which in (plain, run))
        assert found == pytest.approx(expected, rel=1e-4 if precision == "fp32" else 2e-2)


def test_the_loss_is_compiled_where_it_reads_nothing_but_the_targets_logits(model, train, only_traced, monkeypatch):
    """Not in RLHF, which measures their entropy; not with a head of its own, nor where --shard has parts of it."""
    compiled, compile_model = [], gpt.GPT.compile_model
    monkeypatch.setattr(
        gpt.GPT, "compile_model", lambda model, with_loss: compiled.append(with_loss) or compile_model(model, with_loss)
    )
    monkeypatch.setattr(device, "check_compiler", lambda device: None)
    for script in ("pretrain", "lora_sft", "mlm", "dpo"):
        train(script, steps=1, compile=True)
    assert all(compiled)
    compiled.clear()
    for script in ("classifier", "reward", "rlhf"):
        train(script, steps=1, compile=True)
    device.set_up(model, config(compile=True, precision="fp32", shard=True), CPU)
    assert len(compiled) >= 4 and not any(compiled)


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_compiled_loss_computes_what_the_scripts_write_in_less_memory(precision):
    model = GPT(GPTConfig(vocab_size=4001, block_size=64, n_layer=1, n_head=1, n_embd=16))
    model.precision = device.PRECISIONS[precision]
    rows = torch.randint(4001, (8, 65), generator=torch.Generator().manual_seed(0)).numpy()
    batch = collate([next_token(row, row > 400) for row in rows])
    loss, plain = loss_and_gradients(model, batch)
    model.compiled_log_p = torch.compile(large_head.log_p_to_compile)
    found_loss, found = loss_and_gradients(model, batch)
    apart = 1e-5 if precision == "fp32" else 2e-2
    torch.testing.assert_close(found_loss, loss, rtol=apart, atol=apart)
    found, plain = (torch.cat([gradient.flatten() for gradient in one.values()]) for one in (found, plain))
    assert (found - plain).norm() <= apart * plain.norm()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        loss_and_gradients(model, batch)
    n_logits = int(batch.graded.sum()) * 4001
    expected = large_head.bytes_of_a_logit(True, model.precision.itemsize)
    assert expected < most_held(profiler) / n_logits < expected + 0.6, "and what is not logits"


def test_the_head_is_in_chunks_where_its_logits_would_take_a_quarter_of_a_gpu():
    def chosen(memory=80e9, place=CUDA, positions=8192, **settings):
        return device.head_in_chunks(config(**settings), place, positions, 50257, 2, memory)

    assert not chosen() and chosen(memory=8e9) and chosen(memory=8e9, place=MPS)
    assert not chosen(memory=8e9, place=CPU) and not chosen(memory=None)
    assert chosen(checkpoint_activations=True) and chosen(checkpoint_activations=True, place=CPU)
    assert not chosen(checkpoint_activations=True, shard=True), "the weights are not there when the loss is computed"
    assert not chosen(checkpoint_activations=True, positions=1024)


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_and_its_plan_choose_chunks_alike(compile, precision, model, only_traced, monkeypatch):
    """By what the loss holds: 12 bytes of each logit, or compiled as many as a product has."""
    monkeypatch.setattr(device, "check_compiler", lambda device: None)
    each = (4 if precision == "fp32" else 2) if compile else 12
    for memory_there, in_chunks in [(4 * each * 8192 * 61 - 1, True), (4 * each * 8192 * 61, False)]:
        monkeypatch.setattr(device, "memory_there", lambda device, there=memory_there: there)
        device.set_up(model, config(compile=compile, precision=precision), CUDA)
        settings = {"compile": compile, "precision": precision, "device": "cuda", "batch_size": 8, "block_size": 1024}
        planned = memory.Run(plan.Config(init_from="x", **settings), model.config, memory=memory_there)
        assert model.head_in_chunks == planned.in_chunks == in_chunks


@pytest.mark.parametrize("settings", [{"method": "rlhf"}, {"method": "classifier"}, {"shard": True, "ranks": 2}])
def test_the_plan_knows_where_the_loss_is_not_compiled(settings, model):
    planned = memory.Run(plan.Config(init_from="x", compile=True, device="cpu", **settings), model.config)
    assert not planned.compiled and planned.of_a_logit == 12


def test_the_head_is_padded_on_a_gpu_in_half_precision_alone(model, monkeypatch):
    monkeypatch.setattr(device, "memory_there", lambda device: None)
    for place, precision, padded in [(CUDA, "bf16", True), (CUDA, "fp32", False), (CPU, "bf16", False)]:
        device.set_up(model, config(compile=False, precision=precision), place)
        assert model.head_padded is padded


def test_a_step_looks_for_graded_positions_twice_and_not_again_in_the_backward_pass(model, batch):
    """On a GPU the host waits each time: once for the states, once for the targets."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        loss_and_gradients(model, batch)
    assert [event.count for event in profiler.key_averages() if event.key == "aten::nonzero"] == [2]


# ---- any device but the CPU --------------------------------------------------------------------------------------


def test_every_script_computes_where_it_is_told_to():
    """tests/elsewhere.py, in a process of its own: what it tells PyTorch cannot be taken back."""
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this PyTorch knows no device that is written in Python")
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/elsewhere.py"]
    done = subprocess.run(tests, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and re.search(r"\d\d passed", done.stdout), done.stdout[-5000:]


# ---- CUDA --------------------------------------------------------------------------------------------------------


def test_cuda_1_becomes_the_current_gpu_and_cudnn_plans_no_attention(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    device.prepare_cuda(torch.device("cuda:1"))
    device.prepare_cuda(CUDA)  # a rank's own, which run/ranks.py has set
    assert chosen == [torch.device("cuda:1")] and not torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)


def test_a_gpu_without_kernels_is_a_sentence(monkeypatch):
    def no_kernel(*args):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore")

    monkeypatch.setattr(torch, "ones", lambda *size, **how: SimpleNamespace(add=no_kernel))
    monkeypatch.setattr(device, "prepare_cuda", lambda device: None)
    with pytest.raises(
        Mistake, match="--device cuda is not usable here: CUDA error: no kernel image is available for exe"
    ):
        device.choose_device("cuda")


@pytest.mark.parametrize("share, expected", [(1.0, 7e9), (0.5, 4e9)])
def test_memory_there_is_what_others_and_a_budget_leave(monkeypatch, share, expected):
    def fraction(index):
        assert isinstance(index, int), "a device without a number is refused"
        return share

    for name, answer in [("is_available", True), ("current_device", 0), ("memory_reserved", 1e9)]:
        monkeypatch.setattr(torch.cuda, name, lambda *device, answer=answer: answer)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (6e9, 8e9))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", fraction)
    assert device.memory_there(CUDA) == expected


def test_compiling_without_triton_is_refused(monkeypatch):
    from torch.utils import _triton

    monkeypatch.setattr(_triton, "has_triton", lambda: False)
    with pytest.raises(Mistake, match="--compile needs Triton on this GPU: install it"):
        device.check_compiler(CUDA)


def test_no_kind_of_rows_makes_what_is_compiled_fall_back(model, only_traced, chunks_of_7):
    """LoRA, packed rows and padded ones, of two lengths, with an evaluation after each."""
    apply_lora(model, 3, 7.0, 0.0)
    torch._dynamo.config.recompile_limit = 8  # PyTorch's own
    model.compile_model()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for B, T in [(4, 16), (3, 12)]:
            tokens = torch.ones(B, T, dtype=torch.long)
            for positions in (None, torch.arange(T) % 4 * torch.ones(B, 1, dtype=torch.long)):
                batch = Batch(tokens, tokens, tokens > 0, torch.arange(T) if positions is None else positions)
                loss_and_gradients(model, batch)
                with torch.no_grad(), gpt.evaluating(model):
                    nll_of(model, batch)


def joined(monkeypatch, device_name, nccl=True):
    asked = []
    for name, answer in [("is_available", True), ("device_count", 1), ("set_device", None)]:
        monkeypatch.setattr(torch.cuda, name, lambda *args, answer=answer: asked.extend(args) or answer)
    monkeypatch.setattr(dist, "is_nccl_available", lambda: nccl)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, timeout: asked.append(backend))
    monkeypatch.setattr(ranks.atexit, "register", lambda leave: None)
    for name, value in [("TORCHELASTIC_RUN_ID", "x"), ("LOCAL_RANK", "0")]:
        monkeypatch.setenv(name, value)
    ranks.join(device_name)
    return asked


def test_ranks_on_a_cpu_leave_the_gpus_of_the_machine_alone(monkeypatch):
    assert joined(monkeypatch, "cpu") == ["gloo"]


def test_ranks_on_gpus_speak_nccl_and_without_it_as_on_windows_gloo(monkeypatch):
    assert joined(monkeypatch, "auto") == [0, "cpu:gloo,cuda:nccl"]
    assert joined(monkeypatch, "auto", nccl=False) == [0, "gloo"]


def test_ranks_on_one_named_gpu_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(ranks, "rank_and_size", lambda: (0, 2))
    monkeypatch.setattr(device, "choose_device", torch.device)
    with pytest.raises(Mistake, match="torchrun gives each process a GPU of its own: --device cuda, not cuda:1"):
        Session(train_sft.Config(instructions="x", init_from="x", out=str(tmp_path / "run"), device="cuda:1"))


def test_a_whole_optimizer_is_split_before_it_reaches_the_device(model):
    """FSDP in one rank: what `like` makes of a saved tensor has parts, as the parameter has."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        ranks._shard(model, CPU)
        parameter, saved = model.blocks[0].mlp.up_proj.weight, torch.ones(48, 12)
        assert type(ranks.like(saved, parameter)) is type(parameter.data) is not torch.Tensor
        assert ranks.like(torch.tensor(3.0), parameter).dim() == 0, "AdamW's number of steps has none"
    finally:
        dist.destroy_process_group()


def test_ddp_averages_the_gradients_of_a_head_in_chunks_too(model, batch, chunks_of_7):
    """The head is then computed after the forward pass that DDP knows of."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        _, plain = loss_and_gradients(model, batch)
        ranks._replicate(model, 1)
        model.head_in_chunks = True
        _, found = loss_and_gradients(model, batch)
        for name, gradient in plain.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-5)
    finally:
        dist.destroy_process_group()


# ---- Apple and Windows -------------------------------------------------------------------------------------------


def test_checkpointing_with_dropout_is_refused_on_an_apple_gpu():
    for drops in ({"dropout": 0.1}, {"lora_dropout": 0.1}):
        with pytest.raises(Mistake, match="--checkpoint-activations with dropout has wrong gradients on an Apple GPU"):
            device.refuse_wrong_gradients(config(checkpoint_activations=True, **drops), MPS)
        device.refuse_wrong_gradients(config(checkpoint_activations=True, **drops), CUDA)
    device.refuse_wrong_gradients(config(checkpoint_activations=True), MPS)


def test_an_apple_gpus_random_state_is_saved_and_brought_back(monkeypatch):
    brought_back = []
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: torch.tensor([7]))
    monkeypatch.setattr(torch.mps, "set_rng_state", brought_back.append)
    resume.put_random(resume.get_random())
    assert [state.item() for state in brought_back] == [7]


def test_a_file_is_opened_to_write_before_it_is_brought_to_disk(tmp_path, monkeypatch):
    """Windows refuses fsync of one that is open to read."""
    how, opened = [], os.open
    monkeypatch.setattr(os, "open", lambda path, flags, *mode: how.append(flags) or opened(path, flags, *mode))
    (tmp_path / "x").write_text("x")
    files.bring_to_disk(tmp_path / "x")
    assert how[0] & os.O_RDWR


def test_the_lock_of_a_run_is_closed_before_it_is_deleted(train, monkeypatch):
    """Windows deletes no file that is open."""
    locks, lock, unlink = [], files.lock, Path.unlink

    def refused(path, **how):
        if path.name == ".lock" and not all(file.closed for file in locks):
            raise PermissionError(13, "The process cannot access the file", str(path))
        unlink(path, **how)

    monkeypatch.setattr(files, "lock", lambda folder: locks.append(lock(folder)) or locks[-1])
    monkeypatch.setattr(Path, "unlink", refused)
    _, run = train("sft", steps=1)
    assert locks and not (run / ".lock").exists()


@pytest.mark.parametrize(
    "locked, said", [(2, ""), (99, "metrics.csv lacks its last 2 rows: another program has it open")]
)
def test_a_metrics_file_that_excel_has_open_ends_no_run(train, monkeypatch, capsys, locked, said):
    """On Windows it cannot be written then. The rows wait."""
    write, tries = Session.write, []

    def refused(session, name, text, mode="w"):
        if mode == "a":
            tries.append(text)
            if 1 < len(tries) <= 1 + locked:
                raise PermissionError(13, "Permission denied")
        write(session, name, text, mode)

    monkeypatch.setattr(Session, "write", refused)
    _, run = train("sft", steps=4 if locked == 2 else 2)
    lines = (run / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == (["0", "1", "2", "3", "4"] if locked == 2 else ["0"])
    assert said in capsys.readouterr().out


def test_no_file_imports_a_module_that_windows_lacks_before_it_knows_where_it_is():
    for path in [
        *ROOT.glob("*.py"),
        *(p for room in ("run", "data", "store", "benchmarks") for p in ROOT.glob(f"{room}/**/*.py")),
    ]:
        at_the_top = re.findall(
            r"^(?:import|from) (resource|fcntl|pwd|grp|termios)\b", path.read_text("utf-8"), re.MULTILINE
        )
        assert not at_the_top, path


# ---- evaluation, the table and the page --------------------------------------------------------------------------


def test_at_most_1024_records_are_held_out_but_all_if_all_are_asked_for():
    held_out = {(0.1, 3): 1, (0.1, 6900): 690, (0.1, 52_000): 1024, (1, 52_000): 52_000}
    assert {asked: n_to_judge_by(*asked) for asked in held_out} == held_out


def test_the_table_of_what_fits_is_the_plans():
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        fits.main()
    assert out.getvalue() in (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")


def test_the_benchmark_of_a_gpu_runs_in_a_tiny_shape_and_writes_its_page(tmp_path, monkeypatch):
    monkeypatch.setitem(measure.SIDES, "cpu", (64,))
    measure.matmul_peak.cache_clear()
    page.main(["--tiny", "--device", "cpu", "--out", str(tmp_path)])
    measure.matmul_peak.cache_clear()
    said = (tmp_path / "cpu-tiny.md").read_text(encoding="utf-8")
    assert "A trial of the program in a tiny shape: no figure here means anything." in said
    assert "\nbroke: none" in said, said
    assert re.search(
        r"^\| fp32: loss of 2 steps, CPU and GPU, .* \| 0 \| at most 0.0001 \| met \|$", said, re.MULTILINE
    )
    assert "fp32, deterministic algorithms: resumed to the bit | yes | yes | met |" in said
    for part in page.parts():
        assert f"\n## {part}\n" in said


def test_a_check_that_breaks_and_one_that_misses_hide_no_other(tmp_path, monkeypatch):
    def breaks(on, tell):
        raise RuntimeError("CUDA error:\nan | illegal address")

    def other(on, tell):
        tell("speed", 0.5, low=1.0)

    monkeypatch.setattr(page, "parts", lambda: {"a": ([breaks, other], 1), "b": ([other], 1)})
    assert page.main(["--tiny", "--device", "cpu", "--out", str(tmp_path)]) == 1
    said = (tmp_path / "cpu-tiny.md").read_text(encoding="utf-8")
    assert "| breaks | RuntimeError: CUDA error: an / illegal address |  | broke |" in said
    assert said.count("| speed | 0.5 | at least 1 | missed |") == 2 and "missed: speed, speed" in said


def test_a_part_that_dies_or_hangs_is_told_and_keeps_what_it_told(tmp_path):
    for number, (code, words) in enumerate(
        [("1 / 0", "ZeroDivisionError"), ("import time; time.sleep(99)", "took longer")]
    ):
        tell = page.Notes(tmp_path / str(number))
        tell("before", 1.0)
        page.in_a_process([sys.executable, "-c", code], 2, "part", tell)
        before, after = tell.all()
        assert before.found == "1" and after.verdict == "broke" and words in after.found


def test_transformers_is_given_padded_rows_and_grades_what_we_grade():
    pytest.importorskip("transformers")
    rows = [next_token(torch.arange(n).numpy(), torch.arange(n).numpy() > n // 2) for n in (6, 9, 12)]
    model = cost.who.transformers_model(cost.Shape(1, 2, 8, 61, 16, 3), CPU)
    assert cost.padded(model, rows, 3)() == sum(int(row.graded.sum()) for row in rows)


@pytest.mark.parametrize("way", fits.WAYS)
def test_a_step_is_set_up_as_its_plan_says(way, tmp_path, chunks_of_7, monkeypatch):
    """What the plan has in chunks is in chunks there."""
    monkeypatch.setattr(memory, "CHUNK", 7)
    models, our_model = [], cost.who.our_model
    monkeypatch.setattr(cost.who, "our_model", lambda *args: models.append(our_model(*args)) or models[-1])
    on = page.On(CPU, True, tmp_path)
    step, run = cost.step_as_planned(on, cost.config_of(on, 2, fits.WAYS[way]), None)
    assert step() == run.n_graded == 2 * 64
    assert models[0].head_in_chunks == models[0].checkpoint_activations == run.in_chunks == ("checkpointed" in way)


def test_a_resumed_run_is_compared_by_what_it_has_saved(train):
    _, run = train("lora", steps=1)
    assert same.learned(run).keys() == weights(run).keys()

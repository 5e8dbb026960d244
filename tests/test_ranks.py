"""Several ranks are one process: the same losses, disjoint data, one that writes. Two gloo processes on the CPU."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import metrics, weights

import train_pretrain
from cli import Mistake
from data.batches import Batches
from data.examples import Reading, from_text
from data.tokenizer import load_tokenizer
from store.checkpoint import load_run

ROOT = Path(__file__).parent.parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]

SCRIPTS = {
    "pretrain": "train_pretrain", "sft": "train_sft", "lora": "train_lora",
    "reward": "train_reward", "dpo": "train_dpo", "rlhf": "train_rlhf",
    "sft_fp16": "train_sft", "adapter": "train_adapter", "prefix_sft": "train_prefix", "prompt": "train_prompt",
    "classifier": "train_classifier", "tagger": "train_classifier", "mlm": "train_mlm",
}  # fmt: skip

COMPARE = ("reward", "dpo", "rlhf")


def torchrun(*program, ranks=2):
    """Several processes, started as a user starts them."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    program = [*TORCHRUN, str(ranks), *map(str, program)]
    return subprocess.run(program, capture_output=True, text=True, cwd=ROOT, env=environment)


@pytest.fixture(scope="module")
def settings_of(base, text, instructions, labelled, tagged, pairs):
    files = {"text": text, "instructions": instructions, "labelled": labelled, "tagged": tagged, "pairs": pairs}
    return lambda method: settings(method, base, files)


KINDS = {"classifier": "labelled", "tagger": "tagged", "reward": "pairs", "dpo": "pairs", "rlhf": "instructions"}
MORE = {
    "classifier": {"learn": "lora"},
    "rlhf": {"reward": "exact", "beta": 1.0, "samples": 2, "max_new_tokens": 4},  # the reward is all but the KL alone
}


def settings(method, base, files):
    """6 steps of unequal rows, an odd number of them; pretraining has a row a micro-batch, so one rank gets none."""
    kind = KINDS.get(method, "instructions" if "sft" in method else "text")
    data = {kind: files[kind]} | MORE.get(method, {})
    rows = {
        "block_size": 32 if kind == "text" else 176 if "prefix" in method else 192,
        "batch_size": 1 if method == "pretrain" else 5,
        "micro_batches": 2,
    }
    rows["precision"] = "fp16" if "fp16" in method else "fp32"
    return {**data, **rows, "init_from": base, "steps": 6, "eval_every": 4, "learning_rate": 3e-3, "device": "cpu"}


RESUMED = [("sft", "fsdp", 2), ("lora", "ddp", 2), ("pretrain", "fsdp", 1), ("prompt", "fsdp", 2), ("mlm", "ddp", 2)]
PROGRAM = """
import importlib, sys, torch
from pathlib import Path
from model.generate import generate
from run.session import Session

folder, log, place = Path(sys.argv[1]), Session.log, Session.place

def fails(session, step, *args):
    return log(session, step, *args) if step < 5 or session.config.resume else 1 / 0

def placed(session, model):
    place(session, model)
    (folder / f"drawn-{session.rank}").write_text(str(torch.rand(())))

def train(method, ranks, out, **more):
    script = importlib.import_module(SCRIPTS[method])
    script.generate = lambda *args, max_new_tokens, **how: generate(*args, max_new_tokens=8, **how)  # as in conftest.py
    script.main(script.Config(out=str(folder / out / method), shard=ranks == "fsdp", **SETTINGS[method] | more))

for ranks in ("ddp", "fsdp"):
    for method in SCRIPTS:
        train(method, ranks, ranks)
Session.log = fails
for method, ranks, then in RESUMED:
    try:
        train(method, ranks, "failed", save_every=4)
    except ZeroDivisionError:
        print("failed in step 6")
    if then == 2:
        train(method, ranks, "failed", save_every=4, resume=True)
Session.log, Session.place = log, placed
train("pretrain", "ddp", "drawn", steps=1)
Session.place, compiled = place, torch.compile
torch.compile = lambda forward, **how: compiled(forward, backend="eager")  # traced, and not made C++ of
train("pretrain", "fsdp", "compiled", steps=2, compile=True)
"""


@pytest.fixture(scope="module")
def runs(settings_of, tmp_path_factory):
    """Run folders by number of ranks, way of sharing and method: each method in one process and, twice, in two; and
    those that failed in two."""
    folder = tmp_path_factory.mktemp("ranks")
    settings = {method: settings_of(method) for method in SCRIPTS}
    (folder / "program.py").write_text(f"{SCRIPTS = }\n{RESUMED = }\nSETTINGS = {settings!r}\n{PROGRAM}")
    done = torchrun(folder / "program.py", folder)
    assert done.returncode == 0, done.stderr
    goes_on = sum(then == 2 for _, _, then in RESUMED)
    trained = 2 * len(SCRIPTS) + len(RESUMED) + goes_on + 2
    assert done.stdout.count("parameters learn") == trained, "rank 0 alone prints"
    assert done.stdout.count("failed in step 6") == len(RESUMED)
    assert done.stdout.count("goes on after step 4") == goes_on
    for method, script in SCRIPTS.items():
        script = importlib.import_module(script)
        script.main(script.Config(out=str(folder / "one" / method), **settings[method]))
    return folder


@pytest.mark.parametrize("ranks", ["ddp", "fsdp"])
@pytest.mark.parametrize("method", SCRIPTS)
def test_two_ranks_are_one_process(runs, method, ranks):
    """Losses, gradients, held-out losses and weights, with unequal rows and micro-batches."""
    one, two = runs / "one" / method, runs / ranks / method
    error = 1000 if "fp16" in method else 1  # times as large: its products are rounded to 11 bits
    for column in ("loss", "grad_norm", "graded_tokens"):
        expected, found = (np.array(metrics(run, column), float) for run in (one, two))
        assert len(found) == 6
        # the losses where responses are compared come near 0, and their gradients with them
        rtol, atol = (
            (1e-6, 2e-6 * (method in COMPARE)) if column == "loss" else (1e-3 if method in COMPARE else 1e-4, 0)
        )
        np.testing.assert_allclose(found, expected, rtol=error * rtol, atol=atol)
    final = [float((run / "metrics.csv").read_text().splitlines()[-1].split(",")[2]) for run in (one, two)]
    assert final[0] == pytest.approx(final[1], rel=error * 1e-6)
    in_both_scores = (
        ("ln_f.bias", "head.bias") if method == "reward" else ()
    )  # no gradient but rounding: steps of AdamW's
    for name, tensor in weights(one).items():
        if name not in in_both_scores:  # nor has k_proj's bias any: it changes no attention
            atol = error * (1e-4 if method in COMPARE else 2e-5)
            torch.testing.assert_close(weights(two)[name], tensor, rtol=1e-4, atol=atol)
    assert (two / "sample.txt").read_text() == (one / "sample.txt").read_text()


@pytest.mark.parametrize("ranks", ["ddp", "fsdp"])
@pytest.mark.parametrize("method", SCRIPTS)
def test_what_several_ranks_wrote_is_one_run_and_loads_in_one_process(runs, method, ranks):
    run = runs / ranks / method
    beside = method not in ("pretrain", "sft", "sft_fp16", "tagger", "mlm", "reward", "dpo", "rlhf")
    saved = "learned.pt" if beside else "model.pt"
    assert sorted(p.name for p in run.iterdir()) == sorted(["config.json", "metrics.csv", "sample.txt", saved])
    load_run("" if beside else str(run), str(run) if beside else "", torch.device("cpu"))


@pytest.mark.parametrize("method, ranks, then", RESUMED)
def test_two_ranks_are_resumed_by_as_many_or_by_one(runs, method, ranks, then, settings_of):
    """They fail after 5 steps, saved after 4."""
    run = runs / "failed" / method
    if then == 1:
        script = importlib.import_module(SCRIPTS[method])
        script.main(script.Config(**settings_of(method), out=str(run), save_every=4, resume=True))
    for column in ("step", "loss", "grad_norm"):
        expected, found = (np.array(metrics(run, column), float) for run in (runs / "one" / method, run))
        np.testing.assert_allclose(found, expected, rtol=1e-4 if column == "grad_norm" else 1e-5)


def test_ranks_see_disjoint_rows_that_are_the_batch(text):
    """The union over the ranks is the batch of one process; the order changes by epoch."""
    train, _ = from_text(text, Reading(load_tokenizer("bytes"), 16, 0.1))
    for step in range(40):
        inputs = [Batches(train, 2, 2, 3, rank, n).of_step(step) for rank, n in [(0, 1), (0, 3), (1, 3), (2, 3)]]
        for micro_batch, *parts in zip(*inputs, strict=True):
            rows = sorted(row[graded].tolist() for row, graded in zip(micro_batch[0], micro_batch[2], strict=True))
            found = [
                row[graded].tolist()
                for part in parts
                for row, graded in zip(part[0], part[2], strict=True)
                if graded.any()
            ]
            assert sorted(found) == rows


def test_dropout_differs_from_rank_to_rank(runs):
    """Else rows of two ranks would lose the same channels."""
    assert (runs / "drawn-0").read_text() != (runs / "drawn-1").read_text()


def test_compiled_and_sharded_blocks_can_still_write_a_sample(runs):
    """A block with a cache is neither compiled nor deprived of its weights."""
    assert (runs / "compiled" / "pretrain" / "sample.txt").read_text()


def test_a_mistake_of_all_ranks_ends_them_all(text, base, tmp_path):
    done = torchrun("train_pretrain.py", "--text", text, "--init-from", base, "--out", tmp_path / "run", "--steps", 0)
    assert done.returncode != 0 and "--steps must be above 0, got 0" in done.stderr
    assert not (tmp_path / "run").exists()


def test_shard_without_several_processes_is_a_mistake(text, base, tmp_path):
    config = train_pretrain.Config(text=text, init_from=base, out=str(tmp_path / "run"), shard=True)
    with pytest.raises(Mistake, match="start two or more with torchrun"):
        train_pretrain.main(config)

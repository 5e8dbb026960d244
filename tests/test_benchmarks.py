"""The benchmarks run, measure everybody on the same work, and compute what they say."""

import re
import sys

import numpy as np
import pytest
import torch

import train_rlhf
from benchmarks import __main__ as benchmarks
from benchmarks import contestants as who
from benchmarks import measure, rlhf
from benchmarks.measure import Contestant, quartiles, race, times
from data.examples import next_token
from run import rollout
from store import gpt2

pytest.importorskip("transformers")
pytest.importorskip("peft")
CPU = torch.device("cpu")
SHAPE = who.Shape(2, 2, 16, 61, 40, 3)


@pytest.fixture
def bench(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments, "--shape", "tiny", "--rows", "2", "--tokens", "40"])
        threads = torch.get_num_threads()
        benchmarks.main()
        torch.set_num_threads(threads)
        return capsys.readouterr().out

    return run


NANOGPT = """
from dataclasses import dataclass
import torch
@dataclass
class GPTConfig:
    block_size: int; vocab_size: int; n_layer: int; n_head: int; n_embd: int; dropout: float; bias: bool
class GPT(torch.nn.Module):
    def __init__(self, c):
        super().__init__()
        self.table = torch.nn.Embedding(c.vocab_size, c.vocab_size)
    def forward(self, inputs, targets):
        logits = self.table(inputs)
        return logits, torch.nn.functional.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))
    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        return torch.optim.AdamW(self.parameters(), lr=learning_rate)
"""  # a checkout's interface, with the least behind it


def test_a_table_and_ratios_come_out(bench, tmp_path, monkeypatch):
    monkeypatch.setitem(measure.SIDES, "cpu", (64,))
    (tmp_path / "model.py").write_text(NANOGPT)
    out = bench("train", "--rounds", "2", "--nanogpt", str(tmp_path))
    for name in ("ours", "ours bf16", "transformers", "transformers bf16", "nanoGPT"):
        assert re.search(rf"^\| {name} \| [\d.]+ \| [\d,]+ \|$", out, re.MULTILINE), name
        assert re.search(rf"^- {name}: \d+% of the measured matmul peak, [\d,]+ GFLOP/s$", out, re.MULTILINE), name
    assert re.search(r"^- ours : transformers = [\d.]+× \([\d.]+–[\d.]+\), at least 1.1×$", out, re.MULTILINE)
    assert re.search(r"torch \d.+, Python 3", out)
    out = bench("lora", "--rounds", "2")
    assert re.search(r"^- ours : PEFT = [\d.]+× \([\d.]+–[\d.]+\), at least 1.25×$", out, re.MULTILINE)
    out = bench("frozen", "--rounds", "2")
    for method in ("LoRA", "prefix", "soft prompt"):
        assert re.search(rf"^- ours, {method} : PEFT, {method} = [\d.]+× ", out, re.MULTILINE), method
    assert re.search(r"^- soft prompt: 2,048 numbers learn, 0.01 MB to save$", out, re.MULTILINE)
    (tmp_path / "two.jsonl").write_text(2 * '{"instruction": "Say it.", "output": "red"}\n')
    out = bench("frozen", "--rounds", "1", "--instructions", str(tmp_path / "two.jsonl"))
    assert re.search(r"^2 instructions, \d+ tokens each, \d+% of them graded; ", out, re.MULTILINE)
    assert re.search(r"^- ours, prefix : PEFT, prefix = [\d.]+× ", out, re.MULTILINE)
    out = bench("generate", "--rounds", "2", "--batch", "3")
    assert "3 prompts, 8 new tokens each" in out
    assert re.search(r"^- ours : transformers = [\d.]+× ", out, re.MULTILINE)


def test_memory_is_measured_in_a_process_of_its_own_for_each(bench, monkeypatch):
    monkeypatch.setattr(benchmarks, "MEASURED", ["ours LoRA", "PEFT"])
    out = bench("memory")
    peaks = {
        name: float(mb.replace(",", "")) for name, mb in re.findall(r"^\| (\w.*?) \| ([\d,]+) \|$", out, re.MULTILINE)
    }
    assert list(peaks) == ["ours LoRA", "PEFT"]
    assert all(100 < mb < 4000 for mb in peaks.values())
    ratio = re.search(r"^- ours LoRA : PEFT = ([\d.]+)×$", out, re.MULTILINE)[1]
    assert float(ratio) == pytest.approx(peaks["ours LoRA"] / peaks["PEFT"], abs=0.01)


def test_all_do_the_same_work():
    """As many tokens, and as many parameters that learn."""
    rows = who.random_rows(SHAPE, CPU)
    ours, theirs = who.our_model(SHAPE, CPU), who.transformers_model(SHAPE, CPU)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert who.ours(ours, "full", who.one_batch(rows))() == who.theirs(theirs, rows, who.FP32)() == 120
    adapted, peft = who.our_model(SHAPE, CPU), who.with_peft(theirs)
    who.ours(adapted, "LoRA", who.one_batch(rows))
    counts = [sum(p.numel() for p in model.parameters() if p.requires_grad) for model in (adapted, peft)]
    assert counts[0] - counts[1] == 2 * 8 * (3 * (16 + 16) - (16 + 48)), "PEFT has one A for q, k and v, which are one"


def test_of_instructions_all_grade_the_same_tokens_and_peft_sees_no_padding():
    examples = [next_token(np.arange(n) + 1, np.arange(n) > n // 2) for n in (6, 9, 12, 7)]
    ours, theirs = who.our_model(SHAPE, CPU), who.transformers_model(SHAPE, CPU)
    ours.load_state_dict(gpt2.weights_from(gpt2.without_extras(theirs.state_dict()), ours.config))
    inputs, targets, graded, positions = who.batches_of(examples, 4)()
    expected = torch.nn.functional.cross_entropy(ours(inputs, graded, positions), targets[graded])
    batch = who.in_their_form(who.batches_of(examples, 4), CPU)()
    torch.testing.assert_close(theirs(**batch).loss, expected)
    assert sorted(batch["attention_mask"].sum(1).tolist()) == [6, 7, 9, 12]
    counts = [who.ours(ours, "prefix", who.batches_of(examples, 4))()]
    peft = who.with_peft(theirs, "prefix")
    counts += [who.theirs_with_labels(peft, who.in_their_form(who.batches_of(examples, 4), CPU))()]
    assert counts == [graded.sum(), graded.sum()]


def test_both_generate_the_same_tokens(monkeypatch):
    theirs = who.transformers_model(SHAPE, CPU)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours = who.our_model(SHAPE, CPU)
    ours.load_state_dict(gpt2.weights_from(gpt2.without_extras(theirs.state_dict()), ours.config))
    prompts, answers = [[5, 17, 3], [9], [1, 2, 3, 4, 5, 6, 7]], []
    generate = who.generate
    monkeypatch.setattr(who, "generate", lambda *args: answers.extend(generate(*args)) or answers)
    our_tokens = who.our_generation(ours.eval(), prompts, 12)()
    assert our_tokens == who.transformers_generation(theirs, prompts, 12)() == 36
    ids = torch.tensor([[0] * 4 + prompts[0], [0] * 6 + prompts[1], prompts[2]])
    expected = theirs.generate(ids, attention_mask=(ids > 0).long(), max_new_tokens=12, do_sample=False)[:, -12:]
    assert answers == expected.tolist()


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["train", "--rounds", "0"], "must be at least 1"),
        (["generate", "--batch", "0"], "must be at least 1"),
        (["generate"], "generate needs --tokens above 32"),
        (["train", "--nanogpt", "/nowhere"], "/nowhere/model.py"),
        (["sft", "--instructions", "/nowhere.json"], "/nowhere.json"),
        (["train", "--device", "gpu"], "invalid choice: 'gpu'"),
    ],
)
def test_a_mistake_is_one_sentence(monkeypatch, capsys, flags, sentence):
    monkeypatch.setattr(sys, "argv", ["benchmarks", *flags, "--shape", "tiny", "--tokens", "20"])
    with pytest.raises(SystemExit):
        benchmarks.main()
    assert sentence in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("name", ["ours bf16", "transformers bf16", "TRL bf16"])
def test_bf16_is_bf16_for_everyone(name, tmp_path):
    rows, seen = who.random_rows(SHAPE, CPU), []
    model = who.our_model(SHAPE, CPU, who.BF16) if "ours" in name else who.transformers_model(SHAPE, CPU)
    up = model.blocks[0].mlp.up_proj if "ours" in name else model.transformer.h[0].mlp.c_fc
    up.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    if name == "TRL bf16":
        pytest.importorskip("trl")
        examples = [next_token(np.arange(n), np.arange(n) > 2) for n in (6, 9, 12, 7)]
        step = who.trl(model, examples, 4, True, False, str(tmp_path))
    else:
        step = who.ours(model, "full", who.one_batch(rows)) if "ours" in name else who.theirs(model, rows, who.BF16)
    step()
    assert seen == [torch.bfloat16]


def test_sft_beside_trl(tmp_path):
    pytest.importorskip("trl")
    examples = [next_token(np.arange(n), np.arange(n) > n // 2) for n in (6, 9, 12, 7)]
    theirs = who.trl(who.transformers_model(SHAPE, CPU), examples, 4, False, False, str(tmp_path))
    ours = who.ours(who.our_model(SHAPE, CPU), "full", who.batches_of(examples, 4))
    everywhere = who.ours(who.our_model(SHAPE, CPU), "full", who.batches_of(examples, 4), all_logits=True)
    assert theirs() == ours() == everywhere() == sum(int(example.graded.sum()) for example in examples)


def test_ratios_are_made_round_by_round_and_every_contestant_takes_each_turn():
    order = []
    runs = [Contestant(name, lambda name=name: order.append(name) or 100) for name in "abc"]
    race(runs, 3, CPU, warmup=1)
    rounds = ["".join(order[i : i + 3]) for i in range(0, 12, 3)]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in rounds) and len(set(rounds)) > 1
    one, other = (
        Contestant("one", lambda: 1, [1.0, 2.0, 4.0], [100] * 3),
        Contestant("other", lambda: 1, [3.0, 6.0, 4.0], [200] * 3),
    )
    assert times(one, other) == "1.50× (1.00–1.50)"
    assert quartiles([3.0]) == (3.0, 3.0, 3.0)


def test_the_share_of_sampling_in_an_rlhf_run_is_told(base, instructions, reward_model, tmp_path):
    config = train_rlhf.Config(
        init_from=base, instructions=instructions, reward=reward_model, block_size=192, batch_size=4, samples=2,
        max_new_tokens=8, steps=2, device="cpu", out=str(tmp_path / "run"),
    )  # fmt: skip
    generate = rollout.generate
    sampling, rolling_out, seconds = rlhf.shares(config)
    assert 0 < sampling < rolling_out < seconds
    assert rollout.generate is generate, "as it was before"

"""Small worlds for the tests: a text, some instructions, a base trained on the text. Nothing needs a network."""

import itertools
import json
import os
import random
import tempfile
import time
from pathlib import Path

os.environ["FINETUNING_CACHE"] = tempfile.mkdtemp(prefix="finetuning-tests-")  # before anything is tokenised

import pytest
import torch

import new_model
import train_adapter
import train_classifier
import train_dpo
import train_lora
import train_mlm
import train_prefix
import train_pretrain
import train_prompt
import train_reward
import train_rlhf
import train_sft
from model.generate import generate
from model.gpt import GPT, GPTConfig

torch.set_num_threads(1)  # bit-equal results need one thread


def write_briefly(script):
    """Lets a run of the script end in a sample of 8 tokens: its 64 take as long as a few steps."""
    if hasattr(script, "generate"):
        script.generate = lambda *args, max_new_tokens, **how: generate(*args, max_new_tokens=8, **how)


for script in (train_adapter, train_dpo, train_lora, train_prefix, train_pretrain, train_prompt, train_rlhf, train_sft):
    write_briefly(script)


@pytest.fixture
def model():
    """A GPT small enough for any test, with weights large enough for its parts to matter."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=61, block_size=16, n_layer=2, n_head=2, n_embd=12))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("world")


@pytest.fixture(scope="session")
def text(folder):
    """A text in which the next word can be learned."""
    words, rng = ["the", "old", "ship", "sails", "home", "over", "a", "calm", "sea"], random.Random(0)
    path = folder / "text.txt"
    path.write_text(" ".join(rng.choice(words) for _ in range(1200)), encoding="utf-8")
    return str(path)


RECORDS = [
    {"instruction": "Repeat the word.", "input": word * n, "output": f"{word * n}, of course"}
    for n, word in enumerate(["sea", "ship", "calm", "öl", "☂", "mast", "a b", "sail", "rope", "tide"], 1)
]


@pytest.fixture(scope="session")
def instructions(folder):
    path = folder / "instructions.json"
    path.write_text(json.dumps(RECORDS), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def labelled(folder):
    """Texts of a place and what is there: water or land, as the first word says."""
    rng, path = random.Random(0), folder / "labelled.json"
    texts = [(rng.choice(["sea", "hill"]), rng.choice(["calm", "old", "öl"])) for _ in range(60)]
    records = [{"text": f"{what} is {how}", "label": {"sea": "water", "hill": "land"}[what]} for what, how in texts]
    path.write_text(json.dumps(records), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def tagged(folder):
    """Sentences in CoNLL's columns, in which a word's tag is told by the word."""
    rng, path = random.Random(0), folder / "tagged.conll"
    tags = {"sea": "thing", "ship": "thing", "calm": "state", "öl": "thing", "is": "other", "old": "state"}
    sentences = [[rng.choice([*tags]) for _ in range(rng.randint(2, 7))] for _ in range(60)]
    path.write_text(
        "\n\n".join("\n".join(f"{word} {tags[word]}" for word in words) for words in sentences), encoding="utf-8"
    )
    return str(path)


@pytest.fixture(scope="session")
def pairs(folder):
    """Pairs of which the chosen response is the polite one; their words differ in number."""
    words = ["sea", "ship", "calm", "öl", "mast", "a b", "sail", "rope", "tide", "oar", "deck", "hull"]
    records = [
        {"instruction": "Repeat the word.", "input": word * n, "chosen": f"{word}, please", "rejected": word * n}
        for n, word in enumerate(words, 2)
    ]
    path = folder / "pairs.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def builtin(folder):
    """data/builtin in small: an eleventh of each of its files, and a base of its tokenizer with two narrow layers."""
    whole, small = Path(__file__).parent.parent / "data" / "builtin", folder / "builtin"
    small.mkdir()
    for file in whole.glob("*.json*"):
        content = file.read_text(encoding="utf-8")
        few = content.splitlines()[::11] if file.suffix == ".jsonl" else json.loads(content)[::11]
        (small / file.name).write_text("\n".join(few) if file.suffix == ".jsonl" else json.dumps(few), encoding="utf-8")
    how = {"tokenizer": str(whole / "tokenizer.tiktoken"), "n_layer": 2, "n_head": 2, "n_embd": 16}
    new_model.main(new_model.Config(out=str(small / "base"), block_size=256, **how))
    return small


@pytest.fixture(scope="session")
def reward_model(folder, base, pairs):
    """A run of train_reward."""
    out = str(folder / "reward-model")
    how = {"init_from": base, "block_size": 192, "steps": 2, "batch_size": 4, "device": "cpu"}
    train_reward.main(train_reward.Config(pairs=pairs, out=out, **how))
    return out


@pytest.fixture(scope="session")
def base(folder, text):
    """A run of train_pretrain: two layers, bytes, rows of up to 192 tokens."""
    out = str(folder / "base")
    new_model.main(new_model.Config(out=f"{out}-new", n_layer=2, n_head=2, n_embd=16, block_size=192))
    how = {"init_from": f"{out}-new", "block_size": 192, "steps": 20, "batch_size": 8, "device": "cpu"}
    train_pretrain.main(train_pretrain.Config(text=text, out=out, **how))
    return out


@pytest.fixture
def train(base, text, instructions, labelled, tagged, pairs, tmp_path):
    """train("sft", steps=3, ...) runs a script's main from the base and returns (its results, its run folder)."""

    def run(method, **settings):
        main, Config, data = {
            "pretrain": (train_pretrain.main, train_pretrain.Config, {"text": text}),
            "sft": (train_sft.main, train_sft.Config, {"instructions": instructions}),
            "lora": (train_lora.main, train_lora.Config, {"text": text}),
            "lora_sft": (train_lora.main, train_lora.Config, {"instructions": instructions}),
            "adapter": (train_adapter.main, train_adapter.Config, {"text": text}),
            "adapter_sft": (train_adapter.main, train_adapter.Config, {"instructions": instructions}),
            "prefix": (train_prefix.main, train_prefix.Config, {"text": text, "block_size": 176}),
            "prefix_sft": (train_prefix.main, train_prefix.Config, {"instructions": instructions, "block_size": 176}),
            "prompt": (train_prompt.main, train_prompt.Config, {"text": text, "block_size": 176}),
            "prompt_sft": (train_prompt.main, train_prompt.Config, {"instructions": instructions, "block_size": 176}),
            "classifier": (train_classifier.main, train_classifier.Config, {"labelled": labelled}),
            "tagger": (train_classifier.main, train_classifier.Config, {"tagged": tagged}),
            "reward": (train_reward.main, train_reward.Config, {"pairs": pairs}),
            "dpo": (train_dpo.main, train_dpo.Config, {"pairs": pairs}),
            "rlhf": (
                train_rlhf.main,
                train_rlhf.Config,
                {"instructions": instructions, "reward": "exact", "max_new_tokens": 8},
            ),
            "mlm": (train_mlm.main, train_mlm.Config, {"text": text}),
        }[method]
        out = settings.pop("out", tmp_path / f"run{len(list(tmp_path.iterdir()))}")
        defaults = {"init_from": base, "block_size": 192, "batch_size": 4, "steps": 3, "warmup": 0.0, "device": "cpu"}
        config = Config(out=str(out), **{**defaults, **data, **settings})
        return main(config), out

    return run


def until(child, seen):
    """Waits until seen() is true; a child that ends before that would be waited for without end."""
    while not seen():
        assert child.poll() is None, f"it ended with {child.returncode}: {child.stderr.read() if child.stderr else ''}"
        time.sleep(0.02)


def has_trained(run, steps=3):
    return (run / "metrics.csv").exists() and len((run / "metrics.csv").read_text().splitlines()) > steps


def tokens_of(example):
    """What was shifted into an example's inputs and targets."""
    return [*example.inputs.tolist(), int(example.targets[-1])]


def most_held(profiler):
    """The most bytes that tensors held at a time, in a profile with profile_memory."""
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def weights(run):
    """The tensors that a run has saved."""
    file = run / "model.pt" if (run / "model.pt").exists() else run / "learned.pt"
    return torch.load(file, weights_only=True)["weights"]


def metrics(run, column):
    """A column of a run's metrics.csv, as it is written; without the last row, which is not of a step."""
    header, *rows, _ = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    return [row[header.index(column)] for row in rows]

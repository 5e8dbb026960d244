"""Models that others made, through all three scripts and out again."""

import hashlib
import http.server
import json
import math
import threading
from functools import partial

import pytest
import torch
from conftest import metrics
from test_gpt2 import DATA, exported, same_logits

import evaluate
import train_lora
import train_pretrain
import train_sft
from data import download
from data.public import WEIGHTS, Public
from model.gpt import GPT, GPTConfig
from run import resume
from store import checkpoint, gpt2
from store.safetensors import write_safetensors

FEW = {"steps": 3, "block_size": 32, "batch_size": 4, "device": "cpu", "precision": "fp32"}


@pytest.fixture
def theirs():
    """A random GPT2LMHeadModel with GPT-2's vocabulary, two layers of two heads."""
    transformers = pytest.importorskip("transformers", reason="transformers is no run-time requirement")
    pytest.importorskip("peft", reason="PEFT is no run-time requirement")
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=2, n_head=2, n_embd=32)).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.3 if ".h." in name else 0.05)
    return model


@pytest.fixture
def server(tmp_path):
    """A web server on the loopback that serves tmp_path/served; what it was asked for is in server.asked."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            server.asked.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def test_gpt2_is_downloaded_once_finetuned_exported_and_judged(theirs, server, tmp_path, monkeypatch, capsys):
    """With the real tokenizer and 1,100 instructions, from a server that has other weights."""
    import peft
    import transformers

    if not DATA.is_dir():
        pytest.skip("the public files that this test reads are not at hand")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(DATA / "tiktoken"))
    theirs.save_pretrained(tmp_path / "theirs")
    weights = (tmp_path / "theirs" / "model.safetensors").read_bytes()
    url, sha256 = f"http://127.0.0.1:{server.server_port}", hashlib.sha256(weights).hexdigest()
    (tmp_path / "served" / "model.safetensors").write_bytes(weights)
    file = Public("weights", "none", len(weights), sha256, f"{url}/model.safetensors")
    monkeypatch.setitem(WEIGHTS, "gpt2", file)
    monkeypatch.setitem(gpt2.SHAPES, "gpt2", (2, 2, 32))
    monkeypatch.setenv("FINETUNING_CACHE", str(tmp_path / "cache"))

    same_logits(checkpoint.open_run("gpt2").model(), theirs)
    assert f"sha256 {sha256}" in capsys.readouterr().out, "told before the download"
    run, data = str(tmp_path / "lora"), {"instructions": str(DATA / "instruction-data.json")}
    how = {**FEW, "block_size": 256, "r": 2, "learning_rate": 0.02}
    train_lora.main(train_lora.Config(init_from="gpt2", out=run, **data, **how))
    exported(run, tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "openai-community/gpt2", "which PEFT would download"
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")
    same_logits(checkpoint.open_run(run).model(), peft.PeftModel.from_pretrained(base, tmp_path / "out"))
    evaluate.main(evaluate.Config(device="cpu", from_="gpt2", adapter=run, held_out=0.01, **data))
    assert "exact match" in capsys.readouterr().out
    assert server.asked == ["/model.safetensors"], "once"


def test_a_folder_from_transformers_is_finetuned_and_exported(text, instructions, tmp_path):
    """Each script from the same base; what it saved goes out, and comes in again there with the same logits."""
    transformers = pytest.importorskip("transformers", reason="transformers is no run-time requirement")
    peft = pytest.importorskip("peft", reason="PEFT is no run-time requirement")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=257, n_positions=192, n_layer=2, n_head=2, n_embd=32, tokenizer="bytes")
    theirs = transformers.GPT2LMHeadModel(config)
    torch.nn.init.normal_(theirs.transformer.wte.weight, std=0.3)
    theirs.save_pretrained(tmp_path / "theirs")
    for name, script, settings in [
        ("pretrain", train_pretrain, {"text": text}),
        ("sft", train_sft, {"instructions": instructions}),
        ("lora", train_lora, {"text": text, "r": 2}),
        ("lora-sft", train_lora, {"instructions": instructions, "r": 2, "learning_rate": 0.02}),
    ]:
        run, out = str(tmp_path / name), tmp_path / f"{name}-exported"
        how = {**FEW, "block_size": 192, "init_from": str(tmp_path / "theirs")}
        script.main(script.Config(out=run, **how, **settings))
        exported(run, out)
        loader = peft.AutoPeftModelForCausalLM if "lora" in name else transformers.AutoModelForCausalLM
        same_logits(checkpoint.open_run(run).model(), loader.from_pretrained(out))


def test_offline_gpt2_ends_in_a_sentence_that_says_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNING_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(download, "WAITS", ())
    with pytest.raises(ValueError, match=r"download it elsewhere and put it at .*downloads/gpt2/model\.safetensors"):
        checkpoint.open_run("gpt2").model()


def test_gpt2s_real_shape_takes_a_step_of_lora_and_of_sft_on_the_cpu(tmp_path, monkeypatch):
    """124 million random weights; the first loss is that of guessing among 50,257 tokens. last.pt of 1.5 GB is not
    written: there is nothing to resume."""
    if not DATA.is_dir():
        pytest.skip("the public files that this test reads are not at hand")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(DATA / "tiktoken"))
    monkeypatch.setattr(resume.Saves, "save", lambda saves, done: None)
    model = GPT(GPTConfig())
    write_safetensors(tmp_path / "gpt2.safetensors", gpt2.weights_of(model.state_dict()))
    assert sum(p.numel() for p in model.parameters()) == 124_439_808
    few = {**FEW, "steps": 1, "block_size": 64, "batch_size": 2, "held_out": 0.002}
    for script in (train_lora, train_sft):
        data = {"init_from": str(tmp_path / "gpt2.safetensors"), "instructions": str(DATA / "instruction-data.json")}
        script.main(script.Config(out=str(tmp_path / script.__name__), **data, **few))
        loss = float(metrics(tmp_path / script.__name__, "loss")[0])
        assert loss == pytest.approx(math.log(50257), abs=0.3)

"""GPT-2's weights and PEFT's adapters, in and out: the same function on both sides, to 1e-5 of a logit."""

import json
import struct
from pathlib import Path

import pytest
import torch

import export
from cli import Mistake
from data.tokenizer import load_tokenizer, save_tokenizer, train_bpe
from model.generate import generate
from model.gpt import GPT, GPTConfig
from model.lora import apply_lora, lora_layers, merge
from store import checkpoint, hugging_face
from store.learned import load_adapter, read_learned
from store.peft import NAME, adapter_of
from store.safetensors import read_safetensors, write_safetensors

DATA = Path(__file__).parent.parent.parent / "shared" / "data"


@pytest.fixture
def transformers():
    return pytest.importorskip("transformers", reason="transformers is no run-time requirement")


@pytest.fixture
def peft():
    return pytest.importorskip("peft", reason="PEFT is no run-time requirement")


@pytest.fixture
def theirs(transformers):
    """A GPT2LMHeadModel with weights large enough for its parts to matter, of 2 heads and 2 layers."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=257, n_positions=32, n_layer=2, n_head=2, n_embd=128)
    model = transformers.GPT2LMHeadModel(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture
def saved(theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "theirs")
    settings = json.loads((tmp_path / "theirs" / "config.json").read_text())
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(settings | {"tokenizer": "bytes"}))
    return tmp_path / "theirs"


def exported(run, out, **how):
    export.main(export.Config(from_=str(run), out=str(out), **how))


def model_in(path):
    """Without a tokenizer: 257 tokens are not GPT-2's."""
    return checkpoint.Opened(str(path), None, *hugging_face.read_model(path), []).model()


def tokens(n=32):
    return torch.randint(257, (3, n), generator=torch.Generator().manual_seed(1))


def same_logits(one, other, tolerance=1e-5):
    logits = [model(tokens()) for model in (one, other)]
    one, other = (getattr(found, "logits", found) for found in logits)
    assert other.std() > 0.1
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


# ---- models ------------------------------------------------------------------------------------------------------


def test_a_model_saved_by_transformers_comes_in_with_the_same_logits(theirs, saved):
    same_logits(checkpoint.open_run(saved).model(), theirs)
    assert checkpoint.config_of(saved) == GPTConfig(257, 32, 2, 2, 128)


def test_weights_come_in_without_a_config_with_the_published_names_and_as_bin(theirs, saved, tmp_path, capsys):
    """The published gpt2 has no prefix, and stores its causal masks; heads of 64 channels are taken, as it has them."""
    bare = {name.removeprefix("transformer."): tensor for name, tensor in theirs.state_dict().items()}
    bare["h.0.attn.bias"], bare["h.0.attn.masked_bias"] = torch.ones(1, 1, 32, 32), torch.tensor(-1e4)
    torch.save(bare, tmp_path / "pytorch_model.bin")
    same_logits(model_in(tmp_path / "pytorch_model.bin"), theirs)
    assert "2 heads of 64 channels are taken" in capsys.readouterr().out
    del bare["lm_head.weight"]
    write_safetensors(tmp_path / "bare.safetensors", {name: t.contiguous() for name, t in bare.items()})
    same_logits(model_in(tmp_path / "bare.safetensors"), theirs)


PREFIXES = ["", "_orig_mod.", "module.", "base_model.model.", "module._orig_mod.", "model."]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_weights_come_in_whatever_wrapper_has_named_them(prefix, theirs, saved):
    state = {f"{prefix}{name}": tensor for name, tensor in theirs.state_dict().items()}
    (saved / "model.safetensors").unlink()
    torch.save(state, saved / "pytorch_model.bin")
    same_logits(checkpoint.open_run(saved).model(), theirs)
    torch.save(state | {"wte.weight": torch.zeros(257, 128)}, saved / "pytorch_model.bin")
    with pytest.raises(Mistake, match="some weights are in it twice"):
        checkpoint.open_run(saved)
    torch.save({f"stranger.{name}": tensor for name, tensor in state.items()}, saved / "pytorch_model.bin")
    with pytest.raises(Mistake, match=r"only the model has .*, …; only what was saved has stranger\..*, …") as said:
        checkpoint.open_run(saved).model()
    assert len(str(said.value)) < 500


@pytest.mark.parametrize("rows, name", [(258, "bytes"), (304, "bytes"), (50258, "gpt2"), (50304, "gpt2")])
def test_a_model_with_more_rows_than_its_tokenizer_has_tokens_loads_and_crashes_nothing(
    rows, name, theirs, tmp_path, train, monkeypatch
):
    if name == "gpt2" and not DATA.is_dir():
        pytest.skip("the files of the gpt2 tokenizer are not at hand")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(DATA / "tiktoken"))
    theirs.resize_token_embeddings(rows)
    torch.nn.init.normal_(theirs.transformer.wte.weight, std=0.1)
    theirs.config.tokenizer = name
    theirs.save_pretrained(tmp_path / "resized")
    _, run = train("pretrain", init_from=str(tmp_path / "resized"), block_size=32, batch_size=1, steps=1)
    exported(run, tmp_path / "out")
    for folder in (tmp_path / "resized", run, tmp_path / "out"):
        opened = checkpoint.open_run(folder)
        assert opened.config.vocab_size == opened.tokenizer.n_vocab == rows
        model, last = opened.model(), rows - 1
        if folder == tmp_path / "resized":
            same_logits(model, theirs)
        [said] = generate(model, [[last, 1]], 5, temperature=9.0)
        assert opened.tokenizer.decode([*said, last]).endswith(f"<|unused {last}|>")
        assert opened.tokenizer.encode_ordinary("<|endoftext|> sea")[-1] < opened.tokenizer.eot_token


def test_weights_in_several_files_and_in_half_precision_come_in(theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="500KB")
    assert not (tmp_path / "shards" / "model.safetensors").exists()
    same_logits(model_in(tmp_path / "shards"), theirs)
    theirs.bfloat16().save_pretrained(tmp_path / "half")
    model = model_in(tmp_path / "half")
    assert model.wte.weight.dtype == torch.float32
    same_logits(model, theirs.float())


@pytest.mark.parametrize("which", ["bytes", "own"])
def test_an_exported_run_loads_in_transformers_with_no_missing_key(which, base, text, tmp_path, transformers):
    run = base
    if which == "own":
        run, file = tmp_path / "run", tmp_path / "own.tiktoken"
        save_tokenizer(train_bpe([Path(text).read_text(encoding="utf-8")], 300), file)
        tokenizer = load_tokenizer(str(file))
        run.mkdir()
        checkpoint.save_model(run, GPT(GPTConfig(tokenizer.n_vocab, 64, 2, 2, 32)), tokenizer)
    exported(run, tmp_path / "out")
    model, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    same_logits(checkpoint.open_run(run).model(), model)
    ours, their_tokenizer = (
        checkpoint.open_run(run).tokenizer,
        transformers.AutoTokenizer.from_pretrained(tmp_path / "out"),
    )
    for said in (Path(text).read_text(encoding="utf-8")[:2000], "Öl ☂ 7_x  y\n\n z\t", "naïve!!! 12345"):
        assert their_tokenizer.encode(said) == ours.encode_ordinary(said)
        assert their_tokenizer.decode(ours.encode_ordinary(said)) == said
    assert their_tokenizer.eos_token_id == ours.eot_token == model.config.eos_token_id
    # and back again, where it goes on as the run it was
    same_logits(checkpoint.open_run(tmp_path / "out").model(), checkpoint.open_run(run).model(), 0)
    assert checkpoint.open_run(tmp_path / "out").tokenizer.name == ours.name


def test_the_gpt2_tokenizer_is_exported_id_for_id(tmp_path, transformers, monkeypatch):
    if not DATA.is_dir():
        pytest.skip("the files of the gpt2 tokenizer are not at hand")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(DATA / "tiktoken"))
    tokenizer = load_tokenizer("gpt2")
    checkpoint.save_model(tmp_path / "run", GPT(GPTConfig(50257, 8, 1, 1, 4)), tokenizer)
    exported(tmp_path / "run", tmp_path / "out")
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    said = (DATA / "tinyshakespeare.txt").read_text(encoding="utf-8")[:200_000]
    said += "  Öl ☂ \n\n\n ''s don't  12 三つ\u3000x \n"
    assert their_tokenizer.encode(said) == tokenizer.encode_ordinary(said)


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"activation_function": "gelu"}, "activation_function is 'gelu'; only 'gelu_new' is built here"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"n_inner": 100}, "n_inner is 100; only 4 n_embd = 512"),
        ({"n_layer": 3}, r"only the model has blocks\.2\.attn\.k_proj\.bias, blocks\.2.*, …$"),
        ({"n_embd": 64}, "not q, k and v of 64 channels"),
        ({"n_positions": 64}, r"wpe.weight is \(64, 128\) in the model, \(32, 128\) in what was saved"),
        ({"n_head": "two"}, "must be whole numbers"),
        ({"n_head": 3}, "must be a multiple"),
    ],
)
def test_a_model_that_is_not_gpt2_as_built_here_is_refused_by_name(saved, change, sentence):
    settings = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(settings | change))
    with pytest.raises(Mistake, match=sentence) as said:
        checkpoint.open_run(saved).model()
    assert "theirs" in str(said.value)


def test_another_head_and_another_vocabulary_are_refused(theirs, saved, tmp_path):
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    state["lm_head.weight"] += 1
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(Mistake, match="a head that is not tied"):
        checkpoint.open_run(tmp_path / "pytorch_model.bin").model()
    (saved / "config.json").write_text((saved / "config.json").read_text().replace('"tokenizer": "bytes"', '"x": 1'))
    with pytest.raises(Mistake, match="has 257 tokens; only GPT-2's own tokenizer"):
        checkpoint.open_run(saved)


def test_a_pickle_in_place_of_weights_is_never_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    torch.save({"wte.weight": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(Mistake, match="it is no file of tensors alone"):
        checkpoint.open_run(tmp_path / "pytorch_model.bin").model()
    assert not (tmp_path / "owned").exists()


# ---- the file format ---------------------------------------------------------------------------------------------


def test_our_files_are_read_by_the_reference_and_its_files_by_us(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors comes with transformers")
    tensors = {
        "a": torch.randn(3, 4),
        "b": torch.randn(5).bfloat16(),
        "c": torch.tensor(7),
        "d": torch.zeros(0, 2),
        "e": torch.tensor([True, False, True]),
        "ü": torch.randn(4, 3).T.half(),
    }
    write_safetensors(tmp_path / "ours.safetensors", tensors)
    safetensors.save_file({n: t.contiguous() for n, t in tensors.items()}, tmp_path / "theirs.safetensors")
    for read in (
        safetensors.load_file(tmp_path / "ours.safetensors"),
        read_safetensors(tmp_path / "theirs.safetensors"),
    ):
        assert set(read) == set(tensors)
        for name, tensor in tensors.items():
            assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor)


def entry(**change):
    return {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **change}}


MALFORMED = {
    "empty": (b"", "0 bytes with a header of 0"),
    "short": (b"abc", "3 bytes"),
    "header too long": (struct.pack("<Q", 999) + b"{}", "a header of 999"),
    "header of exabytes": (struct.pack("<Q", 2**63) + b"{}", "a header of 9,223,372,036,854,775,808"),
    "html": (b"<!DOCTYPE html><html>not found</html>", "is not a safetensors file"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "is a Git LFS pointer"),
    "no json": (struct.pack("<Q", 4) + b"oops", "header cannot be read"),
    "a list": (struct.pack("<Q", 2) + b"[]", "header cannot be read"),
    "deep": (struct.pack("<Q", 100_000) + b"[" * 100_000, "header cannot be read"),
    "not utf-8": (struct.pack("<Q", 4) + b'{"\xff"', "header cannot be read"),
    "twice": (struct.pack("<Q", 16) + b'{"w": 1, "w": 2}', "a name comes twice"),
    "no entry": ({"w": 3}, "w has the data_offsets None"),
    "dtype": (entry(dtype="F128"), "w has the dtype 'F128'"),
    "dtype list": (entry(dtype=["F32"]), "w has the dtype"),
    "shape": (entry(shape=[-2]), r"w has the shape \[-2\]"),
    "shape of bools": (entry(shape=[True, 2]), r"w has the shape \[True, 2\]"),
    "wrong shape": (entry(shape=[3]), r"w has 8 bytes, where F32 of shape \[3\] takes 12"),
    "offsets": (entry(data_offsets=[8, 0]), "w has -8 bytes"),
    "offsets text": (entry(data_offsets="08"), "w has the data_offsets '08'"),
    "gap": (entry(data_offsets=[4, 12]), "w begins at byte 4 of the data, where 0 is expected"),
    "cut off": (entry(shape=[3], data_offsets=[0, 12]), "is cut off: w ends at byte 12 of the data, which has 8"),
    "more": (entry(shape=[1], data_offsets=[0, 4]), "has 4 bytes after its last tensor"),
    "overlap": ({**entry(), "v": entry()["w"]}, "begins at byte 0 of the data, where 8 is expected"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_file_is_refused_by_name(name, tmp_path):
    content, sentence = MALFORMED[name]
    if isinstance(content, dict):
        text = json.dumps(content).encode()
        content = struct.pack("<Q", len(text)) + text + bytes(8)
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=sentence) as said:
        read_safetensors(path)
    assert "bad.safetensors" in str(said.value)


# ---- adapters ----------------------------------------------------------------------------------------------------


def fill(model):
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["c_attn", "c_proj", "c_fc"]},
        {"target_modules": ["c_attn"], "use_rslora": True},
        {"target_modules": ["attn.c_proj", "c_fc"], "rank_pattern": {"c_fc": 5}, "alpha_pattern": {"c_fc": 3}},
        {"target_modules": ["c_attn"], "alpha_pattern": {"transformer.h.0.attn.c_attn": 50}},
        {"target_modules": ["c_attn", "c_fc"], "layers_to_transform": [1]},
        {"target_modules": r".*\.0\.mlp\.c_fc"},
        {"target_modules": ["transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_fc"]},
        {"target_modules": ["c_attn", "c_fc"], "exclude_modules": ["transformer.h.1.attn.c_attn"]},
        {"target_modules": ["c_fc"], "init_lora_weights": "orthogonal", "lora_dropout": 0.1},
    ],
    ids="every rank-stabilised ranks alphas one-block pattern full-names excluded orthogonal".split(),
)
def test_an_adapter_from_peft_comes_in_with_the_same_logits(settings, theirs, saved, tmp_path, peft):
    settings = {"r": 4 if "init_lora_weights" in settings else 3, "lora_alpha": 8, "fan_in_fan_out": True, **settings}
    config = peft.LoraConfig(task_type="CAUSAL_LM", **settings)
    adapted = peft.get_peft_model(theirs, config)
    fill(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    ours = checkpoint.open_run(saved).model()
    load_adapter(ours, tmp_path / "adapter")
    same_logits(ours, adapted.eval())
    merge(ours)
    same_logits(ours, adapted)


def test_an_adapter_of_the_model_without_its_head_comes_in(theirs, saved, tmp_path, peft):
    """Its names have no transformer., and its alphas by name neither."""
    settings = {"target_modules": ["h.0.attn.c_attn", "h.1.mlp.c_proj"], "alpha_pattern": {"h.0.attn.c_attn": 50}}
    adapted = peft.get_peft_model(theirs.transformer, peft.LoraConfig(r=3, fan_in_fan_out=True, **settings))
    fill(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    ours = checkpoint.open_run(saved).model()
    load_adapter(ours, tmp_path / "adapter")
    same_logits(ours, theirs.eval())


@pytest.mark.parametrize("targets", ["q_proj,k_proj,v_proj,o_proj,up_proj,down_proj", "q_proj,v_proj", "up_proj"])
def test_an_exported_lora_run_loads_in_peft_on_its_exported_base(targets, train, tmp_path, peft):
    _, run = train("lora", steps=3, r=2, alpha=6.0, targets=targets, learning_rate=0.05)
    model, _ = checkpoint.load_run("", str(run), torch.device("cpu"))
    exported(run, tmp_path / "out")
    adapted = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
    same_logits(model, adapted)
    # and back again
    again = checkpoint.open_run(tmp_path / "out" / "base").model()
    load_adapter(again, tmp_path / "out")
    same_logits(again, model)
    assert next(layer for _, layer in lora_layers(again)).adapters["default"].lora_A.size(0) == 2


def test_an_adapter_with_one_A_for_q_k_and_v_goes_out_as_it_came_in(theirs, saved, tmp_path, peft):
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=8, fan_in_fan_out=True, target_modules=["c_attn"])
    adapted = peft.get_peft_model(theirs, config)
    fill(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    settings, state = hugging_face.load_adapter(tmp_path / "adapter")
    tensors, out = adapter_of(settings, state, "gpt2")
    assert out["rank_pattern"] == {} and out["r"] == 3
    came = read_safetensors(tmp_path / "adapter" / "adapter_model.safetensors")
    for name, tensor in came.items():
        torch.testing.assert_close(tensors[name], tensor if "_A." in name else tensor * 8 / 3)


def test_an_adapter_that_is_no_plain_lora_is_refused(theirs, saved, tmp_path, peft):
    config = peft.LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=True, target_modules=["c_fc"])
    peft.get_peft_model(theirs, config).save_pretrained(tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    for change, sentence in [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"use_dora": True}, "use_dora is True"),
        ({"modules_to_save": ["wte"]}, "modules_to_save is"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which is not built here"),
        ({"alora_invocation_tokens": [1, 2]}, r"alora_invocation_tokens is \[1, 2\], which"),
        ({"invented_in_2030": 0.5}, "invented_in_2030 is 0.5, which is not built here"),
        (
            {"use_rslora": "no"} | {"trainable_token_indices": list(range(99))},
            r"indices is \[0, 1, .*, \.\.\.\], which",
        ),
        ({"alpha_pattern": ["c_fc"]}, "cannot be used"),
        ({"alpha_pattern": {"(": 1}}, "cannot be used"),
    ]:
        (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings | change))
        with pytest.raises(Mistake, match=sentence):
            load_adapter(checkpoint.open_run(saved).model(), tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(
        Mistake, match=r"does not fit its base: only what was saved has blocks\.1\.mlp\.up_proj\.lora_A"
    ):
        load_adapter(GPT(GPTConfig(257, 32, 1, 2, 128)), tmp_path / "adapter")


@pytest.mark.parametrize(
    "A, B, sentence",
    [
        (torch.zeros(3, 128), torch.zeros(512, 2), r"A is \(3, 128\) and B \(512, 2\) in transformer.h.0.mlp.c_fc: "),
        (torch.zeros(3, 128), torch.zeros(512), "they do not fit"),
        (torch.zeros(0, 128), torch.zeros(512, 0), "they do not fit"),
        (torch.tensor(1.0), torch.zeros(512, 3), "they do not fit"),
        (torch.zeros(3, 128), None, "is missing"),
        (None, None, "there is no adapter in it"),
        (torch.zeros(3, 100), torch.ones(512, 3), r"does not fit its base: .* is \(3, 128\) in the model, \(3, 100\)"),
    ],
)
def test_a_malformed_adapter_is_a_sentence(A, B, sentence, saved, tmp_path):
    name = NAME.format(0, "mlp.c_fc", "{}")
    tensors = {name.format(AB): tensor for AB, tensor in zip("AB", (A, B), strict=True) if tensor is not None}
    write_safetensors(tmp_path / "adapter_model.safetensors", tensors)
    settings = {"peft_type": "LORA", "lora_alpha": 1, "layers_to_transform": [0]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(Mistake, match=sentence):
        load_adapter(checkpoint.open_run(saved).model(), tmp_path)


# ---- in use ------------------------------------------------------------------------------------------------------


def test_a_merged_run_is_a_plain_one_with_the_same_logits(train, tmp_path):
    _, run = train("lora", steps=3, learning_rate=0.05)
    exported(run, tmp_path / "merged", merge=True)
    plain = checkpoint.open_run(tmp_path / "merged").model()
    assert not list(lora_layers(plain))
    same_logits(plain, checkpoint.load_run("", str(run), torch.device("cpu"))[0])
    assert checkpoint.open_run(tmp_path / "merged").tokenizer.name == "bytes"
    with pytest.raises(Mistake, match="holds no adapter that could be merged"):
        exported(tmp_path / "merged", tmp_path / "twice", merge=True)
    with pytest.raises(Mistake, match="exists already: name a new folder"):
        exported(run, tmp_path / "merged", merge=True)


def test_a_base_that_has_moved_or_changed_is_named_and_leaves_no_folder(train, base, tmp_path):
    _, own = train("pretrain")
    _, adapter = train("lora", init_from=str(own))
    moved = own.rename(tmp_path / "moved")
    for merged in (False, True):
        with pytest.raises(
            Mistake, match=r"was trained on .*, where no model is now: name its folder with --from \(of"
        ):
            exported(adapter, tmp_path / "out", merge=merged)
        with pytest.raises(Mistake, match=r"was trained on .*, not on this base: their weights differ"):
            exported(adapter, tmp_path / "out", merge=merged, base=base)
        assert not (tmp_path / "out").exists()
        exported(adapter, tmp_path / f"merged {merged}", merge=merged, base=str(moved))
    assert (tmp_path / "merged False" / "adapter_config.json").is_file()
    # the sentence's advice: the merged run needs no base
    train("lora", init_from=str(tmp_path / "merged True"))


def test_a_run_of_which_a_part_has_learned_is_exported_as_a_model_and_other_parts_are_refused(base, tmp_path):
    for what, sentence in [("norm", ""), ("both", "more than one adapter")]:
        opened = checkpoint.open_run(base)
        model = opened.model().requires_grad_(False)
        if what == "both":
            apply_lora(model, 2, 4)
        torch.nn.init.normal_(model.ln_f.requires_grad_(True).weight, std=3.0)  # for logits of some size
        (tmp_path / what).mkdir()
        checkpoint.save(tmp_path / what, model, opened)
        if not sentence:
            exported(tmp_path / what, tmp_path / "out")
            same_logits(checkpoint.open_run(tmp_path / "out").model(), model, 0)
            continue
        with pytest.raises(Mistake, match=sentence):
            exported(tmp_path / what, tmp_path / "no")


def test_an_adapter_is_named_by_its_folder_or_by_a_file_in_it(train, tmp_path):
    """Ours and PEFT's, to start from or on a base that is named."""
    _, run = train("lora", learning_rate=0.05)
    exported(run, tmp_path / "out")
    expected = checkpoint.open_run(run).model()
    out = tmp_path / "out"
    for name in (run / "learned.pt", out, out / "adapter_model.safetensors", out / "adapter_config.json"):
        same_logits(checkpoint.open_run(name).model(), expected)
        same_logits(checkpoint.load_run("", str(name), torch.device("cpu"))[0], expected)
    base = Path(read_learned(run)["base"])
    same_logits(checkpoint.open_run(base / "model.pt").model(), checkpoint.open_run(base).model(), 0)
    train("sft", init_from=str(base / "model.pt"))
    (out / "base").rename(tmp_path / "elsewhere")
    settings = json.loads((out / "adapter_config.json").read_text())
    for name, sentence in [("", "does not say on which base"), (str(run), "an adapter itself: merge that first")]:
        (out / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": name}))
        with pytest.raises(Mistake, match=sentence):
            checkpoint.open_run(out)


def test_an_exported_adapter_finds_its_base_beside_it_and_from_any_folder(train, tmp_path, monkeypatch, peft):
    _, run = train("lora", learning_rate=0.05)
    monkeypatch.chdir(tmp_path)
    exported(run, "relative")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    adapted = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "relative")
    (tmp_path / "relative").rename(tmp_path / "moved")
    model, _ = checkpoint.load_run("", str(tmp_path / "moved"), torch.device("cpu"))
    same_logits(model, adapted)


def test_a_tokenizer_of_its_own_is_never_taken_for_gpt2s(theirs, saved):
    """One of as many tokens too."""
    vocabulary = {f"token {i}": i for i in range(257)}
    (saved / "vocab.json").write_text(json.dumps(vocabulary))
    with pytest.raises(Mistake, match="has a tokenizer of its own, which is not bytes"):
        checkpoint.open_run(saved)


def test_dropout_reaches_a_model_in_hugging_faces_layout(saved):
    assert checkpoint.open_run(saved).model(dropout=0.5).blocks[0].dropout.p == 0.5


def test_a_tied_head_stored_alone_or_in_another_precision_comes_in(theirs, tmp_path):
    """As safetensors' own save_model and some converters write it."""
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    head = state.pop("transformer.wte.weight")
    torch.save(state, tmp_path / "pytorch_model.bin")
    same_logits(model_in(tmp_path / "pytorch_model.bin"), theirs)
    half = {**state, "transformer.wte.weight": head.half().float(), "lm_head.weight": head.half()}
    torch.save(half, tmp_path / "pytorch_model.bin")
    assert torch.equal(model_in(tmp_path / "pytorch_model.bin").wte.weight, head.half().float())


BAD = ["[]", '{"weight_map": []}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": "../x"}}', "{"]


@pytest.mark.parametrize("index", BAD)
def test_a_malformed_index_is_a_sentence(index, tmp_path, theirs):
    theirs.config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(Mistake, match=r"index\.json"):
        checkpoint.open_run(tmp_path).model()

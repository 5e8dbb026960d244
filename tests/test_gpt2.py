"""GPT-2's weights and PEFT's adapters, in and out: the same function on both sides, to 1e-5 of a logit."""

import json
import struct
from pathlib import Path

import pytest
import torch

from cli import Mistake
from data.tokenizer import load_tokenizer, save_tokenizer, train_bpe
from export import export_run, merge_run
from model.generate import generate
from model.gpt import GPT, GPTConfig
from model.lora import lora_layers, merge
from store import checkpoint, gpt2
from store.safetensors import read_safetensors, write_safetensors

ROOT = Path(__file__).parent.parent


@pytest.fixture
def transformers():
    return pytest.importorskip("transformers", reason="transformers is no run-time requirement")


@pytest.fixture
def peft():
    return pytest.importorskip("peft", reason="PEFT is no run-time requirement")


@pytest.fixture
def theirs(transformers):
    """A GPT2LMHeadModel with weights large enough for its parts to matter (trap 14), of 2 heads and 2 layers."""
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
    same_logits(checkpoint.open_run(tmp_path / "pytorch_model.bin").model(), theirs)
    assert "2 heads of 64 channels are taken" in capsys.readouterr().out
    del bare["lm_head.weight"]
    write_safetensors(tmp_path / "bare.safetensors", {name: t.contiguous() for name, t in bare.items()})
    same_logits(checkpoint.open_run(tmp_path / "bare.safetensors").model(), theirs)


def test_weights_in_several_files_and_in_half_precision_come_in(theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="500KB")
    assert not (tmp_path / "shards" / "model.safetensors").exists()
    same_logits(checkpoint.open_run(tmp_path / "shards").model(), theirs)
    theirs.bfloat16().save_pretrained(tmp_path / "half")
    model = checkpoint.open_run(tmp_path / "half").model()
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
    export_run(str(run), tmp_path / "out")
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


def test_transformers_generates_from_an_export_what_we_do(base, tmp_path, transformers):
    export_run(base, tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    prompt = checkpoint.open_run(base).tokenizer.encode_ordinary("the old ship")
    said = model.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False, pad_token_id=0)[0, len(prompt) :]
    assert said.tolist() == generate(checkpoint.open_run(base).model(), [prompt], 20)[0]


def test_the_gpt2_tokenizer_is_exported_id_for_id(tmp_path, transformers, monkeypatch):
    data = ROOT.parent / "shared" / "data"
    if not data.is_dir():
        pytest.skip("the files of the gpt2 tokenizer are not at hand")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(data / "tiktoken"))
    tokenizer = load_tokenizer("gpt2")
    checkpoint.save_model(tmp_path / "run", GPT(GPTConfig(50257, 8, 1, 1, 4)), tokenizer)
    export_run(str(tmp_path / "run"), tmp_path / "out")
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    said = (data / "tinyshakespeare.txt").read_text(encoding="utf-8")[
        :200_000
    ] + "  Öl ☂ \n\n\n ''s don't  12 三つ\u3000x \n"
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
        ({"n_layer": 3}, "Missing key"),
        ({"n_embd": 64}, "not q, k and v of 64 channels"),
        ({"n_positions": 64}, "size mismatch"),
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
        checkpoint.open_run(saved).tokenizer


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
    ],
    ids=[
        "every layer",
        "attention, rank-stabilised",
        "ranks that differ",
        "alphas by full name",
        "a block",
        "a pattern",
    ],
)
def test_an_adapter_from_peft_comes_in_with_the_same_logits(settings, theirs, saved, tmp_path, peft):
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=8, fan_in_fan_out=True, **settings)
    adapted = peft.get_peft_model(theirs, config)
    fill(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    ours = checkpoint.open_run(saved).model()
    checkpoint.load_adapter(ours, tmp_path / "adapter")
    same_logits(ours, adapted.eval())
    merge(ours)
    same_logits(ours, adapted)


@pytest.mark.parametrize("targets", ["q_proj,k_proj,v_proj,o_proj,up_proj,down_proj", "q_proj,v_proj", "up_proj"])
def test_an_exported_lora_run_loads_in_peft_on_its_exported_base(targets, train, tmp_path, peft):
    _, run = train("lora", steps=3, r=2, alpha=6.0, targets=targets, learning_rate=0.05)
    model, _ = checkpoint.load_run("", str(run), torch.device("cpu"))
    export_run(str(run), tmp_path / "out")
    adapted = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
    same_logits(model, adapted)
    # and back again
    again = checkpoint.open_run(tmp_path / "out" / "base").model()
    checkpoint.load_adapter(again, tmp_path / "out")
    same_logits(again, model)
    assert next(layer for _, layer in lora_layers(again)).adapters["default"].lora_A.size(0) == 2


def test_an_adapter_with_one_A_for_q_k_and_v_goes_out_as_it_came_in(theirs, saved, tmp_path, peft):
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=8, fan_in_fan_out=True, target_modules=["c_attn"])
    adapted = peft.get_peft_model(theirs, config)
    fill(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    settings, state = checkpoint.hugging_face.load_adapter(tmp_path / "adapter")
    tensors, out = gpt2.adapter_of(state, settings["r"], settings["alpha"], "gpt2")
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
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which changes W0"),
        ({"alpha_pattern": ["c_fc"]}, "cannot be used"),
        ({"alpha_pattern": {"(": 1}}, "cannot be used"),
    ]:
        (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings | change))
        with pytest.raises(Mistake, match=sentence):
            checkpoint.load_adapter(checkpoint.open_run(saved).model(), tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    other = GPT(GPTConfig(257, 32, 3, 2, 128))
    with pytest.raises(Mistake, match=r"does not fit its base: .* only the model has blocks\.2"):
        checkpoint.load_adapter(other, tmp_path / "adapter")


@pytest.mark.parametrize(
    "A, B, sentence",
    [
        (
            torch.zeros(3, 128),
            torch.zeros(512, 2),
            r"A is \(3, 128\) and B \(512, 2\) in h.0.mlp.c_fc: they do",
        ),
        (torch.zeros(3, 128), torch.zeros(512), "they do not fit"),
        (torch.zeros(0, 128), torch.zeros(512, 0), "they do not fit"),
        (torch.tensor(1.0), torch.zeros(512, 3), "they do not fit"),
        (torch.zeros(3, 128), None, "is missing"),
        (None, None, "there is no adapter in it"),
        (torch.zeros(3, 100), torch.ones(512, 3), r"does not fit its base: .* is \(3, 100\) in the adapter"),
    ],
)
def test_a_malformed_adapter_is_a_sentence(A, B, sentence, saved, tmp_path):
    name = gpt2.PEFT.format(0, "mlp.c_fc", "{}")
    tensors = {name.format(AB): tensor for AB, tensor in zip("AB", (A, B), strict=True) if tensor is not None}
    write_safetensors(tmp_path / "adapter_model.safetensors", tensors)
    settings = {"peft_type": "LORA", "lora_alpha": 1, "layers_to_transform": [0]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(Mistake, match=sentence):
        checkpoint.load_adapter(checkpoint.open_run(saved).model(), tmp_path)


# ---- in use ------------------------------------------------------------------------------------------------------


def test_a_merged_run_is_a_plain_one_with_the_same_logits(train, tmp_path):
    _, run = train("lora", steps=3, learning_rate=0.05)
    merge_run(str(run), tmp_path / "merged")
    plain = checkpoint.open_run(tmp_path / "merged").model()
    assert not list(lora_layers(plain))
    same_logits(plain, checkpoint.load_run("", str(run), torch.device("cpu"))[0])
    assert checkpoint.open_run(tmp_path / "merged").tokenizer.name == "bytes"
    with pytest.raises(Mistake, match="holds no adapter that could be merged"):
        merge_run(str(tmp_path / "merged"), tmp_path / "twice")
    with pytest.raises(Mistake, match="exists already: name a new folder"):
        merge_run(str(run), tmp_path / "merged")


def test_a_base_that_has_moved_or_changed_is_named_and_leaves_no_folder(train, base, tmp_path):
    _, own = train("pretrain")
    _, adapter = train("lora", init_from=str(own))
    moved = own.rename(tmp_path / "moved")
    for command in (export_run, merge_run):
        with pytest.raises(Mistake, match=r"was trained on .*, where no model is now: name its folder with --from"):
            command(str(adapter), tmp_path / "out")
        with pytest.raises(Mistake, match=r"was trained on .*, not on this base: their weights differ"):
            command(str(adapter), tmp_path / "out", base)
        assert not (tmp_path / "out").exists()
        command(str(adapter), tmp_path / command.__name__, str(moved))
    assert (tmp_path / "export_run" / "adapter_config.json").is_file()


def test_an_exported_adapter_finds_its_base_beside_it_and_from_any_folder(train, tmp_path, monkeypatch, peft):
    _, run = train("lora", learning_rate=0.05)
    monkeypatch.chdir(tmp_path)
    export_run(str(run), "relative")
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
        checkpoint.open_run(saved).tokenizer


def test_dropout_reaches_a_model_in_hugging_faces_layout(saved):
    assert checkpoint.open_run(saved).model(dropout=0.5).blocks[0].dropout.p == 0.5


def test_a_tied_head_stored_alone_or_in_another_precision_comes_in(theirs, tmp_path):
    """As safetensors' own save_model and some converters write it."""
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    head = state.pop("transformer.wte.weight")
    torch.save(state, tmp_path / "pytorch_model.bin")
    same_logits(checkpoint.open_run(tmp_path / "pytorch_model.bin").model(), theirs)
    half = {**state, "transformer.wte.weight": head.half().float(), "lm_head.weight": head.half()}
    torch.save(half, tmp_path / "pytorch_model.bin")
    assert torch.equal(checkpoint.open_run(tmp_path / "pytorch_model.bin").model().wte.weight, head.half().float())


BAD = ["[]", '{"weight_map": []}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": "../x"}}', "{"]


@pytest.mark.parametrize("index", BAD)
def test_a_malformed_index_is_a_sentence(index, tmp_path, theirs):
    theirs.config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(Mistake, match=r"index\.json"):
        checkpoint.open_run(tmp_path).model()

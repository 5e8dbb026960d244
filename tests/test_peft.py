"""Prefixes and soft prompts of PEFT's, in and out: the same logits and the same gradients, to 1e-5."""

import json

import pytest
import torch

import evaluate
import export
import sample
from cli import Mistake
from model.generate import generate
from model.head import new_head
from model.prefix import apply_prefix
from store import checkpoint
from store.learned import APPLY, load_adapter, read_learned
from store.safetensors import read_safetensors, write_safetensors

P = 5
CPU = torch.device("cpu")
KINDS = {"prefix": "PrefixTuningConfig", "prompt": "PromptTuningConfig"}  # ours: PEFT's
SHAPES = [(1, 1, 16, 0), (3, 4, 24, 1), (2, 2, 128, 2)]  # n_layer, n_head, n_embd, seed


@pytest.fixture
def peft():
    return pytest.importorskip("peft", reason="PEFT is no run-time requirement")


@pytest.fixture
def bases(tmp_path):
    """bases(n_layer, n_head, n_embd, seed): a random GPT2LMHeadModel whose parts all matter, and its folder."""
    transformers = pytest.importorskip("transformers", reason="transformers is no run-time requirement")

    def new(n_layer, n_head, n_embd, seed):
        torch.manual_seed(seed)
        sizes = {"vocab_size": 257, "n_positions": 32, "n_layer": n_layer, "n_head": n_head, "n_embd": n_embd}
        config = transformers.GPT2Config(**sizes, tokenizer="bytes")
        model = transformers.GPT2LMHeadModel(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(tmp_path / "base")
        return model, tmp_path / "base"

    return new


@pytest.fixture
def adapted(peft, bases, tmp_path):
    """adapted(method, shape): PEFT's model with random numbers before its rows, its own base's folder, its own."""

    def new(method, shape=SHAPES[2], **settings):
        model, base = bases(*shape)
        config = getattr(peft, KINDS[method])(task_type="CAUSAL_LM", num_virtual_tokens=P, **settings)
        model = peft.get_peft_model(model, config)
        torch.nn.init.normal_(model.prompt_encoder.default.embedding.weight, std=0.3)
        model.save_pretrained(tmp_path / "theirs")
        model.eval()  # without dropout
        return model, base, tmp_path / "theirs"

    return new


def on_its_base(base, folder):
    model = checkpoint.open_run(base).model()
    load_adapter(model, folder)
    return model


def rows(T=32 - P):
    return torch.randint(257, (3, T), generator=torch.Generator().manual_seed(1))


def same_logits(ours, theirs):
    """theirs: of PEFT, whose prompts have logits of their own."""
    expected = theirs(rows()).logits[:, -rows().size(1) :]
    assert expected.std() > 0.1
    torch.testing.assert_close(ours(rows()), expected, rtol=0, atol=1e-5)


def in_our_shape(method, numbers, shape):
    """Of PEFT's embeddings, said once more in other words than store/peft.py says it."""
    n_layer, n_head, C, _ = shape
    if method == "prompt":
        return numbers[None]
    layers = numbers.split(C, dim=1)  # key, value, key, value, …, (P, C) each
    heads = [torch.stack(layer.chunk(n_head, dim=1)) for layer in layers]  # (H, P, D) each
    return torch.stack([torch.stack(heads[2 * i : 2 * i + 2]) for i in range(n_layer)])  # (n_layer, 2, H, P, D)


# ---- in ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("method", KINDS)
def test_what_peft_has_saved_comes_in_with_the_same_logits_and_gradients(method, shape, adapted):
    theirs, base, folder = adapted(method, shape)
    ours = on_its_base(base, folder)
    same_logits(ours, theirs)
    targets = torch.randint(257, (3, rows().size(1)))
    for logits in (ours(rows()), theirs(rows()).logits[:, -rows().size(1) :]):
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").backward()
    [learns] = [parameter for parameter in ours.parameters() if parameter.requires_grad]
    expected = in_our_shape(method, theirs.prompt_encoder.default.embedding.weight.grad, shape)
    assert expected.abs().max() > 1e-2
    torch.testing.assert_close(learns.grad, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", KINDS)
def test_a_folder_of_peft_is_taken_wherever_a_run_is(method, adapted, train, text, tmp_path):
    """sample.py and evaluate.py with --adapter, and training that goes on with --init-from."""
    theirs, base, folder = adapted(method)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": str(base)}))
    model, _ = checkpoint.load_run("", str(folder), CPU)
    same_logits(model, theirs)
    prompt = rows(4)[:1]
    expected = theirs.generate(prompt, max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert generate(model, prompt.tolist(), 8, temperature=0.0) == [expected[0, -8:].tolist()]
    evaluate.main(evaluate.Config(adapter=str(folder), text=text, device="cpu"))
    _, run = train(method, init_from=str(folder), length=P, block_size=32 - P)
    before, after = (read_learned(one) for one in (folder, run))
    assert before["attached"] == after["attached"] and before["weights"].keys() == after["weights"].keys()
    assert all(not torch.equal(before["weights"][name], after["weights"][name]) for name in before["weights"])


@pytest.mark.parametrize(
    "method, settings",
    [
        ("prefix", {"prefix_projection": True, "encoder_hidden_size": 7}),
        ("prompt", {"prompt_tuning_init": "SAMPLE_VOCAB"}),
    ],
    ids=["projection", "from-tokens"],
)
def test_how_a_prefix_was_projected_or_a_prompt_begun_does_not_matter_once_it_is_saved(method, settings, adapted):
    theirs, base, folder = adapted(method, **settings)
    same_logits(on_its_base(base, folder), theirs)


def test_a_prompt_that_was_begun_from_a_text_comes_in(adapted):
    theirs, base, folder = adapted("prompt")
    began = {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "Say it.", "tokenizer_name_or_path": "gpt2"}
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | began))
    same_logits(on_its_base(base, folder), theirs)


# ---- out ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", KINDS)
def test_an_exported_run_loads_in_peft_on_its_exported_base_and_here_again(method, train, tmp_path, peft):
    _, run = train(method, steps=3, length=P, learning_rate=0.5)
    model, _ = checkpoint.load_run("", str(run), CPU)
    export.main(export.Config(from_=str(run), out=str(tmp_path / "out")))
    same_logits(model, peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out").eval())
    again, _ = checkpoint.load_run("", str(tmp_path / "out"), CPU)
    assert torch.equal(again(rows()), model(rows()))
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "base"
    }  # fmt: skip


@pytest.mark.parametrize("method", KINDS)
def test_what_came_from_peft_goes_out_as_it_came(method, adapted, tmp_path):
    _, base, folder = adapted(method)
    export.main(export.Config(from_=str(folder), out=str(tmp_path / "out"), base=str(base)))
    came, went = (read_safetensors(one / "adapter_model.safetensors") for one in (folder, tmp_path / "out"))
    assert came.keys() == went.keys() and torch.equal(came["prompt_embeddings"], went["prompt_embeddings"])


def test_bottlenecks_are_exported_as_our_own_file_and_export_says_so(train, tmp_path, capsys):
    _, run = train("adapter", steps=3, learning_rate=0.05)
    export.main(export.Config(from_=str(run), out=str(tmp_path / "out")))
    assert "PEFT has no bottlenecks, so this is our own file; python sample.py --adapter" in capsys.readouterr().out
    model, _ = checkpoint.load_run("", str(run), CPU)
    again, _ = checkpoint.load_run("", str(tmp_path / "out"), CPU)
    assert torch.equal(again(rows()), model(rows()))
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"learned.pt", "base"}


@pytest.mark.parametrize("beside", ["lora", "head", "plain"])
def test_a_prefix_and_more_is_refused_before_a_folder_is_made_with_advice_that_works(base, tmp_path, beside, capsys):
    """Beside LoRA, beside a head, and beside a model that is saved whole."""
    opened = checkpoint.open_run(base)
    model = opened.model()
    if beside == "head":
        new_head(model, ["a", "b"], "text")
    kept = [*(APPLY["lora"](model, 2, 4.0) if beside == "lora" else []), *apply_prefix(model, P, name="default")]
    model.requires_grad_(beside == "plain")
    for parameter in [*kept, *(model.head.parameters() if beside == "head" else [])]:
        parameter.requires_grad_(True)
    checkpoint.save(tmp_path / "both", model, opened)
    sentence = (
        "both has prefix beside its weights: only LoRA can be merged"
        if beside == "plain"
        else ("both has learned more than one adapter, prefix, prompt or head")
    )
    with pytest.raises(Mistake, match=f"{sentence}.*; sample.py and evaluate.py"):
        export.main(export.Config(from_=str(tmp_path / "both"), out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()
    named = {"from_": str(tmp_path / "both")} if beside == "plain" else {"adapter": str(tmp_path / "both")}
    sample.main(sample.Config(**named, prompt="sea", classify=beside == "head", device="cpu", max_new_tokens=2))
    assert capsys.readouterr().out.split()[-1]


# ---- what does not fit -------------------------------------------------------------------------------------------

SIZES = {"num_virtual_tokens": P, "token_dim": 16, "num_attention_heads": 2, "num_layers": 2}  # as conftest's base
SETTINGS = {
    "prefix": {"peft_type": "PREFIX_TUNING", **SIZES},
    "prompt": {"peft_type": "PROMPT_TUNING", **SIZES},
}
NUMBERS = {"prefix": torch.zeros(P, 2 * 2 * 16), "prompt": torch.zeros(P, 16)}

BAD_SETTINGS = [
    (
        "prefix",
        {"peft_type": "P_TUNING"},
        r"adapter_config\.json .* peft_type is 'P_TUNING'; only LORA, PREFIX_TUNING, ",
    ),
    ("prefix", {"peft_type": None}, "peft_type is None; only LORA, PREFIX_TUNING, PROMPT_TUNING can be read"),
    ("prefix", {"peft_type": []}, r"peft_type is \[\]; only"),
    ("prompt", {"task_type": "SEQ_CLS"}, r"task_type is 'SEQ_CLS', which is not built here \(only 'CAUSAL_LM', 'FEA"),
    ("prompt", {"modules_to_save": ["score"]}, r"modules_to_save is \['score'\], which is not built here$"),
    ("prompt", {"num_transformer_submodules": 2}, "num_transformer_submodules is 2, which is not built here"),
    ("prefix", {"invented_in_2030": 1}, "invented_in_2030 is 1, which is not built here"),
    ("prompt", {"num_virtual_tokens": None}, r"must be whole numbers above 0: \[None, 16\]"),
    ("prompt", {"num_virtual_tokens": 0}, r"must be whole numbers above 0: \[0, 16\]"),
    ("prefix", {"num_attention_heads": 3}, "token_dim 16 must be a multiple of num_attention_heads 3"),
    ("prefix", {"num_layers": 3}, r"is \(5, 64\), its adapter_config\.json tells \(5, 96\)"),
    ("prefix", {"num_attention_heads": 4}, r"its base: .* is \(2, 2, 2, 5, 8\) in the model, \(2, 2, 4, 5, 4\) in"),
]


@pytest.mark.parametrize("method, change, sentence", BAD_SETTINGS)
def test_an_adapter_config_that_is_not_built_or_does_not_fit_is_one_sentence(method, change, sentence, base, tmp_path):
    refused(base, tmp_path / "adapter", SETTINGS[method] | change, {"prompt_embeddings": NUMBERS[method]}, sentence)


BAD_NUMBERS = [
    ("prompt", {}, (7, 16), r"prompt_embeddings is \(7, 16\), its adapter_config\.json tells \(5, 16\)"),
    ("prompt", {}, (5,), r"prompt_embeddings is \(5,\), its"),
    ("prompt", {"token_dim": 8}, (5, 8), r"its base: .* is \(1, 5, 16\) in the model, \(1, 5, 8\) in what was saved"),
    ("prompt", {"num_virtual_tokens": 192}, (192, 16), "its base: a prefix can have from 1 to 191 of the model's 192"),
]


@pytest.mark.parametrize("method, change, shape, sentence", BAD_NUMBERS)
def test_embeddings_of_another_length_or_width_are_one_sentence(method, change, shape, sentence, base, tmp_path):
    tensors = {"prompt_embeddings": torch.zeros(shape)}
    refused(base, tmp_path / "adapter", SETTINGS[method] | change, tensors, sentence)


@pytest.mark.parametrize("method", KINDS)
def test_tensors_other_than_prompt_embeddings_are_one_sentence(method, base, tmp_path):
    more = {"prompt_embeddings": NUMBERS[method], "score": torch.zeros(2)}
    for tensors, found in [({}, "none"), (more, "prompt_embeddings, score")]:
        sentence = f"must hold prompt_embeddings alone, it holds {found}$"
        refused(base, tmp_path / f"{found}", SETTINGS[method], tensors, sentence)


def test_a_folder_that_lacks_a_file_is_one_sentence(base, tmp_path):
    tensors = {"prompt_embeddings": NUMBERS["prefix"]}
    refused(
        base, tmp_path / "a", SETTINGS["prefix"], None, r"a lacks the weights: adapter_model\.safetensors or adapter_"
    )
    refused(base, tmp_path / "b", None, tensors, r"b lacks the adapter_config\.json that tells what its adapter is")


def refused(base, folder, settings, tensors, sentence):
    folder.mkdir()
    if settings is not None:
        (folder / "adapter_config.json").write_text(json.dumps(settings))
    if tensors is not None:
        write_safetensors(folder / "adapter_model.safetensors", tensors)
    with pytest.raises(Mistake, match=sentence) as said:
        load_adapter(checkpoint.open_run(base).model(), folder)
    assert str(folder) in str(said.value) and "\n" not in str(said.value)

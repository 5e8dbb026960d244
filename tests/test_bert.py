"""BERT's weights, in and out: the same function as in transformers, to 1e-5 of a logit, and the same labels."""

import json

import numpy as np
import pytest
import torch
from conftest import metrics, weights

import evaluate
import export
import sample
from cli import Mistake
from data.batches import collate
from data.examples import Reading, from_text
from data.labelled import read_labelled, to_classify
from data.masked import Masked
from data.public import VOCABULARIES, WEIGHTS
from data.wordpiece import SPECIAL, WordPiece, load_wordpiece
from model.bert import BERT, BERTConfig
from model.head import Classes, let_learn, new_head
from run.predict import predicted
from run.session import Session
from store import bert, checkpoint, hugging_face
from store.checkpoint import config_of, open_run
from store.safetensors import read_safetensors, write_safetensors

WORDS = "sea hill is calm old ship the sails home over a ol water land s ##s ##ea ##hip ##ill ##l c ##c , .".split()
VOCABULARY = [*SPECIAL, *WORDS]
TEXTS = ["the sea is calm", "hill", "old ship, old sea. the hills"]
SECONDS = ["a ship sails", "the old hill is over the sea", "home"]
LABELS = {0: "land", 1: "water", 2: "fog"}
ALL = ("BertForMaskedLM", "BertForPreTraining", "BertForSequenceClassification", "BertForTokenClassification")
ALL += ("DistilBertForMaskedLM", "DistilBertForSequenceClassification", "DistilBertForTokenClassification")


@pytest.fixture
def transformers():
    return pytest.importorskip("transformers", reason="transformers is no run-time requirement")


def random_model(transformers, architecture, **settings):
    """Two layers of two heads, with weights large enough for their parts to matter."""
    torch.manual_seed(0)
    labels = {"id2label": LABELS, "label2id": {name: n for n, name in LABELS.items()}}
    if architecture.startswith("Distil"):
        sizes = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 128, "max_position_embeddings": 40}
        config = transformers.DistilBertConfig(vocab_size=len(VOCABULARY), **{**sizes, **labels, **settings})
    else:
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
        sizes["max_position_embeddings"] = 40
        config = transformers.BertConfig(vocab_size=len(VOCABULARY), **{**sizes, **labels, **settings})
    model = getattr(transformers, architecture)(config).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("LayerNorm.weight" in name), std=0.3)
    return model


def write_vocabulary(folder):
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}), encoding="utf-8")


@pytest.fixture
def saved(transformers, tmp_path):
    """saved("BertForMaskedLM") writes a random model in Hugging Face's layout and returns (it, its folder)."""

    def save(architecture, **settings):
        model, folder = random_model(transformers, architecture, **settings), tmp_path / architecture
        model.save_pretrained(folder)
        write_vocabulary(folder)
        return model, folder

    return save


def same_logits(ours, theirs, folder, tolerance=1e-5):
    """On pairs of unlike lengths, padded on the right, as transformers' own tokenizer writes them."""
    import transformers

    tokenizer = transformers.BertTokenizer(vocab={token: n for n, token in enumerate(VOCABULARY)})
    batch = tokenizer(TEXTS, SECONDS, padding=True, return_tensors="pt")
    mask = batch["attention_mask"].bool()
    positions = torch.arange(mask.size(1)) * mask
    if "Distil" in type(theirs).__name__:
        batch.pop("token_type_ids")
    expected = theirs(**batch)
    expected = expected.prediction_logits if "prediction_logits" in expected else expected.logits
    graded = mask.clone()
    if expected.dim() == 2:  # a class of the text, at [CLS]
        graded[:, 1:] = False
    expected = expected if expected.dim() == 2 else expected[mask]
    ours.eval()
    assert expected.std() > 0.02
    torch.testing.assert_close(ours(batch["input_ids"], graded, positions), expected, rtol=0, atol=tolerance)


def exported(run, out):
    export.main(export.Config(from_=str(run), out=str(out)))
    return out


# ---- in and out ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ALL)
def test_a_model_of_transformers_comes_in_and_goes_out_with_the_same_logits(
    transformers, saved, architecture, tmp_path
):
    theirs, folder = saved(architecture)
    opened = open_run(folder)
    model = opened.model()
    same_logits(model, theirs, folder)
    has_head = "Classification" in architecture
    assert (opened.classes is not None) == has_head and (not has_head or opened.classes.names == [*LABELS.values()])
    checkpoint.save_model(tmp_path / "run", model, opened.tokenizer)
    again = open_run(tmp_path / "run")
    assert again.tokenizer.name == opened.tokenizer.name and again.classes == opened.classes
    out = exported(tmp_path / "run", tmp_path / "out")
    back = getattr(transformers, architecture.replace("PreTraining", "MaskedLM"))
    back, info = back.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    same_logits(again.model(), back, out)
    assert not has_head or back.config.id2label == LABELS


def test_the_last_states_are_those_of_BertModel_and_its_pooler_the_tanh_of_ours(transformers, saved):
    theirs, folder = saved("BertModel")
    model = open_run(folder).model()
    tokens = torch.randint(5, len(VOCABULARY), (3, 40), generator=torch.Generator().manual_seed(1))
    expected = theirs(tokens)
    h = model.hidden(tokens)
    torch.testing.assert_close(h, expected.last_hidden_state, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.tanh(model.pooler(h[:, 0])), expected.pooler_output, rtol=0, atol=1e-5)


def test_gradients_are_those_of_transformers(transformers, saved):
    theirs, folder = saved("BertForMaskedLM")
    model = open_run(folder).model()
    tokens = torch.randint(5, len(VOCABULARY), (3, 12), generator=torch.Generator().manual_seed(1))
    graded = torch.rand(3, 12, generator=torch.Generator().manual_seed(2)) < 0.3
    theirs(tokens, labels=torch.where(graded, tokens, -100)).loss.backward()
    torch.nn.functional.cross_entropy(model(tokens, graded), tokens[graded]).backward()
    ours = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    expected = {bert.bare(name): p.grad for name, p in theirs.named_parameters()}
    assert {name for name, _ in model.named_parameters()} - ours.keys() == {"pooler.weight", "pooler.bias"}
    for name, gradient in bert.weights_of(ours, model.config, None).items():
        torch.testing.assert_close(gradient, expected[bert.bare(name)], rtol=1e-4, atol=1e-6)


def test_the_published_names_of_LayerNorm_and_a_file_of_bin_are_read(saved):
    theirs, folder = saved("BertForPreTraining")
    tensors = read_safetensors(folder / "model.safetensors")
    old = {
        n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
        for n, t in tensors.items()
    }
    assert old.keys() != tensors.keys()
    (folder / "model.safetensors").unlink()
    torch.save(old | {"bert.embeddings.position_ids": torch.arange(40)[None]}, folder / "pytorch_model.bin")
    same_logits(open_run(folder).model(), theirs, folder)


@pytest.mark.parametrize("name", bert.SHAPES)
def test_a_published_model_is_found_by_name_with_its_vocabulary(saved, tmp_path, monkeypatch, name):
    """As if it had been downloaded. Its real files were not checked here, for want of a network."""
    theirs, folder = saved("DistilBertForMaskedLM" if name.startswith("distil") else "BertForPreTraining")
    asked = []
    files = {WEIGHTS[name]: folder / "model.safetensors", VOCABULARIES[name]: folder / "vocab.txt"}
    monkeypatch.setattr(hugging_face, "fetch", lambda public, _: asked.append(public) or files[public])
    monkeypatch.chdir(tmp_path)
    assert (
        config_of(name).n_embd == 768
        and config_of(name).segments == (0 if name.startswith("distil") else 2)
        and not asked
    )
    small = BERTConfig(len(VOCABULARY), 40, 2, 2, 32, segments=config_of(name).segments, sep=3)
    monkeypatch.setattr(bert, "config_named", lambda _: small)
    opened = open_run(name)
    assert opened.tokenizer.lower_case == ("uncased" in name)
    same_logits(opened.model(), theirs, folder)
    for public in files:
        assert len(public.sha256) == 64 and public.size and len(public.url.split("/resolve/")[1].split("/")[0]) == 40


# ---- texts, pairs, words, masks --------------------------------------------------------------------------------------

TOKENIZER = WordPiece(VOCABULARY, lower_case=True)


def test_a_text_and_a_pair_stand_as_in_transformers_and_are_graded_at_CLS(transformers):
    theirs = transformers.BertTokenizer(vocab={token: n for n, token in enumerate(VOCABULARY)})
    model = BERT(BERTConfig(len(VOCABULARY), 40, 1, 1, 4, sep=3))
    for first, second in zip(TEXTS, SECONDS, strict=True):
        for pieces in ([first], [first, second]):
            (inputs, _, graded, positions), is_cut = to_classify(pieces, "text", TOKENIZER, 40)
            expected = theirs(*pieces)
            assert inputs.tolist() == expected["input_ids"] and not is_cut
            segments = model.segments_of(torch.from_numpy(inputs)[None])
            assert segments.tolist() == [expected["token_type_ids"]]
            assert graded.nonzero()[0].tolist() == [0] and positions.tolist() == list(range(len(inputs)))
        (inputs, *_), is_cut = to_classify([first], "text", TOKENIZER, 5)
        assert inputs.tolist() == theirs(first, truncation=True, max_length=5)["input_ids"]
        (inputs, *_), is_cut = to_classify([first, second], "text", TOKENIZER, 7)
        assert len(inputs) == 7 and (inputs == 3).sum() == 2 and inputs[-1] == 3 and is_cut


def test_a_tag_stands_at_the_last_piece_of_its_word_and_a_word_of_nothing_is_unknown():
    (inputs, _, graded, _), is_cut = to_classify(["Ships", "\u200b", "hills"], "word", TOKENIZER, 40)
    tokens = [TOKENIZER.vocabulary[n] for n in inputs]
    assert tokens == ["[CLS]", "ship", "##s", "[UNK]", "hill", "##s", "[SEP]"] and not is_cut
    assert graded.nonzero()[0].tolist() == [2, 3, 5]
    (inputs, _, graded, _), is_cut = to_classify(["ships", "sea", "hills"], "word", TOKENIZER, 6)
    assert [TOKENIZER.vocabulary[n] for n in inputs] == ["[CLS]", "ship", "##s", "sea", "hill", "[SEP]"] and is_cut
    assert graded.nonzero()[0].tolist() == [2, 3], "of the last word only a part fits"


def test_rows_to_hide_tokens_of_stand_between_CLS_and_SEP_which_are_never_hidden(text):
    train, _ = from_text(text, Reading(TOKENIZER, 32, 0.1))
    seen = set()
    for epoch in range(30):
        for row in Masked(train, TOKENIZER, epoch=epoch):
            inputs, targets, graded, _ = row
            assert len(inputs) <= 32 and (inputs[0], inputs[-1]) == (TOKENIZER.cls, TOKENIZER.sep) == (
                targets[0],
                targets[-1],
            )
            assert not np.isin(targets[graded], [TOKENIZER.cls, TOKENIZER.sep, TOKENIZER.unk]).any()
            seen.update(inputs[graded & (inputs != targets)].tolist())
    assert len(train[0].inputs) == 30 and TOKENIZER.mask in seen
    with pytest.raises(Mistake, match="--block-size 2 has no room for text"):
        from_text(text, Reading(TOKENIZER, 2, 0.1))
    assert seen - {TOKENIZER.mask} <= set(TOKENIZER.of_texts) and len(seen) > 15, "others take a token's place"


def test_right_padding_changes_no_logit():
    torch.manual_seed(0)
    model = BERT(BERTConfig(len(VOCABULARY), 40, 2, 2, 12, sep=3))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    new_head(model, ["a", "b"], "text")
    rows = [to_classify([text], "text", TOKENIZER, 40)[0] for text in TEXTS]
    inputs, _, graded, positions = collate(rows)
    together = model(inputs, graded, positions)
    alone = [model(*(torch.from_numpy(part)[None] for part in (row.inputs, row.graded, row.positions))) for row in rows]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-6)
    far = torch.where((positions > 0) | (torch.arange(inputs.size(1)) == 0), inputs, 7)
    assert (far != inputs).any()
    torch.testing.assert_close(model(far, graded, positions), together, rtol=0, atol=1e-6)
    assert torch.equal(model(inputs, graded), together) is False, "without positions padding is seen"


def test_last_k_is_the_last_blocks_and_the_pooler_if_the_head_reads_it():
    def learns(each, segments=2, learn="last-1"):
        model = BERT(BERTConfig(len(VOCABULARY), 40, 2, 2, 12, segments=segments, sep=3))
        new_head(model, ["a", "b"], each)
        let_learn(model, learn, 2, 4.0)
        return {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}

    assert learns("text") == {"blocks", "pooler", "head"}
    assert learns("word") == learns("word", segments=0) == {"blocks", "head"}
    assert learns("text", learn="head") == {"head"} and "wse" in learns("text", learn="all")
    assert learns("text", segments=0, learn="head") == {"pooler", "head"}, "no pretraining knows DistilBERT's"
    assert learns("word", segments=0, learn="head") == {"head"}


# ---- runs ------------------------------------------------------------------------------------------------------------


def run_of(train, method, folder, **settings):
    return train(method, init_from=str(folder), block_size=32, **settings)


@pytest.mark.parametrize(
    "method, architecture, settings",
    [
        ("classifier", "BertForSequenceClassification", {"learn": "all", "steps": 30, "learning_rate": 0.01}),
        ("classifier", "BertForSequenceClassification", {"learn": "last-1"}),
        ("classifier", "DistilBertForSequenceClassification", {"learn": "head", "steps": 60, "learning_rate": 0.1}),
        ("tagger", "BertForTokenClassification", {"learn": "head"}),
        ("mlm", "BertForMaskedLM", {}),
    ],
)
def test_a_run_from_a_folder_of_transformers_is_opened_judged_and_exported(
    transformers, train, saved, labelled, text, tmp_path, method, architecture, settings, capsys
):
    _, folder = saved("DistilBertForMaskedLM" if architecture.startswith("Distil") else "BertForPreTraining")
    results, run = run_of(train, method, folder, **settings)
    assert (run / "learned.pt").exists() == ("learn" in settings and settings["learn"] != "all")
    opened = open_run(run)
    data = {"classifier": {"labelled": labelled}, "mlm": {"text": text}}.get(method)
    if data:
        evaluate.main(evaluate.Config(from_=str(run), device="cpu", **data))
        assert f"NLL {results['held_out_nll']:.4f} nats" in capsys.readouterr().out
    out = exported(run, tmp_path / "out")
    assert f"AutoModelFor{architecture.split('For')[1]}" in capsys.readouterr().out
    theirs = getattr(transformers, architecture).from_pretrained(out).eval()
    model = opened.model()
    same_logits(model, theirs, out)
    if method == "classifier":
        texts = [" ".join(record.pieces) for record in read_labelled(labelled)][:20]
        rows = [to_classify([one], "text", opened.tokenizer, 40)[0] for one in texts]
        said = [opened.classes.names[answer] for [answer] in predicted(model, rows, 4)]
        pipe = transformers.pipeline("text-classification", model=str(out), device="cpu")
        assert [answer["label"] for answer in pipe(texts)] == said
        assert settings["learn"] != "all" or set(said) == {"land", "water"}
    if method != "mlm":
        sample.main(sample.Config(from_=str(run), classify=True, prompt="hill is calm", device="cpu"))
        assert capsys.readouterr().out.strip()


def test_no_embedding_is_decayed(train, saved):
    """No text of the data is a second one: that segment gets no gradient, and stays as it is."""
    _, folder = saved("BertForMaskedLM")
    before = open_run(folder).model().wse.weight[1].clone()
    _, run = run_of(train, "mlm", folder, weight_decay=0.5, learning_rate=0.01)
    assert torch.equal(open_run(run).model().wse.weight[1], before)


def test_a_resumed_run_is_bit_equal_to_one_in_one_go(train, saved, tmp_path, monkeypatch, capsys):
    """From a folder without the pooler, which begins anew, the same each time."""
    _, folder = saved("BertForMaskedLM")
    open_run(folder)
    assert "weights that the model does not have begin anew: pooler.weight, pooler.bias\n" in capsys.readouterr().out
    settings = {"learn": "last-1", "steps": 12, "dropout": 0.1, "learning_rate": 0.01}
    _, whole = run_of(train, "classifier", folder, **settings)
    out, log = tmp_path / "broken", Session.log

    def breaks_off(session, step, *values):
        log(session, step, *values)
        if step == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr(Session, "log", breaks_off)
    with pytest.raises(KeyboardInterrupt):
        run_of(train, "classifier", folder, **settings, out=out, save_every=5)
    monkeypatch.setattr(Session, "log", log)
    run_of(train, "classifier", folder, **settings, out=out, save_every=5, resume=True)
    assert metrics(out, "loss") == metrics(whole, "loss")
    assert all(torch.equal(tensor, weights(out)[name]) for name, tensor in weights(whole).items())


def test_lora_beside_BERT_is_merged_and_exported(transformers, train, saved, labelled, tmp_path):
    _, folder = saved("BertForPreTraining")
    _, run = run_of(train, "classifier", folder, learn="lora", learning_rate=0.05)
    with pytest.raises(Mistake, match="has learned a head too"):
        exported(run, tmp_path / "no")
    export.main(export.Config(from_=str(run), out=str(tmp_path / "merged"), merge=True))
    out = exported(tmp_path / "merged", tmp_path / "out")
    same_logits(open_run(run).model(), transformers.BertForSequenceClassification.from_pretrained(out).eval(), out)


# ---- GPT-2 with a head of classes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("learn", ["head", "all"])
def test_our_gpt_classifier_goes_out_to_GPT2ForSequenceClassification_and_comes_back(
    transformers, train, labelled, tmp_path, learn
):
    _, run = train("classifier", learn=learn, steps=20, learning_rate=0.02)
    if learn == "all":  # with a bias that matters
        model = open_run(run).model()
        model.head.bias.data += torch.tensor([0.7, -0.2])
        checkpoint.save_model(run, model, open_run(run).tokenizer)
    out = exported(run, tmp_path / "out")
    theirs, info = transformers.GPT2ForSequenceClassification.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    opened = open_run(run)
    model, texts = opened.model(), [" ".join(record.pieces) for record in read_labelled(labelled)][:12]
    rows = [to_classify([one], "text", opened.tokenizer, 192)[0] for one in texts]
    inputs, _, graded, positions = collate(rows)
    lengths = torch.tensor([len(row.inputs) for row in rows])
    padded = torch.where(torch.arange(inputs.size(1)) < lengths[:, None], inputs, theirs.config.pad_token_id)
    assert len(lengths.unique()) > 1
    ours = model(inputs, graded, positions)
    torch.testing.assert_close(ours, theirs.eval()(padded).logits, rtol=0, atol=1e-5)
    back = open_run(out)
    assert back.classes == opened.classes
    torch.testing.assert_close(back.model()(inputs, graded, positions), ours, rtol=0, atol=1e-5)
    pipe = transformers.pipeline("text-classification", model=str(out), device="cpu", batch_size=3)
    said = [opened.classes.names[answer] for [answer] in predicted(model, rows, 4)]
    assert [answer["label"] for answer in pipe(texts)] == said


def test_what_transformers_has_no_place_for_is_one_sentence(train, saved, tmp_path):
    for method, init, sentence in [
        ("tagger", None, "cannot be exported: it tags words, and of GPT-2's heads only that of a text's class"),
        ("mlm", None, "cannot be exported: it sees both sides, which GPT-2 in transformers does not"),
        ("reward", "BertForMaskedLM", "cannot be exported: it scores a response at its end, and BERT's heads in"),
    ]:
        _, run = run_of(train, method, saved(init)[1]) if init else train(method)
        with pytest.raises(Mistake, match=sentence):
            exported(run, tmp_path / "out")


# ---- bad folders -----------------------------------------------------------------------------------------------------

SETTINGS = [
    ({"hidden_act": "relu"}, "hidden_act is 'relu'; only 'gelu' is built here"),
    ({"layer_norm_eps": 1e-5}, "layer_norm_eps is 1e-05; only 1e-12 is built here"),
    ({"intermediate_size": 64}, "intermediate_size is 64; only 4 hidden_size = 128 is built here"),
    ({"hidden_size": "32"}, "hidden_size, intermediate_size must be whole numbers"),
    ({"num_attention_heads": 3}, "n_embd 32 must be a multiple of n_head 3"),
    ({"position_embedding_type": "relative_key"}, "only 'absolute' is built here"),
    ({"type_vocab_size": 3}, "type_vocab_size is 3; only 2 is built here"),
    ({"num_hidden_layers": 3}, "it lacks encoder.layer.2.attention.self.query.weight"),
    ({"num_hidden_layers": 1}, "it has encoder.layer.1.attention.output.LayerNorm.bias, which is not built here"),
    ({"id2label": {"0": "a"}}, "config.json cannot be used: id2label has no name for class 1"),
    ({"id2label": {"0": "a", "1": "a", "2": "b"}}, "config.json cannot be used: two classes have the same name"),
    ({"hidden_size": 64, "intermediate_size": 256}, "does not fit its own config: .* in the model, .* in what was"),
    ({"vocab_size": 9}, f"it has {len(VOCABULARY)} tokens, and the model 9: they do not belong together"),
    ({"model_type": "roberta"}, "model_type is 'roberta'; only 'gpt2' is built here"),
]  # fmt: skip


def test_a_folder_that_does_not_fit_is_one_sentence(saved):
    _, folder = saved("BertForSequenceClassification")
    good = json.loads((folder / "config.json").read_text())
    for change, sentence in SETTINGS:
        (folder / "config.json").write_text(json.dumps(good | change))
        with pytest.raises(Mistake, match=sentence) as error:
            open_run(folder).model()
        assert len(str(error.value).splitlines()) == 1
    (folder / "config.json").write_text(json.dumps(good))
    (folder / "vocab.txt").unlink()
    with pytest.raises(Mistake, match=r"lacks the vocab\.txt, or the tokenizer\.json, of its model"):
        open_run(folder)


def test_two_classes_without_names_have_those_of_transformers(tmp_path, saved):
    transformers = pytest.importorskip("transformers")
    _, folder = saved("BertForSequenceClassification")
    settings = {**json.loads((folder / "config.json").read_text()), "id2label": None, "label2id": None}
    two = transformers.BertConfig(**{key: value for key, value in settings.items() if value is not None})
    transformers.BertForSequenceClassification(two).save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_bytes((folder / "vocab.txt").read_bytes())
    assert "id2label" not in json.loads((tmp_path / "config.json").read_text()), "it writes none"
    assert open_run(tmp_path).classes == Classes(["LABEL_0", "LABEL_1"], "text")


def test_a_head_that_is_not_tied_is_refused(saved):
    _, folder = saved("BertForMaskedLM")
    tensors = read_safetensors(folder / "model.safetensors")
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"] + 1
    write_safetensors(folder / "model.safetensors", tensors)
    with pytest.raises(Mistake, match="differs from the embedding: a head that is not tied is not built here"):
        open_run(folder)


def test_what_BERT_cannot_do_is_one_sentence(train, saved):
    _, folder = saved("BertForPreTraining")
    with pytest.raises(Mistake, match="cannot write: it sees both sides"):
        sample.main(sample.Config(from_=str(folder), prompt="the sea", device="cpu"))
    with pytest.raises(Mistake, match="cannot learn what comes next: it sees both sides"):
        run_of(train, "pretrain", folder)
    with pytest.raises(Mistake, match="--block-size 41 is beyond the 40 tokens"):
        train("classifier", init_from=str(folder), block_size=41)
    _, run = run_of(train, "mlm", folder)
    (run / "vocab.txt").write_text("\n".join([*SPECIAL, *WORDS[::-1]]), encoding="utf-8")
    with pytest.raises(Mistake, match="is not the vocabulary that its model was trained with"):
        open_run(run)
    assert load_wordpiece(folder, len(VOCABULARY)).sep == config_of(str(folder)).sep == 3

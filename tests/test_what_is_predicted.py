"""What is predicted: the class of a text, the tag of a word, the token behind a mask. The loop is the same."""

import csv
import gzip
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import metrics, weights

import evaluate
import new_model
import sample
import train_mlm
from cli import Mistake
from data.batches import Batches, collate, in_order
from data.examples import Reading, TextRows, from_text
from data.labelled import from_labelled, read_labelled, read_tagged, to_classify
from data.masked import Masked, MaskedBatches, mask_token, with_mask
from data.tokenizer import load_tokenizer
from evaluate import token_nll
from model.gpt import GPT, GPTConfig
from model.head import Classes, let_learn, new_head
from run import show
from run.predict import accuracy, confusion, judged, macro_f1, precision_recall_f1, predicted, told_right
from run.session import Session
from store.checkpoint import open_run
from store.learned import read_learned

BYTES = load_tokenizer("bytes")
HOW = Reading(BYTES, 192, 0.1)


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


def encoder_like(model):
    """The same weights, seeing both sides."""
    other = GPT(GPTConfig(**{**vars(model.config), "causal": False}))
    other.load_state_dict(model.state_dict())
    return other


# ---- where the target stands -----------------------------------------------------------------------------------------


def test_a_class_stands_at_the_last_token_of_the_text_and_it_alone_is_graded(labelled):
    train, held_out, classes = from_labelled(labelled, "", HOW)
    assert classes == (["land", "water"], "text") and len(train) == 54 and len(held_out) == 6
    of = {record["text"]: record["label"] for record in json.loads(Path(labelled).read_text(encoding="utf-8"))}
    for inputs, targets, graded, positions in (*train, *held_out):
        assert graded.nonzero()[0].tolist() == [len(inputs) - 1] and positions.tolist() == list(range(len(inputs)))
        assert classes.names[targets[-1]] == of[BYTES.decode(inputs.tolist())]


def test_a_tag_stands_at_the_last_token_of_its_word(tagged):
    train, held_out, classes = from_labelled("", tagged, HOW)
    of = {(*record.pieces,): record.labels for record in read_tagged(tagged)}
    for inputs, targets, graded, _ in (*train, *held_out):
        text = BYTES.decode(inputs.tolist())
        ends = [i for i, byte in enumerate([*text.encode(), ord(" ")]) if byte == ord(" ")]
        assert graded.nonzero()[0].tolist() == [end - 1 for end in ends], "a word of several tokens is graded once"
        assert [classes.names[n] for n in targets[graded]] == of[(*text.split(),)]


def test_a_pair_is_two_texts_with_a_line_break_between_and_is_cut_from_the_longer(tmp_path):
    path = write(tmp_path / "a.json", [{"text": "hot", "second": "cold", "label": n % 2} for n in range(4)])
    train, _, classes = from_labelled(path, "", HOW)
    assert BYTES.decode(train[0].inputs.tolist()) == "hot\ncold" and classes.names == ["0", "1"]
    for first, second, room, expected, cut in [
        ("abc", "defghij", 8, "abc\ndefg", True),
        ("abcdefg", "hij", 8, "abcd\nhij", True),
        ("abcdef", "ghijkl", 9, "abcd\nghij", True),
        ("abc", "def", 7, "abc\ndef", False),
        ("abcdef", "ghijkl", 2, "\ng", True),
    ]:
        (inputs, _, graded, _), is_cut = to_classify([first, second], "text", BYTES, room)
        assert BYTES.decode(inputs.tolist()) == expected and graded[-1] and is_cut == cut


def test_what_is_beyond_the_block_is_cut_and_counted(tmp_path, capsys):
    texts = [{"text": "sea " * n, "label": "ab"[n % 2]} for n in range(1, 11)]
    train, held_out, _ = from_labelled(write(tmp_path / "a.json", texts), "", Reading(BYTES, 20, 0.3))
    said = capsys.readouterr().out
    assert "5 of 10 are longer than --block-size 20: cut there, graded is the last token that is left" in said
    assert max(len(example.inputs) for example in train + held_out) == 20
    assert all(example.graded[-1] and example.graded.sum() == 1 for example in train + held_out)
    words = [{"words": "old seas", "tags": "a b"}, {"words": "sea " * 9, "tags": "a b " * 4 + "a"}] * 2
    words += [{"words": "x" * 30, "tags": "a"}]
    train, held_out, _ = from_labelled("", write(tmp_path / "b.json", words), Reading(BYTES, 20, 0.3))
    assert "3 of 5 are longer than --block-size 20: cut there, the words that do not fit" in capsys.readouterr().out
    assert sorted(int(example.graded.sum()) for example in train + held_out) == [2, 2, 5, 5], "one has no whole word"


def test_a_step_sees_all_classes_though_one_is_longer(tmp_path):
    """Rows are otherwise sorted by length; of words and tags they still are."""
    texts = [{"text": "sea " * (1 + 9 * (n % 2)), "label": "ab"[n % 2]} for n in range(200)]
    train, *_ = from_labelled(write(tmp_path / "a.json", texts), "", HOW)
    batches = Batches(train, batch_size=16, micro_batches=1, seed=0)
    for step in range(2 * batches.per_epoch):
        [batch] = batches.of_step(step)
        assert len(batch.targets[batch.graded].unique()) == 2
    words = [{"words": "sea " * (1 + n % 2), "tags": "a b"[: 1 + n % 2 * 2]} for n in range(200)]
    train, *_ = from_labelled("", write(tmp_path / "b.json", words), HOW)
    batches = Batches(train, batch_size=16, micro_batches=1, seed=0)
    mixed = sum(len(set(batches.of_step(step)[0].graded.sum(-1).tolist())) - 1 for step in range(batches.per_epoch))
    assert mixed <= 1


@pytest.mark.parametrize("causal", [True, False])
def test_right_padding_changes_no_logit(model, causal):
    """Under a causal mask nobody sees it; an encoder's is kept out of sight by the positions."""
    model = model if causal else encoder_like(model)
    new_head(model, ["a", "b", "c"], "word")
    rng = np.random.default_rng(0)
    rows = [to_classify(["ab"[n % 2] * 2] * n, "word", BYTES, 99)[0] for n in (1, 2, 5)]
    rows = [row._replace(inputs=rng.integers(61, size=len(row.inputs))) for row in rows]
    inputs, _, graded, positions = collate(rows)
    assert positions.shape == inputs.shape == (3, 14)
    together = model(inputs, graded, positions)
    alone = [model(*(torch.from_numpy(part)[None] for part in (row.inputs, row.graded, row.positions))) for row in rows]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-6)
    assert together.shape == (8, 3)
    far = torch.where(positions > 0, inputs, inputs + 1)  # other padding, and other first tokens
    far[:, 0] = inputs[:, 0]
    torch.testing.assert_close(model(far, graded, positions), together, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["classifier", "tagger"])
def test_the_loss_of_the_script_is_the_mean_of_minus_log_p_of_each_label_by_hand(train, method, labelled, tagged):
    """One by one, in plain loops, from the file's own labels."""
    _, run = train(method)
    opened = open_run(run)
    model, names = opened.model(), opened.classes.names
    rows, *_ = from_labelled(*((labelled, "") if method == "classifier" else ("", tagged)), HOW)
    records = read_labelled(labelled) if method == "classifier" else read_tagged(tagged)
    of = {" ".join(record.pieces): record.labels for record in records}
    nll = []
    for row in rows:
        text = BYTES.decode(row.inputs.tolist())
        pieces = [text] if method == "classifier" else text.split(" ")
        for n, label in enumerate(of[text]):
            read = " ".join(pieces[: n + 1]).encode()
            h = model.hidden(torch.tensor([[*read]]))[0, -1]
            logits = (model.head.weight @ h + model.head.bias).tolist()
            nll.append(math.log(sum(math.exp(logit) for logit in logits)) - logits[names.index(label)])
    _, again = train(method, init_from=str(run), batch_size=999, steps=1, learning_rate=1e-9)
    assert float(metrics(again, "loss")[0]) == pytest.approx(sum(nll) / len(nll), rel=1e-5)
    assert int(metrics(again, "graded_tokens")[0]) == len(nll)


# ---- what learns -----------------------------------------------------------------------------------------------------

HEAD = {"head.weight", "head.bias"}


@pytest.mark.parametrize("learn", ["head", "last-1", "last-2", "lora", "all"])
def test_what_was_asked_to_learn_learns_and_the_rest_stays_bit_for_bit(train, base, learn):
    _, run = train("classifier", learn=learn, steps=4, learning_rate=0.02)
    before, model = open_run(base).model().state_dict(), open_run(run).model()
    after = {name.replace(".base.", "."): p for name, p in model.named_parameters()}
    changed = {name for name, p in after.items() if name not in before or not torch.equal(p, before[name])}
    last = {name for name in before if name.startswith(("blocks.1.", "ln_f."))}
    blocks = {name for name in before if name.startswith("blocks.")}
    adapters = {name for name in after if ".adapters." in name}
    learned = {"head": HEAD, "last-1": HEAD | last, "last-2": HEAD | last | blocks, "lora": HEAD | adapters}
    assert changed == learned.get(learn, HEAD | before.keys()) and len(adapters) == (2 * 12 if learn == "lora" else 0)
    assert (run / "learned.pt").exists() == (learn != "all")
    if learn != "all":
        assert weights(run).keys() == {name.replace(".adapters.default", "") for name in changed}
        assert read_learned(run)["base"] == base
        assert [note["apply"] for note in read_learned(run)["attached"]] == ["head"] + ["lora"] * (learn == "lora")


def test_a_head_alone_is_C_times_classes_and_classes_numbers(model):
    new_head(model, ["a", "b", "c"], "text")
    let_learn(model, "head", 8, 16.0)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 3 * 12 + 3
    with pytest.raises(Mistake, match="--learn last-3 is beyond the model's 2 blocks"):
        let_learn(model, "last-3", 8, 16.0)


@pytest.mark.parametrize("method, learn", [("classifier", "last-1"), ("tagger", "lora"), ("classifier", "all")])
def test_a_run_comes_back_with_its_classes_and_goes_on_learning_them(train, labelled, tagged, method, learn):
    results, run = train(method, learn=learn, steps=8, learning_rate=0.02)
    opened = open_run(run)
    data = (labelled, "") if method == "classifier" else ("", tagged)
    _, held_out, classes = from_labelled(*data, HOW)
    assert opened.classes == classes
    model = opened.model()
    assert token_nll(model, held_out, 4) == pytest.approx(results["held_out_nll"], rel=1e-6)
    _, second = train(method, learn=learn, init_from=str(run), learning_rate=1e-12)
    assert open_run(second).classes == classes and open_run(second).model().attached == model.attached
    inputs, _, graded, positions = collate(held_out)
    torch.testing.assert_close(open_run(second).model()(inputs, graded, positions), model(inputs, graded, positions))


@pytest.mark.parametrize("method, settings", [("classifier", {"learn": "lora"}), ("tagger", {}), ("mlm", {})])
def test_a_resumed_run_is_bit_equal_to_one_in_one_go(train, tmp_path, monkeypatch, method, settings):
    settings = {**settings, "steps": 20, "dropout": 0.1, "learning_rate": 0.01}
    _, whole = train(method, **settings)
    out, log = tmp_path / "broken", Session.log

    def breaks_off(session, step, *values):
        log(session, step, *values)
        if step == 12:
            raise KeyboardInterrupt

    monkeypatch.setattr(Session, "log", breaks_off)
    with pytest.raises(KeyboardInterrupt):
        train(method, **settings, out=out, save_every=5)
    monkeypatch.setattr(Session, "log", log)
    train(method, **settings, out=out, save_every=5, resume=True)
    assert metrics(out, "loss") == metrics(whole, "loss")
    assert all(torch.equal(tensor, weights(out)[name]) for name, tensor in weights(whole).items())


@pytest.mark.parametrize("method", ["classifier", "tagger"])
def test_it_learns_to_tell_classes_apart(train, method, capsys):
    _, run = train(method, steps=80, learning_rate=0.01, batch_size=16)
    report = (run / "sample.txt").read_text(encoding="utf-8")
    assert "accuracy 100.0%" in report and "macro-F1 1.000" in report
    said = capsys.readouterr().out
    assert ("54 texts, and 6 held out: land " if method == "classifier" else "54 sentences, and 6 held out: ") in said
    last = said.splitlines()[-1]
    assert f"nats a {'text' if method == 'classifier' else 'word'} after" in last and "perplexity" not in said


# ---- how good it is --------------------------------------------------------------------------------------------------


def test_accuracy_macro_f1_confusion_and_the_scores_of_each_class_are_those_computed_by_hand():
    """Six texts of a, three of b, one of c, none of d; d was never said, c never found."""
    truth = [0, 0, 0, 0, 0, 0, 1, 1, 1, 2]
    said_ = [0, 0, 0, 0, 1, 2, 1, 1, 0, 0]
    counts = confusion(truth, said_, 4)
    assert counts.tolist() == [[4, 1, 1, 0], [1, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    precision, recall, f1 = precision_recall_f1(counts)
    assert precision.tolist() == pytest.approx([4 / 6, 2 / 3, 0, 0])
    assert recall.tolist() == pytest.approx([4 / 6, 2 / 3, 0, 0])
    assert f1.tolist() == pytest.approx([2 / 3, 2 / 3, 0, 0])
    assert accuracy(counts) == pytest.approx(0.6) and macro_f1(counts) == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    uneven = confusion([0, 0, 0, 1], [0, 1, 1, 1], 2)
    assert [scores.tolist() for scores in precision_recall_f1(uneven)] == [
        pytest.approx([1, 1 / 3]),
        pytest.approx([1 / 3, 1]),
        pytest.approx([1 / 2, 1 / 2]),
    ]


def test_what_is_said_is_the_likeliest_class_at_each_graded_position_in_the_order_of_the_file(model):
    new_head(model, ["a", "b", "c"], "word")
    torch.nn.init.normal_(model.head.weight)
    rng = np.random.default_rng(0)
    rows = [to_classify(["ab"] * n, "word", BYTES, 99)[0] for n in (3, 1, 5, 2)]
    rows = [row._replace(inputs=rng.integers(61, size=len(row.inputs))) for row in rows]
    with torch.no_grad():  # so that no class is the likeliest everywhere
        model.head.bias -= torch.cat([model(torch.from_numpy(row.inputs)[None])[0] for row in rows]).mean(0)
    expected = [
        model(torch.from_numpy(row.inputs)[None])[0, torch.from_numpy(row.graded)].argmax(-1).tolist() for row in rows
    ]
    assert predicted(model, rows, 2) == expected and len({n for answers in expected for n in answers}) > 1
    for row in rows:
        row.targets[row.graded] = 1
    assert told_right(model, rows, 2) == sum(n == 1 for answers in expected for n in answers) / 11
    counts = judged(model, rows, 3, Classes(["a", "b", "c"], "word"))
    how_often = np.bincount([n for answers in expected for n in answers], minlength=3).tolist()
    assert counts.tolist() == [[0] * 3, how_often, [0] * 3]


def test_the_report_shows_each_class_and_of_texts_what_it_was_taken_for(model, monkeypatch):
    counts = np.array([[480, 2], [15, 60]])
    monkeypatch.setattr(show, "judged", lambda *_: counts)
    lines = show.report(model, [], 1, Classes(["ham", "spam"], "text")).splitlines()
    assert lines[0] == "557 texts: accuracy 96.9% (86.5% by always saying 'ham'), macro-F1 0.929"
    assert [line.split() for line in lines[2:4]] == [
        ["ham", "482", "0.970", "0.996", "0.983"],
        ["spam", "75", "0.968", "0.800", "0.876"],
    ]
    assert [line.split() for line in lines[5:]] == [
        ["(1)", "(2)"], ["ham", "(1)", "480", "2"], ["spam", "(2)", "15", "60"],
    ]  # fmt: skip
    assert len(show.report(model, [], 1, Classes(["ham", "spam"], "word")).splitlines()) == 4


def test_evaluate_and_sample_speak_of_classes(train, labelled, tagged, capsys, monkeypatch):
    _, whole = train("classifier", steps=80, learning_rate=0.01, batch_size=16)
    results, run = train("classifier", init_from=str(whole), learn="lora")
    capsys.readouterr()
    for named in ({"from_": str(run)}, {"adapter": str(run)}):
        evaluate.main(evaluate.Config(**named, labelled=labelled, device="cpu"))
        said = capsys.readouterr().out
        assert f"NLL {results['held_out_nll']:.4f} nats a text, over" in said and "accuracy 100.0%" in said
        assert ", as " in said, "it is judged as it was trained"
    monkeypatch.setattr("sys.stdin", io.StringIO("sea is old\nhill is öl\n"))
    sample.main(sample.Config(from_=str(run), classify=True, device="cpu"))
    seen: list = []
    monkeypatch.setattr(sample, "to_classify", lambda *given: seen.append(given[0]) or to_classify(*given))
    sample.main(sample.Config(adapter=str(run), classify=True, prompt=" hill is calm ", device="cpu"))
    assert seen == [["hill is calm"]], "without white space around it, as in training"
    for nothing in (" ", "a\t "):
        with pytest.raises(Mistake, match="one is empty"):
            sample.main(sample.Config(adapter=str(run), classify=True, prompt=nothing, device="cpu"))
    assert capsys.readouterr().out.split() == ["water", "land", "land"]
    _, tagger = train("tagger", steps=80, learning_rate=0.01, batch_size=16)
    evaluate.main(evaluate.Config(from_=str(tagger), tagged=tagged, device="cpu"))
    assert "nats a word" in (said := capsys.readouterr().out) and "macro-F1 1.000" in said
    sample.main(sample.Config(from_=str(tagger), classify=True, prompt="old  ship is", device="cpu"))
    sample.main(sample.Config(from_=str(tagger), classify=True, prompt="x" * 999, device="cpu"))
    said = capsys.readouterr()
    assert said.out == "old/state ship/thing is/other\n\n" and "longer than the 192 tokens" in said.err


def test_show_batch_shows_labels_where_they_stand(train, capsys):
    train("classifier", learn="head", show_batch=True)
    lines = capsys.readouterr().out.splitlines()
    graded = [line.split() for line in lines if line.endswith("  graded")]
    assert len(graded) == 3 and {line[3] for line in graded} <= {"water", "land"}
    assert all(line.split()[-2:] == ["->", "-"] for line in lines if line.endswith("  -"))
    assert "learns: 34 parameters" in lines
    train("mlm", show_batch=True, block_size=16)
    said = capsys.readouterr().out
    assert "'<|mask|>' -> '" in said and "padding" not in said and "row 0: 2 of 16 positions are graded" in said


# ---- files and refusals ----------------------------------------------------------------------------------------------


def test_labelled_files_of_every_kind_hold_the_same_records(tmp_path, monkeypatch):
    records = [{"text": "a, b", "label": "x"}, {"text": " c\n", "label": "y"}]
    expected = read_labelled(write(tmp_path / "a.json", records))
    assert [record.pieces for record in expected] == [["a, b"], ["c"]]
    file = io.StringIO()
    csv.writer(file).writerows([["label", "body"], ["x", "a, b"], ["y", "c"]])
    assert read_labelled(write(tmp_path / "a.csv", file.getvalue()), "text=body") == expected
    assert read_labelled(write(tmp_path / "a.tsv", "x\ta, b\ny\tc\n"), "text=2,label=1") == expected
    lines = '{"text": "a, b", "label": "x"}\n{"text": "c", "label": "y"}'
    assert read_labelled(write(tmp_path / "a.jsonl", lines)) == expected
    monkeypatch.setattr("data.download.fetch", lambda public, name: tmp_path)
    (tmp_path / "SMSSpamCollection").write_text("ham\tOk\n", encoding="utf-8")
    with pytest.raises(Mistake, match=r"must be a \.json"):
        read_labelled("sms-spam")  # found, though here it is in no archive
    with pytest.raises(Mistake, match="alpaca is for --instructions, not for --labelled"):
        read_labelled("alpaca")


def test_tagged_files_of_every_kind_hold_the_same_records(tmp_path):
    records = [{"words": ["Dan", "gives"], "tags": ["person", "O"]}, {"words": ["#"], "tags": ["O"]}]
    expected = read_tagged(write(tmp_path / "a.json", records))
    assert [(*record,) for record in expected] == [(["Dan", "gives"], ["person", "O"]), (["#"], ["O"])]
    flat = "words,tags\nDan gives,person O\n#,O\n"
    assert read_tagged(write(tmp_path / "a.csv", flat)) == expected
    assert read_tagged(write(tmp_path / "b.csv", flat.replace("tags", "t")), "tags=t") == expected
    conll = "-DOCSTART- -X- O O\n\nDan NNP B-NP person\ngives VBZ B-VP O\n\n\n# # O O"
    for name, text in {"a.conll": conll, "a.txt": conll + "\n", "a.tsv": conll.replace(" ", "\t") + "\n\n"}.items():
        assert read_tagged(write(tmp_path / name, text)) == expected, name
    (tmp_path / "a.conll.gz").write_bytes(gzip.compress(conll.encode()))
    assert read_tagged(str(tmp_path / "a.conll.gz")) == expected


GOOD = [{"text": "sea", "label": "a"}, {"text": "sky", "label": "b"}] * 5
BAD = [
    (
        "labelled",
        "a.json",
        [{"text": "x", "label": "ham"}] * 9,
        "a.json has one class only, 'ham': there is nothing to",
    ),
    ("labelled", "a.json", [*GOOD, {"text": " ", "label": "a"}], "a.json: record 11 has an empty text, in which there"),
    ("labelled", "a.json", [*GOOD, {"text": "x", "second": "", "label": "a"}], "record 11 has an empty text"),
    ("labelled", "a.json", [*GOOD, {"text": "x", "label": " "}], 'record 11: "label" is empty, expected the name of a'),
    ("labelled", "a.json", [*GOOD, {"text": "x", "label": 1.5}], 'record 11: "label" is 1.5, expected a text'),
    (
        "labelled",
        "a.json",
        [*GOOD, {"text": "x"}],
        "record 11: \"label\" is missing, expected a text; there are 'text'",
    ),
    ("labelled", "a.json", GOOD[:1], "a.json has the label 'a', but only among what is held out: give more examples"),
    ("labelled", "a.json", [*GOOD, 7], "record 11 must be an object with text and label, not int"),
    ("labelled", "a.xml", "<a>", "a.xml must be a .json, .jsonl, .csv or .tsv"),
    ("tagged", "a.conll", "sea N\nis V\n", "a.conll has no blank line, so its 2 words are one sentence: put one after"),
    (
        "tagged",
        "a.conll",
        "sea N\nis V\n\nold\n",
        "a.conll:4: the word 'old' has no tag: its line must have two columns",
    ),
    (
        "tagged",
        "a.json",
        [{"words": "a b", "tags": "N"}],
        "a.json: record 1 has 2 words and 1 tags: it must have a tag",
    ),
    ("tagged", "a.json", [{"words": [], "tags": []}], "a.json: record 1 has no words"),
    ("tagged", "a.json", [{"words": ["a", ""], "tags": ["N", "V"]}], "a.json: record 1 has an empty word"),
    ("tagged", "a.json", [{"words": 7, "tags": "N"}], 'record 1: "words" is 7, expected a list, or a text with spaces'),
    ("tagged", "a.json", [{"words": ["a", "b"], "tags": ["N", "N"]}] * 9, "a.json has one class only, 'N'"),
]


@pytest.mark.parametrize("kind, name, content, sentence", BAD, ids=[sentence for *_, sentence in BAD])
def test_bad_data_is_one_sentence(train, tmp_path, kind, name, content, sentence):
    method = {"labelled": "classifier", "tagged": "tagger"}[kind]
    with pytest.raises(Mistake) as error:
        train(method, **{kind: write(tmp_path / name, content)})
    assert sentence in str(error.value) and len(str(error.value).splitlines()) == 1


def test_bad_records_can_be_left_out(tmp_path, capsys):
    path = write(tmp_path / "a.json", [*GOOD, {"text": "", "label": "a"}])
    assert len(read_labelled(path, skip_bad=True)) == 10
    assert "1 of 11 records are malformed: skipped; the first: " in capsys.readouterr().out
    path = write(tmp_path / "a.conll", "sea N\n\nold\n\nis V\n")
    assert len(read_tagged(path, skip_bad=True)) == 2


def test_questions_that_a_run_cannot_answer_are_one_sentence(
    train, base, labelled, tagged, text, instructions, tmp_path
):
    _, run = train("classifier", learn="head")
    _, encoder = train("mlm")
    other = write(tmp_path / "other.json", [*GOOD, {"text": "x", "label": "fog"}])

    def ask(module, **settings):
        return lambda: module.main(module.Config(**settings, device="cpu"))

    for question, sentence in [
        (
            ask(evaluate, from_=str(run), labelled=other),
            r"the label 'a', which this model has never seen .* land, water$",
        ),
        (lambda: train("classifier", init_from=str(run), labelled=other), "the label 'a', which this model has never"),
        (
            ask(evaluate, from_=str(run), tagged=tagged),
            "gives a class to each text, not to each word: --labelled is for",
        ),
        (ask(evaluate, from_=str(run), text=text), "predicts classes: --labelled or --tagged judges it"),
        (ask(evaluate, from_=base, labelled=labelled), "predicts tokens: --text or --instructions judges it"),
        (ask(evaluate, from_=str(encoder), instructions=instructions), "sees both sides and cannot answer"),
        (
            ask(evaluate, from_=base, text=text, tagged=tagged),
            "give either --text or --instructions or --labelled or --t",
        ),
        (ask(sample, from_=base, classify=True, prompt="a"), "predicts no classes: --classify takes one run"),
        (ask(sample, from_=str(run), prompt="a"), "cannot write: it predicts classes"),
        (ask(sample, from_=str(encoder), prompt="a"), "cannot write: it sees both sides"),
        (ask(sample, from_=str(run), classify=True, instruction="a"), "--classify takes --prompt, or lines of"),
        (ask(sample, from_=str(run), classify=True, prompt="a", system="b"), "--classify takes --prompt, or lines of"),
        (lambda: train("sft", init_from=str(run)), "cannot learn what comes next: it predicts classes; give another"),
        (
            lambda: train("lora", init_from=str(encoder)),
            "cannot learn what comes next: it sees both sides; give another",
        ),
        (lambda: train("mlm", init_from=str(run)), "predicts classes, not tokens: give another --init-from"),
        (
            lambda: train("classifier", learn="most"),
            "--learn must be head, last-1 or another number of blocks, lora or",
        ),
        (lambda: train("classifier", learn="last-3"), "--learn last-3 is beyond the model's 2 blocks"),
        (
            lambda: train("classifier", learn="head", r=4),
            "--r and --alpha are for --learn lora, and this is --learn head",
        ),
        (lambda: train("classifier", tagged=tagged), "give either --labelled or --tagged"),
        (
            lambda: train("classifier", labelled="", tagged=tagged, columns="tags=t"),
            "--columns is for .json, .jsonl and",
        ),
    ]:
        with pytest.raises(Mistake, match=sentence) as error:
            question()
        assert len(str(error.value).splitlines()) == 1
    _, lora = train("lora")
    with pytest.raises(Mistake, match="is an adapter: make it a whole model first, with export"):
        train("mlm", init_from=str(lora))


# ---- masks -----------------------------------------------------------------------------------------------------------


def masked(text, block_size=100, **how):
    tokenizer = with_mask(BYTES)
    return Masked(from_text(text, Reading(BYTES, block_size, 0.1))[0], tokenizer, **how), mask_token(tokenizer)


def test_15_percent_are_chosen_and_of_them_80_10_and_10_are_hidden_swapped_and_kept(text):
    rows, mask = masked(text)
    graded = hidden = swapped = kept = total = 0
    for epoch in range(80):
        for inputs, targets, chosen, _ in rows.of_epoch(epoch):
            assert chosen.sum() == max(1, round(0.15 * len(inputs)))
            assert (inputs == targets)[~chosen].all(), "what is not chosen stays"
            graded, total = graded + chosen.sum(), total + len(inputs)
            hidden += (inputs[chosen] == mask).sum()
            kept += (inputs[chosen] == targets[chosen]).sum()
            swapped += ((inputs != mask) & (inputs != targets))[chosen].sum()
    assert graded > 40_000 and graded / total == pytest.approx(0.15, abs=0.001)
    shares = [hidden / graded, swapped / graded, kept / graded]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.01), "1 in 256 swapped ones is swapped for itself"


def test_the_targets_are_the_text_itself_and_end_of_text_is_never_chosen():
    tokens = np.array([*b"sea", BYTES.eot_token, *b"sky", BYTES.eot_token])
    rows = Masked(TextRows(tokens, 7), with_mask(BYTES))
    for epoch in range(200):
        inputs, targets, graded, positions = rows.of_epoch(epoch)[0]
        assert targets.tolist() == tokens[:7].tolist() and positions.tolist() == list(range(7))
        assert graded.sum() == 1 and not graded[3] and inputs[3] == BYTES.eot_token


def test_masks_are_new_each_epoch_and_depend_on_seed_and_step_alone(text):
    rows, _ = masked(text, seed=3)
    batches = MaskedBatches(rows, batch_size=7, micro_batches=1, seed=3)

    def seen(batches, epoch):
        found = {}
        for step in range(epoch * batches.per_epoch, (epoch + 1) * batches.per_epoch):
            for inputs, targets, graded in zip(*batches.of_step(step)[0][:3], strict=True):
                found[(*targets.tolist(),)] = (*inputs.tolist(),), (*graded.tolist(),)
        return found

    first, second, again = (seen(batches, epoch) for epoch in (0, 1, 0))
    assert first.keys() == second.keys() and first == again
    assert all(first[row][1] != second[row][1] for row in first)
    late = MaskedBatches(rows, 7, 1, seed=3).of_step(batches.per_epoch + 2)[0]
    assert all(torch.equal(*pair) for pair in zip(late, batches.of_step(batches.per_epoch + 2)[0], strict=True))
    parts = MaskedBatches(rows, 1, 7, seed=3).of_step(2)
    assert sum(int(part.graded.sum()) for part in parts) == int(batches.of_step(2)[0].graded.sum())
    assert seen(MaskedBatches(masked(text, seed=4)[0], 7, 1, seed=3), 0) != first


def test_an_encoder_sees_both_sides(model):
    tokens = torch.randint(61, (1, 9), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[0, 8] += 1
    at_3 = torch.arange(9)[None] == 3
    assert torch.equal(model(tokens, at_3), model(changed, at_3))
    encoder = encoder_like(model)
    assert not torch.allclose(encoder(tokens, at_3), encoder(changed, at_3))


def test_a_causal_base_becomes_an_encoder_with_one_token_more(base):
    opened, before = open_run(base), open_run(base).model().state_dict()
    model = opened.encoder(64, 0.0)
    assert not model.config.causal and model.config.vocab_size == 258 == with_mask(opened.tokenizer).n_vocab
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor[:257] if name == "wte.weight" else tensor, before[name]), name
    torch.testing.assert_close(model.wte.weight[257], before["wte.weight"].mean(0))


def test_a_masked_language_model_learns_comes_back_and_is_judged_by_the_same_masks(train, base, text, tmp_path, capsys):
    new = str(tmp_path / "new")
    new_model.main(new_model.Config(out=new, n_layer=1, n_head=2, n_embd=16, block_size=64, encoder=True))
    assert "train_mlm.py --init-from" in capsys.readouterr().out
    shape = open_run(new).config
    assert not shape.causal and shape.vocab_size == 258
    for start in (new, base):
        results, run = train("mlm", init_from=start, block_size=64, steps=60, learning_rate=0.02, batch_size=16)
        losses = [float(loss) for loss in metrics(run, "loss")]
        assert sum(losses[-6:]) < 0.8 * sum(losses[:6])
        opened = open_run(run)
        assert opened.config.causal is False and opened.config.vocab_size == 258
        assert opened.tokenizer.decode([257]) == "<|mask|>" and mask_token(opened.tokenizer) == 257
        capsys.readouterr()
        evaluate.main(evaluate.Config(from_=str(run), text=text, device="cpu"))
        judged_by = capsys.readouterr().out
        assert f"NLL {results['held_out_nll']:.4f} nats a masked token" in judged_by and "\ntold right " in judged_by
        read, said = (run / "sample.txt").read_text(encoding="utf-8").split("\n-> ")
        assert "<|mask|>" in read and "<|mask|>" not in said
    _, further = train("mlm", init_from=str(run), block_size=64, seed=5)
    assert open_run(further).config.vocab_size == 258, "an encoder has its mask already"
    _, tagger = train("tagger", init_from=str(run), block_size=64, steps=5, learn="last-1")
    assert open_run(tagger).config.causal is False and open_run(tagger).classes.each == "word"


def test_what_is_judged_by_has_the_same_masks_whatever_the_seed(train, monkeypatch):
    seen = []
    monkeypatch.setattr(train_mlm, "token_nll", lambda model, rows, size: seen.append(list(in_order(rows, 99))) or 1.0)
    for seed in (0, 1):
        train("mlm", seed=seed, steps=1, block_size=32)
    assert len(seen) == 4
    for other in seen[1:]:
        assert all(torch.equal(*pair) for one, two in zip(seen[0], other, strict=True) for pair in zip(one, two))  # noqa: B905

"""A user's mistake ends as one sentence that says what, where and what to do, with exit code 2 and no traceback."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import compare
import evaluate
import sample
import train_lora
import train_pretrain
import train_sft
from cli import command_line
from data import tokenizer
from experiment import sweep
from run import plan
from store import checked
from world import __main__ as world

SCRIPTS = {
    "pretrain": train_pretrain,
    "sft": train_sft,
    "lora": train_lora,
    "evaluate": evaluate,
    "sample": sample,
    "tokenizer": tokenizer,
    "compare": compare,
    "sweep": sweep,
    "world": world,
    "plan": plan,
}


@pytest.fixture
def complain(monkeypatch, capsys):
    """complain("sft", "--steps 0") is what the script says on stderr when it leaves with exit code 2."""

    def run(script, flags):
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *flags.split()])
        with pytest.raises(SystemExit) as exit:
            command_line(SCRIPTS[script].main, SCRIPTS[script].Config)
        assert exit.value.code == 2
        return capsys.readouterr().err

    return run


@pytest.fixture
def files(tmp_path, text, instructions, base):
    """Good and bad files, by short names that a test's flags can use."""
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("too short")
    (tmp_path / "latin1.txt").write_bytes(b"sea\nsea \xf6l\n" * 99)
    (tmp_path / "utf16.txt").write_text("sea " * 99, encoding="utf-16")
    (tmp_path / "broken.json").write_text('[{"instruction": "a", "output": "b"')
    (tmp_path / "object.json").write_text('{"instruction": "a", "output": "b"}')
    (tmp_path / "no_output.json").write_text('[{"instruction": "a", "output": "b"}, {"instruction": "a"}]')
    (tmp_path / "number.jsonl").write_text('{"instruction": "a", "output": "b"}\n\n{"instruction": 7, "output": "b"}\n')
    (tmp_path / "list.jsonl").write_text("[1]\n")
    (tmp_path / "one.json").write_text('[{"instruction": "a", "output": "b"}]')
    (tmp_path / "norun").mkdir()
    (tmp_path / "html").mkdir()
    (tmp_path / "html" / "model.pt").write_text("<html>404</html>")
    (tmp_path / "cut").mkdir()
    whole = Path(base, "model.pt").read_bytes()
    (tmp_path / "cut" / "model.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "zero").mkdir()
    (tmp_path / "zero" / "model.pt").write_bytes(b"")
    contents = torch.load(Path(base, "model.pt"), weights_only=True)
    for name, damage in {"odd": {"config": {"n_layer": 9, "colour": "red"}}, "lost": {"tokenizer": "bpe-1"}}.items():
        (tmp_path / name).mkdir()
        checked.write(tmp_path / name / "model.pt", {**contents, **damage})
    (tmp_path / "null.json").write_text('[{"instruction": "a", "input": null, "output": null}]')
    (tmp_path / "taken").mkdir()
    shutil.copy(Path(base, "config.json"), tmp_path / "taken")
    return {"{tmp}": str(tmp_path), "{text}": text, "{json}": instructions, "{base}": base}


PRETRAIN, SFT, LORA = "--out {tmp}/new --text", "--out {tmp}/new --init-from {base} --instructions", "--out {tmp}/new"

MISTAKES = [
    ("pretrain", f"{PRETRAIN} {{tmp}}/nowhere.txt", "No such file or directory: '{tmp}/nowhere.txt'"),
    ("pretrain", f"{PRETRAIN} {{tmp}}/norun", "{tmp}/norun is a folder without a .txt or .txt.gz file"),
    ("pretrain", f"{PRETRAIN} alpaca", "alpaca is for --instructions, not for --text"),
    (
        "pretrain",
        f"{PRETRAIN} shakespeare",
        "No such file or directory; known by name, for --text: tinyshakespeare: 'sh",
    ),
    ("sft", f"{SFT} {{text}}", "text.txt must be named .json, .jsonl, .csv or .tsv"),
    ("evaluate", "--from {base} --text {text} --columns text=body", "--columns is for .json, .jsonl, .csv and .tsv:"),
    ("pretrain", f"{PRETRAIN} {{tmp}}/empty.txt", "empty.txt has 1 tokens, too few"),
    (
        "pretrain",
        f"{PRETRAIN} {{tmp}}/short.txt",
        "short.txt has 10 tokens, too few: the least are 2 to judge by and a row of 129",
    ),
    ("pretrain", f"{PRETRAIN} {{tmp}}/latin1.txt", "latin1.txt is not UTF-8 text: invalid start byte at byte 8"),
    ("pretrain", f"{PRETRAIN} {{tmp}}/utf16.txt", "utf16.txt is not UTF-8 text: invalid start byte at byte 0"),
    (
        "pretrain",
        f"{PRETRAIN} {{text}} --init-from {{base}} --block-size 193",
        "193 is beyond the 192 tokens that {base}",
    ),
    ("pretrain", f"{PRETRAIN} {{text}} --init-from {{tmp}}/norun", "norun is not a run with model.pt"),
    ("pretrain", f"{PRETRAIN} {{text}} --init-from {{tmp}}/html", "html/model.pt cannot be read as a checkpoint"),
    ("pretrain", f"{PRETRAIN} {{text}} --init-from {{tmp}}/cut", "cut/model.pt is damaged"),
    ("pretrain", f"{PRETRAIN} {{text}} --tokenizer klingon", "there is no tokenizer 'klingon': give bytes, gpt2 or"),
    ("pretrain", f"{PRETRAIN} {{text}} --n-embd 130", "--n-embd 130 must be a multiple of --n-head 4"),
    ("pretrain", f"{PRETRAIN} {{text}} --steps 0", "--steps must be above 0, got 0"),
    ("pretrain", f"{PRETRAIN} {{text}} --learning-rate nan", "--learning-rate must be above 0, got nan"),
    ("pretrain", f"{PRETRAIN} {{text}} --dropout 1", "--dropout must be from 0 to 0.99, got 1.0"),
    ("pretrain", f"{PRETRAIN} {{text}} --steps ten", "argument --steps: invalid int value: 'ten'"),
    ("pretrain", f"{PRETRAIN} {{text}} --device gpu9", "--device gpu9 is not usable here"),
    ("pretrain", "--text {text} --out {tmp}/taken", "taken holds a run already: give another --out, or delete it"),
    ("pretrain", "--text {text} --out {tmp}/one.json", "one.json is a file: --out names a folder"),
    ("pretrain", "--text {text}", "the following arguments are required: --out"),
    ("sft", f"{SFT} {{tmp}}/broken.json", "broken.json is not JSON: Expecting ',' delimiter: line 1"),
    ("sft", f"{SFT} {{tmp}}/object.json", "object.json must hold a JSON list"),
    ("sft", f"{SFT} {{tmp}}/no_output.json", 'no_output.json: record 2: "output" is missing, expected a text'),
    ("sft", f"{SFT} {{tmp}}/number.jsonl", 'number.jsonl:3: "instruction" is 7, expected a text'),
    ("sft", f"{SFT} {{tmp}}/list.jsonl", "list.jsonl:1 must be an object with instruction and output, not list"),
    ("sft", f"{SFT} {{tmp}}/one.json", "one.json has 0 usable instructions to learn from and 1 to judge by"),
    ("sft", f"{SFT} {{json}} --block-size 20", "0 usable instructions to learn from and 0 to judge by"),
    ("lora", f"{LORA} --init-from {{base}}", "give either --text or --instructions"),
    (
        "lora",
        f"{LORA} --init-from {{base}} --text {{text}} --instructions {{json}}",
        "give either --text or --instructions",
    ),
    ("lora", f"{LORA} --init-from {{base}} --text {{text}} --r 0", "--r must be above 0, got 0"),
    ("lora", f"{LORA} --init-from {{base}} --text {{text}} --targets c_attn", "--targets must be among q_proj,"),
    ("pretrain", f"{PRETRAIN} {{text}} --learning-rate inf", "--learning-rate must be above 0, got inf"),
    ("pretrain", f"{PRETRAIN} {{text}} --init-from {{base}} --n-layer 9", "--n-layer is for a new model: the one from"),
    ("pretrain", f"{PRETRAIN} {{text}} --device meta", "--device meta is not usable here: it is none of cuda, mps"),
    ("pretrain", f"{PRETRAIN} {{text}} --held-out 1", "no example is left to learn from"),
    ("pretrain", f"{PRETRAIN} /dev/null", "/dev/null is not a file"),
    ("pretrain", f"{PRETRAIN} {{text}} --init-from=", "--init-from is empty"),
    ("pretrain", f"{PRETRAIN} {{text}} --init-from {{tmp}}/zero", "zero/model.pt cannot be read as a checkpoint"),
    ("pretrain", f"{PRETRAIN} {{text}} --init-from {{tmp}}/odd", "odd/model.pt does not fit its own config"),
    ("pretrain", f"{PRETRAIN} {{text}} --init-from {{tmp}}/lost", "lost lacks the tokenizer.tiktoken"),
    ("sft", f"{SFT} {{tmp}}/null.json", 'null.json: record 1: "output" is null, expected a text'),
    ("sample", "--from {base} --prompt sea --input hot", "--input goes with --instruction"),
    ("lora", f"{LORA} --init-from {{base}} --text {{text}} --grade-prompt", "--grade-prompt is for --instructions"),
    ("compare", "--instructions {tmp}/null.json --out {tmp}/new", "is null"),
    ("compare", "--questions {json} --base {base} --out {tmp}/new", "beyond the 192 tokens that {base} can read"),
    ("sweep", "--methods SFT,DPO --out {tmp}/new", "--methods must be among continued pretraining, LoRA on the"),
    ("world", "--mixture odd --show", "--mixture must be among first, last; got 'odd'"),
    ("world", "--seed 1", "give --show to look at the world, or --out FOLDER"),
    ("tokenizer", "--text {tmp}/empty.txt --out {tmp}/t", "there is no text to learn merges from"),
    ("tokenizer", "--text {text} --out {text}", "exists already: give another --out"),
    ("evaluate", "--from {base} --text {tmp}/empty.txt", "empty.txt has 1 tokens"),
    ("evaluate", "--text {text}", "give --from RUN, or --adapter RUN"),
    ("sample", "--adapter {base} --prompt sea", "is not a run with learned.pt; it holds model.pt"),
    ("sample", "--from {base} --prompt a --instruction b", "give either --prompt or --instruction"),
    ("sample", "--from {base} --ask me", "--ask must be prompt, instruction or chat, got 'me'"),
    ("tokenizer", "--text {text} --out {tmp}/t --vocab-size 9", "at least 256 tokens, got --vocab-size 9"),
]


@pytest.mark.parametrize("script, flags, sentence", MISTAKES, ids=[sentence[:50] for _, _, sentence in MISTAKES])
def test_a_mistake_is_one_sentence(complain, files, script, flags, sentence):
    for name, path in files.items():
        flags, sentence = flags.replace(name, path), sentence.replace(name, path)
    said = complain(script, flags)
    assert sentence in said
    assert len(said.splitlines()) == 1 or "usage:" in said
    assert not Path(files["{tmp}"], "new", "config.json").exists(), "the next try may use the folder"


def test_an_adapter_where_a_model_is_expected_is_named(complain, files, train):
    _, run = train("lora")
    said = complain("sft", f"--instructions {files['{json}']} --init-from {run} --out {run}-new")
    assert f"{run} is not a run with model.pt; it holds learned.pt" in said


def test_from_the_shell_there_is_no_traceback_unless_python_is_asked_for_one(tmp_path):
    flags = ["train_pretrain.py", "--text", str(tmp_path / "nowhere.txt"), "--out", str(tmp_path / "run")]
    plain = subprocess.run([sys.executable, *flags], capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert plain.returncode == 2 and "Traceback" not in plain.stderr and "nowhere.txt" in plain.stderr
    dev = subprocess.run(
        [sys.executable, "-X", "dev", *flags], capture_output=True, text=True, cwd=Path(__file__).parent.parent
    )
    assert dev.returncode == 1 and "Traceback" in dev.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_tells_each_flags_meaning_and_default(script, monkeypatch, capsys):
    import dataclasses

    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--help"])
    with pytest.raises(SystemExit) as exit:
        command_line(SCRIPTS[script].main, SCRIPTS[script].Config)
    said = " ".join(capsys.readouterr().out.split())
    assert exit.value.code == 0
    for field in dataclasses.fields(SCRIPTS[script].Config):
        assert "--" + field.name.strip("_").replace("_", "-") in said
        if field.default not in ("", False, dataclasses.MISSING):
            assert f"(default: {field.default})" in said


def test_a_byte_order_mark_and_a_line_separator_inside_a_string_are_read(tmp_path):
    from data.examples import read_instructions

    records = [{"instruction": "a\u2028b", "output": "c"}, {"instruction": "d", "input": "", "output": "e"}]
    path = tmp_path / "bom.jsonl"
    path.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in records), encoding="utf-8-sig")
    assert [r.instruction for r in read_instructions(path)] == ["a\u2028b", "d"]


def test_a_malicious_pickle_is_refused_and_never_run(tmp_path):
    from store.checkpoint import open_run

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    checked.write(tmp_path / "model.pt", {"config": Evil(), "tokenizer": "bytes", "weights": {}})
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        open_run(tmp_path).model()
    assert not (tmp_path / "owned").exists()


def test_a_bug_in_the_code_keeps_its_traceback(monkeypatch, text, tmp_path):
    """Only a Mistake is one sentence: a student who breaks the loop must see where."""
    monkeypatch.setattr(train_pretrain, "Batches", lambda *args: int("not a number"))
    monkeypatch.setattr(sys, "argv", ["train_pretrain.py", "--text", text, "--out", str(tmp_path / "run")])
    with pytest.raises(ValueError, match="not a number"):
        command_line(train_pretrain.main, train_pretrain.Config)

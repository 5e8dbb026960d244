"""A user's mistake ends as one sentence that says what, where and what to do, with exit code 2 and no traceback."""

import inspect
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import has_trained, until

import compare
import evaluate
import export
import new_model
import sample
import train_lora
import train_pretrain
import train_sft
from cli import command_line, open_streams
from data import tokenizer
from run import plan
from store import checked
from world import __main__ as world

ROOT = Path(__file__).parent.parent
SCRIPTS = {
    "pretrain": train_pretrain,
    "sft": train_sft,
    "lora": train_lora,
    "evaluate": evaluate,
    "sample": sample,
    "tokenizer": tokenizer,
    "compare": compare,
    "new_model": new_model,
    "export": export,
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
    (tmp_path / "object.json").write_text('{"data": []}')
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


PRETRAIN, SFT, LORA = (
    "--out {tmp}/new --init-from {base} --text",
    "--out {tmp}/new --init-from {base} --instructions",
    "--out {tmp}/new",
)

MISTAKES = [
    ("pretrain", f"{PRETRAIN} {{tmp}}/nowhere.txt", "pretrain.py: {tmp}/nowhere.txt: No such file or directory\n"),
    ("pretrain", f"{PRETRAIN} {{tmp}}/norun", "{tmp}/norun is a folder without a .txt or .txt.gz file"),
    ("pretrain", f"{PRETRAIN} alpaca", "alpaca is for --instructions, not for --text"),
    (
        "pretrain",
        f"{PRETRAIN} shakespeare",
        "shakespeare: No such file or directory; known by name, for --text: tinyshakespeare\n",
    ),
    ("sft", f"{SFT} {{text}}", "text.txt must be a .json, .jsonl, .csv or .tsv"),
    ("evaluate", "--from {base} --text {text} --columns text=body", "--columns is for .json, .jsonl, .csv and .tsv:"),
    ("pretrain", f"{PRETRAIN} {{tmp}}/empty.txt", "empty.txt is empty"),
    (
        "pretrain",
        f"{PRETRAIN} {{tmp}}/short.txt",
        "short.txt has 10 tokens, too few: the least are 2 to judge by and a row of 129",
    ),
    ("pretrain", f"{PRETRAIN} {{tmp}}/latin1.txt", "latin1.txt is not UTF-8 text: invalid start byte at byte 8"),
    ("pretrain", f"{PRETRAIN} {{tmp}}/utf16.txt", "utf16.txt is not UTF-8 text: invalid start byte at byte 0"),
    (
        "pretrain",
        f"{PRETRAIN} {{text}} --block-size 193",
        "193 is beyond the 192 tokens that {base}",
    ),
    ("pretrain", "--text {text} --out {tmp}/new --init-from {tmp}/norun", "norun is not a run with model.pt"),
    ("pretrain", "--text {text} --out {tmp}/new --init-from {tmp}/nowhere", "nowhere does not exist: name the folder"),
    ("pretrain", "--text {text} --out {tmp} --init-from {base}", "{tmp} holds other files ("),
    (
        "pretrain",
        "--text {text} --out {tmp}/new --init-from {tmp}/html",
        "html/model.pt cannot be read as a checkpoint",
    ),
    ("pretrain", "--text {text} --out {tmp}/new --init-from {tmp}/cut", "cut/model.pt is damaged"),
    ("new_model", "--out {tmp}/new --tokenizer klingon", "there is no tokenizer 'klingon': give bytes, gpt2 or"),
    ("new_model", "--out {tmp}/new --n-embd 130", "--n-embd 130 must be a multiple of --n-head 4"),
    ("pretrain", f"{PRETRAIN} {{text}} --steps 0", "--steps must be above 0, got 0"),
    ("pretrain", f"{PRETRAIN} {{text}} --learning-rate nan", "--learning-rate must be above 0, got nan"),
    ("pretrain", f"{PRETRAIN} {{text}} --dropout 1", "--dropout must be from 0 to 0.99, got 1.0"),
    ("pretrain", f"{PRETRAIN} {{text}} --steps ten", "argument --steps: invalid int value: 'ten'"),
    ("pretrain", f"{PRETRAIN} {{text}} --device gpu9", "--device gpu9 is not usable here"),
    (
        "pretrain",
        "--text {text} --init-from {base} --out {tmp}/taken",
        "taken holds a run already: give another --out, or delete it",
    ),
    ("pretrain", "--text {text} --init-from {base} --out {tmp}/one.json", "one.json is a file: --out names a folder"),
    ("pretrain", "--text {text} --init-from {base}", "give --out, a folder to write the run to"),
    ("pretrain", "--text {text} --out {tmp}/new", "the following arguments are required: --init-from"),
    ("pretrain", f"{PRETRAIN} {{text}} --held 0.5", "unrecognized arguments: --held 0.5"),
    ("export", "--from {base} --out {tmp}/norun/new --merge", "base holds no adapter that could be merged"),
    ("export", "--from {base} --out {tmp}/taken", "taken exists already: name a new folder"),
    ("sft", f"{SFT} {{tmp}}/broken.json", "broken.json is not JSON: Expecting ',' delimiter: line 1"),
    ("sft", f"{SFT} {{tmp}}/object.json", "object.json is an object: put the list that is its 'data'"),
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
    ("lora", f"{LORA} --init-from {{base}} --text {{text}} --targets c_attn", "LoRA's targets must be among q_proj,"),
    ("pretrain", f"{PRETRAIN} {{text}} --learning-rate inf", "--learning-rate must be above 0, got inf"),
    ("pretrain", f"{PRETRAIN} {{text}} --device meta", "--device meta is not usable here: it is none of cuda, mps"),
    ("pretrain", f"{PRETRAIN} {{text}} --held-out 1", "no example is left to learn from"),
    ("pretrain", f"{PRETRAIN} /dev/null", "/dev/null is not a file"),
    ("pretrain", "--text {text} --out {tmp}/new --init-from=", "--init-from is empty"),
    (
        "pretrain",
        "--text {text} --out {tmp}/new --init-from {tmp}/zero",
        "zero/model.pt cannot be read as a checkpoint",
    ),
    ("pretrain", "--text {text} --out {tmp}/new --init-from {tmp}/odd", "odd/model.pt does not fit its own config"),
    ("pretrain", "--text {text} --out {tmp}/new --init-from {tmp}/lost", "lost lacks the tokenizer.tiktoken"),
    ("sft", f"{SFT} {{tmp}}/null.json", 'null.json: record 1: "output" is null, expected a text'),
    ("sample", "--from {base} --prompt sea --input hot", "--input goes with --instruction"),
    ("lora", f"{LORA} --init-from {{base}} --text {{text}} --grade-prompt", "--grade-prompt is for --instructions"),
    ("compare", "--instructions {tmp}/null.json --out {tmp}/new", "is null"),
    ("compare", "--questions {json} --base {base} --out {tmp}/new", "beyond the 192 tokens that {base} can read"),
    ("compare", "--base data/builtin/encoder --out {tmp}/new", "encoder cannot write: "),
    ("compare", "--sweep --out {tmp}/new", "--sweep wants other questions than the comparison's: "),
    ("world", "--out {tmp}/one.json", "one.json is a file: --out names a folder"),
    ("world", "--mixture odd --show", "--mixture must be among first, last; got 'odd'"),
    ("world", "--seed 1", "give --show to look at the world, or --out FOLDER"),
    ("tokenizer", "--text {tmp}/empty.txt --out {tmp}/t", "empty.txt is empty"),
    ("tokenizer", "--text {text} --out {text}", "exists already: give another --out"),
    ("evaluate", "--from {base} --text {tmp}/empty.txt", "empty.txt is empty"),
    ("evaluate", "--text {text}", "give --from RUN, or --adapter RUN"),
    ("sample", "--adapter {base} --prompt sea", "is not a run with learned.pt; it holds model.pt"),
    ("sample", "--from {base} --prompt a --instruction b", "give either --prompt or --instruction"),
    ("sample", "--from {base} --ask chat --input hot", "--input goes with --instruction"),
    ("sample", "--from {base} --ask me", "--ask must be prompt, instruction or chat, got 'me'"),
    ("sample", "--page --classify", "give one of the two"),
    ("sample", "--page --prompt a", "--page is asked in the browser: leave out --prompt"),
    ("sample", "--page --input a", "--page is asked in the browser: leave out --prompt"),
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


def test_from_the_shell_there_is_no_traceback_unless_python_is_asked_for_one(tmp_path):
    """Of the script that is there soonest, since it does without torch."""
    flags = f"-m data.tokenizer --text {tmp_path}/nowhere.txt --out {tmp_path}/t"
    plain, dev = shell(f"$PYTHON {flags}"), shell(f"$PYTHON -X dev {flags}")
    assert plain.returncode == 2 and "Traceback" not in plain.stderr and "nowhere.txt" in plain.stderr
    assert dev.returncode == 1 and "Traceback" in dev.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_tells_each_flags_meaning_and_default(script, monkeypatch, capsys):
    import dataclasses

    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--help"])
    with pytest.raises(SystemExit) as exit:
        command_line(SCRIPTS[script].main, SCRIPTS[script].Config)
    said = " ".join(capsys.readouterr().out.split())
    assert exit.value.code == 0
    source = inspect.getsource(SCRIPTS[script].Config)
    for field in dataclasses.fields(SCRIPTS[script].Config):
        [meaning] = re.findall(rf"^ +{field.name}: .*?  # (.+)$", source, re.MULTILINE)
        assert " ".join(meaning.split()) in said
        assert "--" + field.name.strip("_").replace("_", "-") in said
        if field.default not in ("", False, dataclasses.MISSING):
            assert f"(default: {field.default})" in said


def test_a_byte_order_mark_and_a_line_separator_inside_a_string_are_read(tmp_path):
    from data.examples import read_instructions

    records = [{"instruction": "a\u2028b", "output": "c"}, {"instruction": "d", "input": "", "output": "e"}]
    path = tmp_path / "bom.jsonl"
    path.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in records), encoding="utf-8-sig")
    assert [r.instruction for r in read_instructions(path)] == ["a\u2028b", "d"]


def test_a_folder_of_a_program_is_called_as_it_was_asked_for(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/somewhere/world/__main__.py", "--seed", "1"])
    with pytest.raises(SystemExit):
        command_line(world.main, world.Config)
    assert capsys.readouterr().err.startswith("python -m world: give --show")


def test_a_bug_in_the_code_keeps_its_traceback(monkeypatch, text, base, tmp_path):
    """Only a Mistake is one sentence: a student who breaks the loop must see where."""
    monkeypatch.setattr(train_pretrain, "Batches", lambda *args: int("not a number"))
    flags = ["--text", text, "--init-from", base, "--out", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["train_pretrain.py", *flags])
    with pytest.raises(ValueError, match="not a number"):
        command_line(train_pretrain.main, train_pretrain.Config)


# ---- what surrounds a program: it goes on ----------------------------------------------------------------------------


def shell(command, **how):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, **how}
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, env=environment)


def test_a_run_does_not_depend_on_who_reads_its_output(base, text, tmp_path):
    """head leaves after a line, a pipe is closed, no stream is there at all: the run is finished and saved."""
    flags = f"--text {text} --init-from {base} --block-size 32 --steps 3 --device cpu --out {tmp_path}"
    for name, ending in [("head", "| head -1"), ("closed", ">&- 2>&- <&-"), ("full", "> /dev/full")]:
        done = shell(f"set -o pipefail; $PYTHON train_pretrain.py {flags}/{name} {ending}")
        assert done.returncode == 0 and "Traceback" not in done.stderr and "Broken pipe" not in done.stderr
        assert (tmp_path / name / "model.pt").exists() and (tmp_path / name / "sample.txt").exists()


def test_samples_and_batches_that_nobody_reads_end_without_a_traceback(base, text):
    for command in (
        f"yes | head -300 | $PYTHON sample.py --from {base} --max-new-tokens 1 --device cpu | head -1",
        f"$PYTHON train_pretrain.py --text {text} --init-from {base} --block-size 32 --show-batch | head -1",
    ):
        done = shell(f"set -o pipefail; {command}")
        assert done.returncode in (0, 141) and done.stderr == "" and len(done.stdout.splitlines()) == 1


def test_a_line_is_seen_when_it_is_printed_also_through_a_pipe(monkeypatch):
    pipe = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(pipe))
    monkeypatch.setattr("sys.stderr", sys.stderr)  # it is replaced, too
    open_streams()
    print("965,504 parameters learn")
    assert pipe.getvalue().decode().splitlines() == ["965,504 parameters learn"]


def test_bytes_that_are_no_text_and_a_stdin_that_is_closed_end_nothing(base):
    done = shell(f"printf 'the \\xff\\xfe old\\n' | $PYTHON sample.py --from {base} --max-new-tokens 1 --device cpu")
    assert done.returncode == 0 and done.stdout.startswith("the ") and done.stderr == ""
    done = shell(f"$PYTHON sample.py --from {base} --device cpu <&-")
    assert done.returncode == 0 and done.stderr == ""


def test_ctrl_c_reaches_a_run_whose_reader_it_ends_too(base, text, tmp_path):
    """As in `train_sft.py … | tee log`: the step is finished and saved, and the exit code is 130."""
    flags = f"--text {text} --init-from {base} --block-size 32 --steps 100000 --device cpu --out {tmp_path}/run"
    child = subprocess.Popen(
        ["bash", "-c", f"set -o pipefail; {sys.executable} train_pretrain.py {flags} | tee {tmp_path}/log"],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    until(child, lambda: has_trained(tmp_path / "run"))
    os.killpg(child.pid, signal.SIGINT)
    _, said = child.communicate(timeout=30)
    assert (tmp_path / "run" / "last.pt").exists() and b"Traceback" not in said and b"Errno" not in said


def test_a_path_may_begin_at_home_and_help_says_what_a_flag_takes(base, text, tmp_path, monkeypatch, capsys):
    """In --out=~/run a shell leaves it as it is."""
    flags = f"--text {text} --block-size 32 --steps 1 --device cpu --out=~/run --init-from=~/base"
    shutil.copytree(base, tmp_path / "base")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["train_pretrain.py", *flags.split()])
    command_line(train_pretrain.main, train_pretrain.Config)
    assert (tmp_path / "run" / "model.pt").exists() and not Path("~").exists()
    monkeypatch.setattr(sys, "argv", ["train_sft.py", "--help"])
    with pytest.raises(SystemExit):
        command_line(train_sft.main, train_sft.Config)
    said = " ".join(capsys.readouterr().out.split())
    for flag, value in [("--init-from", "RUN"), ("--instructions", "FILE"), ("--held-out", "X"), ("--steps", "N")]:
        assert f"{flag} {value} " in said


def test_show_batch_needs_no_folder(base, text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = train_pretrain.Config(text=text, init_from=base, show_batch=True, device="cpu", block_size=32)
    assert train_pretrain.main(config) == {}
    assert "learns: " in capsys.readouterr().out and not list(tmp_path.iterdir())

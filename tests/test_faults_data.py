"""What can be wrong with data, each fault caused for real: what a run survives, what it refuses before it begins."""

import functools
import gzip
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import RECORDS, metrics, weights

import evaluate
import sample
import train_lora
import train_pretrain
import train_sft
from cli import command_line
from data import download
from data.batches import in_order
from data.examples import Reading, from_text
from data.public import CORPORA, Public
from data.tokenizer import fitted, load_tokenizer, save_tokenizer, train_bpe
from model.generate import generate
from model.gpt import GPT, GPTConfig
from store import checked, checkpoint

ROOT = Path(__file__).parent.parent
BYTES = load_tokenizer("bytes")
SCRIPTS = {
    "pretrain": train_pretrain,
    "sft": train_sft,
    "lora": train_lora,
    "lora_sft": train_lora,
    "evaluate": evaluate,
    "sample": sample,
}
GOOD = [json.dumps(record, ensure_ascii=False) for record in RECORDS]
TEXTS = [json.dumps({"text": f"the old ship {n}, öl and ☂ " * 20}, ensure_ascii=False) for n in range(4)]


@pytest.fixture
def refuses(monkeypatch, capsys, base, tmp_path):
    """refuses("sft", "--instructions", file) is the one sentence with which the script leaves before it begins."""

    def run(script, *flags):
        if script in ("pretrain", "sft", "lora", "lora_sft"):
            flags = ("--out", tmp_path / "refused", *flags)
            flags += () if "--init-from" in flags else ("--init-from", base)
        monkeypatch.setattr(sys, "argv", [script, *map(str, flags)])
        with pytest.raises(SystemExit) as exit:
            command_line(SCRIPTS[script].main, SCRIPTS[script].Config)
        said = capsys.readouterr().err
        assert exit.value.code == 2 and len(said.splitlines()) == 1, said
        assert not (tmp_path / "refused").exists(), "the next try may use the folder"
        return said

    return run


def put(path, content, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


def same_weights(one, other):
    one, other = weights(one), weights(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def csv_of(records):
    rows = [["instruction", "input", "output"], *(record.values() for record in records)]
    return "".join(",".join('"' + text.replace('"', '""') + '"' for text in row) + "\n" for row in rows)


# ---- what is graded ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["sft", "lora_sft"])
@pytest.mark.parametrize("pack", [False, True])
def test_examples_in_which_nothing_would_be_graded_are_skipped_and_counted_and_the_run_goes_on(
    train, tmp_path, capsys, method, pack
):
    """A prompt that fills the block, also where rows are packed."""
    too_long = json.dumps({"instruction": "x" * 300, "output": "never graded"})
    good, more = (
        put(tmp_path / "good.jsonl", "\n".join(GOOD)),
        put(tmp_path / "more.jsonl", "\n".join([*GOOD, too_long])),
    )
    results, _ = train(method, instructions=str(more), pack=pack)
    said = capsys.readouterr().out
    assert said.count(f"{more}: 1 of 11 instructions have a prompt longer than --block-size 192, nothing would be") == 1
    assert said.index("nothing would be graded") < said.index("parameters learn")
    assert results["held_out_nll"] > 0
    train(method, instructions=str(good), pack=pack)
    assert "skipped" not in capsys.readouterr().out


def test_data_in_which_nothing_at_all_would_be_graded_is_refused(refuses, tmp_path):
    file = put(tmp_path / "long.jsonl", "\n".join(json.dumps({"instruction": "x" * 300, "output": "y"}) for _ in "abc"))
    for script, pack in [("sft", []), ("sft", ["--pack"]), ("lora", ["--pack"]), ("evaluate", ["--held-out", 1])]:
        init = ("--from", checkpoint_of(tmp_path, 257)) if script == "evaluate" else ()
        assert "0 usable instructions to learn from and 0 to judge by" in refuses(
            script, "--instructions", file, *pack, *init
        )


# ---- model and tokenizer -----------------------------------------------------------------------------------------


def checkpoint_of(folder, vocab_size, tokenizer=BYTES):
    """A model of this vocabulary, saved as if it had been trained with the tokenizer."""
    torch.manual_seed(0)
    folder = folder / f"model{vocab_size}"
    folder.mkdir()
    checkpoint.save_model(folder, GPT(GPTConfig(vocab_size, 192, 1, 2, 8)), tokenizer)
    return folder


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_token_id_that_the_model_lacks_is_found_before_it_reaches_the_device(
    refuses, tmp_path, text, instructions, script
):
    """A model of 256 tokens, whose tokenizer ends rows with token 256."""
    folder = checkpoint_of(tmp_path, 256)
    flags = {
        "sample": ["--from", folder, "--prompt", "sea"],
        "evaluate": ["--from", folder, "--text", text],
        "sft": ["--init-from", folder, "--instructions", instructions],
        "lora_sft": ["--init-from", folder, "--instructions", instructions],
    }.get(script, ["--init-from", folder, "--text", text])
    assert f"{folder} has a model of 256 tokens, but its tokenizer bytes has 257: they do not" in refuses(
        script, *flags
    )


def test_another_tokenizer_beside_the_model_is_refused(refuses, tmp_path, text):
    for name, words in {"one": "the ship and the sea " * 9, "other": "a calm and an old sea " * 9}.items():
        save_tokenizer(train_bpe([words], 270), tmp_path / name)
    one = load_tokenizer(str(tmp_path / "one"))
    folder = checkpoint_of(tmp_path, one.n_vocab, one)
    assert checkpoint.open_run(folder).tokenizer.name == one.name
    (folder / "tokenizer.tiktoken").write_bytes((tmp_path / "other").read_bytes())
    assert "tokenizer.tiktoken is not the tokenizer that its model" in refuses(
        "pretrain", "--init-from", folder, "--text", text
    )


def test_a_model_padded_to_a_multiple_of_64_trains_and_whatever_it_says_is_decoded(instructions, tmp_path, capsys):
    """More ids than the tokenizer has do no harm, even if the model says nothing else."""
    folder = checkpoint_of(tmp_path, 320)
    contents = torch.load(folder / "model.pt", weights_only=True)
    contents["weights"]["wte.weight"][257:] *= 1000
    checked.write(folder / "model.pt", contents)
    settings = {"steps": 1, "learning_rate": 1e-9, "batch_size": 4, "device": "cpu", "block_size": 192}
    data = {"init_from": str(folder), "out": str(tmp_path / "run"), "instructions": instructions}
    assert train_sft.main(train_sft.Config(**data, **settings))["held_out_nll"] > 0
    assert "<|unused " in capsys.readouterr().out
    tokenizer = checkpoint.open_run(folder).tokenizer
    assert (tokenizer.n_vocab, tokenizer.eot_token, tokenizer.name) == (320, 256, "bytes")
    assert tokenizer.encode_ordinary("<|unused 300|>") == [*b"<|unused 300|>"]
    assert fitted(BYTES, 257, "any").n_vocab == 257


# ---- encodings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.csv", "x.txt"])
def test_a_byte_order_mark_changes_no_weight(train, tmp_path, name):
    content = {"x.json": f"[{','.join(GOOD)}]", "x.jsonl": "\n".join(GOOD), "x.csv": csv_of(RECORDS)}.get(
        name, "sea öl " * 99
    )
    method, flag = ("pretrain", "text") if name == "x.txt" else ("sft", "instructions")
    plain, marked = (put(tmp_path / code / name, content, code) for code in ("utf-8", "utf-8-sig"))
    assert marked.read_bytes() == b"\xef\xbb\xbf" + plain.read_bytes()
    one, other = (train(method, **{flag: str(path)}, block_size=96)[1] for path in (plain, marked))
    assert same_weights(one, other)


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.csv", "x.tsv", "x.jsonl.gz"])
@pytest.mark.parametrize("skip", [[], ["--skip-bad-records"]])
def test_bytes_that_are_no_utf8_are_named_by_file_and_offset(refuses, tmp_path, name, skip):
    """Latin-1 after 4,000 bytes, and UTF-16; a file in another encoding is no bad record."""
    content = {"latin-1": b" " * 4000 + b'{"instruction": "\xf6l"}', "utf-16": "\n".join(GOOD).encode("utf-16")}
    for encoding, offset in {"latin-1": 4017, "utf-16": 0}.items():
        packed = gzip.compress(content[encoding]) if name.endswith(".gz") else content[encoding]
        said = refuses("sft", "--instructions", put(tmp_path / name, packed), *skip)
        assert f"{name} is not UTF-8 text: invalid start byte at byte {offset}" in said


def test_bytes_of_a_text_that_are_no_utf8_are_named_by_file_and_offset(refuses, tmp_path):
    """In the middle of a character too."""
    put(tmp_path / "folder" / "a.txt", "öl")
    put(tmp_path / "folder" / "b.txt", b"sea \xc3")
    assert "b.txt is not UTF-8 text: unexpected end of data at byte 4" in refuses(
        "pretrain", "--text", tmp_path / "folder"
    )


def test_a_line_separator_inside_a_string_does_not_end_its_record(train, tmp_path, capsys):
    """Nor do the other characters at which str.splitlines() would."""
    odd = json.dumps({"instruction": "a\u2028b\u2029c\x85d", "output": "e\u2028f"}, ensure_ascii=False)
    file = put(tmp_path / "x.jsonl", "\n".join([odd] * 4))
    train("sft", instructions=str(file), grade_prompt=True)
    assert "of 3 examples" in capsys.readouterr().out


def test_the_c_locale_changes_nothing(train, tmp_path, base, monkeypatch):
    file = put(tmp_path / "öl.jsonl", "\n".join([*GOOD, "7"]))
    text = put(tmp_path / "öl.txt", "Öl ☂ the sea\n" * 99)
    for script, data in {"sft": ("--instructions", file), "pretrain": ("--text", text)}.items():
        skip = {"skip_bad_records": True} if script == "sft" else {}
        out = tmp_path / script
        flags = ["--init-from", base, "--out", out, "--block-size", 192, "--batch-size", 4, "--steps", 3, "--warmup", 0]
        environment = os.environ | {
            "LC_ALL": "C",
            "PYTHONUTF8": "0",
            "PYTHONCOERCECLOCALE": "0",
            "OMP_NUM_THREADS": "1",
        }
        environment["FINETUNING_CACHE"] = str(tmp_path / "cache")
        flags += ["--device", "cpu", *(["--skip-bad-records"] if skip else [])]
        command = [sys.executable, ROOT / f"train_{script}.py", *data, *flags]
        done = subprocess.run([*map(str, command)], capture_output=True, cwd=ROOT, env=environment)
        assert done.returncode == 0, done.stderr.decode()
        rate = SCRIPTS[script].Config.__dataclass_fields__["learning_rate"].default
        monkeypatch.setattr(SCRIPTS[script], "generate", generate)  # as much as there
        here = train(script, **{data[0][2:]: str(data[1])}, **skip, learning_rate=rate)[1]
        assert same_weights(out, here) and metrics(out, "loss") == metrics(here, "loss")
        assert (out / "sample.txt").read_bytes() == (here / "sample.txt").read_bytes()


# ---- records -----------------------------------------------------------------------------------------------------

BAD = {
    '{"instruction": "cut o': "is not JSON: Unterminated string",
    "[" * 100_000: "is not JSON: ",
    "7": "must be an object with instruction and output, not int",
    '["instruction", "output"]': "must be an object with instruction and output, not list",
    '{"instruction": "a"}': "\"output\" is missing, expected a text; there are 'instruction'",
    '{"instruction": "a", "output": 7}': '"output" is 7, expected a text',
    '{"instruction": "a", "output": NaN}': '"output" is NaN, expected a text',
    '{"instruction": "a", "output": "b", "input": {"c": []}}': '"input" is an object, expected a text',
    '{"instruction": "a", "output": "b", "input": false}': '"input" is false, expected a text',
    '{"instruction": "a", "output": "b", "chance": NaN}': '"chance" is NaN, expected a number from 0 to 1',
    '{"instruction": "a", "output": "b", "chance": Infinity}': '"chance" is Infinity, expected a number from 0 to 1',
    '{"instruction": "a", "output": "b", "task": 1}': '"task" is 1, expected a text',
    '{"instruction": "a", "output": "\\ud800"}': '"output" holds \\ud800, half of a surrogate pair',
    '{"messages": [{"role": "user", "content": "a"}]}': '"messages" must be of user and assistant in turn',
    '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\\udfff"}]}': (
        '"content" holds \\udfff, half of a surrogate pair'
    ),
    '{"messages": "hi"}': '"messages" must be a list of objects with a role and a content, both texts',
}


@pytest.mark.parametrize("bad", BAD, ids=[sentence[:40] for sentence in BAD.values()])
def test_a_malformed_record_is_refused_by_file_line_and_what_was_expected(refuses, tmp_path, bad):
    file = put(tmp_path / "x.jsonl", "\n".join([*GOOD[:2], "", bad, *GOOD[2:]]))
    said = refuses("sft", "--instructions", file)
    assert f"{file}:4" in said and BAD[bad] in said


@pytest.mark.parametrize("method, name", [("sft", "x.jsonl"), ("lora_sft", "x.json"), ("sft", "x.csv")])
def test_malformed_records_can_be_left_out_and_counted_and_the_run_is_that_of_the_others(
    train, tmp_path, capsys, method, name
):
    """The same weights, bit by bit, as from a file without them."""
    if name == "x.csv":
        clean, bad = csv_of(RECORDS), ["cut off", "too,many,fields,here", ""]
        spoiled, n_bad = clean + "\n".join(bad), 2
    elif name == "x.json":
        bad = [one for one in BAD if not BAD[one].startswith("is not JSON")]
        clean, spoiled, n_bad = f"[{','.join(GOOD)}]", f"[{','.join([*bad, *GOOD])}]", len(bad)
    else:
        clean, spoiled, n_bad = "\n".join(GOOD), "\n".join([*GOOD[:5], *BAD, *GOOD[5:]]), len(BAD)
    clean, spoiled = put(tmp_path / "clean" / name, clean), put(tmp_path / "spoiled" / name, spoiled)
    _, expected = train(method, instructions=str(clean), skip_bad_records=True)
    assert "records are malformed" not in capsys.readouterr().out
    _, found = train(method, instructions=str(spoiled), skip_bad_records=True)
    said = capsys.readouterr().out
    line = next(line for line in said.splitlines() if "records are malformed" in line)
    assert line.startswith(f"{spoiled}: {n_bad} of {n_bad + 10} records are malformed: skipped; the first: {spoiled}:")
    assert line.count(str(spoiled)) == 1 + min(3, n_bad), "three are shown, all are counted"
    assert said.index("records are malformed") < said.index("parameters learn")
    assert said.count("records are malformed") == 1
    assert same_weights(expected, found)


@pytest.mark.parametrize("method", ["pretrain", "lora"])
def test_malformed_documents_are_counted_in_every_run_though_tokenised_once(
    train, refuses, tmp_path, capsys, method, monkeypatch
):
    """What is kept of a tokenised text is never taken for one that was read otherwise."""
    bad = ['{"text": "\\ud800"}', '{"text": NaN}', "{", '{"body": "x"}', "7"]
    clean = put(tmp_path / "clean.jsonl", "\n".join(TEXTS))
    spoiled = put(tmp_path / "spoiled.jsonl", "\n".join([*TEXTS[:2], *bad, *TEXTS[2:]]))
    script = "pretrain" if method == "pretrain" else "lora"
    assert "spoiled.jsonl:3" in refuses(script, "--text", spoiled)
    _, expected = train(method, text=str(clean))
    for _ in range(2):
        capsys.readouterr()
        _, found = train(method, text=str(spoiled), skip_bad_records=True)
        assert f"{spoiled}: 5 of 9 records are malformed: skipped; the first: {spoiled}:3: " in capsys.readouterr().out
        assert same_weights(expected, found)
        monkeypatch.setattr("data.text.pieces_of", lambda *_: pytest.fail("tokenised a second time"))
    monkeypatch.undo()
    assert "spoiled.jsonl:3" in refuses(script, "--text", spoiled)


@pytest.mark.parametrize(
    "name, content, sentence",
    [
        ("x.jsonl", "7\n[]\n", "2 of 2 records are malformed, so none is left; the first: "),
        ("x.csv", "question,answer\na,b\n", "1 of 1 records are malformed, so none is left; the first: "),
        ("x.json", "[1, 2", "x.json is not JSON"),
        ("x.json", "7", "x.json must hold a JSON list of records, not 7"),
        ("x.csv", 'instruction,output\na,b\n"c,d\ne,f\n', "x.csv:3 is not a row of a table: unexpected end of data"),
        ("x.jsonl.gz", gzip.compress(b"{}\n" * 9, mtime=0)[:-9], "x.jsonl.gz is not a whole .gz file"),
        ("x.jsonl", "", "x.jsonl is empty"),
        ("x.jsonl", "\n", "x.jsonl has 0 usable instructions"),
    ],
)
def test_what_is_broken_as_a_whole_is_refused_though_records_may_be_skipped(refuses, tmp_path, name, content, sentence):
    file = put(tmp_path / name, content)
    assert sentence in refuses("sft", "--instructions", file, "--skip-bad-records")


def test_records_of_a_plain_text_cannot_be_skipped(refuses, text):
    """No flag is without effect."""
    assert "--skip-bad-records is for .json, .jsonl" in refuses("pretrain", "--text", text, "--skip-bad-records")


def test_evaluate_skips_what_training_skipped(base, tmp_path, capsys):
    clean, spoiled = put(tmp_path / "a.jsonl", "\n".join(GOOD)), put(tmp_path / "b.jsonl", "\n".join(["7", *GOOD]))
    for file in (clean, spoiled):
        evaluate.main(evaluate.Config(from_=base, instructions=str(file), skip_bad_records=True, device="cpu"))
    *one, how, counted, nll, exact_match = capsys.readouterr().out.splitlines()
    assert one == [how, nll, exact_match] and "1 of 11 records are malformed" in counted


# ---- lengths -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["sft", "lora_sft"])
def test_an_empty_response_is_skipped_and_counted(train, tmp_path, capsys, method):
    """The policy is that silence is not taught."""
    empty = [json.dumps({"instruction": "a", "output": output}) for output in ("", " \n\t", "\u3000")]
    file = put(tmp_path / "x.jsonl", "\n".join([*empty, *GOOD, *GOOD]))
    train(method, instructions=str(file), held_out=0.2)
    said = capsys.readouterr().out
    assert said.count("3 of 23 instructions have an empty response: skipped") == 1
    assert said.index("empty response") < said.index("parameters learn")


@pytest.mark.parametrize("pack", [False, True])
def test_an_example_longer_than_the_block_keeps_some_of_its_response_and_is_counted(
    train, tmp_path, capsys, monkeypatch, pack
):
    """Every row that is trained on has something graded, packed or not."""
    long = json.dumps({"instruction": "a", "output": "b" * 500})
    too_long = json.dumps({"instruction": "a" * 500, "output": "b"})
    file = put(tmp_path / "x.jsonl", "\n".join([long, long, too_long, *GOOD]))
    seen = []
    collate = train_sft.Batches.__init__

    def spy(self, examples, *rest):
        seen.extend(examples)
        collate(self, examples, *rest)

    monkeypatch.setattr(train_sft.Batches, "__init__", spy)
    train("sft", instructions=str(file), pack=pack)
    said = capsys.readouterr().out
    assert said.count("2 of 13 instructions are longer than --block-size 192: cut there, their end is not learned") == 1
    assert said.count("1 of 13 instructions have a prompt longer than --block-size 192, nothing would be graded") == 1
    assert all(len(example.inputs) <= 192 and example.graded.any() for example in seen)
    assert {len(example.inputs) for example in seen} >= {192}


def test_a_text_shorter_than_a_block_is_refused_with_its_numbers(refuses, tmp_path, base):
    for content, n in {"s": 2, "sea": 4, "s" * 190: 191}.items():
        file = put(tmp_path / "x.txt", content)
        said = refuses("lora", "--text", file, "--block-size", 192)
        assert f"{file} has {n} tokens, too few: the least are " in said and "and a row of 193 to learn from" in said
    rows = from_text(put(tmp_path / "x.txt", "s"), Reading(BYTES, 192, 1.0))[1]
    assert [batch[2].sum().item() for batch in in_order(rows, 4)] == [1], "two tokens are enough to judge by"


def test_end_of_text_written_by_a_user_is_plain_text_in_every_format(tmp_path):
    end = "<|endoftext|>"
    files = {
        "x.txt": f"a{end}b",
        "x.jsonl": json.dumps({"text": f"a{end}b"}),
        "x.csv": f"text\na{end}b\n",
    }
    for name, content in files.items():
        tokens = from_text(put(tmp_path / name, content), Reading(BYTES, 192, 1.0))[1].tokens
        assert tokens.tolist() == [*f"a{end}b".encode(), BYTES.eot_token]


# ---- from elsewhere ----------------------------------------------------------------------------------------------


@pytest.fixture
def corpus(monkeypatch, tmp_path):
    """corpus(content, **pinned) is served as "corpus"; returns where it is to be kept, and what the server is asked."""
    served, asked, servers = tmp_path / "served", [], []
    served.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *_):
            pass

    def serve(content, file="x.jsonl", member="", real=None):
        (served / file).write_bytes(content) if content is not None else None
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(served)))
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        real = content or b"" if real is None else real
        url = f"http://127.0.0.1:{server.server_port}/{file}"
        public = Public("instructions", "MIT", len(real), hashlib.sha256(real).hexdigest(), url, member)
        monkeypatch.setitem(CORPORA, "corpus", public)
        return tmp_path / "cache" / "downloads" / "corpus" / file, asked

    monkeypatch.setenv("FINETUNING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_corpus_that_cannot_be_had_is_refused_with_what_to_put_where_and_then_read_from_there(
    refuses, corpus, train, monkeypatch
):
    """Cut off, another file, not there, offline; test_download.py has more."""
    real = "\n".join(GOOD).encode()
    for content, times in ((real[:99], 2), (b"<html>sign in</html>", 2), (None, 1)):
        file = "x.jsonl" if content else "not-there.jsonl"
        path, asked = corpus(content, file, real=real)
        asked.clear()
        said = refuses("sft", "--instructions", "corpus")
        assert f"could not be downloaded: {'it is' if content else 'the server said 404'}" in said, said
        assert f"download it elsewhere and put it at {path}" in said and len(asked) >= times
        assert not path.exists(), "half a file, or another one, is never taken for the corpus"

    offline = Public("instructions", "MIT", len(real), hashlib.sha256(real).hexdigest(), "http://127.0.0.1:9/y.jsonl")
    monkeypatch.setitem(CORPORA, "corpus", offline)
    assert "could not be downloaded: no connection" in refuses("sft", "--instructions", "corpus")
    put(path.with_name("y.jsonl"), real)
    assert train("sft", instructions="corpus")[0]["held_out_nll"] > 0


def test_an_archive_member_outside_its_folder_is_never_extracted(refuses, corpus, train, tmp_path):
    """Nothing of an archive is written to disk at all; neither is such a member read under another name."""
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("../evil.jsonl", "\n".join(GOOD))
        file.writestr("/evil.jsonl", "\n".join(GOOD))
        file.writestr("good.jsonl", "\n".join(GOOD))
    corpus(archive.read_bytes(), "x.zip", "good.jsonl")
    assert train("sft", instructions="corpus")[0]["held_out_nll"] > 0
    corpus(archive.read_bytes(), "x.zip", "../evil.jsonl")
    assert "x.zip/../evil.jsonl" in refuses("sft", "--instructions", "corpus")
    assert not list(tmp_path.rglob("*evil*")) and not Path("/evil.jsonl").exists()

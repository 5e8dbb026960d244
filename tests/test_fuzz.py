"""Thousands of random inputs, the same in every run: a right result or one sentence; no wrong one, no traceback.

FUZZ=10 pytest tests/test_fuzz.py tries ten times as many.
"""

import base64
import contextlib
import csv
import dataclasses
import gzip
import io
import json
import math
import os
import struct
import sys
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

import compare
import evaluate
import sample
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
from cli import Mistake, command_line
from data.batches import collate
from data.examples import Reading, from_instructions, graded_everywhere, next_token, packed, read_instructions
from data.formats import column_map
from data.text import token_file
from data.tokenizer import load_tokenizer, save_tokenizer, train_bpe
from model.gpt import GPT, GPTConfig
from store import checkpoint
from store.safetensors import DTYPES, read_safetensors, write_safetensors

BYTES = load_tokenizer("bytes")
inputs_of_each_test = []


def fuzz(n, **inputs):
    """@given n inputs that do not change from run to run."""
    inputs_of_each_test.append(n)
    how = settings(
        max_examples=n * int(os.environ.get("FUZZ", "1")),
        derandomize=True,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
    )
    return lambda test: how(given(**inputs)(test))


def test_at_least_two_thousand_inputs_are_tried():
    assert sum(inputs_of_each_test) >= 2000


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def result_of(read, *args, error=Mistake):
    """What it returns, or None where it refuses: with one sentence."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return read(*args)
    except error as said:
        assert len(str(said).splitlines()) == 1 and len(str(said)) < 1000, said
        return None


def damaged(content, draw):
    """A few bytes flipped, cut out, put in or written over."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        some = draw(st.binary(min_size=1, max_size=4))
        kind = draw(st.sampled_from(["flip", "flip", "cut", "drop", "insert", "over"]))
        if kind == "flip" and content:
            content = content[:at] + bytes([content[at] ^ 1 << draw(st.integers(0, 7))]) + content[at + 1 :]
        elif kind == "cut":
            content = content[:at]
        elif kind == "drop":
            content = content[:at] + content[at + len(some) :]
        elif kind == "insert":
            content = content[:at] + some + content[at:]
        elif kind == "over":
            content = content[:at] + some + content[at + len(some) :]
    return content


# ---- records -----------------------------------------------------------------------------------------------------

any_text = st.text(st.characters(exclude_categories=()), max_size=12)  # surrogates, too
scalars = st.none() | st.booleans() | st.integers() | st.floats() | any_text
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3), max_leaves=6
)
texts = st.text(max_size=12)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system"]) | scalars, "content": texts | scalars}
    )
    | anything,
    max_size=5,
)
turns = st.lists(st.tuples(texts, texts), min_size=1, max_size=3).map(
    lambda pairs: [
        {"role": role, "content": content}
        for pair in pairs
        for role, content in zip(("user", "assistant"), pair, strict=True)
    ]
)
solved = st.fixed_dictionaries({"instruction": texts, "output": texts}, optional={"input": texts | st.none()})
good_records = st.fixed_dictionaries(
    {"instruction": texts, "output": texts},
    optional={"input": texts | st.none(), "examples": st.lists(solved, max_size=2)},
)
records = (
    good_records
    | st.fixed_dictionaries(
        {"instruction": texts, "output": texts, "examples": st.lists(solved | anything, max_size=2)}
    )
    | st.fixed_dictionaries({"messages": turns | messages | anything})
    | st.fixed_dictionaries(
        {"instruction": texts | scalars, "output": texts | anything},
        optional={"input": anything, "task": scalars, "split": scalars, "chance": st.floats(0, 1) | scalars},
    )
    | anything
)


def is_text(value):
    return isinstance(value, str) and not any(0xD800 <= ord(letter) < 0xE000 for letter in value)


def expected_of(record):
    """What a record must be read as, or None: written a second time, as plainly as can be."""
    if not isinstance(record, dict):
        return None
    record = {key: v for key, v in record.items() if v not in (None, "") or key in ("instruction", "output")}
    if "messages" in record:
        said = record["messages"]
        if not isinstance(said, list) or not all(
            isinstance(one, dict) and {"role", "content"} <= set(one) for one in said
        ):
            return None
        system = [one["content"] for one in said[:1] if one["role"] == "system"]
        said = said[len(system) :]
        roles, contents = [one["role"] for one in said], system + [one["content"] for one in said]
        if len(said) < 2 or roles != ["user", "assistant"] * (len(said) // 2) or not all(map(is_text, contents)):
            return None
        *earlier, last = zip(contents[len(system) :: 2], contents[len(system) + 1 :: 2], strict=True)
        return (last[0], "", last[1], "", "instances", 0, (), tuple(earlier), "".join(system))
    wanted = {"task": "", "split": "instances", "chance": 0, **record}
    fields = [record.get("instruction"), record.get("input", ""), record.get("output"), wanted["task"], wanted["split"]]
    chance = wanted["chance"]
    is_chance = type(chance) in (int, float) and 0 <= chance <= 1
    examples = record.get("examples", [])
    solved = [*map(expected_of, examples)] if isinstance(examples, list) else [None]
    are_solved = all(one is not None and one[6:] == ((), (), "") for one in solved)
    shown = tuple(one[:3] for one in solved) if are_solved else ()
    return (*fields, chance, shown, (), "") if all(map(is_text, fields)) and is_chance and are_solved else None


@fuzz(250, many=st.lists(records, max_size=6), suffix=st.sampled_from([".json", ".jsonl", ".jsonl.gz"]))
def test_records_of_any_shape_are_read_as_what_they_are_or_refused(here, many, suffix):
    content = json.dumps(many) if suffix == ".json" else "\n".join([*map(json.dumps, many), ""]) or "\n"
    path = here / f"x{suffix}"
    path.write_bytes(gzip.compress(content.encode(), 1) if suffix.endswith(".gz") else content.encode())
    good = [one for one in map(expected_of, many) if one is not None]
    whole = result_of(read_instructions, path)
    assert whole == (good if len(good) == len(many) else None)
    assert result_of(read_instructions, path, "", True) == (good if good or not many else None)


parts = st.sampled_from(['"', ",", "\n", "\r", "\t", "a", "output", "text", "{", ":", "[", "}", "]"]).map(str.encode)
beginnings = ["", "instruction,output\n", "text\n", '{"text": ', '[{"instruction": "', "\ufeff", "\x1f\ufffd"]


@fuzz(
    200,
    content=st.lists(parts | st.binary(max_size=3)).map(b"".join),
    begin=st.sampled_from(beginnings).map(str.encode),
    suffix=st.sampled_from([".json", ".jsonl", ".csv", ".tsv", ".csv.gz"]),
    columns=st.sampled_from(["", "output=2,instruction=1", "text=1", "instruction=a,output=output", "input==x"]),
    skip=st.booleans(),
)
def test_bytes_of_any_kind_are_records_or_refused(here, content, begin, suffix, columns, skip):
    path = here / f"bytes{suffix}"
    path.write_bytes(begin + content)
    for one in result_of(read_instructions, path, columns, skip) or []:
        assert all(is_text(field) for field in one[:5])
    ids = result_of(token_file, path, BYTES, columns, skip)
    assert ids is None or (len(ids) and ids.max() <= BYTES.eot_token and ids[-1] == BYTES.eot_token)


@fuzz(200, data=st.data(), kind=st.sampled_from(["zip", "gz"]))
def test_a_damaged_archive_is_refused_or_holds_what_it_held(here, data, kind):
    content, archive = json.dumps({"instruction": "name a sea", "output": "Baltic"}).encode() * 2, io.BytesIO()
    content = content.replace(b"}{", b"}\n{")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x.jsonl", content)
    whole = archive.getvalue() if kind == "zip" else gzip.compress(content, mtime=0)
    path = here / f"damaged.jsonl.{kind}" if kind == "gz" else here / "damaged.zip"
    path.write_bytes(damaged(whole, data.draw))
    read = result_of(read_instructions, path if kind == "gz" else path / "x.jsonl")
    assert read is None or len(read) == 2 or not path.stat().st_size
    assert all(one[:3] == ("name a sea", "", "Baltic") for one in read or [])


@fuzz(100, rows=st.lists(good_records, min_size=1, max_size=4), delimiter=st.sampled_from(",\t"))
def test_a_table_is_read_as_it_was_written(here, rows, delimiter):
    rows = [[row["instruction"], row.get("input") or "", row["output"]] for row in rows]
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter)
    if delimiter == "\t":  # without quoting: neither tabs nor line ends
        rows = [["".join(c for c in text if c not in '\t\n\r"') or "-" for text in row] for row in rows]
    writer.writerows([["instruction", "input", "output"], *rows])
    path = here / ("x.csv" if delimiter == "," else "x.tsv")
    path.write_bytes(file.getvalue().encode())
    assert [list(one[:3]) for one in read_instructions(path)] == rows


@fuzz(200, columns=st.text(st.sampled_from("ab=,1 é") | st.characters(), max_size=12) | any_text)
def test_a_column_map_of_any_text_is_a_map_or_refused(here, columns):
    ours = ("a", "b", "input")
    wanted = result_of(column_map, columns, ours)
    assert wanted is None or (set(wanted) <= set(ours) and all(wanted.values()))
    path = here / "columns.csv"
    path.write_text("a,b\n1,2\n", encoding="utf-8")
    result_of(read_instructions, path, columns.replace("a=", "input=").replace("b=", "output="))


# ---- examples and batches ----------------------------------------------------------------------------------------


@st.composite
def examples(draw, longest=12):
    """Of 2 to `longest` tokens, numbered through all of them, something graded in each."""
    some, first = [], 0
    for length in draw(st.lists(st.integers(2, longest), min_size=1, max_size=12)):
        graded = np.array(draw(st.lists(st.booleans(), min_size=length, max_size=length)))
        graded[draw(st.integers(1, length - 1))] = True
        some.append(next_token(np.arange(first, first + length), graded))
        first += length
    return some


@fuzz(200, some=examples(), room=st.integers(11, 40), everywhere=st.booleans())
def test_packed_rows_hold_every_example_once_and_grade_what_it_grades(some, room, everywhere):
    some = graded_everywhere(some) if everywhere else some
    found = []
    for inputs, targets, graded, positions in packed(some, room):
        assert len(inputs) == len(targets) == len(graded) == len(positions) <= room
        starts = np.flatnonzero(positions == 0)
        assert starts[0] == 0
        for begin, end in zip(starts, [*starts[1:], len(inputs)], strict=True):
            assert (positions[begin:end] == np.arange(end - begin)).all()
            assert (targets[begin:end] == inputs[begin:end] + 1).all(), "nothing is asked across a seam"
            found.append((inputs[begin:end].tolist(), graded[begin:end].tolist()))
    assert sorted(found) == [(one.inputs.tolist(), one.graded.tolist()) for one in some]


@fuzz(200, some=examples(), pack=st.booleans())
def test_a_batch_is_its_rows_and_padding_that_is_not_graded(some, pack):
    rows = packed(some, 24) if pack else some
    batch = collate(rows)
    assert all(part.shape == (len(rows), max(len(row.inputs) for row in rows)) for part in batch[:3])
    assert batch.positions.shape == (batch.inputs.shape if pack else batch.inputs.shape[1:])
    for b, row in enumerate(rows):
        t = len(row.inputs)
        for part in range(4 if pack else 3):
            assert batch[part][b, :t].tolist() == row[part].tolist() and not batch[part][b, t:].any()


@fuzz(
    150,
    many=st.lists(good_records | st.fixed_dictionaries({"messages": turns}), min_size=2, max_size=6),
    block_size=st.integers(20, 120),
)
def test_in_any_block_every_example_has_something_graded_and_none_is_lost_unsaid(here, many, block_size):
    path = here / "many.json"
    path.write_text(json.dumps(many), encoding="utf-8")
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            train, held_out = from_instructions(path, Reading(BYTES, block_size, 0.3))
    except Mistake as refused:
        assert "it must have at least one of each" in str(refused)
        return
    counts = [(int(line.split(": ")[1].split()[0]), line) for line in said.getvalue().splitlines()]
    assert len(train) + len(held_out) + sum(n for n, line in counts if line.endswith("skipped")) == len(many)
    n_without_an_end = sum(example.targets[-1] != BYTES.eot_token for example in [*train, *held_out])
    assert n_without_an_end <= sum(n for n, line in counts if "cut there" in line)
    for example in [*train, *held_out, *packed(train, block_size)]:
        assert len(example.inputs) <= block_size and example.graded.any()
    collate(train or held_out)


# ---- tokenizers --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizers(here):
    save_tokenizer(train_bpe(["the ship and the sea, das Öl ☂ 12345\n\n\tthe end" * 20], 320), here / "own")
    return [BYTES, *(load_tokenizer(str(path)) for path in (here / "own", "data/builtin/tokenizer.tiktoken"))]


@fuzz(150, text=st.lists(st.text() | st.sampled_from(["<|endoftext|>", "<|unused 300|>", " the", "\r\n"])).map("".join))
def test_any_text_comes_back_from_every_tokenizer_and_never_holds_an_end(tokenizers, text):
    for tokenizer in tokenizers:
        ids = tokenizer.encode_ordinary(text)
        assert tokenizer.decode_bytes(ids) == text.encode() and tokenizer.decode(ids) == text
        assert max(ids, default=0) < tokenizer.eot_token
        assert tokenizer.encode_to_numpy(text, disallowed_special=()).tolist() == ids


@fuzz(150, data=st.data())
def test_a_damaged_tokenizer_is_refused_or_is_a_tokenizer(here, tokenizers, data):
    path = here / "damaged.tiktoken"
    path.write_bytes(damaged((here / "own").read_bytes(), data.draw))
    tokenizer = result_of(load_tokenizer, str(path))
    if tokenizer is not None:
        lines = [line.split() for line in path.read_bytes().splitlines()]
        tokens = [base64.b64decode(token) for token, _ in lines]
        assert len(set(tokens)) == len(tokens) == tokenizer.eot_token and all(tokens)
        assert tokenizer.name != tokenizers[1].name or path.read_bytes() == (here / "own").read_bytes()
        text = "the ship and the sea, das Öl ☂ 12345\n\n\tthe end\0\x80"
        assert tokenizer.decode(tokenizer.encode_ordinary(text)) == text


# ---- weights -----------------------------------------------------------------------------------------------------


def declared(content):
    """The tensors of a safetensors file by its own header, as (dtype, shape, bytes), read a second time; None where the
    header does not say for each byte which tensor it belongs to."""
    n = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + n]), content[8 + n :]
    header.pop("__metadata__", None)
    found, so_far = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        (begin, end), shape = entry["data_offsets"], entry["shape"]
        if begin != so_far or end - begin != math.prod(shape) * DTYPES[entry["dtype"]].itemsize:
            return None
        found[name], so_far = (DTYPES[entry["dtype"]], shape, data[begin:end]), end
    return found if so_far == len(data) else None


def same_as_declared(path):
    read = result_of(read_safetensors, path, error=ValueError)
    if read is not None:
        found = {
            name: (tensor.dtype, list(tensor.shape), tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
            for name, tensor in read.items()
        }
        assert found == declared(path.read_bytes())


sizes = st.integers(0, 4) | st.integers() | scalars
gaps = st.sampled_from([0] * 9 + [1, 4, -1, -4])
whole_entries = st.tuples(st.sampled_from([*DTYPES]), st.lists(st.integers(0, 3) | st.just(2**62), max_size=3), gaps)
odd_entries = scalars | st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from([*DTYPES]) | scalars,
        "shape": st.lists(sizes, max_size=4) | scalars,
        "data_offsets": st.lists(sizes, max_size=3) | scalars,
    },
)


@fuzz(
    200,
    whole=st.dictionaries(texts, whole_entries, max_size=4),
    odd=st.dictionaries(any_text, odd_entries, max_size=1),
    extra=st.sampled_from([0, 0, 0, 1, -1]),
    metadata=st.none() | anything,
)
def test_a_random_header_is_refused_or_its_tensors_are_those_declared(here, whole, odd, extra, metadata):
    header, end = {}, 0
    for name, (dtype, shape, gap) in whole.items():
        begin, end = end + gap, end + gap + math.prod(shape) * DTYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    header |= odd | ({} if metadata is None else {"__metadata__": metadata})
    text = json.dumps(header).encode()
    path = here / "header.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(i % 2 for i in range(max(0, min(end, 10**5) + extra))))
    same_as_declared(path)


@fuzz(200, data=st.data())
def test_a_damaged_safetensors_file_is_refused_or_its_tensors_are_those_declared(here, data):
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(7), "c": torch.zeros(0, 2, dtype=torch.bfloat16)}
    path = here / "damaged.safetensors"
    write_safetensors(path, tensors)
    path.write_bytes(damaged(path.read_bytes(), data.draw))
    same_as_declared(path)


@fuzz(200, data=st.data())
def test_a_damaged_checkpoint_is_refused_or_bit_equal(here, data):
    folder = here / "run"
    if not folder.exists():
        folder.mkdir()
        torch.manual_seed(0)
        checkpoint.save_model(folder, GPT(GPTConfig(257, 4, 1, 1, 2)), BYTES)
        (folder / "model.pt").rename(folder / "whole.pt")
    whole = (folder / "whole.pt").read_bytes()
    content = damaged(whole, data.draw)
    assume(content != whole)
    expected = torch.load(folder / "whole.pt", weights_only=True)["weights"]
    (folder / "model.pt").write_bytes(content)
    opened = result_of(checkpoint.open_run, folder)
    if opened is not None:
        found = opened.weights
        assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


# ---- flags -------------------------------------------------------------------------------------------------------

BESIDE = [module.Config for module in (train_lora, train_adapter, train_prefix, train_prompt)]  # a frozen base
COMPARED = (train_reward, train_dpo, train_rlhf)
OTHERS = (train_pretrain, train_sft, train_classifier, train_mlm, *COMPARED, evaluate, sample, compare)
CONFIGS = [*BESIDE, *(module.Config for module in OTHERS)]
numbers = (
    st.text(st.sampled_from("0123456789-+.eE_ infa"), max_size=6)
    | st.integers().map(str)
    | st.floats().map(str)
    | st.sampled_from(["9" * 30, "9" * 999, "9" * 9999, "1e999", "-0", "1e-400", "nan", "٣", "0x10", "--"])
    | any_text.filter(lambda text: "\0" not in text)
)


@fuzz(200, data=st.data(), Config=st.sampled_from(CONFIGS))
def test_any_text_as_a_flag_is_a_value_in_its_range_or_refused(data, Config):
    fields = [field for field in dataclasses.fields(Config) if field.type is not bool]
    required = [field for field in dataclasses.fields(Config) if field.default is dataclasses.MISSING]
    chosen = data.draw(st.lists(st.sampled_from(fields), min_size=1, max_size=2, unique_by=lambda field: field.name))
    flags = [f"--{field.name.strip('_').replace('_', '-')}" for field in (*required, *chosen)]
    values = ["x"] * len(required) + [data.draw(numbers) for _ in chosen]
    if Config in (*BESIDE, evaluate.Config) and not {"--text", "--instructions"} & set(flags):
        flags, values = [*flags, "--text"], [*values, "x"]
    if Config is train_classifier.Config and not {"--labelled", "--tagged"} & set(flags):
        flags, values = [*flags, "--labelled"], [*values, "x"]
    ran = []

    def main(config):
        ran.append(config)

    main.__module__ = Config.__module__
    said, argv = io.StringIO(), sys.argv
    sys.argv = ["script", *(f"{flag}={value}" for flag, value in zip(flags, values, strict=True))]
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            command_line(main, Config)
    except SystemExit as exit:
        assert exit.code == 2 and not ran
        *_, sentence = said.getvalue().splitlines() if "usage:" in said.getvalue() else [said.getvalue().strip()]
        assert (
            sentence.startswith("script: ") and len(sentence.splitlines()) == 1 and "Traceback" not in said.getvalue()
        )
    finally:
        sys.argv = argv
    for config in ran:
        for field in chosen:
            value = getattr(config, field.name)
            assert type(value) is field.type
            assert field.type is str or 0 <= value < (2**32 if field.type is int else math.inf)

"""Whatever kind of file the data comes in, the examples are the same; a conversation is graded on every response."""

import csv
import gzip
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import tokens_of

from cli import Mistake
from data.batches import in_order
from data.download import find
from data.examples import (
    Instruction,
    Reading,
    conversation,
    from_instructions,
    from_text,
    instruction_example,
    packed,
    read_instructions,
    render_prompt,
)
from data.formats import column_map, read_records
from data.text import encode, pieces_of, token_file
from data.tokenizer import Config, load_tokenizer, main
from evaluate import answered_right

BYTES = load_tokenizer("bytes")
ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"


def real(name):
    if not (SHARED / name).exists():
        pytest.skip(f"needs {SHARED / name}, which is not part of the project")
    return SHARED / name


# Each has what a careless reader stumbles over: commas, quotes, a line in the text, U+2028, a field without text.
RECORDS = [
    {"instruction": 'Say "it", twice', "input": "", "output": "it\nit"},
    {"instruction": "Repeat\u2028the word.", "input": "öl, ☂", "output": "öl, ☂ <|endoftext|>"},
]


def table(records, delimiter):
    file = io.StringIO()
    writer = csv.DictWriter(file, ["instruction", "input", "output"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(records)
    return file.getvalue()


def tsv(records):
    return "\n".join("\t".join(row) for row in [list(records[0]), *(record.values() for record in records)]) + "\n"


FLAT = [{key: text.replace("\n", " ") for key, text in record.items()} for record in RECORDS]  # a .tsv has no quoting
FILES = {
    "x.json": (json.dumps(RECORDS, ensure_ascii=False), RECORDS),
    "x.jsonl": ("\n\n".join(json.dumps(record, ensure_ascii=False) for record in RECORDS), RECORDS),
    "x.csv": (table(RECORDS, ","), RECORDS),
    "x.tsv": (tsv(FLAT), FLAT),
}


def write(path, text, encoding="utf-8"):
    """With the line ends as they are; compressed where the name says so."""
    content = text.encode(encoding)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("name", FILES)
def test_every_format_holds_the_same_records(tmp_path, name, gz, encoding):
    text, records = FILES[name]
    path = write(tmp_path / (name + gz), text, encoding)
    assert [one[:3] for one in read_instructions(path)] == [tuple(record.values()) for record in records]


def test_columns_have_other_names_numbers_or_are_a_text(tmp_path):
    named = write(tmp_path / "named.csv", "id,question,answer\n1,Why?,So.\n")
    assert read_instructions(named, "instruction=question, output=answer") == [Instruction("Why?", "", "So.")]
    numbered = write(tmp_path / "numbered.tsv", 'ham\tOk "lar\nspam\tWIN\n')
    ham, spam = read_instructions(numbered, "instruction==Spam, or ham?,input=2,output=1")
    assert ham == Instruction("Spam, or ham?", 'Ok "lar', "ham") and spam.output == "spam"
    turned = write(tmp_path / "turned.jsonl", '{"input": "Why?", "label": "So."}')
    assert read_instructions(turned, "instruction=input,output=label") == [Instruction("Why?", "", "So.")]
    assert column_map("instruction==a=b, c,output=2", ("instruction", "output")) == {
        "instruction": "=a=b, c",
        "output": "2",
    }


MALFORMED = [
    ("x.jsonl", '{"instruction": "a", "output": "b"}\n{"instruction', "", "x.jsonl:2 is not JSON: Unterminated string"),
    ("x.jsonl.gz", "7\n", "", "x.jsonl.gz:1 must be an object with instruction and output, not int"),
    ("x.jsonl", "[" * 100_000, "", "x.jsonl:1 is not JSON: "),
    ("x.csv", "instruction,output\na,b\nc\n", "", "x.csv:3 has 1 columns, but the first row has 2"),
    ("x.csv", 'instruction,output\n"a\nb",c\n"d', "", "x.csv:4 is not a row of a table: unexpected end of data"),
    (
        "x.csv",
        "question,output\na,b\n",
        "",
        "\"instruction\" is missing, expected a text; there are 'question', 'output'; --columns instruction=NAME can",
    ),
    ("x.csv", "a,b\n", "output=3,instruction=1", "x.csv:1 has no column '3' to take as output; there are '1', '2'"),
    ("x.csv", "a,b\nc,d\n", "output=B", "x.csv:2 has no column 'B' to take as output; there are 'a', 'b'"),
    (
        "x.csv",
        "a,b\n",
        "answer=b",
        "--columns has 'answer=b': it must be OURS=THEIRS, with instruction, input, output,",
    ),
    ("x.csv", "a,b\n", "output=", "--columns has 'output=': it must be OURS=THEIRS"),
    ("x.csv", "instruction;output\na;b\n", "", "x.csv:1 has one column, 'instruction;output': there must be commas"),
    ("x.tsv", "instruction,output\na,b\n", "", "x.tsv:1 has one column, 'instruction,output': there must be tabs"),
    ("x.json", '{"data": [{"instruction": "a"}]}', "", "put the list that is its 'data' into a file of its own"),
    ("x.json", '{"instruction": "a", "output": "b"}\n{"outp', "", "x.json:2 is not JSON: Unterminated string"),
    ("x.parquet", "PAR1", "", "x.parquet must be a .json, .jsonl, .csv or .tsv, or one of these and .gz, and be"),
]


@pytest.mark.parametrize("name, text, columns, sentence", MALFORMED, ids=[sentence for *_, sentence in MALFORMED])
def test_a_malformed_file_is_one_sentence(tmp_path, name, text, columns, sentence):
    with pytest.raises(Mistake) as error:
        read_instructions(write(tmp_path / name, text), columns)
    assert sentence in str(error.value) and len(str(error.value).splitlines()) == 1


def test_broken_archives_are_one_sentence(tmp_path):
    whole = gzip.compress(b"the ship and the sea\n" * 999)
    for name, content in {"cut.gz": whole[:-20], "not.gz": b"plain", "bad.gz": whole[:20] + b"\xff" * 9}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Mistake, match=f"{name} is not a whole .gz file"):
            token_file(tmp_path / name, BYTES)
    (tmp_path / "not.zip").write_bytes(b"plain")
    with pytest.raises(Mistake, match=r"a.csv cannot be read from .*not.zip: File is not a zip file"):
        read_instructions(tmp_path / "not.zip" / "a.csv")
    (tmp_path / "latin1.gz").write_bytes(gzip.compress(b"sea\nsea \xf6l\n"))
    with pytest.raises(Mistake, match=r"latin1.gz is not UTF-8 text: invalid start byte at byte 8"):
        token_file(tmp_path / "latin1.gz", BYTES)


# ---- text --------------------------------------------------------------------------------------------------------


def decoded(path, columns=""):
    return BYTES.decode(token_file(path, BYTES, columns).tolist())


END = "<|endoftext|>"


def test_each_file_or_record_is_a_document_with_an_end_of_text(tmp_path):
    assert decoded(write(tmp_path / "a.md", "sea\r\nsky\n", "utf-8-sig")) == f"sea\nsky\n{END}"
    assert decoded(write(tmp_path / "a.gz", "sea\nsky\n")) == f"sea\nsky\n{END}"
    assert decoded(write(tmp_path / "a.jsonl", '{"text": "sea"}\n{"text": "a\u2028b"}')) == f"sea{END}a\u2028b{END}"
    assert decoded(write(tmp_path / "a.json.gz", '[{"text": "sea"}]')) == f"sea{END}"
    assert decoded(write(tmp_path / "a.csv", 'n,body\n1,"sea,\nsky"\n'), "text=body") == f"sea,\nsky{END}"
    assert decoded(write(tmp_path / "a.tsv", "1\tsea\n2\tsky\n"), "text=2") == f"sea{END}sky{END}"


def test_a_folder_is_all_its_texts_in_order_of_their_paths(tmp_path):
    (tmp_path / "b" / "deep").mkdir(parents=True)
    for name in ("c.txt", "b/deep/2.txt.gz", "b/1.txt", "a.txt", "ignored.md", "b.txt"):
        write(tmp_path / name, name)
    assert decoded(tmp_path) == "".join(
        name + END for name in ("a.txt", "b.txt", "b/1.txt", "b/deep/2.txt.gz", "c.txt")
    )
    write(tmp_path / "a.txt", "changed")
    assert decoded(tmp_path).startswith(f"changed{END}b.txt{END}")
    main(Config(text=str(tmp_path), out=str(tmp_path / "tokens"), vocab_size=257))


def test_columns_are_part_of_what_a_tokenised_text_is_known_by(tmp_path):
    path = write(tmp_path / "a.csv", "text,other\nsea,sky\n")
    assert [decoded(path), decoded(path, "text=other"), decoded(path)] == [f"sea{END}", f"sky{END}", f"sea{END}"]
    assert [from_text(path, Reading(BYTES, 1, 0.5, "text=other"))[0].tokens.tolist()] == [[*b"sk"]]


@pytest.mark.parametrize(
    "text, sentence",
    [
        ('{"text": 7}', 'a.jsonl:1: "text" is 7, expected a text'),
        ("[1]", "a.jsonl:1 must be an object with text, not list"),
        ('{"text": "a\\ud800b"}', 'a.jsonl:1: "text" holds \\ud800, half of a surrogate pair, expected Unicode text'),
        ('{"body": "sea"}', "\"text\" is missing, expected a text; there are 'body'; --columns text=NAME can say"),
        ('{"body": 7}', "\"text\" is missing, expected a text; there are 'body'"),
        (
            '{"id": "7", "conversations": []}',
            "a.jsonl:1 is a conversation: train_sft.py and train_lora.py read it with",
        ),
        ("\n", "a.jsonl has no records"),
    ],
)
def test_a_malformed_text_is_one_sentence_and_not_kept(tmp_path, text, sentence):
    for _ in range(2):
        with pytest.raises(Mistake) as error:
            token_file(write(tmp_path / "a.jsonl", text), BYTES)
        assert sentence in str(error.value)


def test_threads_change_nothing_and_special_tokens_are_plain_text():
    rng = np.random.default_rng(0)
    lengths = [*rng.integers(0, 200_000, 20), 0]
    pieces = [(f"ship {i} {END} öl ☂" * (n // 20), bool(i % 3)) for i, n in enumerate(lengths)]
    expected = []
    for text, is_end in pieces:
        expected += [*BYTES.encode_ordinary(text), *[BYTES.eot_token] * is_end]
    for threads in (1, 4):
        parts = list(encode(pieces, BYTES, threads))
        assert np.concatenate([ids for ids, _ in parts]).tolist() == expected and len(parts) > 2
        assert sum(n_bytes for _, n_bytes in parts) == sum(len(text.encode()) for text, _ in pieces)


def test_only_a_few_megabytes_are_in_memory_at_once():
    read = 0

    def endless():
        nonlocal read
        while True:
            read += 1
            yield "ship " * 60_000, False  # four of them make a million characters

    ids = encode(endless(), BYTES, threads=2)
    for taken in range(1, 9):
        next(ids)
        assert read <= 4 * (taken + 5)
    ids.close()


def test_records_are_read_one_by_one(tmp_path):
    for name in ("x.jsonl", "x.csv"):
        first, _ = FILES[name][0].split("\n\n") if name == "x.jsonl" else ("text\nsea", "")
        records = read_records(write(tmp_path / name, f'{first}\n"broken'), "text", "", lambda where, one: one)
        next(records)
        with pytest.raises(Mistake, match=f"{name}:"):
            next(records)


# ---- conversations -----------------------------------------------------------------------------------------------

CHAT = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Name a sea."},
        {"role": "assistant", "content": "Baltic"},
        {"role": "user", "content": f"Another {END}?"},
        {"role": "assistant", "content": "Coral"},
        {"role": "user", "content": "One more."},
        {"role": "assistant", "content": "Kara"},
    ]
}


@pytest.fixture
def chats(tmp_path):
    """One of three turns, and two of one."""
    short = {"messages": [{"role": "user", "content": "Hm?"}, {"role": "assistant", "content": "Ah."}]}
    return write(tmp_path / "chats.jsonl", "\n".join(json.dumps(one) for one in (CHAT, short, short)))


def graded_texts(examples):
    """What stands at the graded targets, row by row, a list of the runs that end with an end-of-text."""
    said = []
    for _, targets, graded, _ in in_order(examples, 2):
        for row in range(len(targets)):
            said.append(BYTES.decode(targets[row][graded[row]].tolist()).split(END)[:-1])
    return said


def test_every_response_of_a_conversation_is_graded_with_its_end_and_nothing_else(chats):
    train, held_out = from_instructions(chats, Reading(BYTES, 400, 0.4))
    said = graded_texts([*train, *held_out])
    assert sorted(said) == [[" Ah."], [" Ah."], [" Baltic", " Coral", " Kara"]]
    rows = packed([*train, *held_out], 400)
    assert len(rows) == 1 and sorted(graded_texts(rows)[0]) == sorted(response for row in said for response in row)


def test_what_is_read_before_each_response_is_what_is_read_in_a_chat(chats):
    record = read_instructions(chats)[0]
    example = instruction_example(record, BYTES)
    users = [user for user, _ in record.earlier] + [record.instruction]
    answers = [answer for _, answer in record.earlier] + [record.output]
    starts = np.flatnonzero(np.diff(example.graded.astype(int), prepend=0) == 1)  # where a response begins
    for turn, start in enumerate(starts):
        so_far = tuple(zip(users, answers, strict=True))[:turn]
        asked = Instruction(users[turn], "", "", earlier=so_far, system="Be brief.")
        tokens, graded = conversation(asked, BYTES)
        assert tokens == example.inputs[: start + 1].tolist()
        assert graded[1:] == example.graded[:start].tolist()
        assert BYTES.decode(tokens).endswith(render_prompt(users[turn]))
    assert len(starts) == 3 and BYTES.decode(tokens_of(example)).startswith("Be brief.\n### Instruction: Name")
    assert (example.targets == BYTES.eot_token).sum() == 3, "what a user writes is plain text"


def test_a_conversation_of_one_turn_is_an_instruction(chats):
    example = instruction_example(read_instructions(chats)[1], BYTES)
    plain = instruction_example(Instruction("Hm?", "", "Ah."), BYTES)
    assert all(np.array_equal(a, b) for a, b in zip(example[:3], plain[:3], strict=True))


def test_a_long_conversation_is_cut_and_counted(chats, capsys):
    examples = [example for part in from_instructions(chats, Reading(BYTES, 100, 0.4)) for example in part]
    assert sorted(len(example.inputs) for example in examples) == [38, 38, 100]
    assert "1 of 3 instructions are longer than --block-size 100: cut there" in capsys.readouterr().out
    assert [" Baltic"] in graded_texts(examples)


def test_a_conversation_is_judged_by_its_first_response(chats, model, monkeypatch):
    example = instruction_example(read_instructions(chats)[0], BYTES)
    assert BYTES.decode(example.response()) == f" Baltic{END}"
    answers = {"Baltic": True, "Coral": False}
    for answer, is_right in answers.items():
        monkeypatch.setattr("evaluate.generate", lambda *_, answer=answer, **__: [BYTES.encode_ordinary(" " + answer)])
        assert answered_right(model, BYTES, [example]) == [is_right]


def test_an_empty_response_anywhere_is_skipped_and_counted(tmp_path, capsys):
    empty = json.loads(json.dumps(CHAT))
    empty["messages"][2]["content"] = " "
    path = write(tmp_path / "chats.json", json.dumps([CHAT, CHAT, empty]))
    assert sum(len(part) for part in from_instructions(path, Reading(BYTES, 400, 0.5))) == 2
    assert "1 of 3 instructions have an empty response: skipped" in capsys.readouterr().out


@pytest.mark.parametrize(
    "messages, found",
    [
        ([("user", "a")], "their roles are user"),
        ([("assistant", "a"), ("user", "a")], "their roles are assistant, user"),
        ([("user", "a"), ("system", "a"), ("assistant", "a")], "their roles are user, system, assistant"),
        (
            [("system", "a")] * 2 + [("user", "a"), ("assistant", "a")],
            "their roles are system, system, user, assistant",
        ),
        ([("user", "a"), ("assistant", "a")] * 9 + [("tool", "a")], "user, assistant, user, assistant, …"),
        ([], "their roles are none"),
        ([("user", "a"), ("assistant", None)], "must be a list of objects with a role and a content, both texts"),
    ],
)
def test_a_conversation_out_of_turn_is_one_sentence(tmp_path, messages, found):
    record = {"messages": [{"role": role, "content": content} for role, content in messages]}
    path = write(tmp_path / "x.jsonl", f"\n{json.dumps(record)}")
    with pytest.raises(Mistake) as error:
        read_instructions(path)
    assert 'x.jsonl:2: "messages" must be' in str(error.value) and found in str(error.value)


@pytest.mark.parametrize("messages", ["hi", 7, [7], [{"role": "user"}], {"role": "user"}])
def test_messages_of_another_shape_are_one_sentence(tmp_path, messages):
    with pytest.raises(Mistake, match='record 1: "messages" must be a list of objects with a role and a content'):
        read_instructions(write(tmp_path / "x.json", json.dumps([{"messages": messages}])))


# ---- real files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["instruction-data.json", "instruction-data-with-preference.json"])
def test_real_instructions_are_read(name):
    records = read_instructions(real(name))
    assert len(records) == 1100 and all(one.instruction and one.output for one in records)


def test_real_sms_are_read_by_column_numbers():
    path = real("sms.tsv")
    records = read_instructions(path, "instruction==Is this message spam or ham?,input=2,output=1")
    assert len(records) == path.read_text(encoding="utf-8").count("\n") and {one.output for one in records} == {
        "ham",
        "spam",
    }


def test_a_real_text_has_the_ids_that_it_has_in_one_piece():
    path = real("tinyshakespeare.txt")
    assert find(path, "text") == (path, "")
    assert token_file(path, BYTES).tolist() == [*path.read_bytes(), BYTES.eot_token]
    assert "".join(text for text, _ in pieces_of([path])) == path.read_text(encoding="utf-8")


def test_a_table_can_say_the_chance_and_names_no_column_twice(tmp_path):
    path = tmp_path / "one.CSV"
    path.write_text("instruction,output,chance\nIs it?,yes,0.5\n", encoding="utf-8")
    assert read_instructions(path)[0].chance == 0.5
    (tmp_path / "ONE.CSV.GZ").write_bytes(gzip.compress(path.read_bytes()))
    assert read_instructions(tmp_path / "ONE.CSV.GZ") == read_instructions(path)
    path.write_text("instruction,output,output\na,b,c\n", encoding="utf-8")
    with pytest.raises(Mistake, match=r"one\.CSV:1 names a column twice: 'instruction', 'output', 'output'"):
        read_instructions(path)


# ---- what users of other tools bring along -----------------------------------------------------------------------


def test_a_folder_leaves_out_what_is_hidden_and_says_how_much_it_read(tmp_path, capsys):
    for name in ("BOOK.TXT", "b/c.txt.GZ", ".ipynb_checkpoints/a.txt", "b/.hidden.txt", "b/.git/d/e.txt", "notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        content = name.encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("GZ") else content)
    assert decoded(tmp_path) == f"BOOK.TXT{END}b/c.txt.GZ{END}"
    left_out = ".ipynb_checkpoints/a.txt, b/.git/d/e.txt, b/.hidden.txt, …"
    assert capsys.readouterr().out == f"{tmp_path}: 2 of 6 files are read; left out: {left_out}\n"
    main(Config(text=str(tmp_path / "b"), out=str(tmp_path / "tokens"), vocab_size=257))
    said = f"{tmp_path / 'b'}: 1 of 3 files are read; left out: .git/d/e.txt, .hidden.txt\n"
    assert capsys.readouterr().out.startswith(said)


@pytest.mark.parametrize("name, said", [("x.txt", ""), ("x", ""), ("x.md", "read as plain text"), ("x.NDJSON", "")])
def test_a_file_of_an_unknown_kind_is_said_to_be_read_as_plain_text(tmp_path, capsys, name, said):
    write(tmp_path / name, '{"text": "sea"}\n')
    assert decoded(tmp_path / name) == ("sea" if name == "x.NDJSON" else '{"text": "sea"}\n') + END
    assert capsys.readouterr().out == (f"{tmp_path / name}: {said}\n" if said else "")


HEADER = "instruction\toutput\n"


@pytest.mark.parametrize(
    "rows, asked, is_excel",
    [
        ('"He said ""hello"""\tYes\n', 'He said "hello"', True),
        ('"A tab\there,\nand a line"\tYes\r\n', "A tab\there,\nand a line", True),
        ('"Red, or green?"\t""\n', "Red, or green?", True),
        ('"""sms"" slang"\t"Yes"', '"sms" slang', True),
        ('He said "hello"\tYes\n', 'He said "hello"', False),
        ('"sms" slang\tYes\n', '"sms" slang', False),
        ('""sms" slang"\tYes\n', '""sms" slang"', False),
        ('5" wide\tYes\n"open\tYes\n', '5" wide', False),
        ('"open\tYes\n', '"open', False),
        ('"Hm?"\tYes\nHe said "hello"\tYes\n', '"Hm?"', False),
    ],
)
def test_a_tsv_of_excel_is_decoded_and_quotes_of_others_stay(tmp_path, capsys, rows, asked, is_excel):
    path = write(tmp_path / "x.tsv", HEADER + rows)
    assert read_instructions(path)[0].instruction == asked
    said = f"{path}: quotes around a field are taken off, as Excel writes them\n"
    assert capsys.readouterr().out == (said if is_excel else "")


def test_spaces_around_the_names_of_columns_are_forgiven_and_others_are_shown(tmp_path):
    for name, content in {
        "x.csv": "instruction, input, output \na,b,c\n",
        "x.tsv": " instruction\t\N{NO-BREAK SPACE}input\toutput\na\tb\tc\n",
        "x.jsonl": '{"instruction ": "a", " input": "b", "output": "c", " output": "another"}',
    }.items():
        path = write(tmp_path / name, content)
        assert read_instructions(path)[0][:3] == ("a", "b", "c")
        assert read_instructions(path, " instruction = input , output=output ")[0].instruction == "b"
    write(tmp_path / "x.csv", "instruction,out put,in\u200bput\na,b,c\n")
    with pytest.raises(Mistake, match=re.escape(r"there are 'instruction', 'out put', 'in\u200bput'")):
        read_instructions(tmp_path / "x.csv")


def test_a_hint_to_name_columns_works_when_it_is_followed(tmp_path):
    path = write(tmp_path / "x.jsonl", '{"question": "Why?", "answer": "So.", "n": 7}')
    with pytest.raises(Mistake, match="--columns instruction=NAME,output=NAME can say"):
        read_instructions(path)
    assert read_instructions(path, "instruction=question,output=answer") == [Instruction("Why?", "", "So.")]
    for nothing_else in ('{"instruction": "a"}', '{"instruction": "a", "n": 7}'):
        with pytest.raises(Mistake, match='"output" is missing, expected a text') as error:
            read_instructions(write(path, nothing_else))
        assert "--columns" not in str(error.value), "there is no other text to name"


def test_a_record_can_show_solved_ones(tmp_path):
    solved = [{"instruction": "Add.", "input": "1 1", "output": "2"}, {"instruction": "Say a.", "output": "a"}]
    record = {"instruction": "Add.", "input": "1 2", "output": "3", "examples": solved}
    path = write(tmp_path / "x.jsonl", json.dumps(record))
    assert read_instructions(path)[0].examples == (("Add.", "1 1", "2"), ("Say a.", "", "a"))
    deep = record
    for _ in range(300):
        deep = {**record, "examples": [deep]}
    for examples, sentence in [
        ([deep], 'x.jsonl:1: "examples" must be of instruction, input and output alone'),
        ("two", 'x.jsonl:1: "examples" is "two", expected a list of records'),
        ([{"instruction": "Add."}], 'x.jsonl:1, example 1: "output" is missing'),
        (["Add."], "x.jsonl:1, example 1 must be an object with instruction and output"),
        ([record], 'x.jsonl:1: "examples" must be of instruction, input and output alone'),
    ]:
        write(path, json.dumps({**record, "examples": examples}))
        with pytest.raises(Mistake, match=re.escape(sentence)):
            read_instructions(path)


def test_null_is_absent_and_so_is_an_empty_cell(tmp_path):
    keys = ("input", "messages", "conversations", "task", "split", "chance", "examples")
    write(tmp_path / "x.json", json.dumps([{"instruction": "a", "output": "b", **dict.fromkeys(keys)}]))
    write(tmp_path / "x.csv", f"instruction,output,{','.join(keys)}\na,b{',' * len(keys)}\n")
    assert (
        read_instructions(tmp_path / "x.json") == read_instructions(tmp_path / "x.csv") == [Instruction("a", "", "b")]
    )


@pytest.mark.parametrize("name", ["messages", "conversations"])
def test_conversations_of_sharegpt_are_messages(tmp_path, name):
    said = [("system", "Be brief."), ("human", "Hm?"), ("gpt", "Ah."), ("human", "So?"), ("gpt", "Yes.")]
    write(tmp_path / "x.json", json.dumps([{name: [{"from": who, "value": text} for who, text in said]}]))
    [record] = read_instructions(tmp_path / "x.json")
    assert record == Instruction("So?", "", "Yes.", earlier=(("Hm?", "Ah."),), system="Be brief.")


@pytest.mark.parametrize("n", [1, 3])
def test_a_record_a_line_is_read_from_a_json_file_too(tmp_path, n):
    lines = [json.dumps({"instruction": x, "output": "b", "text": "a\u2028"}, ensure_ascii=False) for x in "xyz"[:n]]
    path = write(tmp_path / "x.json", "\n\n".join(lines) + "\n")
    assert [one.instruction for one in read_instructions(path)] == [*"xyz"[:n]]
    assert decoded(path) == f"a\u2028{END}" * n


def test_a_cache_that_one_may_not_look_into_stops_nothing_and_a_read_only_one_is_used(tmp_path, monkeypatch):
    """As in a container that runs as another user: its home is root's."""
    temporary = Path(tempfile.gettempdir())
    monkeypatch.setenv("FINETUNING_CACHE", str(tmp_path / "locked" / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    old, new = (write(tmp_path / f"{name}.txt", name) for name in ("old", "new"))
    kept = Path(token_file(old, BYTES).filename)
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp").chmod(0o777)
    for folder in (tmp_path, *tmp_path.parents):  # pytest's own, which the other user must pass through
        if temporary in folder.parents:
            folder.chmod(0o755)
    for mode, text, there in [(0o555, old, kept.parent), (0o555, new, None), (0o000, old, None)]:
        (tmp_path / "locked" / "cache").chmod(mode | 0o555)
        (tmp_path / "locked").chmod(mode)
        with another_user():
            tokens = token_file(text, BYTES)
        (tmp_path / "locked").chmod(0o755)
        there = there or next((tmp_path / "tmp").iterdir())
        assert Path(tokens.filename).parent == there and BYTES.decode(tokens.tolist()) == f"{text.stem}{END}"


@contextmanager
def another_user():
    """Root may do everything, so that it must be another for a while; anyone else stays who they are."""
    if os.getuid() == 0:
        os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        if os.getresuid()[2] == 0:
            os.setresuid(0, 0, 0)


def test_reading_data_loads_no_torch():
    code = "import sys, data.records, data.text, world.__main__; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize(
    "how, there",
    [
        ({"FINETUNING_CACHE": "{tmp}/file/cache"}, f"tmp/finetuning-cache-{os.getuid()}"),
        ({}, f"tmp/finetuning-cache-{os.getuid()}"),
        ({"FINETUNING_CACHE": "~/c", "HOME": "{tmp}"}, "c"),
    ],
)
def test_a_cache_that_cannot_be_written_stops_nothing_and_its_path_may_begin_at_home(tmp_path, how, there):
    """A cache below a file, no home at all, and one that is named from home."""
    write(tmp_path / "text.txt", "sea")
    write(tmp_path / "file", "")
    (tmp_path / "tmp").mkdir()
    environment = {key: value for key, value in os.environ.items() if key not in ("HOME", "FINETUNING_CACHE")}
    environment |= {"TMPDIR": str(tmp_path / "tmp")} | {key: value.format(tmp=tmp_path) for key, value in how.items()}
    code = (
        "import os, pwd, sys\n"
        "if 'HOME' not in os.environ: pwd.getpwuid = lambda uid: {}[uid]\n"
        "from data.text import token_file; from data.tokenizer import load_tokenizer\n"
        "print(token_file(sys.argv[1], load_tokenizer('bytes')).filename)"
    )
    program = [sys.executable, "-c", code, str(tmp_path / "text.txt")]
    done = subprocess.run(program, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    *said, tokens = done.stdout.splitlines()
    assert Path(tokens).parent == tmp_path / there
    assert [line.endswith(f"{tmp_path / there} is the cache") for line in said] == [True] * ("tmp" in there)

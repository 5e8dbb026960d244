"""Pairs of responses: how they are read, which make examples, and that the two of a pair stay together."""

import json

import numpy as np
import pytest
import torch

from cli import Mistake
from data.batches import Batches, collate
from data.examples import Example, Pair, Reading
from data.pairs import SCORE, from_pairs, read_pairs, scored_pairs
from data.tokenizer import load_tokenizer
from model.head import new_head

BYTES = load_tokenizer("bytes")
HOW = Reading(BYTES, 128, 0.2)
ONE = {"instruction": "Name a sea.", "input": "", "chosen": "Baltic, please", "rejected": "Baltic"}
TURNS = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hi!"},
    {"role": "user", "content": "Sea?"},
]


def written(folder, records, name="pairs.json"):
    path = folder / name
    path.write_text(records if isinstance(records, str) else json.dumps(records), encoding="utf-8")
    return str(path)


def said(example):
    return BYTES.decode(example.targets[example.graded].tolist())


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.json", json.dumps([ONE])),
        ("a.jsonl", json.dumps(ONE) + "\n"),
        ("a.csv", 'instruction,chosen,rejected\nName a sea.,"Baltic, please",Baltic\n'),
        ("a.tsv", "instruction\tchosen\trejected\nName a sea.\tBaltic, please\tBaltic\n"),
    ],
)
def test_a_pair_is_read_from_each_format(tmp_path, name, text):
    [pair] = read_pairs(written(tmp_path, text, name))
    assert pair.chosen == pair.rejected._replace(output="Baltic, please") and pair.chosen.instruction == "Name a sea."


def test_columns_say_which_response_is_which(tmp_path):
    path = written(tmp_path, [{"prompt": "Sea?", "better": "Baltic", "worse": "Red"}])
    [pair] = read_pairs(path, "instruction=prompt,chosen=better,rejected=worse")
    assert (pair.chosen.instruction, pair.chosen.output, pair.rejected.output) == ("Sea?", "Baltic", "Red")


@pytest.mark.parametrize(
    "record",
    [
        {"messages": TURNS, "chosen": "Baltic", "rejected": "Red"},
        {"conversations": [{"from": {"user": "human", "assistant": "gpt"}[t["role"]], "value": t["content"]}
                           for t in TURNS], "chosen": "Baltic", "rejected": "Red"},
        {"chosen": [*TURNS, {"role": "assistant", "content": "Baltic"}],
         "rejected": [*TURNS, {"role": "assistant", "content": "Red"}]},
        {"prompt": TURNS, "chosen": [{"role": "assistant", "content": "Baltic"}],
         "rejected": [{"role": "assistant", "content": "Red"}]},
        {"prompt": "Hi", "chosen": [*TURNS, {"role": "assistant", "content": "Baltic"}],
         "rejected": [*TURNS, {"role": "assistant", "content": "Red"}]},
    ],
    ids=["messages", "sharegpt", "two-lists", "prompt", "ultrafeedback"],
)  # fmt: skip
def test_a_conversation_has_two_last_responses_and_they_alone_are_graded(tmp_path, record):
    train, _ = from_pairs(written(tmp_path, [record] * 4), HOW)
    assert [said(example) for example in train[0]] == [" Baltic<|endoftext|>", " Red<|endoftext|>"]
    assert BYTES.decode(train[0].prompt()).count("Hi!<|endoftext|>") == 1


def test_of_a_pair_both_responses_are_graded_to_their_end_and_no_prompt(tmp_path):
    [pair, *_], judge = from_pairs(written(tmp_path, [ONE] * 5), HOW)
    assert len(judge) == 1 and [said(example) for example in pair] == [
        " Baltic, please<|endoftext|>",
        " Baltic<|endoftext|>",
    ]
    assert BYTES.decode(pair.prompt()) == "### Instruction: Name a sea.\n### Response:"


def test_a_score_is_graded_at_the_end_of_text_which_is_read(tmp_path):
    [pair, *_], _, classes = scored_pairs(written(tmp_path, [ONE] * 5), HOW)
    assert classes == SCORE
    for example in pair:
        assert example.graded.tolist() == [False] * (len(example.inputs) - 1) + [True]
        assert example.inputs[-1] == BYTES.eot_token


def test_pairs_without_a_difference_or_a_response_are_counted_and_skipped(tmp_path, capsys):
    records = [
        *[ONE] * 6,
        {**ONE, "rejected": "Baltic, please "},
        {**ONE, "chosen": " "},
        {**ONE, "chosen": "x" * 120 + "a", "rejected": "x" * 120 + "b"},
        {**ONE, "input": "x" * 150},
        {**ONE, "chosen": "x" * 150},
    ]
    train, judge = from_pairs(written(tmp_path, records), HOW)
    told = capsys.readouterr().out
    assert len(train) + len(judge) == 7 and max(len(one.inputs) for pair in train for one in pair) <= 128
    for what in (
        "1 of 11 pairs have two equal responses, which tell nothing: skipped",
        "1 of 11 pairs have an empty response: skipped",
        "1 of 11 pairs differ only beyond --block-size 128: skipped",
        "1 of 11 pairs have a prompt longer than --block-size 128",
        "1 of 11 pairs are longer than --block-size 128: cut there",
    ):
        assert what in told


def test_at_most_1024_pairs_are_judged_by_while_training(tmp_path):
    train, judge = from_pairs(written(tmp_path, [ONE] * 5200), HOW)
    assert (len(train), len(judge)) == (5200 - 1024, 1024)


MISTAKES = [
    ([{**ONE, "rejected": "Baltic, please"}] * 3, "has 0 usable pairs to learn from and 0 to judge by"),
    ([{"instruction": "a", "chosen": "b"}], 'record 1: "rejected" is missing, expected a text'),
    ([{"prompt": "a", "chosen": "b", "rejected": "c"}], "there are 'prompt', 'chosen', 'rejected'; --columns instruc"),
    ([{**ONE, "chosen": 3}], 'record 1: "chosen" is 3, expected a text'),
    ([{**ONE, "rejected": None}], 'record 1: "rejected" is null, expected a text'),
    ([{"chosen": [{"role": "assistant", "content": "b"}], "rejected": "c"}], "must be of user and assistant in turn"),
    ([{"chosen": [*TURNS, TURNS[1]], "rejected": [TURNS[0], TURNS[1]]}], "must differ in the last response alone"),
    ([{"prompt": {}, "chosen": TURNS, "rejected": TURNS}], '"prompt" must be a text or a list of messages, not dict'),
    (["a"], "record 1 must be an object with chosen and rejected, not str"),
]


@pytest.mark.parametrize("records, sentence", MISTAKES, ids=[sentence[:30] for _, sentence in MISTAKES])
def test_what_is_no_pair_is_one_sentence(tmp_path, records, sentence):
    with pytest.raises(Mistake) as mistake:
        from_pairs(written(tmp_path, records), HOW)
    assert sentence in str(mistake.value) and "\n" not in str(mistake.value)


def test_a_bad_pair_can_be_left_out(tmp_path, capsys):
    path = written(tmp_path, [ONE, {"chosen": 1}, ONE])
    assert len(read_pairs(path, skip_bad=True)) == 2
    assert "1 of 3 records are malformed: skipped" in capsys.readouterr().out


# ---- batches ---------------------------------------------------------------------------------------------------------


def some_pairs(folder, n=40):
    """Each pair of one letter, chosen longer than rejected, all of different lengths."""
    records = [
        {"instruction": chr(65 + i % 26) * (1 + i), "chosen": "c" * (1 + i % 7) + str(i), "rejected": str(i)}
        for i in range(n)
    ]
    return from_pairs(written(folder, records), Reading(BYTES, 192, 0.1))[0]


def test_a_batch_is_chosen_rows_then_rejected_rows_in_the_same_order(tmp_path):
    pairs = some_pairs(tmp_path)
    batch = collate(pairs[:5])
    assert len(batch.inputs) == 10
    for b, pair in enumerate(pairs[:5]):
        for row, example in zip((b, 5 + b), pair, strict=True):
            assert batch.inputs[row][: len(example.inputs)].tolist() == example.inputs.tolist()
            assert int(batch.graded[row].sum()) == int(example.graded.sum())


@pytest.mark.parametrize("n_ranks", [1, 3])
def test_pairs_stay_together_however_rows_are_sorted_and_shared(tmp_path, n_ranks):
    pairs = some_pairs(tmp_path)
    prompts = {tuple(pair.prompt()) for pair in pairs}
    for epoch in range(2):
        seen = []
        for step in range(epoch * 9, epoch * 9 + 9):  # 36 pairs, 4 a step
            for rank in range(n_ranks):
                [batch] = Batches(pairs, 4, 1, 7, rank, n_ranks).of_step(step)
                if not batch.graded.any():
                    continue
                chosen, rejected = (
                    [tuple(row[: int(g.int().argmax()) + 1].tolist()) for row, g in zip(rows, graded, strict=True)]
                    for rows, graded in zip(batch.inputs.chunk(2), batch.graded.chunk(2), strict=True)
                )
                assert chosen == rejected
                assert (batch.graded.chunk(2)[0].sum(-1) > batch.graded.chunk(2)[1].sum(-1)).all()
                seen += chosen
        assert sorted(seen) == sorted(prompts) and len(seen) == 36


def test_rows_of_a_step_are_of_like_length_also_in_pairs(tmp_path):
    pairs = some_pairs(tmp_path)
    of_step = Batches(pairs, 4, 1, 0)
    width = [int(batch.inputs.size(1)) for step in range(9) for batch in of_step.of_step(step)]
    apart = [max(len(one.inputs) for pair in pairs[i : i + 4] for one in pair) for i in range(0, 36, 4)]
    assert sum(width) < sum(apart)


def test_another_rejected_response_is_other_data(tmp_path):
    pairs = some_pairs(tmp_path)
    changed = [Pair(pairs[0].chosen, pairs[1].rejected), *pairs[1:]]
    assert Batches(pairs, 4, 1, 0).fingerprint() != Batches(changed, 4, 1, 0).fingerprint()


def test_a_pair_of_padding_lengths_has_the_scores_of_its_rows_alone(tmp_path, model):
    """A score stands at each row's own last token, not where the longest row ends."""
    rng = np.random.default_rng(0)
    rows = [rng.integers(1, 60, n) for n in (5, 9)]
    torch.manual_seed(0)
    new_head(model, *SCORE)
    pair = Pair(*(Example(row, row * 0, np.arange(len(row)) == len(row) - 1, np.arange(len(row))) for row in rows))
    inputs, _, graded, positions = collate([pair])
    together = model(inputs, graded, positions).squeeze(-1)
    alone = [model(torch.from_numpy(row)[None])[0, -1, 0] for row in rows]
    torch.testing.assert_close(together, torch.stack(alone))

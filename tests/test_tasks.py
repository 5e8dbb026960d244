"""compare.py --only task, whole and small: who tells classes apart, and what is said of it."""

import copy
import json

import pytest
import torch

import compare
import train_mlm
from cli import Mistake
from experiment import claims, frozen, tasks
from experiment.verdicts import FAILS, HOLDS

WHO = ["frozen head", "last block", "LoRA + head", "all", "random weights", "encoder", "SFT in words"]


@pytest.fixture(scope="module")
def comparison(folder, builtin):
    out, encoder = folder / "task", folder / "encoder"
    short = {"block_size": 64, "batch_size": 2, "held_out": 0.001, "device": "cpu"}
    text = str(builtin / "domain.jsonl")
    train_mlm.main(train_mlm.Config(text=text, init_from="data/builtin/base", out=str(encoder), steps=1, **short))
    few = {"classes": str(builtin), "encoder": str(encoder)}
    config = compare.Config(only="task", quick=True, out=str(out), device="cpu", steps=12, batch_size=2, **few)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "in_own_process", lambda main, config: main(config))
        return compare.main(config), out


@pytest.fixture
def evidence(comparison):
    return copy.deepcopy(comparison[0]["evidence"][0])


def test_each_who_learns_is_a_row_with_as_many_numbers_as_it_says(comparison):
    rows = {row["method"]: row for row in comparison[0]["rows"]}
    assert list(rows) == WHO
    C, n_layer, total = 128, 4, rows["all"]["trainable"]
    head = 8 * (C + 1)  # of the task with most classes
    assert rows["frozen head"]["trainable"] == head and rows["all"]["trainable"] == rows["all"]["total"]
    assert rows["last block"]["trainable"] == head + 12 * C * C + 13 * C + 2 * C
    assert rows["LoRA + head"]["trainable"] == head + n_layer * 8 * (4 * 2 * C + 2 * 5 * C)
    assert rows["SFT in words"]["trainable"] == total - head == rows["random weights"]["total"] - head
    assert rows["encoder"]["trainable"] == total + C, "and the mask"


def test_all_are_judged_by_the_same_texts_none_of_them_learned(comparison):
    rows = comparison[0]["rows"]
    for task, asked in (("lists", WHO), ("pairs", WHO), ("tags", WHO[:-1])):
        found = [
            [(row[task][split]["n"], row[task][split]["chance"]) for split in ("seen", "unseen")]
            for row in rows[: len(asked)]
        ]
        assert found == found[:1] * len(asked), task
    assert "tags" not in rows[-1] and len({row["tags"]["unseen roles"]["n"] for row in rows[:-1]}) == 1
    for task in ("lists", "tags"):
        records = {split: set(map(str, of)) for split, of in tasks.records_of("data/builtin", task).items()}
        assert not records["train"] & (records["seen"] | records["unseen"]) and len(records["seen"]) >= 60


def test_sft_learns_what_the_classifier_learns_in_words(comparison, builtin):
    for task, label in (("lists", "animals"), ("pairs", "opposites")):
        told = json.loads((comparison[1] / "seed-0" / f"{task}.json").read_text())
        records = tasks.records_of(str(builtin), task)["train"]
        assert [(one["input"], one["output"]) for one in told] == [(r.pieces[0], r.labels[0]) for r in records]
        assert len({one["instruction"] for one in told}) == 1 and label in {one["output"] for one in told}


def test_roles_are_those_givers_and_takers_that_are_found():
    counts = torch.tensor([[5, 1, 2], [0, 7, 0], [1, 1, 4]]).numpy()
    share = tasks.roles_found(counts, ["giver", "other", "taker"])
    assert share == {"value": pytest.approx((5 + 4) / (8 + 6)), "n": 14, "chance": 0.5}


def verdict(evidence, number):
    return tasks.CLAIMS[str(number)][1](evidence)[0]


def test_the_ledger_goes_on_with_five_claims(comparison):
    assert [entry["number"] for entry in comparison[0]["claims"]] == [*map(str, range(22, 27))]
    assert not set(tasks.CLAIMS) & {*claims.CLAIMS, *frozen.CLAIMS}


def shares(evidence, task, split, **values):
    for who, value in values.items():
        evidence["rows"][{"head": "frozen head", "lora": "LoRA + head", "random": "random weights",
                          "words": "SFT in words"}.get(who, who)][task][split].update(value=value, n=400)  # fmt: skip


SPOILED = {  # claim: what to write into the evidence so that it no longer holds
    22: lambda e: shares(e, "lists", "unseen", head=0.5),
    23: lambda e: shares(e, "pairs", "unseen", lora=0.4),
    24: lambda e: shares(e, "lists", "unseen", random=0.8),
    25: lambda e: shares(e, "tags", "unseen roles", encoder=0.5),
    26: lambda e: shares(e, "lists", "unseen", words=0.5),
}


@pytest.mark.parametrize("number", SPOILED)
def test_a_claim_that_the_numbers_deny_does_not_hold(evidence, number):
    shares(evidence, "lists", "unseen", head=0.9, lora=0.9, all=0.95, random=0.1, words=0.9)
    shares(evidence, "pairs", "unseen", head=0.7, lora=0.9, all=0.8, words=0.6)
    for split in ("seen roles", "unseen roles"):
        shares(evidence, "tags", split, encoder=0.95, all=0.75)
    assert verdict(evidence, number) == HOLDS
    SPOILED[number](evidence)
    assert verdict(evidence, number) == FAILS


def test_sft_that_tells_pairs_as_well_denies_that_it_is_worse_there(evidence):
    shares(evidence, "lists", "unseen", lora=0.9, words=0.9)
    shares(evidence, "pairs", "unseen", lora=0.9, words=0.99)
    assert verdict(evidence, 26) == FAILS


def test_the_page_has_a_line_for_each_and_for_chance(comparison):
    table = [line for line in (comparison[1] / "results.md").read_text().splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(WHO) + 1 and len({line.count("|") for line in table}) == 1
    assert table[-2].count("–") == 4, "SFT was not asked for tags"
    pytest.importorskip("matplotlib", reason="draws with matplotlib")
    assert (comparison[1] / "classes.png").stat().st_size > 10_000


def test_classes_are_not_swept(tmp_path):
    with pytest.raises(Mistake, match="--sweep is for --only core and peft; got --only task"):
        compare.main(compare.Config(only="task", sweep=True, out=str(tmp_path / "c")))

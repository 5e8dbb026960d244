"""compare.py --only peft, whole and small: what learns beside a frozen base, and what is said of it."""

import copy
import json

import pytest

import compare
from cli import Mistake
from experiment import claims, frozen
from experiment.verdicts import FAILS, HOLDS

METHODS = ["base", "SFT", "LoRA-SFT", "adapter-SFT", "prefix-SFT", "prompt-SFT"]


@pytest.fixture(scope="module")
def comparison(folder, builtin):
    out = folder / "peft"
    names = {"text": "base.jsonl", "domain": "domain.jsonl"}
    files = {name: str(builtin / names.get(name, f"{name}.json")) for name in (*names, "instructions", "questions")}
    config = compare.Config(only="peft", quick=True, out=str(out), device="cpu", steps=24, batch_size=2, **files)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "in_own_process", lambda main, config: main(config))
        return compare.main(config), out


@pytest.fixture
def evidence(comparison):
    return copy.deepcopy(comparison[0]["evidence"][0])


def test_each_method_is_a_row_and_learns_as_many_numbers_as_it_says(comparison):
    rows = {row["method"]: row for row in comparison[0]["rows"]}
    assert list(rows) == METHODS
    C, n_layer, r, width, length = 128, 4, 6, 12, 16
    assert rows["SFT"]["trainable"] == rows["SFT"]["total"]
    assert rows["LoRA-SFT"]["trainable"] == n_layer * r * (4 * 2 * C + 2 * 5 * C)
    assert rows["adapter-SFT"]["trainable"] == n_layer * 2 * (2 * C * width + width + C)
    assert rows["prefix-SFT"]["trainable"] == n_layer * 2 * C * length
    assert rows["prompt-SFT"]["trainable"] == C * length


def test_all_of_them_read_the_same_rows(comparison):
    settings = [json.loads(file.read_text()) for file in comparison[1].glob("seed-0/*-sft/config.json")]
    assert len(settings) == 4 and {one["block_size"] for one in settings} == {256 - 16}
    assert len({(one["seed"], one["steps"], one["batch_size"], one["pack"]) for one in settings}) == 1


def test_a_fourth_of_the_width_or_length_is_a_variant(evidence):
    sizes = {name: less["size"] for name, less in evidence["smaller"].items()}
    assert sizes == {"adapter-SFT": 3, "prefix-SFT": 4, "prompt-SFT": 4}
    assert 4 * evidence["smaller"]["prompt-SFT"]["trainable"] == evidence["rows"]["prompt-SFT"]["trainable"]


def verdict(evidence, number):
    return frozen.CLAIMS[str(number)][1](evidence)[0]


def test_the_ledger_goes_on_with_five_claims(comparison, evidence):
    assert [entry["number"] for entry in comparison[0]["claims"]] == [*map(str, range(17, 22))]
    assert not set(frozen.CLAIMS) & set(claims.CLAIMS)
    assert verdict(evidence, 17) == verdict(evidence, 18) == HOLDS  # however short the training


def shares(evidence, split, **values):
    for name, value in values.items():
        evidence["rows"][name.replace("_", "-")]["exact_match"][split].update(value=value, n=400)


SPOILED = {  # claim: what to write into the evidence so that it no longer holds
    17: lambda e: e["untouched"].update({"prefix-SFT": False}),
    18: lambda e: e["rows"]["adapter-SFT"].update(trainable=e["rows"]["adapter-SFT"]["total"] // 10),
    19: lambda e: shares(e, "instances", LoRA_SFT=0.9, adapter_SFT=0.9, prefix_SFT=0.5, prompt_SFT=0.9),
    20: lambda e: shares(e, "facts", SFT=0.9, prompt_SFT=0.5),
    21: lambda e: e["smaller"]["prompt-SFT"]["instances"].update(value=1.0),
}


@pytest.mark.parametrize("number", SPOILED)
def test_a_claim_that_the_numbers_deny_does_not_hold(evidence, number):
    for split in ("instances", "facts"):
        shares(evidence, split, LoRA_SFT=0.9, adapter_SFT=0.9, prefix_SFT=0.9, prompt_SFT=0.9, SFT=0.9)
    for less in evidence["smaller"].values():
        less["instances"]["value"] = 0.1
    assert verdict(evidence, number) == HOLDS
    SPOILED[number](evidence)
    assert verdict(evidence, number) == FAILS


def test_a_family_that_is_none_is_refused_by_name(tmp_path):
    with pytest.raises(Mistake, match="--only must be core, peft, task, preference or all; got 'some'"):
        compare.main(compare.Config(only="some", out=str(tmp_path / "c")))
    with pytest.raises(Mistake, match="--block-size 240 and a prefix of --length 17 are beyond the 256 tokens"):
        compare.main(compare.Config(only="peft", length=17, out=str(tmp_path / "c")))
    assert not (tmp_path / "c").exists()


def test_there_is_a_plot(comparison):
    pytest.importorskip("matplotlib", reason="draws with matplotlib")
    assert (comparison[1] / "learned.png").stat().st_size > 10_000

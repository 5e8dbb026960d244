"""compare.py --only preference, whole and small, and what is said of numbers as they may come out."""

import copy
import json

import pytest

import compare
from cli import Mistake
from experiment import claims, frozen, preference
from experiment.preference import CLAIMS, DPO, EXACT, FAST, HACKED, METHODS, REWARD, RLHF, SFT, STRONG, WITH_NLL
from experiment.verdicts import FAILS, HOLDS


@pytest.fixture(scope="module")
def comparison(folder, builtin):
    out, sizes = folder / "preference", {"steps": 24, "pair_steps": 24, "answer_steps": 24, "batch_size": 2}
    names = {"text": "base.jsonl", "domain": "domain.jsonl", "pairs": "preferences.json"}
    plain = ("instructions", "questions", "styled")
    files = {name: str(builtin / names.get(name, f"{name}.json")) for name in (*names, *plain)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "in_own_process", lambda main, config: main(config))
        patch.setattr(preference, "LONGEST", 8)
        config = compare.Config(only="preference", quick=True, out=str(out), device="cpu", **sizes, **files)
        return compare.main(config), out


def test_each_method_is_a_row_that_says_what_it_can(comparison):
    rows = {row["method"]: row for row in comparison[0]["rows"]}
    assert list(rows) == ["base", *METHODS]
    assert {name for name, row in rows.items() if row["style"] is None} == {REWARD}
    assert {name for name, row in rows.items() if row["pairs"] is None} == {"base", SFT}
    assert rows[SFT]["kl"] == 0 and all(0 <= row["right"] <= 1 for row in rows.values() if row["style"] is not None)
    assert (comparison[1] / "results.md").read_text().startswith("|")


def test_all_begin_with_one_sft_model_and_learn_from_the_same_prompts(comparison, builtin):
    settings = {file.parent.name: json.loads(file.read_text()) for file in comparison[1].glob("seed-0/*/config.json")}
    after = {name: one for name, one in settings.items() if name != "sft"}
    assert len(after) == len(METHODS) - 1
    assert {one["init_from"] for one in after.values()} == {str(comparison[1] / "seed-0" / "sft")}
    assert settings["sft"]["learning_rate"] == compare.Config().styled_learning_rate
    assert {one.get("pairs", one.get("instructions")) for one in after.values()} == {str(builtin / "preferences.json")}
    assert len({(one["seed"], one["steps"], one["batch_size"]) for one in after.values()}) == 1
    with_kl, without = settings["rlhf-fast"], settings["rlhf-fast-without-kl"]
    assert {name for name in with_kl if with_kl[name] != without[name]} == {"beta", "out"}, "a control differs in one"


def test_the_ledger_has_claims_of_its_own(comparison):
    assert [entry["number"] for entry in comparison[0]["claims"]] == list(CLAIMS)
    assert not set(CLAIMS) & (set(claims.CLAIMS) | set(frozen.CLAIMS))


def test_there_is_a_plot(comparison):
    pytest.importorskip("matplotlib", reason="draws with matplotlib")
    assert (comparison[1] / "preference.png").stat().st_size > 10_000


def row(style, right, **others):
    more = {
        "sampled_style": style,
        "sampled_right": right,
        "kl": 0.5,
        "pairs": 1.0,
        "chosen_nll": 0.05,
        "seconds": 10.0,
    }
    return {"style": style, "right": right, **more, **others}


EVIDENCE = {
    "n": 368,
    "rows": {
        SFT: row(0.5, 0.8, pairs=None, chosen_nll=0.1),
        REWARD: {"pairs": 0.99, "seconds": 10.0},
        DPO: row(0.99, 0.79),
        WITH_NLL: row(0.99, 0.78),
        STRONG: row(0.9, 0.1, chosen_nll=2.0),
        RLHF: row(0.99, 0.79, seconds=30.0),
        EXACT: row(0.99, 0.95),
        FAST: row(1.0, 0.75),
        HACKED: row(1.0, 0.3, kl=9.0),
    },
    "metrics": {HACKED: [{"reward": "1"}, {"reward": "3"}], FAST: [{"reward": "1"}, {"reward": "2"}]},
}
SPOILED = {  # claim: what to change in that evidence so that it no longer holds
    27: (REWARD, "pairs", 0.6),
    28: (DPO, "style", 0.9),
    29: (RLHF, "style", 0.9),
    30: (RLHF, "right", 0.7),
    31: (STRONG, "chosen_nll", 0.05),
    32: (WITH_NLL, "right", 0.01),
    33: (HACKED, "right", 0.95),
    34: (EXACT, "right", 0.5),
}


@pytest.mark.parametrize("number", SPOILED)
def test_a_claim_holds_by_its_numbers_alone(number):
    claim, evidence = CLAIMS[str(number)][1], copy.deepcopy(EVIDENCE)
    assert claim(evidence)[0] == HOLDS
    method, key, value = SPOILED[number]
    evidence["rows"][method] |= {key: value, f"sampled_{key}": value}
    verdict, numbers = claim(evidence)
    assert verdict == FAILS and "%" in numbers


def test_without_kl_nothing_is_hacked_unless_the_reward_rises():
    evidence = copy.deepcopy(EVIDENCE)
    evidence["metrics"][HACKED] = [{"reward": "3"}, {"reward": "1"}]
    assert CLAIMS["33"][1](evidence)[0] == FAILS


def test_pairs_without_one_closing_are_refused(tmp_path):
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps([{"instruction": "a", "chosen": "b.", "rejected": "b"}] * 2))
    assert preference.closing_of(str(path)) == "."
    path.write_text(json.dumps([{"instruction": "a", "chosen": c, "rejected": "b"} for c in ("b.", "c")]))
    with pytest.raises(Mistake, match="must be the rejected ones and a closing, the same in all of them"):
        preference.closing_of(str(path))

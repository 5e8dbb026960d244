"""The main job, whole and small: every method from the base that ships, one table, the same yardsticks, the ledger."""

import copy
import json
import math
import shutil
import sys

import pytest
import torch

import compare
from evaluate import SPLITS
from experiment import claims
from experiment.evidence import pretraining
from model.switch import base_state_dict, plain_names
from run import plot
from store.checkpoint import fingerprint, load_run, open_run

METHODS = [
    "base", "continued pretraining", "LoRA on the domain", "SFT", "LoRA-SFT", "SFT, prompt graded",
    "SFT, random weights",
]  # fmt: skip


@pytest.fixture(scope="module")
def comparison(folder):
    out = folder / "compare"
    sizes = {"domain_steps": 72, "steps": 216, "batch_size": 8}  # of which --quick takes 12 and 18
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "in_own_process", lambda main, config: main(config))  # test_faults.py has the real one
        return compare.main(compare.Config(quick=True, out=str(out), device="cpu", **sizes)), out


@pytest.fixture
def evidence(comparison):
    return copy.deepcopy(comparison[0]["evidence"][0])


def test_every_method_is_a_row_with_every_yardstick(comparison):
    results, out = comparison
    assert json.loads((out / "results.json").read_text()) == results
    assert [row["method"] for row in results["rows"]] == METHODS
    for row in results["rows"]:
        assert row["base_ppl"] > 1 and row["domain_ppl"] > 1 and row["response_nll"] > 0
        assert row["trainable"] <= row["total"] and row["checkpoint_bytes"] > 4 * row["trainable"] * 0.9
        for split in SPLITS:
            share = row["exact_match"][split]
            assert 0 <= share["value"] <= 1 and 0 < share["chance"] < 1 and share["n"] > 0
            by_task = share["by_task"].values()
            assert sum(task["n"] for task in by_task) == share["n"]
            assert math.isclose(sum(task["value"] * task["n"] for task in by_task), share["value"] * share["n"])
    table = compare.table(results["rows"]).splitlines()
    assert len(table) == 2 + len(METHODS) + 1 and len({len(line) for line in table}) == 1
    assert (out / "results.md").read_text().startswith(table[0])


def test_each_method_learns_what_it_is_for(comparison):
    rows = {row["method"]: row for row in comparison[0]["rows"]}
    base = rows["base"]
    for method in ("continued pretraining", "LoRA on the domain"):
        assert rows[method]["domain_ppl"] < 0.8 * base["domain_ppl"]
    for method in ("SFT", "LoRA-SFT", "SFT, prompt graded"):
        assert rows[method]["response_nll"] < 0.5 * base["response_nll"]
    assert rows["LoRA-SFT"]["trainable"] == rows["LoRA on the domain"]["trainable"] < 0.07 * base["total"]


def test_lora_left_the_base_as_it_was(comparison):
    seed = comparison[1] / "seed-0"
    before = fingerprint(plain_names(open_run("data/builtin/base").model()))
    for name in ("lora-on-the-domain", "lora-sft"):
        assert torch.load(seed / name / "learned.pt", weights_only=True)["base_sha256"] == before
        assert fingerprint(base_state_dict(load_run(str(seed / name), "", torch.device("cpu"))[0])) == before


def test_every_method_continues_the_same_five_prompts(comparison):
    results, out = comparison
    prompts = [[sample["prompt"] for sample in said] for said in results["samples"].values()]
    assert list(results["samples"]) == METHODS and len(prompts[0]) == 5 and all(one == prompts[0] for one in prompts)
    assert all(prompt in (out / "samples.md").read_text() for prompt in prompts[0])


def test_curves_start_at_the_base_and_end_at_the_row_of_the_table(evidence):
    for method, points in evidence["forgetting"].items():
        steps = [steps for steps, _, _ in points]
        assert steps == sorted(set(steps)) and len(points) == 5
        assert points[0][1:] == [evidence["rows"]["base"][key] for key in ("domain_ppl", "base_ppl")]
        assert points[-1][1:] == [evidence["rows"][method][key] for key in ("domain_ppl", "base_ppl")]
    assert [point["tasks"] for point in evidence["number_of_tasks"]] == [2, 5, 10, 23]


def test_a_second_comparison_does_not_overwrite_the_first(comparison):
    with pytest.raises(ValueError, match="holds a comparison already"):
        compare.main(compare.Config(out=str(comparison[1])))


def test_questions_that_are_trained_on_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds \d+ questions that data/builtin/instructions.json trains on"):
        compare.main(compare.Config(questions="data/builtin/instructions.json", out=str(tmp_path / "new")))


@pytest.mark.parametrize(
    "record, sentence",
    [
        ({"split": "train"}, "has a split 'train'"),
        ({"chance": "half"}, 'record 1: "chance" is "half", expected a number'),
    ],
)
def test_a_question_that_cannot_be_judged_is_named(tmp_path, record, sentence):
    questions = tmp_path / "questions.json"
    questions.write_text(json.dumps([{"instruction": "Say a.", "output": "a", **record}]))
    with pytest.raises(ValueError, match=sentence):
        compare.main(compare.Config(questions=str(questions), out=str(tmp_path / "new")))
    assert not (tmp_path / "new").exists()


def test_a_run_that_goes_back_to_a_namesake_counts_once(tmp_path):
    run = tmp_path / "base"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"init_from": "data/builtin/base"}))
    (run / "metrics.csv").write_text("step,graded_tokens,seconds\n1,100,2.5\n")
    assert pretraining(str(run)) == (100, 2.5)
    tokens, seconds = pretraining("data/builtin/base")
    assert tokens > 77e6 and seconds > 4000  # both of its runs


def test_several_seeds_give_means_and_intervals():
    rows = [
        {"method": "SFT", "base_ppl": value, "exact_match": {"facts": {"value": value}}} for value in (1.0, 2.0, 3.0)
    ]
    row = compare.averaged(rows)
    assert row["base_ppl"] == row["exact_match"]["facts"]["value"] == 2.0
    assert math.isclose(row["base_ppl_interval"], 4.30 / math.sqrt(3))  # Student's t, 2 degrees of freedom
    assert compare.formatted(row, "base_ppl", "{:.2f}") == "2.00 ± 2.48"


# ---- the ledger: every verdict follows from the numbers, and can be otherwise ----------------------------------------


def verdict(evidence, number):
    return list(claims.CLAIMS.values())[number - 1](evidence)[0]


def test_the_ledger_has_the_thirteen_claims_with_numbers(comparison):
    entries = comparison[0]["claims"]
    assert [entry["number"] for entry in entries] == list(range(1, 14))
    allowed = {claims.HOLDS, claims.FAILS, claims.UNSEEN}
    assert all(entry["verdict"] in allowed and any(map(str.isdigit, entry["numbers"][0])) for entry in entries)


def test_what_is_exact_holds_however_short_the_training(evidence):
    assert [number for number in (1, 2, 6, 7) if verdict(evidence, number) != claims.HOLDS] == []


SPOILED = {  # claim: what to write into the evidence so that it no longer holds
    1: lambda e: e["rows"]["base"]["exact_match"]["instances"].update(value=0.2),
    2: lambda e: e["continued"].update(changed=e["continued"]["tensors"] - 1),
    3: lambda e: e["rows"]["continued pretraining"].update(base_ppl=1.0),
    4: lambda e: e["lora"].update(base_untouched=False),
    5: lambda e: e["forgetting"].update(
        {"continued pretraining": [[0, 90, 2], [9, 9, 2.1]], "LoRA on the domain": [[0, 90, 2], [9, 20, 5]]}
    ),
    6: lambda e: e["lora"].update(same_answers_merged=0),
    7: lambda e: e["mask"].update(prompt_graded_is_pretraining=False),
    8: lambda e: [e["rows"][m]["exact_match"]["phrasings"].update(value=0.0, n=400) for m in ("SFT", "LoRA-SFT")],
    9: lambda e: e["rows"]["SFT, random weights"]["exact_match"]["facts"].update(value=1.0, n=400),
    10: lambda e: [e["number_of_tasks"][i].update(value=i + 1.0, n=400) for i in (0, -1)],
    11: lambda e: [share.update(value=1.0) for share in e["rows"]["SFT, prompt graded"]["exact_match"].values()],
    12: lambda e: e["cost"].update(sft_tokens=e["cost"]["base_tokens"]),
    13: lambda e: e["few_shot"].update(n=400, base={"0": 0.9, "1": 0.5, "2": 0.2, "4": 0.1}),
}


@pytest.mark.parametrize("number", SPOILED)
def test_a_claim_that_the_numbers_deny_does_not_hold(evidence, number):
    SPOILED[number](evidence)
    assert verdict(evidence, number) == claims.FAILS


def test_seeds_that_disagree_are_said_to(evidence):
    other = copy.deepcopy(evidence)
    SPOILED[6](other)
    [entry] = [entry for entry in claims.ledger([evidence, other]) if entry["number"] == 6]
    assert entry["verdict"] == "not visible at this scale: the seeds disagree (holds, does not hold)"


def test_a_difference_within_the_noise_is_not_visible():
    assert claims.beats(0.55, 0.50, 40, 40) == claims.UNSEEN
    assert claims.beats(0.55, 0.50, 4000, 4000) == claims.HOLDS
    assert claims.beats(0.50, 0.55, 4000, 4000) == claims.FAILS


# ---- plots ---------------------------------------------------------------------------------------------------------


def test_there_are_plots_where_matplotlib_is_and_a_sentence_where_it_is_not(comparison, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="draws with matplotlib")
    results, out = comparison
    assert {path.name for path in out.glob("*.png")} == {"losses.png", "forgetting.png", "tasks.png"}
    run = tmp_path / "sft"
    shutil.copytree(out / "seed-0" / "sft", run)
    assert plot.training([run]) == f"Plot: {run / 'loss.png'}." and (run / "loss.png").stat().st_size > 1000
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    (run / "loss.png").unlink()
    for said in (plot.training([run]), plot.comparison(results, run)):
        assert "matplotlib is not installed" in said
    assert not list(run.glob("*.png"))

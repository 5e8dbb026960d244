"""The main job, whole and small: every method from the base that ships, one table, the same yardsticks, the ledger."""

import copy
import json
import math
import shutil
import sys
from pathlib import Path
from random import Random

import pytest
import torch

import compare
from cli import Mistake
from data.records import Instruction, read_instructions
from evaluate import SPLITS, Yardsticks
from experiment import claims, in_context, report
from experiment.evidence import pretraining
from experiment.plot import comparison as comparison_plots
from experiment.verdicts import FAILS, HOLDS, UNSEEN, beats, draws_beat
from model.switch import base_state_dict, plain_names
from run import plot
from store.checkpoint import fingerprint, load_run, open_run

METHODS = [
    "base", "continued pretraining", "LoRA on the domain", "SFT", "LoRA-SFT", "LoRA-SFT, no examples",
    "SFT, prompt graded", "SFT, random weights",
]  # fmt: skip


@pytest.fixture(scope="module")
def comparison(folder, builtin):
    """With few of the base's texts, of the instructions and of the questions, but all of three tasks never trained."""
    out, read = folder / "compare", lambda name: json.loads(Path(f"data/builtin/{name}.json").read_text("utf-8"))
    never = sorted((one for one in read("questions") if one["split"] == "tasks"), key=lambda one: one["task"])
    questions = never[:96] + [one for one in read("questions") if one["split"] != "tasks"][::3]
    files = {"text": str(builtin / "base.jsonl")}
    for name, few in (("instructions", read("instructions")[::4]), ("questions", questions)):
        files[name] = str(folder / f"few-{name}.json")
        Path(files[name]).write_text(json.dumps(few))
    sizes = {"domain_steps": 36, "steps": 216, "batch_size": 4}  # of which --quick takes 6 and 18
    rates = {"sft_learning_rate": 3e-4, "lora_sft_learning_rate": 4e-3}  # so few steps want higher ones
    config = compare.Config(quick=True, out=str(out), device="cpu", **files, **sizes, **rates)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "in_own_process", lambda main, config: main(config))  # test_faults.py has the real one
        patch.setattr(in_context, "N_ASKED", 8)
        return compare.main(config), out


@pytest.fixture
def evidence(comparison):
    return copy.deepcopy(comparison[0]["evidence"][0])


def test_every_method_is_a_row_with_every_yardstick(comparison):
    results, out = comparison
    assert json.loads((out / "results.json").read_text()) == results
    assert [row["method"] for row in results["rows"]] == METHODS
    for row in results["rows"]:
        assert row["base_nll"] > 0 and row["domain_nll"] > 0 and row["response_nll"] > 0
        assert row["trainable"] <= row["total"] and row["checkpoint_bytes"] > 4 * row["trainable"] * 0.9
        for split in SPLITS:
            share = row["exact_match"][split]
            assert 0 <= share["value"] <= 1 and 0 < share["chance"] < 1 and share["n"] > 0
            by_task = share["by_task"].values()
            assert sum(task["n"] for task in by_task) == share["n"]
            assert math.isclose(sum(task["value"] * task["n"] for task in by_task), share["value"] * share["n"])
    table = report.table(results["rows"]).splitlines()
    assert len(table) == 2 + len(METHODS) + 1 and len({len(line) for line in table}) == 1
    assert (out / "results.md").read_text().startswith(table[0])
    assert (out / "report.html").read_text() == report.html(report.read(out))


def test_each_method_learns_what_it_is_for(comparison):
    rows = {row["method"]: row for row in comparison[0]["rows"]}
    base = rows["base"]
    for method in ("continued pretraining", "LoRA on the domain"):
        assert rows[method]["domain_nll"] < base["domain_nll"] - 0.2
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
    nll = ("domain_nll", "base_nll")
    for method, curves in evidence["forgetting"].items():
        assert len(curves) == 2 and curves[0]["rate"] > 2 * curves[1]["rate"]
        for curve in curves:
            assert [steps for steps, _, _ in curve["points"]] == [0, 1, 3, 6]
            assert curve["points"][0][1:] == [evidence["rows"]["base"][key] for key in nll]
        assert curves[0]["points"][-1][1:] == [evidence["rows"][method][key] for key in nll]


def test_models_of_few_and_of_many_tasks_have_read_as_many_records(comparison, evidence):
    points = evidence["number_of_tasks"]
    assert [point["tasks"] for point in points] == [2, 5, 10, 23]
    for point in points:
        assert 110 < point["records"] <= 122 and len(point["draws"]) == in_context.DRAWS
        for number, draw in enumerate(point["draws"]):
            file = comparison[1] / "seed-0" / f"lora-sft-{point['tasks']}-tasks-{number}.json"
            records = json.loads(file.read_text())
            assert len(records) == point["records"] and {one["task"] for one in records} == set(draw["trained"])
    assert all(len({tuple(draw["trained"]) for draw in point["draws"]}) > 1 for point in points[:3])


def test_what_is_shown_before_a_question_is_of_its_task_and_never_the_question(evidence):
    tokenizer = open_run("data/builtin/base").tokenizer
    questions, records = (read_instructions(f"data/builtin/{name}.json") for name in ("questions", "instructions"))
    y = Yardsticks([], [], questions, tokenizer, 8, torch.device("cpu"))
    asked = in_context.asked_of(records, 0, 256, y)
    trained_on = {one[:2] for one in records}
    for kind, of_kind in asked.items():
        assert 90 < len(of_kind) <= in_context.N_ASKED
        for one in of_kind:
            assert len(one.shown) == 4 and {shown.task for shown in one.shown} == {one.question.task}
            assert one.question[:2] not in {shown[:2] for shown in one.shown}
            assert all((shown[:2] in trained_on) == (kind == "trained") for shown in one.shown)
    first = asked["trained"][0]
    assert first.prompt(2).count("### Response:") == 3 and first.shown[0].output in first.prompt(1)
    assert in_context.silent_prompt(first, 2).count("### Instruction") == 0


def test_random_labels_are_answers_to_other_questions_of_the_task():
    records = [Instruction(f"Say {word}.", "", word, "say") for word in "abcdefgh"]
    asked = in_context.Asked(records[0], records[1:5])
    random = asked.with_random_labels(Random(0), records)
    assert [one[:2] for one in random.shown] == [one[:2] for one in asked.shown]
    assert [one.output for one in random.shown] != [one.output for one in asked.shown]
    assert {one.output for one in random.shown} <= set("abcdefgh")


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
    assert tokens > 73e6 and seconds > 4000  # both of its runs


def test_several_seeds_give_means_and_intervals():
    rows = [
        {"method": "SFT", "base_nll": value, "exact_match": {"facts": {"value": value}}} for value in (1.0, 2.0, 3.0)
    ]
    row = report.averaged(rows)
    assert row["base_nll"] == row["exact_match"]["facts"]["value"] == 2.0
    assert math.isclose(row["base_nll_interval"], 4.30 / math.sqrt(3))  # Student's t, 2 degrees of freedom
    assert report.formatted(row, "base_nll", "{:.2f}") == "2.00 ± 2.48"


# ---- the ledger: every verdict follows from the numbers, and can be otherwise ----------------------------------------


def verdict(evidence, number):
    return claims.CLAIMS[str(number)][1](evidence)[0]


def test_the_ledger_has_the_seventeen_claims_with_numbers(comparison):
    entries = comparison[0]["claims"]
    assert [entry["number"] for entry in entries] == [*"1234", "5a", "5b", *map(str, range(6, 17))]
    allowed = {HOLDS, FAILS, UNSEEN}
    assert all(entry["verdict"] in allowed and any(map(str.isdigit, entry["numbers"][0])) for entry in entries)


def test_what_is_exact_holds_however_short_the_training(evidence):
    assert [number for number in (1, 2, 6, 7) if verdict(evidence, number) != HOLDS] == []


SPOILED = {  # claim: what to write into the evidence so that it no longer holds
    1: lambda e: e["rows"]["base"]["exact_match"]["instances"].update(value=0.2),
    2: lambda e: e["continued"].update(changed=e["continued"]["tensors"] - 1),
    3: lambda e: e["rows"]["continued pretraining"].update(base_nll=0.0),
    4: lambda e: e["lora"].update(base_untouched=False),
    "5a": lambda e: [curve["points"][-1].__setitem__(2, 9.0) for curve in e["forgetting"]["LoRA on the domain"]],
    "5b": lambda e: e["forgetting"].update(
        {
            "continued pretraining": [{"rate": 1, "points": [[0, 4.5, 0.7], [9, 2.2, 0.8]]}] * 2,
            "LoRA on the domain": [{"rate": 1, "points": [[0, 4.5, 0.7], [9, 3.0, 1.6]]}] * 2,
        }
    ),
    6: lambda e: e["lora"].update(same_answers_merged=0),
    7: lambda e: e["mask"].update(prompt_graded_is_pretraining=False),
    8: lambda e: [e["rows"][m]["exact_match"]["phrasings"].update(value=0.0, n=400) for m in ("SFT", "LoRA-SFT")],
    9: lambda e: e["rows"]["SFT, random weights"]["exact_match"]["facts"].update(value=1.0, n=400),
    10: lambda e: [draw.update(zero_shot=0.9) for draw in e["number_of_tasks"][0]["draws"]],
    11: lambda e: [share.update(value=1.0) for share in e["rows"]["SFT, prompt graded"]["exact_match"].values()],
    12: lambda e: e["cost"].update(sft_tokens=e["cost"]["base_tokens"]),
    13: lambda e: e["few_shot"]["trained"].update(n=400, base={"0": 0.9, "1": 0.5, "2": 0.2, "4": 0.1}),
    14: lambda e: e["labels"]["named"].update(n=400, none=0.1, right=0.9, random=0.2),
    15: lambda e: e["few_shot"]["trained"].update(n=400, base={"0": 0, "1": 0, "2": 0, "4": 0.99}),
    16: lambda e: [draw.update(few_shot=0.9) for draw in e["number_of_tasks"][0]["draws"]],
}


@pytest.mark.parametrize("number", SPOILED)
def test_a_claim_that_the_numbers_deny_does_not_hold(evidence, number):
    SPOILED[number](evidence)
    assert verdict(evidence, number) == FAILS


def test_one_right_answer_of_a_few_questions_may_be_luck(evidence):
    exact = evidence["rows"]["base"]["exact_match"]["instances"]
    for n_right, expected in ((1, HOLDS), (2, FAILS)):
        exact.update(n=69, value=n_right / 69)
        assert verdict(evidence, 1) == expected


def test_seeds_that_disagree_are_said_to(evidence):
    other = copy.deepcopy(evidence)
    SPOILED[6](other)
    [entry] = [entry for entry in claims.ledger([evidence, other], claims.CLAIMS) if entry["number"] == "6"]
    assert entry["verdict"] == "not visible at this scale: the seeds disagree (holds, does not hold)"


def test_draws_of_tasks_are_counted_over_all_seeds(evidence):
    entries = claims.ledger([evidence] * 3, claims.CLAIMS)
    [numbers] = {number for entry in entries if entry["number"] == "10" for number in entry["numbers"]}
    assert f"the mean of {3 * in_context.DRAWS} draws of tasks" in numbers


def test_a_difference_within_the_noise_is_not_visible():
    assert beats(0.55, 0.50, 40, 40) == UNSEEN
    assert beats(0.55, 0.50, 4000, 4000) == HOLDS
    assert beats(0.50, 0.55, 4000, 4000) == FAILS


def test_means_of_draws_are_apart_when_the_spread_between_draws_is_smaller():
    few, many, noisy = [0.40, 0.44], [0.60, 0.62], [0.2, 0.9]
    assert draws_beat(many, few, [few, many]) == HOLDS and draws_beat(few, many, [few, many]) == FAILS
    assert draws_beat(many, few, [few, noisy, many]) == UNSEEN
    assert draws_beat([0.9], [0.1], [[0.9], [0.1]]) == UNSEEN  # a single draw has no spread


# ---- plots ---------------------------------------------------------------------------------------------------------


def test_there_are_plots_where_matplotlib_is_and_a_sentence_where_it_is_not(comparison, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="draws with matplotlib")
    results, out = comparison
    assert {path.name for path in out.glob("*.png")} == {"losses.png", "forgetting.png", "in_context.png", "tasks.png"}
    run = tmp_path / "sft"
    shutil.copytree(out / "seed-0" / "sft", run)
    assert plot.training([run]) == f"Plot: {run / 'loss.png'}." and (run / "loss.png").stat().st_size > 1000
    for content in ((run / "metrics.csv").read_text().split("\n")[0] + "\n", "of,another\nprogram,1\n"):
        (tmp_path / "metrics.csv").write_text(content)
        with pytest.raises(Mistake, match="has no steps yet: nothing to draw"):
            plot.training([tmp_path])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    (run / "loss.png").unlink()
    for said in (plot.training([run]), comparison_plots(results, run)):
        assert "matplotlib is not installed" in said
    assert not list(run.glob("*.png"))

"""The scripts side by side: one story, one loop, and every line in which two of them differ is the method."""

import ast
import difflib
import re
from itertools import combinations
from pathlib import Path

import pytest

from notebooks.side_by_side import CONCEPTS, normalised, reasons

ROOT = Path(__file__).parent.parent
SIBLINGS = PRETRAIN, SFT, LORA, ADAPTER, PREFIX, PROMPT, CLASSIFIER, MLM = [
    f"train_{method}.py" for method in ("pretrain", "sft", "lora", "adapter", "prefix", "prompt", "classifier", "mlm")
]
COMPARE = REWARD, DPO, RLHF = ["train_reward.py", "train_dpo.py", "train_rlhf.py"]  # responses: by losses of their own
SIBLINGS += COMPARE
STEPS = ["config", "data", "model", "what learns", "optimizer", "loop", "evaluate", "save"]
BUDGETS = {
    (PRETRAIN, SFT): 18, (SFT, LORA): 22, (LORA, ADAPTER): 14, (LORA, PREFIX): 14, (PREFIX, PROMPT): 10,
    (SFT, CLASSIFIER): 30, (PRETRAIN, MLM): 20, (CLASSIFIER, REWARD): 24, (SFT, DPO): 30, (SFT, RLHF): 45,
}  # fmt: skip
PAIRS = [*BUDGETS, (PRETRAIN, LORA)]


def lines(script):
    """The lines as `diff -w -B` compares them: without white space, without blank lines."""
    return [normalised(line) for line in (ROOT / script).read_text(encoding="utf-8").splitlines() if line.strip()]


def changed(one, other):
    """(a changed line, the reasons why it differs), of both scripts."""
    one, other = lines(one), lines(other)
    for tag, i1, i2, j1, j2 in difflib.SequenceMatcher(None, one, other).get_opcodes():
        if tag != "equal":
            yield from ((one[i], reasons(one, i)) for i in range(i1, i2))
            yield from ((other[j], reasons(other, j)) for j in range(j1, j2))


def sections(script):
    parts = re.split(r"^    # (\d)\. (.+)\n", (ROOT / script).read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert parts[1::3] == [str(number) for number in range(1, 9)]
    return dict(zip(parts[2::3], parts[3::3], strict=True))


@pytest.mark.parametrize("script", SIBLINGS)
def test_a_script_is_eight_steps_in_order_and_at_most_150_lines(script):
    assert list(sections(script)) == STEPS
    assert len((ROOT / script).read_text(encoding="utf-8").splitlines()) <= 150


def test_optimizer_and_loop_are_the_same_to_the_byte():
    assert len({sections(script)["optimizer"] for script in SIBLINGS}) == 1
    assert len({sections(script)["loop"] for script in SIBLINGS if script not in COMPARE}) == 1


@pytest.mark.parametrize("script", COMPARE)
def test_where_responses_are_compared_the_loop_differs_in_the_lines_of_the_loss_alone(script):
    """Those that the page explains by what the loss asks; all others are there, in the same order."""
    of_all, own = ([normalised(line) for line in sections(one)["loop"].splitlines()] for one in (SFT, script))
    for tag, i1, i2, j1, j2 in difflib.SequenceMatcher(None, of_all, own, autojunk=False).get_opcodes():
        for text, lines_of in ((of_all, range(i1, i2)), (own, range(j1, j2))):
            if tag != "equal":
                for n in lines_of:
                    assert not text[n] or [c for c, _ in reasons(text, n)] == ["what the loss asks"], text[n]


def test_at_most_one_line_of_the_loop_is_about_fp16():
    about = [line for step in ("optimizer", "loop") for line in sections(SFT)[step].splitlines() if "fp16" in line]
    assert len(about) == 1 and "scaler" not in (ROOT / SFT).read_text(encoding="utf-8")


@pytest.mark.parametrize("pair", BUDGETS)
def test_changed_lines_stay_within_their_budget(pair):
    assert len(list(changed(*pair))) <= BUDGETS[pair]


@pytest.mark.parametrize("pair", PAIRS)
def test_every_changed_line_is_the_method(pair):
    """Each has its reason in the table that the page of the scripts is made from, and one reason only."""
    noise = [line for line, found in changed(*pair) if not found]
    assert not noise, "lines that differ for no reason of the method"
    assert [(line, found) for line, found in changed(*pair) if len(found) > 1] == []


def test_every_reason_is_some_changed_lines():
    """The table has no row that explains nothing."""
    given = {why for pair in PAIRS for _, found in changed(*pair) for _, why in found}
    assert given == {why for patterns in CONCEPTS.values() for why in patterns.values()}


def test_config_fields_stand_in_one_order_and_each_says_what_it_means():
    orders = []
    for script in SIBLINGS:
        source = (ROOT / script).read_text(encoding="utf-8")
        [config] = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
        fields = [field for field in config.body if isinstance(field, ast.AnnAssign)]
        assert all("  # " in source.splitlines()[field.lineno - 1] for field in fields)
        orders.append([field.target.id for field in fields])
    for one, other in combinations(orders, 2):
        assert [field for field in one if field in other] == [field for field in other if field in one]


@pytest.mark.parametrize("script", SIBLINGS)
def test_every_field_of_a_config_is_used(script):
    source = (ROOT / script).read_text(encoding="utf-8")
    shared = "".join(path.read_text(encoding="utf-8") for path in [*(ROOT / "run").glob("*.py"), ROOT / "cli.py"])
    [config] = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    for field in config.body:
        if isinstance(field, ast.AnnAssign):
            assert re.search(rf"\bconfig\.{field.target.id}\b", source + shared), field.target.id


def test_the_loss_is_written_out_and_stands_in_the_loop():
    assert "nll = -log_p.gather(-1, targets[graded].unsqueeze(-1)).squeeze(-1)" in sections(SFT)["loop"]
    runtime = [p for p in ROOT.rglob("*.py") if not {".venv", "tests"} & set(p.relative_to(ROOT).parts)]
    assert not [p for p in runtime if "cross_entropy" in p.read_text(encoding="utf-8")]

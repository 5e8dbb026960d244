"""The scripts side by side: one story, one loop, and every line in which two of them differ is the method."""

import ast
import difflib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PRETRAIN, SFT, LORA = "train_pretrain.py", "train_sft.py", "train_lora.py"
STEPS = ["config", "data", "model", "what learns", "optimizer", "loop", "evaluate", "save"]
BUDGETS = {(PRETRAIN, SFT): 30, (SFT, LORA): 24}

# What a changed line may be about. A line that none of these explains is noise, and fails the test.
CONCEPTS = {
    "which method it is": r"Pretraining:|\(SFT\):|^LoRA:|^python train_\w+\.py ",
    "how rows are filled": r"^pack: |config\.pack",
    "what is graded": r"^# graded: |from_te|from_in|grade_prompt|^(text|instructions): str|^(if config\.text|else):$",
    "where it starts": r"init_from|\bGPT|load_tokenizer|^(tokenizer|n_layer|n_head|n_embd): |^shape = |^else:$",
    "what learns": r"apply_lora|requires_grad_\(True\)|^(r|alpha|lora_dropout|targets): ",
    "how fast": r"^(learning_rate|weight_decay): float = [\de.-]+ # AdamW's",
    "what is saved": r"checkpoint\.save_(model|adapter)\(",
}


def lines(script):
    """The lines as `diff -w -B` compares them: without white space, without blank lines."""
    text = (ROOT / script).read_text(encoding="utf-8")
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def changed(one, other):
    diff = difflib.unified_diff(lines(one), lines(other), n=0, lineterm="")
    return [line for line in diff if line[0] in "-+" and not line.startswith(("---", "+++"))]


def sections(script):
    parts = re.split(r"^    # (\d)\. (.+)\n", (ROOT / script).read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert parts[1::3] == [str(number) for number in range(1, 9)]
    return dict(zip(parts[2::3], parts[3::3], strict=True))


@pytest.mark.parametrize("script", [PRETRAIN, SFT, LORA])
def test_a_script_is_eight_steps_in_order_and_at_most_150_lines(script):
    assert list(sections(script)) == STEPS
    assert len((ROOT / script).read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("step", ["optimizer", "loop"])
def test_optimizer_and_loop_are_the_same_to_the_byte(step):
    assert sections(PRETRAIN)[step] == sections(SFT)[step] == sections(LORA)[step]


@pytest.mark.parametrize("pair", BUDGETS)
def test_changed_lines_stay_within_their_budget(pair):
    assert len(changed(*pair)) <= BUDGETS[pair]


@pytest.mark.parametrize("pair", [*BUDGETS, (PRETRAIN, LORA)])
def test_every_changed_line_is_the_method(pair):
    noise = [line for line in changed(*pair) if not any(re.search(c, line[1:].strip('"')) for c in CONCEPTS.values())]
    assert not noise, "lines that differ for no reason of the method"


def test_config_fields_stand_in_one_order_and_each_says_what_it_means():
    orders = []
    for script in (PRETRAIN, SFT, LORA):
        source = (ROOT / script).read_text(encoding="utf-8")
        [config] = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
        fields = [field for field in config.body if isinstance(field, ast.AnnAssign)]
        assert all("  # " in source.splitlines()[field.lineno - 1] for field in fields)
        orders.append([field.target.id for field in fields])
    for one, other in [(0, 1), (1, 2), (0, 2)]:
        shared = set(orders[one]) & set(orders[other])
        assert [f for f in orders[one] if f in shared] == [f for f in orders[other] if f in shared]


@pytest.mark.parametrize("script", [PRETRAIN, SFT, LORA])
def test_every_field_of_a_config_is_used(script):
    source = (ROOT / script).read_text(encoding="utf-8")
    shared = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "run").glob("*.py"))
    [config] = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    for field in config.body:
        if isinstance(field, ast.AnnAssign):
            assert f"config.{field.target.id}" in source + shared, field.target.id


def test_the_loss_is_written_out_and_stands_in_the_loop():
    assert "nll = -log_p.gather(-1, targets[graded].unsqueeze(-1)).squeeze(-1)" in sections(SFT)["loop"]
    runtime = [p for p in ROOT.rglob("*.py") if not {".venv", "tests"} & set(p.relative_to(ROOT).parts)]
    assert not [p for p in runtime if "cross_entropy" in p.read_text(encoding="utf-8")]

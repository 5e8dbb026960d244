"""The main job, whole and small: every cell from one base, one table, the same yardsticks."""

import json

import pytest
import torch

import compare
from run.checkpoint import load_model, load_run, sha256_of_base


@pytest.fixture(scope="module")
def comparison(text, folder):
    words = ["sea", "ship", "calm", "sail"]
    pairs = [f"{one} {other}" for one in words for other in words]
    records = [{"instruction": "Repeat it.", "input": pair, "output": f"{pair}, of course"} for pair in pairs * 2]
    instructions = folder / "pairs.json"
    instructions.write_text(json.dumps(records), encoding="utf-8")
    domain = folder / "domain.txt"
    domain.write_text("sea ship sea ship calm " * 400, encoding="utf-8")
    sizes = {"vocab_size": 300, "n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 128, "batch_size": 8}
    files = {"text": text, "domain": str(domain), "instructions": str(instructions), "out": str(folder / "compare")}
    config = compare.Config(
        **files, **sizes, base_steps=60, steps=60, learning_rate=1e-2, lora_learning_rate=3e-2, device="cpu"
    )
    return compare.main(config), folder / "compare"


def test_every_cell_is_a_row_with_every_yardstick(comparison):
    results, out = comparison
    assert json.loads((out / "results.json").read_text()) == results
    methods = ["base", "continued pretraining", "LoRA on the domain", "SFT", "LoRA-SFT"]
    assert [row["method"] for row in results["rows"]] == methods
    for row in results["rows"]:
        assert all(row[key] is not None for key, _ in compare.COLUMNS.values())
        assert row["base_ppl"] > 1 and row["domain_ppl"] > 1 and 0 <= row["exact_match"] <= 1
    table = compare.table(results["rows"]).splitlines()
    assert len(table) == 7 and len({len(line) for line in table}) == 1


def test_each_method_learns_what_it_is_for(comparison):
    base, continued, lora, sft, lora_sft = comparison[0]["rows"]
    assert continued["domain_ppl"] < 0.6 * base["domain_ppl"] and lora["domain_ppl"] < 0.98 * base["domain_ppl"]
    assert sft["response_nll"] < base["response_nll"] and lora_sft["response_nll"] < base["response_nll"]
    assert lora["trainable"] == lora_sft["trainable"] < base["trainable"] / 3
    assert lora["checkpoint_bytes"] < base["checkpoint_bytes"] / 2


def test_lora_left_the_base_as_it_was(comparison):
    _, out = comparison
    fingerprint = sha256_of_base(load_model(out / "base"))
    for name in ("lora", "lora-sft"):
        assert torch.load(out / name / "adapter.pt", weights_only=True)["base_sha256"] == fingerprint
        assert sha256_of_base(load_run("", str(out / name), torch.device("cpu"))[0]) == fingerprint


def test_a_second_comparison_does_not_overwrite_the_first(comparison, text, instructions):
    with pytest.raises(ValueError, match="holds a comparison already"):
        compare.main(compare.Config(text=text, domain=text, instructions=instructions, out=str(comparison[1])))

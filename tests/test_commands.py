"""The commands around the scripts: talking to a run, judging a run, training a tokenizer."""

import io
import json
import shutil
from pathlib import Path

import pytest
import torch

import compare
import evaluate
import new_model
import sample
from cli import Mistake
from data import tokenizer
from data.examples import (
    Instruction,
    Reading,
    from_instructions,
    from_text,
    instruction_example,
    read_instructions,
    render_prompt,
)
from experiment.in_context import Asked, as_json
from model.gpt import GPT, GPTConfig
from store.checkpoint import open_run, save_model


def test_sample_continues_a_prompt_and_repeats_itself_with_one_seed(base, capsys):
    config = sample.Config(from_=base, prompt="the old ship", max_new_tokens=20, seed=3, device="cpu")
    for _ in range(2):
        sample.main(config)
    first, second = capsys.readouterr().out[:-1].split("\nthe old ship", 1)
    assert first == "the old ship" + second
    sample.main(sample.Config(from_=base, prompt="the old ship", max_new_tokens=20, seed=4, device="cpu"))
    assert capsys.readouterr().out != first + "\n"


def test_sample_answers_an_instruction_with_the_adapters_own_base(train, capsys, monkeypatch):
    _, run = train("lora_sft")
    asked, stream = [], sample.stream
    monkeypatch.setattr(sample, "stream", lambda *args: asked.append(args[1]) or stream(*args))
    question = {"instruction": "Repeat the word.", "input": "sea", "temperature": 0}
    capsys.readouterr()
    sample.main(sample.Config(adapter=str(run), device="cpu", **question))
    assert bytes(asked[0][0]).decode() == render_prompt("Repeat the word.", "sea")
    assert "###" not in capsys.readouterr().out


def test_sample_reads_one_prompt_a_line_from_standard_input(base, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("the old\n\na calm\n"))
    sample.main(sample.Config(from_=base, max_new_tokens=3, device="cpu"))
    said = capsys.readouterr().out
    assert said.startswith("the old") and "\na calm" in said


def test_several_adapters_on_one_base_answer_one_after_another(train, capsys, monkeypatch):
    """Each as it answers alone: with the same logits, which are not the other's."""
    runs = [str(train("lora_sft", steps=5, learning_rate=rate)[1]) for rate in (1e-9, 0.1)]
    logits, stream = [], sample.stream

    def seen(model, prompts, *args):
        logits.append(model(torch.tensor(prompts)))
        return stream(model, prompts, *args)

    monkeypatch.setattr(sample, "stream", seen)
    question = {"prompt": "the old", "temperature": 0, "max_new_tokens": 5, "device": "cpu"}
    for adapters in (*runs, ", ".join(runs)):
        capsys.readouterr()
        sample.main(sample.Config(adapter=adapters, **question))
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == runs
    alone, other, first, second = logits
    assert torch.equal(alone, first) and torch.equal(other, second) and not torch.equal(first, second)
    sample.main(sample.Config(adapter=f"{runs[0]},{runs[0]}", **question))
    assert torch.equal(logits[-1], alone), "named twice, it answers once"
    for adapters in (",".join(runs), f"{runs[0]},{runs[0]}"):
        with pytest.raises(ValueError, match="names several"):
            evaluate.main(evaluate.Config(adapter=adapters, text="any"))


def test_a_chat_is_what_was_trained_on_turn_by_turn(base, monkeypatch):
    """What the model reads before each answer is the training prefix of the same conversation."""
    asked, stream = [], sample.stream
    monkeypatch.setattr(sample, "stream", lambda *args: asked.append(args[1][0]) or stream(*args))
    monkeypatch.setattr("sys.stdin", io.StringIO("the old\na calm\n"))
    sample.main(sample.Config(from_=base, ask="chat", max_new_tokens=3, device="cpu"))
    first, second = (bytes(token for token in tokens if token < 256).decode(errors="replace") for tokens in asked)
    assert first == render_prompt("the old")
    assert second.startswith(first) and second.endswith(render_prompt("a calm"))
    assert asked[1][len(asked[0]) : -len(render_prompt("a calm"))][-1] == 256, "the first answer's end-of-text"


@pytest.mark.parametrize("kind", ["text", "instructions"])
def test_evaluate_prints_loss_and_perplexity_and_for_instructions_exact_match(kind, base, text, instructions, capsys):
    file, read = (text, from_text) if kind == "text" else (instructions, from_instructions)
    evaluate.main(evaluate.Config(from_=base, device="cpu", held_out=0.3, **{kind: file}))
    said = capsys.readouterr().out
    _, examples = read(file, Reading(open_run(base).tokenizer, 192, 0.3))
    assert f"NLL {evaluate.token_nll(open_run(base).model(), examples, 32):.4f}" in said
    assert "perplexity" in said and ("exact match 0.0%" in said) == (kind == "instructions")


@pytest.mark.parametrize(
    "content",
    ["{oops", "null", '{"held_out": 0.1, "block_size": "many"}']
    + [f'{{"held_out": {number}}}' for number in ("[1]", "NaN", "5", "-1")]
    + [f'{{"held_out": 0.1, "block_size": {number}}}' for number in ("1e999", "-1")],
)
def test_evaluate_says_that_a_config_json_is_broken(base, text, tmp_path, content):
    shutil.copytree(base, tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text(content)
    with pytest.raises(Mistake, match=r"config\.json cannot be read: .*; delete it, and give --block-size"):
        evaluate.main(evaluate.Config(from_=str(tmp_path / "run"), text=text, device="cpu"))


def test_a_model_with_a_tokenizer_of_its_own_takes_it_along(text, tmp_path):
    own = tmp_path / "own.tiktoken"
    tokenizer.main(tokenizer.Config(text=text, out=str(own), vocab_size=280))
    encoding = tokenizer.load_tokenizer(str(own))
    model = GPT(GPTConfig(encoding.n_vocab, 16, 1, 2, 8))
    save_model(tmp_path, model, encoding)
    assert open_run(tmp_path).tokenizer.name == encoding.name
    assert (tmp_path / "tokenizer.tiktoken").read_bytes() == own.read_bytes()
    assert all(
        torch.equal(one, other)
        for one, other in zip(open_run(tmp_path).model().parameters(), model.parameters(), strict=True)
    )
    (tmp_path / "tokenizer.tiktoken").write_bytes(own.read_bytes().replace(b" 256\n", b" 279\n", 1))
    with pytest.raises(ValueError, match="tokenizer"):
        open_run(tmp_path)


def test_a_save_that_breaks_off_leaves_the_old_file(base, tmp_path, monkeypatch):
    model = open_run(base).model()
    save_model(tmp_path, model, open_run(base).tokenizer)
    before = (tmp_path / "model.pt").read_bytes()

    def breaks_off(contents, file):
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", breaks_off)
    with pytest.raises(OSError, match="no space"):
        save_model(tmp_path, model, open_run(base).tokenizer)
    assert (tmp_path / "model.pt").read_bytes() == before


def test_a_sweep_judges_by_questions_of_its_own(tmp_path):
    """Those of the comparison, and those that are trained on, are left out of the file."""
    known = [as_json(one) for one in read_instructions("data/builtin/questions.json")[:3]]
    known += [as_json(one) for one in read_instructions("data/builtin/instructions.json")[:3]]
    new = {"instruction": "Which colour is the moon?", "output": "white"}
    (tmp_path / "questions.json").write_text(json.dumps([*known, new]))
    config = compare.Config(sweep=True, questions=str(tmp_path / "questions.json"))
    asked = compare.yardsticks_of(config, torch.device("cpu")).questions
    assert [one.instruction for one in asked] == [new["instruction"]]


def test_examples_in_the_prompt_are_written_as_the_model_would_have_answered_them():
    shown, question = Instruction("Repeat it.", "sea", "sea"), Instruction("Repeat it.", "ship", "ship")
    prompt = Asked(question, [shown]).prompt(1)
    assert prompt == render_prompt("Repeat it.", "sea") + " sea\n" + render_prompt("Repeat it.", "ship")
    assert Asked(question, [shown]).prompt(0) == render_prompt("Repeat it.", "ship")
    ids = tokenizer.load_tokenizer("bytes")
    example = instruction_example(question._replace(examples=(shown[:3],)), ids)
    assert ids.decode(example.prompt()) == prompt, "tuning reads the prompt that the judge writes"
    assert ids.decode(example.response()[:-1]) == " ship" and example.graded.sum() == len(example.response())


def test_first_lines_end_where_the_line_does(base):
    model, tokenizer = open_run(base).model(), open_run(base).tokenizer
    said = evaluate.first_lines(model, tokenizer, ["the old ship", "a calm sea"], 30, batch_size=1)
    assert len(said) == 2 and all("\n" not in line and line == line.strip() for line in said)


def test_evaluate_judges_as_the_run_was_trained_and_warns_of_what_it_has_learned_from(train, instructions, capsys):
    """Its block size and its held-out part, whatever the model could read; and the file is known under another name."""
    results, run = train("sft", held_out=0.2, block_size=96)
    copy = run / "copy.json"
    copy.write_bytes(Path(instructions).read_bytes())
    for file in (instructions, str(copy)):
        for how, says, warns in [
            ({}, f"rows of up to 96 tokens, by 0.2 of the file, as {run} was trained", False),
            ({"held_out": 0.5}, f"by 0.5 of the file; {run} was trained with 96 and 0.2", True),
            ({"held_out": 1.0, "block_size": 192}, "rows of up to 192 tokens", True),
        ]:
            capsys.readouterr()
            evaluate.main(evaluate.Config(from_=str(run), instructions=file, device="cpu", **how))
            said = capsys.readouterr().out
            assert says in said
            assert ("held out 0.2, so it has learned from part of" in said) == warns
            if not how:
                assert f"NLL {results['held_out_nll']:.4f}" in said


def test_a_new_model_has_the_shape_and_the_seed_that_were_asked_for(tmp_path):
    runs = [str(tmp_path / name) for name in "abc"]
    for run, seed in zip(runs, (1, 1, 2), strict=True):
        new_model.main(new_model.Config(out=run, n_layer=1, n_head=2, n_embd=8, block_size=16, seed=seed))
    one, same, other = (open_run(run).model() for run in runs)
    assert one.config == GPTConfig(257, 16, 1, 2, 8)
    assert torch.equal(one.wte.weight, same.wte.weight) and not torch.equal(one.wte.weight, other.wte.weight)
    with pytest.raises(ValueError, match=r"holds a run already: give another --out, or delete it$"):
        new_model.main(new_model.Config(out=runs[0]))

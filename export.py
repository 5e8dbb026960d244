"""A run for other programs, for transformers or PEFT; or a LoRA run as a plain one.

python export.py --from RUN --out FOLDER              for transformers; of LoRA, a prefix or a prompt, for PEFT
python export.py --from RUN --out FOLDER --merge      a LoRA run, its adapter merged into its base, as a plain run
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tiktoken import Encoding
from torch import Tensor

from cli import Mistake, check, command_line
from data.pairs import SCORE
from data.tokenizer import hugging_face_tokenizer
from data.wordpiece import WordPiece, settings_of
from model.bert import BERTConfig, built
from model.gpt import GPT
from model.head import classes_of
from model.lora import merge
from model.switch import base_state_dict
from store import bert, checked, gpt2, peft
from store.checkpoint import open_run, save_model, save_tokenizer_beside
from store.learned import at_hand, attach, is_partly_learned, load_adapter, read_learned
from store.safetensors import write_safetensors

HUB = {name: f"{'distilbert' if name == 'distilgpt2' else 'openai-community'}/{name}" for name in gpt2.SHAPES}


@dataclass(kw_only=True)
class Config:
    from_: str  # run folder, or a model or an adapter in Hugging Face's layout
    out: str  # folder to write, a new one
    merge: bool = False  # write a plain run, whose base has the adapter merged into it
    base: str = ""  # where the adapter's base is now, if it has moved


def main(config: Config) -> None:
    check(config)
    if Path(config.out).exists() and (not Path(config.out).is_dir() or any(Path(config.out).iterdir())):
        raise Mistake(f"{config.out} exists already: name a new folder")
    attached = read_learned(config.from_)["attached"] if is_partly_learned(config.from_) else []
    if config.merge:
        merge_run(config.from_, config.out, config.base)
    elif any(note["apply"] != "head" for note in attached):
        export_adapter(config.from_, config.out, config.base)
    else:
        export_model(config.from_, config.out, config.base)


def opened(run: str, base: str) -> tuple[GPT, Encoding]:
    """The model and its tokenizer; base: where the base is now of what has learned, if it has moved."""
    there = open_run(base or run)
    model = there.model()
    if base:
        load_adapter(model, run)
    return model, there.tokenizer


def export_model(run: str, folder: str | Path, base: str = "") -> None:
    """Writes a model in Hugging Face's layout: config.json, model.safetensors and the tokenizer."""
    model, tokenizer = opened(run, base)
    config, classes, state = model.config, classes_of(model.attached), model.state_dict()
    if beside := {note["apply"] for note in model.attached} - {"head"}:
        way = "merge LoRA first with --merge"
        if beside != {"lora"}:
            way = "only LoRA can be merged into them; sample.py and evaluate.py read the run as it is"
        raise Mistake(f"{run} has {' and '.join(sorted(beside))} beside its weights: {way}")
    try:
        if isinstance(config, BERTConfig) and isinstance(tokenizer, WordPiece):
            settings = bert.settings_from(config, tokenizer.pad, classes)
            tensors = bert.weights_of(state, config, classes)
            texts = {"tokenizer_config.json": settings_of(tokenizer) | {"model_max_length": config.block_size}}
        else:
            settings = gpt2.settings_from(config, tokenizer.name, tokenizer.eot_token, classes)
            tensors, texts = gpt2.weights_of(state), hugging_face_tokenizer(tokenizer, config.block_size)
            if settings["pad_token_id"] is not None or not classes:
                texts["tokenizer_config.json"]["pad_token"] = texts["tokenizer_config.json"]["eos_token"]
    except ValueError as error:
        raise Mistake(f"{run} cannot be exported: {error}") from error
    if classes:
        settings["id2label"] = dict(enumerate(classes.names))
        settings["label2id"] = {name: number for number, name in enumerate(classes.names)}
        settings["each"] = classes.each  # a key of our own, which transformers leaves alone
    save_tokenizer_beside(tokenizer, folder)
    write(Path(folder), "model.safetensors", tensors, {"config.json": settings, **texts})
    auto = settings["architectures"][0].replace("GPT2LMHead", "ForCausalLM").partition("For")[2].removesuffix("Model")
    print(f'{folder}: transformers.AutoModelFor{auto}.from_pretrained("{folder}") loads it')
    if classes and classes.each == "response":
        print("it scores one prompt and response at a time, which must end with end-of-text: there the score is read")


def export_adapter(run: str, folder: str | Path, base: str = "") -> None:
    """Writes what has learned beside a base for PEFT: adapter_config.json and adapter_model.safetensors, with the base
    in a folder of its own unless that is public. PEFT has no bottlenecks: they are written as a learned.pt of ours."""
    learned = read_learned(run)
    [note, *others] = learned["attached"]
    base = base or at_hand(learned["base"], run)
    model, _ = opened(run, base)  # to be sure that it is its base
    if others or learned["weights"].keys() & base_state_dict(model).keys():
        if {one["apply"] for one in learned["attached"]} == {"lora", "head"}:
            raise Mistake(f"{run} has learned a head too, which PEFT has no place for: --merge makes a plain run of it")
        more = f"{run} has learned more than one adapter, prefix, prompt or head, which PEFT has no place for"
        raise Mistake(f"{more}; sample.py and evaluate.py, with --adapter, read it as it is")
    out = Path(folder).resolve()
    if base not in HUB:
        export_model(base, out / "base")
    if note["apply"] not in peft.TO_PEFT:
        checked.write(out / "learned.pt", learned | {"base": base if base in HUB else str(out / "base")})
        print(f"{out}: PEFT has no bottlenecks, so this is our own file; python sample.py --adapter {out} talks to it")
        return
    name = HUB.get(base) or str(out / "base")
    tensors, settings = peft.adapter_of(note, learned["weights"], name)
    write(out, "adapter_model.safetensors", tensors, {"adapter_config.json": settings})
    print(f'{out}: peft.AutoPeftModelForCausalLM.from_pretrained("{out}") loads it, on {name}')


def merge_run(run: str, folder: str | Path, base: str = "") -> None:
    """Writes a LoRA run as a plain one: model.pt with W0 + (alpha / r) B A in place of W0, and the tokenizer."""
    model, tokenizer = opened(run, base)
    merge(model)
    beside = [note for note in model.attached if note["apply"] != "lora"]
    if beside == model.attached:
        raise Mistake(f"{run} holds no adapter that could be merged")
    with torch.device("meta"):
        plain = built(model.config)
        attach(plain, beside)
    plain.load_state_dict(base_state_dict(model), assign=True)
    save_model(folder, plain, tokenizer)
    classes = classes_of(beside)
    use = f"python sample.py --from {folder} {'--classify tells classes' if classes else 'talks to it'}"
    if classes == SCORE:
        use = f"python evaluate.py --from {folder} --pairs FILE judges it"
    print(f"{folder}: a plain run, {run} merged into its base; {use}")


def write(folder: Path, weights: str, tensors: dict[str, Tensor], texts: dict[str, dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / weights, tensors)
    for file, content in texts.items():
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (folder / file).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    command_line(main, Config)

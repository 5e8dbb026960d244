"""A run for other programs: a model for transformers, a LoRA run for PEFT; or a LoRA run as a plain one.

python export.py --from RUN --out FOLDER              for transformers; of a LoRA run, for PEFT
python export.py --from RUN --out FOLDER --merge      a LoRA run, its adapter merged into its base, as a plain run
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from cli import Mistake, check, command_line
from data.tokenizer import hugging_face_tokenizer
from model.gpt import GPT
from model.lora import base_state_dict, merge
from store import checkpoint, gpt2
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
    if config.merge:
        merge_run(config.from_, config.out, config.base)
    elif checkpoint.is_partly_learned(config.from_):
        export_adapter(config.from_, config.out, config.base)
    else:
        export_model(config.from_, config.out)


def export_model(run: str, folder: str | Path) -> None:
    """Writes a model in Hugging Face's layout: config.json, model.safetensors and the tokenizer."""
    opened = checkpoint.open_run(run)
    model, tokenizer = opened.model(), opened.tokenizer
    refuse_what_it_has_beside(model, run)
    settings = gpt2.settings_from(model.config, tokenizer.name, tokenizer.eot_token)
    texts = {"config.json": settings, **hugging_face_tokenizer(tokenizer, model.config.block_size)}
    write(Path(folder), "model.safetensors", gpt2.weights_of(model.state_dict()), texts)
    checkpoint.save_tokenizer_beside(tokenizer, folder)
    print(f'{folder}: transformers.AutoModelForCausalLM.from_pretrained("{folder}") loads it')


def export_adapter(run: str, folder: str | Path, base: str = "") -> None:
    """Writes a LoRA run for PEFT: adapter_config.json and adapter_model.safetensors, with its base in a folder of its
    own unless that is public. base: where the adapter's base is now, if it has moved."""
    learned = checkpoint.read_learned(run)
    [note, *others] = learned["attached"] or [{"apply": "nothing"}]
    if note["apply"] != "lora" or others or not all(".lora_" in name for name in learned["weights"]):
        raise Mistake(f"{run} has learned more than LoRA's A and B, which PEFT has no place for")
    base = base or checkpoint.at_hand(learned["base"], run)
    checkpoint.fill(checkpoint.open_run(base).model(), learned, run)  # to be sure that it is its base
    out = Path(folder).resolve()
    name = HUB.get(base) or str(out / "base")
    tensors, settings = gpt2.adapter_of(learned["weights"], note["r"], note["alpha"], name)
    if base not in HUB:
        export_model(base, out / "base")
    write(out, "adapter_model.safetensors", tensors, {"adapter_config.json": settings})
    print(f'{out}: peft.AutoPeftModelForCausalLM.from_pretrained("{out}") loads it, on {name}')


def merge_run(run: str, folder: str | Path, base: str = "") -> None:
    """Writes a LoRA run as a plain one: model.pt with W0 + (alpha / r) B A in place of W0, and the tokenizer."""
    opened = checkpoint.open_run(base or run)
    model = opened.model()
    if base:
        checkpoint.load_adapter(model, run)
    if not any(note["apply"] == "lora" for note in model.attached):
        raise Mistake(f"{run} holds no adapter that could be merged")
    merge(model)
    plain = GPT(model.config)
    plain.load_state_dict(base_state_dict(model))
    checkpoint.save_model(folder, plain, opened.tokenizer)
    print(f"{folder}: a plain run, {run} merged into its base; python sample.py --from {folder} talks to it")


def refuse_what_it_has_beside(model: GPT, run: str) -> None:
    if model.attached:
        kinds = " and ".join(sorted({note["apply"] for note in model.attached}))
        raise Mistake(f"{run} has {kinds} beside its weights: merge LoRA first with --merge; a head is not exported")


def write(folder: Path, weights: str, tensors: dict[str, Tensor], texts: dict[str, dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / weights, tensors)
    for file, content in texts.items():
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (folder / file).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    command_line(main, Config)

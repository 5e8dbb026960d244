"""Runs for other programs: a model for transformers, an adapter for PEFT, or an adapter merged into its base.

The command is that of model/gpt2.py; here is what reads the run and writes the files.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from torch import Tensor

from data.tokenizer import hugging_face_tokenizer
from model import gpt2
from model.gpt import GPT
from model.lora import base_state_dict, merge
from model.safetensors import write_safetensors
from run import checkpoint
from run.config import Mistake, memory_hint, one_sentence

HUB = {name: f"{'distilbert' if name == 'distilgpt2' else 'openai-community'}/{name}" for name in gpt2.SHAPES}


def export_run(run: str, folder: str | Path, base: str = "") -> None:
    """Writes a run in Hugging Face's layout: of a model config.json, model.safetensors and the tokenizer, of a LoRA run
    adapter_config.json and adapter_model.safetensors, with its base in a folder of its own unless that is public.

    base: where the adapter's base is now, if it has moved.
    """
    refuse_taken(folder)
    if checkpoint.is_adapter(run):
        base = base or checkpoint.base_at_hand(run)
        checkpoint.load_adapter(checkpoint.load_model(base), run)  # to be sure that it is its base
        config, state, _ = checkpoint.read_adapter(run)
        out = Path(folder).resolve()
        name = HUB.get(base) or str(out / "base")
        tensors, settings = gpt2.adapter_of(state, config["r"], config["alpha"], name)
        if base not in HUB:
            export_run(base, out / "base")
        write(out, "adapter_model.safetensors", tensors, {"adapter_config.json": settings})
        print(f'{out}: peft.AutoPeftModelForCausalLM.from_pretrained("{out}") loads it, on {name}')
        return
    model, tokenizer = checkpoint.load_model(run), checkpoint.tokenizer_of(run)
    settings = gpt2.settings_from(model.config, tokenizer.name, tokenizer.eot_token)
    texts = {"config.json": settings, **hugging_face_tokenizer(tokenizer, model.config.block_size)}
    write(Path(folder), "model.safetensors", gpt2.weights_of(model.state_dict()), texts)
    checkpoint.save_tokenizer_beside(tokenizer, folder)
    print(f'{folder}: transformers.AutoModelForCausalLM.from_pretrained("{folder}") loads it')


def merge_run(run: str, folder: str | Path, base: str = "") -> None:
    """Writes a LoRA run as a plain one: model.pt with W0 + (alpha / r) B A in place of W0, and the tokenizer."""
    refuse_taken(folder)
    if not checkpoint.is_adapter(run):
        raise Mistake(f"{run} holds no adapter that could be merged")
    base = base or checkpoint.base_at_hand(run)
    model, tokenizer = checkpoint.load_model(base), checkpoint.tokenizer_of(base)
    checkpoint.load_adapter(model, run)
    merge(model)
    plain = GPT(model.config)
    plain.load_state_dict(base_state_dict(model))
    Path(folder).mkdir(parents=True, exist_ok=True)
    checkpoint.save_model(folder, plain, tokenizer)
    print(f"{folder}: a plain run, {base} with {run} merged into it; python sample.py --from {folder} talks to it")


def refuse_taken(folder: str | Path) -> None:
    if Path(folder).exists() and (not Path(folder).is_dir() or any(Path(folder).iterdir())):
        raise Mistake(f"{folder} exists already: name a new folder")


def write(folder: Path, weights: str, tensors: dict[str, Tensor], texts: dict[str, dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / weights, tensors)
    for file, content in texts.items():
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (folder / file).write_text(text, encoding="utf-8")


def command() -> None:
    """python -m model.gpt2 export|merge RUN FOLDER"""
    parser = argparse.ArgumentParser(
        prog="model.gpt2", description=gpt2.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["export", "merge"], help="for other programs, or a LoRA run as a plain one")
    parser.add_argument("run", help="run folder, or a model or an adapter in Hugging Face's layout")
    parser.add_argument("folder", help="folder to write, a new one")
    parser.add_argument("--from", dest="base", metavar="RUN", default="", help="the adapter's base, if it has moved")
    given = parser.parse_args()
    with one_sentence(parser.prog), memory_hint(given):
        {"export": export_run, "merge": merge_run}[given.what](given.run, given.folder, given.base)

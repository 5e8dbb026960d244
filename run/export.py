"""Runs for other programs: a model for transformers, an adapter for PEFT, or an adapter merged into its base.

The command is that of model/gpt2.py; here is what reads the run and writes the files.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from data.tokenizer import hugging_face_tokenizer
from model import gpt2
from model.gpt import GPT
from model.lora import base_state_dict, merge
from model.safetensors import write_safetensors
from run import checkpoint
from run.config import Mistake, one_sentence

HUB = {name: f"{'distilbert' if name == 'distilgpt2' else 'openai-community'}/{name}" for name in gpt2.SHAPES}


def export_run(run: str, folder: str | Path) -> None:
    """Writes a run in Hugging Face's layout: of a model config.json, model.safetensors and the tokenizer, of a LoRA run
    adapter_config.json and adapter_model.safetensors, with its base in a folder of its own unless that is public."""
    out = new_folder(folder)
    if is_adapter(run):
        base = checkpoint.base_of(run)
        name = HUB.get(base) or str(out / "base")
        config, state, _ = checkpoint.read_adapter(run)
        tensors, settings = gpt2.adapter_of(state, config["r"], config["alpha"], name)
        if base not in HUB:
            export_run(base, out / "base")
        write_safetensors(out / "adapter_model.safetensors", tensors)
        write_json(out / "adapter_config.json", settings)
        print(f'{out}: peft.AutoPeftModelForCausalLM.from_pretrained("{out}") loads it, on {name}')
        return
    model, tokenizer = checkpoint.load_model(run), checkpoint.tokenizer_of(run)
    write_safetensors(out / "model.safetensors", gpt2.weights_of(model.state_dict()))
    write_json(out / "config.json", gpt2.settings_from(model.config, tokenizer.name, tokenizer.eot_token))
    for file, content in hugging_face_tokenizer(tokenizer, model.config.block_size).items():
        write_json(out / file, content)
    checkpoint.save_tokenizer_beside(tokenizer, out)
    print(f'{out}: transformers.AutoModelForCausalLM.from_pretrained("{out}") loads it')


def merge_run(run: str, folder: str | Path) -> None:
    """Writes a LoRA run as a plain one: model.pt with W0 + (alpha / r) B A in place of W0, and the tokenizer."""
    if not is_adapter(run):
        raise Mistake(f"{run} holds no adapter that could be merged")
    out, base = new_folder(folder), checkpoint.base_of(run)
    model = checkpoint.load_model(base)
    checkpoint.load_adapter(model, run)
    merge(model)
    plain = GPT(model.config)
    plain.load_state_dict(base_state_dict(model))
    checkpoint.save_model(out, plain, checkpoint.tokenizer_of(base))
    print(f"{out}: a plain run, {base} with {run} merged into it; python sample.py --from {out} talks to it")


def is_adapter(run: str) -> bool:
    return Path(run, "adapter.pt").is_file() or checkpoint.hugging_face.is_adapter(run)


def new_folder(folder: str | Path) -> Path:
    if Path(folder).exists() and (not Path(folder).is_dir() or any(Path(folder).iterdir())):
        raise Mistake(f"{folder} exists already: name a new folder")
    Path(folder).mkdir(parents=True, exist_ok=True)
    return Path(folder)


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def command() -> None:
    """python -m model.gpt2 export|merge RUN FOLDER"""
    parser = argparse.ArgumentParser(
        prog="model.gpt2", description=gpt2.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["export", "merge"], help="for other programs, or a LoRA run as a plain one")
    parser.add_argument("run", help="run folder, or a model or an adapter in Hugging Face's layout")
    parser.add_argument("folder", help="folder to write, a new one")
    given = parser.parse_args()
    with one_sentence(parser.prog):
        {"export": export_run, "merge": merge_run}[given.what](given.run, given.folder)

"""A run with random weights: the shape of a model and its tokenizer are chosen here and nowhere else.

    python new_model.py --out RUN [--tokenizer gpt2] [--n-layer 12] [--n-head 12] [--n-embd 768] [--block-size 1024]
    python train_pretrain.py --init-from RUN --text FILE --out RUN      train_mlm.py, with --encoder

Pretraining and continued pretraining are then the same command, from two starts.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from cli import check, command_line
from data.files import write_whole
from data.masked import with_mask
from data.tokenizer import load_tokenizer
from model.gpt import GPT, GPTConfig
from run.resume import check_folder
from store import checkpoint


@dataclass(kw_only=True)
class Config:
    out: str  # folder to write the run to
    tokenizer: str = "bytes"  # gpt2, bytes, or a file made by python -m data.tokenizer
    n_layer: int = 4  # blocks
    n_head: int = 4  # attention heads a block
    n_embd: int = 128  # channels
    block_size: int = 128  # tokens that a row can have at most
    encoder: bool = False  # a model that sees both sides, for train_mlm.py, with one token more: the mask
    seed: int = 0  # of the weights


def main(config: Config) -> None:
    check_folder(Path(check(config).out), resume=False)
    tokenizer = load_tokenizer(config.tokenizer)
    torch.manual_seed(config.seed)
    tokenizer = with_mask(tokenizer) if config.encoder else tokenizer
    sizes = (tokenizer.n_vocab, config.block_size, config.n_layer, config.n_head, config.n_embd)
    model = GPT(GPTConfig(*sizes, causal=not config.encoder))
    size = checkpoint.save_model(config.out, model, tokenizer)
    write_whole(Path(config.out, "config.json"), json.dumps(dataclasses.asdict(config), indent=2).encode() + b"\n")
    n = sum(parameter.numel() for parameter in model.parameters())
    script = "train_mlm.py" if config.encoder else "train_pretrain.py"
    print(f"{config.out}: {n:,} random weights, {size:,} bytes; {script} --init-from {config.out} trains them")


if __name__ == "__main__":
    command_line(main, Config)

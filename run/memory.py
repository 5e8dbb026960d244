"""Where the memory of a training run goes, from its numbers alone.

A step holds different things at different moments, and the fullest moment is the peak. The sums are read off the code
of the model and of the loop: a tensor counts for as long as autograd, or a name in the loop, holds it.
Shapes: B rows · T tokens a row · C channels · H heads · V vocabulary · N graded tokens · r rank. Sizes are in bytes.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from model.gpt import GPTConfig
from run.device import choose_device, choose_precision, fused_attention_pays

QKV = {"q_proj", "k_proj", "v_proj"}
LINEARS = {
    "q_proj": (1, 1),
    "k_proj": (1, 1),
    "v_proj": (1, 1),
    "o_proj": (1, 1),
    "up_proj": (1, 4),
    "down_proj": (4, 1),
}
IMPORTED = 235e6  # what Python and PyTorch hold once imported, where it is too late to measure
BUFFERS = 110e6  # what they add at work, measured
GAPS = 0.6  # of the activations: memory that malloc holds between tensors of many sizes, measured with glibc
CONTEXT = 500e6  # what a GPU's driver takes: an estimate, not measured
PROC = (Path("/proc/self/status"), Path("/proc/meminfo"))


class Part(NamedTuple):
    name: str
    bytes: float
    formula: str


class Moment(NamedTuple):
    when: str
    parts: list[Part]

    def total(self) -> float:
        return sum(part.bytes for part in self.parts)


class Run:
    """The numbers that a run's memory depends on, and what follows from them."""

    def __init__(self, config: Any, model: GPTConfig, imported: float = IMPORTED) -> None:
        """config: run.plan's Config; imported: what Python and PyTorch hold before the run."""
        self.config, self.model, self.imported = config, model, imported
        device = choose_device("auto") if config.device == "auto" else torch.device(config.device)
        self.device = device.type
        self.precision = precision_of(config.precision, device, model.n_embd)
        self.width = self.precision.itemsize  # of a number in matrix products: 4, or 2 in half precision
        self.mask = 1 if self.device == "cuda" else self.width  # of dropout: a bool, or a number like those it zeroes
        self.fused = fused_attention_pays(self.precision, device, config.block_size)
        self.full = config.method != "lora"  # every parameter learns
        self.targets = set(LINEARS) if self.full else {target.strip() for target in config.targets.split(",")}
        C, V, L = model.n_embd, model.vocab_size, model.n_layer
        self.positions = math.ceil(config.batch_size / config.ranks) * config.block_size  # B T, of one rank
        self.n_graded = max(1, round(config.graded * self.positions))  # N
        self.base = V * C + model.block_size * C + L * (12 * C * C + 13 * C) + 2 * C  # parameters
        self.adapter = 0 if self.full else L * config.r * C * sum(sum(LINEARS[target]) for target in self.targets)
        self.learning = self.base if self.full else self.adapter  # parameters
        self.head = 4 * V * C if self.full else 0  # one gradient of wte
        self.parts = config.ranks if config.shard else 1  # in which weights, gradients and AdamW's numbers are held

    # ---- activations -------------------------------------------------------------------------------------------------

    def saved_by_block(self) -> int:
        """What autograd keeps of a block for its backward pass: the inputs of all that needs them for a gradient."""
        C, H, T, dropout = self.model.n_embd, self.model.n_head, self.config.block_size, self.config.dropout
        kept = 2 * 4 * (C + 2)  # of a position: the LayerNorms' inputs, means and deviations, in fp32
        kept += 3 * C * self.width  # q, k, v
        if self.fused and (not dropout or self.device == "cuda"):
            kept += C * self.width + 4 * H  # attention's output, the input of o_proj too; the softmax's denominators
        else:
            kept += H * T * (self.width + (self.mask + self.width if dropout else 0))  # softmax; mask, what is left
            kept += C * self.width if "o_proj" in self.targets else 0
        kept += 4 * C * self.width  # GELU's input
        kept += 2 * C * self.mask if dropout else 0
        kept += self.saved_by_lora_dropout() if not self.full and self.config.lora_dropout else self.saved_by_linears()
        kept += 0 if self.full else len(self.targets) * self.config.r * self.width  # z
        causal_mask = 0 if self.fused else T * T
        return self.positions * kept + causal_mask + self.weights_in_half()

    def saved_by_linears(self) -> int:
        """The inputs of layers that learn, of a position; q, k and v share theirs, or make half-size copies."""
        qkv = len(self.targets & QKV) if self.width == 2 else min(1, len(self.targets & QKV))
        return self.model.n_embd * self.width * (qkv + ("up_proj" in self.targets) + 4 * ("down_proj" in self.targets))

    def saved_by_lora_dropout(self) -> int:
        """Of each target the mask, in fp32 behind a LayerNorm, and what is left of its input, of a position."""
        masks = {target: 4 if target in QKV | {"up_proj"} else self.width for target in self.targets}
        masks = dict.fromkeys(masks, 1) if self.device == "cuda" else masks
        return sum(LINEARS[target][0] * self.model.n_embd * (masks[target] + self.width) for target in self.targets)

    def weights_in_half(self) -> int:
        """Copies of a block's weights in half precision. FusedLoRA makes those of W0 anew instead of keeping them."""
        if self.width == 4:
            return 0
        anew = set() if self.full or self.config.lora_dropout else self.targets
        wide = sum(d_in * d_out for name, (d_in, d_out) in LINEARS.items() if name not in anew)
        return 2 * (wide * self.model.n_embd**2 + self.adapter // self.model.n_layer)

    # ---- moments -----------------------------------------------------------------------------------------------------

    def moments(self) -> Iterator[Moment]:
        """All that can be the fullest."""
        C, V, L = self.model.n_embd, self.model.vocab_size, self.model.n_layer
        x, block, again = 4 * self.positions * C, self.saved_by_block(), self.config.checkpoint_activations
        passing = self.positions * C * (5 * self.width + 4)  # gradients on their way through a block
        blocks = L * (x if again else block)
        kept_are = "what enters each" if again else "what its gradients need"
        blocks_are = f"{L} blocks × {size(x if again else block)}, {kept_are}"
        top = x + (self.n_graded * C * self.width if self.full else 0)  # inputs of ln_f and the head
        if self.width == 2:
            top += 2 * V * C  # the head's weights
        cast = L * self.weights_in_half() if again and self.full else 0  # autocast keeps them until the blocks are done
        one_is = "one block at work, with the gradients that pass through it"
        before = self.config.micro_batches > 1  # gradients of earlier micro-batches are there
        head = 1 if self.full else 0
        moment = self.moment
        yield moment("at the end of the forward pass", before, 0, blocks + cast + top, blocks_are, 1)
        yield moment("when the loss turns into gradients", before, 0, blocks + top, blocks_are, 3)
        yield moment("in the head's backward pass", before, head, blocks + top, blocks_are, 2)
        last = blocks + passing + (block if again else 0)
        yield moment("in the last block's backward pass", before, head, last, f"{blocks_are}; {one_is}", 1)
        yield moment("in the first block's backward pass", True, head * before, block + passing, one_is, 1)
        yield moment("at the end of the backward pass", True, head * (2 + before), x, "what entered the first block", 1)
        yield moment("in an evaluation", False, 0, x, "what leaves the last block", 3)
        if self.device == "cpu":
            both = f"2 × 4 bytes for each of {self.base:,}: those of the file and of the model"
            yield Moment("while the model is loaded", [Part("parameters", 8 * self.base, both), *self.around()[:1]])

    def moment(self, when: str, gradients: bool, heads: int, activations: int, they_are: str, logits: int) -> Moment:
        """gradients: whether those of all that learns are held; heads: how many more of wte; logits: copies."""
        V, n = self.model.vocab_size, self.base + self.adapter
        gradients_are = "4 bytes for each that learns" if gradients else "" if heads else "none then"
        if heads:
            gradients_are += f"{' + ' if gradients else ''}{heads} × 4 bytes × V × C: wte's, before they are added up"
        share = f", in {self.parts} parts" if self.parts > 1 else ""
        logits_are = f"{logits} × 4 bytes × N × V: {self.n_graded:,} graded tokens × {V:,} in the vocabulary"
        parts = [
            Part("parameters", 4 * n / self.parts, f"4 bytes for each of {n:,}{share}"),
            *self.collected(),
            Part(
                "gradients",
                4 * self.learning * gradients / self.parts + heads * self.head,
                gradients_are + share * bool(gradients),
            ),
            Part(
                "AdamW", 8 * self.learning / self.parts, f"2 × 4 bytes for each of {self.learning:,} that learn{share}"
            ),
            Part("activations", activations, they_are),
            Part("logits", logits * 4 * self.n_graded * V, logits_are),
        ]
        return Moment(when, parts + self.around())

    def collected(self) -> list[Part]:
        """What a rank holds whole of a model in parts: the embeddings, the block at work and the one to come."""
        if self.parts == 1:
            return []
        C, L = self.model.n_embd, self.model.n_layer
        embeddings = (self.model.vocab_size + self.model.block_size) * C
        blocks = min(2, L) * (12 * C * C + 13 * C + self.adapter // L)
        return [
            Part("collected", 4 * (embeddings + blocks), "4 bytes for each of the embeddings and of two blocks, whole")
        ]

    def around(self) -> list[Part]:
        """What is held beside tensors."""
        if self.device != "cpu":
            return [Part("context", CONTEXT, "the driver's: an estimate, not measured here")]
        python_is = f"{size(self.imported)} when imported + {size(BUFFERS)} at work"
        python = Part("Python, PyTorch", self.imported + BUFFERS, python_is)
        gaps = GAPS * self.model.n_layer * self.saved_by_block()
        return [python, Part("gaps", gaps, f"{GAPS} × what all blocks would keep: malloc's, between tensors freed")]

    def changed(self, **settings: Any) -> "Run":
        return Run(replace(self.config, **settings), self.model, self.imported)

    def peak(self) -> Moment:
        return max(self.moments(), key=Moment.total)


def size(n: float) -> str:
    """In words, with two or three digits."""
    if n == 0:
        return "0"
    return f"{n / 1e9:,.1f} GB" if n >= 999.5e6 else f"{n / 1e6:.0f} MB" if n >= 10e6 else f"{n / 1e6:.1f} MB"


def precision_of(name: str, device: torch.device, n_embd: int) -> torch.dtype:
    if name == "auto" and device.type == "cuda" and not torch.cuda.is_available():
        return torch.bfloat16  # what GPUs have had since 2020
    return choose_precision(name, device, n_embd)[0]


def memory_there(device: torch.device) -> float | None:
    """What this process may take of a GPU's memory, or of the machine's, what it has included; None if unknown."""
    if device.type == "cuda":
        share = getattr(torch.cuda, "get_per_process_memory_fraction", lambda device: 1.0)(device)
        return torch.cuda.get_device_properties(device).total_memory * share
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    try:
        import resource  # Unix alone has it, and Linux alone the files

        kb = dict(re.findall(r"^(\w+):\s+(\d+) kB", "".join(map(Path.read_text, PROC)), re.MULTILINE))
        held, reserved = int(kb["VmRSS"]) * 1024, int(kb["VmSize"]) * 1024
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        there = int(kb["MemAvailable"]) * 1024 + held
        return there if limit == resource.RLIM_INFINITY else min(there, limit - (reserved - held))
    except (ImportError, OSError, KeyError):
        return None

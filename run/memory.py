"""Where the memory of a training run goes, from its numbers alone.

A step holds different things at different moments, and the fullest moment is the peak. The sums are read off the code
of the model and of the loop: a tensor counts for as long as autograd, or a name in the loop, holds it.
Shapes: B rows · T tokens a row · P positions of a prefix before it, S = P + T · C channels · H heads · V vocabulary ·
N graded tokens · r rank. Sizes are in bytes.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from data.masked import CHOSEN
from model.bert import BERTConfig
from model.gpt import GPTConfig
from model.large_head import CHUNK, bytes_of_a_logit
from run.device import choose_precision, fused_attention_pays, head_in_chunks

COMPARED = ("reward", "dpo", "rlhf")  # methods that compare responses
QKV = {"q_proj", "k_proj", "v_proj"}
LINEARS = dict.fromkeys((*QKV, "o_proj"), (1, 1)) | {"up_proj": (1, 4), "down_proj": (4, 1)}  # d_in, d_out in C
IMPORTED = 235e6  # what Python and PyTorch hold once imported, where it is too late to measure
BUFFERS = 110e6  # what they add at work, measured
GAPS = 0.6  # of the activations: memory that malloc holds between tensors of many sizes, measured with glibc
CONTEXT = 500e6  # what a GPU's driver takes: an estimate, not measured
GPU_GAPS = 0.15  # of all tensors: what PyTorch's CUDA allocator holds between them, 4 to 27 % in five steps it counted


class Moment(NamedTuple):
    when: str
    parts: dict[str, tuple[float, str]]  # bytes, and their formula in words

    def total(self) -> float:
        return sum(n for n, _ in self.parts.values())


class Run:
    """The numbers that a run's memory depends on, and what follows from them."""

    def __init__(self, config: Any, shape: GPTConfig, imported: float = IMPORTED, memory: float | None = None) -> None:
        """config: run.plan's Config; shape: the model's; imported: what Python and PyTorch hold before the run; memory:
        what there is, if that is known, in bytes."""
        self.config, self.shape, self.imported, self.memory = config, shape, imported, memory
        device = torch.device(config.device)
        self.device = device.type
        is_unseen = config.precision == "auto" and self.device == "cuda" and not torch.cuda.is_available()
        precision = "bf16" if is_unseen else config.precision  # GPUs have had it since 2020
        self.precision = choose_precision(precision, device, shape.n_embd)[0]
        self.width = self.precision.itemsize  # of a number in matrix products: 4, or 2 in half precision
        self.mask = 1 if self.device == "cuda" else self.width  # of dropout: a bool, or a number like those it zeroes
        self.fused = fused_attention_pays(self.precision, device, config.block_size)
        self.learn = learn = config.learn if config.method in ("classifier", *COMPARED) else config.method
        self.full = learn in ("pretrain", "sft", "mlm", "all") or learn.startswith("last-")  # all of a block learns
        lora = {target.strip() for target in config.targets.split(",")} if learn == "lora" else set()
        self.targets = set(LINEARS) if self.full else lora  # layers whose input a gradient needs
        self.n_learning = int(learn.removeprefix("last-")) if learn.startswith("last-") else shape.n_layer  # blocks
        self.n_learning = 0 if learn == "head" else self.n_learning
        self.tied = config.method not in ("classifier", "reward")  # the head is the embedding
        self.n_classes = 1 if config.method == "reward" else config.classes
        self.n_logits = shape.vocab_size if self.tied else self.n_classes  # V, of a graded position
        self.is_masked = config.method in ("classifier", "reward", "mlm")  # padding, by a mask of each row
        self.bottlenecks = (1 if config.mlp_only else 2) if learn == "adapter" else 0  # of a block
        self.P = config.length if learn in ("prefix", "prompt") else 0
        self.rows_each = {"reward": 2, "dpo": 2, "rlhf": config.samples}.get(config.method, 1)  # of a pair, or prompt
        rows = math.ceil(config.batch_size / config.ranks) * self.rows_each  # B, of one rank
        self.positions = rows * config.block_size  # B T
        graded = min(config.graded, CHOSEN) if config.method == "mlm" else config.graded
        self.n_graded = max(1, round(graded * self.positions))  # N
        self.n_graded = rows if config.method == "reward" else self.n_graded
        # RLHF measures the logits' entropy too, and BERT makes them by itself
        for_loss_alone = self.tied and config.method != "rlhf" and not isinstance(shape, BERTConfig)
        self.compiled = config.compile and for_loss_alone and not config.shard  # the head, in one piece with the loss
        self.of_a_logit = bytes_of_a_logit(self.compiled, self.width)
        in_chunks = head_in_chunks(config, device, self.positions, shape.vocab_size, self.width, memory)
        self.in_chunks = in_chunks and for_loss_alone and self.n_graded > CHUNK
        self.n_at_once = CHUNK if self.in_chunks else self.n_graded  # positions whose logits are there at a time
        C = shape.n_embd
        self.block = 12 * C * C + 13 * C  # parameters of one block; below, of what is attached to it
        self.block_matrices = config.r * C * sum(sum(LINEARS[name]) for name in lora)
        self.block_matrices += self.bottlenecks * 2 * C * config.width
        self.block_adapter = self.block_matrices + self.bottlenecks * (C + config.width)
        self.block_adapter += 2 * C * self.P if learn == "prefix" else 0
        self.base = (shape.vocab_size + shape.block_size + 2) * C + shape.n_layer * self.block
        self.adapter = shape.n_layer * self.block_adapter + (C * self.P if learn == "prompt" else 0)
        self.adapter += 0 if self.tied else (C + 1) * self.n_classes  # the head
        self.learning = self.adapter + (self.base if self.full else 0)
        if learn.startswith("last-"):  # and the LayerNorm after them
            self.learning = self.adapter + self.n_learning * self.block + 2 * C
        self.parts = config.ranks if config.shard else 1  # in which weights, gradients and AdamW's numbers are held
        self.reference = self.base + self.adapter if config.method in ("dpo", "rlhf") else 0  # parameters, of π_ref
        self.rewarding = self.base + C + 1 if config.method == "rlhf" and config.reward != "exact" else 0

    # ---- activations: what autograd keeps for the backward pass ------------------------------------------------------

    def saved_by_block(self) -> int:
        """Of a block: the inputs of all that needs them for a gradient."""
        C, H, T, dropout = self.shape.n_embd, self.shape.n_head, self.config.block_size, self.config.dropout
        S = self.P + T
        kept = 2 * 4 * (C + 2)  # of a position: the LayerNorms' inputs, means and deviations, in fp32
        kept += (3 + 4) * C * self.width  # q, k, v; GELU's input
        if self.fused and (not dropout or self.device == "cuda"):
            kept += C * self.width + 4 * H  # attention's output, the input of o_proj too; the softmax's denominators
        else:
            kept += H * S * (self.width + (self.mask + self.width if dropout else 0))  # softmax; mask, what is left
            kept += C * self.width if "o_proj" in self.targets else 0
        kept += 2 * C * self.mask if dropout else 0
        kept += self.saved_by_linears() + (0 if self.full else len(self.targets) * self.config.r * self.width)  # z
        kept += self.bottlenecks * (C + 2 * self.config.width) * self.width  # inputs of down, gelu and up
        kept_of_rows = self.positions * kept + self.positions // T * self.P * 2 * C * self.width  # the prefix's k, v
        mask = 0 if self.fused and not self.P else T * S * (self.width if self.fused else 1)
        mask = self.positions * T * (self.width if self.fused else 1) if self.is_masked else mask
        return kept_of_rows + mask + self.weights_in_half()

    def saved_by_linears(self) -> int:
        """Of a position, the inputs of layers that learn: q, k and v share theirs, or make half-size copies. Where LoRA
        has dropout: of each its mask, in fp32 behind a LayerNorm, and what is left of its input."""
        C, width, targets = self.shape.n_embd, self.width, self.targets
        if self.config.lora_dropout and not self.full:
            masks = {name: 4 if self.device != "cuda" and name in QKV | {"up_proj"} else self.mask for name in targets}
            return sum(LINEARS[name][0] * C * (mask + width) for name, mask in masks.items())
        qkv = len(targets & QKV) if width == 2 else min(1, len(targets & QKV))
        return C * width * (qkv + ("up_proj" in targets) + 4 * ("down_proj" in targets))

    def weights_in_half(self) -> int:
        """Copies of a block's weights in half precision. FusedLoRA makes those of W0 anew instead of keeping them."""
        anew = set() if self.full or self.config.lora_dropout else self.targets
        wide = sum(d_in * d_out for name, (d_in, d_out) in LINEARS.items() if name not in anew)
        return 0 if self.width == 4 else 2 * (wide * self.shape.n_embd**2 + self.block_matrices)

    def saved_by_prompt(self) -> int:
        """Of a soft prompt, whose keys and values the model computes: a row of P tokens through all blocks, once."""
        if self.learn != "prompt":
            return 0
        row = self.changed(method="prefix", length=0, batch_size=1, ranks=1, block_size=self.P)
        return self.shape.n_layer * row.saved_by_block()

    # ---- moments -----------------------------------------------------------------------------------------------------

    def moments(self) -> Iterator[Moment]:
        """All that can be the fullest."""
        C, L, again = self.shape.n_embd, self.n_learning, self.config.checkpoint_activations
        x, block = 4 * self.positions * C, self.saved_by_block()
        each, each_is = (x, "what enters each") if again else (block, "what its gradients need")
        prompt = self.saved_by_prompt()
        prompt_is = f" + {size(prompt)}, the same of the soft prompt's row" if prompt else ""
        kept, kept_is = prompt + L * each, f"{L} blocks × {size(each)}, {each_is}{prompt_is}"
        head_width = 4 if self.in_chunks else self.width  # bytes
        head_input = self.n_graded * C * head_width if self.in_chunks or self.full or not self.tied else 0
        top = kept + x + head_input  # inputs of ln_f and the head
        top += 2 * self.n_logits * C if self.width == 2 else 0  # the head's weights
        cast = L * self.weights_in_half() if again and self.full else 0  # autocast keeps them until the blocks are done
        through = self.positions * C * (5 * self.width + 4)  # gradients on their way through a block
        one = prompt + block + through
        one_is = f"one block at work, with the gradients that pass through it{prompt_is}"
        last = kept + through + (block if again else 0)
        entered = f"what entered block 0{prompt_is}"
        before = self.config.micro_batches > 1  # gradients of earlier micro-batches are there
        head = 1 if self.full and self.tied else 0  # one gradient of wte, before it is added up
        logit = min(4, self.of_a_logit)  # bytes that the loss keeps of it
        held = 0 if self.in_chunks or self.compiled else 4  # and log_p, which has a name in the loop
        judged = min(CHUNK, self.n_graded) if self.compiled else self.n_at_once  # at a time, where nothing learns
        # gradients of all that learns · more of wte · activations and what they are · bytes of each logit
        yield self.moment("at the end of the forward pass", before, 0, top + cast, kept_is, logit)
        if self.reference:
            asked, asked_is = self.frozen_block()
            asked = max(asked, 8 * judged * self.n_logits if self.compiled else 0)
            yield self.moment("when the reference is asked", before, 0, top + asked, f"{kept_is}; {asked_is}", logit)
        chunk = head if self.in_chunks else 0  # the chunks before have one too, and their inputs' gradients are there
        top += head_input if self.in_chunks else 0
        yield self.moment("when the loss turns into gradients", before, chunk, top, kept_is, self.of_a_logit)
        yield self.moment("in the head's backward pass", before, head + chunk, top, kept_is, min(8, self.of_a_logit))
        if L:
            yield self.moment("in the last block's backward pass", before, head, last, f"{kept_is}; {one_is}", held)
            yield self.moment("in the first block's backward pass", True, head * before, one, one_is, held)
        if L < self.shape.n_layer:
            there, there_is = self.frozen_block()
            yield self.moment("in a block that does not learn", before, 0, there, there_is, 0)
        yield self.moment("at the end of the backward pass", True, head * (2 + before), prompt + x, entered, held)
        yield self.moment("in an evaluation", False, 0, x, "what leaves the last block", 8 + held, judged)

    def frozen_block(self) -> tuple[int, str]:
        """Of a block through which no gradient passes, at its MLP: the stream, what enters, and both sides of GELU."""
        C, T = self.shape.n_embd, self.config.block_size
        there = self.positions * (4 * C + 9 * C * self.width + (T if self.is_masked else 0))
        return there, "one block at work, of which nothing is kept"

    def moment(
        self, when: str, gradients: bool, heads: int, activations: int, they_are: str, logit: int, at_once: int = 0
    ) -> Moment:
        V, C, n = self.shape.vocab_size, self.shape.n_embd, self.base + self.adapter
        at_once = at_once or self.n_at_once
        share = f", in {self.parts} parts" if self.parts > 1 else ""
        gradients_are = [f"4 bytes for each that learns{share}"] * gradients
        gradients_are += [f"{heads} × 4 bytes × V × C: wte's, before they are added up"] * (heads > 0)
        parts = {"parameters": (4 * n / self.parts, f"4 bytes for each of {n:,}{share}")}
        if self.parts > 1:  # what a rank holds whole: the embeddings, the block at work and the one to come
            whole = (V + self.shape.block_size) * C + min(2, self.shape.n_layer) * (self.block + self.block_adapter)
            parts["collected"] = 4 * whole, "4 bytes for each of the embeddings and of two blocks, whole"
        if self.reference:
            beside, whose = self.reference + self.rewarding, " and the reward model" * (self.rewarding > 0)
            parts["asked"] = 4 * beside, f"4 bytes for each of {beside:,} in the reference{whose}, which do not learn"
        held = 4 * self.learning * gradients / self.parts + heads * 4 * V * C
        adamw_is = f"2 × 4 bytes for each of {self.learning:,} that learn{share}"
        some = at_once < self.n_graded
        graded = f"{at_once:,} {'of the ' * some}graded tokens{' at a time' * some}"
        of = f"{self.n_logits:,} {'in the vocabulary' if self.tied else 'classes'}"
        logits_are = f"{logit if logit % 4 else f'{logit // 4} × 4'} bytes × N × V: {graded} × {of}"
        parts["gradients"] = held, " + ".join(gradients_are) or "none then"
        parts["AdamW"] = 8 * self.learning / self.parts, adamw_is
        parts["activations"] = activations, they_are
        parts["logits"] = logit * at_once * self.n_logits, logits_are
        if self.device != "cpu":
            tensors = sum(n for n, _ in parts.values())
            parts["gaps"] = GPU_GAPS * tensors, f"{GPU_GAPS} × all of that: the allocator's, between tensors"
            parts["context"] = CONTEXT, "the driver's: an estimate, not measured here"
            return Moment(when, parts)
        python_is = f"{size(self.imported)} when imported + {size(BUFFERS)} at work"
        gaps_are = f"{GAPS} × what all blocks would keep: malloc's, between tensors freed"
        parts["Python, PyTorch"] = self.imported + BUFFERS, python_is
        parts["gaps"] = GAPS * self.shape.n_layer * self.saved_by_block(), gaps_are
        return Moment(when, parts)

    def changed(self, **settings: Any) -> "Run":
        return Run(replace(self.config, **settings), self.shape, self.imported, self.memory)

    def peak(self) -> Moment:
        return max(self.moments(), key=Moment.total)


def size(n: float) -> str:
    """In words, with two or three digits."""
    if n == 0:
        return "0"
    return f"{n / 1e9:,.1f} GB" if n >= 999.5e6 else f"{n / 1e6:.0f} MB" if n >= 10e6 else f"{n / 1e6:.1f} MB"

"""Who is measured: this project's model as its scripts use it, and the libraries a user would pick instead.

All do the same work on random weights of one shape: forward, loss, backward, gradient clipping, AdamW (PyTorch's fused
one, but for nanoGPT, which brings its own), zero_grad. Other libraries are imported only when they are to be measured.
"""

import contextlib
import importlib.util
import sys
import warnings
from collections.abc import Callable
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from data.batches import Batch, Batches
from data.examples import Example
from model.adapter import apply_adapter
from model.fused_lora import fuse
from model.generate import generate, lay_out_for_generation
from model.gpt import GPT, GPTConfig
from model.lora import apply_lora
from model.prefix import apply_prefix, apply_soft_prompt
from run.device import fused_attention_pays


class Shape(NamedTuple):
    n_layer: int
    n_head: int
    n_embd: int
    vocab_size: int
    T: int  # tokens a row
    B: int  # rows

    def model(self) -> GPTConfig:
        return GPTConfig(self.vocab_size, self.T, self.n_layer, self.n_head, self.n_embd)

    def flops_per_token(self) -> int:
        """Of a full training step: six for each matrix entry, and attention's two products (Chowdhery et al. 2022,
        app. B), here with their upper half, which causal kernels skip."""
        matrices = 12 * self.n_layer * self.n_embd**2 + self.vocab_size * self.n_embd
        return 6 * matrices + 12 * self.n_layer * self.n_embd * self.T


SHAPES = {
    "tiny": Shape(4, 4, 128, 2048, 128, 16),
    "small": Shape(6, 6, 384, 8192, 256, 8),
    "gpt2": Shape(12, 12, 768, 50257, 256, 2),
}
LORA: dict[str, Any] = {"r": 8, "alpha": 16.0, "dropout": 0.0}
FP32, BF16 = torch.float32, torch.bfloat16


def random_rows(shape: Shape, device: torch.device) -> Tensor:
    return torch.randint(shape.vocab_size, (shape.B, shape.T + 1), device=device)  # (B, T + 1)


def update(parameters: list[nn.Parameter]) -> Callable[[], None]:
    """What follows the backward pass, the same for all: clip, AdamW, zero_grad."""
    decayed = [p for p in parameters if p.dim() > 1]
    the_rest = [p for p in parameters if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": the_rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=True)

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


# ---- this project --------------------------------------------------------------------------------------------------


def our_model(shape: Shape, device: torch.device, precision: torch.dtype = FP32, compiled: bool = False) -> GPT:
    model = GPT(shape.model()).to(device)
    model.precision = precision
    for block in model.blocks:
        block.attn.fused = fused_attention_pays(precision, device, shape.T)
    if compiled:
        model.compile_model()
    return model


LENGTH, WIDTH = 16, 64  # of a prefix and a soft prompt, positions; of a bottleneck, channels
LEARN: dict[str, Callable[[GPT], list[nn.Parameter]]] = {  # method: what learns
    "full": lambda model: list(model.parameters()),
    "LoRA": lambda model: apply_lora(model, **LORA),
    "bottlenecks": lambda model: apply_adapter(model, WIDTH),
    "prefix": lambda model: apply_prefix(model, LENGTH),
    "soft prompt": lambda model: apply_soft_prompt(model, LENGTH),
}


def ours(model: GPT, method: str, next_batch: Callable[[], Batch], all_logits: bool = False) -> Callable[[], int]:
    """Step 6 of the scripts. Returns a step, which returns how many tokens it graded."""
    learns = LEARN[method](model)
    fuse(model)
    device, after = model.wte.weight.device, update(learns)

    def step() -> int:
        inputs, targets, graded, positions = (tensor.to(device) for tensor in next_batch())
        logits = model(inputs, None, positions)[graded] if all_logits else model(inputs, graded, positions)
        log_p = logits.log_softmax(-1)
        del logits  # in the scripts it has no name
        nll = -log_p.gather(-1, targets[graded].unsqueeze(-1)).squeeze(-1)
        (nll.sum() / len(nll)).backward()
        after()
        return len(nll)

    return step


def one_batch(rows: Tensor) -> Callable[[], Batch]:
    inputs, targets = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
    batch = Batch(inputs, targets, torch.ones_like(targets, dtype=torch.bool), torch.arange(targets.size(1)))
    return lambda: batch


def batches_of(examples: list[Example], B: int) -> Callable[[], Batch]:
    """The next micro-batch of the scripts' loader."""
    batches, steps = Batches(examples, B, 1, seed=0), count()
    return lambda: batches.of_step(next(steps))[0]


def our_generation(model: GPT, prompts: list[list[int]], new: int) -> Callable[[], int]:
    if model.wte.weight.device.type == "cpu":
        lay_out_for_generation(model)  # as sample.py and evaluate.py do
    return lambda: sum(map(len, generate(model, prompts, new)))


# ---- the others ----------------------------------------------------------------------------------------------------


def quiet() -> None:
    """Keeps the others' warnings about models without a name out of the tables."""
    import transformers

    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore")


def transformers_model(shape: Shape, device: torch.device, gelu: str = "gelu_new") -> Any:
    """GPT-2 with its own defaults, but without dropout and without a key-value cache while it trains.

    gelu_new, the default, is computed by five operations; gelu_pytorch_tanh is the same function in one kernel.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    quiet()
    L, H, C, V, T, _ = shape
    no_dropout: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    ids: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    size: dict[str, Any] = {"vocab_size": V, "n_positions": T, "n_layer": L, "n_head": H, "n_embd": C}
    config = GPT2Config(activation_function=gelu, use_cache=False, **size, **no_dropout, **ids)
    model: Any = GPT2LMHeadModel(config)
    return model.to(device).train()


def with_peft(model: Any, method: str = "LoRA") -> Any:
    from peft import get_peft_model

    return get_peft_model(model, peft_config(method)).train()


def peft_config(method: str = "LoRA") -> Any:
    import peft

    for_gpt2: dict[str, Any] = {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}
    if method == "LoRA":
        return peft.LoraConfig(r=LORA["r"], lora_alpha=LORA["alpha"], task_type="CAUSAL_LM", **for_gpt2)
    config = {"prefix": peft.PrefixTuningConfig, "soft prompt": peft.PromptTuningConfig}[method]
    return config(num_virtual_tokens=LENGTH, task_type="CAUSAL_LM")


def theirs(model: Any, rows: Tensor, precision: torch.dtype) -> Callable[[], int]:
    """A step of transformers' model, with PEFT's adapters or without; every token of the rows is a label."""
    inputs = rows[:, :-1].contiguous()
    return theirs_with_labels(model, lambda: {"input_ids": inputs, "labels": inputs}, precision)


def theirs_with_labels(
    model: Any, next_batch: Callable[[], dict[str, Tensor]], precision: torch.dtype = FP32
) -> Callable[[], int]:
    """The same on batches of one's own; the model's loss shifts the labels by itself."""
    after = update([p for p in model.parameters() if p.requires_grad])

    def step() -> int:
        batch = next_batch()
        with torch.autocast(batch["labels"].device.type, BF16, enabled=precision == BF16):
            loss = model(**batch).loss
        loss.backward()
        after()
        return int((batch["labels"] != -100).sum())

    return step


def in_their_form(next_batch: Callable[[], Batch], device: torch.device) -> Callable[[], dict[str, Tensor]]:
    """The same batches of instructions as PEFT's examples make them: whole rows, padded to the longest, a mask over the
    padding, and labels of -100 where nothing is graded. Their rows end with the last target, so they are one longer."""

    def batch() -> dict[str, Tensor]:
        inputs, targets, graded, _ = (tensor.to(device) for tensor in next_batch())
        ids = torch.cat([inputs[:, :1], targets], dim=1)  # (B, T + 1), since targets are inputs shifted by one
        graded = torch.nn.functional.pad(graded, (1, 0))
        real = graded.flip(1).cumsum(1).flip(1) > 0  # up to end-of-text, which is graded
        return {"input_ids": ids, "labels": ids.where(graded, -100), "attention_mask": real.long()}

    return batch


def nanogpt(folder: str, shape: Shape, rows: Tensor) -> Callable[[], int]:
    """A checkout of https://github.com/karpathy/nanoGPT, with the optimizer that it makes for itself."""
    inputs, targets = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
    spec = importlib.util.spec_from_file_location("nanogpt_model", Path(folder, "model.py"))
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    L, H, C, V, T, _ = shape
    with contextlib.redirect_stdout(None):
        config = module.GPTConfig(block_size=T, vocab_size=V, n_layer=L, n_head=H, n_embd=C, dropout=0.0, bias=True)
        model = module.GPT(config).to(rows.device)
        optimizer = model.configure_optimizers(0.1, 1e-4, (0.9, 0.95), rows.device.type)

    def step() -> int:
        _, loss = model(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return targets.numel()

    return step


def trl(model: Any, examples: list[Example], B: int, bf16: bool, lora: bool, folder: str) -> Callable[[], int]:
    """A step of TRL's SFTTrainer on the same examples: its loader, its collator, its loss, and AdamW as for all."""
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    quiet()
    # transformers shifts by one itself, so a label stands one place to the right of our target
    labels = [[-100, *np.where(example.graded, example.targets, -100).tolist()] for example in examples]
    ids = [[*example.inputs.tolist(), int(example.targets[-1])] for example in examples]
    columns = {"input_ids": ids, "labels": labels}
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"<pad>": 0}, "<pad>")), pad_token="<pad>")
    words.eos_token = "<pad>"
    args = SFTConfig(
        folder,
        per_device_train_batch_size=B,
        max_length=None,
        bf16=bf16,
        gradient_checkpointing=False,
        report_to="none",
        dataset_kwargs={"skip_prepare_dataset": True},
        use_cpu=next(model.parameters()).device.type == "cpu",
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    peft, data = peft_config() if lora else None, Dataset.from_dict(columns)
    trainer = SFTTrainer(model, args=args, train_dataset=data, processing_class=words, peft_config=peft)
    trainer.model = trainer.accelerator.prepare_model(trainer.model)  # as train() does: this is where bf16 comes in
    trainer.current_gradient_accumulation_steps = 1  # which train() would have set
    after = update([p for p in trainer.model.parameters() if p.requires_grad])

    batches = chain.from_iterable(trainer.get_train_dataloader() for _ in count())  # without end

    def step() -> int:
        batch = next(batches)
        n_graded = int((batch["labels"][:, 1:] != -100).sum())
        trainer.training_step(trainer.model, batch)
        after()
        return n_graded

    return step


def transformers_generation(model: Any, prompts: list[list[int]], new: int) -> Callable[[], int]:
    """Greedy, batched, with the prompts padded on the left and masked, as its documentation says."""
    model.eval()
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=model.device)  # (B, longest)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    how: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": new, "do_sample": False, "use_cache": True}
    return lambda: model.generate(ids, **how)[:, -new:].numel()

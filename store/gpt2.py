"""GPT-2's weights as the rest of the world stores them, in and out.

Hugging Face's GPT-2 differs from ours in names and layout, in nothing else: its weights are transposed, (d_in, d_out),
and c_attn is q, k and v in one.
"""

import dataclasses
import re
from typing import Any

import torch
from torch import Tensor

from model.gpt import GPTConfig
from model.head import Classes

SHAPES: dict[str, tuple[int, int, int]] = {  # n_layer, n_head, n_embd of the published models
    "gpt2": (12, 12, 768),
    "distilgpt2": (6, 12, 768),
    "gpt2-medium": (24, 16, 1024),
    "gpt2-large": (36, 20, 1280),
    "gpt2-xl": (48, 25, 1600),
}
SIZES = ("vocab_size", "n_positions", "n_layer", "n_head", "n_embd")  # as config.json calls them, in GPTConfig's order
QKV = ("attn.q_proj", "attn.k_proj", "attn.v_proj")
THEIRS = {"attn.o_proj": "attn.c_proj", "mlp.up_proj": "mlp.c_fc", "mlp.down_proj": "mlp.c_proj"}
OURS = {theirs: ours for ours, theirs in THEIRS.items()}

# What a config.json may say that changes what the model computes, and the one value that is built here.
BUILT = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}


def config_from(settings: dict[str, Any]) -> GPTConfig:
    """The shape that a config.json tells. Raises ValueError for a model that is not GPT-2 as it is built here."""
    for key, values in BUILT.items():
        if settings.get(key, values[0]) not in values:
            raise ValueError(f"{key} is {settings[key]!r}; only {values[0]!r} is built here")
    sizes: list[Any] = [settings.get(key) for key in SIZES]
    if not all(type(size) is int for size in sizes):
        raise ValueError(f"{', '.join(SIZES)} must be whole numbers")
    config = GPTConfig(*sizes)
    if settings.get("n_inner") not in (None, 4 * config.n_embd):
        raise ValueError(f"n_inner is {settings['n_inner']}; only 4 n_embd = {4 * config.n_embd} is built here")
    return config


def settings_from(
    config: GPTConfig, tokenizer: str, end_of_text: int, classes: Classes | None = None
) -> dict[str, Any]:
    """The config.json of a model of ours; tokenizer is a key of our own, which transformers leaves alone. Raises
    ValueError for what GPT-2 in transformers cannot do."""
    if not config.causal:
        raise ValueError("it sees both sides, which GPT-2 in transformers does not")
    if classes and classes.each == "word":
        raise ValueError("it tags words, and of GPT-2's heads only that of a text's class is written here")
    return {
        "architectures": ["GPT2ForSequenceClassification" if classes else "GPT2LMHeadModel"],
        **{key: values[0] for key, values in BUILT.items()},
        **dict(zip(SIZES, dataclasses.astuple(config), strict=False)),
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        # the class is read at the last token that is not padding; a score at end-of-text, so that cannot be padding
        "pad_token_id": end_of_text if classes and classes.each == "text" else None,
        "tokenizer": tokenizer,
    }


def shape_from(tensors: dict[str, Tensor]) -> GPTConfig:
    """The shape that the weights themselves tell; but for n_head, which is n_embd / 64 in all published sizes."""
    try:
        (V, C), (T, _) = tensors["wte.weight"].shape, tensors["wpe.weight"].shape
    except (KeyError, ValueError):
        raise ValueError("wte.weight and wpe.weight, the embeddings of GPT-2, are not in it") from None
    if C % 64:
        raise ValueError(f"its {C} channels do not make heads of 64: a config.json beside it must tell their number")
    n_layer = len({name.split(".")[1] for name in tensors if name.startswith("h.")})
    return GPTConfig(V, T, n_layer, C // 64, C)


def bare(name: str) -> str:
    """Without what transformers, PEFT, torch.compile and wrappers for several devices put before a weight's name."""
    return re.sub(r"^((module|base_model|model|transformer)\.)+", "", name.replace("_orig_mod.", ""))


def without_extras(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights, under the names of the published gpt2: bare, no causal masks, no copy of the tied head."""
    weights = {bare(name): tensor for name, tensor in tensors.items()}
    if len(weights) < len(tensors):
        raise ValueError("some weights are in it twice, under names that differ in what stands before them")
    head = weights.pop("lm_head.weight", None)
    if head is not None and not torch.equal(head.float(), weights.setdefault("wte.weight", head).float()):
        raise ValueError("lm_head.weight differs from wte.weight: a head that is not tied is not built here")
    return {name: tensor for name, tensor in weights.items() if not re.search(r"\.attn\.(masked_)?bias$", name)}


def weights_from(weights: dict[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """The weights under our names, in our layout. Takes them out of the dict one by one, so that each is there once."""
    ours: dict[str, Tensor] = {}
    while weights:
        name, tensor = weights.popitem()
        name = re.sub(r"^h\.", "blocks.", name)
        if name == "score.weight":  # of GPT2ForSequenceClassification, without a bias
            ours |= {"head.weight": tensor, "head.bias": torch.zeros(len(tensor))}
            continue
        if name.endswith(".weight") and re.search(r"\.c_\w+\.", name):
            tensor = tensor.T.contiguous()  # (d_in, d_out) -> (d_out, d_in)
        if ".c_attn." in name:
            if not tensor.dim() or tensor.size(0) != 3 * config.n_embd:
                raise ValueError(f"{name} is {tuple(tensor.shape)}, not q, k and v of {config.n_embd} channels")
            for proj, part in zip(QKV, tensor.chunk(3), strict=True):
                ours[name.replace("attn.c_attn", proj)] = part.clone()
        else:
            ours[re.sub(r"attn\.c_proj|mlp\.c_fc|mlp\.c_proj", lambda theirs: OURS[theirs[0]], name)] = tensor
    return ours


def weights_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The other way: a GPT's state dict in Hugging Face's names and layout. The tied head is not stored twice.

    A head of classes has no bias there: b moves into ln_f's bias β, as W (β + δ) = W β + b for δ = W⁺ b. Raises
    ValueError if there is no such δ, as with more classes than channels.
    """
    theirs = {}
    state = dict(state)
    if "head.weight" in state:
        theirs["score.weight"] = W = state.pop("head.weight")
        b = state.pop("head.bias")
        delta = torch.linalg.pinv(W.double()) @ b.double()
        if not torch.allclose(W.double() @ delta, b.double(), rtol=0, atol=1e-6):
            raise ValueError("its head has a bias that GPT-2's head of classes in transformers cannot have")
        state["ln_f.bias"] = (state["ln_f.bias"].double() + delta).float()
    for name, tensor in state.items():
        layer = next((layer for layer in (*QKV, *THEIRS) if f".{layer}." in name), "")
        if layer in QKV[1:]:
            continue  # they go with q
        if layer == QKV[0]:
            tensor = torch.cat([state[name.replace(layer, proj)] for proj in QKV])  # (3C, C) or (3C,)
        if layer:
            name = name.replace(layer, THEIRS.get(layer, "attn.c_attn"))
            tensor = tensor.T if tensor.dim() == 2 else tensor  # (d_out, d_in) -> (d_in, d_out)
        theirs["transformer." + re.sub("^blocks", "h", name)] = tensor
    return theirs

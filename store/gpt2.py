"""GPT-2's weights and their LoRA adapters as the rest of the world stores them, in and out.

Hugging Face's GPT-2 differs from ours in names and layout, in nothing else: its weights are transposed, (d_in, d_out),
and c_attn is q, k and v in one. Adapters (PEFT) are not transposed: A (r, d_in), B (d_out, r), as here.
"""

import dataclasses
import re
import reprlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.gpt import GPTConfig

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


def settings_from(config: GPTConfig, tokenizer: str, end_of_text: int) -> dict[str, Any]:
    """The config.json of a model of ours; tokenizer is a key of our own, which transformers leaves alone."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        **{key: values[0] for key, values in BUILT.items()},
        **dict(zip(SIZES, dataclasses.astuple(config), strict=False)),
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
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
    """The other way: a GPT's state dict in Hugging Face's names and layout. The tied head is not stored twice."""
    theirs = {}
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


# ---- adapters ------------------------------------------------------------------------------------------------------

PEFT = "base_model.model.transformer.h.{}.{}.lora_{}.weight"  # block, layer, A or B

# What an adapter_config.json may say, beside what is null, false or empty: one of these values, or anything for a key
# that is read below, or that does not change what the adapter computes.
UNDERSTOOD: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, "gaussian", "orthogonal"),  # others change W0 itself
}
HARMLESS = """lora_alpha alpha_pattern use_rslora r rank_pattern target_modules exclude_modules layers_to_transform
    layers_pattern fan_in_fan_out lora_dropout task_type inference_mode base_model_name_or_path revision auto_mapping
    peft_version megatron_core qalora_group_size""".split()


def adapter_from(tensors: dict[str, Tensor], settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """PEFT's adapter as ours: ({"r", "alpha", "targets"}, A and B by name). Raises ValueError for what LoRA is not.

    Which layers have one the tensors tell. One of c_attn becomes three with the same A: B's rows are q's, k's and v's.
    Ranks that differ are filled up with zeros to one r; columns of B that are zero are left out: B A stays as it is.
    """
    for key, value in settings.items():
        if value and value not in UNDERSTOOD.get(key, ()) and key not in HARMLESS:
            raise ValueError(f"{key} is {reprlib.repr(value)}, which is not built here")
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for path, block, layer, A, B in _pairs_of(tensors):
        B = B * _scaling(settings, path, A.size(0))
        parts = zip(QKV, B.chunk(3), strict=True) if layer == "attn.c_attn" else [(OURS[layer], B)]
        for place, rows in parts:
            used = rows.any(0)
            pairs[f"blocks.{block}.{place}"] = A[used], rows[:, used]
    r = max([1, *(A.size(0) for A, _ in pairs.values())])
    state = {}
    for place, (A, B) in pairs.items():
        state[f"{place}.lora_A"] = F.pad(A, (0, 0, 0, r - A.size(0)))
        state[f"{place}.lora_B"] = F.pad(B, (0, r - B.size(1)))
    return {"r": r, "alpha": float(r), "targets": sorted({place.split(".")[-1] for place in pairs})}, state


def _pairs_of(tensors: dict[str, Tensor]) -> Iterator[tuple[str, str, str, Tensor, Tensor]]:
    """Of each adapter: its layer's full name, its block and layer, A and B. Raises ValueError for what is none."""
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        path, _, half = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
        layers.setdefault(path, {})[half] = tensor.float()
    if not layers:
        raise ValueError("there is no adapter in it")
    for path, halves in sorted(layers.items()):
        match = re.fullmatch(r"h\.(\d+)\.(.+)", bare(path))
        if not match or match[2] not in (*OURS, "attn.c_attn") or not halves.keys() <= {"lora_A", "lora_B"}:
            raise ValueError(f"{path}.{sorted(halves)[-1]} is no adapter of a layer of GPT-2")
        if len(halves) < 2:
            raise ValueError(f"lora_A or lora_B of {path} is missing")
        A, B = halves["lora_A"], halves["lora_B"]
        thirds = 3 if match[2] == "attn.c_attn" else 1
        if A.dim() != 2 or B.dim() != 2 or not A.size(0) or A.size(0) != B.size(1) or B.size(0) % thirds:
            raise ValueError(f"A is {tuple(A.shape)} and B {tuple(B.shape)} in {path}: they do not fit")
        yield path, match[1], match[2], A, B


def _scaling(settings: dict[str, Any], layer: str, r: int) -> float:
    """PEFT's alpha / r, or with use_rslora alpha / √r; alpha_pattern names layers that have an alpha of their own."""
    patterns = settings.get("alpha_pattern") or {}
    own = [alpha for pattern, alpha in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", layer)]
    alpha = (own or [settings.get("lora_alpha")])[0]
    if not isinstance(alpha, int | float):
        raise ValueError(f"lora_alpha is {alpha!r}, expected a number")
    return alpha / (r**0.5 if settings.get("use_rslora") else r)


def adapter_of(state: dict[str, Tensor], r: int, alpha: float, base: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The other way: A and B of ours -> (PEFT's tensors, its adapter_config.json).

    The adapters of q, k and v become one of c_attn: of rank r if they have the same A, else of rank 3r (or 2r), with
    the As above one another and the Bs along the diagonal.
    """
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}  # of each layer
    for i in sorted({int(name.split(".")[1]) for name in state}):
        prefix = f"blocks.{i}."
        of_block = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        for layer, (A, B) in _as_theirs(of_block, r).items():
            tensors |= {PEFT.format(i, layer, "A"): A, PEFT.format(i, layer, "B"): B}
            ranks[f"h.{i}.{layer}"] = A.size(0)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": r,
        "lora_alpha": alpha,
        "rank_pattern": {layer: rank for layer, rank in ranks.items() if rank != r},
        "alpha_pattern": {layer: alpha * rank / r for layer, rank in ranks.items() if rank != r},
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": True,
        "target_modules": sorted({layer.split(".", 2)[2] for layer in ranks}),
        "inference_mode": True,
    }
    return tensors, settings


def _as_theirs(of_block: dict[str, Tensor], r: int) -> dict[str, tuple[Tensor, Tensor]]:
    """One block's adapters: Hugging Face's layer -> (A, B)."""
    pairs = {
        theirs: (of_block[f"{ours}.lora_A"], of_block[f"{ours}.lora_B"])
        for ours, theirs in THEIRS.items()
        if f"{ours}.lora_A" in of_block
    }
    found = [proj for proj in QKV if f"{proj}.lora_A" in of_block]
    if found:
        A = [of_block[f"{proj}.lora_A"] for proj in found]  # (r, C) each
        shared = all(torch.equal(A[0], other) for other in A)
        B = A[0].new_zeros(3, A[0].size(1), r if shared else r * len(found))  # (3, C, ..): the rows of q, k and v
        for n, proj in enumerate(found):
            start = 0 if shared else n * r
            B[QKV.index(proj), :, start : start + r] = of_block[f"{proj}.lora_B"]
        pairs["attn.c_attn"] = A[0] if shared else torch.cat(A), B.flatten(0, 1)  # (3C, ..)
    return pairs

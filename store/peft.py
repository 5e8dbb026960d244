"""What learns beside GPT-2 as PEFT stores it, in and out: LoRA's A and B, prefixes, soft prompts.

    LORA             A (r, d_in) and B (d_out, r) of each layer, as here; those of q, k and v are one, of c_attn
    PREFIX_TUNING    prompt_embeddings (P, n_layer 2 C): of each position the keys and values of all layers
    PROMPT_TUNING    prompt_embeddings (P, C)

The adapter_config.json beside the tensors tells which of them it is. PEFT has no bottlenecks (model/adapter.py).

Shapes:  r rank · P positions before a row · C channels · H heads · D = C / H head size
"""

import re
import reprlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cli import listed
from store.gpt2 import OURS, QKV, THEIRS, bare

Tensors = dict[str, Tensor]
Settings = dict[str, Any]

# What an adapter_config.json may say, beside what is null, false or empty: one of these values, or anything for a key
# that is read below, or that does not change what is computed. Of a prefix with a projection, PEFT saves what came out.
UNDERSTOOD: dict[str, tuple[Any, ...]] = {
    "task_type": ("CAUSAL_LM", "FEATURE_EXTRACTION"),
    "bias": ("none",),
    "init_lora_weights": (True, "gaussian", "orthogonal"),  # others change W0 itself
    "num_transformer_submodules": (1,),
}
HARMLESS = """peft_type inference_mode base_model_name_or_path revision auto_mapping peft_version
    lora_alpha alpha_pattern use_rslora r rank_pattern target_modules exclude_modules layers_to_transform
    layers_pattern fan_in_fan_out lora_dropout megatron_core qalora_group_size
    num_virtual_tokens token_dim num_attention_heads num_layers init_weights prefix_projection encoder_hidden_size
    prompt_tuning_init prompt_tuning_init_text tokenizer_name_or_path tokenizer_kwargs""".split()


def refuse_what_is_not_built(settings: Settings) -> None:
    """Raises ValueError for an adapter_config.json of another kind, or with a setting that is not understood."""
    kind = settings.get("peft_type")
    if kind not in list(FROM_PEFT):
        raise ValueError(f"peft_type is {reprlib.repr(kind)}; only {listed(FROM_PEFT)} can be read")
    for key, value in settings.items():
        known = UNDERSTOOD.get(key, ())
        if value and value not in known and key not in HARMLESS:
            only = f" (only {listed(map(repr, known))})" if known else ""
            raise ValueError(f"{key} is {reprlib.repr(value)}, which is not built here{only}")


def adapter_from(tensors: Tensors, settings: Settings) -> tuple[dict[str, Any], Tensors]:
    """PEFT's adapter as ours: how to attach it (model/switch.py), and its weights by name. Raises ValueError for
    tensors that are not what the settings tell."""
    note, weights = FROM_PEFT[settings["peft_type"]](tensors, settings)
    return note | {"name": "default"}, weights


def adapter_of(note: dict[str, Any], weights: Tensors, base: str) -> tuple[Tensors, Settings]:
    """The other way: PEFT's tensors and their adapter_config.json; base: the name of the model they stand beside.
    Raises KeyError for what PEFT has no place for, which is not in TO_PEFT."""
    tensors, settings = TO_PEFT[note["apply"]](note, weights)
    common = {"task_type": "CAUSAL_LM", "base_model_name_or_path": base, "inference_mode": True}
    return tensors, settings | common


# ---- prefixes and soft prompts -------------------------------------------------------------------------------------


def prefix_from(tensors: Tensors, settings: Settings) -> tuple[dict[str, Any], Tensors]:
    P, C, H, n_layer = _sizes(settings, "num_virtual_tokens", "token_dim", "num_attention_heads", "num_layers")
    if C % H:
        raise ValueError(f"token_dim {C} must be a multiple of num_attention_heads {H}")
    rows = _prompt_embeddings(tensors, P, n_layer * 2 * C)  # (P, n_layer 2 C)
    keys_values = rows.view(P, n_layer, 2, H, C // H).permute(1, 2, 3, 0, 4)  # (n_layer, 2, H, P, D)
    return {"apply": "prefix", "length": P}, {"prefix.keys_values": keys_values.contiguous()}


def prefix_of(note: dict[str, Any], weights: Tensors) -> tuple[Tensors, Settings]:
    keys_values = weights["prefix.keys_values"]
    n_layer, _, H, P, D = keys_values.shape
    rows = keys_values.permute(3, 0, 1, 2, 4).reshape(P, n_layer * 2 * H * D)
    sizes = {"num_virtual_tokens": P, "token_dim": H * D, "num_attention_heads": H, "num_layers": n_layer}
    return {"prompt_embeddings": rows}, {"peft_type": "PREFIX_TUNING", **sizes}


def prompt_from(tensors: Tensors, settings: Settings) -> tuple[dict[str, Any], Tensors]:
    P, C = _sizes(settings, "num_virtual_tokens", "token_dim")
    return {"apply": "prompt", "length": P}, {"prefix.embeddings": _prompt_embeddings(tensors, P, C)[None]}  # (1, P, C)


def prompt_of(note: dict[str, Any], weights: Tensors) -> tuple[Tensors, Settings]:
    [rows] = weights["prefix.embeddings"]  # (1, P, C) -> (P, C)
    sizes = {"num_virtual_tokens": rows.size(0), "token_dim": rows.size(1)}
    return {"prompt_embeddings": rows}, {"peft_type": "PROMPT_TUNING", **sizes}


def _sizes(settings: Settings, *keys: str) -> list[int]:
    sizes: list[Any] = [settings.get(key) for key in keys]
    if not all(type(size) is int and size > 0 for size in sizes):
        raise ValueError(f"{', '.join(keys)} of its adapter_config.json must be whole numbers above 0: {sizes}")
    return sizes


def _prompt_embeddings(tensors: Tensors, P: int, width: int) -> Tensor:
    if tensors.keys() != {"prompt_embeddings"}:
        raise ValueError(f"it must hold prompt_embeddings alone, it holds {listed(sorted(tensors))}")
    rows = tensors["prompt_embeddings"].float()
    if rows.shape != (P, width):
        raise ValueError(f"prompt_embeddings is {tuple(rows.shape)}, its adapter_config.json tells {(P, width)}")
    return rows


# ---- LoRA ----------------------------------------------------------------------------------------------------------

NAME = "base_model.model.transformer.h.{}.{}.lora_{}.weight"  # block, layer, A or B


def lora_from(tensors: Tensors, settings: Settings) -> tuple[dict[str, Any], Tensors]:
    """Which layers have A and B the tensors tell. One pair of c_attn becomes three with the same A: B's rows are q's,
    k's and v's. Ranks that differ are filled up with zeros to one r; columns of B that are zero are left out: B A stays
    as it is."""
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for path, block, layer, A, B in _pairs_of(tensors):
        B = B * _scaling(settings, path, A.size(0))
        parts = zip(QKV, B.chunk(3), strict=True) if layer == "attn.c_attn" else [(OURS[layer], B)]
        for place, rows in parts:
            used = rows.any(0)
            pairs[f"blocks.{block}.{place}"] = A[used], rows[:, used]
    r = max([1, *(A.size(0) for A, _ in pairs.values())])
    weights = {}
    for place, (A, B) in pairs.items():
        weights[f"{place}.lora_A"] = F.pad(A, (0, 0, 0, r - A.size(0)))
        weights[f"{place}.lora_B"] = F.pad(B, (0, r - B.size(1)))
    targets = sorted({place.split(".")[-1] for place in pairs})
    return {"apply": "lora", "r": r, "alpha": float(r), "targets": targets}, weights


def _pairs_of(tensors: Tensors) -> Iterator[tuple[str, str, str, Tensor, Tensor]]:
    """Of each adapter: its layer's full name, its block and layer, A and B. Raises ValueError for what is none."""
    layers: dict[str, Tensors] = {}
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


def _scaling(settings: Settings, layer: str, r: int) -> float:
    """PEFT's alpha / r, or with use_rslora alpha / √r; alpha_pattern names layers that have an alpha of their own."""
    patterns = settings.get("alpha_pattern") or {}
    own = [alpha for pattern, alpha in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", layer)]
    alpha = (own or [settings.get("lora_alpha")])[0]
    if not isinstance(alpha, int | float):
        raise ValueError(f"lora_alpha is {alpha!r}, expected a number")
    return alpha / (r**0.5 if settings.get("use_rslora") else r)


def lora_of(note: dict[str, Any], weights: Tensors) -> tuple[Tensors, Settings]:
    """The A and B of q, k and v become one pair of c_attn: of rank r if they have the same A, else of rank 3r (or 2r),
    with the As above one another and the Bs along the diagonal."""
    r, alpha = note["r"], note["alpha"]
    tensors: Tensors = {}
    ranks: dict[str, int] = {}  # of each layer
    for i in sorted({int(name.split(".")[1]) for name in weights}):
        prefix = f"blocks.{i}."
        of_block = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
        for layer, (A, B) in _as_theirs(of_block, r).items():
            tensors |= {NAME.format(i, layer, "A"): A, NAME.format(i, layer, "B"): B}
            ranks[f"h.{i}.{layer}"] = A.size(0)
    settings = {
        "peft_type": "LORA",
        "r": r,
        "lora_alpha": alpha,
        "rank_pattern": {layer: rank for layer, rank in ranks.items() if rank != r},
        "alpha_pattern": {layer: alpha * rank / r for layer, rank in ranks.items() if rank != r},
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": True,
        "target_modules": sorted({layer.split(".", 2)[2] for layer in ranks}),
    }
    return tensors, settings


def _as_theirs(of_block: Tensors, r: int) -> dict[str, tuple[Tensor, Tensor]]:
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


# ---- which is which ------------------------------------------------------------------------------------------------

FROM_PEFT: dict[str, Callable[[Tensors, Settings], tuple[dict[str, Any], Tensors]]] = {
    "LORA": lora_from, "PREFIX_TUNING": prefix_from, "PROMPT_TUNING": prompt_from,
}  # fmt: skip
TO_PEFT: dict[str, Callable[[dict[str, Any], Tensors], tuple[Tensors, Settings]]] = {
    "lora": lora_of, "prefix": prefix_of, "prompt": prompt_of,
}  # fmt: skip

"""BERT's and DistilBERT's weights as the rest of the world stores them, in and out.

They differ from ours in names, in nothing else.
"""

import re
from typing import Any

import torch
from torch import Tensor

from cli import listed
from model.bert import BERT, EPS, BERTConfig
from model.head import Classes

# vocab_size, n_layer and segments of the published models; all have 12 heads and 768 channels
SHAPES: dict[str, tuple[int, int, int]] = {
    "bert-base-uncased": (30522, 12, 2),
    "bert-base-cased": (28996, 12, 2),
    "distilbert-base-uncased": (30522, 6, 0),
}

# Ours, and theirs of BERT and of DistilBERT: of the model, then of a block.
NAMES = {
    "wte": ("bert.embeddings.word_embeddings", "distilbert.embeddings.word_embeddings"),
    "wpe": ("bert.embeddings.position_embeddings", "distilbert.embeddings.position_embeddings"),
    "wse": ("bert.embeddings.token_type_embeddings", ""),
    "ln_e": ("bert.embeddings.LayerNorm", "distilbert.embeddings.LayerNorm"),
    "pooler": ("bert.pooler.dense", "pre_classifier"),
    "transform": ("cls.predictions.transform.dense", "vocab_transform"),
    "ln_t": ("cls.predictions.transform.LayerNorm", "vocab_layer_norm"),
    "": ("cls.predictions", "vocab_projector"),  # its bias alone: the matrix is wte's
    "head": ("classifier", "classifier"),
    "attn.q_proj": ("attention.self.query", "attention.q_lin"),
    "attn.k_proj": ("attention.self.key", "attention.k_lin"),
    "attn.v_proj": ("attention.self.value", "attention.v_lin"),
    "attn.o_proj": ("attention.output.dense", "attention.out_lin"),
    "ln_1": ("attention.output.LayerNorm", "sa_layer_norm"),
    "mlp.up_proj": ("intermediate.dense", "ffn.lin1"),
    "mlp.down_proj": ("output.dense", "ffn.lin2"),
    "ln_2": ("output.LayerNorm", "output_layer_norm"),
}
BLOCKS = ("bert.encoder.layer", "distilbert.transformer.layer")
SIZES = {  # what config.json calls vocab_size, block_size, n_layer, n_head, n_embd, and 4 n_embd
    "bert": (
        "vocab_size",
        "max_position_embeddings",
        "num_hidden_layers",
        "num_attention_heads",
        "hidden_size",
        "intermediate_size",
    ),
    "distilbert": ("vocab_size", "max_position_embeddings", "n_layers", "n_heads", "dim", "hidden_dim"),
}

# What a config.json may say that changes what the model computes, and the one value that is built here.
BUILT = {
    "hidden_act": "gelu",
    "activation": "gelu",
    "layer_norm_eps": EPS,
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
BEFORE_A_HEAD = ("pooler", "transform", "ln_t", "bias")  # begin anew where a file lacks them
# What no model of ours has: the next sentence's head, and copies of other tensors.
LEFT_OUT = r"position_ids$|seq_relationship|cls\.predictions\.decoder\.|vocab_projector\.weight$"


def config_named(name: str) -> BERTConfig:
    """The shape of a published model."""
    vocab_size, n_layer, segments = SHAPES[name]
    return BERTConfig(vocab_size=vocab_size, n_layer=n_layer, segments=segments)


def config_from(settings: dict[str, Any]) -> BERTConfig:
    """The shape that a config.json tells. Raises ValueError for a model that is not BERT as it is built here."""
    for key, value in BUILT.items():
        if settings.get(key, value) != value:
            raise ValueError(f"{key} is {settings[key]!r}; only {value!r} is built here")
    keys = SIZES[settings["model_type"]]
    sizes: list[Any] = [settings.get(key) for key in keys]
    if not all(type(size) is int for size in sizes):
        raise ValueError(f"{', '.join(keys)} must be whole numbers")
    segments = settings.get("type_vocab_size", 2) if settings["model_type"] == "bert" else 0
    vocab_size, block_size, n_layer, n_head, n_embd, inner = sizes
    config = BERTConfig(vocab_size, block_size, n_layer, n_head, n_embd, segments=segments)
    if inner != 4 * n_embd:
        raise ValueError(f"{keys[5]} is {inner}; only 4 {keys[4]} = {4 * n_embd} is built here")
    if settings["model_type"] == "bert" and segments != 2:
        raise ValueError(f"type_vocab_size is {segments}; only 2 is built here")
    return config


def settings_from(config: BERTConfig, pad: int, classes: Classes | None) -> dict[str, Any]:
    """The config.json of a model of ours. Raises ValueError for a head that transformers has not."""
    kind, model_type = ("Bert", "bert") if config.segments else ("DistilBert", "distilbert")
    if classes and classes.each == "response":
        raise ValueError("it scores a response at its end, and BERT's heads in transformers read a text's first token")
    each = {"text": "SequenceClassification", "word": "TokenClassification"}[classes.each] if classes else "MaskedLM"
    sizes = (config.vocab_size, config.block_size, config.n_layer, config.n_head, config.n_embd, 4 * config.n_embd)
    only = {"type_vocab_size": config.segments, "hidden_act": "gelu"} if config.segments else {"activation": "gelu"}
    return {
        "architectures": [f"{kind}For{each}"],
        "model_type": model_type,
        **dict(zip(SIZES[model_type], sizes, strict=True)),
        "layer_norm_eps": EPS,
        "pad_token_id": pad,
        **only,
    }


def theirs(name: str, config: BERTConfig) -> str:
    """Their name of a weight of ours."""
    which = 0 if config.segments else 1
    parts = re.fullmatch(r"(?:blocks\.(\d+)\.)?(.*?)\.?(weight|bias)", name)
    assert parts is not None
    block = f"{BLOCKS[which]}.{parts[1]}." if parts[1] else ""
    return f"{block}{NAMES[parts[2]][which]}.{parts[3]}"


def bare(name: str) -> str:
    """Without what wrappers put before a weight's name; the published files call LayerNorm's weights gamma and beta."""
    name = re.sub(r"^((module|base_model|model|bert|distilbert)\.)+", "", name.replace("_orig_mod.", ""))
    return re.sub("gamma$", "weight", re.sub("beta$", "bias", name))


def weights_from(tensors: dict[str, Tensor], config: BERTConfig) -> dict[str, Tensor]:
    """The weights under our names. What stands before a head that the file does not have begins anew, and is named."""
    found = {bare(name): tensor for name, tensor in tensors.items()}
    given = set(found)
    if len(given) < len(tensors):
        raise ValueError("some weights are in it twice, under names that differ in what stands before them")
    with torch.device("meta"):
        own = BERT(config).state_dict()
    ours: dict[str, Tensor] = {}
    for name, tensor in own.items():
        their = bare(theirs(name, config))
        if their not in found and not name.startswith(BEFORE_A_HEAD):
            raise ValueError(f"it lacks {their}")
        ours[name] = found.pop(their) if their in found else begun(name, tensor.shape)
    if anew := [name for name in own if bare(theirs(name, config)) not in given]:
        print(f"weights that the model does not have begin anew: {listed(anew)}")
    for name in ("cls.predictions.decoder.weight", "vocab_projector.weight"):
        if name in found and not torch.equal(found[name].float(), ours["wte.weight"].float()):
            raise ValueError(f"{name} differs from the embedding: a head that is not tied is not built here")
    for name in ("head.weight", "head.bias"):
        if name.replace("head", "classifier") in found:
            ours[name] = found.pop(name.replace("head", "classifier"))
    if more := [name for name in found if not re.search(LEFT_OUT, name)]:
        raise ValueError(f"it has {more[0]}, which is not built here")
    return ours


def begun(name: str, shape: torch.Size) -> Tensor:
    """Initial weights as BERT's, the same each time: what is frozen must come back as it was."""
    if name.endswith("bias"):
        return torch.zeros(shape)
    normal = torch.empty(shape).normal_(std=0.02, generator=torch.Generator().manual_seed(0))
    return torch.ones(shape) if name.startswith("ln_") else normal


def weights_of(state: dict[str, Tensor], config: BERTConfig, classes: Classes | None) -> dict[str, Tensor]:
    """The other way: a BERT's state dict in Hugging Face's names, without what its head does not use."""
    unused = ("pooler",) if classes is None else ("transform", "ln_t", "bias")
    unused = ("pooler", *unused) if classes and classes.each == "word" else unused
    return {theirs(name, config): tensor for name, tensor in state.items() if not name.startswith(unused)}

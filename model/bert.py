"""BERT's encoder (Devlin et al. 2019), to be read beside model/gpt.py: tokens in, logits of the tokens themselves out.

What differs from an encoder of GPT's blocks: LayerNorm comes after each half of a block, not before it; an embedding
tells the first text of a pair from the second; GELU is the exact one; and a small network of its own stands before each
head. DistilBERT (Sanh et al. 2019) has no segments, and ReLU instead of tanh before the head of a text's class.

Shapes:  B batch · T time (tokens in a row) · C channels (n_embd) · V vocabulary, or classes · N graded positions
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.gpt import GPT, Cache, CausalSelfAttention, GPTConfig, LayerCache, visible_in

EPS = 1e-12  # what LayerNorm adds to the variance; 1e-5 in GPT-2


@dataclass
class BERTConfig(GPTConfig):
    vocab_size: int = 30522  # V, tokens the model can read and write
    block_size: int = 512  # longest row, in tokens: as many positions are learned
    causal: bool = False  # a position sees all of its own example
    segments: int = 2  # embeddings that tell one text from another; 0: none, as in DistilBERT
    sep: int = 102  # id of [SEP], behind which the second text begins


class MLP(nn.Module):
    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.down_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.up_proj(x)))  # (B, T, 4C) inside; x Φ(x), by erf


class Block(nn.Module):
    """Post-LayerNorm: each half adds to the stream, and the sum is normalised (Vaswani et al. 2017, sec. 3.1)."""

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.attn = CausalSelfAttention(config)  # causal by its mask alone, which here lets both sides be seen
        self.ln_1 = nn.LayerNorm(config.n_embd, EPS)
        self.mlp = MLP(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, EPS)
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()

    def forward(self, x: Tensor, visible: Tensor | None, cache: LayerCache | None = None) -> Tensor:
        x = self.ln_1(x + self.dropout(self.attn(x, visible, cache)))
        x = self.ln_2(x + self.dropout(self.mlp(x)))
        return x  # (B, T, C)


class BERT(GPT):
    """An encoder: p(token | the tokens on both of its sides). What scripts ask of a GPT, they may ask of it.

    head: None, and the head is that of the masked language model; or a Linear of C to classes. A BERT carries along
    what stands before the head that it does not use, as it was.
    """

    config: BERTConfig

    def __init__(self, config: BERTConfig) -> None:
        nn.Module.__init__(self)  # none of GPT's own parts
        C = config.n_embd
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, C)  # what a token is; also the masked language model's head (tied)
        self.wpe = nn.Embedding(config.block_size, C)  # where it stands
        self.wse = nn.Embedding(config.segments, C) if config.segments else None  # in which text of a pair
        self.ln_e = nn.LayerNorm(C, EPS)
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))  # type: ignore[assignment]
        self.pooler = nn.Linear(C, C)  # before the head of a text's class
        self.transform = nn.Linear(C, C)  # before the head of the masked language model
        self.ln_t = nn.LayerNorm(C, EPS)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))  # of that head, one a token
        self.register_module("head", None)
        self.prefix = None
        self.attached = []
        self._init_weights()

    def _init_weights(self) -> None:
        """Weights from N(0, 0.02²), biases 0 (Devlin et al. 2019, in their code, there truncated)."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def segments_of(self, tokens: Tensor) -> Tensor:
        """0 up to the first [SEP] of a row and at it, 1 behind it: (B, T), from ids (B, T)."""
        is_sep = (tokens == self.config.sep).long()
        return (is_sep.cumsum(-1) - is_sep).clamp(max=1)

    def used_pooler(self) -> nn.Linear | None:
        """What stands before the head for a text's class: the pooler. A word's class has none."""
        is_of_text = any(note.get("each") == "text" for note in self.attached)
        return self.pooler if is_of_text else None

    def hidden(self, tokens: Tensor, positions: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """The last layer's state at every position, where any head can sit.

        tokens: (B, T) ids below vocab_size, as [CLS] text [SEP] or [CLS] text [SEP] text [SEP]; positions: where they
        stand, by default 0, 1, … T - 1, (T,); of padded rows where in their own example, (B, T), so that no one sees
        padding. Returns (B, T, C). Raises ValueError for rows beyond block_size, and for a cache.
        """
        T = tokens.size(1)
        if T > self.config.block_size:
            raise ValueError(f"a row of {T} tokens is longer than the model's block_size {self.config.block_size}")
        if cache is not None:
            raise ValueError("only a causal model can have a cache")
        if positions is None:
            positions = torch.arange(T, device=tokens.device)
        if positions.dim() == 2:
            visible = visible_in(positions, causal=False)  # (B, 1, T, T)
        else:
            visible = torch.ones(T, T, dtype=torch.bool, device=tokens.device)
        with self.autocast():
            x = self.wte(tokens) + self.wpe(positions)  # (B, T, C)
            if self.wse is not None:
                x = x + self.wse(self.segments_of(tokens))
            x = self.dropout(self.ln_e(x))
            for block in self.blocks:
                if self.checkpoint_activations and torch.is_grad_enabled():
                    x = checkpoint(block, x, visible, use_reentrant=False)
                else:
                    x = block(x, visible, None)
            return x  # (B, T, C)

    def forward(
        self,
        tokens: Tensor,
        graded: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Logits of the token that stands at each position, or of the classes with a head of its own; or only of the
        positions that are graded.

        tokens: (B, T) ids; graded: (B, T) bool; positions as in hidden. Returns (B, T, V), or (N, V) with graded, row
        by row, in fp32 in any precision.
        """
        h = self.hidden(tokens, positions, cache)  # (B, T, C)
        if graded is not None:
            h = h[graded.nonzero(as_tuple=True)]  # (N, C), as in model/gpt.py
        with self.autocast():
            if self.head is None:
                h = self.ln_t(F.gelu(self.transform(h)))
                logits = F.linear(h, self.wte.weight, self.bias)  # (B, T, V) or (N, V)
            else:
                pooler, activation = self.used_pooler(), torch.tanh if self.config.segments else F.relu
                h = h if pooler is None else activation(pooler(h))
                logits = self.head(self.dropout(h))  # (B, T, V) or (N, V)
        return logits.float()


def built(config: GPTConfig) -> GPT:
    """The model that a config is of."""
    return BERT(config) if isinstance(config, BERTConfig) else GPT(config)

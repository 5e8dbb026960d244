"""The GPT-2 decoder (Radford et al. 2019), in plain PyTorch: tokens in, logits of the next token out.

With causal=False the same blocks are an encoder, which sees both sides; with a head of its own, logits of classes.

Shapes:  B batch · T time (tokens in a row) · C channels (n_embd) · H heads · D = C / H head size
         V vocabulary, or classes · N graded positions · S time with the cache's tokens (S = T without one)
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.large_head import log_p_to_compile, logits_of_loss, padded_linear


@dataclass
class GPTConfig:
    vocab_size: int = 50257  # V, tokens the model can read and write
    block_size: int = 1024  # longest row, in tokens: as many positions are learned
    n_layer: int = 12  # blocks
    n_head: int = 12  # H, attention heads a block
    n_embd: int = 768  # C, channels
    dropout: float = 0.0  # share of activations zeroed while training
    causal: bool = True  # a position sees what stands to its left; False: all of its own example

    def __post_init__(self) -> None:
        sizes = (self.vocab_size, self.block_size, self.n_layer, self.n_head, self.n_embd)
        if min(sizes) < 1:
            raise ValueError(f"every size of a GPT must be at least 1, got {self}")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} must be a multiple of n_head {self.n_head}")


class LayerCache(Protocol):
    """The keys and values that a layer has computed so far; those in use: model/generate.py, model/prefix.py."""

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]: ...


class Cache(Protocol):
    layers: Sequence[LayerCache]

    def begin(self, T: int) -> tuple[Tensor, Tensor | None]: ...


def visible_in(positions: Tensor, causal: bool) -> Tensor:
    """Who may look where: at its own example only, and if causal at itself and to its left only.

    positions: (B, T), 0 where an example begins, as in packed rows. Padding counts as examples of its own, so that no
    one sees it. Returns (B, 1, T, T) bool.
    """
    example = (positions == 0).cumsum(-1)  # (B, T), 1, 1, 1, 2, 2, …
    same = example[:, :, None] == example[:, None, :]  # (B, T, T)
    return (same.tril() if causal else same)[:, None]


def to_the_left(T: int, S: int, device: torch.device) -> Tensor:
    """The causal mask, (T, S) bool: the queries are the last T of S positions, and each sees itself and to its left."""
    return torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T)


def written_out_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, dropout: float) -> Tensor:
    """softmax(q kᵀ / √D) v, one step a line (Vaswani et al. 2017, eq. 1; SLP3, ch. 9).

    q: (B, H, T, D), k and v: (B, H, S, D), the queries being the last T of the S; visible: (B, 1, T, S), or (T, S) for
    all rows, true where a query may look, or None for "at itself and to its left". Returns (B, H, T, D).
    """
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))  # (B, H, T, S)
    if visible is None:
        visible = to_the_left(q.size(-2), k.size(-2), q.device)
    weights = scores.masked_fill(~visible, -math.inf).softmax(dim=-1)  # (B, H, T, S), each row sums to 1
    return F.dropout(weights, dropout) @ v  # (B, H, T, D)


def fused_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, dropout: float) -> Tensor:
    """The same function as written_out_attention, in one kernel that never stores the weights. The kernel's own causal
    mask is for whole rows; one new token a row sees all before it and needs none."""
    T, S = q.size(-2), k.size(-2)
    if visible is None and 1 < T < S:
        visible = to_the_left(T, S, q.device)
    whole_rows = True if visible is None and T == S else False  # noqa: SIM210, a bool when compiled
    return F.scaled_dot_product_attention(q, k, v, visible, dropout, is_causal=whole_rows)


class CausalSelfAttention(nn.Module):
    fused = True  # the switch: CausalSelfAttention.fused = False steps through written_out_attention

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head, self.dropout = config.n_head, config.dropout
        self.q_proj = nn.Linear(config.n_embd, config.n_embd)
        self.k_proj = nn.Linear(config.n_embd, config.n_embd)
        self.v_proj = nn.Linear(config.n_embd, config.n_embd)
        self.o_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, visible: Tensor | None, cache: LayerCache | None) -> Tensor:
        B, T, C = x.shape
        q = self.q_proj(x).view(B, T, self.n_head, -1).transpose(1, 2)  # (B, H, T, D)
        k = self.k_proj(x).view(B, T, self.n_head, -1).transpose(1, 2)  # (B, H, T, D)
        v = self.v_proj(x).view(B, T, self.n_head, -1).transpose(1, 2)  # (B, H, T, D)
        if cache is not None:
            k, v = cache.extend(k, v)  # (B, H, S, D) each
        attention = fused_attention if self.fused else written_out_attention
        y = attention(q, k, v, visible, self.dropout if self.training else 0.0)  # (B, H, T, D)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, C))  # (B, T, C)


class MLP(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.down_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))  # (B, T, 4C) inside


class Block(nn.Module):
    """Pre-LayerNorm: each half reads a normalised copy of the residual stream and adds to it."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()

    def forward(self, x: Tensor, visible: Tensor | None, cache: LayerCache | None) -> Tensor:
        x = x + self.dropout(self.attn(self.ln_1(x), visible, cache))
        x = x + self.dropout(self.mlp(self.ln_2(x)))
        return x  # (B, T, C)


class GPT(nn.Module):
    """A decoder-only language model: p(next token | tokens so far).

    head: None, and the head is the tied embedding; or a Linear of C to the classes that are predicted instead.
    """

    head: nn.Linear | None

    precision = torch.float32  # of the matrix products; bfloat16 is faster where the device has it (run/device.py)
    compiled = False  # whether the blocks are, by compile_model
    compiled_log_p: Callable | None = None  # the head and the loss, if they are
    checkpoint_activations = False  # True: keep only what enters a block, and compute the rest again for the gradients
    head_in_chunks = False  # True: the same for the logits, of which a part at a time is there (model/large_head.py)
    head_padded = False  # True: rows of zeros make the head a multiple of 64 while training, which GPUs multiply faster

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)  # what a token is; also the head (tied)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)  # where it stands
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.blocks: list[Block] = nn.ModuleList(Block(config) for _ in range(config.n_layer))  # type: ignore[assignment]
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.register_module("head", None)
        self.prefix: Any = None  # what stands before every row, if anything does (model/prefix.py)
        self.attached: list[dict[str, Any]] = []  # what stands beside these weights, and how to put it there again
        self._init_weights()

    def _init_weights(self) -> None:
        """Weights from N(0, 0.02²), biases 0; what adds to the residual stream is scaled by 1/√(2 n_layer),
        since 2 n_layer such terms add up (Radford et al. 2019, sec. 2.3)."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                adds_to_stream = name.endswith(("o_proj", "down_proj"))
                std = 0.02 / math.sqrt(2 * self.config.n_layer) if adds_to_stream else 0.02
                nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def compile_model(self, with_loss: bool = True) -> None:
        """torch.compile for each block; a block with a cache that grows goes on uncompiled. And for the head, in one
        piece with the loss that the scripts write: where all that is read of the logits is the targets'."""
        self.compiled = True
        self.compiled_log_p = torch.compile(log_p_to_compile) if with_loss else None
        torch._dynamo.config.recompile_limit = 64  # rows of one length or any, packed, with gradients and without: 9
        for block in self.blocks:
            block.compile()

    def autocast(self) -> AbstractContextManager:
        """Where matrix products run in `precision`; the residual stream, LayerNorm and the logits stay in fp32."""
        exact = self.precision == torch.float32
        return nullcontext() if exact else torch.autocast(self.wte.weight.device.type, self.precision)

    def hidden(self, tokens: Tensor, positions: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """The last layer's state at every position, where any head can sit.

        tokens: (B, T) ids below vocab_size; positions: where they stand, by default 0, 1, … T - 1, (T,); of packed
        rows, and of padded ones if the model sees both sides, where in their own example, (B, T); a cache knows them
        itself. Returns (B, T, C). Raises ValueError for rows beyond block_size, or what a prefix leaves of it, and for
        positions beside a cache.
        """
        T, visible, grows = tokens.size(1), None, cache is not None
        if T > self.config.block_size:
            raise ValueError(f"a row of {T} tokens is longer than the model's block_size {self.config.block_size}")
        if grows and (positions is not None or not self.config.causal):
            raise ValueError("a cache tells itself where its tokens stand, and only a causal model can have one")
        if self.prefix is not None and not grows:
            cache = self.prefix(self, positions)  # a prefix is a cache, too; None while it is switched off
        if cache is not None:
            positions, visible = cache.begin(T)  # (T,) or (B, T); None, (T, S) or (B, 1, T, S)
        elif positions is None:
            positions = torch.arange(T, device=tokens.device)
        if positions.dim() == 2 and cache is None:
            visible = visible_in(positions, self.config.causal)  # (B, 1, T, T)
        elif not self.config.causal:
            visible = torch.ones(T, T, dtype=torch.bool, device=tokens.device)
        with self.autocast():
            x = self.dropout(self.wte(tokens) + self.wpe(positions))  # (B, T, C)
            for layer, block in enumerate(self.blocks):
                kv = None if cache is None else cache.layers[layer]
                if self.checkpoint_activations and torch.is_grad_enabled() and not grows:
                    x = checkpoint(block, x, visible, kv, use_reentrant=False)
                else:
                    with torch.compiler.set_stance("force_eager") if self.compiled and grows else nullcontext():
                        x = block(x, visible, kv)
            return self.ln_f(x)  # (B, T, C)

    def forward(
        self,
        tokens: Tensor,
        graded: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Logits of the token that follows each position (of the classes, with a head of its own), or only of the
        positions that are graded.

        tokens: (B, T) ids; graded: (B, T) bool; positions as in hidden. Returns (B, T, V), or (N, V) with graded, row
        by row: the other logits are never computed. They are fp32 in any precision, for a loss that is. With
        head_in_chunks, or compiled, what is returned may stand for them in the loss (model/large_head.py).
        """
        h = self.hidden(tokens, positions, cache)  # (B, T, C)
        if graded is not None:
            h = h[graded.nonzero(as_tuple=True)]  # (N, C): h[graded] would look for them in the backward pass again
            if self.head_in_chunks or self.compiled_log_p:
                return logits_of_loss(self, h)  # type: ignore[return-value]  # to the loss they are the same
        return self.logits(h)

    def logits(self, h: Tensor) -> Tensor:
        """Of states, (…, C): (…, V)."""
        with self.autocast():
            if self.head is not None:
                return self.head(h).float()
            linear = padded_linear if self.head_padded and torch.is_grad_enabled() else F.linear
            return linear(h, self.wte.weight).float()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout inside the with block, and in the mode that was there before after it, whatever happens."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)

"""Writing text: one token after another, each drawn from the model's distribution given all before it.

A key-value cache keeps what every layer computed for the tokens already read, so that a new token costs one
position instead of the whole row again. Rows of a batch may differ in length.
"""

import math
from collections.abc import Generator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from cli import Mistake
from model.gpt import GPT, evaluating, to_the_left
from model.prefix import longest_row, prefix_length, prefix_of


class LayerKV:
    """One layer's keys and values, (B, H, room, D) each, of which the first `end` are filled."""

    def __init__(self, model: GPT, B: int, room: int) -> None:
        config, weight = model.config, model.wte.weight
        dtype = weight.dtype if model.precision == torch.float32 else model.precision
        shape = (B, config.n_head, room, config.n_embd // config.n_head)
        self.keys = torch.empty(shape, device=weight.device, dtype=dtype)
        self.values = torch.empty_like(self.keys)
        self.end = 0

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores k and v of T more tokens, (B, H, T, D) each, and returns all so far: (B, H, S, D) each."""
        start, self.end = self.end, self.end + k.size(2)
        self.keys[:, :, start : self.end] = k
        self.values[:, :, start : self.end] = v
        return self.keys[:, :, : self.end], self.values[:, :, : self.end]


class KVCache:
    """Keys and values of the tokens that B rows have read, allocated once.

    First come the prompts, padded on the right to P, the longest; then all rows put their next token into one and the
    same slot P, P + 1, and so on. The padding of a shorter prompt stays between the two, where nobody looks. If the
    model has a prefix, it stands in slots of its own before all that.
    """

    def __init__(self, model: GPT, prompt_lengths: Sequence[int], room: int) -> None:
        """prompt_lengths: tokens of each row's prompt; room: the most that a row will have, within longest_row."""
        self.model, self.n_prefix = model, prefix_length(model)
        room = self.n_prefix + min(room, longest_row(model))
        self.layers = [LayerKV(model, len(prompt_lengths), room) for _ in range(model.config.n_layer)]
        self.P, self.ragged = max(prompt_lengths), len(set(prompt_lengths)) > 1
        self.lengths = torch.tensor(prompt_lengths, device=model.wte.weight.device)[:, None]  # (B, 1)

    def begin(self, T: int) -> tuple[Tensor, Tensor | None]:
        """Begins to read the prompts (T = P), or T more tokens a row. Returns where they stand, (T,) or (B, T), and who
        may look where, (B, 1, T, S), or None for all to the left."""
        if self.layers[0].end == 0:
            for layer, prefix in zip(self.layers, prefix_of(self.model), strict=False):
                layer.extend(prefix.keys, prefix.values)  # the same before all rows
        filled, device = self.layers[0].end - self.n_prefix, self.lengths.device
        if filled == 0:
            return self.n_prefix + torch.arange(T, device=device), None
        visible = None
        if self.ragged:
            slots = torch.arange(-self.n_prefix, filled + T, device=device)  # (S,), a prefix's are below 0
            visible = ((slots < self.lengths) | (slots >= self.P))[:, None, None]  # (B, 1, 1, S)
            visible = visible & to_the_left(T, len(slots), device)  # (B, 1, T, S)
        positions = self.lengths + torch.arange(filled - self.P, filled - self.P + T, device=device)  # (B, T)
        return self.n_prefix + positions, visible


def lay_out_for_generation(model: GPT) -> None:
    """Stores each matrix column by column. Its shape and values stay; but a CPU that writes a token at a time spends
    its time reading matrices from memory, which goes up to 1.4 times as fast that way."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.data = module.weight.data.T.contiguous().T


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of token ids, padded on the right, and where the last of each is: (B, T) each."""
    tokens = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    last = torch.arange(tokens.size(1)) == lengths[:, None] - 1
    return tokens.to(device), last.to(device)


Generators = torch.Generator | Sequence[torch.Generator] | None  # of random numbers: for all rows, or one a row


def pick(logits: Tensor, temperature: float, top_k: int, top_p: float, generator: Generators) -> Tensor:
    """One token a row, (B, V) -> (B,): the likeliest at temperature 0, else drawn from softmax(logits / temperature),
    from the top_k likeliest (0: all) and the likeliest that together hold a share top_p (Holtzman et al. 2020)."""
    if temperature < 1e-6:
        return logits.argmax(-1)
    logits, order = logits.sort(-1, descending=True)  # (B, V) each, likeliest first
    logits = (logits - logits[:, :1]) / temperature  # the likeliest at 0, so that nothing overflows
    if top_k:
        logits[:, top_k:] = -math.inf
    probabilities = logits.softmax(-1)
    if not probabilities.isfinite().all():
        raise Mistake("the model's logits are infinite or NaN: its training diverged; try a lower --learning-rate")
    before = probabilities.cumsum(-1) - probabilities  # the share that likelier tokens hold
    before[:, 0] = -1  # the likeliest always stays
    probabilities[before >= top_p] = 0
    if isinstance(generator, Sequence):  # then what a row draws does not depend on the rows beside it
        # in the vocabulary's order: a rounding error could swap two tokens that are nearly as likely
        rows = torch.zeros_like(probabilities).scatter(-1, order, probabilities)
        return torch.cat([torch.multinomial(row, 1, generator=g) for row, g in zip(rows, generator, strict=True)])
    return order.gather(-1, torch.multinomial(probabilities, 1, generator=generator)).squeeze(-1)


def cannot_write(model: GPT) -> str:
    """Why a model cannot say what comes next; empty if it can."""
    return "it predicts classes" if model.head is not None else "" if model.config.causal else "it sees both sides"


def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop: int | None = None,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: Generators = None,
) -> list[list[int]]:
    """Continues each prompt (token ids, any lengths) and returns the new tokens, up to stop and without it.

    Raises ValueError for an empty prompt, and for a model that cannot write, since it sees both sides or predicts
    classes. The model's mode is as before afterwards.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    for new, _ in stream(model, prompts, max_new_tokens, stop, temperature, top_k, top_p, generator):
        for answer, token in zip(answers, new, strict=True):
            answer.append(token)
    return [answer[: answer.index(stop)] if stop in answer else answer for answer in answers]


def stream(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop: int | None = None,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: Generators = None,
) -> Generator[tuple[list[int], Tensor], None, None]:
    """Yields the next token of each row, and the logits that it was drawn from, (B, V), until every row has had stop.

    Past the longest row that the model can read, it reads as much of each row's end anew for every token: learned
    positions leave no other exact way. Raises what generate raises. It computes without gradients, and so does its
    caller from the first token to the last.
    """
    if not prompts:
        return
    if not all(prompts):
        raise ValueError("a prompt needs at least one token")
    if why := cannot_write(model):
        raise ValueError(f"this model cannot write: {why}")
    device = model.wte.weight.device
    rows, done = [list(prompt) for prompt in prompts], [False] * len(prompts)
    lengths = [len(prompt) for prompt in prompts]
    longest = max(lengths)
    cache: KVCache | None = KVCache(model, lengths, longest + max_new_tokens)
    exact = model.precision == torch.float32
    # autocast keeps its copies of the weights from token to token, but not in inference mode, which is the faster one
    with evaluating(model), torch.inference_mode(exact), torch.no_grad(), model.autocast():
        graded: Tensor | None  # which positions' logits are computed: each row's last
        tokens, graded = padded(rows, device)  # (B, T) each
        for _ in range(max_new_tokens):
            if longest > longest_row(model):
                tokens, graded = padded([row[-longest_row(model) :] for row in rows], device)
                cache = None
            logits = model(tokens, graded, cache=cache).view(len(rows), -1)  # (B, V)
            new = pick(logits, temperature, top_k, top_p, generator)  # (B,)
            for b, token in enumerate(new.tolist()):
                rows[b].append(token)
                done[b] = done[b] or token == stop
            yield new.tolist(), logits
            if all(done):
                break
            tokens, graded, longest = new[:, None], None, longest + 1

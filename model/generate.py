"""Writing text: one token after another, each drawn from the model's distribution given all before it.

A key-value cache keeps what every layer computed for the tokens already read, so that a new token costs one
position instead of the whole row again. Rows of a batch may differ in length: they are padded on the right, and
each row writes and looks only as far as its own tokens go.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from model.gpt import GPT


class KVCache:
    """Keys and values of the tokens that B rows have read, allocated once: (B, H, length, D) a layer."""

    def __init__(self, model: GPT, B: int, length: int) -> None:
        """length: the most tokens that a row will have; block_size is the limit."""
        config, device, dtype = model.config, model.wte.weight.device, model.wte.weight.dtype
        shape = (B, config.n_head, min(length, config.block_size), config.n_embd // config.n_head)
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layer)]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layer)]
        self.lengths = torch.zeros(B, dtype=torch.long, device=device)  # tokens that each row has read
        self.rows = torch.arange(B, device=device)[:, None]  # (B, 1)

    def begin(self, T: int) -> Tensor:
        """Begins to read T more tokens a row and returns where they stand: (B, T). Only the first time may some of them
        be padding. next_token_logits, which knows how many are not, then moves `lengths` on."""
        self.slots = self.lengths[:, None] + torch.arange(T, device=self.lengths.device)
        S = int(self.slots.max()) + 1
        self.visible = torch.arange(S, device=self.slots.device) <= self.slots[:, None, :, None]  # (B, 1, T, S)
        return self.slots

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Stores k and v (B, H, T, D); returns all keys and values (B, H, S, D) and who may look where (B, 1, T, S).

        What padding wrote lies beyond a row's own tokens: nobody looks there before a real token has replaced it.
        """
        self.keys[layer][self.rows, :, self.slots] = k.transpose(1, 2)
        self.values[layer][self.rows, :, self.slots] = v.transpose(1, 2)
        S = self.visible.size(-1)
        return self.keys[layer][:, :, :S], self.values[layer][:, :, :S], self.visible


def next_token_logits(model: GPT, unread: Sequence[Sequence[int]], cache: KVCache | None) -> Tensor:
    """Reads the tokens that each row has not read yet and returns the logits of its next one: (B, V)."""
    device = model.wte.weight.device
    lengths = torch.tensor([len(row) for row in unread])
    tokens = torch.zeros(len(unread), int(lengths.max()), dtype=torch.long)  # (B, T), padded on the right
    for row, padded in zip(unread, tokens, strict=True):
        padded[: len(row)] = torch.tensor(row)
    last = torch.arange(tokens.size(1)) == lengths[:, None] - 1  # (B, T), one true a row
    logits = model(tokens.to(device), last.to(device), cache)  # (B, V)
    if cache is not None:
        cache.lengths += lengths.to(device)
    return logits


def pick(logits: Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator | None) -> Tensor:
    """One token a row, (B, V) -> (B,): the likeliest at temperature 0, else drawn from softmax(logits / temperature),
    from the top_k likeliest (0: all) and the likeliest that together hold a share top_p (Holtzman et al. 2020)."""
    if temperature < 1e-6:
        return logits.argmax(-1)
    logits, order = logits.sort(-1, descending=True)  # (B, V) each, likeliest first
    logits = (logits - logits[:, :1]) / temperature  # the likeliest at 0, so that nothing overflows
    if top_k:
        logits[:, top_k:] = -math.inf
    probabilities = logits.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities  # the share that likelier tokens hold
    before[:, 0] = -1  # the likeliest always stays
    probabilities[before >= top_p] = 0
    return order.gather(-1, torch.multinomial(probabilities, 1, generator=generator)).squeeze(-1)


@torch.no_grad()
def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop: int | None = None,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """Continues each prompt (token ids, any lengths) and returns the new tokens, up to stop and without it.

    Past the model's block_size it reads each row's last block_size tokens anew for every token: learned positions
    leave no other exact way. Raises ValueError for an empty prompt. The model's mode is as before afterwards.
    """
    if not all(prompts):
        raise ValueError("a prompt needs at least one token")
    was_training = model.training
    model.eval()
    rows = [list(prompt) for prompt in prompts]
    unread, done = rows, [False] * len(rows)
    cache: KVCache | None = KVCache(model, len(rows), max(map(len, rows), default=0) + max_new_tokens)
    for _ in range(max_new_tokens):
        if max(len(row) for row in rows) > model.config.block_size:
            cache, unread = None, [row[-model.config.block_size :] for row in rows]
        tokens = pick(next_token_logits(model, unread, cache), temperature, top_k, top_p, generator).tolist()
        for i, token in enumerate(tokens):
            rows[i].append(token)
            done[i] = done[i] or token == stop
        if all(done):
            break
        unread = [row[-1:] for row in rows]
    model.train(was_training)
    answers = [row[len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]
    return [answer[: answer.index(stop)] if stop in answer else answer for answer in answers]

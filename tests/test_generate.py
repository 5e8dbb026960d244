"""Generation with a key-value cache gives what reading everything anew gives."""

import pytest
import torch

from model.generate import KVCache, generate, lay_out_for_generation, padded, pick
from model.gpt import CausalSelfAttention
from model.lora import apply_lora, lora_state_dict, merge

PROMPTS = [[5, 17, 3, 8, 60], [9], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]]


def uncached(model, row):
    """The logits of a row's next token, from its last block_size tokens alone."""
    return model(torch.tensor([row[-model.config.block_size :]]))[0, -1]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("adapter", ["none", "beside", "merged"])
def test_cached_logits_equal_uncached_at_every_step_with_ragged_prompts(model, adapter, precision):
    model.precision, tolerance = precision, 1e-4 if precision == torch.float32 else 3e-2
    if adapter != "none":
        apply_lora(model, r=3, alpha=7, dropout=0.0)
        for tensor in lora_state_dict(model).values():
            torch.nn.init.normal_(tensor, std=0.3)
    if adapter == "merged":
        merge(model)
    model.eval()
    rows = [list(prompt) for prompt in PROMPTS]
    cache = KVCache(model, [len(row) for row in rows], model.config.block_size)
    assert cache.layers[0].keys.dtype == precision
    tokens, last = padded(rows, torch.device("cpu"))
    with torch.no_grad():
        for _ in range(model.config.block_size - len(PROMPTS[2])):
            logits = model(tokens, last, cache=cache)
            for row, cached in zip(rows, logits, strict=True):
                expected = uncached(model, row)
                assert (cached - expected).norm() < tolerance * expected.norm()
                row.append(int(cached.argmax()))
            tokens, last = torch.tensor([row[-1:] for row in rows]), torch.ones(len(rows), 1, dtype=torch.bool)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("lengths", [[5, 5, 5], [5, 1, 3]])
def test_several_tokens_at_once_beside_a_cache_are_read_as_without_one(model, lengths, fused, monkeypatch):
    """1 < T < S: prompts of the lengths, then 4 tokens more, then 3."""
    monkeypatch.setattr(CausalSelfAttention, "fused", fused)
    rows = [torch.randint(61, (n + 7,)).tolist() for n in lengths]
    cache = KVCache(model, lengths, 16)
    with torch.no_grad():
        model(padded([row[:n] for row, n in zip(rows, lengths, strict=True)], torch.device("cpu"))[0], cache=cache)
        for begin, end in ((0, 4), (4, 7)):
            more = torch.tensor([row[n + begin : n + end] for row, n in zip(rows, lengths, strict=True)])
            for row, n, cached in zip(rows, lengths, model(more, cache=cache), strict=True):
                expected = model(torch.tensor([row[: n + end]]))[0, n + begin :]
                torch.testing.assert_close(cached, expected, rtol=1e-4, atol=1e-4)


def test_greedy_rows_of_a_batch_equal_the_same_rows_alone_also_past_the_block(model):
    """16 positions are learned, 30 tokens are written."""
    together = generate(model, PROMPTS, 30)
    for prompt, new in zip(PROMPTS, together, strict=True):
        row = list(prompt)
        for _ in range(30):
            row.append(int(uncached(model, row).argmax()))
        assert new == row[len(prompt) :]


def test_a_prompt_longer_than_the_block_is_read_from_its_end(model):
    long = [i % 61 for i in range(40)]
    assert generate(model, [long], 3) == generate(model, [long[-16:]], 3)


def test_generation_ends_at_stop_without_it_and_restores_the_mode(model):
    [free] = generate(model, [[5, 17]], 12)
    stop = free[4]
    for mode in (True, False):
        model.train(mode)
        assert generate(model, [[5, 17]], 12, stop=stop) == [free[: free.index(stop)]]
        assert model.training is mode
    with pytest.raises(ValueError, match="at least one token"):
        generate(model, [[1], []], 3)
    assert generate(model, [], 3) == []
    with pytest.raises(IndexError):
        generate(model.train(), [[61]], 3)
    assert model.training, "whatever happens"


def test_top_k_top_p_and_temperature_choose_from_the_tokens_they_promise():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()[[2, 0, 3, 1]].repeat(4000, 1)  # likeliest first: 1, 3, 0, 2
    generator = torch.Generator().manual_seed(0)
    drawn = lambda **how: pick(logits, **{"temperature": 1.0, "top_k": 0, "top_p": 1.0, "generator": generator, **how})  # noqa: E731
    assert set(drawn(temperature=0.0).tolist()) == {1}
    assert set(drawn(top_k=2).tolist()) == {1, 3}
    assert set(drawn(top_p=0.7).tolist()) == {1, 3}, "0.5 is not enough, 0.8 is"
    assert set(drawn(top_p=0.0001).tolist()) == {1}
    shares = drawn().bincount() / 4000
    torch.testing.assert_close(shares, torch.tensor([0.15, 0.5, 0.05, 0.3]), rtol=0, atol=0.03)
    assert (drawn(temperature=0.3) == 1).float().mean() > 0.8


def test_the_same_generator_seed_writes_the_same_text(model):
    write = lambda seed: generate(model, PROMPTS, 8, temperature=1.0, generator=torch.Generator().manual_seed(seed))  # noqa: E731
    assert write(1) == write(1) != write(2)


def test_the_layout_for_generation_changes_no_value_and_no_answer(model):
    before, answers = {k: v.clone() for k, v in model.state_dict().items()}, generate(model, PROMPTS, 20)
    lay_out_for_generation(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert generate(model, PROMPTS, 20) == answers
    assert model.blocks[0].mlp.up_proj.weight.T.is_contiguous()


def test_weights_in_another_precision_are_made_once_and_not_for_every_token(model):
    model.precision, casts = torch.bfloat16, []

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten._to_copy.default and args[0].shape == model.wte.weight.shape:
                casts.append(args[0])
            return function(*args, **(kwargs or {}))

    with Count():
        generate(model, PROMPTS, 5)
    assert len(casts) == 1

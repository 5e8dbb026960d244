"""The model is GPT-2, and nothing else."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from model import gpt
from model.generate import KVCache, generate
from model.gpt import GPT, CausalSelfAttention, GPTConfig
from store import gpt2


def test_written_out_attention_equals_the_fused_one_forward_and_backward(model, monkeypatch):
    tokens = torch.randint(61, (3, 16))
    results, stepped_through = [], []
    written_out = gpt.written_out_attention
    monkeypatch.setattr(gpt, "written_out_attention", lambda *args: stepped_through.append(1) or written_out(*args))
    for fused in (True, False):
        assert not stepped_through
        monkeypatch.setattr(CausalSelfAttention, "fused", fused)
        model.zero_grad()
        logits = model(tokens)
        logits.square().mean().backward()
        results.append([logits, *(p.grad.clone() for p in model.parameters())])
    assert len(stepped_through) == 2, "once a layer"
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_token_sees_nothing_to_its_right(model):
    tokens = torch.randint(61, (1, 16))
    changed = tokens.clone()
    changed[0, 10:] = (changed[0, 10:] + 1) % 61
    assert torch.equal(model(tokens)[:, :10], model(changed)[:, :10])
    assert not torch.allclose(model(tokens)[:, 10], model(changed)[:, 10])


def test_padding_on_the_right_changes_nothing_on_its_left(model):
    tokens = torch.randint(61, (2, 16))
    torch.testing.assert_close(model(tokens)[:, :9], model(tokens[:, :9]))


def test_graded_logits_are_rows_of_all_logits_and_the_others_are_not_computed(model):
    tokens, graded = torch.randint(61, (3, 16)), torch.rand(3, 16) < 0.3
    with FlopCounterMode(display=False) as some:
        logits = model(tokens, graded)
    with FlopCounterMode(display=False) as every:
        all_logits = model(tokens)
    torch.testing.assert_close(logits, all_logits[graded])
    n_ungraded = int((~graded).sum())
    assert every.get_total_flops() - some.get_total_flops() == 2 * n_ungraded * 12 * 61


def test_attention_with_a_mask_of_its_own_is_the_same_written_out():
    q, k, v = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 9, 8), torch.randn(2, 3, 9, 8)
    visible = torch.rand(2, 1, 4, 9) < 0.5
    visible[..., 0] = True  # each query sees something
    both = [attention(q, k, v, visible, 0.0) for attention in (gpt.written_out_attention, gpt.fused_attention)]
    torch.testing.assert_close(*both)


@pytest.mark.parametrize("embeddings", [0.3, 0.02])
def test_logits_equal_transformers_gpt2_with_the_same_random_weights(embeddings):
    """Weights are drawn large: at GPT-2's own scale erf- and tanh-GELU differ too little to be told apart. Of
    embeddings so large LayerNorm's epsilon is no part that matters; of those at GPT-2's own scale it is."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=61, n_positions=16, n_layer=2, n_head=2, n_embd=12)
    ).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    for embedding in (theirs.transformer.wte, theirs.transformer.wpe):
        torch.nn.init.normal_(embedding.weight, std=embeddings)
    ours = GPT(GPTConfig(vocab_size=61, block_size=16, n_layer=2, n_head=2, n_embd=12))
    ours.load_state_dict(gpt2.weights_from(gpt2.without_extras(theirs.state_dict()), ours.config))
    tokens = torch.randint(61, (4, 16))
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=0, atol=1e-5)


@pytest.fixture
def encoder(model):
    """The same weights, which see both sides."""
    encoder = GPT(GPTConfig(vocab_size=61, block_size=16, n_layer=2, n_head=2, n_embd=12, causal=False))
    encoder.load_state_dict(model.state_dict())
    return encoder


@pytest.mark.parametrize("fused", [True, False])
def test_without_causal_each_position_sees_all_of_its_own_example_and_nothing_else(encoder, fused, monkeypatch):
    """Examples of 5, 4 and 3 tokens in two rows, with padding, as alone."""
    monkeypatch.setattr(CausalSelfAttention, "fused", fused)
    tokens = torch.randint(61, (2, 9))
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3], [0, 1, 2, 0, 0, 0, 0, 0, 0]])
    together = encoder(tokens, positions=positions)
    for row, start, end in [(0, 0, 5), (0, 5, 9), (1, 0, 3)]:
        alone = encoder(tokens[row : row + 1, start:end])[0]
        torch.testing.assert_close(together[row, start:end], alone)
        changed = tokens.clone()
        changed[row, end - 1] = (changed[row, end - 1] + 1) % 61
        moved = (encoder(changed, positions=positions) != together).any(-1)
        assert moved[row, start:end].all() and moved.sum() == end - start


def test_who_sees_both_sides_or_predicts_classes_cannot_write(encoder, model):
    with pytest.raises(ValueError, match="cannot write: it sees both sides"):
        generate(encoder, [[1, 2]], 3)
    model.head = torch.nn.Linear(12, 3)
    with pytest.raises(ValueError, match="cannot write: it predicts classes"):
        generate(model, [[1, 2]], 3)


def test_positions_beside_a_cache_are_refused_and_so_is_a_cache_of_both_sides(encoder, model):
    tokens = torch.zeros(1, 4, dtype=torch.long)
    for network, positions in ((model, torch.arange(4)), (encoder, None)):
        with pytest.raises(ValueError, match="a cache tells itself where its tokens stand, and only a causal model"):
            network(tokens, positions=positions, cache=KVCache(network, [4], 8))


def test_initial_weights_are_gpt2s_with_the_residual_scaling():
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=500, block_size=64, n_layer=8, n_head=4, n_embd=128))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        elif ".ln_" in name or name.startswith("ln_"):
            assert (parameter == 1).all()
        else:
            std = 0.02 / 4 if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02  # 1 / sqrt(2 * 8) = 1 / 4
            assert parameter.std().item() == pytest.approx(std, rel=0.05), name


def test_the_head_is_tied_so_the_shared_matrix_is_one_parameter(model):
    assert [name for name, p in model.named_parameters() if p.shape == (61, 12)] == ["wte.weight"]
    assert not any("head" in name for name in model.state_dict())


def test_impossible_sizes_and_overlong_rows_are_refused_in_words(model):
    with pytest.raises(ValueError, match="n_embd 10 must be a multiple of n_head 3"):
        GPTConfig(n_embd=10, n_head=3)
    with pytest.raises(ValueError, match="at least 1"):
        GPTConfig(n_layer=0)
    with pytest.raises(ValueError, match="17 tokens is longer than the model's block_size 16"):
        model(torch.zeros(1, 17, dtype=torch.long))


@pytest.mark.parametrize("fused", [True, False])
def test_dropout_acts_on_attention_weights_and_on_the_residual_stream_in_training_only(fused, monkeypatch):
    monkeypatch.setattr(CausalSelfAttention, "fused", fused)
    tokens = torch.randint(61, (2, 16))
    for place in ("attention", "stream"):
        model = GPT(GPTConfig(vocab_size=61, block_size=16, n_layer=1, n_head=2, n_embd=12, dropout=0.5))
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout) and place == "attention":
                module.p = 0.0
            if isinstance(module, CausalSelfAttention) and place == "stream":
                module.dropout = 0.0
        assert not torch.equal(model.train()(tokens), model(tokens)), place
        assert torch.equal(model.eval()(tokens), model(tokens)), place

"""Padding is never seen: a padded batch gives what each sequence gives alone."""

import pytest
import torch

from syncattn.nn import OSNBlock

REAL = {
    "right": ["######....", "##########", "#........."],
    "left": ["....######", "##########", ".........#"],
    "both": ["..######..", ".#########", "....#....."],
    "holes": ["##.###..##", ".#.#.#.#.#", "#........#"],
    "nobody": ["..........", "####......", "......####"],
}


def patterns(name):
    return torch.tensor([[c == "#" for c in row] for row in REAL[name]])


def padded(x, real):
    """x (B, N, E) with numbers in the padding that would show wherever they were seen."""
    return torch.where(real[..., None], x, 30 * (1 + x.abs()))


@pytest.mark.parametrize("need_weights", [False, True], ids=["tiled", "eager"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", REAL)
def test_each_sequence_as_if_alone(layer, tokens, name, causal, need_weights):
    real = patterns(name)
    x = tokens(*real.shape)
    out, _ = layer(padded(x, real), key_padding_mask=~real, is_causal=causal, need_weights=need_weights)
    assert torch.isfinite(out).all()
    for b in range(len(real)):
        alone, _ = layer(x[b : b + 1, real[b]], is_causal=causal)
        torch.testing.assert_close(out[b, real[b]], alone[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", REAL)
def test_padding_and_causality_by_mask(layer, tokens, name):
    real = patterns(name)
    x = tokens(*real.shape)
    want, _ = layer(padded(x, real), key_padding_mask=~real, is_causal=True)
    future = torch.ones(10, 10, dtype=torch.bool).triu(1)
    out, _ = layer(padded(x, real), key_padding_mask=~real, attn_mask=future)
    torch.testing.assert_close(out[real], want[real], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", REAL)
def test_senders_of_cross_attention(layer, tokens, name):
    real = patterns(name)
    query, key = tokens(3, 6, seed=5), tokens(*real.shape)
    out, _ = layer(query, padded(key, real), key_padding_mask=~real)
    for b in range(3):
        alone, _ = layer(query[b : b + 1], key[b : b + 1, real[b]])
        torch.testing.assert_close(out[b], alone[0], rtol=0, atol=1e-9)


def test_no_gradient_reaches_padding(layer, tokens):
    real = patterns("holes")
    x = tokens(*real.shape).requires_grad_()
    out, _ = layer(x, key_padding_mask=~real, is_causal=True)
    (gradient,) = torch.autograd.grad(out[real].square().sum(), x)
    assert not gradient[~real].any() and torch.isfinite(gradient).all()


def test_density_does_not_count_padding(layer, tokens):
    real = patterns("left")
    x = tokens(*real.shape)
    for causal in (False, True):
        density = layer.locked_density(x, key_padding_mask=~real, is_causal=causal)
        queries = real[:, None, :, None]  # rows of padding may listen; nobody reads what they hear
        _, weights = layer(
            x, key_padding_mask=~real, is_causal=causal, need_weights=True, average_attn_weights=False
        )
        allowed = real[:, None, None, :].expand(weights.shape)
        allowed = allowed & torch.ones(10, 10, dtype=torch.bool).tril() if causal else allowed
        if not layer.self_coupling:
            allowed = allowed & ~torch.eye(10, dtype=torch.bool)
        if layer.top_k is None:
            want = ((weights > 0) & queries).sum((0, 2, 3)) / (allowed & queries).sum((0, 2, 3))
            torch.testing.assert_close(density, want, rtol=0, atol=1e-6)


def test_blocks(tokens):
    torch.manual_seed(0)
    real = patterns("both")
    x = tokens(*real.shape)
    for norm_first in (False, True):
        block = OSNBlock(24, 4, 48, batch_first=True, norm_first=norm_first, density_range=(0.3, 0.8))
        block = block.double().eval()
        out = block(padded(x, real), src_key_padding_mask=~real, is_causal=True)
        for b in range(len(real)):
            alone = block(x[b : b + 1, real[b]], is_causal=True)
            torch.testing.assert_close(out[b, real[b]], alone[0], rtol=0, atol=1e-9)

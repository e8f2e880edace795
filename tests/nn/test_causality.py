"""No future token changes an earlier output, by whatever way causality is asked for."""

import pytest
import torch
from torch import nn

from syncattn.nn import OSNBlock

LENGTH = 12


def changed_after(x, t, seed):
    """x with the tokens after t replaced by others, of quite another size."""
    y = x.clone()
    g = torch.Generator().manual_seed(seed)
    y[:, t + 1 :] = 5 * torch.randn(y[:, t + 1 :].shape, generator=g, dtype=torch.float64).to(y.dtype) + 3
    return y


CAUSAL = {
    "flag": {"is_causal": True},
    "mask": {"attn_mask": torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)},
    "float mask": {"attn_mask": nn.Transformer.generate_square_subsequent_mask(LENGTH)},
    "band": {"is_causal": True, "attn_mask": torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril(-5)},
}


@pytest.mark.parametrize("need_weights", [False, True], ids=["tiled", "eager"])
@pytest.mark.parametrize("how", CAUSAL)
def test_future_tokens_change_nothing(layer, tokens, how, need_weights):
    x = tokens(2, LENGTH)
    want, _ = layer(x, **CAUSAL[how], need_weights=need_weights)
    for t in (0, 1, 6, LENGTH - 2):
        out, _ = layer(changed_after(x, t, t), **CAUSAL[how], need_weights=need_weights)
        assert (out[:, : t + 1] - want[:, : t + 1]).abs().max() < 1e-10
        assert not torch.allclose(out[:, t + 1 :], want[:, t + 1 :])


def test_float32(build, tokens):
    for kind in ("default", "own drift", "absolute"):
        layer, x = build(kind, dtype=torch.float32), tokens(2, 40, dtype=torch.float32)
        want, _ = layer(x, is_causal=True)
        for t in (0, 7, 20, 38):
            out, _ = layer(changed_after(x, t, t), is_causal=True)
            assert (out[:, : t + 1] - want[:, : t + 1]).abs().max() < 1e-6


def test_no_gradient_reaches_the_future(layer, tokens):
    x = tokens(1, LENGTH).requires_grad_()
    out, _ = layer(x, is_causal=True)
    for t in range(LENGTH):
        (gradient,) = torch.autograd.grad(out[:, t].square().sum(), x, retain_graph=True)
        assert not gradient[:, t + 1 :].any()
        assert gradient[:, : t + 1].any() or t == 0


@pytest.mark.parametrize("norm_first", [False, True])
def test_encoder_of_blocks_given_only_a_mask(norm_first):
    """The global order parameter would leak the future past the mask."""
    torch.manual_seed(0)
    block = OSNBlock(24, 4, 48, batch_first=True, norm_first=norm_first, density_range=(0.3, 0.8))
    encoder = nn.TransformerEncoder(block, 3, enable_nested_tensor=False).double().eval()
    x = torch.randn(2, LENGTH, 24, dtype=torch.float64)
    mask = nn.Transformer.generate_square_subsequent_mask(LENGTH, dtype=torch.float64)
    want = encoder(x, mask=mask)
    for t in (0, 1, 6, LENGTH - 2):
        out = encoder(changed_after(x, t, t), mask=mask)
        assert (out[:, : t + 1] - want[:, : t + 1]).abs().max() < 1e-10

"""The order parameter: r = mean over the phases of |mean over the tokens of exp(i phase)|."""

import doctest
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import syncattn
import syncattn.functional

order_parameter = syncattn.order_parameter


def naive(phases):
    """phases (n, p) of the tokens that count -> r; 1 for none."""
    if len(phases) == 0:
        return 1.0
    return (
        sum(abs(sum(complex(math.cos(t), math.sin(t)) for t in column)) for column in phases.T.tolist())
        / len(phases)
        / phases.shape[1]
    )


@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 8),
    st.integers(1, 3),
    st.integers(0, 99),
    st.booleans(),
)
def test_is_what_the_definition_says(batch, heads, tokens, p, seed, masked):
    g = torch.Generator().manual_seed(seed)
    phase = 3 * torch.randn(batch, heads, tokens, p, generator=g, dtype=torch.float64)
    real = torch.rand(batch, tokens, generator=g) > 0.4 if masked else torch.ones(batch, tokens).bool()
    r = order_parameter(phase, real if masked else None)
    running = order_parameter(phase, real if masked else None, is_causal=True)
    allowed = torch.rand(batch, heads, 4, tokens, generator=g) > 0.4
    per_query = order_parameter(phase, allowed & real[:, None, None])
    assert r.shape == (batch, heads) and running.shape == (batch, heads, tokens)
    for b in range(batch):
        for h in range(heads):
            assert r[b, h] == pytest.approx(naive(phase[b, h][real[b]]), abs=1e-12)
            for i in range(tokens):
                want = naive(phase[b, h, : i + 1][real[b, : i + 1]])
                assert running[b, h, i] == pytest.approx(want, abs=1e-12)
            for i in range(4):
                want = naive(phase[b, h][allowed[b, h, i] & real[b]])
                assert per_query[b, h, i] == pytest.approx(want, abs=1e-12)
    assert (running >= 0).all() and (running <= 1).all()


def test_known_values():
    assert order_parameter(torch.full((1, 1, 7, 2), 2.5)).item() == pytest.approx(1)
    opposite = torch.tensor([0.0, math.pi], dtype=torch.float64).view(1, 1, 2, 1)
    assert order_parameter(opposite).item() < 1e-15
    assert torch.allclose(order_parameter(opposite, is_causal=True), torch.tensor([1.0, 0.0]).double())
    # phases of variance 1/3, as the published initialisation has them: E r^2 = R^2 + (1 - R^2) / n
    g = torch.Generator().manual_seed(0)
    n, coherence = 256, math.exp(-1 / 6)
    r = order_parameter(torch.randn(400, 4, n, 1, generator=g) / 3**0.5)
    assert r.square().mean().item() == pytest.approx(coherence**2 + (1 - coherence**2) / n, abs=2e-3)


def test_the_queries_of_a_causal_mask_are_the_last_tokens():
    phase = torch.randn(2, 3, 6, 2, dtype=torch.float64)
    running = order_parameter(phase, is_causal=True)
    for queries in (1, 2, 6):
        mask = torch.ones(1, 1, queries, 6, dtype=torch.bool)
        r = order_parameter(phase, mask, is_causal=True)
        assert r.shape == (2, 3, queries)
        torch.testing.assert_close(r, running[..., 6 - queries :])
        square = torch.ones(6, 6, dtype=torch.bool).tril()[None, None, 6 - queries :]
        torch.testing.assert_close(order_parameter(phase, square), r)


def test_nobody_counts():
    """Padding before a sequence has nobody behind it: r = 1, that of a lone oscillator, and no gradient."""
    phase = torch.randn(2, 1, 4, 1, requires_grad=True)
    real = torch.tensor([[False, False, True, True], [False] * 4])
    r = order_parameter(phase, real, is_causal=True)
    assert r[0, 0, :2].tolist() == [1, 1] and r[1, 0].tolist() == [1] * 4
    (order_parameter(phase, real).sum() + r.sum()).backward()
    assert torch.isfinite(phase.grad).all() and not phase.grad[1].any() and not phase.grad[0, :, :2].any()
    assert order_parameter(torch.randn(2, 3, 0, 1)).tolist() == [[1] * 3] * 2
    assert order_parameter(torch.randn(2, 3, 0, 1), is_causal=True).shape == (2, 3, 0)


def test_gradient():
    g = torch.Generator().manual_seed(0)
    phase = torch.randn(2, 2, 4, 2, generator=g, dtype=torch.float64, requires_grad=True)
    allowed = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)[None, None]
    real = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]], dtype=torch.bool)
    for arguments in ((), (real,), (real, True), (allowed,), (allowed, True)):
        assert torch.autograd.gradcheck(lambda t, a=arguments: order_parameter(t, *a).square(), phase)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    """Sums are in float32 at least, under autocast too: 300 tokens are more than bfloat16 can count."""
    phase = torch.randn(1, 2, 300, 1, generator=torch.Generator().manual_seed(0)).to(dtype)
    want = order_parameter(phase.double(), is_causal=True)
    mask = torch.ones(1, 1, 300, 300, dtype=torch.bool).tril()
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            for r in (order_parameter(phase, is_causal=True), order_parameter(phase, mask)):
                assert r.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
                assert (r.double() - want).abs().max() < 2e-6


def test_bad_input():
    phase = torch.randn(2, 3, 4, 1)
    with pytest.raises(TypeError, match=r"phase must be a torch.Tensor, got list"):
        order_parameter([0.0])
    for bad in (phase[0], phase.long(), phase * 1j):
        with pytest.raises(ValueError, match=r"phase must be a floating tensor \(B, H, N, p\), got torch"):
            order_parameter(bad)
    with pytest.raises(ValueError, match=r"at least one phase per token, got p = 0"):
        order_parameter(phase[..., :0])
    with pytest.raises(TypeError, match=r"mask must be a torch.Tensor, got list"):
        order_parameter(phase, [True] * 4)
    with pytest.raises(ValueError, match=r"mask must be boolean .* got torch.float32"):
        order_parameter(phase, torch.ones(2, 4))
    for shape in ((4,), (2, 3), (4, 2), (2, 1, 4)):
        with pytest.raises(ValueError, match=r"mask must have shape \(B, N\) = \(2, 4\) or be 4-D"):
            order_parameter(phase, torch.ones(shape, dtype=torch.bool))
    with pytest.raises(
        ValueError, match=r"broadcastable to \(B, H, Q, N\) = \(2, 3, Q, 4\), got \(2, 2, 4, 4\)"
    ):
        order_parameter(phase, torch.ones(2, 2, 4, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="mask of 5 queries for 4 tokens"):
        order_parameter(phase, torch.ones(1, 1, 5, 4, dtype=torch.bool), is_causal=True)


def test_examples():
    assert doctest.testmod(syncattn.functional, extraglobs={"torch": torch}).failed == 0


def test_nested_tensors_are_refused():
    nested = torch.nested.nested_tensor([torch.ones(5, 4, 3), torch.ones(2, 4, 3)], layout=torch.jagged)
    with pytest.raises(ValueError, match=r"phase must be a dense tensor, .* got a nested tensor"):
        syncattn.order_parameter(nested.transpose(1, 2))

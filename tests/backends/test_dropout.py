"""Dropout of the weights: a mask that is a function of (seed, row, column)."""

import pytest
import torch

import syncattn
from syncattn.backends.dropout import keep_mask, row_numbers

attention = syncattn.selective_synchronization_attention
BACKENDS = [
    name for name, reason in syncattn.backends.availability().items() if reason is None and name != "triton"
]  # which takes no CPU tensors unasked: tests/backends/triton
every_backend = pytest.mark.parametrize("backend", BACKENDS)


def problem(batch=2, heads=3, tokens=40, dtype=torch.float32):
    """All pairs lock equally, and the values are the unit vectors: the output is the weights."""
    w = torch.zeros(batch, heads, tokens, 2, dtype=dtype)
    value = torch.eye(tokens, dtype=dtype).expand(batch, heads, -1, -1)
    return w, w, value, torch.ones(heads, dtype=dtype), torch.ones(heads, dtype=dtype)


def masks(p, backend, seed=0, **sizes):
    torch.manual_seed(seed)
    return attention(*problem(**sizes), dropout_p=p, eps=0.0, backend=backend)


@every_backend
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_keeps_the_share_asked_for_and_scales_it(p, backend):
    out = masks(p, backend, batch=4, heads=4, tokens=100)
    kept = out > 0
    assert abs(kept.double().mean().item() - (1 - p)) < 4 * (p * (1 - p) / out.numel()) ** 0.5
    torch.testing.assert_close(out[kept], torch.full_like(out[kept], 0.01 / (1 - p)))


def test_every_backend_drops_the_same():
    first, *others = (masks(0.3, name) for name in BACKENDS)
    for other in others:
        assert torch.equal(first == 0, other == 0)
        torch.testing.assert_close(first, other)
    wide = [masks(0.3, name, dtype=torch.float64) for name in ("tiled", "eager")]
    torch.testing.assert_close(*wide, rtol=0, atol=1e-12)
    assert torch.equal(first == 0, wide[0] == 0)


@every_backend
def test_seeds(backend):
    assert torch.equal(masks(0.3, backend, seed=1), masks(0.3, backend, seed=1))
    assert not torch.equal(masks(0.3, backend, seed=1), masks(0.3, backend, seed=2))
    torch.manual_seed(0)
    first, second = (attention(*problem(), dropout_p=0.3, backend=backend) for _ in range(2))
    assert not torch.equal(first, second)
    state = torch.get_rng_state()
    attention(*problem(), backend=backend)
    syncattn.backends.explain(*problem(), dropout_p=0.3)
    assert torch.equal(state, torch.get_rng_state())  # nothing is drawn that is not needed


def test_rows_heads_sequences_and_columns_are_independent():
    """No two rows share a mask, and no pair of rows or columns agrees more often than chance has it."""
    tokens = 256
    rows = row_numbers(2, 2, tokens, torch.device("cpu"))
    for seed in (0, 1, 2**40 + 17, 2**62 - 1):
        kept = keep_mask(torch.tensor(seed), rows, torch.arange(tokens), 0.5).reshape(-1, tokens)
        assert len(kept.unique(dim=0)) == len(kept)
        signs = kept.double() * 2 - 1
        for side in (signs, signs.T):
            correlation = side @ side.T / side.shape[1] - torch.eye(len(side))
            assert correlation.abs().max() < 6 / side.shape[1] ** 0.5
            assert side.mean(1).abs().max() < 5 / side.shape[1] ** 0.5
        # neighbours along a row
        assert (signs[:, 1:] * signs[:, :-1]).mean().abs() < 5 / signs.numel() ** 0.5


def test_neighbouring_seeds_are_independent():
    rows, columns = torch.arange(64)[:, None], torch.arange(64)
    seeds = [*range(32), *(s << 32 for s in range(1, 33))]  # every bit of a seed counts
    kept = torch.stack([keep_mask(torch.tensor(s), rows, columns, 0.5).flatten() for s in seeds])
    signs = kept.double() * 2 - 1
    correlation = signs @ signs.T / signs.shape[1] - torch.eye(64)
    assert correlation.abs().max() < 6 / signs.shape[1] ** 0.5


@every_backend
def test_expectation_is_the_output_without_dropout(backend):
    g = torch.Generator().manual_seed(0)
    w = torch.randn(1, 2, 8, 3, generator=g)
    value = torch.randn(1, 2, 8, 4, generator=g)
    coupled = torch.full((2,), 5.0), torch.full((2,), 0.1)
    want = attention(w, w, value, *coupled, backend=backend)
    torch.manual_seed(0)
    w, value = (x.expand(500, -1, -1, -1) for x in (w, value))
    drawn = attention(w, w, value, *coupled, dropout_p=0.4, backend=backend)
    error, spread = (drawn.mean(0) - want[0]).abs(), drawn.std(0) / len(drawn) ** 0.5
    assert (error <= 5 * spread + 1e-6).all() and (spread > 0).any()


@every_backend
def test_returned_weights_are_before_dropout_and_the_gradient_meets_the_same_mask(backend):
    w, _, _, *coupled = problem(batch=1, heads=1, tokens=12)
    value = torch.randn(1, 1, 12, 12, requires_grad=True)
    torch.manual_seed(3)
    attention(w, w, value, *coupled, dropout_p=0.5, eps=0.0, backend=backend).sum().backward()
    torch.manual_seed(3)
    kept = attention(*problem(1, 1, 12), dropout_p=0.5, eps=0.0, backend=backend)
    torch.testing.assert_close(value.grad, kept.sum(-2)[..., None].expand_as(value))
    if backend == "eager":
        _, _, weight = attention(*problem(), dropout_p=0.5, return_weights=True)
        torch.testing.assert_close(weight.sum(-1), torch.ones_like(weight[..., 0]))

"""Queries and keys as frequencies: SSA of them is softmax attention."""

import math

import pytest
import torch

from syncattn.integrations.softmax import coupling_of_reach, softmax_frequencies, softmax_limit

SIZES = [
    (2, 4, 4, 7, 7, 16),
    (1, 4, 2, 5, 9, 32),
    (3, 6, 1, 4, 11, 64),
    (1, 2, 2, 3, 1, 80),
    (1, 2, 2, 30, 300, 128),
]


def drawn(batch, heads, key_heads, queries, keys, width, dtype=torch.float32, size=1.0):
    query = torch.randn(batch, heads, queries, width, dtype=torch.float64)
    key, value = torch.randn(2, batch, key_heads, keys, width, dtype=torch.float64)
    key = key + 3 * torch.randn(1, key_heads, 1, width, dtype=torch.float64)  # as biases and outliers make it
    return [x.to(dtype) for x in (query * size, key * size, value)]


def attend(query, key, value, kappa=1e4, scaling=None, **options):
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return softmax_limit(query, key, value, torch.full((query.shape[1],), kappa), scaling, **options)


def softmax(query, key, value, scaling=None, **options):
    return torch.nn.functional.scaled_dot_product_attention(
        query.double(), key.double(), value.double(), scale=scaling, enable_gqa=True, **options
    )


@pytest.mark.parametrize("backend", ["eager", "tiled", None])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_it_is_softmax_attention(sizes, backend):
    torch.manual_seed(sum(sizes))
    inputs = drawn(*sizes)
    out, _ = attend(*inputs, backend=backend)
    assert (out - softmax(*inputs)).abs().max() < 2e-5
    out, _ = attend(*inputs, kappa=1e6, scaling=0.3, backend=backend)
    assert (out - softmax(*inputs, scaling=0.3)).abs().max() < 3e-5  # scores of up to 50


def test_the_error_follows_the_lengths_of_queries_and_keys():
    torch.manual_seed(0)
    for size in (0.1, 1.0, 4.0):
        query, key, value = drawn(2, 4, 4, 64, 64, 64, size=size)
        spread = (key - key.mean(2, keepdim=True)).norm(dim=-1).max()
        score = 4e-7 * (query / 8).norm(dim=-1).max() * spread  # what the docstring promises
        error = (attend(query, key, value)[0] - softmax(query, key, value)).abs().max()
        assert error < 2 * score * value.abs().max() + 1e-5


def test_half_precision_is_as_exact_as_its_values():
    torch.manual_seed(0)
    inputs = drawn(2, 4, 2, 33, 33, 64, dtype=torch.bfloat16)
    out, _ = attend(*inputs)
    assert out.dtype == torch.bfloat16
    assert (out - softmax(*inputs)).abs().max() < 0.02  # half a unit in the last place of a value of 4
    receive, send = softmax_frequencies(*inputs[:2], 1.0)
    assert receive.dtype == send.dtype == torch.float32
    assert softmax_frequencies(inputs[0].double(), inputs[1], 1.0).send.dtype == torch.float64


def test_gradients_are_softmax_attentions():
    torch.manual_seed(0)
    inputs = drawn(2, 4, 2, 9, 9, 16, dtype=torch.float64)
    slopes = []
    for function in (softmax, lambda *x: attend(*x, kappa=1e6)[0]):
        leaves = [x.clone().requires_grad_() for x in inputs]
        function(*leaves).square().sum().backward()
        slopes.append([x.grad for x in leaves])
    for expected, found in zip(*slopes):
        assert (expected - found).abs().max() < 1e-6 * expected.abs().max()


@pytest.mark.parametrize("keys", [1, 4])
def test_equal_keys_have_finite_gradients(keys):
    torch.manual_seed(0)
    query, key, value = drawn(1, 2, 2, 3, keys, 8)
    leaves = [query.requires_grad_(), torch.ones_like(key).requires_grad_(), value.requires_grad_()]
    out, _ = attend(*leaves)
    out.sum().backward()
    assert torch.allclose(out, value.mean(2, keepdim=True).expand_as(out), atol=1e-5)
    assert all(x.grad.isfinite().all() for x in leaves)


def test_the_coupling_cuts_at_its_reach():
    torch.manual_seed(0)
    query, key, value = drawn(1, 2, 2, 40, 200, 16, dtype=torch.float64)
    score = query @ key.mT / 4
    below = score.amax(-1, keepdim=True) - score
    for reach in (0.5, 2.0, 6.0):
        _, weight = attend(query, key, value, kappa=coupling_of_reach(reach), return_weights=True)
        assert ((weight > 0) == (below < reach)).all()
    assert coupling_of_reach(15.1) == pytest.approx(1e4, rel=0.05)
    assert math.isclose(coupling_of_reach(2.0), 2 * math.e)

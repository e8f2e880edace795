"""Theorem 1: the constructions compute what they should, the limits hold in arithmetic of the test's own."""

import numpy as np
import pytest
import torch
from scipy.special import lambertw

from syncattn.nn import OSNBlock
from syncattn_lab.paper.judge import FAILS, HOLDS, HOLDS_IF
from syncattn_lab.paper.random_blocks import published_blocks, run_blocks
from syncattn_lab.paper.universality import constructions, heads
from syncattn_lab.paper.universality.claims import SECTION


@pytest.fixture(scope="module")
def numbers(measured):
    return measured(SECTION, seed=1)


def test_verdicts(numbers):
    claims = {claim.name: claim for claim in SECTION.claims(numbers)}
    assert {name: claim.verdict for name, claim in claims.items()} == {
        "universality": HOLDS_IF,
        "softmax-limit": HOLDS,
        "one-head-limits": HOLDS,
    }
    assert FAILS not in {claim.verdict for claim in claims.values()}
    for claim in claims.values():
        assert claim.shown, [check for check in claim.checks if not check.met]


@pytest.mark.parametrize(
    ("path", "value", "name"),
    [
        (("without_position", "permutation_gap"), 0.1, "universality"),
        (("without_position", "answers_spread"), 0.1, "universality"),
        (("without_position", "least_error"), 0.0, "universality"),
        (("without_position", "doubling_gap"), 0.1, "universality"),
        (("constant", "gap"), 1e-3, "universality"),
        (("constant", "gap_self_left_out"), 0.0, "universality"),
        (("deviation", -1, "error"), 0.1, "universality"),
        (("deviation", -1, "from_uniform"), 0.1, "universality"),
        (("sequence", "stored_error"), 1e-6, "universality"),
        (("sequence", "from_uniform"), 0.1, "universality"),
        (("softmax_limit", -1, "weights"), 1e-5, "softmax-limit"),
        (("softmax_limit", -1, "output"), 1e-5, "softmax-limit"),
        (("symmetric", "largest_weight"), 0.6, "one-head-limits"),
        (("symmetric", "imaginary"), 0.1, "one-head-limits"),
        (("previous_token", "symmetric", "weight"), 0.7, "one-head-limits"),
        (("previous_token", "directed", "weight"), 0.7, "one-head-limits"),
        (("what_followed", "delayed"), 0.4, "one-head-limits"),
    ],
)
def test_checks_can_fail(numbers, path, value, name, falls):
    falls(SECTION, numbers, path, value, name)


def test_drawing(numbers, drawn):
    drawn(SECTION, numbers)


def test_published_blocks_cannot_tell_two_orders_apart():
    """Swapping two tokens leaves a third one's output, and swaps theirs."""
    blocks = published_blocks(OSNBlock, 2, 16, 4, seed=3)
    x = torch.randn(1, 10, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    order = [0, 7, 2, 3, 4, 5, 6, 1, 8, 9]
    once, swapped = (run_blocks(blocks, y) for y in (x, x[:, order]))
    assert (swapped[:, 0] - once[:, 0]).abs().max() < 1e-13
    assert (swapped[:, 1] - once[:, 7]).abs().max() < 1e-13
    changed = x.clone()
    changed[:, 1:] *= -1  # it does listen to others
    assert (run_blocks(blocks, changed)[:, 0] - once[:, 0]).abs().max() > 1e-4


def test_deviation_network_against_numpy():
    numbers = np.random.default_rng(0).uniform(-1, 1, (3, 11))
    wanted = (numbers - numbers.mean(1, keepdims=True)) ** 2 - numbers.var(1, keepdims=True)
    for hinges in (8, 32):
        blocks = constructions.deviation_network(hinges)
        found = run_blocks(blocks, constructions.deviation_input(torch.from_numpy(numbers)))
        error = np.abs(found[..., -1].numpy() - wanted).max()
        assert 0 < error <= (4 / hinges) ** 2 / 4


def test_sequence_network_returns_the_sequence():
    x = torch.from_numpy(np.random.default_rng(1).uniform(-3, 3, (2, 5, 2)))
    stored, before, weight = constructions.SequenceNetwork(5, 2, largest=3.0).run(x)
    for i in range(5):
        assert np.allclose(stored[:, i], x, rtol=0, atol=1e-12)
        assert np.allclose(before[:, i], x[:, i - 1], rtol=0, atol=1e-12)
    assert weight.shape == (2, 2, 5, 5)
    assert np.allclose(weight, 0.2, rtol=0, atol=1e-9)


def test_softmax_limit_against_the_formula():
    """The distance from softmax at one coupling, from the paper's S written out in NumPy."""
    (found,) = heads.softmax_limit([1e3], tokens=12, size=4, seed=2)
    draw = torch.randn(3, 1, 1, 12, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    query, key, value = (part[0, 0].numpy() for part in draw)
    most = (key**2).sum(1).max()
    squared = (query**2).sum(1)[:, None] + most - 2 * query @ key.T
    kernel = np.exp(-squared / 4)  # alpha = 1 / (2 sqrt(4))
    ratio = np.sqrt(squared) / (1e3 * kernel)
    sync = np.where(ratio <= 1, kernel * np.cos(np.arcsin(np.minimum(ratio, 1))), 0)
    weight = sync / sync.sum(1, keepdims=True)
    score = np.exp(query @ key.T / 2)
    softmax = score / score.sum(1, keepdims=True)
    assert found["weights"] == pytest.approx(np.abs(weight - softmax).max(), rel=1e-9)
    assert found["output"] == pytest.approx(np.abs((weight - softmax) @ value).max(), rel=1e-9)


def test_best_symmetric_previous_token_head(numbers):
    """S / (1 + S) of the nearest slope and the plainest sharpness tried, from the closed form."""
    c = np.logspace(-2, 3, 11)[:, None]
    half = lambertw(c).real / 2  # alpha rho^2, with rho = 1
    kappa = np.exp(half)
    slope = np.linspace(0.505, 0.995, 40)
    sync = np.sqrt(np.exp(-2 * half * slope**2) - slope**2 / kappa**2)
    best = (sync / (1 + sync)).max()
    assert numbers["previous_token"]["symmetric"]["weight"] == pytest.approx(best, rel=1e-6)
    assert best < 0.5

"""The closed form: integration, settling and drifting against SciPy's integrators and formulas."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp

from syncattn_lab.paper.closed_form import pairs
from syncattn_lab.paper.closed_form.claims import SECTION
from syncattn_lab.paper.judge import HOLDS


@pytest.fixture(scope="module")
def numbers(measured):
    return measured(SECTION, seed=1)


def test_verdicts(numbers):
    claims = SECTION.claims(numbers)
    assert [claim.name for claim in claims] == ["single-pass", "closed-form-identity"]
    for claim in claims:
        assert claim.verdict == HOLDS
        assert claim.shown, [check for check in claim.checks if not check.met]


@pytest.mark.parametrize(
    ("path", "value", "name"),
    [
        (("pass", "kernels_at_edge"), 1000, "single-pass"),
        (("pass", "repeats_alike"), False, "single-pass"),
        (("pass", "kernels"), 10_000, "single-pass"),
        (("pass", "integration", -1, "kernels"), 1, "single-pass"),
        (("pairs", "difference"), 1e-3, "single-pass"),
        (("pairs", "inner"), 0, "single-pass"),
        (("pairs", "mean_when_drifting"), 0.1, "single-pass"),
        (("slowing", 2, "rate"), 0.5, "single-pass"),
        (("identity", "difference"), 1e-6, "closed-form-identity"),
        (("identity", "disagree"), 1, "closed-form-identity"),
        (("radius", "difference"), 1e-6, "closed-form-identity"),
    ],
)
def test_checks_can_fail(numbers, path, value, name, falls):
    falls(SECTION, numbers, path, value, name)


def test_drawing(numbers, drawn):
    drawn(SECTION, numbers)


def test_a_course_against_scipy():
    """Steps of the integration against an adaptive one, for a locked and an unlocked pair."""
    ratio = torch.tensor([0.8, 1.3], dtype=torch.float64)
    phase = torch.full_like(ratio, -1.0)
    for _ in range(100):
        phase = pairs.step(phase, ratio, 0.1)
    for x, found in zip(ratio.tolist(), phase.tolist()):
        exact = solve_ivp(lambda t, y, x=x: x - np.sin(y), (0, 10), [-1.0], rtol=1e-11, atol=1e-12)
        assert found == pytest.approx(exact.y[0, -1], abs=1e-5)


def test_settle_ends_at_the_fixed_point():
    ratio = torch.tensor([0.0, 0.3, 0.9, 0.99], dtype=torch.float64)
    scale = torch.tensor([1.0, 0.5, 0.2, 0.7], dtype=torch.float64)
    found, done, steps = pairs.settle(ratio, scale, 1e-8, 10_000)
    wanted = [j * math.cos(math.asin(x)) for x, j in zip(ratio.tolist(), scale.tolist())]
    assert found.tolist() == pytest.approx(wanted, abs=1e-8)
    assert done.max() <= steps < 10_000
    _, done, steps = pairs.settle(ratio, scale, 1e-8, 3)
    assert steps == 3 and done.tolist() == [3] * 4  # it says that it gave up


def test_mean_of_a_drifting_pair():
    """The mean over a turn, by quadrature over the phase: the time spent at psi goes as 1 / (x - sin psi)."""
    for x in (1.05, 3.0):
        wanted = quad(lambda psi, x=x: math.cos(psi) / (x - math.sin(psi)), 0, 2 * math.pi)[0]
        period = quad(lambda psi, x=x: 1 / (x - math.sin(psi)), 0, 2 * math.pi)[0]
        assert period == pytest.approx(2 * math.pi / math.sqrt(x * x - 1), rel=1e-8)
        found = pairs.mean_when_drifting(torch.tensor([x], dtype=torch.float64))
        assert float(found) == pytest.approx(wanted / period, abs=1e-6)


def test_relaxation_rate_is_the_derivative_of_the_field():
    ratio = torch.tensor([0.0, 0.6, 0.96], dtype=torch.float64)
    assert pairs.relaxation_rate(ratio).tolist() == pytest.approx([1.0, 0.8, 0.28], rel=1e-3)


def test_kernels_counts_operations():
    x = torch.ones(3)
    assert pairs.kernels(lambda: x + x) == 1
    assert pairs.kernels(lambda: (x + x).sin() * x) == 3

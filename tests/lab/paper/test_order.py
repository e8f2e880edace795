"""The order parameter's numbers against quadrature and sums of their own, the claims and the picture."""

import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from syncattn.drawing import style
from syncattn_lab.paper.order import measure
from syncattn_lab.paper.order.claims import SECTION


@pytest.fixture(scope="module")
def numbers(measured):
    return measured(SECTION)


def test_expected_order_parameter_of_two_phases_by_quadrature():
    """|mean of two phasors| = |cos(half their difference)|; the difference has twice the variance."""
    variance = 1 / 3
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    exact = (weights * np.abs(np.cos(0.5 * math.sqrt(2 * variance) * nodes))).sum() / weights.sum()
    level = measure.coherence(variance)
    assert measure.expected(level, 2) == pytest.approx(exact, abs=0.003)
    square = (weights * np.cos(0.5 * math.sqrt(2 * variance) * nodes) ** 2).sum() / weights.sum()
    assert measure.root_mean_square(level, 2) == pytest.approx(math.sqrt(square), abs=1e-12)


@pytest.mark.parametrize("tokens", [8, 64, 256])
def test_expected_order_parameter_by_simulation(tokens):
    random = np.random.default_rng(0)
    phase = random.normal(scale=math.sqrt(1 / 3), size=(4_000_000 // tokens, tokens))
    r = np.abs(np.exp(1j * phase).mean(1))
    error = r.std() / math.sqrt(len(r))
    level = math.exp(-1 / 6)
    assert abs(r.mean() - measure.expected(level, tokens)) < 4 * error + 0.01 / tokens**2
    assert abs(math.sqrt((r**2).mean()) - measure.root_mean_square(level, tokens)) < 4 * error


def test_distribution_is_that_of_the_phases(numbers):
    """The mean and the spreads from the JSON's own values, and the spread that theory gives one head."""
    r = np.array(numbers["value"]["r"])
    assert r.shape == (40, 8)
    assert numbers["value"]["mean"] == pytest.approx(r.mean(), abs=1e-6)
    assert numbers["value"]["sd"]["all heads and inputs"] == pytest.approx(r.std(ddof=1), abs=1e-6)
    assert numbers["value"]["sd"]["inputs, one head"] == pytest.approx(r.std(0, ddof=1).mean(), abs=1e-6)
    level = math.exp(-1 / 6)  # Var cos t = (1 + R^4) / 2 - R^2, over n tokens and p nearly independent phases
    spread = math.sqrt(((1 + level**4) / 2 - level**2) / numbers["tokens"] / numbers["phases"])
    assert spread < numbers["value"]["sd"]["inputs, one head"] < 1.3 * spread


def test_running_form_is_a_prefix_mean():
    torch.manual_seed(0)
    projection = torch.nn.Linear(measure.WIDTH, measure.WIDTH)
    with torch.no_grad():
        found = measure.running_form(projection, 1, torch.Generator().manual_seed(3))
        x = torch.randn(1, measure.CAUSAL_TOKENS, measure.WIDTH, generator=torch.Generator().manual_seed(3))
        phase = projection(x)[0].double().numpy().reshape(-1, measure.HEADS, measure.PHASES)
    for n in (1, 2, 7, 512):
        want = np.abs(np.exp(1j * phase[:n]).mean(0)).mean(-1)
        assert found["mean"][n - 1] == pytest.approx(want.mean(), abs=2e-6)
        assert found["sd"][n - 1] == pytest.approx(want.std(), abs=3e-4)


def test_alike_tokens(numbers):
    alike = numbers["alike"]
    q, r = np.array(alike["correlation"]), np.array(alike["r"])
    assert np.abs(r - np.exp(-(1 - q) / 6)).max() < 0.006
    assert r[-1] == pytest.approx(1, abs=1e-5)
    assert alike["density_default"][0] == 0 and alike["density_default"][-1] == 1
    assert alike["density_figure"] == [1.0] * len(q)


@pytest.mark.parametrize("is_causal", [False, True])
def test_operations_are_counted(is_causal):
    """cos and sin of every phase, their sums and lengths, at least; and no more than a few dozen."""
    phases = 50 * measure.HEADS * measure.PHASES
    assert 4 * phases < measure.operations_of_r(50, is_causal) < 40 * phases


def test_memory(numbers):
    """At least the phases themselves; and where it cannot be measured, no check and no number."""
    used = numbers["memory"]
    if "no_memory" not in used:
        for name in ("global", "causal"):
            for tokens, peak in zip(used["sizes"], used[name]):
                phases = 4 * measure.HEADS * measure.PHASES * tokens
                assert phases < peak < 12 * phases
        wrong = numbers | {"memory": used | {"causal": [10**6 * 4**n for n in range(len(used["sizes"]))]}}
        assert not SECTION.claims(wrong)[2].shown
    without = SECTION.claims(numbers | {"memory": {"no_memory": "for a reason"}})[2]
    assert without.shown and len(without.checks) == 3 and "not measured" in without.finding


def test_claims_are_shown(numbers):
    found = {claim.name: claim for claim in SECTION.claims(numbers)}
    assert set(found) == {"order-parameter-value", "order-parameter-meaning", "linear-phases"}
    assert all(claim.shown for claim in found.values())


@pytest.mark.parametrize(
    "claim, path, wrong",
    [
        ("order-parameter-value", ("value", "mean"), 0.9),
        ("order-parameter-value", ("value", "sd", "all heads and inputs"), 0.0008),
        ("order-parameter-value", ("value", "phase_variance"), 1.0),
        ("order-parameter-value", ("value", "predicted_from_weights"), 0.85),
        ("order-parameter-value", ("running", "mean", 0), 0.99),
        ("order-parameter-value", ("running", "largest_gap"), 0.01),
        ("order-parameter-meaning", ("alike", "density_default", 0), 1e-6),
        ("order-parameter-meaning", ("alike", "density_figure", 0), 0.99),
        ("order-parameter-meaning", ("alike", "r_figure", 2), 0.5),
        ("order-parameter-meaning", ("alike", "r", 3), 0.5),
        ("linear-phases", ("counted", "global", -1), 10**9),
        ("linear-phases", ("counted", "pairs", -1), 10),
    ],
)
def test_claims_can_fail(numbers, claim, path, wrong, shown_with):
    assert not shown_with(SECTION, numbers, path, wrong)[claim]


def test_drawing(numbers):
    with style():
        figure = SECTION.drawings[0].draw(numbers)
        figure.canvas.draw()
    assert isinstance(figure, Figure) and len(figure.axes) == 3

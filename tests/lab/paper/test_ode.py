"""The section `ode`: its verdicts stand on a quick measurement and fall with their numbers."""

import copy
import math

import pytest
from matplotlib.figure import Figure

from syncattn.drawing import png, style
from syncattn_lab.paper.judge import HOLDS, HOLDS_IF
from syncattn_lab.paper.ode.claims import SECTION

VERDICTS = {
    "two-oscillators": HOLDS,
    "unlocked-pairs-are-zero": HOLDS,
    "order-parameter-selfconsistent": HOLDS,
    "vector-frequencies": HOLDS_IF,
    "network-steady-state": HOLDS_IF,
}


@pytest.fixture(scope="module")
def numbers(measured):
    return measured(SECTION)


def test_every_claim_is_shown(numbers):
    claims = SECTION.claims(numbers)
    assert {claim.name: claim.verdict for claim in claims} == VERDICTS
    for claim in claims:
        assert claim.shown, [check for check in claim.checks if not check.met]


def test_the_measured_cosines_are_those_of_the_closed_form(numbers):
    locked, drifting = numbers["pairs"]["locked"], numbers["pairs"]["drifting"]
    for x, cosine in zip(locked["ratio"], locked["cosine"]):
        assert cosine == pytest.approx(math.cos(math.asin(x)), abs=1e-6)
    for x, sine, cosine in zip(drifting["ratio"], drifting["mean_sine"], drifting["mean_cosine"]):
        assert sine == pytest.approx(math.copysign(abs(x) - math.sqrt(x * x - 1), x), abs=1e-2)
        assert abs(cosine) < 1e-2
    assert numbers["double_count"]["last_locked_with_r"] == pytest.approx(math.sin(math.pi / 3), abs=0.01)
    assert numbers["double_count"]["cosine_at_0.8_with_r"] == pytest.approx(math.sqrt(0.2), abs=1e-4)


def test_the_lorentzian_follows_its_closed_form(numbers):
    order = numbers["order"]
    for ratio, r in zip(order["ratio"], order["lorentzian"]["r"]):
        if ratio > 1:
            assert r == pytest.approx(math.sqrt(1 - 1 / ratio), abs=5e-3)


FALSE = [
    ("two-oscillators", ("pairs", "locked", "error"), 1e-3),
    ("two-oscillators", ("pairs", "locked", "error_torch"), 1e-3),
    ("two-oscillators", ("pairs", "drifting", "error_frequency"), 0.1),
    ("unlocked-pairs-are-zero", ("pairs", "drifting", "largest_cosine"), 0.05),
    ("unlocked-pairs-are-zero", ("pairs", "drifting", "beats"), 150.0),
    ("unlocked-pairs-are-zero", ("pairs", "drifting", "error_sine"), 0.05),
    ("order-parameter-selfconsistent", ("order", "lorentzian", "error"), 0.01),
    ("order-parameter-selfconsistent", ("order", "gaussian", "largest_below"), 0.1),
    ("order-parameter-selfconsistent", ("order", "projected"), 0.3),
    ("vector-frequencies", ("vector", "error"), 1e-3),
    ("vector-frequencies", ("vector", "largest_eigenvalue"), 0.1),
    ("vector-frequencies", ("vector", "components", -1, "component_density"), 0.05),
    ("vector-frequencies", ("vector", "components", 0, "vector_agreement"), 0.9),
    ("network-steady-state", ("networks", "separated", "agreement"), 0.95),
    ("network-steady-state", ("networks", "separated", "error_within"), 0.05),
    ("network-steady-state", ("networks", "broad, alpha 0.5", "agreement"), 0.95),
    ("network-steady-state", ("networks", "mean field, K 6", "agreement"), 0.98),
    ("network-steady-state", ("networks", "broad, alpha 0.1, K 18", "error"), 0.1),
    ("network-steady-state", ("networks", "broad, alpha 0.1, K 18", "locked_density"), 0.95),
    ("network-steady-state", ("networks", "broad, alpha 0.5", "transitivity_rule"), 1.0),
    ("network-steady-state", ("networks", "broad, alpha 0.5", "error_best_kappa"), 0.001),
    ("network-steady-state", ("networks", "mean field", "error_local_field"), 0.1),
    ("network-steady-state", ("double_count", "last_locked_with_r"), 0.99),
]


@pytest.mark.parametrize(("claim", "path", "value"), FALSE)
def test_a_false_number_is_noticed(numbers, claim, path, value):
    changed = copy.deepcopy(numbers)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    assert path[-1] in inner if isinstance(inner, dict) else True
    inner[path[-1]] = value
    shown = {one.name: one.shown for one in SECTION.claims(changed)}
    assert [name for name, is_shown in shown.items() if not is_shown] == [
        name for name in VERDICTS if name == claim or (path[-1] == "beats" and name == "two-oscillators")
    ]


def test_pictures_and_table_are_made_from_the_numbers(numbers):
    for drawing in SECTION.drawings:
        with style():
            figure = drawing.draw(numbers)
        assert isinstance(figure, Figure) and figure.axes
        assert png(figure).startswith(b"\x89PNG")
    lines = SECTION.table(numbers).splitlines()
    assert len(lines) == 2 + len(numbers["networks"])
    assert len({line.count("|") for line in lines}) == 1

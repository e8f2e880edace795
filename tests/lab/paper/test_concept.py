"""Figure 1's numbers against the formulas written out, and its claim and picture."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from syncattn.drawing import style
from syncattn_lab.paper.concept import measure
from syncattn_lab.paper.concept.claims import SECTION


@pytest.fixture(scope="module")
def numbers(measured):
    return measured(SECTION)


def test_sync_is_the_published_formula(numbers):
    w = np.array(numbers["frequency"])
    distance = np.abs(w[:, None] - w)
    kernel = np.exp(-numbers["bandwidth"] * distance**2)
    ratio = distance / (numbers["coupling"] * kernel)
    want = np.where(ratio <= 1, kernel * np.cos(np.arcsin(np.minimum(ratio, 1))), 0)
    assert np.abs(np.array(numbers["sync"]) - want).max() < 1e-12
    assert np.array_equal(np.array(numbers["sync"]) == 0, distance > numbers["radius"])


def test_sorting_by_frequency_makes_the_blocks(numbers):
    assert np.all(np.diff(np.array(numbers["frequency"])[numbers["order"]]) > 0)
    assert [numbers["words"][i] for i in numbers["order"]] == ["The", "the", "on", ".", "cat", "mat", "sat"]
    assert numbers["blocks"] == 2 and numbers["blocks_in_sentence"] == 1


def test_phases_are_a_steady_state_of_the_group(numbers):
    """At the moment shown every oscillator of a group has the group's speed, up to the other group's pull."""
    w, phi = np.array(numbers["frequency"]), np.array(numbers["phase"])
    pull = numbers["coupling"] / len(w) * np.exp(-numbers["bandwidth"] * (w[:, None] - w) ** 2)
    group = np.array(numbers["group"])
    same = group[:, None] == group
    speed = w + (pull * same * np.sin(phi - phi[:, None])).sum(1)
    other = (pull * ~same).sum(1).max()
    for g in (0, 1):
        assert np.ptp(speed[group == g]) < 2 * other < 0.2
        # the group's own pull cancels in its mean
        assert np.mean(speed[group == g]) == pytest.approx(w[group == g].mean(), abs=1e-12)
        assert np.mean(np.array(numbers["mean_frequency"])[group == g]) == pytest.approx(
            w[group == g].mean(), abs=0.01
        )


def test_two_oscillators_settle_at_the_closed_form():
    kappa, alpha, detuning = 1.5, 0.3, 0.4
    found = measure.phases(np.array([0.0, detuning]), kappa, alpha, np.array([0, 1]), 200.0)
    ratio = detuning / (kappa * np.exp(-alpha * detuning**2))
    assert np.sin(found["phase"][1] - found["phase"][0]) == pytest.approx(ratio, abs=1e-5)
    assert found["gap_between"] == pytest.approx(0, abs=1e-6)


def test_claim_is_shown_and_can_fail(numbers):
    (claim,) = SECTION.claims(numbers)
    assert claim.shown
    for key, wrong in {
        "zeros_across": 23,
        "zeros_within": 1,
        "ones_on_diagonal": 6,
        "asymmetry": 1e-9,
        "blocks": 1,
        "least_within": 0.0,
        "spread_within": 0.1,
        "gap_between": 0.1,
    }.items():
        assert not SECTION.claims(numbers | {key: wrong})[0].shown, key


def test_drawing(numbers):
    with style():
        figure = SECTION.drawings[0].draw(numbers)
        figure.canvas.draw()
    assert isinstance(figure, Figure)
    written = {text.get_text() for axes in figure.axes for text in axes.texts}
    assert set(numbers["words"]) <= written

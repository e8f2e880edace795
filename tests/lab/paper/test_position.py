"""Proposition 2: windows, bounds and invariances of position in the frequency, against NumPy."""

import numpy as np
import pytest
import torch

from syncattn_lab.paper.judge import FAILS, HOLDS, HOLDS_IF
from syncattn_lab.paper.position import layers
from syncattn_lab.paper.position.claims import SECTION
from syncattn_lab.paper.random_blocks import drifting_layer


@pytest.fixture(scope="module")
def numbers(measured):
    return measured(SECTION, seed=1)


def test_verdicts(numbers):
    claims = {claim.name: claim for claim in SECTION.claims(numbers)}
    assert {name: claim.verdict for name, claim in claims.items()} == {
        "position-as-published": FAILS,
        "position-with-drift": HOLDS_IF,
        "translation-invariance": HOLDS,
        "extrapolation": HOLDS_IF,
    }
    for claim in claims.values():
        assert claim.shown, [check for check in claim.checks if not check.met]


@pytest.mark.parametrize(
    ("path", "value", "name"),
    [
        (("permutation", "published"), 1e-3, "position-as-published"),
        (("permutation", "moved"), 1e-9, "position-as-published"),
        (("permutation", "drift"), 0.0, "position-as-published"),
        (("own_drift", "wrong"), 1, "position-with-drift"),
        (("own_drift", "exceeded"), 1, "position-with-drift"),
        (("shared_drift", "of_spread"), 1.01, "position-with-drift"),
        (("shared_drift", "of_weights"), 1.01, "position-with-drift"),
        (("reversal", "own_drift"), 0.1, "position-with-drift"),
        (("translation", 0, "difference"), 1e-3, "translation-invariance"),
        (("translation", 2, "changed"), 0.5, "translation-invariance"),
        (("extrapolation", "drift", "change"), 1e-3, "extrapolation"),
        (("extrapolation", "own_drift", "locked", -1), 99.0, "extrapolation"),
        (("coherence", "last"), 0.5, "extrapolation"),
        (("default_layer", "relative"), 0.05, "extrapolation"),
    ],
)
def test_checks_can_fail(numbers, path, value, name, falls):
    falls(SECTION, numbers, path, value, name)


def test_drawing(numbers, drawn):
    drawn(SECTION, numbers)


def test_pictured_windows(numbers):
    """The picture's matrices keep within their bounds, and fill that of the drift in its own coordinate."""
    matrices = numbers["matrices"]

    def farthest(name):
        i, j = np.nonzero(np.array(matrices[name]))
        return np.abs(i - j).max()

    assert farthest("own_drift") <= matrices["window"] == 8
    assert matrices["window"] < farthest("drift") <= matrices["bound_of_spread"]
    assert matrices["bound_of_spread"] <= matrices["bound_of_weights"]
    assert farthest("none") > matrices["bound_of_weights"]


def test_synchronization_of_a_drift_of_its_own():
    """S and the windows of heads whose frequencies are written out: (W x_i, slope i)."""
    layer = drifting_layer("own_drift", 6, 3, seed=0)
    radius, slope = np.array([0.72, 2.1, 3.3]), np.array([0.05, 0.4, 0.9])
    layers.set_locking(layer, torch.from_numpy(radius), 10.0)
    layers.set_slope(layer, torch.from_numpy(slope))
    x = layers.tokens_of(4, 30, 6)
    for first in (0, 5000):
        found = layers.synchronization(layer, x, first).numpy()
        weight = layer.frequency.receive_proj.weight.numpy().reshape(3, 3, 6)
        kappa, alpha = layer.coupling.numpy(), layer.bandwidth.numpy()
        place = first + np.arange(30)
        for h in range(3):
            content = x[0].numpy() @ weight[h].T
            squared = ((content[:, None] - content) ** 2).sum(-1)
            squared += slope[h] ** 2 * (place[:, None] - place) ** 2
            margin = np.exp(-2 * alpha[h] * squared) - squared / kappa[h] ** 2
            assert np.abs(found[h] - np.sqrt(np.maximum(margin, 0))).max() < 1e-7
    empty = layers.synchronization(layer, torch.zeros(1, 30, 6))
    assert layers.farthest_locked(empty).tolist() == [14, 5, 3]


def test_bound_from_the_weights():
    """No layer-normalised token, however chosen, lies farther along u than |W^T u| sqrt(E)."""
    layer = drifting_layer("drift", 12, 2, seed=1)
    weight = layer.frequency.receive_proj.weight.view(2, 4, 12)
    unit = torch.nn.functional.normalize(layer.frequency.direction, dim=-1)
    along = (unit[:, :, None] * weight).sum(1)  # (H, E)
    extreme = torch.nn.functional.layer_norm(torch.stack((along[0], -along[0])), (12,))[None]
    _, spread, norm = layers.content_along_drift(layer, extreme)
    assert torch.allclose(norm, along.norm(dim=-1))
    assert 0.8 * 2 * norm[0] * 12**0.5 < spread[0] <= 2 * norm[0] * 12**0.5


def test_running_coherence_against_the_law(numbers):
    """E r^2 = R^2 + (1 - R^2) / n with R = exp(-1/6); the mean of r itself is a little lower."""
    squared = np.exp(-1 / 3)
    for name, n in (("1", 1), ("2", 2), ("128", 128)):
        law = np.sqrt(squared + (1 - squared) / n)
        assert 0.98 * law <= numbers["coherence"][name] <= 1.01 * law

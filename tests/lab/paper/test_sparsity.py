"""Theorem 2: the laws against scipy's, the counters against backends that are wrong on purpose."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy.special import gammaincinv
from scipy.stats import chi2

from syncattn.drawing import png, style
from syncattn_lab.paper.sparsity import measure
from syncattn_lab.paper.sparsity.claims import SECTION


@pytest.fixture(scope="module")
def numbers(measured):
    return measured(SECTION)


def test_law_is_the_chi_squared_one(numbers):
    s2 = numbers["variance"]
    for one in numbers["law"]:
        m = one["m"]
        scale = math.sqrt(2 * m * s2)
        for point in one["points"]:
            # in float32 the calibrated radius is right to about 1e-6
            wanted = chi2.cdf((point["radius"] * scale) ** 2 / (2 * s2), m)
            assert point["law"] == pytest.approx(wanted, rel=1e-4)
            error = math.sqrt(wanted * (1 - wanted) / numbers["pairs"])
            assert point["standard_errors"] == pytest.approx((point["measured"] - wanted) / error, abs=0.02)
        radius = np.array(one["curve"]["radius"]) * scale
        assert np.allclose(one["curve"]["density"], chi2.cdf(radius**2 / (2 * s2), m), atol=1e-9)
        width = math.sqrt(gammaincinv(m / 2, 0.9) / gammaincinv(m / 2, 0.1))
        assert one["width"]["law"] == pytest.approx(width, rel=1e-6)
        assert one["width"]["measured"] == pytest.approx(width, rel=0.1)


@pytest.mark.parametrize("m", [2, 8])
def test_mixture_by_drawing_otherwise(m):
    """One cluster is the plain law; two, drawn by numpy from the same centres."""
    g = torch.Generator().manual_seed(3)
    alone = measure._mixture(m, (1.0,), 4.0, 20_000, g)
    for radius, density in zip(alone["curve"]["radius"], alone["curve"]["density"]):
        assert density == pytest.approx(chi2.cdf(radius**2 * m, m), abs=1e-7)

    g = torch.Generator().manual_seed(4)
    two = measure._mixture(m, (0.7, 0.3), 4.0, 20_000, g)
    g.manual_seed(4)
    centres = (torch.randn(2, m, generator=g, dtype=torch.float64) * 2).numpy()
    draw = np.random.default_rng(0)
    at = draw.choice(2, (2, 50_000), p=(0.7, 0.3))
    difference = centres[at[0]] - centres[at[1]] + math.sqrt(2) * draw.standard_normal((50_000, m))
    distance = np.linalg.norm(difference, axis=1) / math.sqrt(2 * m)
    for point in two["points"]:
        share = (distance < point["radius"]).mean()
        assert share == pytest.approx(point["law"], abs=0.01)
        assert point["measured"] == pytest.approx(point["law"], abs=0.02)


def test_a_layers_own_projection():
    """An nn.Linear's, pairs counted by their distances; the correction by its eigenvalues."""
    torch.manual_seed(0)
    projection = torch.nn.Linear(512, 64, bias=False).double()
    with torch.no_grad():
        w = projection(torch.randn(600, 512, dtype=torch.float64))
        eigenvalues = torch.linalg.eigvalsh(projection.weight @ projection.weight.T) * 3
    effective = float(eigenvalues.sum() ** 2 / eigenvalues.square().sum())
    assert effective == pytest.approx(64 / (1 + 64 / 512), rel=0.02)
    squared = torch.nn.functional.pdist(w).square().numpy() * 3 / 2
    found = measure._layer(200, torch.Generator().manual_seed(1))
    for one, tolerance in zip(found, (0.012, 0.04)):
        share = (squared < chi2.ppf(one["law"], 64)).mean()
        assert one["corrected"] == pytest.approx(share, abs=tolerance)
        assert one["measured"] == pytest.approx(share, abs=tolerance)


def test_published_settings(numbers):
    at = numbers["published"]
    assert at["pairs"] == 8 * at["tokens"] * (at["tokens"] - 1)
    # theory: rho^2 = .4152 and 249.9, with s^2 = 1/3
    assert at["published_default"]["law"] == pytest.approx(chi2.cdf(0.4152 * 1.5, 64), rel=0.05)
    assert at["published_default"]["radius"] ** 2 * 128 / 3 == pytest.approx(0.4152, rel=1e-3)
    assert at["published_figure"]["radius"] ** 2 * 128 / 3 == pytest.approx(249.9, rel=1e-3)


def test_every_available_backend_was_looked_at(numbers):
    backends = {name.split(",")[0] for name in numbers["zeros"]}
    assert {"eager", "tiled"} <= backends
    dtypes = {name.split(", ")[1] for name in numbers["zeros"] if name.startswith("eager")}
    assert dtypes == {"float64", "float32", "bfloat16", "float16"}
    for one in numbers["zeros"].values():
        assert one["unlocked"] > 1000 and one["locked"] > 100


def test_a_backend_that_leaks_is_caught(monkeypatch):
    """One that gives every pair a little weight, and one that drops weak pairs."""
    honest = measure._attend

    def leaking(frequency, value, strengths, backend):
        return honest(frequency, value, strengths, backend) + 1e-30 * value.sum(-2, keepdim=True)

    monkeypatch.setattr(measure, "_attend", leaking)
    found = measure._zeros(32, torch.Generator().manual_seed(0))["eager, float64"]
    assert found["unlocked_not_zero"] == found["unlocked"] > 0

    def dropping(frequency, value, strengths, backend):
        out = honest(frequency, value, strengths, backend)
        return out.where(out > 0.2, 0.0)

    monkeypatch.setattr(measure, "_attend", dropping)
    assert measure._zeros(32, torch.Generator().manual_seed(0))["eager, float64"]["locked_zero"] > 0


def test_claims_are_shown(numbers):
    claims = SECTION.claims(numbers)
    assert [claim.name for claim in claims] == ["exact-zeros", "density-law", "sparsity-is-tuned"]
    for claim in claims:
        assert claim.shown, [check for check in claim.checks if not check.met]


@pytest.mark.parametrize(
    ("claim", "path", "value"),
    [
        *(
            (0, ("zeros", "eager, float64", key), 1)
            for key in (
                "unlocked_not_zero",
                "locked_zero",
                "negative",
                "rows_without_it_changed",
                "rows_with_it_unchanged",
            )
        ),
        (1, ("law", 3, "points", 2, "standard_errors"), -5.0),
        (1, ("mixtures", 1, "points", 2, "standard_errors"), 5.0),
        (1, ("layer", 0, "measured"), 0.1),
        (1, ("layer", 0, "law"), 0.02),
        (1, ("layer", 1, "measured"), 0.6),
        (1, ("layer", 1, "law"), 0.4),
        (2, ("law", 0, "width", "measured"), 5.0),
        (2, ("law", -1, "width", "measured"), 1.5),
        (2, ("law", -1, "off_by", "below"), 0.2),
        (2, ("law", -1, "off_by", "above"), 0.8),
        (2, ("law", -1, "points", 1, "measured"), 0.1),
        (2, ("law", -1, "points", 4, "measured"), 0.6),
        (2, ("published", "published_default", "law"), 0.1),
        (2, ("published", "published_default", "locked"), 1),
        (2, ("published", "published_figure", "locked"), 1),
    ],
)
def test_checks_are_alive(numbers, claim, path, value):
    false = copy.deepcopy(numbers)
    at = false
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    assert not SECTION.claims(false)[claim].shown


def test_picture(numbers):
    for drawing in SECTION.drawings:
        with style():
            assert png(drawing.draw(numbers)).startswith(b"\x89PNG")

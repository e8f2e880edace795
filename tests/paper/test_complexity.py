"""Proposition 1: counts against closed forms, what the section measures, and what its claims rest on."""

import copy
import json

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scipy.special import lambertw

from syncattn.bench.published import published_attention
from syncattn.drawing import style
from syncattn.paper.measures.operations import count, exponent
from syncattn.paper.measures.peak import peak_bytes
from syncattn.paper.section import HOLDS, HOLDS_IF, Plan
from syncattn.paper.sections import complexity
from syncattn.paper.sections.complexity import DENSE, DRIFT, FIXED, ONE, SECTION, SPARSE

COUNTS = 8  # sizes in numbers["counts"]


@pytest.fixture(scope="module")
def numbers():
    """A quick measurement, as it comes back from JSON."""
    return json.loads(json.dumps(SECTION.measure(Plan(quick=True), lambda line: None)))


@pytest.mark.parametrize(
    ("function", "shapes", "products", "elements"),
    [
        (lambda a, b: a @ b, [(5, 7), (7, 3)], 2 * 5 * 7 * 3, 0),
        (lambda a: torch.exp(a), [(5, 7)], 0, 35),
        (lambda a: a.sum(-1), [(5, 7)], 0, 35),
        (lambda a: a.view(35).view(7, 5).transpose(0, 1), [(5, 7)], 0, 0),
        (lambda a: a.topk(2, dim=-1), [(5, 7)], 0, 35),
        (lambda a, b: a[:, None] + b, [(5,), (7,)], 0, 35),
        (lambda a: a.clamp_(min=0).mul(2), [(5, 7)], 0, 70),
    ],
    ids=["product", "exp", "sum", "views", "topk", "broadcast", "in place"],
)
def test_operations_are_counted_once(function, shapes, products, elements):
    assert count(function, *shapes) == (products, elements)


@pytest.mark.parametrize("tokens", [96, 200])
def test_products_of_the_published_form(tokens):
    """Two products of 2 N^2 d and nothing else, whatever the top-k."""
    shape = (1, tokens, 1, 64)
    for top_k in (None, 16):
        found = count(lambda *x, k=top_k: published_attention(*x, top_k=k), shape, shape, (1,), (1,))
        assert found.products == 4 * tokens**2 * 64


def test_exponent_and_polynomial():
    sizes = [100, 200, 400, 800]
    rng = np.random.default_rng(0)
    values = [3 * n**1.7 * factor for n, factor in zip(sizes, rng.uniform(0.8, 1.2, 4))]
    assert exponent(sizes, values) == pytest.approx(
        np.polyfit(np.log(sizes), np.log(values), 1)[0], rel=1e-12
    )
    assert complexity.quadratic([7 * n * n + 5 * n + 3 for n in sizes], sizes) == (7, 5, 3)


def test_one_coordinate_against_all_pairs(numbers):
    """Stretches between two searches, against |w_i - w_j| <= rho over all pairs; rho by scipy's Lambert W."""
    generator = torch.Generator().manual_seed(0)
    for tokens, visited in zip(numbers["sorted"]["tokens"], numbers["sorted"]["visited"]):
        w = torch.randn(tokens, generator=generator, dtype=torch.float64).numpy()
        density = torch.tensor(64 / tokens, dtype=torch.float64)
        coupling, bandwidth = (float(x) for x in complexity.locking.calibrate(density, 1, 100.0))
        radius = np.sqrt(lambertw(2 * bandwidth * coupling**2).real / (2 * bandwidth))
        assert visited == (np.abs(w[:, None] - w) <= radius).sum()
        assert 40 * tokens < visited < 90 * tokens


def test_peak_memory_is_that_of_the_matrices_held(numbers):
    """Eight N x N matrices and one of bytes are held at once: what the arithmetic's names hold."""
    if "no_memory" in numbers:
        pytest.skip(numbers["no_memory"])
    memory = numbers["series"][DENSE]["memory"]
    assert 8 < memory["bytes"][-1] / (4 * complexity.HEADS * memory["tokens"][-1] ** 2) < 9.5


def test_peak_memory_says_why_there_is_none(monkeypatch):
    monkeypatch.setattr("sys.executable", "/bin/false")
    assert peak_bytes("syncattn.paper.sections.complexity:make", []) == "the process failed: exit status 1"
    monkeypatch.setattr("syncattn.paper.measures.peak.unavailable", lambda device: "not here")
    assert peak_bytes("syncattn.paper.sections.complexity:make", []) == "not here"


def test_claims_are_shown(numbers):
    """All but the exponents of times, which another process may spoil: those have a wide range here."""
    found = {claim.name: claim for claim in SECTION.claims(numbers)}
    assert found["dense-complexity"].verdict == HOLDS and found["sparse-complexity"].verdict == HOLDS_IF
    for claim in found.values():
        for check in claim.checks:
            assert check.met or "time" in check.what, check


def test_the_cases_are_as_dense_as_they_say(numbers):
    series = numbers["series"]
    assert series[DRIFT]["keys_per_row"] < complexity.WINDOW + 2
    assert 0.03 < series[FIXED]["density"] < 0.08


@pytest.fixture
def nominal(numbers):
    """The measurement with a quiet machine's times, whatever this one was doing."""
    quiet = copy.deepcopy(numbers)
    for name, value in ((DENSE, 2.1), (SPARSE, 2.1), (DRIFT, 1.0), (ONE, 0.9)):
        quiet["series"][name]["exponent"] = quiet["series"][name]["last_doubling"] = value
    quiet["density"]["seconds"] = [0.3, 0.4, 0.6, 1.0, 1.0]
    assert all(claim.shown for claim in SECTION.claims(quiet))
    return quiet


@pytest.mark.parametrize(
    ("path", "value", "claim"),
    [
        (("counts", DENSE, "misfit"), 1.0, "dense-complexity"),
        (("counts", DENSE, "last_doubling"), 1.5, "dense-complexity"),
        (("series", DENSE, "last_doubling"), 1.0, "dense-complexity"),
        (("series", DENSE, "memory", "exponent"), 1.0, "dense-complexity"),
        (("counts", SPARSE, "last_doubling"), 1.0, "sparse-complexity"),
        (("counts", "before_mixing_last_doubling"), 1.0, "sparse-complexity"),
        (("counts", SPARSE, "operations"), [1] * COUNTS, "sparse-complexity"),
        (("series", SPARSE, "last_doubling"), 1.0, "sparse-complexity"),
        (("series", SPARSE, "memory", "exponent"), 1.0, "sparse-complexity"),
        (("series", DRIFT, "exponent"), 2.0, "sparse-complexity"),
        (("series", DRIFT, "memory", "exponent"), 2.0, "sparse-complexity"),
        (("series", ONE, "exponent"), 2.0, "sparse-complexity"),
        (("sorted", "difference"), 1, "sparse-complexity"),
        (("sorted", "exponent"), 2.0, "sparse-complexity"),
        (("density", "seconds"), [1.0] * 5, "sparse-complexity"),
    ],
)
def test_a_false_number_makes_its_claim_fall(nominal, path, value, claim):
    place = nominal
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    found = {one.name: one.shown for one in SECTION.claims(nominal)}
    assert not found.pop(claim) and all(found.values())


def test_drawing_and_claims_without_memory(numbers):
    without = copy.deepcopy(numbers) | {"no_memory": "Linux only"}
    for series in without["series"].values():
        series.pop("memory", None)
    with style():
        for given in (numbers, without):
            assert all(isinstance(one.draw(given), Figure) for one in SECTION.drawings)
    for claim in SECTION.claims(without):
        assert claim.checks and not any("memory" in check.what for check in claim.checks)

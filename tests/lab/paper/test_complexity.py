"""Proposition 1: counts against closed forms, what the section measures, and what its claims rest on."""

import copy

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scipy.special import lambertw

import syncattn
from syncattn.bench.published import published_attention
from syncattn.drawing import style
from syncattn_lab.paper.complexity import measure
from syncattn_lab.paper.complexity.claims import SECTION
from syncattn_lab.paper.complexity.measure import CONTENT, DENSE, DRIFT, FIXED, ONE, SPARSE
from syncattn_lab.paper.judge import HOLDS, HOLDS_IF
from syncattn_lab.paper.operations import count, exponent
from syncattn_lab.paper.peak import peak_bytes

COUNTS = 8  # sizes in numbers["counts"]


@pytest.fixture(scope="module")
def numbers(measured):
    return measured(SECTION)


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
    assert measure.quadratic([7 * n * n + 5 * n + 3 for n in sizes], sizes) == (7, 5, 3)


def test_one_coordinate_against_all_pairs(numbers):
    """Stretches between two searches, against |w_i - w_j| <= rho over all pairs; rho by scipy's Lambert W."""
    generator = torch.Generator().manual_seed(0)
    for tokens, visited in zip(numbers["sorted"]["tokens"], numbers["sorted"]["visited"]):
        w = torch.randn(tokens, generator=generator, dtype=torch.float64).numpy()
        density = torch.tensor(64 / tokens, dtype=torch.float64)
        coupling, bandwidth = (float(x) for x in measure.locking.calibrate(density, 1, 100.0))
        radius = np.sqrt(lambertw(2 * bandwidth * coupling**2).real / (2 * bandwidth))
        assert visited == (np.abs(w[:, None] - w) <= radius).sum()
        assert 40 * tokens < visited < 90 * tokens


def test_peak_memory_is_that_of_the_matrices_held(numbers):
    """Eight N x N matrices and one of bytes are held at once: what the arithmetic's names hold."""
    if "no_memory" in numbers:
        pytest.skip(numbers["no_memory"])
    memory = numbers["series"][DENSE]["memory"]
    assert 8 < memory["bytes"][-1] / (4 * measure.HEADS * memory["tokens"][-1] ** 2) < 9.5


def test_peak_memory_says_why_there_is_none(monkeypatch):
    monkeypatch.setattr("sys.executable", "/bin/false")
    assert peak_bytes("syncattn_lab.paper.complexity.measure:make", []) == "the process failed: exit status 1"
    monkeypatch.setattr("syncattn_lab.paper.peak.unavailable", lambda device: "not here")
    assert peak_bytes("syncattn_lab.paper.complexity.measure:make", []) == "not here"


def test_claims_are_shown(numbers):
    """And they tell the exponents of the times, round by round."""
    found = {claim.name: claim for claim in SECTION.claims(numbers)}
    assert found["dense-complexity"].verdict == HOLDS and found["sparse-complexity"].verdict == HOLDS_IF
    for claim in found.values():
        assert claim.shown, [check for check in claim.checks if not check.met]
    seconds = np.array(numbers["series"][DENSE]["seconds"], dtype=float)[-2:]
    doublings = np.log2(seconds[1] / seconds[0])
    wanted = np.nanquantile(doublings, [0.25, 0.5, 0.75])
    (told,) = found["dense-complexity"].times
    assert (told.low, told.median, told.high) == pytest.approx(wanted)


@pytest.mark.parametrize("name", [DRIFT, ONE, CONTENT])
def test_pairs_that_are_looked_at_hold_all_that_lock(name):
    """Tile by tile, against the locked pairs of the operator's own matrix."""
    case = measure.ours_case(name, 512)
    inputs = measure.make_inputs(case, seed=3)
    _, sync, _ = syncattn.selective_synchronization_attention(*inputs, **case.options(), return_weights=True)
    locked = sync[0, 0] > 0
    if name == ONE:
        order = inputs.send[0, 0, :, 0].argsort()
        locked = locked[order][:, order]
    tiles = locked.unflatten(1, (-1, 64)).unflatten(0, (-1, 64)).any(3).any(1)
    allowed = 36 if case.is_causal else 64
    found = measure.visited_pairs(case, seed=3) / 64**2
    assert tiles.sum() <= found <= allowed
    assert found == {DRIFT: 8 + 7 + 6, ONE: found, CONTENT: 64}[name]


def test_the_cases_are_as_dense_as_they_say(numbers):
    series = numbers["series"]
    assert series[DRIFT]["keys_per_row"] < measure.WINDOW + 2
    assert 0.03 < series[FIXED]["density"] < 0.08


@pytest.mark.parametrize(
    ("path", "value", "claim"),
    [
        (("counts", DENSE, "misfit"), 1.0, "dense-complexity"),
        (("counts", DENSE, "last_doubling"), 1.5, "dense-complexity"),
        (("series", DENSE, "memory", "exponent"), 1.0, "dense-complexity"),
        (("counts", SPARSE, "last_doubling"), 1.0, "sparse-complexity"),
        (("counts", "before_mixing_last_doubling"), 1.0, "sparse-complexity"),
        (("counts", SPARSE, "operations"), [1] * COUNTS, "sparse-complexity"),
        (("series", SPARSE, "memory", "exponent"), 1.0, "sparse-complexity"),
        (("series", DRIFT, "visited_exponent"), 2.0, "sparse-complexity"),
        (("series", DRIFT, "memory", "exponent"), 2.0, "sparse-complexity"),
        (("series", ONE, "visited_exponent"), 2.0, "sparse-complexity"),
        (("sorted", "difference"), 1, "sparse-complexity"),
        (("sorted", "exponent"), 2.0, "sparse-complexity"),
        (("series", CONTENT, "visited_exponent"), 1.0, "sparse-complexity"),
        (("density", "operations"), [1.0] * 5, "sparse-complexity"),
    ],
)
def test_a_false_number_makes_its_claim_fall(numbers, path, value, claim, falls):
    falls(SECTION, numbers, path, value, claim)


def test_drawing_and_claims_without_memory(numbers):
    without = copy.deepcopy(numbers) | {"no_memory": "Linux only"}
    for series in without["series"].values():
        series.pop("memory", None)
    with style():
        for given in (numbers, without):
            assert all(isinstance(one.draw(given), Figure) for one in SECTION.drawings)
    for claim in SECTION.claims(without):
        assert claim.checks and not any("memory" in check.what for check in claim.checks)

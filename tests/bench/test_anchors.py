"""The rivals of the GPU's suites, as far as a CPU can run them."""

import importlib.util
import types

import pytest
import torch

from syncattn.bench import anchors, operators
from syncattn.bench.checking import Truth, errors, truth, verdict
from syncattn.bench.contenders import ADASPLASH, SSA_FLEX, Contender, make
from syncattn.bench.inputs import Case, count_locked, make_inputs
from syncattn.bench.plan import BACKWARD, FORWARD
from syncattn.bench.session import Field

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without")
DRIFT = {"structure": "drift", "window": 16, "is_causal": True}
TILES = {"structure": "segments", "tiles": 0.25, "tokens": 512}
CASES = {
    "dense": {"density": 0.95},
    "sparse, directed": {"density": 0.05, "directed": True},
    "power 1": {"density": 0.1, "power": 1},
    "m 16": {"density": 0.2, "freq_dim": 16},
    "tiles": TILES,
    "tiles, causal": TILES | {"is_causal": True},
    "window": DRIFT,
    "window, rows without a lock": DRIFT | {"self_coupling": False},
}


def a_case(**fields) -> Case:
    return Case(**({"name": "x", "heads": 2, "tokens": 200, "head_dim": 32} | fields))


@pytest.mark.parametrize("dtype", ["fp32", "mixed"])
@pytest.mark.parametrize("name", CASES)
def test_flex_computes_the_operator(name, dtype):
    case = a_case(dtype=dtype, **CASES[name])
    inputs = make_inputs(case)
    made = make(SSA_FLEX, case, inputs, (FORWARD,))
    assert isinstance(made, Contender) and made.checked and not made.ours
    assert verdict(errors(made, truth(case, inputs, 64, 0, False), FORWARD), dtype) is None
    if name.startswith("window, rows"):
        assert not made.forward()[:, :, 0].any()  # no other token before it


@pytest.mark.parametrize("dtype", ["fp32", "mixed"])
@pytest.mark.parametrize("name", CASES)
def test_flex_has_the_operators_gradients(monkeypatch, name, dtype):
    """PyTorch refuses gradients on the CPU, where its plain formulation would have them."""
    flex = pytest.importorskip("torch.nn.attention.flex_attention")
    if not hasattr(flex, "_validate_device"):
        pytest.skip("this PyTorch refuses elsewhere")
    monkeypatch.setattr(flex, "_validate_device", lambda *each: None)
    case = a_case(dtype=dtype, **CASES[name])
    inputs = make_inputs(case)
    anchor = anchors.ssa_flex(case, inputs, True)
    assert not isinstance(anchor, str)
    found = errors(
        Contender(SSA_FLEX, anchor.forward, anchor.leaves), truth(case, inputs, 32, 0, True), BACKWARD
    )
    assert found.keys() == {"out", *anchor.leaves}
    if dtype == "fp32":
        assert anchor.coarse == () and verdict(found, dtype) is None
    else:
        assert "value" not in anchor.coarse and all(found[n] < 0.2 for n in anchor.coarse)
        assert verdict({n: e for n, e in found.items() if n not in anchor.coarse}, dtype) is None


def test_three_pieces_are_a_float32():
    x = torch.randn(1000) * 10.0 ** torch.randint(-4, 5, (1000,))
    x.requires_grad_()
    pieces = anchors.split(x, 3, torch.bfloat16)
    assert torch.equal(sum(each.float() for each in reversed(pieces)), x.detach())
    (gradient,) = torch.autograd.grad(sum(each.float().sum() for each in pieces), x)
    assert torch.equal(gradient, torch.ones_like(x))


def test_who_is_left_out_and_why():
    nearest = a_case(density=0.5, frame="nearest")
    assert "no nearest frame" in make(SSA_FLEX, nearest, make_inputs(nearest), (FORWARD,))
    case = a_case(density=0.5)
    inputs = make_inputs(case)
    assert make(SSA_FLEX, case, inputs, (BACKWARD,)) == "it is timed on GPUs only"
    reason = make(ADASPLASH, case, inputs, (FORWARD,))
    missing = importlib.util.find_spec("adasplash") is None
    assert reason == ("the package adasplash is not installed" if missing else "it is timed on GPUs only")


def test_a_wrong_anchor_is_told_and_a_coarse_gradient_is_not(monkeypatch):
    found = {"out": 1e-3, "receive": 0.1}
    monkeypatch.setattr(operators, "errors", lambda *each: found)
    right = Truth(*4 * (torch.zeros(1),))
    made = Contender(SSA_FLEX, lambda: torch.zeros(1), {}, checked=True, coarse=("receive",), note={"a": 1})

    def entered():
        field = Field({}, {}, {}, {}, frozenset(), {}, {})
        operators._enter(made, field, a_case(dtype="mixed"), right, BACKWARD)
        return field

    assert entered().runners and entered().notes == {SSA_FLEX: {"a": 1}}
    for change in ({"receive": float("inf")}, {"out": 0.1, "receive": 0.1}):
        found |= change
        assert not entered().runners and SSA_FLEX in entered().wrong


def test_positive_weights_are_those_of_entmax():
    scores = 3 * torch.randn(50, 40, dtype=torch.float64)
    scores[:, -3:] = -torch.inf
    half = (scores / 2).sort(-1, descending=True).values[:, :-3]
    count = torch.arange(1, half.shape[1] + 1)
    mean = half.cumsum(-1) / count  # the closed form by sorting, Peters et al. 2019
    spread = half.square().cumsum(-1) - count * mean.square()
    tau = mean - ((1 - spread) / count).clamp(min=0).sqrt()
    size = ((tau <= half) & (spread <= 1)).sum(-1)
    assert torch.equal(anchors.positive_weights(scores).sum(-1), size)
    assert anchors.positive_weights(torch.zeros(2, 9)).all()


@pytest.mark.parametrize(
    "fields",
    [{"density": 0.95}, {"density": 0.1}, TILES, TILES | {"is_causal": True}, TILES | {"tiles": 0.05}],
)
def test_entmax_gets_the_cases_density_and_its_tiles(fields):
    case = a_case(**({"tokens": 1024, "head_dim": 64, "dtype": "mixed"} | fields | {"tokens": 1024}))
    inputs = make_inputs(case)
    wanted = count_locked(case, inputs, 64, 1)
    query, key, counted = anchors.entmax_inputs(case, inputs, wanted["density"])
    assert query.shape == key.shape == inputs.value.shape and query.dtype == torch.bfloat16
    assert abs(counted["density"] / wanted["density"] - 1) < 0.15
    if case.tiles is not None:
        assert abs(counted["tiles"] / wanted["tiles"] - 1) < 0.15


def test_adasplash_is_called_with_what_was_calibrated(monkeypatch):
    called = {}

    def attend(q, k, v, alpha, is_causal):
        called.update(alpha=alpha, is_causal=is_causal)
        return q + k + v

    package = types.SimpleNamespace(adasplash_v1=attend, __version__="0")
    monkeypatch.setattr(anchors.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(anchors.importlib, "import_module", lambda name: package)
    monkeypatch.setattr(anchors, "_on_gpu", lambda tensor: True)
    case = a_case(tokens=256, density=0.5)
    anchor = anchors.adasplash(case, make_inputs(case), True)
    assert called == {"alpha": 1.5, "is_causal": False}
    assert anchor.note["function"] == "adasplash_v1" and abs(anchor.note["density"] - 0.5) < 0.1
    assert all(g is not None for g in torch.autograd.grad(anchor.forward().sum(), [*anchor.leaves.values()]))
    assert anchors.adasplash(a_case(**DRIFT), make_inputs(a_case(**DRIFT)), True) == "it has no window"

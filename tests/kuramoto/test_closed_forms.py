"""Pairs, the mean field and networks: closed forms against numbers obtained another way."""

import doctest
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.special import ive

from syncattn import kuramoto
from syncattn.kuramoto import meanfield, pair


@pytest.mark.parametrize("module", [kuramoto, pair, meanfield])
def test_examples_in_the_docstrings(module):
    found = doctest.testmod(module, extraglobs={"torch": torch})
    assert found.attempted and not found.failed


@pytest.mark.parametrize("ratio", [-2.5, -1.02, -0.7, 0.0, 0.4, 0.999, 1.05, 3.0, 50.0])
def test_the_mean_phasor_of_a_pair(ratio):
    """Locked: on the circle at sin psi = x. Unlocked: the mean over its density, 1 / (x - sin psi)."""
    found = complex(kuramoto.mean_phasor(torch.tensor(ratio, dtype=torch.float64)))
    if abs(ratio) <= 1:
        assert found == pytest.approx(complex(math.sqrt(1 - ratio**2), ratio), abs=1e-14)
    else:
        psi = np.linspace(0, 2 * np.pi, 4096, endpoint=False)
        weight = 1.0 / np.abs(ratio - np.sin(psi))
        assert found == pytest.approx(complex((np.exp(1j * psi) * weight).sum() / weight.sum()), abs=1e-12)


def test_the_beat_frequency_is_a_turn_over_the_time_that_it_takes():
    psi = np.linspace(0, 2 * np.pi, 4096, endpoint=False)
    for detuning, coupling in ((1.5, 1.2), (-4.0, 1.0)):
        period = np.mean(1.0 / np.abs(detuning - coupling * np.sin(psi)))  # over 2 pi
        found = float(kuramoto.beat_frequency(torch.tensor(detuning, dtype=torch.float64), coupling))
        assert found == pytest.approx(math.copysign(1.0 / period, detuning), rel=1e-12)


def test_a_solved_pair_locks_or_beats():
    ratio = torch.tensor([0.3, -0.9, 1.25], dtype=torch.float64)
    found = kuramoto.solve_pair(ratio, torch.ones(3, dtype=torch.float64), duration=2 * math.pi / 0.75 * 4)
    assert found.difference[2].item() == pytest.approx(8 * math.pi, abs=1e-6)  # four whole beats
    assert found.mean_cosine[2].item() == pytest.approx(0.0, abs=1e-7)
    assert found.mean_sine[2].item() == pytest.approx(0.5, abs=1e-7)
    np.testing.assert_allclose(found.difference[:2], np.arcsin(ratio[:2]), atol=1e-5)
    np.testing.assert_allclose(found.coherence, np.abs(np.cos(found.difference / 2)), atol=1e-12)
    zeros, ones = torch.zeros(2), torch.ones(2)
    wrong = [
        (zeros, zeros),
        (zeros, torch.ones(3)),
        (zeros, ones * math.inf),
        (zeros, 1.0),
        (zeros, [1.0, 1.0]),
    ]
    for detuning, coupling in wrong:
        with pytest.raises((TypeError, ValueError), match="coupling must"):
            kuramoto.solve_pair(detuning, coupling, duration=1.0)
    with pytest.raises(ValueError, match="detuning must be finite"):
        kuramoto.solve_pair(ones * math.nan, ones, duration=1.0)
    with pytest.raises(ValueError, match="duration must be positive"):
        kuramoto.solve_pair(zeros, ones, duration=math.nan)
    assert not kuramoto.solve_pair(zeros, ones.requires_grad_(), duration=1.0).difference.any()


def test_without_scipy_the_import_says_what_to_install():
    code = "import sys; sys.modules['scipy'] = None; import syncattn.kuramoto"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (
        "ModuleNotFoundError: syncattn.kuramoto needs scipy: install syncattn with its 'paper'"
        in found.stderr
    )


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("ratio", [1.01, 1.1, 2.0, 30.0])
def test_the_self_consistent_order_parameter(scale, ratio):
    lorentzian, gaussian = kuramoto.lorentzian(scale), kuramoto.gaussian(scale)
    assert kuramoto.critical_coupling(lorentzian) == pytest.approx(2 * scale)
    found = kuramoto.self_consistent(2 * scale * ratio, lorentzian)
    assert found == pytest.approx(math.sqrt(1 - 1 / ratio), abs=1e-10)

    critical = scale * math.sqrt(8 / math.pi)
    assert kuramoto.critical_coupling(gaussian) == pytest.approx(critical)
    r = kuramoto.self_consistent(critical * ratio, gaussian)
    q = (critical * ratio * r / scale) ** 2 / 4  # the Gaussian's integral in modified Bessel functions
    bessel = math.sqrt(math.pi / 2) * critical * ratio * r / (2 * scale) * (ive(0, q) + ive(1, q))
    assert 0 < r < 1 and r == pytest.approx(bessel, abs=1e-9)
    assert kuramoto.self_consistent(0.99 * critical, gaussian) == 0.0


@pytest.mark.parametrize("coupling", [1e3, 1e4, 1e5, 1e6, 1e8])
def test_the_self_consistent_order_parameter_at_strong_coupling(coupling):
    found = kuramoto.self_consistent(coupling, kuramoto.lorentzian())
    assert found == pytest.approx(math.sqrt(1 - 2 / coupling), abs=1e-10)
    found = kuramoto.self_consistent(coupling, kuramoto.gaussian())
    assert 1 - found == pytest.approx(0.5 / coupling**2, rel=1e-4, abs=1e-12)  # to leading order


def test_quantiles_cut_the_distribution_into_equal_parts():
    w = kuramoto.midpoint_quantiles(kuramoto.lorentzian(2.0), 8)
    np.testing.assert_allclose(np.arctan(w / 2.0) / np.pi + 0.5, (np.arange(8) + 0.5) / 8)
    w = kuramoto.midpoint_quantiles(kuramoto.gaussian(2.0), 8)
    below = [0.5 * (1 + math.erf(float(x) / 2.0 / math.sqrt(2))) for x in w]
    np.testing.assert_allclose(below, (np.arange(8) + 0.5) / 8)
    with pytest.raises(ValueError, match="count"):
        kuramoto.midpoint_quantiles(kuramoto.gaussian(), 0)
    with pytest.raises(ValueError, match="half_width must be positive"):
        kuramoto.lorentzian(0.0)


def test_the_mean_field_steps_are_exact_in_a_constant_field():
    """z' = i w z + (H - conj(H) z^2) / 2 by many small Runge-Kutta steps, slow and fast oscillators."""
    w = torch.tensor([-9.0, -0.5, 0.0, 0.6, 0.75, 40.0], dtype=torch.float64)
    field = torch.polar(torch.tensor([0.75]), torch.tensor([0.4])).to(torch.complex128)
    phase = torch.linspace(-2.0, 2.5, 6, dtype=torch.float64)
    z = meanfield._turn(torch.polar(torch.ones_like(phase), phase), w, field, 1.3)
    h = 1.3 / 4000

    def slope(t):
        return w + abs(field[0]) * torch.sin(0.4 - t)

    for _ in range(4000):
        a = slope(phase)
        b = slope(phase + h / 2 * a)
        c = slope(phase + h / 2 * b)
        phase = phase + h / 6 * (a + 2 * b + 2 * c + slope(phase + h * c))
    torch.testing.assert_close(z, torch.polar(torch.ones_like(phase), phase), atol=1e-7, rtol=0)


def test_the_mean_field_simulation_is_the_same_motion_and_of_second_order():
    g = torch.Generator().manual_seed(0)
    w, phase = torch.randn(2, 30, generator=g).double(), torch.randn(30, generator=g).double()
    coupling = torch.tensor([1.0, 2.5], dtype=torch.float64)
    exact = kuramoto.simulate(phase, w, coupling, duration=5.0, step=0.002).order_parameter
    errors = [
        float(
            (kuramoto.simulate_order_parameter(phase, w, coupling, duration=5.0, step=h) - exact).abs().max()
        )
        for h in (0.2, 0.1)
    ]
    assert errors[0] < 5e-3 and errors[1] < 0.4 * errors[0]


def test_the_order_parameter_of_a_simulation_is_the_self_consistent_one():
    for distribution in (kuramoto.lorentzian(), kuramoto.gaussian()):
        w = kuramoto.midpoint_quantiles(distribution, 1000)
        coupling = 1.6 * kuramoto.critical_coupling(distribution)
        r = kuramoto.simulate_order_parameter(
            torch.zeros(1000), w, coupling, settle=20.0, duration=20.0, step=0.2
        )
        assert float(r) == pytest.approx(kuramoto.self_consistent(coupling, distribution), abs=3e-3)


def test_the_pair_formula_is_the_papers():
    w = torch.linspace(-1.0, 1.2, 7, dtype=torch.float64)
    found = kuramoto.pair_formula(w, 1.3, 0.4)
    for i in range(7):
        for j in range(7):
            distance = abs(float(w[i] - w[j]))
            x = distance / (1.3 * math.exp(-0.4 * distance**2))
            assert float(found[i, j]) == pytest.approx(math.cos(math.asin(x)) if x <= 1 else 0.0, abs=1e-12)
    assert (found == 0).any()
    assert kuramoto.pair_formula(torch.tensor([0.0, 1e4]), 1.0, 1.0).tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_every_network_may_have_its_own_bandwidth():
    w, alpha = torch.randn(2, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([0.1, 2.0])
    found = kuramoto.network_kernel(w, alpha[:, None, None])
    for b in range(2):
        torch.testing.assert_close(found[b], kuramoto.network_kernel(w[b], float(alpha[b])))


def test_locked_pairs_and_transitivity():
    graph = kuramoto.locked_pairs(torch.tensor([0.0, 0.1, 0.2, 5.0]), 0.15)
    assert graph.int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]]
    assert float(kuramoto.transitivity(graph)) == 0.0  # one path, open
    assert (
        float(kuramoto.transitivity(kuramoto.locked_pairs(torch.tensor([0.0, 0.1, 0.1, 5.0]), 0.15))) == 1.0
    )
    assert float(kuramoto.transitivity(torch.eye(3, dtype=torch.bool))) == 1.0
    links = torch.randn(9, 9, generator=torch.Generator().manual_seed(0)) > 0
    links = links | links.mT
    paths = closed = 0
    for i in range(9):
        for j in range(9):
            for k in range(9):
                if len({i, j, k}) == 3 and links[i, j] and links[j, k]:
                    paths += 1
                    closed += bool(links[i, k])
    assert float(kuramoto.transitivity(links)) == pytest.approx(closed / paths)
    with pytest.raises(ValueError, match="tolerance"):
        kuramoto.locked_pairs(torch.zeros(2), -1.0)


def test_the_local_field_is_the_steady_state_of_a_locked_network():
    """With everybody locked it is exact: the phases of the integrated network, at any N."""
    w = torch.randn(12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    kernel = kuramoto.network_kernel(w, 0.05)
    run = kuramoto.simulate(torch.zeros(12), w, 5.0, kernel, settle=60.0, duration=10.0, pairs=True)
    assert float(run.mean_frequency.std()) < 1e-9
    z, common = kuramoto.local_field(w, 5.0, kernel)
    torch.testing.assert_close((z[:, None] * z.conj()).real, run.mean_cosine, atol=1e-7, rtol=0)
    assert float(common) == pytest.approx(float(w.mean()), abs=1e-9)
    with pytest.raises(ValueError, match="kernel"):
        kuramoto.local_field(w, 5.0, kernel[:3])
    with pytest.raises(ValueError, match="frequency must be finite"):
        kuramoto.local_field(w * math.nan, 5.0, kernel)
    with pytest.raises(ValueError, match="N >= 1"):
        kuramoto.local_field(w[:0], 5.0, kernel[:0, :0])
    with pytest.raises(TypeError, match="coupling must be a number"):
        kuramoto.local_field(w, "5", kernel)
    with pytest.raises(RuntimeError, match="after 3 iterations"):
        kuramoto.local_field(w, 5.0, kernel, iterations=3)
    with pytest.raises(ValueError, match="damping"):
        kuramoto.local_field(w, 5.0, kernel, damping=0.0)


def test_everything_public_is_documented():
    for name in kuramoto.__all__:
        assert getattr(kuramoto, name).__doc__, name

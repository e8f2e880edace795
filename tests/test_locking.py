"""locking.py against scipy, Monte Carlo, finite differences, and the formulas written out."""

import doctest
import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from syncattn import locking

DOUBLE = torch.float64
FREQ_DIMS = [1, 2, 3, 4, 8, 16, 41, 47, 48, 64, 100, 129, 255, 256]

few = settings(max_examples=50, deadline=None)


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=DOUBLE)


def log_uniform(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(math.log(low), math.log(high)).map(math.exp)


def relative_error(actual: torch.Tensor, expected: np.ndarray) -> float:
    return float(np.max(np.abs(actual.numpy() / expected - 1.0)))


class TestLambertW0:
    def test_agrees_with_scipy_over_all_magnitudes(self) -> None:
        z = torch.logspace(-300, 300, 4001, dtype=DOUBLE)
        assert relative_error(locking.lambert_w0(z), scipy.special.lambertw(z.numpy()).real) < 1e-15

    def test_float32_is_accurate_to_its_own_precision(self) -> None:
        z = torch.logspace(-37, 38, 1001)
        expected = scipy.special.lambertw(z.double().numpy()).real
        assert relative_error(locking.lambert_w0(z).double(), expected) < 2.5e-7

    def test_edges_of_the_range(self) -> None:
        z = double(0.0, 5e-324, 1e-310, 1e-20, math.e, torch.finfo(DOUBLE).max)
        w = locking.lambert_w0(z)
        assert torch.equal(w[:4], z[:4])
        assert w[4] == 1.0
        torch.testing.assert_close(w[5] + w[5].log(), z[5].log(), rtol=1e-15, atol=0)

    def test_gradients(self) -> None:
        z = double(0.0, 1e-3, 0.5, 3.0, 1e4).requires_grad_()
        assert torch.autograd.gradcheck(locking.lambert_w0, z[1:])
        assert torch.autograd.gradgradcheck(locking.lambert_w0, z[1:])
        (grad,) = torch.autograd.grad(locking.lambert_w0(z).sum(), z, create_graph=True)
        w = torch.from_numpy(scipy.special.lambertw(z.detach().numpy()).real)
        torch.testing.assert_close(grad, torch.exp(-w) / (1 + w), rtol=1e-14, atol=0)
        (second,) = torch.autograd.grad(grad.sum(), z)
        assert grad[0] == 1.0 and second[0] == -2.0

    @few
    @given(log_uniform(1e-300, 1e300))
    def test_solves_its_equation(self, z: float) -> None:
        w = float(locking.lambert_w0(double(z)))
        assert w + math.log(w) == pytest.approx(math.log(z), rel=1e-13, abs=1e-13)


class TestSynchronization:
    def test_is_the_published_formula(self) -> None:
        detuning = torch.linspace(0.0, 6.0, 301, dtype=DOUBLE)
        kappa, alpha = 2.3, 0.21
        kernel = locking.coupling_kernel(detuning, alpha)
        torch.testing.assert_close(kernel, torch.exp(-alpha * detuning))
        ratio = detuning.sqrt() / (kappa * kernel)
        published = torch.where(ratio <= 1, kernel * torch.cos(torch.arcsin(ratio.clamp(max=1))), 0.0)
        torch.testing.assert_close(locking.synchronization(detuning, kappa, alpha), published)
        assert (published > 0).any() and (published == 0).any()

    def test_margin_is_its_square(self) -> None:
        detuning = torch.linspace(0.0, 1.5, 64, dtype=DOUBLE)
        margin = locking.locking_margin(detuning, 2.0, 0.3)
        assert (margin > 0).all()
        torch.testing.assert_close(locking.synchronization(detuning, 2.0, 0.3) ** 2, margin)

    def test_derivatives(self) -> None:
        detuning = torch.linspace(0.0, 1.3, 50, dtype=DOUBLE).requires_grad_()
        kappa = torch.full_like(detuning, 2.0).detach().requires_grad_()
        alpha = torch.full_like(detuning, 0.3).detach().requires_grad_()
        sync = locking.synchronization(detuning, kappa, alpha)
        assert (sync > 0).all()
        by_detuning, by_kappa, by_alpha = torch.autograd.grad(sync.sum(), (detuning, kappa, alpha))
        squared_kernel = torch.exp(-2 * alpha * detuning)
        torch.testing.assert_close(by_detuning, -(alpha * squared_kernel + 0.5 / kappa**2) / sync)
        torch.testing.assert_close(by_alpha, -detuning * squared_kernel / sync)
        torch.testing.assert_close(by_kappa, detuning / (kappa**3 * sync))

    @pytest.mark.parametrize("edge", [0.0, 1e-2])
    def test_gradcheck_on_both_sides_of_the_edge(self, edge: float) -> None:
        detuning = double(0.0, 0.3, 1.1, 4.0, 30.0).requires_grad_()
        kappa = double(1.5, 2.5)[:, None].requires_grad_()
        alpha = double(0.4)[None].requires_grad_()
        assert torch.autograd.gradcheck(
            lambda d, k, a: locking.synchronization(d.abs(), k, a, edge), (detuning, kappa, alpha)
        )

    def test_edge_keeps_the_zeros_and_bounds_bias_and_gradient(self) -> None:
        kappa, alpha, edge = 2.0, 0.3, 1e-2
        squared_radius = float(locking.locking_radius(double(kappa), alpha)) ** 2
        steps = torch.logspace(-16, 0, 200, dtype=DOUBLE) * squared_radius
        detuning = torch.cat([squared_radius - steps, squared_radius + steps]).clamp(min=0).requires_grad_()
        exact = locking.synchronization(detuning, kappa, alpha)
        bounded = locking.synchronization(detuning, kappa, alpha, edge=edge)
        assert torch.equal(exact == 0, bounded == 0)
        assert ((exact - bounded >= 0) & (exact - bounded <= edge)).all()
        (grad,) = torch.autograd.grad(bounded.sum(), detuning)
        slope = 2 * alpha * torch.exp(-2 * alpha * detuning) + 1 / kappa**2
        assert (grad.abs() <= slope / (2 * edge) * (1 + 1e-12)).all()
        assert (grad[bounded == 0] == 0).all()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("edge", [0.0, 1e-2])
    def test_unlocked_gradients_are_zero_at_any_magnitude(self, dtype: torch.dtype, edge: float) -> None:
        largest = torch.finfo(dtype).max
        for detuning, coupling, bandwidth in [
            (1.0, 0.5, 1.0),
            (math.inf, 1.0, 1.0),
            (largest, 1.0, 10.0),
            (1.0, 1e-30, 1.0),
            (1.0, float(torch.finfo(dtype).tiny), 1.0),
            (largest, 1e10, 1.0),
            (10.0, 1.0, 1e-30),
        ]:
            inputs = [
                torch.tensor(x, dtype=dtype, requires_grad=True) for x in (detuning, coupling, bandwidth)
            ]
            sync = locking.synchronization(*inputs, edge=edge)
            assert sync == 0
            assert all(grad == 0 for grad in torch.autograd.grad(sync, inputs))

    def test_nan_shows(self) -> None:
        nan = torch.tensor(math.nan)
        for arguments in [(nan, 1.0, 1.0), (0.1, nan, 1.0), (0.1, 1.0, nan)]:
            assert locking.synchronization(*arguments).isnan()
            assert locking.synchronization(*arguments, edge=0.1).isnan()
            assert locking.locking_margin(*arguments).isnan()

    @few
    @given(log_uniform(1e-6, 1e6), log_uniform(1e-3, 1e3), log_uniform(1e-6, 1e3))
    def test_locked_iff_within_the_radius(self, detuning: float, coupling: float, bandwidth: float) -> None:
        d, k, a = double(detuning), double(coupling), double(bandwidth)
        squared_radius = locking.locking_radius(k, a) ** 2
        if abs(detuning / float(squared_radius) - 1) < 1e-9:
            return  # rounding decides
        locked = bool(d <= squared_radius)
        assert bool(locking.locking_margin(d, k, a) >= 0) == locked
        sync = float(locking.synchronization(d, k, a))
        assert (sync > 0) == locked and 0 <= sync <= 1
        assert (float(locking.synchronization(d, k, a, edge=1e-2)) > 0) == locked


class TestLockingRadius:
    def test_derivatives(self) -> None:
        kappa, alpha = double(0.5, 2.0, 30.0).requires_grad_(), double(1.3, 0.2, 0.7).requires_grad_()
        assert torch.autograd.gradcheck(locking.locking_radius, (kappa, alpha))
        squared = locking.locking_radius(kappa, alpha) ** 2
        by_kappa, by_alpha = torch.autograd.grad(squared.sum(), (kappa, alpha))
        w = locking.lambert_w0(2 * alpha * kappa**2)
        torch.testing.assert_close(by_kappa, 2 * squared / (kappa * (1 + w)))
        torch.testing.assert_close(by_alpha, -2 * squared**2 / (1 + w))

    def test_tends_to_the_coupling_for_a_vanishing_bandwidth(self) -> None:
        alpha = torch.tensor(1e-300, dtype=DOUBLE, requires_grad=True)
        radius = locking.locking_radius(double(3.0), alpha)
        assert radius == 3.0
        assert torch.autograd.grad(radius, alpha)[0] == -27.0  # d rho / d alpha = -rho^3

    @few
    @given(log_uniform(1e-4, 1e4), log_uniform(1e-6, 1e12))
    def test_round_trip_with_coupling_from_radius(self, radius: float, sharpness: float) -> None:
        coupling, bandwidth = locking.coupling_from_radius(double(radius), sharpness)
        assert float(2 * bandwidth * coupling**2) == pytest.approx(sharpness, rel=1e-12)
        assert float(locking.locking_radius(coupling, bandwidth)) == pytest.approx(radius, rel=1e-12)

    def test_coupling_from_radius_broadcasts_and_differentiates(self) -> None:
        coupling, bandwidth = locking.coupling_from_radius(double(1.0, 2.0, 3.0), double(0.5, 100.0)[:, None])
        assert coupling.shape == bandwidth.shape == (2, 3)
        coupling, bandwidth = locking.coupling_from_radius(double(1.0, 2.0), 10.0)
        assert coupling.shape == bandwidth.shape == (2,)
        inputs = (double(0.7, 4.0).requires_grad_(), double(2.0, 100.0).requires_grad_())
        assert torch.autograd.gradcheck(locking.coupling_from_radius, inputs)


class TestDensityLaw:
    @pytest.mark.parametrize("freq_dim", FREQ_DIMS)
    def test_density_agrees_with_scipy(self, freq_dim: int) -> None:
        radius = torch.logspace(-2, 2, 301, dtype=DOUBLE) * math.sqrt(freq_dim)
        for variance in (1.0, 1 / 3):
            density = locking.gaussian_density(radius, freq_dim, variance)
            expected = scipy.stats.chi2.cdf(radius.numpy() ** 2 / (2 * variance), freq_dim)
            seen = expected > 1e-290
            assert relative_error(density[torch.from_numpy(seen)], expected[seen]) < 1e-11

    @pytest.mark.parametrize("freq_dim", FREQ_DIMS)
    def test_radius_agrees_with_scipy(self, freq_dim: int) -> None:
        tail = np.logspace(-12, -0.35, 48)
        low = 2 * np.sqrt(scipy.special.gammaincinv(freq_dim / 2, tail))
        assert relative_error(locking.gaussian_radius(torch.from_numpy(tail), freq_dim), low) < 1e-12
        high = 1.0 - tail[tail > 1e-9]
        for variance in (1.0, 1 / 3):
            expected = np.sqrt(2 * variance * scipy.stats.chi2.isf(1.0 - high, freq_dim))
            actual = locking.gaussian_radius(torch.from_numpy(high), freq_dim, variance)
            assert relative_error(actual, expected) < 1e-12

    @few
    @given(
        log_uniform(1e-12, 0.5),
        st.booleans(),
        st.integers(1, 256),
        log_uniform(1e-3, 1e3),
    )
    def test_round_trip(self, tail: float, upper: bool, freq_dim: int, variance: float) -> None:
        density = 1.0 - max(tail, 1e-9) if upper else tail
        radius = locking.gaussian_radius(double(density), freq_dim, variance)
        assert float(locking.gaussian_density(radius, freq_dim, variance)) == pytest.approx(
            density, rel=1e-11
        )

    @pytest.mark.parametrize("freq_dim", [1, 2, 8, 64])
    def test_density_agrees_with_monte_carlo(self, freq_dim: int) -> None:
        generator = torch.Generator().manual_seed(freq_dim)
        pairs, variance = 20_000, 0.4
        first, second = torch.randn(2, pairs, freq_dim, generator=generator) * math.sqrt(variance)
        squared_detuning = (first - second).square().sum(-1)
        for density in (0.05, 0.25, 0.9):
            coupling, bandwidth = locking.calibrate(density, freq_dim, 100.0, variance)
            locked = (locking.synchronization(squared_detuning, coupling, bandwidth) > 0).double().mean()
            assert abs(float(locked) - density) < 4 * math.sqrt(density * (1 - density) / pairs)

    @pytest.mark.parametrize("freq_dim", [1, 2, 5, 64])
    def test_gradients(self, freq_dim: int) -> None:
        scale = math.sqrt(2 * freq_dim)
        radius = (double(0.6, 1.0, 1.3) * scale).requires_grad_()
        variance = double(1.0, 1.1, 0.9).requires_grad_()
        density = double(1e-2, 0.4, 0.97).requires_grad_()
        assert torch.autograd.gradcheck(
            lambda r, v: locking.gaussian_density(r, freq_dim, v), (radius, variance)
        )
        assert torch.autograd.gradcheck(
            lambda p, v: locking.gaussian_radius(p, freq_dim, v), (density, variance), eps=1e-7
        )

    def test_gradient_is_finite_at_radius_zero(self) -> None:
        for freq_dim, expected in ((1, 1 / math.sqrt(math.pi)), (2, 0.0), (3, 0.0)):
            radius = double(0.0).requires_grad_()
            density = locking.gaussian_density(radius, freq_dim)
            assert density == 0
            assert torch.autograd.grad(density, radius)[0].item() == pytest.approx(expected, rel=1e-14)

    def test_published_default_locks_nothing(self) -> None:
        # softplus(1) for K and alpha; phases of variance 1/3, r = exp(-1/6); 64 frequencies of variance 1/3.
        softplus = math.log1p(math.e)
        bandwidth, coupling = softplus, 0.8465 * softplus
        assert bandwidth == pytest.approx(1.3133, abs=5e-5) and coupling == pytest.approx(1.1117, abs=5e-5)
        radius = locking.locking_radius(double(coupling), bandwidth)
        assert float(radius**2) == pytest.approx(0.4152, abs=5e-5)
        density = locking.gaussian_density(radius, freq_dim=64, variance=1 / 3)
        assert float(density) == pytest.approx(1.7e-52, rel=0.03)

    def test_calibrate_is_exact_in_the_law(self) -> None:
        wanted = locking.density_ladder(0.05, 0.5, 8).double()
        coupling, bandwidth = locking.calibrate(wanted, freq_dim=16, sharpness=100.0, variance=0.3)
        assert coupling.shape == bandwidth.shape == (8,)
        torch.testing.assert_close(2 * bandwidth * coupling**2, torch.full((8,), 100.0, dtype=DOUBLE))
        radius = locking.locking_radius(coupling, bandwidth)
        torch.testing.assert_close(locking.gaussian_density(radius, 16, 0.3), wanted, rtol=1e-10, atol=0)


class TestCalibrateFromDetuning:
    @staticmethod
    def locked(squared_detuning: torch.Tensor, coupling: torch.Tensor, bandwidth: torch.Tensor) -> list[int]:
        coupling, bandwidth = coupling[:, None], bandwidth[:, None]
        by_sync = locking.synchronization(squared_detuning, coupling, bandwidth) > 0
        by_radius = squared_detuning.sqrt() <= locking.locking_radius(coupling, bandwidth)
        assert torch.equal(by_sync, by_radius)
        return by_sync.sum(-1).tolist()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("sharpness", [1e-2, 100.0, 1e6])
    def test_exactly_the_wanted_share_locks(self, dtype: torch.dtype, sharpness: float) -> None:
        generator = torch.Generator().manual_seed(0)
        frequency = torch.randn(6, 2, 400, 5, generator=generator, dtype=dtype)
        squared_detuning = (frequency[:, 0] - frequency[:, 1]).square().sum(-1)
        density = torch.tensor([1e-9, 0.0025, 0.1, 0.5, 0.9975, 1.0])
        coupling, bandwidth = locking.calibrate_from_detuning(squared_detuning, density, sharpness)
        assert coupling.dtype == bandwidth.dtype == dtype
        assert self.locked(squared_detuning, coupling, bandwidth) == [1, 1, 40, 200, 399, 400]
        torch.testing.assert_close(
            2 * bandwidth * coupling**2, torch.full((6,), sharpness, dtype=dtype), rtol=1e-5, atol=0
        )

    def test_equal_detunings_lock_together(self) -> None:
        squared_detuning = torch.tensor(
            [[0.0, 0.0, 0.0, 3.0, 5.0], [1.0, 2.0, 2.0, 2.0, 4.0], [2.0, 2.0, 2.0, 2.0, 2.0]]
        )
        coupling, bandwidth = locking.calibrate_from_detuning(squared_detuning, 0.4, 100.0)
        assert self.locked(squared_detuning, coupling, bandwidth) == [3, 4, 5]

    @few
    @given(st.integers(1, 300), st.floats(1e-3, 1.0), log_uniform(1e-2, 1e4), st.integers(0, 1000))
    def test_counts(self, pairs: int, density: float, sharpness: float, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        squared_detuning = torch.rand(1, pairs, generator=generator, dtype=DOUBLE).square() + 1e-9
        coupling, bandwidth = locking.calibrate_from_detuning(squared_detuning, density, sharpness)
        assert self.locked(squared_detuning, coupling, bandwidth) == [max(1, round(density * pairs))]

    @pytest.mark.parametrize(
        ("squared_detuning", "density", "sharpness", "message"),
        [
            (torch.ones(5), 0.5, 1.0, r"squared_detuning must have shape \(heads, pairs\).*got \(5,\)"),
            (torch.ones(2, 0), 0.5, 1.0, r"squared_detuning must have shape.*got \(2, 0\)"),
            (torch.tensor([[1.0, 2.0], [0.0, 0.0]]), 0.5, 1.0, "only zeros in head 1"),
            (torch.tensor([[1.0, -2.0]]), 0.5, 1.0, r"squared_detuning must be finite and >= 0, got -2.0"),
            (torch.tensor([[1.0, math.nan]]), 0.5, 1.0, "squared_detuning must be finite and >= 0, got nan"),
            (torch.ones(2, 3), 0.0, 1.0, "density must be above 0 and at most 1, got 0.0"),
            (
                torch.ones(2, 3),
                torch.tensor([0.5, 1.5]),
                1.0,
                "density must be above 0 and at most 1, got 1.5",
            ),
            (torch.ones(2, 3), torch.ones(3), 1.0, r"density must be a number or have shape \(2,\).*\(3,\)"),
            (torch.ones(2, 3), 0.5, torch.ones(2, 1), r"sharpness must be a number or have shape \(2,\)"),
            (torch.ones(2, 3), 0.5, -1.0, "sharpness must be positive and finite, got -1.0"),
        ],
    )
    def test_refusals(self, squared_detuning, density, sharpness, message) -> None:
        with pytest.raises(ValueError, match=message):
            locking.calibrate_from_detuning(squared_detuning, density, sharpness)


class TestDensityLadder:
    def test_is_geometric(self) -> None:
        ladder = locking.density_ladder(0.05, 0.8, 5)
        torch.testing.assert_close(ladder, torch.tensor([0.05, 0.1, 0.2, 0.4, 0.8]))
        assert locking.density_ladder(0.3, 1.0, 7)[-1] == 1.0
        torch.testing.assert_close(locking.density_ladder(0.1, 0.9, 1), torch.tensor([0.3]))
        torch.testing.assert_close(locking.density_ladder(0.2, 0.2, 3), torch.full((3,), 0.2))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((0.0, 0.5, 4), "low must be above 0 and at most 1, got 0.0"),
            ((0.1, 1.5, 4), "high must be above 0 and at most 1, got 1.5"),
            ((0.1, math.nan, 4), "high must be above 0 and at most 1, got nan"),
            ((0.5, 0.1, 4), "low must be at most high, got low=0.5 and high=0.1"),
            ((0.1, 0.5, 0), "num_heads must be an integer >= 1, got 0"),
            ((0.1, 0.5, 2.0), "num_heads must be an integer >= 1, got 2.0"),
        ],
    )
    def test_refusals(self, arguments, message) -> None:
        with pytest.raises(ValueError, match=message):
            locking.density_ladder(*arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: locking.lambert_w0(-0.1), "z must be finite and >= 0, got -0.1"),
        (
            lambda: locking.lambert_w0(double(1.0, math.inf)),
            "z must be .* got inf .the first of 1 of 2 values",
        ),
        (lambda: locking.lambert_w0(math.nan), "z must be finite and >= 0, got nan"),
        (lambda: locking.coupling_kernel(1.0, 0.0), "bandwidth must be positive, got 0.0"),
        (lambda: locking.locking_margin(1.0, double(1.0, -2.0), 1.0), "coupling must be positive, got -2.0"),
        (lambda: locking.locking_margin(1.0, 1.0, -1.0), "bandwidth must be positive, got -1.0"),
        (lambda: locking.synchronization(1.0, 0, 1.0), "coupling must be positive, got 0"),
        (lambda: locking.synchronization(1.0, 1.0, -3), "bandwidth must be positive, got -3"),
        (lambda: locking.synchronization(1.0, 1.0, 1.0, edge=-0.1), "edge must be .* >= 0, got -0.1"),
        (lambda: locking.synchronization(1.0, 1.0, 1.0, edge=math.nan), "edge must be .* >= 0, got nan"),
        (lambda: locking.locking_radius(0.0, 1.0), "coupling must be positive and finite, got 0.0"),
        (lambda: locking.locking_radius(1.0, math.inf), "bandwidth must be positive and finite, got inf"),
        (lambda: locking.locking_radius(1e30, 1.0), r"2 \* bandwidth \* coupling \*\* 2 must be finite"),
        (lambda: locking.coupling_from_radius(-1.0, 1.0), "radius must be positive and finite, got -1.0"),
        (lambda: locking.coupling_from_radius(1.0, 0.0), "sharpness must be positive and finite, got 0.0"),
        (lambda: locking.gaussian_density(-1.0, 4), "radius must be finite and >= 0, got -1.0"),
        (lambda: locking.gaussian_density(1.0, 0), "freq_dim must be an integer >= 1, got 0"),
        (lambda: locking.gaussian_density(1.0, 4, 0.0), "variance must be positive and finite, got 0.0"),
        (lambda: locking.gaussian_radius(1.0, 4), "density must be between 0 and 1, both excluded, got 1.0"),
        (lambda: locking.gaussian_radius(double(0.0), 4), "density must be between 0 and 1"),
        (lambda: locking.gaussian_radius(0.5, 4.0), "freq_dim must be an integer >= 1, got 4.0"),
        (lambda: locking.gaussian_radius(0.5, 4, -1.0), "variance must be positive and finite, got -1.0"),
        (lambda: locking.calibrate(0.5, 4, -1.0), "sharpness must be positive and finite, got -1.0"),
        (lambda: locking.calibrate(1.5, 4, 10.0), "density must be between 0 and 1"),
    ],
)
def test_bad_values_are_named(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_docstring_examples() -> None:
    outcome = doctest.testmod(locking, extraglobs={"torch": torch})
    assert outcome.attempted >= 10 and outcome.failed == 0


def test_complex_input_is_refused() -> None:
    with pytest.raises(TypeError, match="z must be real, got a tensor of dtype"):
        locking.lambert_w0(torch.ones(2, dtype=torch.complex64))
    with pytest.raises(TypeError, match="must be real"):
        locking.synchronization(torch.ones(2, dtype=torch.complex64), 1.0, 1.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_results_have_the_arguments_dtype_and_its_precision(dtype: torch.dtype) -> None:
    def results(argument: torch.Tensor) -> list[torch.Tensor]:
        return [
            locking.lambert_w0(argument),
            locking.coupling_kernel(argument, 0.5),
            locking.locking_margin(argument, 3.0, 0.5),
            locking.synchronization(argument, 3.0, 0.5, edge=0.01),
            locking.locking_radius(300.0 * argument, 1.0),
            *locking.coupling_from_radius(argument, 100.0),
            locking.gaussian_density(argument, 3),
            locking.gaussian_radius(0.4 * argument, 3),
            *locking.calibrate(0.4 * argument, 3, 100.0),
            *locking.calibrate_from_detuning(argument[None], 0.5, 100.0),
        ]

    argument = torch.tensor([0.25, 0.5, 1.0, 2.0]).to(dtype)
    for actual, expected in zip(results(argument), results(argument.double()), strict=True):
        assert actual.dtype == dtype
        tolerance = 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)


def test_python_numbers_give_the_default_dtype() -> None:
    for result in (
        locking.lambert_w0(1),
        locking.synchronization(0.1, 1.0, 1),
        locking.gaussian_radius(1 - 1e-9, 1),
        *locking.calibrate(0.5, 8, 100.0),
    ):
        assert result.dtype == torch.get_default_dtype() and result.shape == () and result.isfinite()


def test_arguments_broadcast() -> None:
    detuning, kappa, alpha = torch.rand(2, 3, 5, 7), torch.rand(2, 3, 1, 1) + 0.1, torch.rand(3, 1, 1) + 0.1
    assert locking.synchronization(detuning, kappa, alpha).shape == (2, 3, 5, 7)
    assert locking.locking_radius(kappa, alpha).shape == (2, 3, 1, 1)
    assert locking.gaussian_radius(double(0.1, 0.2)[:, None], 4, double(1.0, 2.0, 3.0)).shape == (2, 3)
    coupling, bandwidth = locking.calibrate(double(0.1, 0.2)[:, None], 4, double(1.0, 2.0, 3.0))
    assert coupling.shape == bandwidth.shape == (2, 3)
    assert locking.synchronization(torch.empty(0, 4), 1.0, 1.0).shape == (0, 4)


def test_compiles_into_one_graph_with_its_gradients() -> None:
    def loss(detuning: torch.Tensor, coupling: torch.Tensor, bandwidth: torch.Tensor) -> torch.Tensor:
        sync = locking.synchronization(detuning, coupling, bandwidth, edge=1e-2).sum(-1)
        radius = locking.locking_radius(coupling, bandwidth).squeeze(-1)
        return (sync * locking.gaussian_density(radius, 5) * locking.gaussian_radius(0.3, 5)).sum()

    inputs = (
        torch.linspace(0, 4, 12, dtype=DOUBLE).view(2, 6).requires_grad_(),
        double(1.0, 3.0)[:, None].requires_grad_(),
        double(0.2, 0.7)[:, None].requires_grad_(),
    )
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    actual, expected = compiled(*inputs), loss(*inputs)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(torch.autograd.grad(actual, inputs), torch.autograd.grad(expected, inputs))


CLOSED_FORMS = {
    "kernel": lambda x: locking.coupling_kernel(x, 2 * x),
    "margin": lambda x: locking.locking_margin(x, x, 2 * x),
    "synchronization": lambda x: locking.synchronization(x, x, 2 * x, 0.1),
    "lambert": locking.lambert_w0,
    "radius": lambda x: locking.locking_radius(x, 2 * x),
    "coupling and bandwidth": lambda x: torch.stack(locking.coupling_from_radius(x, 2 * x)),
    "density": lambda x: locking.gaussian_density(x, 5),
    "quantile": lambda x: locking.gaussian_radius(0.4 * x, 5),
    "calibrated": lambda x: torch.stack(locking.calibrate(0.4 * x, 5, 100.0)),
    "counted": lambda x: torch.stack(locking.calibrate_from_detuning(x[None], 0.5, 100.0)),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_mapped_by_vmap_and_differentiated_under_it(name) -> None:
    function, x = CLOSED_FORMS[name], torch.rand(3, 4, dtype=DOUBLE) + 0.1
    torch.testing.assert_close(torch.vmap(function)(x), torch.stack([function(row) for row in x]))
    if name != "counted":  # it has no gradient
        gradient = torch.func.grad(lambda row: function(row).sum())
        expected = []
        for row in x:
            leaf = row.clone().requires_grad_()
            expected += torch.autograd.grad(function(leaf).sum(), leaf)
        torch.testing.assert_close(torch.vmap(gradient)(x), torch.stack(expected))
    with pytest.raises(ValueError, match=r"got -\d"):
        torch.vmap(function)(torch.where(torch.arange(3)[:, None] == 1, -1.0, x))

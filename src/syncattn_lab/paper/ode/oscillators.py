"""The measurements of the section `ode`: the Kuramoto model integrated, beside its closed forms."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Generator, Tensor

from syncattn import kuramoto
from syncattn.kuramoto.vector import vector_derivative
from syncattn.locking import gaussian_density, gaussian_radius
from syncattn.nn import SelectiveSynchronizationAttention
from syncattn.nn.published import published
from syncattn_lab.paper.section import Extent, Numbers

TURN = 2.0 * math.pi
BEATS = 200.5  # no whole number: the period must not help the average
EDGE = 0.01  # pairs with |x - 1| below this are left out


def pairs(extent: Extent) -> Numbers:
    """Two oscillators, x = dw / k on both sides of 1, by scipy and by torch against the closed form.

    Units: a locked pair relaxes at rate 1, a drifting one beats at 1 radian per time, whatever its x.
    """
    draw = generator(extent, 1)
    near = extent.size(1.0 + EDGE, 1.25)  # closer pairs turn in sudden slips, which need a small step
    inside = torch.cat((_numbers(0.0, 0.5, 0.9, 1.0 - EDGE), _uniform(draw, 24, 0.0, 1.0 - EDGE)))
    outside = torch.cat((_numbers(near, 1.5, 3.0), _uniform(draw, 9, near, 4.0)))
    inside, outside = (x * _signs(draw, len(x)) for x in (inside, outside))

    pull = 1.0 / torch.sqrt(1.0 - inside * inside)
    still = kuramoto.solve_pair(inside * pull, pull, duration=30.0)
    batch = kuramoto.simulate(*_two(inside * pull), pull, duration=30.0, step=0.05)
    difference = batch.phase[:, 0] - batch.phase[:, 1]
    cosine = torch.sqrt(1.0 - inside * inside)
    locked = {
        "ratio": inside.tolist(),
        "cosine": still.difference.cos().tolist(),
        "error": _largest(still.difference.cos() - cosine),
        "error_torch": _largest(difference.cos() - cosine),
        "error_phase": _largest(still.difference - torch.asin(inside)),
    }

    pull = 1.0 / torch.sqrt(outside * outside - 1.0)
    duration = BEATS * TURN
    turning = kuramoto.solve_pair(outside * pull, pull, duration=duration, rtol=1e-7, atol=1e-9)
    run = kuramoto.simulate(
        *_two(outside * pull), pull, duration=duration, step=extent.size(0.05, 0.2), pairs=True
    )
    assert run.mean_cosine is not None
    quadrature = kuramoto.mean_phasor(outside).imag
    drifting = {
        "ratio": outside.tolist(),
        "beats": float(turning.difference.abs().min() / TURN),
        "mean_cosine": turning.mean_cosine.tolist(),
        "mean_sine": turning.mean_sine.tolist(),
        "largest_cosine": _largest(turning.mean_cosine),
        "largest_cosine_torch": _largest(run.mean_cosine[:, 0, 1]),
        "error_sine": _largest(turning.mean_sine - quadrature),
        "error_frequency": _largest(
            turning.difference / duration - kuramoto.beat_frequency(outside * pull, pull)
        ),
        "largest_sine": _largest(turning.mean_sine),
    }
    return {"locked": locked, "drifting": drifting}


def double_count(extent: Extent) -> Numbers:
    """The pair's own r put into kappa = K r, as the operator has it: where it says that the lock ends."""
    ratio = torch.cat((_numbers(0.8), torch.linspace(0.5, 0.99, extent.size(491, 99), dtype=torch.float64)))
    pull = 1.0 / torch.sqrt(1.0 - ratio * ratio)
    motion = kuramoto.solve_pair(ratio * pull, pull, duration=30.0)
    with_r = torch.sqrt((1.0 - (ratio / motion.coherence) ** 2).clamp(min=0.0))
    return {
        "last_locked_with_r": float(ratio[with_r > 0].max()),
        "last_locked": float(ratio[(motion.difference.abs() < 0.5 * math.pi)].max()),
        "cosine_at_0.8": float(motion.difference[0].cos()),
        "cosine_at_0.8_with_r": float(with_r[0]),
    }


def vector(extent: Extent) -> Numbers:
    """The vector form: its fixed point, its stability, and m Kuramoto pairs in its place."""
    draw = generator(extent, 2)
    error, formula_error, largest = 0.0, 0.0, -math.inf
    sizes = extent.size((1, 2, 3, 4, 8, 16, 64), (2, 16))
    for m in sizes:
        count = extent.size(64, 16)
        direction = _directions(draw, count, m)
        detuning = direction * _uniform(draw, count, 0.02, 0.95)[:, None]
        start = _directions(draw, count, m) * _uniform(draw, count, 0.0, 1.0)[:, None]
        end = kuramoto.simulate_vector(start, detuning, 1.0, duration=60.0, step=0.1)
        theory = kuramoto.vector_fixed_point(detuning, 1.0)
        error = max(error, float(torch.linalg.vector_norm(end - theory, dim=-1).max()))
        jacobian = torch.func.vmap(torch.func.jacrev(lambda p, d: vector_derivative(p, d, 1.0)))(
            end, detuning
        )
        measured = torch.linalg.eigvals(jacobian).real
        largest = max(largest, float(measured.max()))
        along, across = kuramoto.vector_eigenvalues(detuning, 1.0).unbind(-1)
        expected = torch.cat((along[:, None], across[:, None].expand(-1, m - 1)), dim=-1)
        formula_error = max(formula_error, _largest(measured.sort(-1).values - expected.sort(-1).values))
    return {
        "sizes": list(sizes),
        "error": error,
        "largest_eigenvalue": largest,
        "error_eigenvalue": formula_error,
        "components": [
            _components(generator(extent, 100 + m), m, extent.size(200, 150))
            for m in extent.size((2, 4, 8, 16, 64), (2, 8))
        ],
    }


def _components(draw: Generator, m: int, count: int) -> Numbers:
    """Frequencies N(0, I_m) of which the Euclidean rule locks .05: what locks in either kind of motion."""
    radius = float(gaussian_radius(0.05, m))
    detuning = math.sqrt(2.0) * torch.randn(count, m, generator=draw, dtype=torch.float64) / radius
    # Of one coordinate the vector form is the Kuramoto pair; the second half of the motion is what counts.
    whole = _turned(detuning)
    each = _turned(detuning[..., None]).amax(-1)
    length, longest = torch.linalg.vector_norm(detuning, dim=-1), detuning.abs().amax(-1)
    return {
        "freq_dim": m,
        "pairs": count,
        "vector_density": share(whole < math.pi),
        "vector_agreement": share((whole < math.pi) == (length <= 1.0)),
        "component_density": share(each < math.pi),
        "component_agreement": share((each < math.pi) == (longest <= 1.0)),
        "component_theory": float(gaussian_density(radius, 1)) ** m,
    }


def _turned(detuning: Tensor) -> Tensor:
    """How far psi (..., m) moves between times 100 and 200, in radians, at k = 1: (...)."""
    middle = kuramoto.simulate_vector(torch.zeros_like(detuning), detuning, 1.0, duration=100.0, step=0.2)
    end = kuramoto.simulate_vector(middle, detuning, 1.0, duration=100.0, step=0.2)
    return torch.linalg.vector_norm(end - middle, dim=-1)


def order(extent: Extent) -> Numbers:
    """The order parameter of 2,000 oscillators on both sides of the transition, from random phases."""
    draw = generator(extent, 3)
    count = 2000
    above = extent.size((1.12, 1.25, 1.5, 2.0, 2.75), (1.25, 2.0))
    below = extent.size((0.3, 0.6), (0.5,))
    ratios = torch.tensor([*below, *above], dtype=torch.float64)
    times = {"settle": extent.size(120.0, 60.0), "duration": extent.size(80.0, 30.0)}
    again = ratios.tolist().index(2.0)  # far from the transition, where r hardly wanders
    found: dict[str, Any] = {"count": count, "ratio": ratios.tolist(), "below": len(below)}
    for distribution in (kuramoto.lorentzian(), kuramoto.gaussian()):
        critical = kuramoto.critical_coupling(distribution)
        frequency = kuramoto.midpoint_quantiles(distribution, count)
        phase = TURN * torch.rand(len(ratios), count, generator=draw, dtype=torch.float64)
        r = kuramoto.simulate_order_parameter(phase, frequency, ratios * critical, step=0.2, **times)
        theory = torch.tensor([kuramoto.self_consistent(float(x) * critical, distribution) for x in ratios])
        half = kuramoto.simulate_order_parameter(
            phase[again], frequency, float(ratios[again]) * critical, step=0.1, **times
        )
        curve = torch.cat((torch.tensor([0.2]), 1.0 + 2.05 * torch.linspace(0.0, 1.0, 80).square()))
        found[distribution.name] = {
            "critical": critical,
            "r": r.tolist(),
            "theory": theory.tolist(),
            "error": _largest((r - theory)[len(below) :]),
            "largest_below": float(r[: len(below)].max()),
            "half_step": abs(float(half) - float(r[again])),
            "curve_ratio": curve.tolist(),
            "curve": [kuramoto.self_consistent(float(x) * critical, distribution) for x in curve],
        }
        if distribution.name == "gaussian":
            run = kuramoto.simulate(
                phase[again], frequency, float(ratios[again]) * critical, step=0.2, every=2, **times
            )
            found["runge_kutta"] = abs(float(run.order_parameter) - float(r[again]))
    found["projected"] = _projected(extent)
    return found


def _projected(extent: Extent) -> float:
    """r as the operator has it at the published init: of phases that are a linear map of random tokens."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(extent.seed)
        layer = SelectiveSynchronizationAttention(64, 4, **published(16))
        x = torch.nn.functional.layer_norm(torch.randn(4, 256, 64), (64,))
    assert layer.phase_proj is not None
    with torch.no_grad():
        phase = layer.phase_proj(x).unflatten(-1, (4, 16)).permute(0, 2, 3, 1)  # (B, H, p, N)
    return float(kuramoto.order_parameter(phase).mean())


def trajectories(extent: Extent) -> Numbers:
    """Phases on their way: pairs that lock and drift, and a network that falls into clusters."""
    draw = generator(extent, 5)
    ratio = torch.tensor([0.5, 0.9, 1.05, 1.4], dtype=torch.float64)
    run = kuramoto.simulate(*_two(ratio), 1.0, duration=32.0, step=0.05, every=4, trajectory=True)
    assert run.trajectory is not None
    turns = (run.trajectory[..., 0] - run.trajectory[..., 1]) / TURN  # (T, 4)
    members = 10
    centre = torch.tensor([-2.6, 0.0, 2.6], dtype=torch.float64)[:, None]
    clusters = centre + 0.3 * torch.randn(3, members, generator=draw, dtype=torch.float64)
    between = torch.tensor([-1.45, -1.25, 1.2, 1.5], dtype=torch.float64)
    frequency = torch.cat((clusters.flatten(), between)).sort().values
    kernel = kuramoto.network_kernel(frequency, 0.6)
    phase = TURN * (torch.rand(len(frequency), generator=draw, dtype=torch.float64) - 0.5)
    early = kuramoto.simulate(
        phase, frequency, 5.0, kernel, duration=14.0, step=0.05, every=2, trajectory=True
    )
    late = kuramoto.simulate(
        early.phase, frequency, 5.0, kernel, settle=100.0, duration=200.0, step=0.1, every=50
    )
    assert early.trajectory is not None
    partners = kuramoto.locked_pairs(late.mean_frequency, math.pi / 200.0).sum(-1) - 1
    accurate = kuramoto.solve(phase, frequency, 5.0, kernel, times=early.times[-1:])
    return {
        "pair_ratio": ratio.tolist(),
        "pair_times": rounded(run.times),
        "pair_turns": rounded(turns.mT),
        "frequency": rounded(frequency),
        "times": rounded(early.times),
        "turns": rounded(early.trajectory.mT / TURN),
        "mean_frequency": rounded(late.mean_frequency),
        "partners": partners.tolist(),
        "solvers_differ": _largest(accurate[0] - early.phase),
    }


def _two(detuning: Tensor) -> tuple[Tensor, Tensor]:
    """Equal phases and frequencies +-dw / 2 of pairs, (n, 2) each."""
    frequency = torch.stack((0.5 * detuning, -0.5 * detuning), dim=-1)
    return torch.zeros_like(frequency), frequency


def generator(extent: Extent, part: int) -> Generator:
    """The private random numbers of one part of the section."""
    return Generator().manual_seed(1000 * part + extent.seed)


def _uniform(draw: Generator, count: int, low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=draw, dtype=torch.float64)


def _numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _signs(draw: Generator, count: int) -> Tensor:
    return 2.0 * torch.randint(0, 2, (count,), generator=draw).double() - 1.0


def _directions(draw: Generator, count: int, m: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(count, m, generator=draw, dtype=torch.float64), dim=-1)


def _largest(x: Tensor) -> float:
    return float(x.abs().max())


def share(x: Tensor) -> float:
    """The share of True."""
    return float(x.double().mean())


def rounded(x: Tensor) -> Any:
    """As nested lists, with four decimals: enough for a picture."""
    return [round(v, 4) for v in x.tolist()] if x.ndim == 1 else [rounded(row) for row in x]

"""All to all coupling: the order parameter in theory and in a simulation that bears any frequency.

    t_i' = w_i + (K / N) sum_j sin(t_j - t_i) = w_i + K r sin(Psi - t_i),    r exp(i Psi) = mean_j exp(i t_j)

For many oscillators r solves r = K r int_{-pi/2}^{pi/2} cos^2(u) g(K r sin u) du, with g the density of the
frequencies, symmetric and with one peak; r > 0 exists for K > Kc = 2 / (pi g(0)). Source: Kuramoto (1975),
Strogatz (2000).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from scipy.integrate import quad
from scipy.optimize import brentq
from torch import Tensor

from syncattn.kuramoto.integrate import checked, require_times, whole_steps


class Distribution(NamedTuple):
    """A symmetric distribution of natural frequencies with one peak, at 0.

    Attributes:
        name: in lower case.
        density: g(w).
        quantile: from probabilities, a tensor, to frequencies.
    """

    name: str
    density: Callable[[float], float]
    quantile: Callable[[Tensor], Tensor]


def lorentzian(half_width: float = 1.0) -> Distribution:
    """g(w) = (gamma / pi) / (gamma^2 + w^2), gamma = `half_width` > 0; there r = sqrt(1 - 2 gamma / K)."""
    gamma = _positive("half_width", half_width)
    return Distribution(
        "lorentzian",
        lambda w: gamma / math.pi / (gamma * gamma + w * w),
        lambda p: gamma * torch.tan(math.pi * (p - 0.5)),
    )


def gaussian(deviation: float = 1.0) -> Distribution:
    """The normal distribution with this standard deviation s > 0; Kc = s sqrt(8 / pi)."""
    s = _positive("deviation", deviation)
    return Distribution(
        "gaussian",
        lambda w: math.exp(-0.5 * (w / s) ** 2) / (s * math.sqrt(2.0 * math.pi)),
        lambda p: s * torch.special.ndtri(p),
    )


def midpoint_quantiles(distribution: Distribution, count: int) -> Tensor:
    """N = `count` frequencies that stand for the distribution, (N,) float64: its quantiles at (i + 1/2) / N.

    They have no sampling noise: a sum over them differs from the integral by about 1 / N, where N frequencies
    drawn at random differ by about 1 / sqrt(N).
    """
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"count must be an integer >= 1, got {count!r}")
    number = torch.arange(count, dtype=torch.float64, device="cpu")
    return distribution.quantile((number + 0.5) / count)


def critical_coupling(distribution: Distribution) -> float:
    """Kc = 2 / (pi g(0)): the coupling above which the order parameter is positive."""
    return 2.0 / (math.pi * distribution.density(0.0))


def self_consistent(coupling: float, distribution: Distribution) -> float:
    """The order parameter r in [0, 1] of infinitely many oscillators; 0 at and below the critical coupling.

    >>> round(self_consistent(3.0, lorentzian()), 6)  # sqrt(1 - 2 / 3)
    0.57735
    """
    coupling = _positive("coupling", coupling)
    if coupling <= critical_coupling(distribution):
        return 0.0

    def excess(r: float) -> float:
        def integrand(u: float) -> float:
            return 2.0 * coupling * math.cos(u) ** 2 * distribution.density(coupling * r * math.sin(u))

        # g is even; the splits keep the peak at u = 0 and its tail in sight when K r is large
        edges, width = [0.0], 10.0 / (distribution.density(0.0) * coupling * r)
        while width < 0.5 * math.pi:
            edges.append(width)
            width *= 10.0
        parts = (quad(integrand, a, b, epsabs=1e-13)[0] for a, b in pairwise([*edges, 0.5 * math.pi]))
        return sum(parts) - 1.0

    # Where r is 0 or 1 to rounding there is no change of sign between.
    if excess(1e-9) <= 0.0:
        return 0.0
    if excess(1.0) >= 0.0:
        return 1.0
    return float(brentq(excess, 1e-9, 1.0, xtol=1e-12))


def simulate_order_parameter(
    phase: Tensor,
    frequency: Tensor,
    coupling: Tensor | float,
    *,
    duration: float,
    settle: float = 0.0,
    step: float = 0.05,
) -> Tensor:
    """The mean of r over `duration`, after `settle`, of oscillators coupled all to all: (...), float64.

    In a field that does not change, every oscillator's motion is known in closed form (a Moebius map of the
    circle), however fast it turns. Each step takes the field from its own middle and moves every oscillator
    by that form. The error falls as the step's square, and the step must resolve the field alone: the tails
    of a Lorentzian, whose fastest of 2,000 oscillators turns 1,273 times as fast as its half width, cost
    nothing.

    Args:
        phase, frequency, coupling: as in `integrate.simulate`.
        duration: the time that the mean is taken over.
        settle: the time before.
        step: the largest step.

    Raises:
        TypeError, ValueError: an argument is not as documented.
    """
    phase, frequency, coupling, _ = checked(phase, frequency, coupling, None)
    require_times(duration, settle, step)
    scale = coupling[..., None]
    z = torch.polar(torch.ones_like(phase), phase)
    before, steps = whole_steps(settle, step), whole_steps(duration, step)
    total = torch.zeros(phase.shape[:-1], dtype=torch.float64, device=phase.device)
    for n in range(before + steps):
        h = settle / before if n < before else duration / steps
        middle = _turn(z, frequency, scale * z.mean(-1, keepdim=True), 0.5 * h).mean(-1, keepdim=True)
        z = _turn(z, frequency, scale * middle, h)
        if n >= before:
            total += middle.abs().squeeze(-1)
    return total / steps


def _turn(z: Tensor, frequency: Tensor, field: Tensor, time: float) -> Tensor:
    """Points z (..., N) of the unit circle after `time` of z' = i w z + (H - conj(H) z^2) / 2, H (..., 1).

    With z = u / v the equation is linear, (u, v)' = A (u, v), A = [[i w, H], [conj(H), -i w]] / 2, and A^2 is
    (|H|^2 - w^2) / 4 times the identity: exp(A t) = cosh(q) + A t sinh(q) / q, q^2 = (|H|^2 - w^2) t^2 / 4.
    """
    square = 0.25 * time * time * (field.abs().square() - frequency.square())
    q = square.abs().sqrt()
    locked = square > 0
    even = torch.where(locked, torch.cosh(q.where(locked, 0.0)), torch.cos(q))
    odd = torch.where(locked, torch.sinh(q.where(locked, 1.0)) / q.clamp(min=1e-150), torch.sinc(q / math.pi))
    own = torch.complex(even, 0.5 * time * frequency * odd)
    other = 0.5 * time * field * odd
    top = own * z + other
    return torch.sgn(top / (other.conj() * z + own.conj()))  # sgn: back on to the circle from rounding


def _positive(name: str, value: float) -> float:
    if not 0.0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value!r}")
    return float(value)

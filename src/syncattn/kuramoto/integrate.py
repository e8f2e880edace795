"""The Kuramoto equation and its integration in PyTorch, many networks at once."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from syncattn import functional

_SAMPLES_AT_ONCE = 64  # of the products that the mean cosines are made of


class Simulation(NamedTuple):
    """What `simulate` found. Means are over the time after `settle`.

    Attributes:
        phase: at the end, in radians, not reduced to one turn, (..., N).
        mean_frequency: radians per unit of time, (..., N).
        order_parameter: the mean of r, (...).
        mean_cosine: the mean of cos(t_i - t_j), (..., N, N); None unless asked for.
        times: of the samples, from 0 at the start, (T,).
        trajectory: the phases at those times, (T, ..., N), the time to settle included; None unless asked
            for.
    """

    phase: Tensor
    mean_frequency: Tensor
    order_parameter: Tensor
    mean_cosine: Tensor | None
    times: Tensor
    trajectory: Tensor | None


def order_parameter(phase: Tensor) -> Tensor:
    """r = abs(mean_j exp(i t_j)) of phases (..., N), N >= 1, in radians: (...)."""
    if not isinstance(phase, Tensor) or not phase.is_floating_point():
        raise TypeError(f"phase must be a floating tensor, got {_kind(phase)}")
    if phase.ndim == 0 or not phase.shape[-1]:
        raise ValueError(f"phase must have shape (..., N), N >= 1, got {tuple(phase.shape)}")
    r = functional.order_parameter(phase.reshape(1, -1, phase.shape[-1], 1))
    return r.reshape(phase.shape[:-1])


def derivative(
    phase: Tensor, frequency: Tensor, coupling: Tensor | float, kernel: Tensor | None = None
) -> Tensor:
    """The Kuramoto equation, t_i' = w_i + (K / N) sum_j J_ij sin(t_j - t_i): (..., N), radians per time.

    For N = 2 the phase difference follows the pair equation psi' = dw - K J sin psi.

    Args:
        phase: t in radians, (..., N).
        frequency: natural frequencies w, (..., N).
        coupling: K, a number or (...).
        kernel: J, (..., N, N); None for J = 1, all to all, which costs N instead of N^2.

    Source: Kuramoto (1975); with J = exp(-alpha D), the network of the paper.
    """
    scale = coupling[..., None] if isinstance(coupling, Tensor) else coupling
    cosine, sine = phase.cos(), phase.sin()
    if kernel is None:
        across, up = cosine.mean(-1, keepdim=True), sine.mean(-1, keepdim=True)
    else:
        across, up = (kernel @ torch.stack((cosine, sine), dim=-1)).unbind(-1)
        scale = scale / phase.shape[-1]
    return frequency + scale * (up * cosine - across * sine)


def runge_kutta(slope: Callable[[Tensor], Tensor], state: Tensor, step: Tensor | float) -> Tensor:
    """One step of the classical fourth order Runge-Kutta method for an autonomous equation."""
    first = slope(state)
    second = slope(state + 0.5 * step * first)
    third = slope(state + 0.5 * step * second)
    fourth = slope(state + step * third)
    return state + (step / 6.0) * (first + 2.0 * (second + third) + fourth)


def simulate(
    phase: Tensor,
    frequency: Tensor,
    coupling: Tensor | float,
    kernel: Tensor | None = None,
    *,
    duration: float,
    settle: float = 0.0,
    step: float = 0.05,
    every: int = 1,
    pairs: bool = False,
    trajectory: bool = False,
) -> Simulation:
    """Integrate the Kuramoto equation (`derivative`) from `phase`: first `settle`, then `duration`.

    The method has a constant step; the phases' error after a fixed time falls as its fourth power. A step
    above about 1 / max |w| does not resolve the fastest oscillators, which costs accuracy and is not refused:
    see `meanfield.simulate_order_parameter`, which does not need to. A step too long for the coupling makes
    the method unstable (Runge-Kutta's limit: 2.78 over the fastest relaxation) and is refused. Everything is
    computed in float64.

    Args:
        phase, frequency, coupling, kernel: as in `derivative`; their leading dimensions broadcast, so that
            many networks are integrated at once.
        duration: the time that the means are taken over.
        settle: the time before, which no mean counts.
        step: the largest step; it is shortened so that whole steps fill both times. At most 2 / |K|, or with
            a kernel 2 / (|K| min(max |J|, 2 max_i mean_j |J_ij|)), the mean without j = i.
        every: how many steps lie between two samples of the means and of the trajectory.
        pairs: also give the mean cosine of every pair of phases.
        trajectory: also give the phases at every sample.

    Raises:
        TypeError, ValueError: an argument is not as documented.
    """
    phase, frequency, coupling, kernel = checked(phase, frequency, coupling, kernel)
    require_times(duration, settle, step)
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        raise ValueError(f"every must be an integer >= 1, got {every!r}")

    def slope(state: Tensor) -> Tensor:
        return derivative(state, frequency, coupling, kernel)

    before, steps = whole_steps(settle, step), whole_steps(duration, step)
    require_stable(max(settle / max(before, 1), duration / steps), _relaxation(coupling, kernel))
    times, kept = [0.0], [phase]
    for n in range(1, before + 1):
        phase = runge_kutta(slope, phase, settle / before)
        if trajectory and n % every == 0:
            times.append(n * settle / before)
            kept.append(phase)

    start, sums = phase, _Sums(pairs)
    for n in range(1, steps + 1):
        phase = runge_kutta(slope, phase, duration / steps)
        if n % every == 0 or n == steps:
            sums.add(phase)
            if trajectory:
                times.append(settle + n * duration / steps)
                kept.append(phase)
    coherence, mean_cosine = sums.means()
    return Simulation(
        phase,
        (phase - start) / duration,
        coherence,
        mean_cosine,
        torch.tensor(times, dtype=torch.float64, device=phase.device),
        torch.stack(kept) if trajectory else None,
    )


class _Sums:
    """Running sums of r and, if `pairs`, of cos(t_i - t_j)."""

    def __init__(self, pairs: bool) -> None:
        self.pairs = pairs
        self.count = 0
        self.coherence: Tensor | None = None
        self.cosine: Tensor | float = 0.0
        self.waiting: list[Tensor] = []

    def add(self, phase: Tensor) -> None:
        self.count += 1
        coherence = order_parameter(phase)
        self.coherence = coherence if self.coherence is None else self.coherence + coherence
        if self.pairs:
            self.waiting.append(phase)
            if len(self.waiting) == _SAMPLES_AT_ONCE:
                self._multiply()

    def means(self) -> tuple[Tensor, Tensor | None]:
        if self.waiting:
            self._multiply()
        cosine = self.cosine / self.count if isinstance(self.cosine, Tensor) else None
        assert self.coherence is not None  # there is one sample at least
        return self.coherence / self.count, cosine

    def _multiply(self) -> None:
        # One matrix product over many samples is several times cheaper than one outer product for each.
        phase = torch.stack(self.waiting, dim=-1)  # (..., N, samples)
        parts = torch.cat((phase.cos(), phase.sin()), dim=-1)
        self.cosine = self.cosine + parts @ parts.mT
        self.waiting = []


def checked(
    phase: Tensor, frequency: Tensor, coupling: Tensor | float, kernel: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The arguments of `simulate` in float64, phases and frequencies broadcast to one shape."""
    for name, value in (("phase", phase), ("frequency", frequency), ("kernel", kernel)):
        if value is None and name == "kernel":
            continue
        require_finite(name, value)
    if (
        phase.ndim == 0
        or frequency.ndim == 0
        or phase.shape[-1] != frequency.shape[-1]
        or not phase.shape[-1]
    ):
        raise ValueError(
            "phase and frequency must have shape (..., N) with equal N >= 1, got "
            f"{tuple(phase.shape)} and {tuple(frequency.shape)}"
        )
    count = phase.shape[-1]
    if kernel is not None and (kernel.ndim < 2 or kernel.shape[-2:] != (count, count)):
        raise ValueError(f"kernel must have shape (..., N, N), N = {count}, got {tuple(kernel.shape)}")
    coupling = require_coupling(coupling).to(phase.device)
    leading = [phase.shape[:-1], frequency.shape[:-1], coupling.shape]
    if kernel is not None:
        leading.append(kernel.shape[:-2])
    try:
        shape = (*torch.broadcast_shapes(*leading), count)
    except RuntimeError:
        raise ValueError(
            "the leading dimensions of phase, frequency, coupling and kernel must broadcast, got "
            f"{[tuple(one) for one in leading]}"
        ) from None
    phase, frequency = (one.double().expand(shape) for one in (phase, frequency))
    return phase, frequency, coupling, None if kernel is None else kernel.double()


def require_finite(name: str, value: Any) -> None:
    """Raise unless it is a floating tensor of finite numbers."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise TypeError(f"{name} must be a floating tensor, got {_kind(value)}")
    if not bool(torch.isfinite(value).all()):
        raise ValueError(f"{name} must be finite")


def require_coupling(coupling: Any) -> Tensor:
    """The coupling, a real number or a tensor of finite ones, as a float64 tensor; else raise."""
    if isinstance(coupling, Tensor):
        usable = not coupling.is_complex() and coupling.dtype is not torch.bool
    else:
        usable = isinstance(coupling, numbers.Real) and not isinstance(coupling, bool)
    if not usable:
        raise TypeError(f"coupling must be a number or a tensor of real numbers, got {_kind(coupling)}")
    device = coupling.device if isinstance(coupling, Tensor) else "cpu"
    values = torch.as_tensor(coupling, dtype=torch.float64, device=device)
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"coupling must be finite, got {coupling}")
    return values


def whole_steps(time: float, step: float) -> int:
    """The fewest steps of at most `step` that fill the time: 0 for no time, else 1 at least."""
    return max(1, math.ceil(time / step - 1e-9)) if time > 0 else 0


def require_stable(step: float, rate: float) -> None:
    """Raise if Runge-Kutta steps as long would not resolve a relaxation at this rate: step * rate > 2."""
    if step * rate > 2.0 * (1.0 + 1e-9):
        raise ValueError(
            f"step is too long for this coupling, {step:g}: the result would be wrong; take at most "
            f"{2.0 / rate:.3g}"
        )


def _relaxation(coupling: Tensor, kernel: Tensor | None) -> float:
    # A bound of the Jacobian's eigenvalues: those of a weighted graph's Laplacian are at most N times its
    # largest weight, and at most twice its largest degree.
    if kernel is None:
        rate = coupling.abs()
    else:
        weight = kernel.abs()
        degree = (weight.sum(-1) - weight.diagonal(dim1=-2, dim2=-1)).amax(-1) / kernel.shape[-1]
        rate = coupling.abs() * torch.minimum(weight.amax((-2, -1)), 2.0 * degree)
    return float(rate.max()) if rate.numel() else 0.0


def _kind(value: Any) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


def require_times(duration: float, settle: float, step: float) -> None:
    for name, value in (("duration", duration), ("settle", settle), ("step", step)):
        if not isinstance(value, numbers.Real):
            raise TypeError(f"{name} must be a number, got {_kind(value)}")
    for name, value in (("duration", duration), ("step", step)):
        if not 0.0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value!r}")
    if not 0.0 <= settle < math.inf:
        raise ValueError(f"settle must be finite and >= 0, got {settle!r}")

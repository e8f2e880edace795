"""Pairs of oscillators, integrated and in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from syncattn.kuramoto.integrate import runge_kutta

STEP = 0.25  # of Runge and Kutta's method, in units of 1 / (kappa J); at the fixed point it has no error


class KernelCount(TorchDispatchMode):
    """Counts the operations that are handed to the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def kernels(call: Callable[[], Any]) -> int:
    """How many operations a call hands to the device."""
    with torch.no_grad(), KernelCount() as counter:
        call()
    return counter.count


def step(phase: Tensor, ratio: Tensor, size: Tensor | float = STEP) -> Tensor:
    """One step of Runge and Kutta's method of order 4 for psi' = x - sin psi.

    This is a pair's equation psi' = dw - kappa J sin psi in units of its own time 1 / (kappa J), with
    x = dw / (kappa J); it locks iff x <= 1.
    """
    return runge_kutta(lambda psi: ratio - torch.sin(psi), phase, size)


def settle(ratio: Tensor, scale: Tensor, tolerance: float, most: int) -> tuple[Tensor, Tensor, int]:
    """Integrate locked pairs from psi = -1 until no J cos psi would still move by more than the tolerance.

    What is still to come is estimated as by an integrator that does not know the answer: Newton's step
    q = psi' / cos psi towards the fixed point, which changes cos psi by at most |q| (|sin psi| + |q|).

    Args:
        ratio: x = dw / (kappa J) in [0, 1], any shape.
        scale: J, the same shape.
        tolerance: of J cos psi.
        most: steps after which it gives up.

    Returns:
        (J cos psi, the step at which each pair was within the tolerance (most if it was not), steps taken).
    """
    phase = torch.full_like(ratio, -1.0)
    done = torch.full(ratio.shape, most, dtype=torch.int64)
    for n in range(most):
        sine, cosine = torch.sin(phase), torch.cos(phase)
        left = (ratio - sine).abs() / cosine.clamp(min=1e-12)
        within = scale * left * (sine.abs() + left) < tolerance
        done = torch.where(within & (done == most), n, done)
        if bool(within.all()):
            return scale * cosine, done, n
        phase = step(phase, ratio)
    return scale * torch.cos(phase), done, most


def mean_when_drifting(ratio: Tensor, per_turn: int = 2_000) -> Tensor:
    """The mean of cos psi over one turn of unlocked pairs, x > 1; in theory 0.

    A turn takes 2 pi / sqrt(x^2 - 1) in units of 1 / (kappa J): each pair has steps of its own size.
    """
    size = 2 * math.pi / (ratio.square() - 1).sqrt() / per_turn
    phase, total = torch.zeros_like(ratio), torch.zeros_like(ratio)
    for _ in range(per_turn):
        total += torch.cos(phase)
        phase = step(phase, ratio, size)
    return total / per_turn


def relaxation_rate(ratio: Tensor) -> Tensor:
    """The rate at which psi nears its fixed point arcsin x, in units of kappa J; in theory cos psi* there.

    From how much a small distance from the fixed point shrinks in two of these times.
    """
    fixed = torch.asin(ratio)
    cosine = torch.cos(fixed)
    start = 1e-3 * cosine  # small against the distance to the unstable point, 2 (pi / 2 - psi*)
    steps = 400
    size = 2 / cosine / steps  # two e-foldings, whatever the rate
    phase = fixed - start
    for _ in range(steps):
        phase = step(phase, ratio, size)
    return torch.log(start / (fixed - phase)) / (steps * size)

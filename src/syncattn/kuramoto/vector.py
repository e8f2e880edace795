"""Frequencies of several coordinates: the pair equation that the Euclidean norm is the steady state of.

    psi' = delta - k (psi / |psi|) sin |psi|        psi, delta in R^m, k = K J

the gradient flow of 1 - cos |psi| under a constant force. It turns with the coordinates (isotropic), and
locks iff |delta| <= k, at psi* = (delta / |delta|) arcsin(|delta| / k), cos |psi*| = sqrt(1 - |delta|^2 /
k^2). It is not m Kuramoto pairs, one for each coordinate, psi_d' = delta_d - k sin psi_d: all of those lock
iff max_d |delta_d| <= k.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from syncattn.kuramoto.integrate import (
    require_coupling,
    require_finite,
    require_stable,
    require_times,
    runge_kutta,
    whole_steps,
)


def vector_derivative(difference: Tensor, detuning: Tensor, coupling: Tensor | float) -> Tensor:
    """delta - k (psi / |psi|) sin |psi|, (..., m); `coupling` k, a number or (...)."""
    scale = coupling[..., None] if isinstance(coupling, Tensor) else coupling
    length = torch.linalg.vector_norm(difference, dim=-1, keepdim=True)
    return detuning - scale * difference * torch.sinc(length / math.pi)  # sinc: sin |psi| / |psi|, 1 at 0


def vector_fixed_point(detuning: Tensor, coupling: Tensor | float) -> Tensor:
    """psi* of a locked pair, (..., m); NaN where |delta| > k. `coupling` k, a number or (...)."""
    require_finite("detuning", detuning)
    require_coupling(coupling)
    length = torch.linalg.vector_norm(detuning, dim=-1)
    ratio = length / coupling
    at_rest = 1.0 / torch.as_tensor(coupling, dtype=length.dtype, device=length.device)
    scale = torch.where(length > 0, torch.asin(ratio) / length, at_rest)
    return detuning * scale[..., None]


def vector_eigenvalues(detuning: Tensor, coupling: Tensor | float) -> Tensor:
    """The eigenvalues of the flow's Jacobian at psi*, (..., 2): along psi*, and across it (m - 1 times).

    -k cos |psi*| and -k sin |psi*| / |psi*|: both negative inside the locking radius, so psi* is stable.
    """
    length = torch.linalg.vector_norm(vector_fixed_point(detuning, coupling), dim=-1)
    return -torch.stack((torch.cos(length), torch.sinc(length / math.pi)), dim=-1) * (
        coupling[..., None] if isinstance(coupling, Tensor) else coupling
    )


def simulate_vector(
    difference: Tensor, detuning: Tensor, coupling: Tensor | float, *, duration: float, step: float = 0.05
) -> Tensor:
    """psi after `duration`, (..., m), from `difference`, by the classical Runge-Kutta method in float64.

    Args:
        difference, detuning: psi at the start and delta, (..., m); they broadcast.
        coupling: k, a number or (...).
        step: the largest step; at most 2 / |k|, above which the method is unstable.

    Raises:
        TypeError, ValueError: an argument is not as documented.
    """
    require_times(duration, 0.0, step)
    require_finite("difference", difference)
    require_finite("detuning", detuning)
    coupling = require_coupling(coupling)
    if difference.ndim == 0 or detuning.ndim == 0 or difference.shape[-1] != detuning.shape[-1]:
        raise ValueError(
            "difference and detuning must have shape (..., m) with equal m, got "
            f"{tuple(difference.shape)} and {tuple(detuning.shape)}"
        )
    state, force = torch.broadcast_tensors(difference.double(), detuning.double())
    steps = whole_steps(duration, step)
    require_stable(duration / steps, float(coupling.abs().max()) if coupling.numel() else 0.0)
    for _ in range(steps):
        state = runge_kutta(lambda now: vector_derivative(now, force, coupling), state, duration / steps)
    return state

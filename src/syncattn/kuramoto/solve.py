"""The Kuramoto equation by scipy: a step that follows the wanted accuracy."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from torch import Tensor

from syncattn.kuramoto.integrate import checked, derivative, require_finite


def solve(
    phase: Tensor,
    frequency: Tensor,
    coupling: Tensor | float,
    kernel: Tensor | None = None,
    *,
    times: Tensor,
    rtol: float = 1e-10,
    atol: float = 1e-12,
) -> Tensor:
    """The phases at these times, (T, ..., N), from `phase` at time 0; by scipy's DOP853, float64.

    Args:
        phase, frequency, coupling, kernel: as in `integrate.simulate`. Networks that are solved together
            share their steps.
        times: finite, increasing, >= 0, (T,).
        rtol, atol: the wanted accuracy of a step, as in `scipy.integrate.solve_ivp`.

    Raises:
        TypeError, ValueError: an argument is not as documented.
        RuntimeError: scipy could not reach the accuracy.
    """
    phase, frequency, coupling, kernel = checked(phase, frequency, coupling, kernel)
    phase, frequency, coupling = phase.detach(), frequency.detach(), coupling.detach()
    kernel = None if kernel is None else kernel.detach()
    require_finite("times", times)
    if times.ndim != 1 or not times.numel() or bool((times < 0).any()) or bool((times.diff() <= 0).any()):
        raise ValueError(f"times must be increasing and >= 0, of shape (T,), got {times!r}")

    def slope(_: float, state: NDArray[np.float64]) -> NDArray[np.float64]:
        now = torch.from_numpy(state).reshape(phase.shape)
        return derivative(now, frequency, coupling, kernel).reshape(-1).numpy()

    moments = times.detach().double().numpy()
    solution = solve_ivp(
        slope,
        (0.0, float(moments[-1]) or 1.0),  # scipy refuses an empty span
        phase.reshape(-1).numpy(),
        method="DOP853",
        t_eval=moments,
        rtol=rtol,
        atol=atol,
    )
    if not solution.success:
        raise RuntimeError(f"the Kuramoto equation was not solved: {solution.message}")
    return torch.from_numpy(np.ascontiguousarray(solution.y.T)).reshape(-1, *phase.shape)

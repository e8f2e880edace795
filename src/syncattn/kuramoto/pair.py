"""Two oscillators: psi' = dw - k sin psi, with k = K J; their steady state in closed form, and integrated.

Everything depends on x = dw / k. For |x| <= 1 the pair locks: sin psi* = x, cos psi* = sqrt(1 - x^2). For |x|
> 1 the phase difference turns for ever, with the beat frequency k sqrt(x^2 - 1).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from torch import Tensor

from syncattn.kuramoto.integrate import require_finite, require_times


class PairMotion(NamedTuple):
    """What `solve_pair` found, each (n,), float64.

    Attributes:
        difference: psi = t_1 - t_2 at the end, in radians, not reduced to one turn.
        mean_cosine: the mean of cos psi over all of the time.
        mean_sine: that of sin psi.
        coherence: abs(exp(i t_1) + exp(i t_2)) / 2 at the end: the order parameter of the two.
    """

    difference: Tensor
    mean_cosine: Tensor
    mean_sine: Tensor
    coherence: Tensor


def mean_phasor(ratio: Tensor) -> Tensor:
    """The long-time mean of exp(i psi), complex, for x = `ratio` = dw / k, any shape.

    sqrt(1 - x^2) + i x when locked; i (x - sgn(x) sqrt(x^2 - 1)) when not: the cosine's mean is 0, and the
    sine's is 1 at the edge and falls as 1 / (2 x). It is also the mean of exp(i (t - t_H)) of one oscillator
    in a constant field of size k and phase t_H, which makes it the building block of the mean field.

    >>> mean_phasor(torch.tensor([0.6, 1.25], dtype=torch.float64))
    tensor([0.8000+0.6000j, 0.0000+0.5000j], dtype=torch.complex128)
    """
    inside = torch.sqrt((1.0 - ratio * ratio).clamp(min=0.0))
    outside = torch.sqrt((ratio * ratio - 1.0).clamp(min=0.0))
    # x - sgn(x) sqrt(x^2 - 1) without its cancellation at large x
    quadrature = torch.where(ratio.abs() <= 1.0, ratio, 1.0 / (ratio + torch.sign(ratio) * outside))
    return torch.complex(inside, quadrature)


def beat_frequency(detuning: Tensor, coupling: Tensor | float) -> Tensor:
    """sgn(dw) sqrt(dw^2 - k^2), the mean frequency difference of a pair; 0 where it is locked.

    Both arguments broadcast; k = `coupling` times the kernel J.

    >>> beat_frequency(torch.tensor([0.6, 1.25]), 1.0)
    tensor([0.0000, 0.7500])
    """
    return torch.sign(detuning) * torch.sqrt((detuning * detuning - coupling**2).clamp(min=0.0))


def solve_pair(
    detuning: Tensor, coupling: Tensor, *, duration: float, rtol: float = 1e-10, atol: float = 1e-12
) -> PairMotion:
    """Integrate pairs of oscillators from equal phases, by scipy's DOP853.

    t_1' = dw / 2 + (k / 2) sin(t_2 - t_1), t_2' = -dw / 2 + (k / 2) sin(t_1 - t_2). The means are integrated
    with the phases, so that they are as accurate. Pairs that are solved together share their steps: give them
    detunings and couplings in units in which their motions take equally long.

    Args:
        detuning: dw, (n,).
        coupling: k > 0, (n,).
        duration: the time that is integrated.

    Raises:
        TypeError, ValueError: an argument is not as documented.
        RuntimeError: scipy could not reach the accuracy.
    """
    require_finite("detuning", detuning)
    require_finite("coupling", coupling)
    if detuning.ndim != 1 or detuning.shape != coupling.shape or not detuning.numel():
        raise ValueError(
            "detuning and coupling must have one shape (n,), n >= 1, got "
            f"{tuple(detuning.shape)} and {tuple(coupling.shape)}"
        )
    if not bool((coupling > 0).all()):
        raise ValueError(f"coupling must be positive, got {coupling!r}")
    require_times(duration, 0.0, 1.0)
    half = 0.5 * detuning.detach().double().numpy()
    pull = 0.5 * coupling.detach().double().numpy()

    def slope(_: float, state: NDArray[np.float64]) -> NDArray[np.float64]:
        rows = state.reshape(4, -1)  # both phases, then the sums of cos psi and sin psi
        difference = rows[0] - rows[1]
        sine = np.sin(difference)
        return np.concatenate((half - pull * sine, -half + pull * sine, np.cos(difference), sine))

    solution = solve_ivp(
        slope,
        (0.0, duration),
        np.zeros(4 * len(half)),
        method="DOP853",
        rtol=rtol,
        atol=atol,
        t_eval=[duration],
    )
    if not solution.success:
        raise RuntimeError(f"the pair equation was not solved: {solution.message}")
    end = torch.from_numpy(solution.y[:, -1].copy()).reshape(4, -1)
    difference = end[0] - end[1]
    return PairMotion(difference, end[2] / duration, end[3] / duration, torch.cos(0.5 * difference).abs())

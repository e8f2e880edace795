"""Networks whose coupling decays with the detuning: what locks in them, and what closed forms say of it.

t_i' = w_i + (K / N) sum_j J_ij sin(t_j - t_i),    J_ij = exp(-alpha (w_i - w_j)^2)
"""

from __future__ import annotations

import torch
from torch import Tensor

from syncattn.kuramoto.integrate import require_coupling, require_finite
from syncattn.kuramoto.pair import mean_phasor
from syncattn.locking import coupling_kernel, synchronization


def network_kernel(frequency: Tensor, bandwidth: Tensor | float) -> Tensor:
    """J_ij = exp(-alpha (w_i - w_j)^2), (..., N, N), of frequencies (..., N).

    alpha, `bandwidth`, is a number or broadcasts to (..., N, N): one for each of B networks is (B, 1, 1).
    """
    return coupling_kernel(_squared_detuning(frequency), bandwidth)


def pair_formula(frequency: Tensor, coupling: Tensor | float, bandwidth: Tensor | float) -> Tensor:
    """What the paper says of every pair of a network, cos psi*_ij = S_ij / J_ij (..., N, N); 0 if not locked.

    Args:
        frequency: w, (..., N).
        coupling: the effective coupling kappa = K r, a number or one that broadcasts to (..., N, N).
        bandwidth: alpha, as in `network_kernel`.
    """
    detuning = _squared_detuning(frequency)
    sync = synchronization(detuning, coupling, bandwidth)
    kernel = coupling_kernel(detuning, bandwidth)
    return torch.where(sync > 0, sync / kernel, 0.0)


def locked_pairs(mean_frequency: Tensor, tolerance: float) -> Tensor:
    """Which pairs have equal mean frequencies up to `tolerance`, (..., N, N) bool, of (..., N).

    After a time T, take pi / T: a pair that turned against each other by less than half a turn in all of T.
    """
    if not tolerance >= 0.0:
        raise ValueError(f"tolerance must be >= 0, got {tolerance!r}")
    return (mean_frequency[..., :, None] - mean_frequency[..., None, :]).abs() <= tolerance


def transitivity(graph: Tensor) -> Tensor:
    """The share of the paths i - j - k, i not k, whose ends are linked as well: (...), of (..., N, N) bool.

    `graph` is symmetric; its diagonal does not count. 1 exactly if it falls into cliques, as the graph of an
    equivalence relation does; a graph without such paths has 1.
    """
    links = graph.double()
    links = links - torch.diag_embed(links.diagonal(dim1=-2, dim2=-1))
    square = links @ links
    paths = square.sum((-2, -1)) - square.diagonal(dim1=-2, dim2=-1).sum(-1)
    closed = (square * links).sum((-2, -1))
    return torch.where(paths > 0, closed / paths.clamp(min=1.0), 1.0)


def local_field(
    frequency: Tensor,
    coupling: float,
    kernel: Tensor,
    *,
    iterations: int = 3000,
    damping: float = 0.5,
) -> tuple[Tensor, Tensor]:
    """The steady state of one synchronized group in which every oscillator has its own field.

    H_i = (K / N) sum_j J_ij z_j, z_i = exp(i arg H_i) mean_phasor((w_i - Omega) / |H_i|): each oscillator is
    a pair with the field that it feels, and z_i is the long-time mean of exp(i (t_i - Omega t)). The
    long-time mean of cos(t_i - t_j), i not j, is then Re(z_i conj(z_j)), as long as drifting oscillators are
    independent. For J = 1 this is the mean field. Networks of several groups: give each group alone, with K
    N_group / N.

    Args:
        frequency: w, (N,).
        coupling: K.
        kernel: J, (N, N), symmetric.
        iterations: of the fixed-point iteration, at most; it ends when nothing moves by more than 1e-12.
        damping: the share of the new value in each, in (0, 1].

    Returns:
        z (N,) complex, and Omega, the group's common frequency, ().

    Raises:
        TypeError, ValueError: an argument is not as documented.
        RuntimeError: it still moves by more than 1e-6 after all iterations.
    """
    require_finite("frequency", frequency)
    require_finite("kernel", kernel)
    if require_coupling(coupling).ndim:
        raise ValueError(f"coupling must be a single number, got {coupling}")
    if not isinstance(iterations, int) or isinstance(iterations, bool) or iterations < 1:
        raise ValueError(f"iterations must be an integer >= 1, got {iterations!r}")
    if frequency.ndim != 1 or not len(frequency) or kernel.shape != (len(frequency), len(frequency)):
        raise ValueError(
            "frequency must have shape (N,), N >= 1, and kernel (N, N), got "
            f"{tuple(frequency.shape)} and {tuple(kernel.shape)}"
        )
    if not 0.0 < damping <= 1.0:
        raise ValueError(f"damping must lie in (0, 1], got {damping!r}")
    frequency = frequency.double()
    weights = (coupling / len(frequency)) * kernel.to(torch.complex128)
    z = torch.ones(len(frequency), dtype=torch.complex128, device=frequency.device)
    common = frequency.mean()
    for _ in range(iterations):
        field = weights @ z
        pull = field.abs().clamp(min=1e-12)
        new = torch.sgn(field) * mean_phasor((frequency - common) / pull)
        # Forces between pairs cancel in the sum over all, so what is left of it must be the common
        # frequency's.
        locked = (frequency - common).abs() <= pull
        force = (new.conj() * field).imag.sum()
        shift = -force / locked.sum().clamp(min=1)
        moved = (new - z).abs().max() + shift.abs()
        z = (1.0 - damping) * z + damping * new
        common = common + damping * shift
        if float(moved) < 1e-12:
            break
    if not float(moved) < 1e-6:
        raise RuntimeError(
            f"the local field still moves by {float(moved):.1e} after {iterations} iterations; give more, or "
            "a smaller damping"
        )
    return z, common


def _squared_detuning(frequency: Tensor) -> Tensor:
    return (frequency[..., :, None] - frequency[..., None, :]).square()

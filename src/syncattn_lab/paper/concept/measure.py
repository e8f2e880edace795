"""S of seven words by the operator, and their phases by the Kuramoto equation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from syncattn import kuramoto, selective_synchronization_attention
from syncattn.locking import coupling_from_radius
from syncattn_lab.paper.section import Extent, Numbers

# The only numbers that are chosen: natural frequencies, in radians per unit of time, in the sentence's order.
# Function words turn one way, content words the other.
SENTENCE = (
    ("The", -1.72),
    ("cat", 1.14),
    ("sat", 1.54),
    ("on", -1.24),
    ("the", -1.48),
    ("mat", 1.34),
    (".", -1.00),
)
RADIUS = 0.9  # rho: wider than either group, narrower than the gap between them
SHARPNESS = 1.0  # c = 2 alpha kappa^2


def measure(extent: Extent, tell: Callable[[str], None]) -> Numbers:
    """S of the seven tokens by the operator, and their phases by the Kuramoto equation.

    Nothing is drawn at random and nothing is large, so that `extent` changes nothing but the span of the
    integration.
    """
    words = [word for word, _ in SENTENCE]
    frequency = torch.tensor([w for _, w in SENTENCE], dtype=torch.float64)
    coupling, bandwidth = coupling_from_radius(torch.tensor([RADIUS], dtype=torch.float64), SHARPNESS)
    receive = frequency[None, None, :, None]  # (1, 1, N, 1)
    value = torch.eye(len(words), dtype=torch.float64)[None, None]
    _, sync, _ = selective_synchronization_attention(
        receive, receive, value, coupling, bandwidth, return_weights=True
    )
    sync = sync[0, 0]
    order = frequency.argsort()
    group = (frequency > 0).long()
    kappa, alpha = float(coupling), float(bandwidth)
    moments = phases(frequency.numpy(), kappa, alpha, group.numpy(), extent.size(400.0, 100.0))
    across = group[:, None] != group
    return {
        "words": words,
        "frequency": frequency.tolist(),
        "group": group.tolist(),
        "coupling": kappa,
        "bandwidth": alpha,
        "radius": RADIUS,
        "sharpness": SHARPNESS,
        "order": order.tolist(),
        "sync": sync.tolist(),
        "across": int(across.sum()),
        "zeros_across": int((sync[across] == 0).sum()),
        "largest_across": float(sync[across].max()),
        "zeros_within": int((sync[~across] == 0).sum()),
        "least_within": float(sync[~across].min()),
        "ones_on_diagonal": int((sync.diagonal() == 1).sum()),
        "asymmetry": float((sync - sync.T).abs().max()),
        "blocks": blocks(sync[order][:, order]),
        "blocks_in_sentence": blocks(sync),
        **moments,
    }


def blocks(sync: torch.Tensor) -> int:
    """The number of blocks along the diagonal of S (N, N) in the order given, with nothing outside them."""
    bounds = 1  # a cut before token i is possible if nobody before it locks to anybody from it on
    for i in range(1, len(sync)):
        bounds += int((sync[:i, i:] == 0).all() and (sync[i:, :i] == 0).all())
    return bounds


def phases(
    frequency: np.ndarray, kappa: float, alpha: float, group: np.ndarray, span: float
) -> dict[str, Any]:
    """The Kuramoto network of these tokens, integrated from equal phases: where the phases settle.

    phi_i' = w_i + (kappa / N) sum_j J_ij sin(phi_j - phi_i), J = exp(-alpha D), frequency and group (N,).
    Locked groups keep their shape and turn at a speed of their own; the moment that is shown is the one in
    the last third in which the two groups' mean phases are most nearly opposite.

    Returns:
        phase (N,) in radians at that moment; mean_frequency (N,) over the last two thirds of `span`.
    """
    w = torch.from_numpy(frequency)
    times = np.linspace(0.0, span, 6001)
    phi = kuramoto.solve(
        torch.zeros_like(w),
        w,
        kappa,
        kuramoto.network_kernel(w, alpha),
        times=torch.from_numpy(times),
        rtol=1e-9,
        atol=1e-9,
    ).T.numpy()  # (N, T)
    early = len(times) // 3
    mean = (phi[:, -1] - phi[:, early]) / (times[-1] - times[early])
    unit = np.exp(1j * phi)
    apart = np.angle(unit[group == 0].mean(0) / unit[group == 1].mean(0))  # (T,)
    at = 2 * early + int(np.abs(apart[2 * early :]).argmax())
    return {
        "phase": [float(value) for value in phi[:, at] % (2 * math.pi)],
        "moment": float(times[at]),
        "span": span,
        "mean_frequency": [float(value) for value in mean],
        "spread_within": max(float(np.ptp(mean[group == g])) for g in (0, 1)),
        "gap_between": float(mean[group == 1].min() - mean[group == 0].max()),
    }

"""The closed form beside the integrated pair, and where pairs settle slowly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from syncattn import locking, selective_synchronization_attention
from syncattn.bench.timing import Clock, interleave
from syncattn_lab.paper.closed_form.pairs import (
    STEP,
    kernels,
    mean_when_drifting,
    relaxation_rate,
    settle,
    step,
)
from syncattn_lab.paper.random_blocks import random_tokens, seeded
from syncattn_lab.paper.section import Extent, Numbers

TOLERANCE = 1e-6  # of S, to which pairs are integrated
EDGE = 0.1  # S / J = cos psi*, below which a locked pair counts as near the edge
DISTANCES = [1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001]  # from the edge, as cos psi*


def measure(extent: Extent, tell: Callable[[str], None]) -> Numbers:
    return {
        "identity": _identity(extent.size(1_000_000, 100_000), extent.seed),
        "radius": _radius(extent.size(2_000, 300), extent.seed),
        "pairs": _pairs(64, extent.size(3_000, 1_200), extent.seed),
        "pass": _single_pass(64, extent.seed),
        "slowing": _slowing(extent.size(DISTANCES, DISTANCES[:7])),
        "courses": _courses([0.0, 0.5, 0.8, 0.95, 1.2]),
    }


def _random_heads(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """kappa from .1 to 100, alpha from 1e-4 to 10, and the rest's uniform numbers, each (count,)."""
    uniform = torch.rand(3, count, generator=seeded(seed), dtype=torch.float64)
    return 10 ** (3 * uniform[0] - 1), 10 ** (5 * uniform[1] - 4), uniform[2]


def _identity(count: int, seed: int) -> dict[str, float]:
    """The paper's J cos(arcsin(sqrt(D) / (kappa J))), in NumPy, against the library's S; D up to 2 rho^2."""
    kappa, alpha, share = _random_heads(count, seed)
    squared = 2 * share * locking.locking_radius(kappa, alpha).square()
    ours = locking.synchronization(squared, kappa, alpha).numpy()
    kernel = np.exp(-(alpha * squared).numpy())
    ratio = np.sqrt(squared.numpy()) / (kappa.numpy() * kernel)
    paper = np.where(ratio <= 1, kernel * np.cos(np.arcsin(np.minimum(ratio, 1))), 0.0)
    inner = paper > 0.01 * kernel
    return {
        "count": count,
        "locked": float(np.mean(paper > 0)),
        "disagree": int(np.sum((paper > 0) != (ours > 0))),
        "difference": float(np.abs(ours - paper)[inner].max()),
        "difference_at_edge": float(np.abs(ours - paper).max()),
        "difference_of_squares": float(np.abs(ours**2 - paper**2).max()),
    }


def _radius(count: int, seed: int) -> dict[str, float]:
    """The locking radius by Lambert's W against the root of F in (0, kappa^2), found by bracketing."""
    kappa, alpha, _ = _random_heads(count, seed + 1)
    ours = locking.locking_radius(kappa, alpha).square().numpy()

    def root(k: float, a: float) -> float:
        return brentq(
            lambda d: np.exp(-2 * a * d) - d / k**2, 0.0, k**2, xtol=1e-300, rtol=1e-15, maxiter=1000
        )

    wanted = np.array([root(k, a) for k, a in zip(kappa.tolist(), alpha.tolist())])
    return {"count": count, "difference": float(np.abs(ours / wanted - 1).max())}


def _pairs(tokens: int, most: int, seed: int) -> dict[str, Any]:
    """All pairs of random tokens: the closed form against the integrated pair equation.

    Locked pairs are integrated until S would not move by more than 1e-6, or `most` steps; of unlocked pairs
    the mean of cos psi over a turn is taken, of those not nearer than 1 % to the edge."""
    squared, kappa, alpha = _detuning(tokens, seed)
    upper = torch.triu(torch.ones(tokens, tokens, dtype=torch.bool), 1)
    squared = squared[upper]
    kernel = locking.coupling_kernel(squared, alpha)
    ratio = squared.sqrt() / (kappa * kernel)
    sync = locking.synchronization(squared, kappa, alpha)
    locked = sync > 0
    found, _, steps = settle(ratio[locked], kernel[locked], TOLERANCE, most)
    error = (found - sync[locked]).abs()
    inner = sync[locked] > EDGE * kernel[locked]
    mean = mean_when_drifting(ratio[~locked & (ratio > 1.01)])
    radius = float(locking.locking_radius(kappa, alpha))
    shown = slice(None, None, max(1, int(locked.sum()) // 150))
    return {
        "pairs": int(upper.sum()),
        "locked": int(locked.sum()),
        "inner": int(inner.sum()),
        "drifting": int((~locked & (ratio > 1.01)).sum()),
        "steps": steps,
        "difference": float(error[inner].max()),
        "difference_at_edge": float(error.max()),
        "mean_when_drifting": float(mean.abs().max()),
        "sharpness": float(2 * alpha * kappa**2),
        "shown": {
            "distance": (squared[locked][shown].sqrt() / radius).tolist(),
            "integrated": found[shown].tolist(),
        },
    }


def _detuning(tokens: int, seed: int) -> tuple[Tensor, float, float]:
    """D (N, N) of random tokens, and kappa and alpha with which about a third of the pairs locks."""
    w = random_tokens(seed, tokens, 4)
    kappa, alpha = (float(x) for x in locking.calibrate(0.35, 4, sharpness=10.0))
    return (w[:, None] - w).square().sum(-1), kappa, alpha


def _single_pass(tokens: int, seed: int) -> dict[str, Any]:
    """What the operator hands to the device, for pairs well inside and for pairs at the edge, and what an
    integration does to three tolerances; both timed on the same pairs."""
    squared, kappa, alpha = _detuning(tokens, seed)
    value = random_tokens(seed, 1, 1, tokens, 16)
    coupling, bandwidth = (torch.tensor([x], dtype=torch.float64) for x in (kappa, alpha))

    def forward(frequency: Tensor) -> tuple[Tensor, ...]:
        return selective_synchronization_attention(  # type: ignore[return-value]
            frequency, frequency, value, coupling, bandwidth, backend="eager", return_weights=True
        )

    spread = random_tokens(seed, 1, 1, tokens, 4)
    radius = float(locking.locking_radius(kappa, alpha))
    at_edge = torch.zeros_like(spread)
    # every second token, so that half of the pairs are at the edge
    at_edge[..., ::2, 0] = radius * (1 - 1e-9)
    kernel = locking.coupling_kernel(squared, alpha)
    ratio = squared.sqrt() / (kappa * kernel)
    inner = locking.synchronization(squared, kappa, alpha) > EDGE * kernel
    ratio, kernel = ratio[inner], kernel[inner]

    def integrate(tolerance: float) -> Callable[[], Any]:
        return lambda: settle(ratio, kernel, tolerance, 100_000)

    once, again = forward(spread), forward(spread)
    return {
        "kernels": kernels(lambda: forward(spread)),
        "kernels_at_edge": kernels(lambda: forward(at_edge)),
        "repeats_alike": all(torch.equal(a, b) for a, b in zip(once, again)),
        "integration": [
            {"tolerance": tolerance, "kernels": kernels(integrate(tolerance))}
            for tolerance in (1e-3, 1e-6, 1e-9)
        ],
        "seconds": interleave(
            {
                "closed form": lambda: locking.synchronization(squared[inner], kappa, alpha),
                "integrated": integrate(TOLERANCE),
            },
            Clock("cpu"),
            rounds=5,
            budget=0.5,
        ),
    }


def _slowing(distances: list[float]) -> list[dict[str, float]]:
    """Pairs nearer and nearer to the edge: the rate at which they settle, and the time that 1e-6 takes.

    In units of kappa J and of its inverse; in theory the rate is cos psi*.
    """
    cosine = torch.tensor(distances, dtype=torch.float64)
    ratio = (1 - cosine.square()).sqrt()
    _, steps, _ = settle(ratio, torch.ones_like(ratio), TOLERANCE, 1_000_000)
    rate = relaxation_rate(ratio)
    return [
        {"cosine": c, "rate": float(r), "time": float(n) * STEP} for c, r, n in zip(distances, rate, steps)
    ]


def _courses(ratios: list[float]) -> list[dict[str, Any]]:
    """cos psi over time from psi = -2 for some x = dw / (kappa J), and where it must end."""
    ratio = torch.tensor(ratios, dtype=torch.float64)
    phase = torch.full_like(ratio, -2.0)
    spacing, rows = 0.2, []
    for _ in range(151):
        rows.append(torch.cos(phase))
        phase = step(phase, ratio, spacing)
    table = torch.stack(rows, 1)
    end = (1 - ratio.square()).clamp(min=0).sqrt()
    return [
        {"ratio": x, "end": float(e), "cosine": [round(c, 5) for c in row.tolist()], "spacing": spacing}
        for x, e, row in zip(ratios, end, table)
    ]

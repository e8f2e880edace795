"""Networks of the section `ode`: what locks in them, and what the pair formula says of it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Generator, Tensor

from syncattn import kuramoto
from syncattn.locking import locking_radius
from syncattn_lab.paper.ode.oscillators import TURN, generator, rounded, share
from syncattn_lab.paper.section import Extent, Numbers


def networks(extent: Extent) -> Numbers:
    """What locks in networks of one broad cluster and of separated clusters, and what the formula says.

    The broad cluster is scanned over K at two bandwidths, from a part of it locked to all of it.
    """
    draw = generator(extent, 4)
    broad: dict[str, Any] = {"centres": 1, "gap": 0.0, "spread": 1.0, "shown": False}
    cases = {
        "mean field": broad | {"coupling": 2.0, "bandwidth": 1e-12},
        "mean field, K 3": broad | {"coupling": 3.0, "bandwidth": 1e-12},
        "mean field, K 4": broad | {"coupling": 4.0, "bandwidth": 1e-12},
        "mean field, K 6": broad | {"coupling": 6.0, "bandwidth": 1e-12},
        "broad, alpha 0.1": broad | {"coupling": 2.5, "bandwidth": 0.1},
        "broad, alpha 0.1, K 6": broad | {"coupling": 6.0, "bandwidth": 0.1},
        "broad, alpha 0.1, K 12": broad | {"coupling": 12.0, "bandwidth": 0.1},
        "broad, alpha 0.1, K 18": broad | {"coupling": 18.0, "bandwidth": 0.1},
        "broad, alpha 0.5": broad | {"coupling": 5.0, "bandwidth": 0.5, "shown": True},
        "broad, alpha 1": broad | {"coupling": 6.0, "bandwidth": 1.0},
        "separated": {
            "centres": 3,
            "gap": 8.0,
            "spread": 0.2,
            "coupling": 6.0,
            "bandwidth": 0.5,
            "shown": True,
        },
        "separated, wide": {
            "centres": 2,
            "gap": 8.0,
            "spread": 0.5,
            "coupling": 2.4,
            "bandwidth": 0.05,
            "shown": False,
        },
    }
    if extent.quick:
        few = ("mean field", "mean field, K 6", "broad, alpha 0.1, K 18", "broad, alpha 0.5", "separated")
        cases = {name: cases[name] for name in few}
    size, settle, duration = extent.size(120, 60), extent.size(200.0, 100.0), extent.size(800.0, 300.0)
    frequency = torch.stack([_frequencies(draw, size, **case) for case in cases.values()])  # (C, 2, N)
    coupling, bandwidth = (
        torch.tensor([case[key] for case in cases.values()], dtype=torch.float64)
        for key in ("coupling", "bandwidth")
    )
    kernel = kuramoto.network_kernel(frequency, bandwidth[:, None, None, None])
    phase = TURN * torch.rand(frequency.shape, generator=draw, dtype=torch.float64)
    run = kuramoto.simulate(
        phase,
        frequency,
        coupling[:, None],
        kernel,
        settle=settle,
        duration=duration,
        step=0.1,
        every=4,
        pairs=True,
    )
    assert run.mean_cosine is not None
    locked = kuramoto.locked_pairs(run.mean_frequency, math.pi / duration)
    return {
        name: _judge(case, frequency[n], kernel[n], run.order_parameter[n], run.mean_cosine[n], locked[n])
        for n, (name, case) in enumerate(cases.items())
    }


def _frequencies(draw: Generator, size: int, centres: int, gap: float, spread: float, **_: Any) -> Tensor:
    """Gaussian clusters of equal size, (2, N): once of even quantiles, once drawn."""
    members = size // centres
    even = kuramoto.midpoint_quantiles(kuramoto.gaussian(), members).expand(centres, -1)
    drawn = torch.randn(centres, members, generator=draw, dtype=torch.float64).sort(-1).values
    middle = gap * (torch.arange(centres, dtype=torch.float64) - 0.5 * (centres - 1))[:, None]
    return (middle + spread * torch.stack((even, drawn))).flatten(-2)


def _judge(
    case: dict[str, Any], frequency: Tensor, kernel: Tensor, r: Tensor, mean_cosine: Tensor, locked: Tensor
) -> Numbers:
    """The pair formula and the local field against the ODE of two networks of a kind.

    frequency (2, N), r (2,); kernel, mean_cosine and locked (2, N, N).
    """
    centres, gap, spread = case["centres"], case["gap"], case["spread"]
    size, members = frequency.shape[-1], frequency.shape[-1] // centres
    kappa, alpha = case["coupling"] * r, case["bandwidth"]
    formula = kuramoto.pair_formula(frequency, kappa[:, None, None], alpha)
    rule = formula > 0
    others = ~torch.eye(size, dtype=torch.bool).expand_as(rule)
    group = torch.arange(size) // members
    within = others & (group[:, None] == group)
    error = (formula - mean_cosine).abs()
    scales = torch.logspace(-1, 1, 41, base=4.0).tolist()  # kappa times 1/4 to 4
    rescaled = (kuramoto.pair_formula(frequency, scale * kappa[:, None, None], alpha) for scale in scales)
    local = torch.zeros_like(mean_cosine)
    for b in range(2):
        for c in range(centres):
            own = slice(c * members, (c + 1) * members)
            z, _ = kuramoto.local_field(frequency[b, own], case["coupling"] / centres, kernel[b, own, own])
            local[b, own, own] = (z[:, None] * z.conj()).real
    radius = float(locking_radius(kappa, alpha).mean())
    local_error = (local - mean_cosine).abs()
    shown = {"formula": formula, "local_field": local, "mean_cosine": mean_cosine} if case["shown"] else {}
    return {
        "size": size,
        "coupling": case["coupling"],
        "bandwidth": alpha,
        "r": r.tolist(),
        "radius": radius,
        "gap_over_radius": (gap - 2.0 * spread) / radius if centres > 1 else 0.0,
        "spread_over_radius": spread / radius,
        "locked_density": share(locked[others]),
        "rule_density": share(rule[others]),
        "agreement": share((locked == rule)[others]),
        "agreement_within": share((locked == rule)[within]),
        "error": float(error[others].mean()),
        "error_within": float(error[within].mean()),
        "error_best_kappa": min(float((one - mean_cosine).abs()[others].mean()) for one in rescaled),
        "error_local_field": float(local_error[0][others[0]].mean()),
        "error_local_field_drawn": float(local_error[1][others[1]].mean()),
        "transitivity": float(kuramoto.transitivity(locked).min()),
        "transitivity_rule": float(kuramoto.transitivity(rule).min()),
    } | {f"shown_{name}": rounded(one[0, ::2, ::2]) for name, one in shown.items()}  # half are enough to see

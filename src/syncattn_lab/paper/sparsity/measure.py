"""Theorem 2, natural sparsity: the zeros are exact, and their share follows from the frequencies' law."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from scipy.stats import chi2, ncx2
from torch import Tensor

from syncattn import locking, selective_synchronization_attention
from syncattn.backends.select import availability
from syncattn_lab.paper.matrices import measure as matrices
from syncattn_lab.paper.section import Extent, Numbers

DIMENSIONS = (1, 2, 4, 8, 16, 32, 64)
DENSITIES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
VARIANCE = 1 / 3  # s^2 of the frequencies at nn.Linear's default initialisation, on x ~ N(0, 1)
SHARPNESS = 10.0  # c = 2 alpha kappa^2: the density does not depend on it
CHUNK = 10_000  # pairs drawn at once
# shares pi_u, per-coordinate variance tau^2 of the centres mu_u, s^2 = 1; m from the key
MIXTURES = {2: ((0.4, 0.3, 0.2, 0.1), 9.0), 8: ((0.5, 0.3, 0.2), 4.0), 64: ((0.5, 0.5), 1.0)}
LAYERS = 3  # whose densities are averaged: tokens in common make heads' densities vary together
OFF_BY = 1.25  # the factor by which a radius is set wrong
SURELY = 1e-3  # pairs whose sqrt(D) is this close to kappa J, relatively, are left to rounding


def measure(extent: Extent, tell: Callable[[str], None]) -> Numbers:
    """Zeros of every backend, densities of drawn pairs beside the law and of the published settings."""
    generator = torch.Generator().manual_seed(extent.seed)
    pairs = extent.size(200_000, 20_000)
    numbers: Numbers = {
        "pairs": pairs,
        "variance": VARIANCE,
        "surely": SURELY,
        "off_by": OFF_BY,
        "zeros": _zeros(extent.size(128, 64), generator),
    }
    tell("sparsity: zeros counted")
    numbers["law"] = [_law(m, pairs, generator) for m in DIMENSIONS]
    tell("sparsity: density law measured")
    numbers["mixtures"] = [_mixture(m, *mixture, pairs, generator) for m, mixture in MIXTURES.items()]
    tell("sparsity: mixtures measured")
    numbers["layer"] = _layer(512, generator)
    numbers["published"] = _published(extent.size(512, 256), generator)
    return numbers


def _zeros(tokens: int, generator: torch.Generator) -> Numbers:
    """What the weights of pairs are that surely do not lock, in every backend and dtype that it takes.

    Backends that never hold P show it all the same: with the identity for values the output is P.
    """
    found: Numbers = {}
    heads, m = 4, 8
    w = torch.randn(1, heads, tokens, m, generator=generator)
    coupling, bandwidth = locking.calibrate(locking.density_ladder(0.05, 0.5, heads), m, SHARPNESS)
    for backend, missing in availability().items():
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            if missing is not None or (backend == "cpu" and dtype == torch.float64):
                continue  # the native kernel computes in float32
            frequency = w.to(dtype)
            locks = _surely(frequency.double(), coupling.double(), bandwidth.double())
            value = torch.eye(tokens, dtype=dtype).expand(1, heads, -1, -1)
            locking_of_heads = (coupling.to(frequency.dtype), bandwidth.to(frequency.dtype))
            if dtype in (torch.bfloat16, torch.float16):
                locking_of_heads = (coupling, bandwidth)
            weight = _attend(frequency, value, locking_of_heads, backend)
            name = f"{backend}, {str(dtype).removeprefix('torch.')}"
            found[name] = {
                "unlocked": int((locks < 0).sum()),
                "locked": int((locks > 0).sum()),
                "unlocked_not_zero": int((weight[locks < 0] != 0).sum()),
                "locked_zero": int((weight[locks > 0] == 0).sum()),
                "negative": int((weight < 0).sum()),
                **_changed(frequency, value, locking_of_heads, backend, locks),
            }
    return found


def _surely(frequency: Tensor, coupling: Tensor, bandwidth: Tensor) -> Tensor:
    """1 where a pair surely locks, -1 where it surely does not, 0 at the edge: (1, H, N, N).

    By the definition, sqrt(D) <= kappa J, in float64.
    """
    distance = torch.cdist(frequency, frequency, compute_mode="donot_use_mm_for_euclid_dist")
    reach = coupling[:, None, None] * torch.exp(-bandwidth[:, None, None] * distance.square())
    ratio = distance / reach
    return (ratio < 1 - SURELY).int() - (ratio > 1 + SURELY).int()


def _changed(
    frequency: Tensor,
    value: Tensor,
    locking_of_heads: tuple[Tensor, Tensor],
    backend: str,
    locks: Tensor,
) -> dict[str, int]:
    """Rows whose output changes in any bit when the first token's value becomes 30,000."""
    other = value.clone()
    other[:, :, 0] = 3e4  # float16 ends at 65,504
    before = _attend(frequency, value, locking_of_heads, backend)
    after = _attend(frequency, other, locking_of_heads, backend)
    changed = (before != after).any(-1)  # (1, H, N)
    return {
        "rows_without_it_changed": int((changed & (locks[..., 0] < 0)).sum()),
        "rows_with_it_unchanged": int((~changed & (locks[..., 0] > 0)).sum()),
    }


def _attend(
    frequency: Tensor, value: Tensor, locking_of_heads: tuple[Tensor, Tensor], backend: str
) -> Tensor:
    out = selective_synchronization_attention(frequency, frequency, value, *locking_of_heads, backend=backend)
    assert isinstance(out, Tensor)
    return out


def _law(m: int, pairs: int, generator: torch.Generator) -> Numbers:
    """Independent pairs of w ~ N(0, s^2 I_m) against density = CDF of chi2_m at rho^2 / (2 s^2)."""
    scale = math.sqrt(2 * m * VARIANCE)  # the typical sqrt(D)
    detuning = _drawn_detuning(torch.zeros(1, m), torch.ones(1), VARIANCE, pairs, generator)
    points = []
    for density in DENSITIES:
        coupling, bandwidth = locking.calibrate(density, m, SHARPNESS, torch.tensor([VARIANCE]).double())
        radius = float(locking.locking_radius(coupling, bandwidth))
        share = _locked_share(detuning, coupling, bandwidth)
        points.append(
            {"radius": radius / scale, "law": density, "measured": share} | _off(share, density, pairs)
        )
    curve = [0.02 * i for i in range(1, 141)]
    law = locking.gaussian_density(torch.tensor(curve).double() * scale, m, VARIANCE)
    low, middle, high = (float(r) for r in detuning.sqrt().quantile(torch.tensor([0.1, 0.5, 0.9]).double()))
    exact = [float(locking.gaussian_radius(d, m, VARIANCE)) for d in (0.1, 0.9)]
    return {
        "m": m,
        "points": points,
        "curve": {"radius": curve, "density": law.tolist()},
        "width": {"law": exact[1] / exact[0], "measured": high / low},
        "off_by": {
            "below": float((detuning.sqrt() < middle / OFF_BY).double().mean()),
            "above": float((detuning.sqrt() < middle * OFF_BY).double().mean()),
        },
    }


def _mixture(
    m: int, shares: tuple[float, ...], spread: float, pairs: int, generator: torch.Generator
) -> Numbers:
    """Frequencies around centres mu_u with shares pi_u, within-cluster variance 1, against the mixture's law.

    density = sum_uv pi_u pi_v CDF of the noncentral chi2_m, noncentrality |mu_u - mu_v|^2 / 2, at rho^2 / 2.
    """
    weights = torch.tensor(shares, dtype=torch.float64)
    centres = torch.randn(len(shares), m, generator=generator, dtype=torch.float64) * math.sqrt(spread)
    detuning = _drawn_detuning(centres, weights, 1.0, pairs, generator)
    between_centres = torch.cdist(centres, centres).square() / 2
    together = weights[:, None] * weights

    def law(radius: float) -> float:
        # a tiny noncentrality stands for 0, where scipy's noncentral law has no value in old versions
        each = ncx2.cdf(radius**2 / 2, m, between_centres.clamp(min=1e-12).numpy())
        return float((together * torch.as_tensor(each)).sum())

    scale = math.sqrt(2 * m)
    curve = [0.02 * i for i in range(1, 141)]
    points = []
    for radius in (0.5, 0.75, 1.0, 1.25, 1.5, 2.0):
        coupling, bandwidth = locking.coupling_from_radius(torch.tensor([radius * scale]).double(), SHARPNESS)
        share, expected = _locked_share(detuning, coupling, bandwidth), law(radius * scale)
        points.append({"radius": radius, "law": expected, "measured": share} | _off(share, expected, pairs))
    return {
        "m": m,
        "clusters": len(shares),
        "points": points,
        "curve": {"radius": curve, "density": [law(radius * scale) for radius in curve]},
    }


def _drawn_detuning(
    centres: Tensor, shares: Tensor, variance: float, pairs: int, generator: torch.Generator
) -> Tensor:
    """D (pairs,) in float64 of independent pairs of frequencies from clusters of this variance."""
    found = []
    for start in range(0, pairs, CHUNK):
        size = 2 * min(CHUNK, pairs - start)
        cluster = torch.multinomial(shares.double(), size, replacement=True, generator=generator)
        w = torch.randn(size, centres.shape[1], generator=generator, dtype=torch.float64)
        w = w * math.sqrt(variance) + centres[cluster]
        found.append((w[::2] - w[1::2]).square().sum(-1))
    return torch.cat(found)


def _locked_share(detuning: Tensor, coupling: Tensor, bandwidth: Tensor) -> float:
    return float((locking.synchronization(detuning, coupling, bandwidth) > 0).double().mean())


def _off(share: float, law: float, pairs: int) -> dict[str, float]:
    """How far a counted share is from the law, in standard errors of a binomial count."""
    return {"standard_errors": (share - law) / max(math.sqrt(law * (1 - law) / pairs), 1 / pairs)}


@torch.no_grad()
def _layer(tokens: int, generator: torch.Generator) -> list[Numbers]:
    """Density of a head's whole matrix with the radius that the law gives, averaged over several.

    A random projection W of E coordinates to m is not quite isotropic: tr((W W^T)^2) is 1 + m / E times that
    of the identity, so that D spreads as with m / (1 + m / E) coordinates (Satterthwaite's approximation).
    """
    m, embed_dim = matrices.HEAD_DIM, matrices.EMBED_DIM
    bound = embed_dim**-0.5  # nn.Linear's default: uniform, of variance 1 / (3 E)
    heads: list[Tensor] = []
    for _ in range(LAYERS * matrices.HEADS):
        if len(heads) % matrices.HEADS == 0:  # heads of one layer see the same tokens
            x = torch.randn(tokens, embed_dim, generator=generator, dtype=torch.float64)
        w = (2 * torch.rand(embed_dim, m, generator=generator, dtype=torch.float64) - 1) * bound
        heads.append(torch.nn.functional.pdist(x @ w).square())
    detuning = torch.stack(heads)
    found = []
    for density in (0.05, 0.5):
        locking_of_heads = locking.calibrate(density, m, SHARPNESS, torch.tensor([VARIANCE]).double())
        quantile, effective = chi2.ppf(density, m), m / (1 + m / embed_dim)
        found.append(
            {
                "law": density,
                "corrected": float(chi2.cdf(quantile * effective / m, effective)),
                "measured": _locked_share(detuning, *locking_of_heads),
            }
        )
    return found


@torch.no_grad()
def _published(tokens: int, generator: torch.Generator) -> Numbers:
    """The published settings: the law's density, and the pairs of different tokens that lock, all heads."""
    drawn = matrices.draw_settings(tokens, generator)
    total = matrices.HEADS * tokens * (tokens - 1)
    found: Numbers = {"tokens": tokens, "pairs": total}
    typical = math.sqrt(2 * matrices.HEAD_DIM * VARIANCE)
    for name, (raw_coupling, raw_bandwidth) in matrices.RAW.items():
        # kappa = softplus(raw K) r, with the order parameter of phases of variance 1/3
        kappa = math.log1p(math.exp(raw_coupling)) * math.exp(-1 / 6)
        radius = locking.locking_radius(
            torch.tensor(kappa).double(), torch.tensor(math.log1p(math.exp(raw_bandwidth))).double()
        )
        law = locking.gaussian_density(radius, matrices.HEAD_DIM, VARIANCE)
        weight = drawn[name].weight
        locked = int((weight > 0).sum()) - matrices.HEADS * tokens  # the diagonal always locks
        found[name] = {"radius": float(radius) / typical, "law": float(law), "locked": locked}
    return found

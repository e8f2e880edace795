"""Closed forms of phase locking: coupling, locking radius, density law of Gaussian frequencies, calibration.

With D the squared detuning of a pair of oscillators, kappa their effective coupling and alpha the bandwidth,

    J = exp(-alpha D)     F = J^2 - D / kappa^2     S = sqrt(max(F, 0))     locked iff F >= 0 iff D <= rho^2
    rho = kappa exp(-W0(c) / 2)   c = 2 alpha kappa^2   alpha = W0(c) / (2 rho^2)   kappa = rho exp(W0(c) / 2)

so that a head has one scale (the locking radius rho) and one shape (the sharpness c). Source: "Selective
Synchronization Attention" (Hays, arXiv 2602.14445) for J and S; the rest follows from F, which is strictly
decreasing in D.

Every function broadcasts its tensor arguments and takes Python numbers in their place. The result has the
arguments' dtype (the default dtype when none is a tensor); half precision is computed in float32 and rounded
back, because F cancels near the locking edge. Where no argument is a tensor, the result is on the default
device. Values are checked on the CPU only, and not while compiling: elsewhere a check would cost a
synchronization with the device. All can be mapped by torch.vmap, and differentiated under it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from syncattn.margin import margin_of, synchronization_of
from syncattn.special_functions import LambertW0, RadialDistribution, RadialQuantile
from syncattn.values import readable

__all__ = [
    "calibrate",
    "calibrate_from_detuning",
    "coupling_from_radius",
    "coupling_kernel",
    "density_ladder",
    "gaussian_density",
    "gaussian_radius",
    "lambert_w0",
    "locking_margin",
    "locking_radius",
    "synchronization",
]


def coupling_kernel(squared_detuning: Tensor | float, bandwidth: Tensor | float) -> Tensor:
    """J = exp(-alpha D): how strongly two oscillators couple at squared detuning D.

    Both arguments broadcast. Raises ValueError for a non-positive bandwidth.

    >>> coupling_kernel(torch.tensor([0.0, 1.0]), 0.5)
    tensor([1.0000, 0.6065])
    """
    _require("bandwidth", bandwidth, "positive", _positive_or_nan)
    (detuning, alpha), dtype = _prepare(squared_detuning, bandwidth)
    return torch.exp(-alpha * detuning).to(dtype)


def locking_margin(
    squared_detuning: Tensor | float, coupling: Tensor | float, bandwidth: Tensor | float
) -> Tensor:
    """F = exp(-2 alpha D) - D / kappa^2: a pair is locked iff F >= 0, and F is then the square of S.

    All arguments broadcast; D >= 0. Raises ValueError for a non-positive coupling or bandwidth.

    >>> locking_margin(torch.tensor([0.0, 1.0, 4.0]), 2.0, 0.25)
    tensor([ 1.0000,  0.3565, -0.8647])
    """
    _require("coupling", coupling, "positive", _positive_or_nan)
    _require("bandwidth", bandwidth, "positive", _positive_or_nan)
    (detuning, kappa, alpha), dtype = _prepare(squared_detuning, coupling, bandwidth)
    return margin_of(detuning, kappa, alpha).to(dtype)


def synchronization(
    squared_detuning: Tensor | float,
    coupling: Tensor | float,
    bandwidth: Tensor | float,
    edge: float = 0.0,
) -> Tensor:
    """S_e = sqrt(max(F, 0) + e^2) - e, exactly 0 where F <= 0.

    The paper's J cos(arcsin(sqrt(D) / (kappa J))) for e = 0. The tensor arguments broadcast; D >= 0. The
    gradient is 0 where a pair is not locked, whatever the magnitudes, and grows like 1/S towards the locking
    edge; ``edge`` e > 0 bounds it by |dF/dD| / (2 e) and lowers S by at most e. NaN gives NaN. Raises
    ValueError for a non-positive coupling or bandwidth and for a negative or non-finite edge.

    >>> synchronization(torch.tensor([0.0, 1.0, 4.0]), 2.0, 0.25)
    tensor([1.0000, 0.5971, 0.0000])
    """
    _require("coupling", coupling, "positive", _positive_or_nan)
    _require("bandwidth", bandwidth, "positive", _positive_or_nan)
    if not 0.0 <= edge < math.inf:
        raise ValueError(f"edge must be a finite number >= 0, got {edge!r}")
    (detuning, kappa, alpha), dtype = _prepare(squared_detuning, coupling, bandwidth)
    # Beyond 2 kappa^2 no pair locks. Holding D there, and kappa where its square is a normal number, keeps
    # every term of F finite, so that an unlocked pair's zero gradient is never multiplied by an infinity.
    kappa = kappa.clamp_min(2.0 * math.sqrt(torch.finfo(kappa.dtype).tiny))
    margin = margin_of(torch.minimum(detuning, 2.0 * kappa * kappa), kappa, alpha)
    unlocked = margin <= 0.0  # not `~(margin > 0)`: a NaN must pass on
    margin = torch.where(unlocked, torch.ones_like(margin), margin)
    sync = synchronization_of(margin, edge)
    return torch.where(unlocked, torch.zeros_like(sync), sync).to(dtype)


def lambert_w0(z: Tensor | float) -> Tensor:
    """Principal branch of the Lambert W function, w exp(w) = z, for z >= 0; relative error of a few ulp.

    Any shape; differentiable to any order, dW/dz = exp(-w) / (1 + w), which is 1 at z = 0. Raises ValueError
    for a negative or non-finite z. Source: start by Winitzki (2003), iteration by Iacono and Boyd (2017).

    >>> lambert_w0(torch.tensor([0.0, 1.0, 100.0]))
    tensor([0.0000, 0.5671, 3.3856])
    """
    _require("z", z, "finite and >= 0", lambda x: (x >= 0) & torch.isfinite(x))
    (argument,), dtype = _prepare(z)
    return LambertW0.apply(argument).to(dtype)


def locking_radius(coupling: Tensor | float, bandwidth: Tensor | float) -> Tensor:
    """rho = kappa exp(-W0(2 alpha kappa^2) / 2): the largest sqrt(D) that still locks.

    It tends to kappa as alpha -> 0. Both arguments broadcast. Raises ValueError for a coupling or bandwidth
    that is not positive and finite, or when 2 alpha kappa^2 overflows.

    >>> locking_radius(torch.tensor([0.1, 1.0, 10.0]), 0.5)
    tensor([0.0995, 0.7531, 1.8400])
    """
    _require("coupling", coupling, "positive and finite", _positive_finite)
    _require("bandwidth", bandwidth, "positive and finite", _positive_finite)
    (kappa, alpha), dtype = _prepare(coupling, bandwidth)
    sharpness = 2.0 * alpha * kappa * kappa
    _require("2 * bandwidth * coupling ** 2", sharpness, "finite", torch.isfinite)
    return (kappa * torch.exp(-0.5 * LambertW0.apply(sharpness))).to(dtype)


def coupling_from_radius(radius: Tensor | float, sharpness: Tensor | float) -> tuple[Tensor, Tensor]:
    """(coupling, bandwidth) of the head with this locking radius rho and sharpness c = 2 alpha kappa^2.

    alpha = W0(c) / (2 rho^2), kappa = rho exp(W0(c) / 2): the inverse of `locking_radius`. Both arguments
    broadcast. A small c gives a wide kernel with a sudden edge, a large c a kernel that has decayed when the
    edge comes. Raises ValueError for a radius or sharpness that is not positive and finite.

    >>> coupling_from_radius(2.0, 100.0)
    (tensor(10.8695), tensor(0.4232))
    """
    _require("radius", radius, "positive and finite", _positive_finite)
    _require("sharpness", sharpness, "positive and finite", _positive_finite)
    (rho, shape), dtype = _prepare(radius, sharpness)
    w = LambertW0.apply(shape)
    coupling, bandwidth = torch.broadcast_tensors(rho * torch.exp(0.5 * w), 0.5 * w / rho / rho)
    return coupling.to(dtype), bandwidth.to(dtype)


def gaussian_density(radius: Tensor | float, freq_dim: int, variance: Tensor | float = 1.0) -> Tensor:
    """Density of locked pairs for frequencies w ~ N(0, s^2 I_m): CDF_chi2_m(rho^2 / (2 s^2)).

    The law of D is 2 s^2 chi2_m. ``radius`` and ``variance`` (s^2) broadcast and are differentiable; computed
    in float64. Raises ValueError for a radius that is negative or not finite, a freq_dim that is not an
    integer >= 1, or a variance that is not positive and finite.

    >>> gaussian_density(torch.tensor([1.0, 2.0, 4.0]), freq_dim=4)
    tensor([0.0265, 0.2642, 0.9084])
    """
    _require_freq_dim(freq_dim)
    _require("radius", radius, "finite and >= 0", lambda x: (x >= 0) & torch.isfinite(x))
    _require("variance", variance, "positive and finite", _positive_finite)
    (rho, spread), dtype = _prepare(radius, variance, compute=torch.float64)
    return RadialDistribution.apply(0.5 * rho / torch.sqrt(spread), freq_dim).to(dtype)


def gaussian_radius(density: Tensor | float, freq_dim: int, variance: Tensor | float = 1.0) -> Tensor:
    """Locking radius at which frequencies w ~ N(0, s^2 I_m) lock with this density.

    The inverse of `gaussian_density`. ``density`` and ``variance`` (s^2) broadcast and are differentiable;
    computed in float64, relative error below 1e-12 for densities from 1e-12 to 1 - 1e-9 and freq_dim up to
    256. Raises ValueError for a density outside (0, 1), a freq_dim that is not an integer >= 1, or a variance
    that is not positive and finite.

    >>> gaussian_radius(torch.tensor([0.05, 0.5]), freq_dim=16)
    tensor([3.9904, 5.5387])
    """
    _require_freq_dim(freq_dim)
    _require("density", density, "between 0 and 1, both excluded", lambda x: (x > 0) & (x < 1))
    _require("variance", variance, "positive and finite", _positive_finite)
    (probability, spread), dtype = _prepare(density, variance, compute=torch.float64)
    return (2.0 * torch.sqrt(spread) * RadialQuantile.apply(probability, freq_dim)).to(dtype)


def calibrate(
    density: Tensor | float,
    freq_dim: int,
    sharpness: Tensor | float,
    variance: Tensor | float = 1.0,
) -> tuple[Tensor, Tensor]:
    """(coupling, bandwidth) with which frequencies w ~ N(0, s^2 I_m) lock with this density.

    ``density``, ``sharpness`` (c = 2 alpha kappa^2) and ``variance`` (s^2) broadcast. Raises ValueError as
    `gaussian_radius` and `coupling_from_radius` do.

    >>> coupling, bandwidth = calibrate(density_ladder(0.05, 0.5, 8), freq_dim=16, sharpness=100.0)
    >>> gaussian_density(locking_radius(coupling, bandwidth), freq_dim=16)[[0, -1]]
    tensor([0.0500, 0.5000])
    """
    return coupling_from_radius(gaussian_radius(density, freq_dim, variance), sharpness)


def calibrate_from_detuning(
    squared_detuning: Tensor, density: Tensor | float, sharpness: Tensor | float
) -> tuple[Tensor, Tensor]:
    """(coupling, bandwidth), each (H,), with which the wanted share of the observed pairs locks.

    ``squared_detuning`` (H, n): D of each head's n allowed pairs. ``density`` in (0, 1] and ``sharpness``: a
    number or (H,). The nearest whole number of pairs locks, at least one. rho^2 lies midway between the last
    D that locks and the next larger one, so that rounding does not change the count; of pairs with equal D
    all lock. At density 1 it lies 1/1000 above the largest D. No gradient.

    Raises ValueError for a squared_detuning that is not (H, n) with n >= 1, is negative or not finite, or is
    0 throughout a head (every radius would lock all of it); for a density outside (0, 1]; for a sharpness
    that is not positive and finite. Unlike the rest of this module it checks squared_detuning on every
    device: it is a single step before training.

    >>> calibrate_from_detuning(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), density=0.5, sharpness=100.0)
    (tensor([6.6562]), tensor([1.1285]))
    """
    if squared_detuning.ndim != 2 or squared_detuning.shape[-1] == 0:
        shape = tuple(squared_detuning.shape)
        raise ValueError(f"squared_detuning must have shape (heads, pairs), pairs >= 1, got {shape}")
    heads, pairs = squared_detuning.shape
    for name, value in (("density", density), ("sharpness", sharpness)):
        if isinstance(value, Tensor) and value.shape not in ((), (1,), (heads,)):
            raise ValueError(
                f"{name} must be a number or have shape ({heads},), one per head, got {tuple(value.shape)}"
            )
    _require("density", density, "above 0 and at most 1", lambda x: (x > 0) & (x <= 1))
    _require("sharpness", sharpness, "positive and finite", _positive_finite)
    _require(
        "squared_detuning",
        squared_detuning,
        "finite and >= 0",
        lambda x: (x >= 0) & torch.isfinite(x),
        any_device=True,
    )
    (found,), dtype = _prepare(squared_detuning.detach())
    share = torch.as_tensor(density, dtype=torch.float64, device=found.device).detach().expand(heads)
    counts = (share * pairs).round().long().clamp(1, pairs).tolist()
    last = found.new_empty(heads, 1)
    for head, count in enumerate(counts):  # quicker than sorting, and the same
        last[head] = found[head].kthvalue(count).values
    beyond = torch.where(found > last, found, math.inf).amin(dim=-1, keepdim=True).double()
    last = last.double()
    squared_radius = torch.where(beyond.isinf(), 1.001 * last, 0.5 * (last + beyond)).squeeze(-1)
    radii = readable(squared_radius, any_device=True)
    if radii is not None and bool((radii == 0).any()):
        head = int((radii == 0).nonzero()[0, -1])
        raise ValueError(
            f"squared_detuning must have a positive entry in every head, got only zeros in head {head}: "
            "its frequencies are all equal and no radius can tell its pairs apart"
        )
    if isinstance(sharpness, Tensor):
        sharpness = sharpness.detach()
    coupling, bandwidth = coupling_from_radius(squared_radius.sqrt(), sharpness)
    return coupling.to(dtype), bandwidth.to(dtype)


def density_ladder(
    low: float,
    high: float,
    num_heads: int,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Densities (num_heads,) in geometric progression from ``low`` to ``high``.

    One head gets their geometric mean. ``dtype`` and ``device`` are the default ones where None. Raises
    ValueError unless 0 < low <= high <= 1 and num_heads is an integer >= 1.

    >>> density_ladder(0.05, 0.4, 4)
    tensor([0.0500, 0.1000, 0.2000, 0.4000])
    """
    for name, value in (("low", low), ("high", high)):
        if not 0.0 < value <= 1.0:
            raise ValueError(f"{name} must be above 0 and at most 1, got {value!r}")
    if low > high:
        raise ValueError(f"low must be at most high, got low={low!r} and high={high!r}")
    if not isinstance(num_heads, int) or isinstance(num_heads, bool) or num_heads < 1:
        raise ValueError(f"num_heads must be an integer >= 1, got {num_heads!r}")
    if num_heads == 1:
        return torch.tensor([math.sqrt(low * high)], dtype=dtype, device=device)
    ends = math.log(low), math.log(high)
    ladder = torch.linspace(*ends, num_heads, dtype=torch.float64, device=device).exp()
    return ladder.clamp(low, high).to(dtype or torch.get_default_dtype())


def _prepare(
    *values: Tensor | float, compute: torch.dtype | None = None
) -> tuple[tuple[Tensor, ...], torch.dtype]:
    """The values as tensors of the dtype to compute in, and the dtype of the result."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    # As in PyTorch's own arithmetic, a tensor without dimensions does not widen one that has some.
    leading = [tensor for tensor in tensors if tensor.ndim] or tensors
    dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in leading), torch.bool)
    if dtype.is_complex:
        raise TypeError(f"arguments must be real, got a tensor of dtype {dtype}")
    if not dtype.is_floating_point:
        dtype = torch.get_default_dtype()
    compute = compute or torch.promote_types(dtype, torch.float32)
    device = leading[0].device if leading else None
    prepared = tuple(
        value.to(compute) if isinstance(value, Tensor) else torch.tensor(value, dtype=compute, device=device)
        for value in values
    )
    return prepared, dtype


def _require(
    name: str,
    value: Tensor | float,
    expected: str,
    accept: Callable[[Tensor], Tensor],
    any_device: bool = False,
) -> None:
    """Raise ValueError when an element is not accepted (where values are checked: the module's docstring)."""
    if torch.compiler.is_compiling():
        return
    if isinstance(value, Tensor):
        if value.is_complex():
            raise TypeError(f"{name} must be real, got a tensor of dtype {value.dtype}")
        values = readable(value, any_device)
        if values is None:
            return
    else:
        values = torch.tensor(value, dtype=torch.float64, device="cpu")
    accepted = accept(values)
    if not bool(accepted.all()):
        refused = values[~accepted]
        others = f" (the first of {refused.numel()} of {values.numel()} values)" if values.numel() > 1 else ""
        raise ValueError(f"{name} must be {expected}, got {refused[0].item()!r}{others}")


def _positive_or_nan(value: Tensor) -> Tensor:
    return ~(value <= 0)  # lets NaN through, so that it shows in the result


def _positive_finite(value: Tensor) -> Tensor:
    return (value > 0) & torch.isfinite(value)


def _require_freq_dim(freq_dim: int) -> None:
    if not isinstance(freq_dim, int) or isinstance(freq_dim, bool) or freq_dim < 1:
        raise ValueError(f"freq_dim must be an integer >= 1, got {freq_dim!r}")

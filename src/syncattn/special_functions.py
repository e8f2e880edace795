"""The special functions of the closed forms: Lambert W, the radial law of Gaussian vectors, and its quantile.

The radial law is that of u = rho / (2 s): the density of locked pairs of frequencies w ~ N(0, s^2 I_m) is
P(m/2, u^2) with P the regularised lower incomplete gamma function. In u the derivative is finite everywhere,
u = 0 and m = 1 included, where in rho^2 it would diverge. m is an integer, so both tails are a factor
exp(-u^2) u^m / Gamma(m/2 + 1) times a sum of positive terms; torch.special.gammainc is right to 2e-9 only
for m > 40.

`syncattn.locking` calls these with checked arguments: float32 or float64 tensors, for the radial law float64.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


class LambertW0(torch.autograd.Function):
    """The w >= 0 with w exp(w) = z, for z >= 0; the backward is differentiable."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        tiny = z < torch.finfo(z.dtype).tiny  # W0(z) = z to the last bit, and log1p may flush such a z to 0
        argument, z = z, torch.where(tiny, torch.ones_like(z), z)
        log = torch.log1p(z)
        w = log * (1.0 - torch.log1p(log) / (2.0 + log))
        # Newton's step on w + log w = log z: it never overflows, and keeps the relative accuracy of a tiny z.
        # The start is within 2 % and the order is 2: three steps reach the last bits of float64.
        for _ in range(3):
            w = w / (1.0 + w) * (1.0 + torch.log(z / w))
        return torch.where(tiny, argument, w)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (w,) = ctx.saved_tensors
        return grad * torch.exp(-w) / (1.0 + w)


def _log_factor(u: Tensor, freq_dim: int) -> Tensor:
    return torch.xlogy(freq_dim, u) - u * u - math.lgamma(0.5 * freq_dim + 1.0)


def _lower_sum(u: Tensor, freq_dim: int) -> Tensor:
    """P(m/2, u^2) over the factor: a series; the terms taken are enough for u^2 <= m/2 + 1."""
    terms = 30 + math.ceil(8.0 * math.sqrt(freq_dim))
    order = 0.5 * freq_dim + torch.arange(1, terms, dtype=u.dtype, device=u.device)
    return 1.0 + torch.cumprod((u * u).unsqueeze(-1) / order, dim=-1).sum(-1)


def _upper_sum(u: Tensor, freq_dim: int) -> Tensor:
    """(1 - P(m/2, u^2)) over the factor: a finite sum; meant for u^2 of about m/2 and above."""
    order = 0.5 * freq_dim - torch.arange(freq_dim // 2, dtype=u.dtype, device=u.device)
    total = torch.cumprod(order / (u * u).unsqueeze(-1), dim=-1).sum(-1)
    if freq_dim % 2:
        log_power = math.lgamma(0.5 * freq_dim + 1.0) - freq_dim * torch.log(u)
        total = total + torch.special.erfcx(u) * torch.exp(log_power)
    return total


def _radial_pdf(u: Tensor, freq_dim: int) -> Tensor:
    return 2.0 * torch.exp(torch.xlogy(freq_dim - 1, u) - u * u - math.lgamma(0.5 * freq_dim))


class RadialDistribution(torch.autograd.Function):
    """P(m/2, u^2), from the tail that is not close to 1."""

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, freq_dim: int) -> Tensor:
        factor = torch.exp(_log_factor(u, freq_dim))
        lower, upper = factor * _lower_sum(u, freq_dim), factor * _upper_sum(u, freq_dim)
        return torch.where(u * u < 0.5 * freq_dim + 1.0, lower, 1.0 - upper)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        u, ctx.freq_dim = inputs
        ctx.save_for_backward(u)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (u,) = ctx.saved_tensors
        return grad * _radial_pdf(u, ctx.freq_dim), None


class RadialQuantile(torch.autograd.Function):
    """Solve P(m/2, u^2) = density by Newton's method on t = log u.

    t has a log-concave density, hence log P and log(1 - P) are concave in t: Newton's method converges from
    any start for the former, and from about the root or above for the latter, without a bracket. The smaller
    tail is the one solved for, which keeps the relative accuracy of densities near 1 as well.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(density: Tensor, freq_dim: int) -> Tensor:
        lower = density < 0.5
        log_tail = torch.log(torch.where(lower, density, 1.0 - density))
        # Start: P <= u^m / Gamma(m/2 + 1) in the far left tail, elsewhere Wilson and Hilferty (1931).
        bound = (torch.log(density) + math.lgamma(0.5 * freq_dim + 1.0)) / freq_dim
        variance = 2.0 / (9.0 * freq_dim)
        cube_root = 1.0 - variance + math.sqrt(variance) * torch.special.ndtri(density)
        hilferty = 0.5 * math.log(0.5 * freq_dim) + 1.5 * torch.log(cube_root.clamp_min(1e-3))
        t = torch.where(lower, torch.maximum(bound, hilferty), hilferty)
        for _ in range(6):
            u = torch.exp(t)
            total = torch.where(lower, _lower_sum(u, freq_dim), _upper_sum(u, freq_dim))
            slope = freq_dim / torch.where(lower, total, -total)
            t = t - (_log_factor(u, freq_dim) + torch.log(total) - log_tail) / slope
        return torch.exp(t)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        ctx.freq_dim = inputs[1]
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (u,) = ctx.saved_tensors
        return grad / _radial_pdf(u, ctx.freq_dim), None

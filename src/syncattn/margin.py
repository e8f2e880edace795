"""The law of locking: margin F, synchronization S and strength W of the squared detuning D, and their slopes.

    F = exp(-2 alpha D) - D / kappa^2        S = sqrt(F + e^2) - e        W = S^p        where F > 0, else 0

The one place in Python where it stands, without checks; `syncattn.locking` has the checked forms, and what
else follows from it: radius, density, calibration. In the kernels' languages it stands in
backends/cpu/kernel/margin.h and backends/triton/margin.py.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


def margin_of(detuning: Tensor, coupling: Tensor, bandwidth: Tensor) -> Tensor:
    """F; the arguments, of one dtype, broadcast. Dividing twice keeps it right where kappa^2 underflows."""
    return torch.exp(-2.0 * bandwidth * detuning) - detuning / coupling / coupling


def synchronization_of(margin: Tensor, edge: float = 0.0) -> Tensor:
    """S of positive margins, without the cancellation of sqrt(F + e^2) - e."""
    return torch.sqrt(margin) if edge == 0 else margin / (torch.sqrt(margin + edge * edge) + edge)


def strength_of(margin: Tensor, power: float, edge: float) -> Tensor:
    """W of positive margins. With power 2 and no edge it is F itself: no square root, no singular slope."""
    if power == 2 and edge == 0:
        return margin
    sync = synchronization_of(margin, edge)
    return sync if power == 1 else sync**power


class Slopes(NamedTuple):
    """The gradients of what F is made of."""

    detuning: Tensor  # as D
    coupling: Tensor  # (b, H, n, 1)
    bandwidth: Tensor  # (H,)


class TileLaw(NamedTuple):
    """The same for tiles of pairs (b, H, n, k), with gradients written out, in place where that is faster.

    Attributes:
        coupling: kappa (b, H, n or 1, 1).
        inverse_square: 1 / kappa^2, the same shape.
        rate: -2 alpha (H, 1, 1).
        power, edge: p and e.
    """

    coupling: Tensor
    inverse_square: Tensor
    rate: Tensor
    power: float
    edge: float

    @classmethod
    def of(cls, coupling: Tensor, bandwidth: Tensor, power: float, edge: float) -> TileLaw:
        """From kappa (b, H, n or 1) and alpha (H,)."""
        kappa = coupling[..., None]
        return cls(kappa, kappa.square().reciprocal(), -2 * bandwidth[:, None, None], power, edge)

    def weigh(self, detuning: Tensor) -> tuple[Tensor, Tensor]:
        """(J^2 = exp(-2 alpha D), W exactly 0 where not locked); a NaN of D stays, it must show."""
        # exp of anything below this is 0 for every purpose but would be a slow denormal number
        floor = math.log(torch.finfo(detuning.dtype).tiny) + 7
        decay_square = (detuning * self.rate).clamp_(min=floor).exp_()
        strength = torch.addcmul(decay_square, detuning, self.inverse_square, value=-1).relu_()
        if self.edge:
            strength = torch.where(strength == 0, 0.0, torch.sqrt(strength + self.edge**2) - self.edge)
            strength = strength if self.power == 1 else strength.pow_(self.power)
        elif self.power != 2:
            strength = strength.sqrt_() if self.power == 1 else strength.pow_(self.power / 2)
        return decay_square, strength

    def through_strength(self, gradient: Tensor, strength: Tensor) -> Tensor:
        """dL/dF from dL/dW, which it overwrites: exactly 0 where not locked."""
        if self.edge:
            sync = strength if self.power == 1 else strength ** (1 / self.power)
            gradient.mul_(0.5 * self.power * sync ** (self.power - 1) / (sync + self.edge))
        elif self.power != 2:
            gradient.mul_(0.5 * self.power * strength ** (1 - 2 / self.power))
        return torch.ops.aten.threshold_backward(gradient, strength, 0)

    def through_margin(self, gradient: Tensor, detuning: Tensor, decay_square: Tensor) -> Slopes:
        """What dL/dF gives to D, to kappa (summed over a row's senders) and to alpha (over all)."""
        through = gradient * decay_square
        bandwidth = -2 * (through * detuning).sum((0, 2, 3))
        coupling = 2 * (gradient * detuning).sum(-1, keepdim=True) / self.coupling**3
        slope = through.mul_(self.rate).addcmul_(gradient, self.inverse_square, value=-1)
        return Slopes(slope, coupling, bandwidth)

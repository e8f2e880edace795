"""Entmax with alpha 1.5: weights with exact zeros, by sorting (Peters, Niculae and Martins 2019)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_FAR = -2.0  # below the largest by more than 1, in halved scores, a score weighs nothing


def entmax15(scores: Tensor) -> Tensor:
    """Weights max(s / 2 - tau, 0)^2 over the last axis, tau such that they sum to 1.

    Args:
        scores: (..., M) floating point; -inf is a key that may not be seen, at least one may.

    Returns:
        (..., M), of the same dtype.
    """
    return _Entmax15.apply(scores)


class _Entmax15(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        # Differences to the largest: what is far below it weighs 0 whatever it is, so that -inf may be any.
        z = ((scores - scores.amax(-1, keepdim=True)) / 2).clamp(min=_FAR)
        ordered = z.sort(-1, descending=True).values
        count = torch.arange(1, z.shape[-1] + 1, device=z.device, dtype=z.dtype)
        mean = ordered.cumsum(-1) / count
        spread = ordered.square().cumsum(-1) / count - mean.square()
        tau = mean - ((1 / count - spread).clamp(min=0)).sqrt()
        support = (tau <= ordered).sum(-1, keepdim=True).clamp(min=1)
        weights = (z - tau.gather(-1, support - 1)).clamp(min=0).square()
        ctx.save_for_backward(weights)
        return weights

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (weights,) = ctx.saved_tensors
        root = weights.sqrt()
        given = gradients[0] * root
        return given - root * given.sum(-1, keepdim=True) / root.sum(-1, keepdim=True)

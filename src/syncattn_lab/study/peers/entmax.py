"""Entmax with alpha 1.5: weights with exact zeros (Peters, Niculae and Martins 2019)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_FAR = -2.0  # below the largest by more than 1, in halved scores, a score weighs nothing
_CLOSE = 1e-6
_MOST_STEPS = 30


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
        # The root of |max(z - tau, 0)| = 1, which is convex in tau, by Newton's method from the left: it
        # never goes beyond the root, and a row need not be sorted.
        tau = torch.full_like(z[..., :1], -1.0)
        for _ in range(_MOST_STEPS):
            above = (z - tau).clamp_(min=0)
            norm = torch.linalg.vector_norm(above, dim=-1, keepdim=True)
            step = (norm - 1) * norm / above.sum(-1, keepdim=True)
            tau += step
            if float(step.max()) < _CLOSE:
                break
        weights = (z - tau).clamp_(min=0).square_()
        ctx.save_for_backward(weights)
        return weights

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (weights,) = ctx.saved_tensors
        root = weights.sqrt()
        given = gradients[0] * root
        return given - root * given.sum(-1, keepdim=True) / root.sum(-1, keepdim=True)

"""Texts longer than those of the training: heads that reach farther, without training."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from syncattn.checks import check_count, check_real
from syncattn.nn.frequency import Frequency


@torch.no_grad()
def widen_(module: nn.Module, factor: float, heads: int = 1) -> None:
    """Divide the drift of the widest heads of every layer by `factor`, in place.

    What a head recalls lies within its window, which learned no more than texts of the training's length
    need. Nothing else in a model depends on that length: position is a straight line in a head's frequencies,
    so a smaller slope is a wider window and nothing that the head has not seen. The counterpart of rotary
    position's scaling (YaRN, Peng et al. 2023); docs/positions.md has what it does to a trained model.

    Args:
        module: a layer, or a model with layers that have frequencies; those whose heads do not drift stay as
            they are.
        factor: of the windows; times so many tokens as in training are a start. Below 1 they become narrower.
        heads: how many of a layer's drifting heads, the widest ones; all of them where there are no more. On
            several axes the head with the widest window on any of them, which is widened on all.

    Raises:
        TypeError, ValueError: module is no module, factor not a positive number, heads not a positive
            integer, or no layer has a head that drifts. Nothing has changed then.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    check_real("factor", factor, "a positive number", lambda x: 0 < x < math.inf)
    check_count("heads", heads)
    slopes: list[Tensor] = [
        part.log_slope
        for part in module.modules()
        if isinstance(part, Frequency) and part.log_slope is not None
    ]
    if not slopes:
        raise ValueError(
            f"module must have a layer with heads that drift, got {type(module).__name__} without one"
        )
    for of_layer in slopes:
        by_head = of_layer if of_layer.ndim == 1 else of_layer.amin(0)  # (A, H) with several axes
        widest = by_head.argsort()[:heads]
        of_layer[..., widest] -= math.log(factor)

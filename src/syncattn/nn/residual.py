"""The value residual: what a layer reads is partly what the first one would (Zhou et al. 2024)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def new_value_mix(**factory: Any) -> nn.Parameter:
    """The shares of a layer's own values and of the first layer's, (2,), filled by whoever initialises."""
    return nn.Parameter(torch.empty(2, **factory))


def mix_first_value(value: Tensor, first: Tensor, mix: Tensor) -> Tensor:
    """A layer's values (B, M, E) and the first layer's (B, M, E), by their shares (2,).

    Where tokens stand twice in a call, with the token before mixed in and without, the first layer's do too.
    """
    if value.shape[1] != first.shape[1]:
        first = torch.cat((first, first), 1)
    return mix[0] * value + mix[1] * first


def check_first_value(first: Tensor | None, like: Tensor, wanted: bool) -> None:
    """Make sure that the first layer's values are given where, and only where, they are wanted.

    Args:
        like: the layer's senders (B, M, E).

    Raises:
        ValueError: they are not, or have another shape.
    """
    if not wanted and first is None:
        return
    if not wanted or first is None:
        raise ValueError(
            f"first_value must be {'given' if wanted else 'left out'} with value_residual={wanted}, got "
            f"{'none' if first is None else tuple(first.shape)}"
        )
    if first.shape != like.shape:
        wanted_shape = tuple(like.shape)
        raise ValueError(f"first_value must have shape (B, M, E) = {wanted_shape}, got {tuple(first.shape)}")

"""The gate of each head: how much of what it hears it passes on, by how near its nearest sender is.

In the nearest frame each row locks to its nearest sender, however far that is: what the head gives then looks
like any other result, and nothing later can tell a match from the least bad of strangers. The gate can.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def new_gate(num_heads: int, **factory: Any) -> nn.Parameter:
    """a and b of each head, (2, H), filled by whoever initialises."""
    return nn.Parameter(torch.empty(2, num_heads, **factory))


def openness(gate: Tensor, nearest: Tensor, freq_dim: int) -> Tensor:
    """2 sigmoid(a - b D / m) of each receiver's nearest sender, (B, H, N, 1): 1 everywhere where a = b = 0.

    Args:
        gate: a and b, (2, H).
        nearest: D, (B, H, N), as the operator gives it out.
        freq_dim: m.
    """
    shift, slope = gate.to(nearest.dtype)[:, :, None]
    return (2 * torch.sigmoid(torch.addcmul(shift, slope, nearest, value=-1 / freq_dim)))[..., None]

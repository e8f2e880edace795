"""The gate of each head: how much of what it hears it passes on, by how near its nearest sender is.

In the nearest frame each row locks to its nearest sender, however far that is: what the head gives then looks
like any other result, and nothing later can tell a match from the least bad of strangers. The gate can.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from syncattn.backends.call import check
from syncattn.backends.nearest import nearest_detuning
from syncattn.nn.operands import by_groups
from syncattn.nn.state import IncrementalState


def new_gate(num_heads: int, **factory: Any) -> nn.Parameter:
    """a and b of each head, (2, H), filled by whoever initialises."""
    return nn.Parameter(torch.empty(2, num_heads, **factory))


def openness(gate: Tensor, arguments: dict[str, Any], after: IncrementalState | None) -> Tensor:
    """2 sigmoid(a - b D / m) of each receiver's nearest sender, (B, H, N, 1): 1 everywhere where a = b = 0.

    Args:
        gate: a and b, (2, H).
        arguments: what the operator is called with.
        after: the past with the receivers in it, where groups of heads are read from different tokens on;
            None: the arguments hold all senders.
    """
    if after is not None and not after.reads_all:
        apart = by_groups(after, arguments, _apart)
    else:
        apart = _apart(0, **arguments)
    shift, slope = gate.to(apart.dtype)[:, :, None, None]
    return 2 * torch.sigmoid(shift - slope * apart)


def _apart(checked_senders: int, *tensors: Tensor, **options: Any) -> Tensor:
    """D / m of the nearest senders of a call, (B, H, N, 1)."""
    call = check(*tensors, checked_senders=checked_senders, **options)
    return nearest_detuning(call)[..., None] / call.receive.shape[-1]

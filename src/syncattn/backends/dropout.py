"""The dropout mask as a function of (seed, row, column): no state, the same in every backend.

A counter-based mask needs no memory, so a tiled backward meets the mask of its forward, and two backends
given one seed drop the same pairs.
"""

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF


def keep_mask(seed: Tensor, rows: Tensor, columns: Tensor, dropout_p: float) -> Tensor:
    """Which pairs survive dropout.

    Args:
        seed: int64 scalar.
        rows: int64, the rows' numbers in the whole call, (b * H + h) * N + i; broadcasts with columns.
        columns: int64, the senders' numbers j.
        dropout_p: the chance of being dropped, resolved to 2**-32.

    Returns:
        bool, the broadcast shape of rows and columns; True = kept.
    """
    word = _mix(_mix((rows ^ seed) & _WORD) ^ ((rows >> 32) ^ (seed >> 32)) & _WORD)
    return _mix((word + columns * 0x9E3779B9) & _WORD) >= int(dropout_p * 2**32)


def row_numbers(batch: int, heads: int, queries: int, device: torch.device) -> Tensor:
    """(B, H, N, 1): the number that `keep_mask` knows each row by."""
    return torch.arange(batch * heads * queries, dtype=torch.int64, device=device).view(
        batch, heads, queries, 1
    )


def _mix(x: Tensor) -> Tensor:
    """A 32-bit finaliser (Wellons' lowbias32), in int64: its low 32 bits are exact under wrap-around."""
    x = (x ^ (x >> 16)) * 0x7FEB352D & _WORD
    x = (x ^ (x >> 15)) * 0x846CA68B & _WORD
    return x ^ (x >> 16)

"""The order of a k-d tree for calls whose tokens may come in any: near frequencies in the same tile.

Plain torch, on the device, without waiting for it: every size follows from shapes. The kernels then see a
call like any other; what depends on which pair it is (the own pair, dropout, the earliest of equally near
senders) goes by the tokens' numbers in the call as it was (arrange.py writes them down).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_AWAY = 1e30  # the coordinates of those that lock to nobody: after all others, before what is past the end


class Order(NamedTuple):
    """Where each place's token comes from, and where each token went: (B, heads, tokens) int64."""

    receivers: Tensor
    senders: Tensor
    receivers_back: Tensor
    senders_back: Tensor


def kd_order(x: Tensor, tile: int, allowed: Tensor | None) -> Tensor:
    """Which token of x comes where, tiles of `tile` holding near ones.

    The tokens are cut in two at the median of their widest coordinate, level by level, until a piece is one
    tile. Tokens that are not finite, or not allowed, come last.

    Args:
        x: (B, heads, tokens, m) frequencies.
        tile: tokens of a tile, a power of two.
        allowed: (B, heads, tokens), 0 for those that nobody hears, or None.

    Returns:
        (B, heads, tokens) int64, contiguous; the same input gives the same order.
    """
    batch, heads, tokens, coordinates = x.shape
    levels = (-(-tokens // tile) - 1).bit_length()
    size = tile << levels
    there = (x.abs() < _AWAY**0.5).all(-1)
    if allowed is not None:
        there = there & (allowed != 0)
    w = torch.where(there[..., None], x.float(), _AWAY).flatten(0, 1)
    w = torch.nn.functional.pad(w, (0, 0, 0, size - tokens), value=torch.inf)
    order = torch.arange(size, dtype=torch.int64, device=x.device).expand(len(w), 1, size)
    for level in range(levels):
        pieces = 1 << level
        w, order = w.view(-1, pieces, size // pieces, coordinates), order.reshape(-1, pieces, size // pieces)
        known = w < _AWAY
        extent = torch.where(known, w, -torch.inf).amax(2) - torch.where(known, w, torch.inf).amin(2)
        widest = extent.argmax(-1)[:, :, None, None].expand(-1, -1, size // pieces, 1)
        # stable: what is past the end stays there, also behind tokens that lock to nobody
        by = w.gather(-1, widest).squeeze(-1).argsort(dim=-1, stable=True)
        w = w.gather(2, by[..., None].expand(-1, -1, -1, coordinates))
        order = order.gather(2, by)
    return order.reshape(-1, size)[:, :tokens].contiguous().view(batch, heads, tokens)


def order_of(receive: Tensor, send: Tensor, tile: int, allowed: Tensor | None, symmetric: bool) -> Order:
    """The order of both sides. They may differ in a symmetric call, too: its diagonal goes by the numbers."""
    senders = kd_order(send, tile, allowed)
    senders_back = inverse(senders)
    if symmetric and allowed is None:
        return Order(senders, senders, senders_back, senders_back)
    receivers = kd_order(receive, tile, None)
    return Order(receivers, senders, inverse(receivers), senders_back)


def inverse(order: Tensor) -> Tensor:
    """Where each token went, from where each place's token comes: (B, heads, tokens) int64."""
    places = torch.arange(order.shape[-1], dtype=torch.int64, device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)


def taken(x: Tensor, order: Tensor) -> Tensor:
    """x (B, heads, tokens) or (B, heads, tokens, n) in the order of (B, fewer or as many heads, tokens)."""
    order = order.repeat_interleave(x.shape[1] // order.shape[1], 1)
    return x.gather(2, order if x.ndim == 3 else order[..., None].expand(-1, -1, -1, x.shape[-1]))


def values_taken(value: Tensor, order: Tensor, heads: int) -> Tensor:
    """The values in the senders' order; if heads of senders share one of values, once for each."""
    shared = value.shape[1] % order.shape[1]
    if shared:
        wanted = order.shape[1] if order.shape[1] % value.shape[1] == 0 else heads
        value = value.repeat_interleave(wanted // value.shape[1], 1)
    return taken(value, order)


def places(numbers: Tensor, back: Tensor) -> Tensor:
    """Where the senders with these numbers (B, H, N) int32 are, through (B, send heads, M); -1 stays."""
    grouped = numbers.reshape(*back.shape[:2], -1)
    found = back.gather(-1, grouped.clamp(min=0).long())
    return torch.where(grouped < 0, -1, found).int().view(numbers.shape)

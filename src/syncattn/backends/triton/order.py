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
    return _cut(_known(x, tile, allowed), tile)[:, : x.shape[2]].contiguous().view(x.shape[:3])


def _known(x: Tensor, tile: int, allowed: Tensor | None) -> Tensor:
    """The tokens of every head as they are sorted, (B heads, 2^n tiles, m) float32."""
    tokens = x.shape[2]
    size = tile << (-(-tokens // tile) - 1).bit_length()
    there = (x.abs() < _AWAY**0.5).all(-1)
    if allowed is not None:
        there = there & (allowed != 0)
    w = torch.where(there[..., None], x.float(), _AWAY).flatten(0, 1)
    return torch.nn.functional.pad(w, (0, 0, 0, size - tokens), value=torch.inf)


def _cut(w: Tensor, tile: int) -> Tensor:
    """Which of the tokens of each row comes where, (rows, tokens) int64."""
    size, coordinates = w.shape[1:]
    order = torch.arange(size, dtype=torch.int64, device=w.device).expand(len(w), 1, size)
    # once: in torch.where a number is a launch of its own
    least = torch.full((), -torch.inf, dtype=torch.float32, device=w.device)
    pieces = 1
    while pieces * tile < size:
        w, order = w.view(-1, pieces, size // pieces, coordinates), order.reshape(-1, pieces, size // pieces)
        # those that are away are beyond all others, which makes them no minimum
        extent = torch.where(w < _AWAY, w, least).amax(2) - w.amin(2)
        widest = extent.argmax(-1)[:, :, None, None].expand(-1, -1, size // pieces, 1)
        # stable: what is past the end stays there, also behind tokens that lock to nobody
        by = w.gather(-1, widest).squeeze(-1).argsort(dim=-1, stable=True)
        w = w.gather(2, by[..., None].expand(-1, -1, -1, coordinates))
        order = order.gather(2, by)
        pieces *= 2
    return order.reshape(-1, size)


def order_of(receive: Tensor, send: Tensor, tile: int, allowed: Tensor | None, symmetric: bool) -> Order:
    """The order of both sides. They may differ in a symmetric call, too: its diagonal goes by the numbers."""
    if symmetric and allowed is None:
        senders = kd_order(send, tile, None)
        back = inverse(senders)
        return Order(senders, senders, back, back)
    if receive.shape[2] != send.shape[2]:
        receivers, senders = kd_order(receive, tile, None), kd_order(send, tile, allowed)
        return Order(receivers, senders, inverse(receivers), inverse(senders))
    # Both at once: it is launches that take the time.
    rows = torch.cat((_known(receive, tile, None), _known(send, tile, allowed)))
    order = _cut(rows, tile)[:, : send.shape[2]].contiguous()
    back, number = inverse(order), receive.shape[0] * receive.shape[1]
    return Order(
        order[:number].view(receive.shape[:3]),
        order[number:].view(send.shape[:3]),
        back[:number].view(receive.shape[:3]),
        back[number:].view(send.shape[:3]),
    )


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

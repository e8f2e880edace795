"""The order of a k-d tree for calls whose tokens may come in any: near frequencies in the same tile.

On the device, without waiting for it: every size follows from shapes. The kernels then see a call like any
other; what depends on which pair it is (the own pair, dropout, the earliest of equally near senders) goes by
the tokens' numbers in the call as it was (arrange.py writes them down).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from syncattn.backends.triton.blocks import cdiv, next_power_of_2
from syncattn.backends.triton.detuning import KNOWN
from syncattn.backends.triton.groups import GROWING, Frequencies
from syncattn.backends.triton.pointers import head_of
from syncattn.backends.triton.start import Host

_CHUNK = 2048  # tokens that a program looks at together
_LAST = tl.constexpr(2**32 - 1)  # the key of those that come after all others
_SIGN = tl.constexpr(2**31)


class Order(NamedTuple):
    """Where each place's token comes from, and where each token went: (B, heads, tokens) int64."""

    receivers: Tensor
    senders: Tensor
    receivers_back: Tensor
    senders_back: Tensor


def kd_order(host: Host, x: Tensor, tile: int, allowed: Tensor | None) -> Tensor:
    """Which token of x comes where, tiles of `tile` holding near ones.

    The tokens are cut in two at the median of their widest coordinate, level by level, until a piece is one
    tile; within it they keep their order. Tokens that are not finite, or not allowed, are in the last tiles.

    Args:
        x: (B, heads, tokens, m) frequencies.
        tile: tokens of a tile, a power of two.
        allowed: (B, heads, tokens), 0 for those that nobody hears, or None.

    Returns:
        (B, heads, tokens) int64, contiguous; the same input gives the same order.
    """
    batch, heads, tokens, freq_dim = x.shape
    there = (x.abs() < KNOWN.value).all(-1)
    if allowed is not None:
        there = there & (allowed != 0)
    size = tile * next_power_of_2(cdiv(tokens, tile))
    order = torch.arange(size, dtype=torch.int32, device=x.device).repeat(batch * heads, 1)
    halved, pieces = torch.empty_like(order), 1
    keys = torch.empty(order.shape, dtype=torch.uint32, device=x.device)
    while pieces * tile < size:
        programs, chunk = (batch * heads * pieces,), min(_CHUNK, size // pieces)
        host.start(
            keys_kernel, programs,
            Frequencies(x, *x.stride()), there.view(torch.uint8), order, keys, heads, tokens, size, pieces,
            FREQ=freq_dim, CHUNK=chunk,
        )  # fmt: skip
        host.start(halve_kernel, programs, order, keys, halved, size, pieces, CHUNK=chunk)
        order, halved, pieces = halved, order, 2 * pieces
    return order[:, :tokens].long().view(batch, heads, tokens)


@triton.jit(do_not_specialize=[*GROWING, "size", "pieces"])
def keys_kernel(
    x, there, order, keys, heads, tokens, size, pieces, FREQ: tl.constexpr, CHUNK: tl.constexpr
):  # fmt: skip
    """Where the tokens of one of so many pieces of a row of `order` (B heads, size), which numbers them, are
    in their widest coordinate: uint32 that increase with it. Numbers from `tokens` on, and tokens of which
    `there` (B, heads, tokens) is 0, come last."""
    program = tl.program_id(0)
    bh, length = program // pieces, size // pieces
    row = head_of(x, bh // heads, bh % heads)
    there += bh.to(tl.int64) * tokens
    piece = bh.to(tl.int64) * size + program % pieces * length
    columns = tl.arange(0, CHUNK)

    widest, extent = 0, float("-inf")
    for coordinate in range(FREQ):
        low, high = tl.full([CHUNK], float("inf"), tl.float32), tl.full([CHUNK], float("-inf"), tl.float32)
        for first in range(0, length, CHUNK):
            i = tl.load(order + piece + first + columns)
            here = i < tokens
            here = tl.load(there + i, mask=here, other=0) != 0
            w = tl.load(row + i.to(tl.int64) * x.token + coordinate * x.coordinate, mask=here, other=0.0)
            low = tl.minimum(low, tl.where(here, w.to(tl.float32), float("inf")))
            high = tl.maximum(high, tl.where(here, w.to(tl.float32), float("-inf")))
        found = tl.max(high, 0) - tl.min(low, 0)
        widest = tl.where(found > extent, coordinate, widest)
        extent = tl.maximum(found, extent)

    for first in range(0, length, CHUNK):
        i = tl.load(order + piece + first + columns)
        here = i < tokens
        here = tl.load(there + i, mask=here, other=0) != 0
        w = tl.load(row + i.to(tl.int64) * x.token + widest * x.coordinate, mask=here, other=0.0)
        bits = (w.to(tl.float32) + 0.0).to(tl.uint32, bitcast=True)  # -0 is 0
        key = tl.where(bits >= _SIGN, bits ^ _LAST, bits | _SIGN)  # which increases with w
        tl.store(keys + piece + first + columns, tl.where(here, key, _LAST))


@triton.jit(do_not_specialize=[*GROWING, "size", "pieces"])
def halve_kernel(order, keys, halved, size, pieces, CHUNK: tl.constexpr):
    """One of so many pieces of a row of `order` (B heads, size) cut in two at the median of its keys, into
    `halved`: each half keeps its order, and so do equal keys."""
    program = tl.program_id(0)
    length = size // pieces
    piece = (program // pieces).to(tl.int64) * size + program % pieces * length
    columns = tl.arange(0, CHUNK)

    # the key of the last that goes left, bit by bit
    half = length // 2
    median, step = tl.full((), 0, tl.uint32), tl.full((), _SIGN, tl.uint32)
    for _ in range(32):
        raised = median + step
        under = 0
        for first in range(0, length, CHUNK):
            under += tl.sum((tl.load(keys + piece + first + columns) < raised).to(tl.int32), 0)
        median = tl.where(under < half, raised, median)
        step = step >> 1

    under = 0
    for first in range(0, length, CHUNK):
        under += tl.sum((tl.load(keys + piece + first + columns) < median).to(tl.int32), 0)
    ties, lefts = half - under, 0  # of those that are the median so many go left
    for first in range(0, length, CHUNK):
        i = tl.load(order + piece + first + columns)
        key = tl.load(keys + piece + first + columns)
        tie = (key == median).to(tl.int32)
        left = ((key < median) | ((tie != 0) & (tl.cumsum(tie, 0) <= ties))).to(tl.int32)
        ties -= tl.sum(tie, 0)
        before = lefts + tl.cumsum(left, 0)
        place = tl.where(left != 0, before - 1, half + first + columns - before)
        tl.store(halved + piece + place, i)
        lefts += tl.sum(left, 0)


def order_of(
    host: Host, receive: Tensor, send: Tensor, tile: int, allowed: Tensor | None, symmetric: bool
) -> Order:
    """The order of both sides: of a symmetric call the same, but where a mask leaves out senders."""
    senders = kd_order(host, send, tile, allowed)
    if symmetric and allowed is None:
        back = inverse(senders)
        return Order(senders, senders, back, back)
    receivers = kd_order(host, receive, tile, None)
    return Order(receivers, senders, inverse(receivers), inverse(senders))


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

"""Which tiles can lock: for each tile of one side the list of the other side's, made on the device."""

from __future__ import annotations

import triton
import triton.language as tl

# A tile is left out if its box is farther than the reach by more than what rounding may do to either.
SLACK = tl.constexpr(1.001)


@triton.jit
def box_distance(own_low, own_high, other_low, other_high):
    """The least squared distance of two boxes, summed over the first axis."""
    gap = tl.maximum(tl.maximum(other_low - own_high, own_low - other_high), 0.0)
    return tl.sum(gap * gap, 0)


@triton.jit
def lists_kernel(
    own_low, own_high, other_low, other_high, reach, entries, counts,
    own_heads, other_heads, heads, own_tiles, other_tiles, offset, queries,
    FREQ: tl.constexpr, BLOCK_M: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr, CHUNK: tl.constexpr,
    OF_QUERIES: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    """For one own tile: entries (B H, own tiles, other tiles) int32, the other tiles that can lock, in order;
    counts (B H, own tiles). OF_QUERIES: the own tiles are the receivers'."""
    bh, tile = tl.program_id(0), tl.program_id(1)
    b, h = bh // heads, bh % heads
    own_bh = (b * own_heads + h // (heads // own_heads)).to(tl.int64)
    other_bh = (b * other_heads + h // (heads // other_heads)).to(tl.int64)
    k, t = tl.arange(0, BLOCK_M), tl.arange(0, CHUNK)
    own = own_bh * FREQ * own_tiles + k * own_tiles + tile
    low = tl.load(own_low + own, mask=k < FREQ, other=0.0)
    high = tl.load(own_high + own, mask=k < FREQ, other=0.0)
    reach += bh.to(tl.int64) * (own_tiles if OF_QUERIES else other_tiles)
    if OF_QUERIES:
        far = tl.load(reach + tile)
    to = entries + (bh.to(tl.int64) * own_tiles + tile) * other_tiles
    count = 0
    for first in range(0, other_tiles, CHUNK):
        other = first + t
        there = other < other_tiles
        at = other_bh * FREQ * other_tiles + k[:, None] * other_tiles + other[None, :]
        inside = (k < FREQ)[:, None] & there[None, :]
        distance = box_distance(
            low[:, None],
            high[:, None],
            tl.load(other_low + at, mask=inside, other=0.0),
            tl.load(other_high + at, mask=inside, other=0.0),
        )
        if not OF_QUERIES:
            far = tl.load(reach + other, mask=there, other=0.0)
        alive = there & (distance <= far * SLACK)
        if CAUSAL:
            if OF_QUERIES:
                last = tl.minimum((tile + 1) * OWN, queries) - 1
                alive = alive & (other * OTHER <= last + offset)
            else:
                last = tl.minimum((other + 1) * OTHER, queries) - 1
                alive = alive & (tile * OWN <= last + offset)
        found = alive.to(tl.int32)
        tl.store(to + count + tl.cumsum(found, 0) - 1, other, mask=alive)
        count += tl.sum(found, 0)
    tl.store(counts + bh.to(tl.int64) * own_tiles + tile, count)

"""Before anything else: the frequencies as planes, a box around each tile's tokens, and how far each tile of
receivers can reach."""

from __future__ import annotations

import triton
import triton.language as tl

from syncattn.backends.triton.pairs import largest_radius


@triton.jit
def arrange_kernel(
    x, x_batch, x_head, x_token, x_coordinate, heads, tokens,
    planes, plane, low, high, tiles,
    nowhere: tl.constexpr, FREQ: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One tile: x (B, heads, tokens, m), any strides and dtype, to planes (B heads, m, plane) float32 and to
    low, high (B heads, m, tiles). What is infinite, or past the end, stands `nowhere`; a box with a NaN in it
    is everything."""
    bh, tile = tl.program_id(0), tl.program_id(1)
    i, k = tile * BLOCK + tl.arange(0, BLOCK), tl.arange(0, BLOCK_M)
    base = x + (bh // heads).to(tl.int64) * x_batch + (bh % heads).to(tl.int64) * x_head
    here = (i < tokens)[:, None] & (k < FREQ)[None, :]
    pointers = base + i.to(tl.int64)[:, None] * x_token + k[None, :] * x_coordinate
    w = tl.load(pointers, mask=here, other=0.0).to(tl.float32)
    w = tl.where(tl.abs(w) > nowhere, nowhere, tl.where(here, w, nowhere))
    to = bh.to(tl.int64) * FREQ
    inside = (i < plane)[:, None] & (k < FREQ)[None, :]
    tl.store(planes + to * plane + k[None, :] * plane + i[:, None], w, mask=inside)
    unknown = tl.max((w != w).to(tl.int32), 0) > 0
    smallest = tl.min(tl.where(here, w, float("inf")), 0)
    largest = tl.max(tl.where(here, w, float("-inf")), 0)
    at = to * tiles + k * tiles + tile
    tl.store(low + at, tl.where(unknown, float("-inf"), smallest), mask=k < FREQ)
    tl.store(high + at, tl.where(unknown, float("inf"), largest), mask=k < FREQ)


@triton.jit
def reach_kernel(
    coupling, coupling_batch, coupling_head, coupling_row, bandwidth, base, reach, heads, queries, tiles,
    NEAREST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The largest D, from the absolute frame, at which any receiver of a tile can lock: reach (B H,
    tiles)."""
    bh, tile = tl.program_id(0), tl.program_id(1)
    i = tile * BLOCK + tl.arange(0, BLOCK)
    b, h = bh // heads, bh % heads
    kappa = tl.load(
        coupling
        + b.to(tl.int64) * coupling_batch
        + h.to(tl.int64) * coupling_head
        + i.to(tl.int64) * coupling_row,
        mask=i < queries,
        other=1.0,
    )
    far = largest_radius(kappa, tl.load(bandwidth + h))
    if NEAREST:
        nearest = tl.load(base + bh.to(tl.int64) * queries + i, mask=i < queries, other=0.0)
        far = far + tl.where(nearest == nearest, nearest, float("inf"))
    far = tl.where(i < queries, far, 0.0)
    tl.store(reach + bh.to(tl.int64) * tiles + tile, tl.max(far, 0))

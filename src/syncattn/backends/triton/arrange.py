"""Before anything else: the frequencies as planes, a box around each tile's tokens, and how far each tile of
receivers can reach."""

from __future__ import annotations

import triton
import triton.language as tl

from syncattn.backends.triton.pairs import GROWING, largest_radius

_LARGEST = tl.constexpr(3e38)  # half the side of a box that is everything: farther from an empty box than any


@triton.jit(do_not_specialize=GROWING)
def arrange_kernel(
    x, x_batch, x_head, x_token, x_coordinate, order, allowed, allowed_batch, allowed_head, allowed_token,
    heads, tokens, planes, plane, low, high, tiles, numbers,
    nowhere: tl.constexpr, nobody: tl.constexpr, FREQ: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK: tl.constexpr, SORTED: tl.constexpr, FOLDED: tl.constexpr, NUMBERED: tl.constexpr,
):  # fmt: skip
    """One tile: x (B, heads, tokens, m), any strides and dtype, to planes (B heads, m, plane) float32 and to
    low, high (B heads, m, tiles). What is infinite, or past the end, stands `nowhere`; a box with a NaN in it
    is everything, one without a token is empty.

    SORTED: the tokens come in the order (B, heads, tokens) int64. FOLDED: those that are not in allowed (B,
    heads, tokens) stand nowhere, too. NUMBERED: numbers (B heads, plane) int32 are the tokens' places in x,
    `nobody` for those that stand nowhere."""
    bh, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    b, h = (bh // heads).to(tl.int64), (bh % heads).to(tl.int64)
    i, k = tile * BLOCK + tl.arange(0, BLOCK), tl.arange(0, BLOCK_M)
    present = i < tokens
    place = i
    if SORTED:
        place = tl.load(order + bh.to(tl.int64) * tokens + i, mask=present, other=0).to(tl.int32)
    if FOLDED:
        heard = allowed + b * allowed_batch + h * allowed_head + place.to(tl.int64) * allowed_token
        present = present & (tl.load(heard, mask=present, other=0) != 0)
    here = present[:, None] & (k < FREQ)[None, :]
    base = x + b * x_batch + h * x_head
    pointers = base + place.to(tl.int64)[:, None] * x_token + k[None, :] * x_coordinate
    w = tl.load(pointers, mask=here, other=0.0).to(tl.float32)
    w = tl.where(tl.abs(w) > nowhere, nowhere, tl.where(here, w, nowhere))
    to = bh.to(tl.int64) * FREQ
    inside = (i < plane)[:, None] & (k < FREQ)[None, :]
    tl.store(planes + to * plane + k[None, :] * plane + i[:, None], w, mask=inside)
    unknown = tl.max((w != w).to(tl.int32), 0) > 0
    smallest = tl.min(tl.where(here, w, float("inf")), 0)
    largest = tl.max(tl.where(here, w, float("-inf")), 0)
    at = to * tiles + k * tiles + tile
    tl.store(low + at, tl.where(unknown, -_LARGEST, smallest), mask=k < FREQ)
    tl.store(high + at, tl.where(unknown, _LARGEST, largest), mask=k < FREQ)
    if NUMBERED:
        tl.store(numbers + bh.to(tl.int64) * plane + i, tl.where(present, place, nobody))


@triton.jit(do_not_specialize=GROWING)
def reach_kernel(
    coupling, coupling_batch, coupling_head, coupling_row, bandwidth, base, reach, heads, queries, tiles,
    NEAREST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The largest D, from the absolute frame, at which any receiver of a tile can lock: reach (B H,
    tiles)."""
    bh, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
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

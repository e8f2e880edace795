"""Before anything else: the frequencies as planes, a box around each tile's tokens, and how far each tile of
receivers can reach."""

from __future__ import annotations

import triton
import triton.language as tl

from syncattn.backends.triton.groups import GROWING
from syncattn.backends.triton.margin import alpha_of, kappa_of, largest_radius
from syncattn.backends.triton.pointers import head_of

_LARGEST = tl.constexpr(3e38)  # half the side of a box that is everything: farther from an empty box than any


@triton.jit(do_not_specialize=GROWING)
def arrange_kernel(
    x, order, allowed, planes, boxes, heads, tokens, tiles,
    nowhere: tl.constexpr, nobody: tl.constexpr, FREQ: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One tile of frequencies x into planes and boxes. What is infinite, or past the end, stands `nowhere`; a
    box with a NaN in it is everything, one without a token is empty.

    With an order (B, heads, tokens) int64 the tokens come in it. Those that are not in allowed (B, heads,
    tokens) stand nowhere, too. The numbers, if they are wanted, are the tokens' places in x, `nobody` for
    those that stand nowhere."""
    bh, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    b, h = bh // heads, bh % heads
    i, k = tile * BLOCK + tl.arange(0, BLOCK), tl.arange(0, BLOCK_M)
    present = i < tokens
    place = i
    if order is not None:
        place = tl.load(order + bh.to(tl.int64) * tokens + i, mask=present, other=0).to(tl.int32)
    if allowed is not None:
        heard = head_of(allowed, b, h) + place.to(tl.int64) * allowed.token
        present = present & (tl.load(heard, mask=present, other=0) != 0)
    here = present[:, None] & (k < FREQ)[None, :]
    pointers = head_of(x, b, h) + place.to(tl.int64)[:, None] * x.token + k[None, :] * x.coordinate
    w = tl.load(pointers, mask=here, other=0.0).to(tl.float32)
    w = tl.where(tl.abs(w) > nowhere, nowhere, tl.where(here, w, nowhere))
    to = bh.to(tl.int64) * FREQ
    inside = (i < planes.stride)[:, None] & (k < FREQ)[None, :]
    tl.store(planes.base + to * planes.stride + k[None, :] * planes.stride + i[:, None], w, mask=inside)
    unknown = tl.max((w != w).to(tl.int32), 0) > 0
    smallest = tl.min(tl.where(here, w, float("inf")), 0)
    largest = tl.max(tl.where(here, w, float("-inf")), 0)
    at = to * tiles + k * tiles + tile
    tl.store(boxes.low + at, tl.where(unknown, -_LARGEST, smallest), mask=k < FREQ)
    tl.store(boxes.high + at, tl.where(unknown, _LARGEST, largest), mask=k < FREQ)
    if planes.numbers is not None:
        numbers = planes.numbers + bh.to(tl.int64) * planes.stride + i
        tl.store(numbers, tl.where(present, place, nobody))


@triton.jit(do_not_specialize=GROWING)
def reach_kernel(law, nearest, reach, heads, queries, tiles, BLOCK: tl.constexpr):
    """The largest D, from the absolute frame, at which any receiver of a tile can lock: reach (B H,
    tiles)."""
    bh, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    i = tile * BLOCK + tl.arange(0, BLOCK)
    b, h = bh // heads, bh % heads
    far = largest_radius(kappa_of(law, b, h, i, queries), alpha_of(law, h))
    if nearest is not None:
        least = tl.load(nearest + bh.to(tl.int64) * queries + i, mask=i < queries, other=0.0)
        far = far + tl.where(least == least, least, float("inf"))
    far = tl.where(i < queries, far, 0.0)
    tl.store(reach + bh.to(tl.int64) * tiles + tile, tl.max(far, 0))

"""Before anything else: the frequencies as planes and as operands of a product, and a box around each tile's
tokens; of receivers also how far each tile can reach."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from syncattn.backends.triton.detuning import KNOWN, mean_of_near
from syncattn.backends.triton.groups import GROWING
from syncattn.backends.triton.margin import alpha_of, kappa_of, largest_radius
from syncattn.backends.triton.pointers import head_of, shared_head

_LARGEST = tl.constexpr(3e38)  # half the side of a box that is everything: farther from an empty box than any
SAMPLE = tl.constexpr(64)  # tokens that a head's frame is made from
# What the error of D as a product may be, over the smallest rho^2 of a tile: a quarter of what rounding W to
# bfloat16 does. The error is 2^-21 of the squares of the two tokens.
_ERROR = tl.constexpr(2.0**21 * 2.0**-10)
_MOST_SQUARED = tl.constexpr(3e4)  # what a float16 holds
MOST_LARGE = tl.constexpr(1e8)  # and what the three of a size hold


@triton.jit
def _first_at(x, value):
    """1 where x (n,) has that value first, else 0."""
    k = tl.arange(0, x.shape[0])
    return (k == tl.min(tl.where(x == value, k, x.shape[0]), 0)).to(tl.float32)


@triton.jit(do_not_specialize=GROWING)
def frame_kernel(send, frames, heads, keys, FREQ: tl.constexpr, BLOCK_M: tl.constexpr):
    """What a head's frequencies are counted in. Of some tokens, evenly spaced, those that are not far from
    the others: their mean, the axis of their largest variance by power iteration, and the power of two next
    to how far they are from that axis. Any frame gives D; a good one gives it exactly."""
    bh, k = tl.program_id(0), tl.arange(0, BLOCK_M)
    at = (tl.arange(0, SAMPLE).to(tl.int64) * keys) // SAMPLE
    pointers = head_of(send, bh // heads, bh % heads) + at[:, None] * send.token
    pointers += k[None, :] * send.coordinate
    w = tl.load(pointers, mask=(k < FREQ)[None, :], other=0.0).to(tl.float32)
    known = tl.min((tl.abs(w) < KNOWN).to(tl.int32), 1) > 0
    centre = mean_of_near(w, known, 0)
    away = tl.where(known, tl.max(tl.abs(w - centre[None, :]), 1), 0.0)
    known = known & (away * tl.sum(known.to(tl.float32), 0) <= 1.001 * tl.sum(away, 0))
    w = tl.where(known[:, None], w - centre[None, :], 0.0)
    largest = tl.max(tl.max(tl.abs(w), 1), 0)
    scale = tl.where(largest > 0.0, largest, 1.0)
    w = w / scale
    variance = tl.sum(w * w, 0)
    axis = _first_at(variance, tl.max(variance, 0))
    for _ in tl.static_range(4):
        along = tl.sum(w * axis[None, :], 1)
        turned = tl.sum(w * along[:, None], 0)
        length = tl.sqrt(tl.sum(turned * turned, 0))
        axis = tl.where(length > 0.0, turned / tl.where(length > 0.0, length, 1.0), axis)
    w = w - tl.sum(w * axis[None, :], 1)[:, None] * axis[None, :]
    width = scale * tl.sqrt(tl.max(tl.sum(w * w, 1), 0))
    tl.store(frames.vectors + 2 * bh * BLOCK_M + k, centre)
    tl.store(frames.vectors + (2 * bh + 1) * BLOCK_M + k, axis)
    unit = tl.where(width > 1e-12, tl.exp2(tl.ceil(tl.log2(tl.maximum(width, 1e-12)))), 1.0)
    tl.store(frames.units + bh, unit)


@triton.jit
def _halves_of(x):
    """Two float16 whose sum is x to 22 bits, or to 2^-24 if that is more."""
    first = x.to(tl.float16)
    return first, (x - first.to(tl.float32)).to(tl.float16)


@triton.jit
def read_size(to, FREQ: tl.constexpr):
    """What `store_size` wrote of receivers."""
    thousands = tl.load(to + 3 * FREQ).to(tl.float32) * 4096.0
    return thousands + tl.load(to + 3 * FREQ + 1).to(tl.float32) + tl.load(to + 3 * FREQ + 2).to(tl.float32)


@triton.jit
def _size_parts(size):
    """Three float16 that are a size: the first counts 4096-fold."""
    thousands = tl.floor(size * (1.0 / 4096.0)).to(tl.float16)
    first, second = _halves_of(size - thousands.to(tl.float32) * 4096.0)
    return thousands, first, second


@triton.jit
def store_size(to, size, inside, FREQ: tl.constexpr):
    """A receiver's size among its operands, which begin at `to`."""
    thousands, first, second = _size_parts(size)
    tl.store(to + 3 * FREQ, thousands, mask=inside)
    tl.store(to + 3 * FREQ + 1, first, mask=inside)
    tl.store(to + 3 * FREQ + 2, second, mask=inside)


class _Counted(NamedTuple):
    """One tile's tokens, counted from a head's centre in its unit."""

    base: Any  # (BLOCK,) pointers to their first coordinates
    coordinate: Any  # from one coordinate to the next
    known: Any  # (BLOCK,) which are there; of others 0 is taken
    frame: Any  # a pointer to the centre and the axis
    inverse: Any  # 1 / unit


@triton.jit
def _coordinates(tokens, k, inside):
    """Their coordinates k, where those are inside; read again as a store wants them, not moved about."""
    w = tl.load(
        tokens.base[:, None] + k[None, :] * tokens.coordinate,
        mask=tokens.known[:, None] & inside[None, :],
        other=0.0,
    )
    centre = tl.load(tokens.frame + k, mask=inside, other=0.0)
    return tl.where(tokens.known[:, None], (w.to(tl.float32) - centre[None, :]) * tokens.inverse, 0.0)


@triton.jit
def _store_operands(
    to, tokens, near, along, size, FREQ: tl.constexpr, BLOCK_M: tl.constexpr, PRODUCT: tl.constexpr,
    RECEIVES: tl.constexpr,
):  # fmt: skip
    """The rows of one tile for the product, PRODUCT columns: what is across the axis in two parts, so that
    with those of the other side first * first, first * second and second * first meet; the own size before
    the other side's ones, or behind them."""
    BLOCK: tl.constexpr = along.shape[0]
    CHUNK: tl.constexpr = min(128, PRODUCT)
    rows = tl.arange(0, BLOCK)
    thousands, high, low = _size_parts(size)
    for chunk in tl.static_range(PRODUCT // CHUNK):
        c = chunk * CHUNK + tl.arange(0, CHUNK)
        k, part, rest = c % FREQ, c // FREQ, c - 3 * FREQ
        axis = tl.load(tokens.frame + BLOCK_M + k)
        w = _coordinates(tokens, k, part < 3) - along[:, None] * axis[None, :]
        w = tl.where(near[:, None] & (part < 3)[None, :], w * -2.0 if RECEIVES else w, 0.0)
        first, second = _halves_of(w)
        w = tl.where((part == (2 if RECEIVES else 1))[None, :], second, first)
        mine, ones = (rest, rest - 3) if RECEIVES else (rest - 3, rest)
        w = tl.where((ones == 0)[None, :], 4096.0, tl.where(((ones == 1) | (ones == 2))[None, :], 1.0, w))
        w = tl.where((mine == 0)[None, :], thousands[:, None], w)
        w = tl.where((mine == 1)[None, :], high[:, None], w)
        w = tl.where((mine == 2)[None, :], low[:, None], w)
        tl.store(to + rows[:, None] * PRODUCT + c[None, :], w.to(tl.float16))


@triton.jit
def _store_drawn(to, tokens, FREQ: tl.constexpr, DRAWN: tl.constexpr):
    """What dL/dD meets: two bfloat16 parts, each in half of the columns."""
    c, rows = tl.arange(0, DRAWN), tl.arange(0, tokens.known.shape[0])
    k = c % (DRAWN // 2)
    w = _coordinates(tokens, k, k < FREQ)
    first = w.to(tl.bfloat16)
    second = (w - first.to(tl.float32)).to(tl.bfloat16)
    w = tl.where((c < DRAWN // 2)[None, :], first, second)
    tl.store(to + rows[:, None] * DRAWN + c[None, :], w)


@triton.jit
def _store_product(
    w, pointers, coordinate, present, radius, nearest, planes, frames, shared, bh, tile, tiles,
    nowhere: tl.constexpr, FREQ: tl.constexpr, BLOCK_M: tl.constexpr, PRODUCT: tl.constexpr,
    DRAWN: tl.constexpr, RECEIVES: tl.constexpr,
):  # fmt: skip
    """What products take of one tile of frequencies w (BLOCK, BLOCK_M), of which those are present; of
    receivers also rho^2 and their nearest sender's D. The frame is the shared head's."""
    BLOCK: tl.constexpr = w.shape[0]
    rows, k = tl.arange(0, BLOCK), tl.arange(0, BLOCK_M)
    frame = frames.vectors + 2 * shared * BLOCK_M
    centre, axis = tl.load(frame + k), tl.load(frame + BLOCK_M + k)
    inverse = 1.0 / tl.load(frames.units + shared)
    missing = tl.max((w != w).to(tl.int32), 1) > 0  # a NaN stays one
    somewhere = present & (missing == 0) & (tl.max(tl.abs(w), 1) < KNOWN)
    w = tl.where((somewhere | missing)[:, None], (w - centre[None, :]) * inverse, 0.0)
    along = tl.sum(w * axis[None, :], 1)
    across = w - along[:, None] * axis[None, :]
    sizes = tl.sum(across * across, 1)
    near = somewhere & (sizes < _MOST_SQUARED)
    # counting from the centre rounds to 2^-24 of the distance, which D has doubled and times rho
    rounded = tl.sum(w * w, 1) * 2.0**-15
    bound = tl.max(tl.where(somewhere, tl.maximum(sizes, rounded), 0.0), 0)
    bound = tl.where(tl.max((somewhere & (near == 0)).to(tl.int32), 0) > 0, float("inf"), bound)
    sizes = tl.where(near | missing, sizes, 0.0)
    token = bh.to(tl.int64) * planes.stride + tile * BLOCK
    tl.store(planes.along + token + rows, tl.where(somewhere | missing, along, nowhere))
    if RECEIVES:
        square = inverse * inverse
        shortest = tl.min(tl.where(somewhere, radius, float("inf")), 0) * square
        bound = shortest * _ERROR - bound
        sizes = sizes - nearest * square
        beyond = tl.max((somewhere & (tl.abs(nearest) * square >= MOST_LARGE)).to(tl.int32), 0)
        bound = tl.where(beyond > 0, float("-inf"), bound)
        sizes = tl.where(tl.abs(sizes) >= MOST_LARGE, 0.0, sizes)
    tl.store(planes.bound + bh.to(tl.int64) * tiles + tile, bound)
    tokens = _Counted(pointers, coordinate, somewhere | missing, frame, inverse)
    to = planes.operands + token * PRODUCT
    _store_operands(to, tokens, near | missing, along, sizes, FREQ, BLOCK_M, PRODUCT, RECEIVES)
    if planes.drawn is not None:
        _store_drawn(planes.drawn + token * DRAWN, tokens, FREQ, DRAWN)


@triton.jit(do_not_specialize=GROWING)
def arrange_kernel(
    x, order, allowed, planes, boxes, frames, law, least, reach, heads, send_heads, tokens, tiles,
    nowhere: tl.constexpr, nobody: tl.constexpr, FREQ: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK: tl.constexpr, PRODUCT: tl.constexpr, DRAWN: tl.constexpr, RECEIVES: tl.constexpr,
):  # fmt: skip
    """One tile of frequencies x into planes, operands and boxes. What is infinite, or past the end, stands
    `nowhere`; a box with a NaN in it is everything, one without a token is empty.

    With an order (B, heads, tokens) int64 the tokens come in it. Those that are not in allowed (B, heads,
    tokens) stand nowhere, too. The numbers, if they are wanted, are the tokens' places in x, `nobody` for
    those that stand nowhere. Of receivers, reach (B H, tiles) is the largest D at which any of a tile can
    lock; with least (B, H, tokens), each one's nearest sender's D, that and the sizes count from there."""
    bh, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    b, h = bh // heads, bh % heads
    rows = tl.arange(0, BLOCK)
    i, k = tile * BLOCK + rows, tl.arange(0, BLOCK_M)
    present = i < tokens
    place = i
    if order is not None:
        place = tl.load(order + bh.to(tl.int64) * tokens + i, mask=present, other=0).to(tl.int32)
    in_call = present
    if allowed is not None:
        heard = head_of(allowed, b, h) + place.to(tl.int64) * allowed.token
        present = present & (tl.load(heard, mask=present, other=0) != 0)
    here = present[:, None] & (k < FREQ)[None, :]
    pointers = head_of(x, b, h) + place.to(tl.int64) * x.token
    w = tl.load(pointers[:, None] + k[None, :] * x.coordinate, mask=here, other=0.0).to(tl.float32)
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
    radius = tl.zeros([BLOCK], tl.float32)
    nearest = tl.zeros([BLOCK], tl.float32)
    if RECEIVES:
        radius = largest_radius(kappa_of(law, b, h, i, tokens), alpha_of(law, h))
        far = radius
        if least is not None:
            nearest = tl.load(least + bh.to(tl.int64) * tokens + place, mask=in_call, other=0.0)
            far = far + tl.where(nearest == nearest, nearest, float("inf"))
        own_tile = bh.to(tl.int64) * tiles + tile
        tl.store(reach + own_tile, tl.max(tl.where(in_call, far, 0.0), 0))
    if planes.operands is not None:
        shared = shared_head(b, h, heads, send_heads)
        w = tl.where((k < FREQ)[None, :], w, 0.0)
        _store_product(
            w, pointers, x.coordinate, present, radius, nearest, planes, frames, shared, bh, tile, tiles,
            nowhere, FREQ, BLOCK_M, PRODUCT, DRAWN, RECEIVES,
        )  # fmt: skip

"""D of a tile of pairs, as differences or as a product of matrices, and how dL/dD meets the frequencies.

As a product (arrange.py writes its operands): frequencies are counted from their head's centre in the head's
unit. What they are along the head's longest axis, where positions are, stays a float32; what is perpendicular
to it is cut into two float16. Then D in squares of the unit is

    (p_i - p_j)^2 + |a_i|^2 + |b_j|^2 - 2 a_i b_j,

the first as differences, all else one product on tensor cores, sizes included. Its error is some 2^-21 of
the squares of a and b; where that is too much for any pair of tiles in a list (lists.py), the program that
walks it takes D as differences.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from syncattn.backends.triton.pointers import numbers_of
from syncattn.backends.triton.products import product

# Where tokens stand that are not there, and what is infinite. No pair of them locks, no square of them
# overflows.
NOWHERE_SEND = tl.constexpr(1e16)
NOWHERE_RECEIVE = tl.constexpr(3e16)
KNOWN = tl.constexpr(1e15)  # what is there is nearer


class Tokens(NamedTuple):
    """Some tokens of one side, with their frequencies as planes."""

    base: Any  # a pointer to the first coordinate of the first of them
    stride: Any  # from one coordinate to the next
    rows: Any  # which from the first on
    first: Any  # its place
    numbers: Any  # pointers.numbers_of


@triton.jit
def own_tokens(planes, bh, first, rows, FREQ: tl.constexpr):
    """Those of a head from the first on."""
    base = planes.base + bh.to(tl.int64) * FREQ * planes.stride + first
    return Tokens(base, planes.stride, rows, first, numbers_of(planes, bh, first + rows))


@triton.jit
def _load_planes(tokens, FREQ: tl.constexpr, BLOCK_M: tl.constexpr):
    """(BLOCK_M, tokens): the coordinates of some tokens, 0 beyond the last coordinate."""
    k = tl.arange(0, BLOCK_M)
    pointers = tokens.base + k[:, None] * tokens.stride + tokens.rows[None, :]
    if FREQ == BLOCK_M:
        return tl.load(pointers)
    return tl.load(pointers, mask=k[:, None] < FREQ, other=0.0)


@triton.jit
def mean_of_near(w, known, AXIS: tl.constexpr):
    """The mean (coordinates,) over the tokens, along this axis of w, that are known and not far from the
    others; 0 of none."""
    OTHER: tl.constexpr = 1 - AXIS
    centre = tl.zeros([w.shape[OTHER]], tl.float32)
    for _ in tl.static_range(2):
        at = tl.expand_dims(known, OTHER)
        number = tl.maximum(tl.sum(known.to(tl.float32), 0), 1.0)
        centre = tl.sum(tl.where(at, w, 0.0), AXIS) / number
        away = tl.where(known, tl.max(tl.abs(w - tl.expand_dims(centre, AXIS)), OTHER), 0.0)
        known = known & (away * number <= 1.001 * tl.sum(away, 0))
    return centre


@triton.jit
def about_centre(tokens, FREQ: tl.constexpr, BLOCK_M: tl.constexpr):
    """(w (BLOCK_M, tokens), centre (BLOCK_M,)): the coordinates counted from their mean, over those that are
    there and finite, and not far from the others."""
    w = _load_planes(tokens, FREQ, BLOCK_M)
    centre = mean_of_near(w, tl.min((tl.abs(w) < KNOWN).to(tl.int32), 0) > 0, 1)
    return w - centre[:, None], centre


@triton.jit
def direct_detuning(left, right, FREQ: tl.constexpr):
    """D (L, R), differences first, squares after, on the CUDA cores: as exact as the differences are."""
    squared = tl.zeros([left.rows.shape[0], right.rows.shape[0]], tl.float32)
    for k in range(FREQ):  # not unrolled: the loads of all coordinates at once would take all registers
        a = tl.load(left.base + k * left.stride + left.rows)
        b = tl.load(right.base + k * right.stride + right.rows)
        difference = a[:, None] - b[None, :]
        squared += difference * difference
    return squared


@triton.jit
def _upper_half(x):
    """(float32 x without the lower half of its bits, the upper half as bfloat16). Conversions would take the
    pipe of the special functions."""
    bits = x.to(tl.int32, bitcast=True)
    upper = (bits >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    return (bits & -65536).to(tl.float32, bitcast=True), upper


@triton.jit
def _three_parts(x):
    """Three bfloat16 whose sum is exactly the float32 x: 8 bits each. (A NaN is one of the second part.)"""
    first, first_part = _upper_half(x)
    rest = x - first
    second, second_part = _upper_half(rest)
    return first_part, second_part, _upper_half(rest - second)[1]


@triton.jit
def operands(planes, bh, first, rows, chunk, TILE: tl.constexpr):
    """(tokens, CHUNK) float16: a part of what arrange.py wrote for the product of some tokens."""
    start = planes.operands + (bh.to(tl.int64) * planes.stride + first) * TILE.PRODUCT
    columns = chunk * TILE.CHUNK + tl.arange(0, TILE.CHUNK)
    return tl.load(start + rows[:, None] * TILE.PRODUCT + columns[None, :])


@triton.jit
def places(planes, bh, first, rows):
    """(tokens,): where some tokens are along the axis."""
    return tl.load(planes.along + bh.to(tl.int64) * planes.stride + first + rows)


@triton.jit
def product_detuning(a, left, left_bh, own, rows, right, right_bh, first, columns, TILE: tl.constexpr):
    """D (L, R) but for the axis, of the left tokens from own on, whose first chunk of operands is a, and the
    right ones from first on."""
    b = operands(right, right_bh, first, columns, 0, TILE)
    # From nothing: if others define a product's accumulators, the assembler waits for every product.
    squared = product(a, tl.trans(b), tl.zeros([rows.shape[0], columns.shape[0]], tl.float32))
    for chunk in tl.static_range(1, TILE.PRODUCT // TILE.CHUNK):
        a = operands(left, left_bh, own, rows, chunk, TILE)
        b = operands(right, right_bh, first, columns, chunk, TILE)
        squared = product(a, tl.trans(b), squared)
    return squared


@triton.jit
def along_axis(apart, squared, NEAREST: tl.constexpr):
    """D, of what is across the axis and how far apart tokens are along it. In the nearest frame one that may
    not be heard can be nearer than the nearest, which has to stay finite."""
    squared = tl.fma(apart, apart, squared)  # as a sum it would be what the product's accumulators begin with
    if NEAREST:
        squared = tl.maximum(squared, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return squared


@triton.jit
def beyond_nearest(squared, nearest):
    """D counted from the row's nearest sender."""
    return tl.maximum(squared - nearest, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def zero_at_nearest(squared, nearest, is_nearest):
    """It is exactly 0 there, however another kernel rounds; a NaN stays."""
    return tl.where(is_nearest, nearest * 0.0, squared)


@triton.jit
def drawn_tokens(planes, bh, first, rows, TILE: tl.constexpr):
    """(tokens, DRAWN) bfloat16: what arrange.py wrote of some tokens for `drawn_product`."""
    start = planes.drawn + (bh.to(tl.int64) * planes.stride + first) * TILE.DRAWN
    return tl.load(start + rows[:, None] * TILE.DRAWN + tl.arange(0, TILE.DRAWN)[None, :])


@triton.jit
def joined(drawn, DRAWN: tl.constexpr):
    """(L, coordinates) float32: the halves of what is drawn, or of a sum of products with it, added up."""
    return tl.sum(tl.reshape(drawn.to(tl.float32), [drawn.shape[0], 2, DRAWN // 2]), 1)


@triton.jit
def drawn_product(dsquared, w, acc, SPLIT: tl.constexpr):
    """acc (L, DRAWN) + dD (L, R) w (R, DRAWN): dD in one bfloat16 part or two."""
    first = dsquared.to(tl.bfloat16)
    if SPLIT == 2:
        acc = product((dsquared - first.to(tl.float32)).to(tl.bfloat16), w, acc)
    return product(first, w, acc)


@triton.jit
def drawn_directly(dsquared, right, centre, acc, SPLIT: tl.constexpr, TILE: tl.constexpr):
    """acc (L, BLOCK_M) + dD (L, R) w^T of the right tokens' planes, counted from the left ones' centre: dD in
    one bfloat16 part, two or three. With three, sums over many tiles are taken outside of the tensor cores,
    as in `value_product`."""
    w = _load_planes(right, TILE.FREQ, TILE.BLOCK_M) - centre[:, None]
    w_first, w_second, w_third = _three_parts(w)
    first = dsquared.to(tl.bfloat16)
    if SPLIT == 3:
        rest = dsquared - first.to(tl.float32)
        second = rest.to(tl.bfloat16)
        third = (rest - second.to(tl.float32)).to(tl.bfloat16)
        drawn = product(first, tl.trans(w_third), tl.zeros([first.shape[0], w.shape[0]], tl.float32))
        drawn = product(third, tl.trans(w_first), drawn)
        drawn = product(second, tl.trans(w_second), drawn)
        drawn = product(first, tl.trans(w_second), drawn)
        drawn = product(second, tl.trans(w_first), drawn)
        return acc + product(first, tl.trans(w_first), drawn)
    else:
        if SPLIT == 2:
            acc = product((dsquared - first.to(tl.float32)).to(tl.bfloat16), tl.trans(w_first), acc)
        acc = product(first, tl.trans(w_third), acc)
        acc = product(first, tl.trans(w_second), acc)
        return product(first, tl.trans(w_first), acc)

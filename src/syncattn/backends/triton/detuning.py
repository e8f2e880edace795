"""D of a tile of pairs, as differences or as a product of matrices, and how dL/dD meets the frequencies."""

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


class Tokens(NamedTuple):
    """Some tokens of one side, with their frequencies as planes."""

    base: Any  # a pointer to the first coordinate of the first of them
    stride: Any  # from one coordinate to the next
    rows: Any  # which from the first on
    first: Any  # its place
    numbers: Any  # pointers.numbers_of


class Operands(NamedTuple):
    """The same as `gram_detuning` takes them, on the left or on the right."""

    first: Any  # three bfloat16 parts: on the left of -2 w, transposed
    second: Any
    third: Any
    sizes: Any  # |w|^2


@triton.jit
def own_tokens(planes, bh, first, rows, FREQ: tl.constexpr):
    """Those of a head from the first on."""
    base = planes.base + bh.to(tl.int64) * FREQ * planes.stride + first
    return Tokens(base, planes.stride, rows, first, numbers_of(planes, bh, first + rows))


@triton.jit
def load_planes(tokens, FREQ: tl.constexpr, BLOCK_M: tl.constexpr, PACKED: tl.constexpr):
    """(BLOCK_M, tokens): the coordinates of some tokens, 0 beyond the last coordinate. PACKED: twice, in each
    half of the rows once."""
    HALF: tl.constexpr = BLOCK_M // 2 if PACKED else BLOCK_M
    k = tl.arange(0, BLOCK_M) % HALF
    pointers = tokens.base + k[:, None] * tokens.stride + tokens.rows[None, :]
    if FREQ == HALF:
        return tl.load(pointers)
    return tl.load(pointers, mask=k[:, None] < FREQ, other=0.0)


@triton.jit
def about_centre(tokens, FREQ: tl.constexpr, BLOCK_M: tl.constexpr, PACKED: tl.constexpr):
    """(w (BLOCK_M, tokens), centre (BLOCK_M,)): the coordinates counted from their mean, over those that are
    there and finite."""
    w = load_planes(tokens, FREQ, BLOCK_M, PACKED)
    known = tl.abs(w) < 1e15
    number = tl.maximum(tl.sum(known.to(tl.float32), 1), 1.0)
    centre = tl.sum(tl.where(known, w, 0.0), 1) / number
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
def three_parts(x):
    """Three bfloat16 whose sum is exactly the float32 x: 8 bits each. (A NaN is one of the second part.)"""
    first, first_part = _upper_half(x)
    rest = x - first
    second, second_part = _upper_half(rest)
    return first_part, second_part, _upper_half(rest - second)[1]


@triton.jit
def _halves(first, second):
    """The upper half of the rows of one (BLOCK_M, R), the lower of the other."""
    BLOCK_M: tl.constexpr = first.shape[0]
    return tl.where((tl.arange(0, BLOCK_M) < BLOCK_M // 2)[:, None], first, second)


@triton.jit
def _sizes_of(w, PACKED: tl.constexpr):
    return tl.sum(w * w, 0) * (0.5 if PACKED else 1.0)


@triton.jit
def left_operands(tokens, TILE: tl.constexpr):
    """(Operands of the own tile, its centre)."""
    w, centre = about_centre(tokens, TILE.FREQ, TILE.BLOCK_M, TILE.PACKED)
    first, second, third = three_parts(w * -2.0)
    if TILE.PACKED:
        third = _halves(third, first)
    sizes = _sizes_of(w, TILE.PACKED)[:, None]
    return Operands(tl.trans(first), tl.trans(second), tl.trans(third), sizes), centre


@triton.jit
def right_operands(tokens, centre, TILE: tl.constexpr):
    """Of tokens that are walked, counted from the own tile's centre. PACKED: first and second part in one,
    first and third in one."""
    w = load_planes(tokens, TILE.FREQ, TILE.BLOCK_M, TILE.PACKED) - centre[:, None]
    sizes = _sizes_of(w, TILE.PACKED)[None, :]
    first, second, third = three_parts(w)
    if TILE.PACKED:
        return Operands(_halves(first, second), _halves(first, third), third, sizes)
    return Operands(first, second, third, sizes)


@triton.jit
def from_nearest(operands, squared):
    """Of receivers: their smallest D is taken from their sizes, which costs nothing a pair."""
    return Operands(operands.first, operands.second, operands.third, operands.sizes - squared)


@triton.jit
def gram_detuning(a, b, PACKED: tl.constexpr):
    """D (L, R) = sizes - 2 w^l w^r, on tensor cores: of the products of three bfloat16 parts with three those
    that float32 can hold, six, or when PACKED three with twice as long sums. Both sides are counted from the
    mean of the left tokens, as otherwise it cancels: the error is some 2^-21 of their squared spread. What is
    subtracted from the sizes is from D, which stays at least 0."""
    squared = a.sizes + b.sizes
    if PACKED:
        squared = product(a.third, b.second, squared)
        squared = product(a.second, b.first, squared)
        squared = product(a.first, b.first, squared)
    else:
        squared = product(a.first, b.third, squared)
        squared = product(a.third, b.first, squared)
        squared = product(a.second, b.second, squared)
        squared = product(a.first, b.second, squared)
        squared = product(a.second, b.first, squared)
        squared = product(a.first, b.first, squared)
    return tl.maximum(squared, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def beyond_nearest(squared, nearest):
    """D counted from the row's nearest sender."""
    return tl.maximum(squared - nearest, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def zero_at_nearest(squared, nearest, is_nearest):
    """It is exactly 0 there, however another kernel rounds; a NaN stays."""
    return tl.where(is_nearest, nearest * 0.0, squared)


@triton.jit
def drawn_product(dsquared, b, acc, SPLIT: tl.constexpr, PACKED: tl.constexpr):
    """acc (L, BLOCK_M) + dD (L, R) w^T: dD in one bfloat16 part, two or three; `unpacked` ends the sum. With
    three, sums over many tiles are taken outside of the tensor cores, as in `value_product`."""
    first = dsquared.to(tl.bfloat16)
    if SPLIT == 3:
        rest = dsquared - first.to(tl.float32)
        second = rest.to(tl.bfloat16)
        third = (rest - second.to(tl.float32)).to(tl.bfloat16)
        drawn = product(first, tl.trans(b.third), tl.zeros([first.shape[0], b.first.shape[0]], tl.float32))
        drawn = product(third, tl.trans(b.first), drawn)
        drawn = product(second, tl.trans(b.second), drawn)
        drawn = product(first, tl.trans(b.second), drawn)
        drawn = product(second, tl.trans(b.first), drawn)
        return acc + product(first, tl.trans(b.first), drawn)
    else:
        if SPLIT == 2:
            second = (dsquared - first.to(tl.float32)).to(tl.bfloat16)
            acc = product(second, tl.trans(b.first), acc)
        if not PACKED:
            acc = product(first, tl.trans(b.second), acc)
        return product(first, tl.trans(b.first), acc)


@triton.jit
def unpacked(drawn, PACKED: tl.constexpr):
    """(L, coordinates): the halves of a sum of packed products added up."""
    HALVES: tl.constexpr = 2 if PACKED else 1
    return tl.sum(tl.reshape(drawn, [drawn.shape[0], HALVES, drawn.shape[1] // HALVES]), 1)

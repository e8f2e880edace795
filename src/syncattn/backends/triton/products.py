"""Products of matrices on tensor cores, and sums of rows by them."""

from __future__ import annotations

import triton
import triton.language as tl
from triton import knobs

# The interpreter multiplies the bit patterns of bfloat16 (triton#11584): there products are taken in float32.
_WIDE = tl.constexpr(knobs.runtime.interpret)


@triton.jit
def product(a, b, acc):
    """acc + a @ b of bfloat16, accumulated in float32."""
    if _WIDE:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc)


@triton.jit
def value_product(a, b, acc, PRECISION: tl.constexpr):
    """acc + a @ b in the dtype of the values; the precision is that of float32, whose sums over many tiles
    are taken outside of the tensor cores, which would cut off what does not fit."""
    if _WIDE:
        a, b = a.to(tl.float32), b.to(tl.float32)
    if a.dtype == tl.float32:
        acc += tl.dot(a, b, input_precision=PRECISION)
    else:
        acc = tl.dot(a, b, acc)
    return acc


@triton.jit
def no_sums(L: tl.constexpr, BY_PRODUCT: tl.constexpr):
    """The row sums of no pairs, for `add_sums` and `row_sums`: (L, 16), all columns alike, or (L,)."""
    if BY_PRODUCT:
        return tl.zeros([L, 16], tl.float32)
    else:
        return tl.zeros([L], tl.float32)


@triton.jit
def add_sums(x, sums, BY_PRODUCT: tl.constexpr):
    """Add the row sums of x (L, R). BY_PRODUCT: with ones, on the tensor cores, of x rounded to bfloat16, so
    that what is summed is exactly what is mixed."""
    if BY_PRODUCT:
        ones = tl.full([x.shape[1], 16], 1.0, tl.float32).to(tl.bfloat16)
        return product(x.to(tl.bfloat16), ones, sums)
    else:
        return sums + tl.sum(x, 1)


@triton.jit
def row_sums(sums, BY_PRODUCT: tl.constexpr):
    """(L,)."""
    if BY_PRODUCT:
        return tl.sum(sums, 1) / 16
    else:
        return sums

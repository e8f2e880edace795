"""What all kernels do with a tile of pairs: D, F, the weight and its slope, who may attend, dropout.

A tile is (L, R): the program's own tokens on the left, the tokens that it walks on the right. The forward has
receivers on the left, the backward of the senders has senders there; D is the same from both sides.
Frequencies come as planes: (heads, m, tokens rounded up) float32, written by arrange.py, so that one
coordinate of consecutive tokens is one coalesced load. Tokens past the end stand where nothing locks to
them, which spares every tile its test of the bounds.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton import knobs

# The interpreter multiplies the bit patterns of bfloat16 (triton#11584): there products are taken in float32.
_WIDE = tl.constexpr(knobs.runtime.interpret)
# Where tokens stand that are not there, and what is infinite. No pair of them locks, no square of them
# overflows.
NOWHERE_SEND = tl.constexpr(1e16)
NOWHERE_RECEIVE = tl.constexpr(3e16)

# Arguments of the kernels that grow with a text: kernels are not compiled again for each kind of number (1, a
# multiple of 16) that they can be. What loads of several numbers at a time depend on is not among them.
GROWING = [
    "queries", "keys", "tokens", "rows", "columns", "tiles", "query_tiles", "key_tiles", "own_tiles",
    "other_tiles", "row_tiles", "column_tiles", "width", "offset", "parts", "part_tiles", "range_number",
]  # fmt: skip


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
def load_planes(base, stride, tokens, FREQ: tl.constexpr, BLOCK_M: tl.constexpr, PACKED: tl.constexpr):
    """(BLOCK_M, tokens): the coordinates of some tokens, 0 beyond the last coordinate. PACKED: twice, in each
    half of the rows once."""
    HALF: tl.constexpr = BLOCK_M // 2 if PACKED else BLOCK_M
    k = tl.arange(0, BLOCK_M) % HALF
    pointers = base + k[:, None] * stride + tokens[None, :]
    if FREQ == HALF:
        return tl.load(pointers)
    return tl.load(pointers, mask=k[:, None] < FREQ, other=0.0)


@triton.jit
def list_of(entries, width, counts, own):
    """The list of an own tile (lists.py): (its entries, the tiles to walk, log2 of the tiles of an entry)."""
    return entries + own.to(tl.int64) * width, tl.load(counts + 2 * own), tl.load(counts + 2 * own + 1)


@triton.jit
def first_of(entries, shift, step, TILE: tl.constexpr, WALK: tl.constexpr, LISTED: tl.constexpr):
    """The first token of a step of the walk: tiles are walked in pieces of WALK tokens, and an entry of the
    list is 2^shift tiles."""
    tile = step // (TILE // WALK)
    if LISTED:
        tile = (tl.load(entries + (tile >> shift)) << shift) + (tile & ((1 << shift) - 1))
    return tile * TILE + step % (TILE // WALK) * WALK


@triton.jit
def numbers_of(numbers, tokens, NUMBERED: tl.constexpr):
    """What the tokens at these places are called in the call itself: their places, but where the call is
    sorted; negative for those that stand nowhere, which only NUMBERED kernels are told."""
    if NUMBERED:
        return tl.load(numbers + tokens)
    return tokens


@triton.jit
def direct_detuning(
    left_base, left_stride, left_tokens, right_base, right_stride, right_tokens, FREQ: tl.constexpr
):
    """D (L, R), differences first, squares after, on the CUDA cores: as exact as the differences are."""
    squared = tl.zeros([left_tokens.shape[0], right_tokens.shape[0]], tl.float32)
    for k in range(FREQ):  # not unrolled: the loads of all coordinates at once would take all registers
        a = tl.load(left_base + k * left_stride + left_tokens)
        b = tl.load(right_base + k * right_stride + right_tokens)
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
def halves(first, second):
    """The upper half of the rows of one (BLOCK_M, R), the lower of the other."""
    BLOCK_M: tl.constexpr = first.shape[0]
    return tl.where((tl.arange(0, BLOCK_M) < BLOCK_M // 2)[:, None], first, second)


@triton.jit
def left_operands(left, PACKED: tl.constexpr):
    """-2 w (L, BLOCK_M) as the three factors of `gram_detuning`'s products, from w (BLOCK_M, L)."""
    first, second, third = three_parts(left * -2.0)
    if PACKED:
        third = halves(third, first)
    return tl.trans(first), tl.trans(second), tl.trans(third)


@triton.jit
def right_operands(right, PACKED: tl.constexpr):
    """The other factors (BLOCK_M, R). PACKED: first and second part in one, first and third in one."""
    first, second, third = three_parts(right)
    if PACKED:
        return halves(first, second), halves(first, third), third
    return first, second, third


@triton.jit
def sizes_of(w, PACKED: tl.constexpr):
    """|w|^2 of some tokens (BLOCK_M, tokens)."""
    return tl.sum(w * w, 0) * (0.5 if PACKED else 1.0)


@triton.jit
def gram_detuning(sizes, a1, a2, a3, b1, b2, b3, PACKED: tl.constexpr):
    """D (L, R) = sizes - 2 w^l w^r, on tensor cores: of the products of three bfloat16 parts with three those
    that float32 can hold, six, or when PACKED three with twice as long sums. Both sides are counted from the
    mean of the left tokens, as otherwise it cancels: the error is some 2^-21 of their squared spread. What is
    subtracted from the sizes is from D, which stays at least 0."""
    if PACKED:
        squared = product(a3, b2, sizes)
        squared = product(a2, b1, squared)
        squared = product(a1, b1, squared)
    else:
        squared = product(a1, b3, sizes)
        squared = product(a3, b1, squared)
        squared = product(a2, b2, squared)
        squared = product(a1, b2, squared)
        squared = product(a2, b1, squared)
        squared = product(a1, b1, squared)
    return tl.maximum(squared, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def drawn_product(dsquared, b1, b2, b3, acc, SPLIT: tl.constexpr, PACKED: tl.constexpr):
    """acc (L, BLOCK_M) + dD (L, R) w^T: dD in one bfloat16 part, two or three; `unpacked` ends the sum. With
    three, sums over many tiles are taken outside of the tensor cores, as in `value_product`."""
    first = dsquared.to(tl.bfloat16)
    if SPLIT == 3:
        rest = dsquared - first.to(tl.float32)
        second = rest.to(tl.bfloat16)
        third = (rest - second.to(tl.float32)).to(tl.bfloat16)
        drawn = product(first, tl.trans(b3), tl.zeros([first.shape[0], b1.shape[0]], tl.float32))
        drawn = product(third, tl.trans(b1), drawn)
        drawn = product(second, tl.trans(b2), drawn)
        drawn = product(first, tl.trans(b2), drawn)
        drawn = product(second, tl.trans(b1), drawn)
        return acc + product(first, tl.trans(b1), drawn)
    else:
        if SPLIT == 2:
            second = (dsquared - first.to(tl.float32)).to(tl.bfloat16)
            acc = product(second, tl.trans(b1), acc)
        if not PACKED:
            acc = product(first, tl.trans(b2), acc)
        return product(first, tl.trans(b1), acc)


@triton.jit
def unpacked(drawn, PACKED: tl.constexpr):
    """(L, coordinates): the halves of a sum of packed products added up."""
    HALVES: tl.constexpr = 2 if PACKED else 1
    return tl.sum(tl.reshape(drawn, [drawn.shape[0], HALVES, drawn.shape[1] // HALVES]), 1)


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


@triton.jit
def meet(first, number, other_first, other_number):
    """Whether [first, first + number) and [other_first, ...) overlap."""
    return (first < other_first + other_number) & (other_first < first + number)


@triton.jit
def beyond_nearest(squared, base):
    """D counted from the row's nearest sender."""
    return tl.maximum(squared - base, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def zero_at_nearest(squared, base, is_nearest):
    """It is exactly 0 there, however another kernel rounds; a NaN stays."""
    return tl.where(is_nearest, base * 0.0, squared)


@triton.jit
def weight_of(margin, POWER: tl.constexpr, HAS_EDGE: tl.constexpr, edge):
    """W from F: exactly 0 where not locked; a NaN stays."""
    locked = tl.maximum(margin, 0.0, propagate_nan=tl.PropagateNan.ALL)
    if HAS_EDGE:
        sync = tl.where(locked == 0.0, 0.0, tl.sqrt(locked + edge * edge) - edge)
        return sync * sync if POWER == 2 else sync
    else:
        return locked if POWER == 2 else tl.sqrt(locked)


@triton.jit
def through_weight(flow, margin, POWER: tl.constexpr, HAS_EDGE: tl.constexpr, edge):
    """dL/dF from dL/dW: exactly 0 where not locked; a NaN stays. One reciprocal root in place of a root and a
    division; of what is too small for a normal number, which has no finite one, the smallest's is taken."""
    if HAS_EDGE:
        shifted = tl.maximum(margin, 0.0) + edge * edge
        inverse = tl.rsqrt(tl.maximum(shifted, 1.1754944e-38))
        flow = flow * inverse
        if POWER == 2:
            flow = flow * (shifted * inverse - edge)
        else:
            flow = flow * 0.5
    elif POWER == 1:
        flow = flow * (0.5 * tl.rsqrt(tl.maximum(margin, 1.1754944e-38)))
    return tl.where(margin <= 0.0, 0.0, flow)


@triton.jit
def allowed_pairs(
    allowed, i, j, offset, mask_base, mask_row, mask_column, queries, keys,
    CAUSAL: tl.constexpr, SELF: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """Which pairs of receivers i and senders j, broadcast against each other, may attend. `allowed` is what
    is known already, of the tile's shape."""
    if CAUSAL:
        allowed = allowed & (j <= i + offset)
    if not SELF:
        allowed = allowed & (j != i + offset)
    if MASK:
        inside = (i < queries) & (j < keys)
        pointers = mask_base + i.to(tl.int64) * mask_row + j.to(tl.int64) * mask_column
        allowed = allowed & (tl.load(pointers, mask=inside, other=0) != 0)
    return allowed


@triton.jit
def _mix(x):
    """The 32-bit finaliser of backends/dropout.py, in uint32."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def row_words(seed, rows):
    """What a row, by its number in the whole call (int64), gives to the hash of each of its pairs."""
    word = _mix((rows ^ seed).to(tl.uint32))
    return _mix(word ^ ((rows >> 32) ^ (seed >> 32)).to(tl.uint32))


@triton.jit
def kept_pairs(words, columns, threshold):
    """Which pairs survive dropout: bit for bit backends/dropout.py's `keep_mask`."""
    return _mix(words + columns.to(tl.uint32) * 0x9E3779B9) >= threshold.to(tl.uint32)


@triton.jit
def largest_radius(coupling, bandwidth):
    """An upper bound of rho^2 = W(2 alpha kappa^2) / (2 alpha), by Newton's iteration for w e^w = c from the
    right, where each step stays on the right; infinite where anything is NaN."""
    log_c = tl.log(bandwidth) + 2.0 * tl.log(coupling) + 0.6931472
    w = tl.where(log_c < 20.0, tl.log(1.0 + tl.exp(tl.minimum(log_c, 20.0))), log_c)
    for _ in tl.static_range(4):
        w = w - (w - tl.exp(log_c - w)) / (1.0 + w)
    radius = tl.where(log_c < -4.0, coupling * coupling, 1.0001 * w / (2.0 * bandwidth))
    unknown = coupling * 0.0 + bandwidth * 0.0
    return tl.where(unknown == 0.0, radius, float("inf"))


@triton.jit
def own_tile(base, stride, tokens, FREQ: tl.constexpr, BLOCK_M: tl.constexpr, PACKED: tl.constexpr):
    """(left (BLOCK_M, tokens), centre (BLOCK_M,)): the own tokens' coordinates counted from their mean, over
    those that are there and finite."""
    left = load_planes(base, stride, tokens, FREQ, BLOCK_M, PACKED)
    known = tl.abs(left) < 1e15
    number = tl.maximum(tl.sum(known.to(tl.float32), 1), 1.0)
    centre = tl.sum(tl.where(known, left, 0.0), 1) / number
    return left - centre[:, None], centre

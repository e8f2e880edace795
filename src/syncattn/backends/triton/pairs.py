"""What all kernels do with a tile of pairs besides D: who may attend, F, dropout.

A tile is (L, R): the program's own tokens on the left, the tokens that it walks on the right. The forward has
receivers on the left, the backward of the senders has senders there; D is the same from both sides.
Frequencies come as planes: (heads, m, tokens rounded up) float32, written by arrange.py, so that one
coordinate of consecutive tokens is one coalesced load. Tokens past the end stand where nothing locks to
them, which spares every tile its test of the bounds.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from syncattn.backends.triton.margin import margin_of
from syncattn.backends.triton.pointers import head_of, meet


class Masks(NamedTuple):
    """Who may attend to whom in a head."""

    by_pair: Any  # groups.Mask or None
    by_tile: Any
    texts: Any  # groups.Texts or None
    b: Any
    h: Any
    queries: Any
    keys: Any


@triton.jit
def zero_at_oneself(x, left, right, FORM: tl.constexpr):
    """D, or dL/dD, of a tile of pairs is exactly 0 where both are the same token."""
    if FORM.SYMMETRIC:
        if FORM.SORTED or meet(left.first, left.numbers.numel, right.first, right.numbers.numel):
            x = tl.where(left.numbers[:, None] == right.numbers[None, :], 0.0, x)
    return x


@triton.jit
def narrow_to_allowed(allowed, i, j, masks, FORM: tl.constexpr):
    """Which pairs of receivers i and senders j, broadcast against each other, may attend. `allowed` is what
    is known already, of the tile's shape."""
    offset = masks.keys - masks.queries
    if FORM.CAUSAL:
        allowed = allowed & (j <= i + offset)
    if not FORM.SELF:
        allowed = allowed & (j != i + offset)
    if masks.texts is not None:
        ids = masks.texts.ids + masks.b.to(tl.int64) * masks.texts.batch
        own = tl.load(ids + i + offset, mask=(i >= 0) & (i < masks.queries), other=-1)
        other = tl.load(ids + j, mask=(j >= 0) & (j < masks.keys), other=-1)
        allowed = allowed & (own >= 0) & (own == other)
    if masks.by_pair is not None:
        inside = (i < masks.queries) & (j < masks.keys)
        pointers = head_of(masks.by_pair, masks.b, masks.h)
        pointers += i.to(tl.int64) * masks.by_pair.row + j.to(tl.int64) * masks.by_pair.column
        allowed = allowed & (tl.load(pointers, mask=inside, other=0) != 0)
    return allowed


@triton.jit
def tile_of_mask(masks, row_tile, column_tile):
    """A pointer to what the mask says of a tile of pairs."""
    row = head_of(masks.by_tile, masks.b, masks.h) + row_tile.to(tl.int64) * masks.by_tile.row
    return row + column_tile.to(tl.int64) * masks.by_tile.column


@triton.jit
def texts_of(texts, b, row_tile, column_tile):
    """(whether some pair of two tiles is of one text, whether all are), by their smallest and largest ids."""
    own = texts.receivers + b.to(tl.int64) * texts.of_receivers + 2 * row_tile.to(tl.int64)
    other = texts.senders + b.to(tl.int64) * texts.of_senders + 2 * column_tile.to(tl.int64)
    least, most = tl.load(own), tl.load(own + 1)
    other_least, other_most = tl.load(other), tl.load(other + 1)
    some = (least <= other_most) & (other_least <= most) & (tl.minimum(most, other_most) >= 0)
    return some, some & (least == other_most) & (other_least == most)


@triton.jit
def is_partly_masked(masks, row_tile, column_tile):
    """Whether only some pairs of a tile of pairs may attend."""
    partly = masks.by_pair is not None
    if masks.by_tile is not None:
        partly = tl.load(tile_of_mask(masks, row_tile, column_tile)) != 2
    if masks.texts is not None:
        _, whole = texts_of(masks.texts, masks.b, row_tile, column_tile)
        partly = partly | (whole == 0)
    return partly


@triton.jit
def margin_of_tile(
    squared, row_term, head_term, left, right, masks, SENDERS_LEFT: tl.constexpr, TILE: tl.constexpr,
    FORM: tl.constexpr,
):  # fmt: skip
    """(F, J^2) of a tile of pairs; F is negative where a pair may not attend. What only some tiles need is
    behind a branch that the whole program takes."""
    margin, decay_square = margin_of(squared, row_term, head_term)
    if FORM.CAUSAL or not FORM.SELF or masks.by_pair is not None or masks.texts is not None:
        i, j = (right, left) if SENDERS_LEFT else (left, right)
        partly = is_partly_masked(masks, i.first // TILE.QUERIES, j.first // TILE.KEYS)
        own = i.first + masks.keys - masks.queries
        crossed = FORM.SORTED
        if FORM.CAUSAL:
            crossed = own < j.first + j.numbers.numel
        elif not FORM.SELF and not FORM.SORTED:
            crossed = meet(j.first, j.numbers.numel, own, i.numbers.numel)
        if partly or crossed:
            allowed = tl.full(squared.shape, True, tl.int1)
            receivers = i.numbers[None, :] if SENDERS_LEFT else i.numbers[:, None]
            senders = j.numbers[:, None] if SENDERS_LEFT else j.numbers[None, :]
            allowed = narrow_to_allowed(allowed, receivers, senders, masks, FORM)
            margin = tl.where(allowed, margin, -1.0)
    return margin, decay_square


@triton.jit
def nearest_of_rows(nearest, rows, here):
    """Of some receivers, by their numbers in all: the nearest sender's D and place; of all of them the first
    such place, and how many up to the last."""
    least = tl.load(nearest.squared + rows, mask=here, other=0.0)
    sender = tl.load(nearest.sender + rows, mask=here, other=-1)
    first = tl.min(tl.where(sender < 0, 2147483647, sender), 0)
    return least, sender, first, tl.max(sender, 0) - first + 1


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

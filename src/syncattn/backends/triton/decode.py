"""A few receivers before many senders, as in decoding from a cache: the senders are split over programs.

Each program sums W v and W over its part; the strengths need no maximum and no rescaling, so parts are only
added up. The cache is read as it lies. Of a tile of senders to which the receiver does not lock only the
frequencies are read, not the values. D is a sum of squared differences: at one receiver there is no work for
tensor cores.
"""

from __future__ import annotations

import triton
import triton.language as tl

from syncattn.backends.triton.detuning import (
    NOWHERE_RECEIVE,
    NOWHERE_SEND,
    beyond_nearest,
    zero_at_nearest,
)
from syncattn.backends.triton.groups import GROWING
from syncattn.backends.triton.margin import (
    alpha_of,
    head_term_of,
    kappa_of,
    margin_of,
    row_term_of,
    strength_of,
)
from syncattn.backends.triton.pairs import Masks, kept_pairs, narrow_to_allowed, row_words
from syncattn.backends.triton.pointers import head_of


@triton.jit
def _receiver(receive, b, h, i, TILE: tl.constexpr):
    """Its frequency, (BLOCK_M,)."""
    k = tl.arange(0, TILE.BLOCK_M)
    pointers = head_of(receive, b, h) + i.to(tl.int64) * receive.token + k * receive.coordinate
    w = tl.load(pointers, mask=k < TILE.FREQ, other=0.0).to(tl.float32)
    return tl.where(tl.abs(w) > NOWHERE_RECEIVE, NOWHERE_RECEIVE, w)


@triton.jit
def _squared(w, send, senders, first, j, keys, TILE: tl.constexpr):
    """(KEYS,): D of one receiver w (BLOCK_M,) and the senders from first on, whose places are j; a head's
    senders begin at the pointer."""
    k = tl.arange(0, TILE.BLOCK_M)
    pointers = senders + tl.cast(first, tl.int64) * send.token + (j - first)[:, None] * send.token
    inside = (j < keys)[:, None] & (k < TILE.FREQ)[None, :]
    s = tl.load(pointers + k[None, :] * send.coordinate, mask=inside, other=0.0).to(tl.float32)
    difference = tl.where(tl.abs(s) > NOWHERE_SEND, NOWHERE_SEND, s) - w[None, :]
    return tl.sum(difference * difference, 1)


@triton.jit(do_not_specialize=GROWING)
def nearest_part_kernel(
    receive, send, mask, texts, nearest_of_part, heads, queries, keys, parts, part_tiles,
    TILE: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    """The smallest allowed D of one receiver in one part of the senders, and its earliest place: (rows,
    parts); infinite and -1 where nobody is allowed."""
    row, part = tl.program_id(0), tl.program_id(1)
    bh, i = row // queries, row % queries
    b, h = bh // heads.receive, bh % heads.receive
    masks = Masks(mask, None, texts, b, h, queries, keys)
    w = _receiver(receive, b, h, i, TILE)
    senders = head_of(send, b, h // (heads.receive // heads.send))
    best = float("inf")
    found = -1
    for step in range(part_tiles):
        first = (part * part_tiles + step) * TILE.KEYS
        j = first + tl.arange(0, TILE.KEYS)
        squared = _squared(w, send, senders, first, j, keys, TILE)
        allowed = narrow_to_allowed(j < keys, i + 0 * j, j, masks, FORM)
        squared = tl.where(squared == squared, squared, -1.0)
        squared = tl.where(allowed, squared, float("inf"))
        least = tl.min(squared, 0)
        place = tl.min(tl.where(squared == least, j, 2147483647), 0)
        found = tl.where(least < best, place, found)
        best = tl.minimum(least, best)
    tl.store(nearest_of_part.squared + row * parts + part, best)
    tl.store(nearest_of_part.sender + row * parts + part, found)


@triton.jit
def _nearest_of(nearest_of_part, row, parts, PARTS: tl.constexpr):
    """(D, place) of a row's nearest sender, from those of the parts; 0 and -1 where nobody is allowed."""
    p = tl.arange(0, PARTS)
    least = tl.load(nearest_of_part.squared + row * parts + p, mask=p < parts, other=float("inf"))
    place = tl.load(nearest_of_part.sender + row * parts + p, mask=p < parts, other=-1)
    squared = tl.min(least, 0)
    sender = tl.min(tl.where((least == squared) & (place >= 0), place, 2147483647), 0)
    squared = tl.where(sender == 2147483647, 0.0, tl.where(squared < 0.0, float("nan"), squared))
    return squared, tl.where(sender == 2147483647, -1, sender)


@triton.jit(do_not_specialize=GROWING)
def part_kernel(
    receive, send, value, law, mask, texts, dropout, nearest_of_part, nearest, mixed_of_part, total_of_part,
    heads, queries, keys, parts, part_tiles, PARTS: tl.constexpr, TILE: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    """One receiver and one part of the senders: mixed (rows, parts, d) and total (rows, parts), float32."""
    row, part = tl.program_id(0), tl.program_id(1)
    bh, i = row // queries, row % queries
    b, h = bh // heads.receive, bh % heads.receive
    masks = Masks(mask, None, texts, b, h, queries, keys)
    d = tl.arange(0, TILE.BLOCK_D)
    w = _receiver(receive, b, h, i, TILE)
    senders = head_of(send, b, h // (heads.receive // heads.send))
    values = head_of(value, b, h // (heads.receive // heads.value))
    row_term = row_term_of(kappa_of(law, b, h, i, queries))
    head_term = head_term_of(alpha_of(law, h))
    if nearest is not None:
        own_least, own_sender = _nearest_of(nearest_of_part, row, parts, PARTS)
        if part == 0:
            tl.store(nearest.squared + row, own_least)
            tl.store(nearest.sender + row, own_sender)
    if dropout is not None:
        word = row_words(tl.load(dropout.seed), row.to(tl.int64))
    mixed = tl.zeros([TILE.KEYS, TILE.BLOCK_D], tl.float32)
    total = tl.zeros([TILE.KEYS], tl.float32)
    for step in range(part_tiles):
        first = (part * part_tiles + step) * TILE.KEYS
        j = first + tl.arange(0, TILE.KEYS)
        squared = _squared(w, send, senders, first, j, keys, TILE)
        if nearest is not None:
            squared = beyond_nearest(squared, own_least)
            squared = zero_at_nearest(squared, own_least, j == own_sender)
        margin, _ = margin_of(squared, row_term, head_term)
        strength = strength_of(margin, law.edge, FORM.POWER)
        strength = tl.where(narrow_to_allowed(j < keys, i + 0 * j, j, masks, FORM), strength, 0.0)
        total += strength
        if dropout is not None:
            strength = tl.where(kept_pairs(word, j, dropout.threshold), strength * dropout.scale, 0.0)
        if tl.max((strength != 0.0).to(tl.int32), 0) > 0:
            pointers = values + tl.cast(first, tl.int64) * value.token + (j - first)[:, None] * value.token
            # the values that do not count stay unread
            inside = (strength != 0.0)[:, None] & (d < TILE.DIM)[None, :]
            v = tl.load(pointers + d[None, :], mask=inside, other=0.0).to(tl.float32)
            mixed += strength[:, None] * v
    to = row.to(tl.int64) * parts + part
    tl.store(mixed_of_part + to * TILE.DIM + d, tl.sum(mixed, 0), mask=d < TILE.DIM)
    tl.store(total_of_part + to, tl.sum(total, 0))


@triton.jit(do_not_specialize=GROWING)
def combine_kernel(
    mixed_of_part, total_of_part, out, row_sum, parts, eps, DIM: tl.constexpr, BLOCK_D: tl.constexpr
):
    """The sums over the parts, in their order: out (rows, d) and row_sum (rows,)."""
    row = tl.program_id(0)
    d = tl.arange(0, BLOCK_D)
    mixed = tl.zeros([BLOCK_D], tl.float32)
    total = 0.0
    for part in range(parts):
        at = row.to(tl.int64) * parts + part
        mixed += tl.load(mixed_of_part + at * DIM + d, mask=d < DIM, other=0.0)
        total += tl.load(total_of_part + at)
    mixed = mixed / tl.where(total == 0.0, 1.0, total + eps)
    tl.store(out + row.to(tl.int64) * DIM + d, mixed.to(out.dtype.element_ty), mask=d < DIM)
    tl.store(row_sum + row, total)

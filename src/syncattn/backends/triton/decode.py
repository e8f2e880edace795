"""A few receivers before many senders, as in decoding from a cache: the senders are split over programs.

Each program sums W v and W over its part; the weights need no maximum and no rescaling, so parts are only
added up. The cache is read as it lies. Of a tile of senders to which the receiver does not lock only the
frequencies are read, not the values. D is a sum of squared differences: at one receiver there is no work for
tensor cores.
"""

from __future__ import annotations

import triton
import triton.language as tl

from syncattn.backends.triton.pairs import (
    GROWING,
    NOWHERE_RECEIVE,
    NOWHERE_SEND,
    allowed_pairs,
    beyond_nearest,
    kept_pairs,
    row_words,
    weight_of,
    zero_at_nearest,
)


@triton.jit
def _receiver(
    receive, receive_batch, receive_head, receive_token, receive_coordinate, b, h, i, FREQ, BLOCK_M
):
    k = tl.arange(0, BLOCK_M)
    base = (
        receive
        + b.to(tl.int64) * receive_batch
        + h.to(tl.int64) * receive_head
        + i.to(tl.int64) * receive_token
    )
    w = tl.load(base + k * receive_coordinate, mask=k < FREQ, other=0.0).to(tl.float32)
    return tl.where(tl.abs(w) > NOWHERE_RECEIVE, NOWHERE_RECEIVE, w)


@triton.jit
def _squared(w, send, send_token, send_coordinate, first, j, keys, FREQ, BLOCK_M):
    """(KEYS,): D of one receiver w (BLOCK_M,) and the senders from first on, whose places are j."""
    k = tl.arange(0, BLOCK_M)
    pointers = send + tl.cast(first, tl.int64) * send_token + (j - first)[:, None] * send_token
    inside = (j < keys)[:, None] & (k < FREQ)[None, :]
    s = tl.load(pointers + k[None, :] * send_coordinate, mask=inside, other=0.0).to(tl.float32)
    difference = tl.where(tl.abs(s) > NOWHERE_SEND, NOWHERE_SEND, s) - w[None, :]
    return tl.sum(difference * difference, 1)


@triton.jit(do_not_specialize=GROWING)
def nearest_part_kernel(
    receive, receive_batch, receive_head, receive_token, receive_coordinate,
    send, send_batch, send_head, send_token, send_coordinate,
    mask, mask_batch, mask_head, mask_row, mask_column, least_of_part, place_of_part,
    heads, send_heads, queries, keys, parts, part_tiles,
    FREQ: tl.constexpr, BLOCK_M: tl.constexpr, KEYS: tl.constexpr,
    CAUSAL: tl.constexpr, SELF: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """The smallest allowed D of one receiver in one part of the senders, and its earliest place: (rows,
    parts); infinite and -1 where nobody is allowed."""
    row, part = tl.program_id(0), tl.program_id(1)
    bh, i = row // queries, row % queries
    b, h = bh // heads, bh % heads
    offset = keys - queries
    w = _receiver(
        receive, receive_batch, receive_head, receive_token, receive_coordinate, b, h, i, FREQ, BLOCK_M
    )
    send += b.to(tl.int64) * send_batch + (h // (heads // send_heads)).to(tl.int64) * send_head
    mask += b.to(tl.int64) * mask_batch + h.to(tl.int64) * mask_head
    best = float("inf")
    found = -1
    for step in range(part_tiles):
        first = (part * part_tiles + step) * KEYS
        j = first + tl.arange(0, KEYS)
        squared = _squared(w, send, send_token, send_coordinate, first, j, keys, FREQ, BLOCK_M)
        allowed = allowed_pairs(
            j < keys, i + 0 * j, j, offset, mask, mask_row, mask_column, queries, keys, CAUSAL, SELF, MASK
        )
        squared = tl.where(squared == squared, squared, -1.0)
        squared = tl.where(allowed, squared, float("inf"))
        least = tl.min(squared, 0)
        place = tl.min(tl.where(squared == least, j, 2147483647), 0)
        found = tl.where(least < best, place, found)
        best = tl.minimum(least, best)
    tl.store(least_of_part + row * parts + part, best)
    tl.store(place_of_part + row * parts + part, found)


@triton.jit(do_not_specialize=GROWING)
def part_kernel(
    receive, receive_batch, receive_head, receive_token, receive_coordinate,
    send, send_batch, send_head, send_token, send_coordinate, value, value_batch, value_head, value_token,
    coupling, coupling_batch, coupling_head, coupling_row, bandwidth,
    mask, mask_batch, mask_head, mask_row, mask_column, seed, threshold, keep_scale,
    least_of_part, place_of_part, base, sender, mixed_of_part, total_of_part,
    heads, send_heads, value_heads, queries, keys, parts, part_tiles, edge,
    FREQ: tl.constexpr, BLOCK_M: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    KEYS: tl.constexpr, PARTS: tl.constexpr,
    CAUSAL: tl.constexpr, SELF: tl.constexpr, MASK: tl.constexpr, DROPOUT: tl.constexpr,
    NEAREST: tl.constexpr, POWER: tl.constexpr, HAS_EDGE: tl.constexpr,
):  # fmt: skip
    """One receiver and one part of the senders: mixed (rows, parts, d) and total (rows, parts), float32."""
    row, part = tl.program_id(0), tl.program_id(1)
    bh, i = row // queries, row % queries
    b, h = bh // heads, bh % heads
    offset = keys - queries
    d = tl.arange(0, BLOCK_D)
    w = _receiver(
        receive, receive_batch, receive_head, receive_token, receive_coordinate, b, h, i, FREQ, BLOCK_M
    )
    send += b.to(tl.int64) * send_batch + (h // (heads // send_heads)).to(tl.int64) * send_head
    value += b.to(tl.int64) * value_batch + (h // (heads // value_heads)).to(tl.int64) * value_head
    mask += b.to(tl.int64) * mask_batch + h.to(tl.int64) * mask_head
    coupling += b.to(tl.int64) * coupling_batch + h.to(tl.int64) * coupling_head
    kappa = tl.load(coupling + i.to(tl.int64) * coupling_row)
    inverse_square = 1.0 / (kappa * kappa)
    rate = -2.8853900817779268 * tl.load(bandwidth + h)
    if NEAREST:
        p = tl.arange(0, PARTS)
        least = tl.load(least_of_part + row * parts + p, mask=p < parts, other=float("inf"))
        place = tl.load(place_of_part + row * parts + p, mask=p < parts, other=-1)
        own_base = tl.min(least, 0)
        own_sender = tl.min(tl.where((least == own_base) & (place >= 0), place, 2147483647), 0)
        own_base = tl.where(own_sender == 2147483647, 0.0, tl.where(own_base < 0.0, float("nan"), own_base))
        own_sender = tl.where(own_sender == 2147483647, -1, own_sender)
        if part == 0:
            tl.store(base + row, own_base)
            tl.store(sender + row, own_sender)
    if DROPOUT:
        word = row_words(tl.load(seed), row.to(tl.int64))
    mixed = tl.zeros([KEYS, BLOCK_D], tl.float32)
    total = tl.zeros([KEYS], tl.float32)
    for step in range(part_tiles):
        first = (part * part_tiles + step) * KEYS
        j = first + tl.arange(0, KEYS)
        squared = _squared(w, send, send_token, send_coordinate, first, j, keys, FREQ, BLOCK_M)
        if NEAREST:
            squared = beyond_nearest(squared, own_base)
            squared = zero_at_nearest(squared, own_base, j == own_sender)
        weight = weight_of(tl.exp2(rate * squared) - squared * inverse_square, POWER, HAS_EDGE, edge)
        allowed = allowed_pairs(
            j < keys, i + 0 * j, j, offset, mask, mask_row, mask_column, queries, keys, CAUSAL, SELF, MASK
        )
        weight = tl.where(allowed, weight, 0.0)
        total += weight
        if DROPOUT:
            weight = tl.where(kept_pairs(word, j, threshold), weight * keep_scale, 0.0)
        if tl.max((weight != 0.0).to(tl.int32), 0) > 0:
            pointers = value + tl.cast(first, tl.int64) * value_token + (j - first)[:, None] * value_token
            inside = (weight != 0.0)[:, None] & (d < DIM)[
                None, :
            ]  # the values that weigh nothing stay unread
            v = tl.load(pointers + d[None, :], mask=inside, other=0.0).to(tl.float32)
            mixed += weight[:, None] * v
    to = row.to(tl.int64) * parts + part
    tl.store(mixed_of_part + to * DIM + d, tl.sum(mixed, 0), mask=d < DIM)
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

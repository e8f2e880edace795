"""The forward: one program for each tile of receivers, walking the tiles of senders that can lock to it."""

from __future__ import annotations

import triton
import triton.language as tl

from syncattn.backends.triton.pairs import (
    GROWING,
    add_sums,
    allowed_pairs,
    beyond_nearest,
    direct_detuning,
    first_of,
    gram_detuning,
    kept_pairs,
    left_operands,
    list_of,
    load_planes,
    meet,
    no_sums,
    numbers_of,
    own_tile,
    right_operands,
    row_sums,
    row_words,
    sizes_of,
    value_product,
    weight_of,
    zero_at_nearest,
)


@triton.jit(do_not_specialize=GROWING)
def forward_kernel(
    receive, receive_plane, receive_numbers, send, send_plane, send_numbers,
    value, value_batch, value_head, value_token,
    coupling, coupling_batch, coupling_head, coupling_row, bandwidth,
    mask, mask_batch, mask_head, mask_row, mask_column,
    mask_tiles, mask_tiles_batch, mask_tiles_head, mask_tiles_row, mask_tiles_column,
    seed, threshold, keep_scale,
    base, sender, entries, width, counts, order, out, row_sum,
    heads, send_heads, value_heads, queries, keys, query_tiles, key_tiles, eps, edge,
    FREQ: tl.constexpr, BLOCK_M: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, WALK: tl.constexpr, EVEN: tl.constexpr,
    DIRECT: tl.constexpr, PACKED: tl.constexpr, VALUE_PRECISION: tl.constexpr,
    LISTED: tl.constexpr, ORDERED: tl.constexpr, CAUSAL: tl.constexpr, SELF: tl.constexpr, MASK: tl.constexpr,
    DROPOUT: tl.constexpr, NEAREST: tl.constexpr, SYMMETRIC: tl.constexpr,
    MASK_TILES: tl.constexpr, NUMBERED: tl.constexpr, SORTED: tl.constexpr,
    POWER: tl.constexpr, HAS_EDGE: tl.constexpr,
):  # fmt: skip
    """out (B, H, N, d) and row_sum (B, H, N) of one tile of receivers. The pointers' shapes: launch.py."""
    pid = tl.program_id(0)
    if ORDERED:
        pid = tl.load(order + pid)
    bh, tile = pid // query_tiles, pid % query_tiles
    if CAUSAL and not ORDERED:  # the longest rows first
        tile = query_tiles - 1 - tile
    b, h, row = bh // heads, bh % heads, bh.to(tl.int64) * queries
    rows = tl.arange(0, QUERIES)
    columns = tl.arange(0, WALK)
    d = tl.arange(0, BLOCK_D)
    i = tile * QUERIES + rows
    offset = keys - queries

    receive += bh.to(tl.int64) * FREQ * receive_plane + tile * QUERIES
    i_number = numbers_of(receive_numbers + bh.to(tl.int64) * receive_plane, i, NUMBERED)
    send_numbers += (b * send_heads + h // (heads // send_heads)).to(tl.int64) * send_plane
    send += (b * send_heads + h // (heads // send_heads)).to(tl.int64) * FREQ * send_plane
    value += b.to(tl.int64) * value_batch + (h // (heads // value_heads)).to(tl.int64) * value_head
    coupling += b.to(tl.int64) * coupling_batch + h.to(tl.int64) * coupling_head
    mask += b.to(tl.int64) * mask_batch + h.to(tl.int64) * mask_head
    mask_tiles += b.to(tl.int64) * mask_tiles_batch + h.to(tl.int64) * mask_tiles_head
    mask_tiles += tile.to(tl.int64) * mask_tiles_row
    kappa = tl.load(coupling + i.to(tl.int64) * coupling_row, mask=i < queries, other=1.0)
    inverse_square = (1.0 / (kappa * kappa))[:, None]
    rate = -2.8853900817779268 * tl.load(bandwidth + h)  # exp(-2 alpha D) = 2^(rate D)
    if not DIRECT:
        left, centre = own_tile(receive, receive_plane, rows, FREQ, BLOCK_M, PACKED)
        a1, a2, a3 = left_operands(left, PACKED)
        left_sizes = sizes_of(left, PACKED)[:, None]
    if NEAREST:
        own_base = tl.load(base + row + i, mask=i < queries, other=0.0)[:, None]
        own_sender = tl.load(sender + row + i, mask=i < queries, other=-1)
        first_sender = tl.min(tl.where(own_sender < 0, 2147483647, own_sender), 0)
        senders = tl.max(own_sender, 0) - first_sender + 1
        own_sender = own_sender[:, None]
        if not DIRECT:
            left_sizes -= own_base
    if DROPOUT:
        words = row_words(tl.load(seed), row + i_number)[:, None]

    # What the tensor cores sum is rounded as what they mix; with dropout other pairs are summed than mixed.
    BY_PRODUCT: tl.constexpr = value.dtype.element_ty == tl.bfloat16 and not DROPOUT
    total = no_sums(QUERIES, BY_PRODUCT)
    mixed = tl.zeros([QUERIES, BLOCK_D], tl.float32)
    shift = 0
    if LISTED:
        entries, end, shift = list_of(entries, width, counts, bh * query_tiles + tile)
    elif CAUSAL:
        end = tl.minimum(key_tiles, (tl.minimum((tile + 1) * QUERIES, queries) + offset - 1) // KEYS + 1)
    else:
        end = key_tiles
    for step in range(0, end * (KEYS // WALK)):
        first = first_of(entries, shift, step, KEYS, WALK, LISTED)
        j = first + columns
        j_number = numbers_of(send_numbers, j, NUMBERED)
        if DIRECT:
            squared = direct_detuning(receive, receive_plane, rows, send + first, send_plane, columns, FREQ)
            if NEAREST:
                squared = beyond_nearest(squared, own_base)
        else:
            right = load_planes(send + first, send_plane, columns, FREQ, BLOCK_M, PACKED) - centre[:, None]
            sizes = left_sizes + sizes_of(right, PACKED)[None, :]
            b1, b2, b3 = right_operands(right, PACKED)
            squared = gram_detuning(sizes, a1, a2, a3, b1, b2, b3, PACKED)
        if SYMMETRIC:
            if SORTED or meet(first, WALK, tile * QUERIES, QUERIES):
                squared = tl.where(i_number[:, None] == j_number[None, :], 0.0, squared)
        if NEAREST:
            if meet(first, WALK, first_sender, senders):
                squared = zero_at_nearest(squared, own_base, j[None, :] == own_sender)
        margin = tl.exp2(rate * squared) - squared * inverse_square
        if CAUSAL or not SELF or MASK:
            partly = MASK
            if MASK_TILES:
                other = (first // KEYS).to(tl.int64)
                partly = tl.load(mask_tiles + other * mask_tiles_column) != 2
            if partly or SORTED or meet(first, WALK, tile * QUERIES + offset, keys if CAUSAL else QUERIES):
                allowed = tl.full([QUERIES, WALK], True, tl.int1)
                allowed = allowed_pairs(
                    allowed, i_number[:, None], j_number[None, :], offset, mask, mask_row, mask_column,
                    queries, keys, CAUSAL, SELF, MASK,
                )  # fmt: skip
                margin = tl.where(allowed, margin, -1.0)
        weight = weight_of(margin, POWER, HAS_EDGE, edge)
        total = add_sums(weight, total, BY_PRODUCT)
        if DROPOUT:
            weight = tl.where(kept_pairs(words, j_number[None, :], threshold), weight * keep_scale, 0.0)
        pointers = (
            value + tl.cast(first, tl.int64) * value_token + columns[:, None] * value_token + d[None, :]
        )
        if EVEN and DIM == BLOCK_D:
            v = tl.load(pointers)
        else:
            v = tl.load(pointers, mask=(j < keys)[:, None] & (d < DIM)[None, :], other=0.0)
        mixed = value_product(weight.to(v.dtype), v, mixed, VALUE_PRECISION)

    total = row_sums(total, BY_PRODUCT)
    mixed = mixed / tl.where(total == 0.0, 1.0, total + eps)[:, None]
    tl.store(row_sum + row + i, total, mask=i < queries)
    to = out + (row + tile * QUERIES) * DIM + rows[:, None] * DIM + d[None, :]
    tl.store(to, mixed.to(out.dtype.element_ty), mask=(i < queries)[:, None] & (d < DIM)[None, :])

"""The backward: one kernel over tiles of receivers, one over tiles of senders. Each recomputes the pairs
that it needs and owns what it writes: no atomics, the same bits every time.

With delta_i = <dO_i, out_i> and Z the row sums:

    dW = (dO v^T - delta) / Z,  dD = dW W'(F) F'(D),  dv = (W / Z)^T dO,
    dw^r_i = 2 sum_j dD_ij (w^r_i - w^s_j),  dw^s_j the same with the other sign.

Frequencies are counted from the mean of the own tile's. In the nearest frame the pair of a receiver and its
nearest sender takes back the sum of the row's dD.
"""

from __future__ import annotations

import triton
import triton.language as tl

from syncattn.backends.triton.pairs import (
    GROWING,
    add_sums,
    allowed_pairs,
    beyond_nearest,
    direct_detuning,
    drawn_product,
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
    through_weight,
    unpacked,
    value_product,
    weight_of,
    zero_at_nearest,
)


@triton.jit(do_not_specialize=GROWING)
def receivers_kernel(
    receive, receive_plane, receive_numbers, send, send_plane, send_numbers,
    value, value_batch, value_head, value_token,
    coupling, coupling_batch, coupling_head, coupling_row, bandwidth,
    mask, mask_batch, mask_head, mask_row, mask_column,
    mask_tiles, mask_tiles_batch, mask_tiles_head, mask_tiles_row, mask_tiles_column,
    seed, threshold, keep_scale,
    base, sender, entries, width, counts, order, grad, grad_batch, grad_head, grad_token, out, row_sum,
    row_numbers, ranges, grad_receive, grad_coupling, grad_bandwidth,
    heads, send_heads, value_heads, queries, keys, query_tiles, key_tiles, rows_in_all, eps, edge,
    FREQ: tl.constexpr, BLOCK_M: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, WALK: tl.constexpr, EVEN: tl.constexpr,
    DIRECT: tl.constexpr, PACKED: tl.constexpr, SPLIT: tl.constexpr,
    VALUE_PRECISION: tl.constexpr,
    LISTED: tl.constexpr, ORDERED: tl.constexpr, CAUSAL: tl.constexpr, SELF: tl.constexpr, MASK: tl.constexpr,
    DROPOUT: tl.constexpr, NEAREST: tl.constexpr, SYMMETRIC: tl.constexpr,
    MASK_TILES: tl.constexpr, NUMBERED: tl.constexpr, SORTED: tl.constexpr,
    POWER: tl.constexpr, HAS_EDGE: tl.constexpr,
):  # fmt: skip
    """Of one tile of receivers: grad_receive (B, H, N, m), grad_coupling (B, H, N), grad_bandwidth (B H,
    tiles). For the kernel after it row_numbers (6, B H, plane): 1 / kappa^2, 1 / Z, delta / Z, and in the
    nearest frame the sum of dD, the nearest sender's D and its place (the bits of an int32); and ranges (2,
    B H, tiles) int32: the first place of a tile's nearest senders, and how many up to the last."""
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
    here = i < queries
    offset = keys - queries
    rows_in_all = tl.cast(rows_in_all, tl.int64)

    receive += bh.to(tl.int64) * FREQ * receive_plane + tile * QUERIES
    i_number = numbers_of(receive_numbers + bh.to(tl.int64) * receive_plane, i, NUMBERED)
    send_numbers += (b * send_heads + h // (heads // send_heads)).to(tl.int64) * send_plane
    send += (b * send_heads + h // (heads // send_heads)).to(tl.int64) * FREQ * send_plane
    value += b.to(tl.int64) * value_batch + (h // (heads // value_heads)).to(tl.int64) * value_head
    coupling += b.to(tl.int64) * coupling_batch + h.to(tl.int64) * coupling_head
    mask += b.to(tl.int64) * mask_batch + h.to(tl.int64) * mask_head
    mask_tiles += b.to(tl.int64) * mask_tiles_batch + h.to(tl.int64) * mask_tiles_head
    mask_tiles += tile.to(tl.int64) * mask_tiles_row
    kappa = tl.load(coupling + i.to(tl.int64) * coupling_row, mask=here, other=1.0)
    inverse_square = (1.0 / (kappa * kappa))[:, None]
    alpha = tl.load(bandwidth + h)
    rate = -2.8853900817779268 * alpha
    left, centre = own_tile(receive, receive_plane, rows, FREQ, BLOCK_M, PACKED)
    a1, a2, a3 = left_operands(left, PACKED)
    left_sizes = sizes_of(left, PACKED)[:, None]
    total = tl.load(row_sum + row + i, mask=here, other=0.0)
    scale = 1.0 / tl.where(total == 0.0, 1.0, total + eps)
    if NEAREST:
        own_base = tl.load(base + row + i, mask=here, other=0.0)
        own_sender = tl.load(sender + row + i, mask=here, other=-1)
        first_sender = tl.min(tl.where(own_sender < 0, 2147483647, own_sender), 0)
        senders = tl.max(own_sender, 0) - first_sender + 1
        tl.store(ranges + bh * query_tiles + tile, first_sender)
        tl.store(ranges + (tl.num_programs(0) + bh * query_tiles + tile), senders)
        left_sizes -= own_base[:, None]
    if DROPOUT:
        words = row_words(tl.load(seed), row + i_number)[:, None]
    inside = here[:, None] & (d < DIM)[None, :]
    grad += b.to(tl.int64) * grad_batch + h.to(tl.int64) * grad_head
    dout = tl.load(grad + i.to(tl.int64)[:, None] * grad_token + d[None, :], mask=inside, other=0.0)
    mixed = tl.load(out + (row + i)[:, None] * DIM + d[None, :], mask=inside, other=0.0)
    delta = tl.sum(dout.to(tl.float32) * mixed.to(tl.float32), 1) * scale
    row_numbers += bh.to(tl.int64) * receive_plane + i
    tl.store(row_numbers, 1.0 / (kappa * kappa))
    tl.store(row_numbers + rows_in_all, scale)
    tl.store(row_numbers + 2 * rows_in_all, delta)
    if NEAREST:
        tl.store(row_numbers + 4 * rows_in_all, own_base)
        tl.store(row_numbers + 5 * rows_in_all, own_sender.to(tl.float32, bitcast=True))

    drawn = tl.zeros([QUERIES, BLOCK_M], tl.float32)  # sum_j dD_ij w^s_j
    summed = no_sums(QUERIES, SPLIT == 1)
    to_coupling = tl.zeros([QUERIES], tl.float32)
    to_bandwidth = tl.zeros([QUERIES], tl.float32)
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
        right = load_planes(send + first, send_plane, columns, FREQ, BLOCK_M, PACKED) - centre[:, None]
        b1, b2, b3 = right_operands(right, PACKED)
        if DIRECT:
            squared = direct_detuning(receive, receive_plane, rows, send + first, send_plane, columns, FREQ)
            if NEAREST:
                squared = beyond_nearest(squared, own_base[:, None])
        else:
            sizes = left_sizes + sizes_of(right, PACKED)[None, :]
            squared = gram_detuning(sizes, a1, a2, a3, b1, b2, b3, PACKED)
        if SYMMETRIC:
            if SORTED or meet(first, WALK, tile * QUERIES, QUERIES):
                squared = tl.where(i_number[:, None] == j_number[None, :], 0.0, squared)
        if NEAREST:
            if meet(first, WALK, first_sender, senders):
                squared = zero_at_nearest(squared, own_base[:, None], j[None, :] == own_sender[:, None])
        kernel = tl.exp2(rate * squared)
        margin = kernel - squared * inverse_square
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
        pointers = (
            value + tl.cast(first, tl.int64) * value_token + columns[None, :] * value_token + d[:, None]
        )
        if EVEN and DIM == BLOCK_D:
            v = tl.load(pointers)
        else:
            v = tl.load(pointers, mask=(j < keys)[None, :] & (d < DIM)[:, None], other=0.0)
        flow = value_product(dout, v, tl.zeros([QUERIES, WALK], tl.float32), VALUE_PRECISION)
        if DROPOUT:
            flow = tl.where(kept_pairs(words, j_number[None, :], threshold), flow * keep_scale, 0.0)
        flow = flow * scale[:, None] - delta[:, None]
        dmargin = through_weight(flow, margin, POWER, HAS_EDGE, edge)
        to_coupling += tl.sum(dmargin * squared, 1)
        through = dmargin * kernel
        to_bandwidth += tl.sum(through * squared, 1)
        dsquared = -2.0 * alpha * through - dmargin * inverse_square
        if SYMMETRIC:
            if SORTED or meet(first, WALK, tile * QUERIES, QUERIES):
                dsquared = tl.where(i_number[:, None] == j_number[None, :], 0.0, dsquared)
        summed = add_sums(dsquared, summed, SPLIT == 1)
        drawn = drawn_product(dsquared, b1, b2, b3, drawn, SPLIT, PACKED)

    summed = row_sums(summed, SPLIT == 1)
    # once for each coordinate
    drawn = unpacked(drawn, PACKED)
    ONCE: tl.constexpr = drawn.shape[1]
    left, centre = own_tile(receive, receive_plane, rows, FREQ, ONCE, False)
    k = tl.arange(0, ONCE)
    if NEAREST:
        found = (own_sender >= 0)[None, :] & (k < FREQ)[:, None]
        nearest = tl.load(send + k[:, None] * send_plane + own_sender[None, :], mask=found, other=0.0)
        tl.store(row_numbers + 3 * rows_in_all, summed)
        gradient = summed[:, None] * tl.trans(nearest - centre[:, None]) - drawn
    else:
        gradient = summed[:, None] * tl.trans(left) - drawn
    to = grad_receive + (row + i)[:, None] * FREQ + k[None, :]
    tl.store(to, (2.0 * gradient).to(grad_receive.dtype.element_ty), mask=here[:, None] & (k < FREQ)[None, :])
    tl.store(grad_coupling + row + i, 2.0 * to_coupling / (kappa * kappa) / kappa, mask=here)
    tl.store(grad_bandwidth + bh * query_tiles + tile, -2.0 * tl.sum(tl.where(here, to_bandwidth, 0.0), 0))


@triton.jit(do_not_specialize=GROWING)
def senders_kernel(
    receive, receive_plane, receive_numbers, send, send_plane, send_numbers,
    value, value_batch, value_head, value_token,
    coupling, coupling_batch, coupling_head, coupling_row, bandwidth,
    mask, mask_batch, mask_head, mask_row, mask_column,
    mask_tiles, mask_tiles_batch, mask_tiles_head, mask_tiles_row, mask_tiles_column,
    seed, threshold, keep_scale,
    entries, width, counts, order, grad, grad_batch, grad_head, grad_token,
    row_numbers, ranges, range_number, grad_send, grad_value,
    heads, send_heads, value_heads, queries, keys, query_tiles, key_tiles, rows_in_all, eps, edge,
    FREQ: tl.constexpr, BLOCK_M: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, WALK: tl.constexpr, EVEN: tl.constexpr,
    DIRECT: tl.constexpr, PACKED: tl.constexpr, SPLIT: tl.constexpr,
    VALUE_PRECISION: tl.constexpr,
    LISTED: tl.constexpr, ORDERED: tl.constexpr, CAUSAL: tl.constexpr, SELF: tl.constexpr, MASK: tl.constexpr,
    DROPOUT: tl.constexpr, NEAREST: tl.constexpr, SYMMETRIC: tl.constexpr,
    MASK_TILES: tl.constexpr, NUMBERED: tl.constexpr, SORTED: tl.constexpr,
    POWER: tl.constexpr, HAS_EDGE: tl.constexpr,
):  # fmt: skip
    """Of one tile of senders, for one head of receivers: grad_send (B, H, M, m) and grad_value (B, H, M, d).
    Its tiles of pairs are (senders, receivers)."""
    pid = tl.program_id(0)
    if ORDERED:
        pid = tl.load(order + pid)
    bh, tile = pid // key_tiles, pid % key_tiles
    b, h, row = bh // heads, bh % heads, bh.to(tl.int64) * queries
    rows = tl.arange(0, KEYS)
    columns = tl.arange(0, WALK)
    d = tl.arange(0, BLOCK_D)
    j = tile * KEYS + rows
    here = j < keys
    offset = keys - queries
    rows_in_all = tl.cast(rows_in_all, tl.int64)

    receive += bh.to(tl.int64) * FREQ * receive_plane
    receive_numbers += bh.to(tl.int64) * receive_plane
    send += (b * send_heads + h // (heads // send_heads)).to(tl.int64) * FREQ * send_plane + tile * KEYS
    send_numbers += (b * send_heads + h // (heads // send_heads)).to(tl.int64) * send_plane
    j_number = numbers_of(send_numbers, j, NUMBERED)
    value += b.to(tl.int64) * value_batch + (h // (heads // value_heads)).to(tl.int64) * value_head
    mask += b.to(tl.int64) * mask_batch + h.to(tl.int64) * mask_head
    mask_tiles += b.to(tl.int64) * mask_tiles_batch + h.to(tl.int64) * mask_tiles_head
    mask_tiles += tile.to(tl.int64) * mask_tiles_column
    grad += b.to(tl.int64) * grad_batch + h.to(tl.int64) * grad_head
    row_numbers += bh.to(tl.int64) * receive_plane
    alpha = tl.load(bandwidth + h)
    rate = -2.8853900817779268 * alpha
    left, centre = own_tile(send, send_plane, rows, FREQ, BLOCK_M, PACKED)
    a1, a2, a3 = left_operands(left, PACKED)
    left_sizes = sizes_of(left, PACKED)[:, None]
    inside = here[:, None] & (d < DIM)[None, :]
    v = tl.load(value + j.to(tl.int64)[:, None] * value_token + d[None, :], mask=inside, other=0.0)
    if DROPOUT:
        drawn_seed = tl.load(seed)

    dvalue = tl.zeros([KEYS, BLOCK_D], tl.float32)
    drawn = tl.zeros([KEYS, BLOCK_M], tl.float32)  # sum_i dD_ij w^r_i
    summed = no_sums(KEYS, SPLIT == 1)
    start = 0
    shift = 0
    if LISTED:
        entries, end, shift = list_of(entries, width, counts, bh * key_tiles + tile)
    else:
        end = query_tiles
        if CAUSAL:
            start = tl.maximum(tile * KEYS - offset, 0) // QUERIES
    for step in range(start * (QUERIES // WALK), end * (QUERIES // WALK)):
        first = first_of(entries, shift, step, QUERIES, WALK, LISTED)
        i = first + columns
        i_number = numbers_of(receive_numbers, i, NUMBERED)
        numbers = row_numbers + first + columns
        inverse_square = tl.load(numbers)[None, :]
        scale = tl.load(numbers + rows_in_all)[None, :]
        if NEAREST:
            tile_ranges = ranges + bh * query_tiles + first // QUERIES
            own_base = tl.load(numbers + 4 * rows_in_all)[None, :]
        right = load_planes(receive + first, receive_plane, columns, FREQ, BLOCK_M, PACKED) - centre[:, None]
        b1, b2, b3 = right_operands(right, PACKED)
        if DIRECT:
            squared = direct_detuning(send, send_plane, rows, receive + first, receive_plane, columns, FREQ)
            if NEAREST:
                squared = beyond_nearest(squared, own_base)
        else:
            sizes = sizes_of(right, PACKED)[None, :]
            if NEAREST:
                sizes -= own_base
            sizes = left_sizes + sizes
            squared = gram_detuning(sizes, a1, a2, a3, b1, b2, b3, PACKED)
        if SYMMETRIC:
            if SORTED or meet(first, WALK, tile * KEYS, KEYS):
                squared = tl.where(j_number[:, None] == i_number[None, :], 0.0, squared)
        if NEAREST:
            some_nearest = meet(tile * KEYS, KEYS, tl.load(tile_ranges), tl.load(tile_ranges + range_number))
            if some_nearest:
                own_sender = tl.load(numbers + 5 * rows_in_all).to(tl.int32, bitcast=True)[None, :]
                squared = zero_at_nearest(squared, own_base, j[:, None] == own_sender)
        kernel = tl.exp2(rate * squared)
        margin = kernel - squared * inverse_square
        if CAUSAL or not SELF or MASK:
            partly = MASK
            if MASK_TILES:
                other = (first // QUERIES).to(tl.int64)
                partly = tl.load(mask_tiles + other * mask_tiles_row) != 2
            before = keys if CAUSAL else 0
            if partly or SORTED or meet(first + offset, WALK, tile * KEYS - before, KEYS + before):
                allowed = tl.full([KEYS, WALK], True, tl.int1)
                allowed = allowed_pairs(
                    allowed, i_number[None, :], j_number[:, None], offset, mask, mask_row, mask_column,
                    queries, keys, CAUSAL, SELF, MASK,
                )  # fmt: skip
                margin = tl.where(allowed, margin, -1.0)
        weight = weight_of(margin, POWER, HAS_EDGE, edge)
        pointers = grad + tl.cast(first, tl.int64) * grad_token + columns[:, None] * grad_token + d[None, :]
        if EVEN and DIM == BLOCK_D:
            dout = tl.load(pointers)
        else:
            dout = tl.load(pointers, mask=(i < queries)[:, None] & (d < DIM)[None, :], other=0.0)
        flow = value_product(v, tl.trans(dout), tl.zeros([KEYS, WALK], tl.float32), VALUE_PRECISION)
        kept = weight * scale
        if DROPOUT:
            keep = kept_pairs(row_words(drawn_seed, row + i_number)[None, :], j_number[:, None], threshold)
            kept = tl.where(keep, kept * keep_scale, 0.0)
            flow = tl.where(keep, flow * keep_scale, 0.0)
        dvalue = value_product(kept.to(dout.dtype), dout, dvalue, VALUE_PRECISION)
        flow = flow * scale - tl.load(numbers + 2 * rows_in_all)[None, :]
        dmargin = through_weight(flow, margin, POWER, HAS_EDGE, edge)
        dsquared = -2.0 * alpha * dmargin * kernel - dmargin * inverse_square
        if NEAREST:
            if some_nearest:
                own_sender = tl.load(numbers + 5 * rows_in_all).to(tl.int32, bitcast=True)[None, :]
                taken = tl.load(numbers + 3 * rows_in_all)[None, :]
                dsquared = tl.where(j[:, None] == own_sender, dsquared - taken, dsquared)
        if SYMMETRIC:
            if SORTED or meet(first, WALK, tile * KEYS, KEYS):
                dsquared = tl.where(j_number[:, None] == i_number[None, :], 0.0, dsquared)
        summed = add_sums(dsquared, summed, SPLIT == 1)
        drawn = drawn_product(dsquared, b1, b2, b3, drawn, SPLIT, PACKED)

    summed = row_sums(summed, SPLIT == 1)
    # once for each coordinate
    drawn = unpacked(drawn, PACKED)
    ONCE: tl.constexpr = drawn.shape[1]
    left, centre = own_tile(send, send_plane, rows, FREQ, ONCE, False)
    k = tl.arange(0, ONCE)
    gradient = 2.0 * (summed[:, None] * tl.trans(left) - drawn)
    to = bh.to(tl.int64) * keys + j
    within = here[:, None] & (k < FREQ)[None, :]
    tl.store(
        grad_send + to[:, None] * FREQ + k[None, :], gradient.to(grad_send.dtype.element_ty), mask=within
    )
    dvalue = dvalue.to(grad_value.dtype.element_ty)
    tl.store(grad_value + to[:, None] * DIM + d[None, :], dvalue, mask=inside)

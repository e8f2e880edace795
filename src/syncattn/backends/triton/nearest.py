"""The nearest frame's first pass: each receiver's nearest allowed sender."""

from __future__ import annotations

import triton
import triton.language as tl

from syncattn.backends.triton.lists import SLACK, box_distance
from syncattn.backends.triton.pairs import (
    GROWING,
    allowed_pairs,
    direct_detuning,
    gram_detuning,
    left_operands,
    load_planes,
    meet,
    numbers_of,
    own_tile,
    right_operands,
    sizes_of,
)


@triton.jit(do_not_specialize=GROWING)
def nearest_kernel(
    receive, receive_plane, receive_numbers, send, send_plane, send_numbers, low, high, other_low, other_high,
    mask, mask_batch, mask_head, mask_row, mask_column,
    mask_tiles, mask_tiles_batch, mask_tiles_head, mask_tiles_row, mask_tiles_column,
    base, sender,
    heads, send_heads, queries, keys, query_tiles, key_tiles,
    FREQ: tl.constexpr, BLOCK_M: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    DIRECT: tl.constexpr, PACKED: tl.constexpr,
    CAUSAL: tl.constexpr, SELF: tl.constexpr, MASK: tl.constexpr, SYMMETRIC: tl.constexpr,
    MASK_TILES: tl.constexpr, NUMBERED: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """base (B, H, N) the smallest allowed D, sender (B, H, N) int32 its smallest number; 0 and -1 where
    nobody is allowed. The tile of senders at the same place comes first; a tile whose box is farther than
    every row's best so far is left out."""
    pid = tl.program_id(0)
    bh, tile = pid // query_tiles, pid % query_tiles
    b, h, row = bh // heads, bh % heads, bh.to(tl.int64) * queries
    send_bh = (b * send_heads + h // (heads // send_heads)).to(tl.int64)
    rows, columns, k = tl.arange(0, QUERIES), tl.arange(0, KEYS), tl.arange(0, BLOCK_M)
    i = tile * QUERIES + rows
    offset = keys - queries
    receive += bh.to(tl.int64) * FREQ * receive_plane + tile * QUERIES
    i_number = numbers_of(receive_numbers + bh.to(tl.int64) * receive_plane, i, NUMBERED)
    send += send_bh * FREQ * send_plane
    send_numbers += send_bh * send_plane
    mask += b.to(tl.int64) * mask_batch + h.to(tl.int64) * mask_head
    mask_tiles += b.to(tl.int64) * mask_tiles_batch + h.to(tl.int64) * mask_tiles_head
    mask_tiles += tile.to(tl.int64) * mask_tiles_row
    own = bh.to(tl.int64) * FREQ * query_tiles + k * query_tiles + tile
    own_low = tl.load(low + own, mask=k < FREQ, other=0.0)
    own_high = tl.load(high + own, mask=k < FREQ, other=0.0)
    if not DIRECT:
        left, centre = own_tile(receive, receive_plane, rows, FREQ, BLOCK_M, PACKED)
        a1, a2, a3 = left_operands(left, PACKED)
        left_sizes = sizes_of(left, PACKED)[:, None]

    end = key_tiles
    if CAUSAL:
        end = tl.minimum(key_tiles, (tl.minimum((tile + 1) * QUERIES, queries) + offset - 1) // KEYS + 1)
    home = tl.maximum(tl.minimum((tile * QUERIES + QUERIES // 2 + offset) // KEYS, end - 1), 0)
    best = tl.full([QUERIES], float("inf"), tl.float32)
    found = tl.full([QUERIES], -1, tl.int32)
    for step in range(0, (end + CHUNK - 1) // CHUNK + 1):
        # first home, alone, then all others, CHUNK boxes at a time
        others = tl.where(step == 0, home // CHUNK, step - 1) * CHUNK + tl.arange(0, CHUNK)
        near = (others < end) & ((others == home) == (step == 0))
        at = send_bh * FREQ * key_tiles + k[:, None] * key_tiles + others[None, :]
        inside = (k < FREQ)[:, None] & near[None, :]
        distance = box_distance(
            own_low[:, None],
            own_high[:, None],
            tl.load(other_low + at, mask=inside, other=0.0),
            tl.load(other_high + at, mask=inside, other=0.0),
        )
        farthest = tl.max(tl.where(i < queries, best, 0.0), 0)
        near = near & (distance <= farthest * SLACK) & (distance < float("inf"))
        if MASK_TILES:
            may = tl.load(mask_tiles + others.to(tl.int64) * mask_tiles_column, mask=near, other=0)
            near = near & (may != 0)
        other = tl.min(tl.where(near, others, 2147483647), 0)
        while other < 2147483647:
            partly = MASK
            if MASK_TILES:
                partly = tl.load(mask_tiles + other.to(tl.int64) * mask_tiles_column) != 2
            first = other * KEYS
            j = first + columns
            j_number = numbers_of(send_numbers, j, NUMBERED)
            if DIRECT:
                squared = direct_detuning(
                    receive, receive_plane, rows, send + first, send_plane, columns, FREQ
                )
            else:
                right = load_planes(send + first, send_plane, columns, FREQ, BLOCK_M, PACKED)
                right -= centre[:, None]
                sizes = left_sizes + sizes_of(right, PACKED)[None, :]
                b1, b2, b3 = right_operands(right, PACKED)
                squared = gram_detuning(sizes, a1, a2, a3, b1, b2, b3, PACKED)
            if SYMMETRIC:
                if NUMBERED or meet(first, KEYS, tile * QUERIES, QUERIES):
                    squared = tl.where(i_number[:, None] == j_number[None, :], 0.0, squared)
            # NaN is nearest of all, as in torch.argmin: it must show
            squared = tl.where(squared == squared, squared, -1.0)
            if partly or NUMBERED or first + KEYS > tl.minimum(keys, tile * QUERIES + offset):
                allowed = (i < queries)[:, None] & ((j < keys) & (j_number >= 0))[None, :]
                allowed = allowed_pairs(
                    allowed, i_number[:, None], j_number[None, :], offset, mask, mask_row, mask_column,
                    queries, keys, CAUSAL, SELF, MASK,
                )  # fmt: skip
                squared = tl.where(allowed, squared, float("inf"))
            least = tl.min(squared, 1)
            place = tl.min(tl.where(squared == least[:, None], j_number[None, :], 2147483647), 1)
            closer = (least < best) | ((least == best) & (place < found))
            found = tl.where(closer, place, found)
            best = tl.where(closer, least, best)
            farthest = tl.max(tl.where(i < queries, best, 0.0), 0)
            near = near & (others > other) & (distance <= farthest * SLACK)
            other = tl.min(tl.where(near, others, 2147483647), 0)
    best = tl.where(found < 0, 0.0, tl.where(best < 0.0, float("nan"), best))
    tl.store(base + row + i, best, mask=i < queries)
    tl.store(sender + row + i, found, mask=i < queries)

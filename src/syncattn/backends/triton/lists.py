"""Which tiles can lock: for each tile of one side the list of the other side's, made on the device."""

from __future__ import annotations

import triton
import triton.language as tl

from syncattn.backends.triton.pairs import GROWING

# A tile is left out if its box is farther than the reach by more than what rounding may do to either.
SLACK = tl.constexpr(1.001)


@triton.jit
def box_distance(own_low, own_high, other_low, other_high):
    """The least squared distance of two boxes, summed over the first axis; infinite if one is empty."""
    gap = tl.maximum(tl.maximum(other_low - own_high, own_low - other_high), 0.0)
    return tl.sum(gap * gap, 0)


@triton.jit
def _alive(
    low, high, other_low, other_high, reach, mask_tiles, mask_other, tile, other,
    other_tiles, offset, queries,
    FREQ: tl.constexpr, BLOCK_M: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr,
    OF_QUERIES: tl.constexpr, CAUSAL: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """Which of some other tiles can lock to the own one: 1 or 0."""
    there = other < other_tiles
    k = tl.arange(0, BLOCK_M)
    at = k[:, None] * other_tiles + other[None, :]
    inside = (k < FREQ)[:, None] & there[None, :]
    distance = box_distance(
        low[:, None],
        high[:, None],
        tl.load(other_low + at, mask=inside, other=0.0),
        tl.load(other_high + at, mask=inside, other=0.0),
    )
    if OF_QUERIES:
        far = tl.load(reach + tile)
    else:
        far = tl.load(reach + other, mask=there, other=0.0)
    alive = there & (distance <= far * SLACK) & (distance < float("inf"))
    if CAUSAL:
        if OF_QUERIES:
            last = tl.minimum((tile + 1) * OWN, queries) - 1
            alive = alive & (other * OTHER <= last + offset)
        else:
            last = tl.minimum((other + 1) * OTHER, queries) - 1
            alive = alive & (tile * OWN <= last + offset)
    if MASK:
        alive = alive & (tl.load(mask_tiles + other.to(tl.int64) * mask_other, mask=there, other=0) != 0)
    return alive.to(tl.int32)


@triton.jit
def _whole(found, LEVEL: tl.constexpr, CHUNK: tl.constexpr):
    """1 for every tile of a granule of 2^LEVEL tiles of which any is found."""
    granules = tl.max(tl.reshape(found, [CHUNK >> LEVEL, 1 << LEVEL]), 1)
    tiles = tl.broadcast_to(granules[:, None], [CHUNK >> LEVEL, 1 << LEVEL])
    return tl.reshape(tiles, [CHUNK])


@triton.jit(do_not_specialize=GROWING)
def lists_kernel(
    own_low, own_high, other_low, other_high, reach, entries, width, counts,
    mask_tiles, mask_batch, mask_head, mask_own, mask_other,
    own_heads, other_heads, heads, own_tiles, other_tiles, offset, queries,
    FREQ: tl.constexpr, BLOCK_M: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr,
    CHUNK: tl.constexpr, LEVELS: tl.constexpr,
    OF_QUERIES: tl.constexpr, CAUSAL: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """For one own tile: entries (B H, own tiles, width) int32, the other tiles that can lock, in order. If
    more than width can, an entry is a granule of 2, 4, ... up to 2^(LEVELS - 1) tiles, the fewest that fit,
    of which any can. counts (B H, own tiles, 2) int32: the tiles of all entries, log2 of the tiles of one.
    OF_QUERIES: the own tiles are the receivers'."""
    bh, tile = tl.program_id(0) // own_tiles, tl.program_id(0) % own_tiles
    b, h = bh // heads, bh % heads
    own_bh = (b * own_heads + h // (heads // own_heads)).to(tl.int64)
    other_bh = (b * other_heads + h // (heads // other_heads)).to(tl.int64)
    k, t = tl.arange(0, BLOCK_M), tl.arange(0, CHUNK)
    own = own_bh * FREQ * own_tiles + k * own_tiles + tile
    low = tl.load(own_low + own, mask=k < FREQ, other=0.0)
    high = tl.load(own_high + own, mask=k < FREQ, other=0.0)
    other_low += other_bh * FREQ * other_tiles
    other_high += other_bh * FREQ * other_tiles
    reach += bh.to(tl.int64) * (own_tiles if OF_QUERIES else other_tiles)
    mask_tiles += b.to(tl.int64) * mask_batch + h.to(tl.int64) * mask_head + tile.to(tl.int64) * mask_own
    to = (bh.to(tl.int64) * own_tiles + tile) * width

    shift = 0
    if LEVELS > 1:  # how many entries there would be with each size of granule
        level = tl.arange(0, 32)
        sizes = tl.zeros([32], tl.int32)
        for first in range(0, other_tiles, CHUNK):
            found = _alive(
                low, high, other_low, other_high, reach, mask_tiles, mask_other, tile, first + t,
                other_tiles, offset, queries, FREQ, BLOCK_M, OWN, OTHER, OF_QUERIES, CAUSAL, MASK,
            )  # fmt: skip
            for s in tl.static_range(LEVELS):
                sizes += tl.where(level == s, tl.sum(_whole(found, s, CHUNK), 0) >> s, 0)
        shift = tl.sum((sizes > width).to(tl.int32), 0)
    count = 0
    for first in range(0, other_tiles, CHUNK):
        found = _alive(
            low, high, other_low, other_high, reach, mask_tiles, mask_other, tile, first + t,
            other_tiles, offset, queries, FREQ, BLOCK_M, OWN, OTHER, OF_QUERIES, CAUSAL, MASK,
        )  # fmt: skip
        entry = first + t
        if LEVELS > 1:
            some = found
            for s in tl.static_range(1, LEVELS):
                found = tl.where(shift == s, _whole(some, s, CHUNK), found)
            # the first tile of a granule stands for it
            found = tl.where((entry & ((1 << shift) - 1)) == 0, found, 0)
            entry = entry >> shift
        tl.store(entries + to + count + tl.cumsum(found, 0) - 1, entry, mask=found > 0)
        count += tl.sum(found, 0)
    counts += 2 * (bh.to(tl.int64) * own_tiles + tile)
    tl.store(counts, count << shift)
    tl.store(counts + 1, shift)


@triton.jit(do_not_specialize=GROWING)
def mask_tiles_kernel(
    mask, mask_batch, mask_head, mask_row, mask_column, heads, rows, columns, tiles, row_tiles, column_tiles,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """tiles (B, heads, row tiles, column tiles) uint8: of a tile of mask (B, heads, rows, columns) 2 if all
    pairs may attend, 1 if some may. Dimensions over which the mask is broadcast are 1, and read once."""
    pid = tl.program_id(0)
    row_tile, column_tile = pid // column_tiles % row_tiles, pid % column_tiles
    bh = pid // column_tiles // row_tiles
    mask += (bh // heads).to(tl.int64) * mask_batch + (bh % heads).to(tl.int64) * mask_head
    i = row_tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    j = column_tile * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    pointers = mask + i.to(tl.int64)[:, None] * mask_row + j.to(tl.int64)[None, :] * mask_column
    inside = (i < rows)[:, None] & (j < columns)[None, :]
    may = (tl.load(pointers, mask=inside, other=0) != 0).to(tl.int32)
    some = tl.max(tl.max(may, 1), 0)
    all_of_them = tl.min(tl.min(tl.where(inside, may, 1), 1), 0)
    tl.store(tiles + pid.to(tl.int64), some + all_of_them)

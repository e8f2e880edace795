"""Which tiles can lock: for each tile of one side the list of the other side's, made on the device."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from syncattn.backends.triton.groups import GROWING, Boxes
from syncattn.backends.triton.pairs import texts_of
from syncattn.backends.triton.pointers import head_of, shared_head

# A tile is left out if its box is farther than the reach by more than what rounding may do to either.
SLACK = tl.constexpr(1.001)


class OwnTile(NamedTuple):
    b: Any
    h: Any
    tile: Any
    low: Any  # (BLOCK_M,), the corners of its box
    high: Any


@triton.jit
def box_distance(own_low, own_high, other_low, other_high):
    """The least squared distance of two boxes, summed over the first axis; infinite if one is empty."""
    gap = tl.maximum(tl.maximum(other_low - own_high, own_low - other_high), 0.0)
    return tl.sum(gap * gap, 0)


@triton.jit
def _alive(own, boxes, reach, mask_tiles, texts, other, other_tiles, offset, queries, LOOK: tl.constexpr):
    """Which of some other tiles can lock to the own one: 1 or 0. The boxes and reach are the head's."""
    there = other < other_tiles
    k = tl.arange(0, LOOK.BLOCK_M)
    at = k[:, None] * other_tiles + other[None, :]
    inside = (k < LOOK.FREQ)[:, None] & there[None, :]
    distance = box_distance(
        own.low[:, None],
        own.high[:, None],
        tl.load(boxes.low + at, mask=inside, other=0.0),
        tl.load(boxes.high + at, mask=inside, other=0.0),
    )
    if LOOK.OF_QUERIES:
        far = tl.load(reach + own.tile)
    else:
        far = tl.load(reach + other, mask=there, other=0.0)
    alive = there & (distance <= far * SLACK) & (distance < float("inf"))
    if LOOK.CAUSAL:
        if LOOK.OF_QUERIES:
            last = tl.minimum((own.tile + 1) * LOOK.OWN, queries) - 1
            alive = alive & (other * LOOK.OTHER <= last + offset)
        else:
            last = tl.minimum((other + 1) * LOOK.OTHER, queries) - 1
            alive = alive & (own.tile * LOOK.OWN <= last + offset)
    if mask_tiles is not None:
        row = head_of(mask_tiles, own.b, own.h) + own.tile.to(tl.int64) * mask_tiles.row
        may = tl.load(row + other.to(tl.int64) * mask_tiles.column, mask=there, other=0)
        alive = alive & (may != 0)
    if texts is not None:
        other = tl.minimum(other, other_tiles - 1)
        if LOOK.OF_QUERIES:
            alive = alive & texts_of(texts, own.b, own.tile, other)[0]
        else:
            alive = alive & texts_of(texts, own.b, other, own.tile)[0]
    return alive.to(tl.int32)


@triton.jit
def _whole(found, LEVEL: tl.constexpr, CHUNK: tl.constexpr):
    """1 for every tile of a granule of 2^LEVEL tiles of which any is found."""
    granules = tl.max(tl.reshape(found, [CHUNK >> LEVEL, 1 << LEVEL]), 1)
    tiles = tl.broadcast_to(granules[:, None], [CHUNK >> LEVEL, 1 << LEVEL])
    return tl.reshape(tiles, [CHUNK])


@triton.jit(do_not_specialize=GROWING)
def lists_kernel(
    own_boxes, other_boxes, own_bound, other_bound, reach, mask_tiles, texts, walk, width,
    own_heads, other_heads, heads, own_tiles, other_tiles, offset, queries, LOOK: tl.constexpr,
):  # fmt: skip
    """For one own tile: the entries of its list, the other tiles that can lock, in order. If more than width
    can, an entry is a granule of 2, 4, ... up to 2^(LEVELS - 1) tiles, the fewest that fit, of which any can.
    And its counts: the tiles of all entries, log2 of the tiles of one, and whether any of them is too far
    from the head's centre for its bound. The rows of mask_tiles are the own tiles. The shapes: groups.py."""
    bh, tile = tl.program_id(0) // own_tiles, tl.program_id(0) % own_tiles
    b, h = bh // heads, bh % heads
    k, t = tl.arange(0, LOOK.BLOCK_M), tl.arange(0, LOOK.CHUNK)
    at = shared_head(b, h, heads, own_heads) * LOOK.FREQ * own_tiles + k * own_tiles + tile
    low = tl.load(own_boxes.low + at, mask=k < LOOK.FREQ, other=0.0)
    high = tl.load(own_boxes.high + at, mask=k < LOOK.FREQ, other=0.0)
    own = OwnTile(b, h, tile, low, high)
    others_tiles = shared_head(b, h, heads, other_heads) * other_tiles
    others = others_tiles * LOOK.FREQ
    boxes = Boxes(other_boxes.low + others, other_boxes.high + others)
    reach += bh.to(tl.int64) * (own_tiles if LOOK.OF_QUERIES else other_tiles)
    to = (bh.to(tl.int64) * own_tiles + tile) * width

    # tiles that causality leaves out are not looked at
    begin, end = 0, other_tiles
    if LOOK.CAUSAL:
        if LOOK.OF_QUERIES:
            last = tl.minimum((tile + 1) * LOOK.OWN, queries) - 1
            end = tl.minimum(other_tiles, tl.maximum(last + offset, 0) // LOOK.OTHER + 1)
        else:
            begin = tl.maximum(tile * LOOK.OWN - offset, 0) // LOOK.OTHER // LOOK.CHUNK * LOOK.CHUNK
    shift = 0
    if LOOK.LEVELS > 1:  # how many entries there would be with each size of granule
        level = tl.arange(0, 32)
        sizes = tl.zeros([32], tl.int32)
        for first in range(begin, end, LOOK.CHUNK):
            found = _alive(
                own, boxes, reach, mask_tiles, texts, first + t, other_tiles, offset, queries, LOOK
            )
            for s in tl.static_range(LOOK.LEVELS):
                sizes += tl.where(level == s, tl.sum(_whole(found, s, LOOK.CHUNK), 0) >> s, 0)
        shift = tl.sum((sizes > width).to(tl.int32), 0)
    count = 0
    # the largest size of the senders, or the least one that the receivers allow, turned round
    farthest = float("-inf")
    for first in range(begin, end, LOOK.CHUNK):
        found = _alive(own, boxes, reach, mask_tiles, texts, first + t, other_tiles, offset, queries, LOOK)
        entry = first + t
        if LOOK.LEVELS > 1:
            some = found
            for s in tl.static_range(1, LOOK.LEVELS):
                found = tl.where(shift == s, _whole(some, s, LOOK.CHUNK), found)
        if own_bound is not None:
            others_bound = tl.load(other_bound + others_tiles + entry, mask=found > 0, other=0.0)
            others_bound = others_bound if LOOK.OF_QUERIES else -others_bound
            farthest = tl.maximum(farthest, tl.max(tl.where(found > 0, others_bound, float("-inf")), 0))
        if LOOK.LEVELS > 1:
            # the first tile of a granule stands for it
            found = tl.where((entry & ((1 << shift) - 1)) == 0, found, 0)
            entry = entry >> shift
        tl.store(walk.entries + to + count + tl.cumsum(found, 0) - 1, entry, mask=found > 0)
        count += tl.sum(found, 0)
    counts = walk.counts + 3 * (bh.to(tl.int64) * own_tiles + tile)
    tl.store(counts, count << shift)
    tl.store(counts + 1, shift)
    far = 0
    if own_bound is not None:
        bound = tl.load(own_bound + shared_head(b, h, heads, own_heads) * own_tiles + tile)
        far = (farthest > (bound if LOOK.OF_QUERIES else -bound)).to(tl.int32)
    tl.store(counts + 2, far)


@triton.jit(do_not_specialize=GROWING)
def order_kernel(counts, order, tiles, BLOCK: tl.constexpr, CHUNK: tl.constexpr):
    """Into order (tiles,) int32 the numbers of lists, the longest first, of equally long ones the earlier:
    each one's place is the number of those before it. One launch, where a sort takes several."""
    own, t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, CHUNK)
    number = tl.load(counts + 3 * own, mask=own < tiles, other=0)[:, None]
    place = tl.zeros([BLOCK], tl.int32)
    for first in range(0, tiles, CHUNK):
        other = first + t
        its_number = tl.load(counts + 3 * other, mask=other < tiles, other=-1)[None, :]
        earlier = (its_number == number) & (other[None, :] < own[:, None])
        place += tl.sum(((its_number > number) | earlier).to(tl.int32), 1)
    tl.store(order + place, own, mask=own < tiles)


@triton.jit(do_not_specialize=GROWING)
def mask_tiles_kernel(
    mask, heads, rows, columns, tiles, row_tiles, column_tiles,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """tiles (B, heads, row tiles, column tiles) uint8: of a tile of mask (B, heads, rows, columns) 2 if all
    pairs may attend, 1 if some may. Dimensions over which the mask is broadcast are 1, and read once."""
    program = tl.program_id(0)
    row_tile, column_tile = program // column_tiles % row_tiles, program % column_tiles
    bh = program // column_tiles // row_tiles
    i = row_tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    j = column_tile * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    pointers = head_of(mask, bh // heads, bh % heads)
    pointers += i.to(tl.int64)[:, None] * mask.row + j.to(tl.int64)[None, :] * mask.column
    inside = (i < rows)[:, None] & (j < columns)[None, :]
    may = (tl.load(pointers, mask=inside, other=0) != 0).to(tl.int32)
    some = tl.max(tl.max(may, 1), 0)
    all_of_them = tl.min(tl.min(tl.where(inside, may, 1), 1), 0)
    tl.store(tiles + program.to(tl.int64), some + all_of_them)

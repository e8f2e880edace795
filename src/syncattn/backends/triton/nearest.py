"""The nearest frame's first pass: each receiver's nearest allowed sender."""

from __future__ import annotations

import triton
import triton.language as tl

from syncattn.backends.triton.detuning import (
    Tokens,
    direct_detuning,
    gram_detuning,
    left_operands,
    own_tokens,
    right_operands,
)
from syncattn.backends.triton.groups import GROWING
from syncattn.backends.triton.lists import SLACK, box_distance
from syncattn.backends.triton.pairs import (
    Masks,
    narrow_to_allowed,
    tile_of_mask,
    zero_at_oneself,
)
from syncattn.backends.triton.pointers import last_key_tile, numbers_of, shared_head


@triton.jit(do_not_specialize=GROWING)
def nearest_kernel(
    receive, send, own_boxes, other_boxes, mask, mask_tiles, nearest, heads, queries, keys,
    CHUNK: tl.constexpr, TILE: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    """Into `nearest` the smallest allowed D and its smallest number; 0 and -1 where nobody is allowed. The
    tile of senders at the same place comes first; a tile whose box is farther than every row's best so far is
    left out."""
    query_tiles, key_tiles = receive.stride // TILE.QUERIES, send.stride // TILE.KEYS
    program = tl.program_id(0)
    bh, tile = program // query_tiles, program % query_tiles
    b, h, row = bh // heads.receive, bh % heads.receive, bh.to(tl.int64) * queries
    send_bh = shared_head(b, h, heads.receive, heads.send)
    rows, columns, k = tl.arange(0, TILE.QUERIES), tl.arange(0, TILE.KEYS), tl.arange(0, TILE.BLOCK_M)
    own = tile * TILE.QUERIES
    i = own + rows
    offset = keys - queries
    masks = Masks(mask, mask_tiles, b, h, queries, keys)
    left = own_tokens(receive, bh, own, rows, TILE.FREQ)
    senders = send.base + send_bh * TILE.FREQ * send.stride
    at_own = bh.to(tl.int64) * TILE.FREQ * query_tiles + k * query_tiles + tile
    own_low = tl.load(own_boxes.low + at_own, mask=k < TILE.FREQ, other=0.0)
    own_high = tl.load(own_boxes.high + at_own, mask=k < TILE.FREQ, other=0.0)
    if not TILE.DIRECT:
        a, centre = left_operands(left, TILE)

    end = key_tiles
    if FORM.CAUSAL:
        end = last_key_tile(tile, queries, keys, key_tiles, TILE)
    home = tl.maximum(tl.minimum((own + TILE.QUERIES // 2 + offset) // TILE.KEYS, end - 1), 0)
    best = tl.full([TILE.QUERIES], float("inf"), tl.float32)
    found = tl.full([TILE.QUERIES], -1, tl.int32)
    for step in range(0, (end + CHUNK - 1) // CHUNK + 1):
        # first home, alone, then all others, CHUNK boxes at a time
        others = tl.where(step == 0, home // CHUNK, step - 1) * CHUNK + tl.arange(0, CHUNK)
        near = (others < end) & ((others == home) == (step == 0))
        at = send_bh * TILE.FREQ * key_tiles + k[:, None] * key_tiles + others[None, :]
        inside = (k < TILE.FREQ)[:, None] & near[None, :]
        distance = box_distance(
            own_low[:, None],
            own_high[:, None],
            tl.load(other_boxes.low + at, mask=inside, other=0.0),
            tl.load(other_boxes.high + at, mask=inside, other=0.0),
        )
        farthest = tl.max(tl.where(i < queries, best, 0.0), 0)
        near = near & (distance <= farthest * SLACK) & (distance < float("inf"))
        if mask_tiles is not None:
            near = near & (tl.load(tile_of_mask(masks, tile, others), mask=near, other=0) != 0)
        other = tl.min(tl.where(near, others, 2147483647), 0)
        while other < 2147483647:
            partly = mask is not None
            if mask_tiles is not None:
                partly = tl.load(tile_of_mask(masks, tile, other)) != 2
            first = other * TILE.KEYS
            j = first + columns
            right = Tokens(senders + first, send.stride, columns, first, numbers_of(send, send_bh, j))
            if TILE.DIRECT:
                squared = direct_detuning(left, right, TILE.FREQ)
            else:
                squared = gram_detuning(a, right_operands(right, centre, TILE), TILE.PACKED)
            squared = zero_at_oneself(squared, left, right, FORM)
            # NaN is nearest of all, as in torch.argmin: it must show
            squared = tl.where(squared == squared, squared, -1.0)
            if partly or send.numbers is not None or first + TILE.KEYS > tl.minimum(keys, own + offset):
                allowed = (i < queries)[:, None] & ((j < keys) & (right.numbers >= 0))[None, :]
                allowed = narrow_to_allowed(
                    allowed, left.numbers[:, None], right.numbers[None, :], masks, FORM
                )
                squared = tl.where(allowed, squared, float("inf"))
            least = tl.min(squared, 1)
            place = tl.min(tl.where(squared == least[:, None], right.numbers[None, :], 2147483647), 1)
            closer = (least < best) | ((least == best) & (place < found))
            found = tl.where(closer, place, found)
            best = tl.where(closer, least, best)
            farthest = tl.max(tl.where(i < queries, best, 0.0), 0)
            near = near & (others > other) & (distance <= farthest * SLACK)
            other = tl.min(tl.where(near, others, 2147483647), 0)
    best = tl.where(found < 0, 0.0, tl.where(best < 0.0, float("nan"), best))
    tl.store(nearest.squared + row + i, best, mask=i < queries)
    tl.store(nearest.sender + row + i, found, mask=i < queries)

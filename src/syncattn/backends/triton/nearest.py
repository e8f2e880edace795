"""The nearest frame's first pass: each receiver's nearest allowed sender."""

from __future__ import annotations

import triton
import triton.language as tl

from syncattn.backends.triton.arrange import MOST_LARGE, read_size, store_size
from syncattn.backends.triton.detuning import (
    Tokens,
    direct_detuning,
    operands,
    own_tokens,
    places,
    product_detuning,
)
from syncattn.backends.triton.groups import GROWING
from syncattn.backends.triton.lists import SLACK, box_distance
from syncattn.backends.triton.margin import alpha_of, kappa_of, largest_radius
from syncattn.backends.triton.pairs import (
    Masks,
    is_partly_masked,
    narrow_to_allowed,
    texts_of,
    tile_of_mask,
    zero_at_oneself,
)
from syncattn.backends.triton.pointers import last_key_tile, numbers_of, shared_head


@triton.jit(do_not_specialize=GROWING)
def nearest_kernel(
    receive, send, units, own_boxes, other_boxes, mask, mask_tiles, texts, nearest, law, reach,
    heads, queries, keys,
    CHUNK: tl.constexpr, TILE: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    """Into `nearest` the smallest allowed D and its smallest number; 0 and -1 where nobody is allowed. The
    tile of senders at the same place comes first, then the one before it; a tile whose box is farther than
    every row's best so far is left out. The receivers' reach and the sizes among their operands count from
    there afterwards."""
    query_tiles, key_tiles = receive.stride // TILE.QUERIES, send.stride // TILE.KEYS
    program = tl.program_id(0)
    bh, tile = program // query_tiles, program % query_tiles
    b, h, row = bh // heads.receive, bh % heads.receive, bh.to(tl.int64) * queries
    send_bh = shared_head(b, h, heads.receive, heads.send)
    rows, columns, k = tl.arange(0, TILE.QUERIES), tl.arange(0, TILE.KEYS), tl.arange(0, TILE.BLOCK_M)
    own = tile * TILE.QUERIES
    i = own + rows
    offset = keys - queries
    masks = Masks(mask, mask_tiles, texts, b, h, queries, keys)
    left = own_tokens(receive, bh, own, rows, TILE.FREQ)
    senders = send.base + send_bh * TILE.FREQ * send.stride
    at_own = bh.to(tl.int64) * TILE.FREQ * query_tiles + k * query_tiles + tile
    own_low = tl.load(own_boxes.low + at_own, mask=k < TILE.FREQ, other=0.0)
    own_high = tl.load(own_boxes.high + at_own, mask=k < TILE.FREQ, other=0.0)
    if TILE.DIRECT:
        square = 1.0
    else:
        square = tl.load(units + send_bh)
        square = square * square
        a = operands(receive, bh, own, rows, 0, TILE)
        along = places(receive, bh, own, rows)[:, None]
        largest = tl.load(receive.bound + bh * query_tiles + tile)

    end = key_tiles
    if FORM.CAUSAL:
        end = last_key_tile(tile, queries, keys, key_tiles, TILE)
    home = tl.maximum(tl.minimum((own + TILE.QUERIES // 2 + offset) // TILE.KEYS, end - 1), 0)
    # In a causal call that leaves out oneself a tile's first row has nobody in home: until each row has found
    # somebody no tile is too far.
    second = tl.where(home > 0, home - 1, tl.minimum(1, end - 1))
    best = tl.full([TILE.QUERIES], float("inf"), tl.float32)
    found = tl.full([TILE.QUERIES], -1, tl.int32)
    for step in range(0, (end + CHUNK - 1) // CHUNK + 2):
        # first home, alone, then the one beside it, then all others, CHUNK boxes at a time
        alone = tl.where(step == 0, home, second)
        others = tl.where(step < 2, alone // CHUNK, step - 2) * CHUNK + tl.arange(0, CHUNK)
        at_once = (others == alone) & ((step == 0) | (others != home))
        near = (others < end) & tl.where(step < 2, at_once, (others != home) & (others != second))
        at = send_bh * TILE.FREQ * key_tiles + k[:, None] * key_tiles + others[None, :]
        inside = (k < TILE.FREQ)[:, None] & near[None, :]
        distance = box_distance(
            own_low[:, None],
            own_high[:, None],
            tl.load(other_boxes.low + at, mask=inside, other=0.0),
            tl.load(other_boxes.high + at, mask=inside, other=0.0),
        )
        farthest = tl.max(tl.where(i < queries, best, 0.0), 0) * square
        near = near & (distance <= farthest * SLACK) & (distance < float("inf"))
        if mask_tiles is not None:
            near = near & (tl.load(tile_of_mask(masks, tile, others), mask=near, other=0) != 0)
        if texts is not None:
            near = near & texts_of(texts, b, tile, tl.minimum(others, key_tiles - 1))[0]
        other = tl.min(tl.where(near, others, 2147483647), 0)
        while other < 2147483647:
            partly = is_partly_masked(masks, tile, other)
            first = other * TILE.KEYS
            j = first + columns
            right = Tokens(senders + first, send.stride, columns, first, numbers_of(send, send_bh, j))
            if TILE.DIRECT:
                squared = direct_detuning(left, right, TILE.FREQ)
            else:
                apart = along - places(send, send_bh, first, columns)[None, :]
                squared = product_detuning(a, receive, bh, own, rows, send, send_bh, first, columns, TILE)
                squared = tl.fma(apart, apart, squared)
                squared = tl.maximum(squared, 0.0, propagate_nan=tl.PropagateNan.ALL)
                if tl.load(send.bound + send_bh * key_tiles + other) > largest:
                    squared = direct_detuning(left, right, TILE.FREQ) / square
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
            farthest = tl.max(tl.where(i < queries, best, 0.0), 0) * square
            near = near & (others > other) & (distance <= farthest * SLACK)
            other = tl.min(tl.where(near, others, 2147483647), 0)
    best = tl.where(found < 0, 0.0, tl.where(best < 0.0, float("nan"), best))
    least = best * square
    tl.store(nearest.squared + row + i, least, mask=i < queries)
    tl.store(nearest.sender + row + i, found, mask=i < queries)
    far = largest_radius(kappa_of(law, b, h, i, queries), alpha_of(law, h))
    far = far + tl.where(least == least, least, float("inf"))
    own_tile = bh.to(tl.int64) * query_tiles + tile
    tl.store(reach + own_tile, tl.max(tl.where(i < queries, far, 0.0), 0))
    if not TILE.DIRECT:
        to = receive.operands + (bh.to(tl.int64) * receive.stride + i) * TILE.PRODUCT
        size = read_size(to, TILE.FREQ) - best
        beyond = tl.abs(size) >= MOST_LARGE
        if tl.max(beyond.to(tl.int32), 0) > 0:
            tl.store(receive.bound + own_tile, float("-inf"))
        store_size(to, tl.where(beyond, 0.0, size), i < receive.stride, TILE.FREQ)

"""The forward: one program for each tile of receivers, walking the tiles of senders that can lock to it."""

from __future__ import annotations

import triton
import triton.language as tl

from syncattn.backends.triton.detuning import (
    Tokens,
    along_axis,
    beyond_nearest,
    direct_detuning,
    operands,
    own_tokens,
    places,
    product_detuning,
    zero_at_nearest,
)
from syncattn.backends.triton.groups import GROWING
from syncattn.backends.triton.margin import alpha_of, head_term_of, kappa_of, row_term_of, strength_of
from syncattn.backends.triton.pairs import (
    Masks,
    kept_pairs,
    margin_of_tile,
    nearest_of_rows,
    row_words,
    zero_at_oneself,
)
from syncattn.backends.triton.pointers import (
    first_of,
    head_of,
    is_far,
    load_values,
    meet,
    numbers_of,
    own_place,
    shared_head,
    walk_of,
)
from syncattn.backends.triton.products import add_sums, no_sums, row_sums, value_product


@triton.jit(do_not_specialize=GROWING)
def forward_kernel(
    receive, send, value, law, mask, mask_tiles, texts, dropout, units, nearest, walk, width, out, row_sum,
    heads, queries, keys, eps,
    DIRECT: tl.constexpr, EVEN: tl.constexpr, TILE: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    """out (B, H, N, d) and row_sum (B, H, N) of one tile of receivers. Where D is a product another launch,
    DIRECT, sees to the tiles for which it would not be exact enough: both in one kernel would take the
    registers. The groups: groups.py."""
    query_tiles = receive.stride // TILE.QUERIES
    bh, tile = own_place(walk, query_tiles, FORM.CAUSAL)
    if not TILE.DIRECT:
        if is_far(walk, bh * query_tiles + tile) != DIRECT:
            return
    b, h, row = bh // heads.receive, bh % heads.receive, bh.to(tl.int64) * queries
    send_bh = shared_head(b, h, heads.receive, heads.send)
    rows, columns, d = tl.arange(0, TILE.QUERIES), tl.arange(0, TILE.WALK), tl.arange(0, TILE.BLOCK_D)
    own = tile * TILE.QUERIES
    i = own + rows
    masks = Masks(mask, mask_tiles, texts, b, h, queries, keys)

    left = own_tokens(receive, bh, own, rows, TILE.FREQ)
    senders = send.base + send_bh * TILE.FREQ * send.stride
    values = head_of(value, b, h // (heads.receive // heads.value))
    row_term = row_term_of(kappa_of(law, b, h, i, queries))[:, None]
    head_term = head_term_of(alpha_of(law, h))
    if not DIRECT:
        unit = tl.load(units + send_bh)
        row_term, head_term = row_term * (unit * unit), head_term * (unit * unit)
        a = operands(receive, bh, own, rows, 0, TILE)
        along = places(receive, bh, own, rows)[:, None]
    if nearest is not None:
        least, sender, first_sender, nearest_senders = nearest_of_rows(nearest, row + i, i < queries)
    if dropout is not None:
        words = row_words(tl.load(dropout.seed), row + left.numbers)[:, None]

    # What the tensor cores sum is rounded as what they mix; with dropout other pairs are summed than mixed.
    BY_PRODUCT: tl.constexpr = value.base.dtype.element_ty == tl.bfloat16 and dropout is None
    total = no_sums(TILE.QUERIES, BY_PRODUCT)
    mixed = tl.zeros([TILE.QUERIES, TILE.BLOCK_D], tl.float32)
    own_list = bh * query_tiles + tile
    end, shift = walk_of(walk, own_list)
    for step in range(0, end * (TILE.KEYS // TILE.WALK)):
        first = first_of(walk, width, own_list, shift, step, TILE.KEYS, TILE.WALK)
        j = first + columns
        right = Tokens(senders + first, send.stride, columns, first, numbers_of(send, send_bh, j))
        if DIRECT:
            squared = direct_detuning(left, right, TILE.FREQ)
            if nearest is not None:
                squared = beyond_nearest(squared, least[:, None])
        else:
            apart = along - places(send, send_bh, first, columns)[None, :]
            squared = product_detuning(a, receive, bh, own, rows, send, send_bh, first, columns, TILE)
            squared = along_axis(apart, squared, nearest is not None)
        squared = zero_at_oneself(squared, left, right, FORM)
        if nearest is not None:
            if meet(first, TILE.WALK, first_sender, nearest_senders):
                squared = zero_at_nearest(squared, least[:, None], j[None, :] == sender[:, None])
        margin, _ = margin_of_tile(squared, row_term, head_term, left, right, masks, False, TILE, FORM)
        strength = strength_of(margin, law.edge, FORM.POWER)
        total = add_sums(strength, total, BY_PRODUCT)
        if dropout is not None:
            kept = kept_pairs(words, right.numbers[None, :], dropout.threshold)
            strength = tl.where(kept, strength * dropout.scale, 0.0)
        v = load_values(values, value.token, first, columns, d, keys, False, EVEN, TILE)
        mixed = value_product(strength.to(v.dtype), v, mixed, TILE.VALUE_PRECISION)

    total = row_sums(total, BY_PRODUCT)
    mixed = mixed / tl.where(total == 0.0, 1.0, total + eps)[:, None]
    tl.store(row_sum + row + i, total, mask=i < queries)
    to = out + (row + own) * TILE.DIM + rows[:, None] * TILE.DIM + d[None, :]
    inside = (i < queries)[:, None] & (d < TILE.DIM)[None, :]
    tl.store(to, mixed.to(out.dtype.element_ty), mask=inside)

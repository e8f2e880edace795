"""The backward: one kernel over tiles of receivers, one over tiles of senders. Each recomputes the pairs
that it needs and owns what it writes: no atomics, the same bits every time.

With delta_i = <dO_i, out_i> and Z the row sums:

    dW = (dO v^T - delta) / Z,  dD = dW W'(F) F'(D),  dv = (W / Z)^T dO,
    dw^r_i = 2 sum_j dD_ij (w^r_i - w^s_j),  dw^s_j the same with the other sign.

Frequencies are counted from the head's centre in its unit; where D is taken as differences, from the mean of
the own tile's, in their own. In the nearest frame the pair of a receiver and its
nearest sender takes back the sum of the row's dD, and gets what somebody asks of its own D besides.
"""

from __future__ import annotations

import triton
import triton.language as tl

from syncattn.backends.triton.detuning import (
    Tokens,
    about_centre,
    along_axis,
    beyond_nearest,
    direct_detuning,
    drawn_directly,
    drawn_product,
    drawn_tokens,
    joined,
    operands,
    own_tokens,
    places,
    product_detuning,
    zero_at_nearest,
)
from syncattn.backends.triton.groups import GROWING
from syncattn.backends.triton.margin import (
    alpha_is_free,
    alpha_of,
    bandwidth_gradient,
    coupling_gradient,
    head_term_of,
    kappa_is_free,
    kappa_of,
    row_term_of,
    strength_of,
    through_margin,
    through_strength,
)
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

# What the first kernel leaves of each receiver to the second: what F takes of it, 1 / Z, delta / Z, and in
# the nearest frame what the nearest sender takes back, its D and its place (the bits of an int32).
ROW_NUMBERS = tl.constexpr(6)


@triton.jit(do_not_specialize=GROWING)
def receivers_kernel(
    receive, send, value, law, mask, mask_tiles, texts, dropout, units, nearest, walk, width, grad,
    grad_nearest, out, row_sum, for_senders, gradients, heads, queries, keys, eps,
    DIRECT: tl.constexpr, EVEN: tl.constexpr, TILE: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    """The gradients of one tile of receivers, and what `senders_kernel` reads of it. grad_nearest (B, H, N):
    dL/dD of each receiver's nearest sender, from outside; None: none."""
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
    here = i < queries
    masks = Masks(mask, mask_tiles, texts, b, h, queries, keys)

    left = own_tokens(receive, bh, own, rows, TILE.FREQ)
    senders = send.base + send_bh * TILE.FREQ * send.stride
    values = head_of(value, b, h // (heads.receive // heads.value))
    kappa = kappa_of(law, b, h, i, queries)
    unit = 1.0 if DIRECT else tl.load(units + send_bh)
    # to the senders everything is told in the head's unit, however it was computed here
    to_unit = tl.load(units + send_bh) if DIRECT and not TILE.DIRECT else 1.0
    row_term = row_term_of(kappa) * (unit * unit)
    alpha = alpha_of(law, h) * (unit * unit)
    head_term = head_term_of(alpha)
    if DIRECT:
        own_w, centre = about_centre(left, TILE.FREQ, TILE.BLOCK_M)
    else:
        a = operands(receive, bh, own, rows, 0, TILE)
        along = places(receive, bh, own, rows)[:, None]
    total = tl.load(row_sum + row + i, mask=here, other=0.0)
    scale = 1.0 / tl.where(total == 0.0, 1.0, total + eps)
    inside = here[:, None] & (d < TILE.DIM)[None, :]
    gradient = head_of(grad, b, h) + i.to(tl.int64)[:, None] * grad.token + d[None, :]
    dout = tl.load(gradient, mask=inside, other=0.0)
    mixed = tl.load(out + (row + i)[:, None] * TILE.DIM + d[None, :], mask=inside, other=0.0)
    delta = tl.sum(dout.to(tl.float32) * mixed.to(tl.float32), 1) * scale
    numbers = for_senders.numbers + bh.to(tl.int64) * ROW_NUMBERS * receive.stride + i
    tl.store(numbers, row_term * (to_unit * to_unit))
    tl.store(numbers + receive.stride, scale)
    tl.store(numbers + 2 * receive.stride, delta)
    if nearest is not None:
        least, sender, first_sender, nearest_senders = nearest_of_rows(nearest, row + i, here)
        ranges = for_senders.ranges + bh.to(tl.int64) * 2 * query_tiles + tile
        tl.store(ranges, first_sender)
        tl.store(ranges + query_tiles, nearest_senders)
        tl.store(numbers + 4 * receive.stride, least)
        tl.store(numbers + 5 * receive.stride, sender.to(tl.float32, bitcast=True))
    if dropout is not None:
        words = row_words(tl.load(dropout.seed), row + left.numbers)[:, None]

    DRAWN: tl.constexpr = TILE.BLOCK_M if DIRECT else TILE.DRAWN
    drawn = tl.zeros([TILE.QUERIES, DRAWN], tl.float32)  # sum_j dD_ij w^s_j
    summed = no_sums(TILE.QUERIES, TILE.SPLIT == 1)
    to_coupling = tl.zeros([TILE.QUERIES], tl.float32)
    to_bandwidth = tl.zeros([TILE.QUERIES], tl.float32)
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
        margin, decay_square = margin_of_tile(
            squared, row_term[:, None], head_term, left, right, masks, False, TILE, FORM
        )
        v = load_values(values, value.token, first, columns, d, keys, True, EVEN, TILE)
        flow = value_product(dout, v, tl.zeros([TILE.QUERIES, TILE.WALK], tl.float32), TILE.VALUE_PRECISION)
        if dropout is not None:
            kept = kept_pairs(words, right.numbers[None, :], dropout.threshold)
            flow = tl.where(kept, flow * dropout.scale, 0.0)
        flow = flow * scale[:, None] - delta[:, None]
        flow = through_strength(flow, margin, law.edge, FORM.POWER)
        dsquared, of_coupling, of_bandwidth = through_margin(
            flow, squared, decay_square, row_term[:, None], alpha
        )
        to_coupling += tl.sum(of_coupling, 1)
        to_bandwidth += tl.sum(of_bandwidth, 1)
        dsquared = zero_at_oneself(dsquared, left, right, FORM)
        summed = add_sums(dsquared, summed, TILE.SPLIT == 1)
        if DIRECT:
            drawn = drawn_directly(dsquared, right, centre, drawn, TILE.SPLIT, TILE)
        else:
            w = drawn_tokens(send, send_bh, first, columns, TILE)
            drawn = drawn_product(dsquared, w, drawn, TILE.SPLIT)

    summed = row_sums(summed, TILE.SPLIT == 1)
    if nearest is not None:
        taken = summed
        if grad_nearest is not None:
            asked = tl.load(grad_nearest + row + i, mask=sender >= 0, other=0.0) * (unit * unit)
            taken = summed - asked
        tl.store(numbers + 3 * receive.stride, taken * (to_unit * to_unit))
    if DIRECT:
        k = tl.arange(0, TILE.BLOCK_M)
        if nearest is not None:
            found = (sender >= 0)[None, :] & (k < TILE.FREQ)[:, None]
            own_w = tl.load(senders + k[:, None] * send.stride + sender[None, :], mask=found, other=0.0)
            own_w -= centre[:, None]
        gradient = summed[:, None] * tl.trans(own_w) - drawn
        if grad_nearest is not None:
            apart = about_centre(left, TILE.FREQ, TILE.BLOCK_M)[0] - own_w
            gradient += asked[:, None] * tl.trans(apart)
    else:
        k = tl.arange(0, TILE.DRAWN // 2)
        if nearest is not None:
            own_w = drawn_tokens(send, send_bh, 0, tl.maximum(sender, 0), TILE)
        else:
            own_w = drawn_tokens(receive, bh, own, rows, TILE)
        gradient = summed[:, None] * joined(own_w, TILE.DRAWN) - joined(drawn, TILE.DRAWN)
        if grad_nearest is not None:
            apart = joined(drawn_tokens(receive, bh, own, rows, TILE), TILE.DRAWN) - joined(own_w, TILE.DRAWN)
            gradient += asked[:, None] * apart
    to = gradients.receive + (row + i)[:, None] * TILE.FREQ + k[None, :]
    gradient = (gradient * (2.0 / unit)).to(gradients.receive.dtype.element_ty)
    tl.store(to, gradient, mask=here[:, None] & (k < TILE.FREQ)[None, :])
    to_coupling = coupling_gradient(to_coupling * (unit * unit), kappa)
    to_coupling = tl.where(kappa_is_free(law, b, h, i, queries), to_coupling, 0.0)
    tl.store(gradients.coupling + row + i, to_coupling, mask=here)
    to_bandwidth = bandwidth_gradient(tl.sum(tl.where(here, to_bandwidth, 0.0), 0)) * (unit * unit)
    to_bandwidth = tl.where(alpha_is_free(law, h), to_bandwidth, 0.0)
    tl.store(gradients.bandwidth + bh * query_tiles + tile, to_bandwidth)


@triton.jit(do_not_specialize=GROWING)
def senders_kernel(
    receive, send, value, law, mask, mask_tiles, texts, dropout, units, walk, width, grad, for_senders,
    grad_send, grad_value, heads, queries, keys,
    DIRECT: tl.constexpr, EVEN: tl.constexpr, NEAREST: tl.constexpr, TILE: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    """Of one tile of senders, for one head of receivers: grad_send (B, H, M, m) and grad_value (B, H, M, d).
    Its tiles of pairs are (senders, receivers)."""
    query_tiles, key_tiles = receive.stride // TILE.QUERIES, send.stride // TILE.KEYS
    bh, tile = own_place(walk, key_tiles, False)
    if not TILE.DIRECT:
        if is_far(walk, bh * key_tiles + tile) != DIRECT:
            return
    b, h, row = bh // heads.receive, bh % heads.receive, bh.to(tl.int64) * queries
    send_bh = shared_head(b, h, heads.receive, heads.send)
    rows, columns, d = tl.arange(0, TILE.KEYS), tl.arange(0, TILE.WALK), tl.arange(0, TILE.BLOCK_D)
    own = tile * TILE.KEYS
    j = own + rows
    here = j < keys
    masks = Masks(mask, mask_tiles, texts, b, h, queries, keys)

    left = own_tokens(send, send_bh, own, rows, TILE.FREQ)
    receivers = receive.base + bh.to(tl.int64) * TILE.FREQ * receive.stride
    values = head_of(value, b, h // (heads.receive // heads.value))
    gradients = head_of(grad, b, h)
    all_numbers = for_senders.numbers + bh.to(tl.int64) * ROW_NUMBERS * receive.stride
    plane = tl.cast(receive.stride, tl.int64)
    all_ranges = for_senders.ranges + bh.to(tl.int64) * 2 * query_tiles
    unit = 1.0 if DIRECT else tl.load(units + send_bh)
    from_unit = 1.0
    if DIRECT and not TILE.DIRECT:
        from_unit = 1.0 / tl.load(units + send_bh)
    alpha = alpha_of(law, h) * (unit * unit)
    head_term = head_term_of(alpha)
    if DIRECT:
        own_w, centre = about_centre(left, TILE.FREQ, TILE.BLOCK_M)
    else:
        a = operands(send, send_bh, own, rows, 0, TILE)
        along = places(send, send_bh, own, rows)[:, None]
    inside = here[:, None] & (d < TILE.DIM)[None, :]
    v = tl.load(values + j.to(tl.int64)[:, None] * value.token + d[None, :], mask=inside, other=0.0)
    if dropout is not None:
        seed = tl.load(dropout.seed)

    dvalue = tl.zeros([TILE.KEYS, TILE.BLOCK_D], tl.float32)
    DRAWN: tl.constexpr = TILE.BLOCK_M if DIRECT else TILE.DRAWN
    drawn = tl.zeros([TILE.KEYS, DRAWN], tl.float32)  # sum_i dD_ij w^r_i
    summed = no_sums(TILE.KEYS, TILE.SPLIT == 1)
    own_list = bh * key_tiles + tile
    end, shift = walk_of(walk, own_list)
    for step in range(0, end * (TILE.QUERIES // TILE.WALK)):
        first = first_of(walk, width, own_list, shift, step, TILE.QUERIES, TILE.WALK)
        numbers = all_numbers + first + columns
        row_term = tl.load(numbers)[None, :] * (from_unit * from_unit)
        scale = tl.load(numbers + plane)[None, :]
        i_numbers = numbers_of(receive, bh, first + columns)
        right = Tokens(receivers + first, receive.stride, columns, first, i_numbers)
        if DIRECT:
            squared = direct_detuning(left, right, TILE.FREQ)
            if NEAREST:
                squared = beyond_nearest(squared, tl.load(numbers + 4 * plane)[None, :])
        else:
            apart = along - places(receive, bh, first, columns)[None, :]
            squared = product_detuning(a, send, send_bh, own, rows, receive, bh, first, columns, TILE)
            squared = along_axis(apart, squared, NEAREST)
        squared = zero_at_oneself(squared, left, right, FORM)
        if NEAREST:
            ranges = all_ranges + first // TILE.QUERIES
            some_nearest = meet(own, TILE.KEYS, tl.load(ranges), tl.load(ranges + query_tiles))
            if some_nearest:
                sender = tl.load(numbers + 5 * plane).to(tl.int32, bitcast=True)[None, :]
                least = tl.load(numbers + 4 * plane)[None, :]
                squared = zero_at_nearest(squared, least, j[:, None] == sender)
        margin, decay_square = margin_of_tile(
            squared, row_term, head_term, left, right, masks, True, TILE, FORM
        )
        strength = strength_of(margin, law.edge, FORM.POWER)
        dout = load_values(gradients, grad.token, first, columns, d, queries, False, EVEN, TILE)
        flow = value_product(
            v, tl.trans(dout), tl.zeros([TILE.KEYS, TILE.WALK], tl.float32), TILE.VALUE_PRECISION
        )
        weight = strength * scale
        if dropout is not None:
            words = row_words(seed, row + i_numbers)[None, :]
            kept = kept_pairs(words, left.numbers[:, None], dropout.threshold)
            weight = tl.where(kept, weight * dropout.scale, 0.0)
            flow = tl.where(kept, flow * dropout.scale, 0.0)
        dvalue = value_product(weight.to(dout.dtype), dout, dvalue, TILE.VALUE_PRECISION)
        flow = flow * scale - tl.load(numbers + 2 * plane)[None, :]
        flow = through_strength(flow, margin, law.edge, FORM.POWER)
        dsquared, _, _ = through_margin(flow, squared, decay_square, row_term, alpha)
        if NEAREST:
            if some_nearest:
                sender = tl.load(numbers + 5 * plane).to(tl.int32, bitcast=True)[None, :]
                taken = tl.load(numbers + 3 * plane)[None, :] * (from_unit * from_unit)
                dsquared = tl.where(j[:, None] == sender, dsquared - taken, dsquared)
        dsquared = zero_at_oneself(dsquared, left, right, FORM)
        summed = add_sums(dsquared, summed, TILE.SPLIT == 1)
        if DIRECT:
            drawn = drawn_directly(dsquared, right, centre, drawn, TILE.SPLIT, TILE)
        else:
            w = drawn_tokens(receive, bh, first, columns, TILE)
            drawn = drawn_product(dsquared, w, drawn, TILE.SPLIT)

    summed = row_sums(summed, TILE.SPLIT == 1)
    if DIRECT:
        k = tl.arange(0, TILE.BLOCK_M)
        gradient = summed[:, None] * tl.trans(own_w) - drawn
    else:
        k = tl.arange(0, TILE.DRAWN // 2)
        own_w = drawn_tokens(send, send_bh, own, rows, TILE)
        gradient = summed[:, None] * joined(own_w, TILE.DRAWN) - joined(drawn, TILE.DRAWN)
    gradient = (gradient * (2.0 / unit)).to(grad_send.dtype.element_ty)
    to = bh.to(tl.int64) * keys + j
    within = here[:, None] & (k < TILE.FREQ)[None, :]
    tl.store(grad_send + to[:, None] * TILE.FREQ + k[None, :], gradient, mask=within)
    dvalue = dvalue.to(grad_value.dtype.element_ty)
    tl.store(grad_value + to[:, None] * TILE.DIM + d[None, :], dvalue, mask=inside)

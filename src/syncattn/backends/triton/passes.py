"""The forward and the backward as sequences of kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from syncattn.backends.call import Call
from syncattn.backends.operator import sum_groups
from syncattn.backends.triton.backward import ROW_NUMBERS, receivers_kernel, senders_kernel
from syncattn.backends.triton.decode import combine_kernel, nearest_part_kernel, part_kernel
from syncattn.backends.triton.forward import forward_kernel
from syncattn.backends.triton.groups import (
    ForSenders,
    Frequencies,
    Gradients,
    Nearest,
    Rows,
)
from syncattn.backends.triton.launch import (
    CHUNK_OF_NEAREST,
    Launch,
    cdiv,
    last_contiguous,
    next_power_of_2,
    tiles_of_receivers,
)
from syncattn.backends.triton.nearest import nearest_kernel
from syncattn.backends.triton.plan import planned
from syncattn.backends.triton.start import Host

MOST_DECODED = 4  # up to so many receivers the senders are split over programs, of which there are about
_PROGRAMS = 1056  # eight for each multiprocessor of an H200: the loads of one are few
_FOUR_WARPS = {"num_warps": 4}


def forward(call: Call) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(out (B, H, N, d) in value's dtype, and what the backward needs: the row sums (B, H, N) float32; in the
    nearest frame also the nearest sender's D, float32, and place, int32, (B, H, N), else empty ones)."""
    value, nearest, rows = call.value, call.frame == "nearest", call.receive.shape[:3]
    framed = rows if nearest else (0,)
    out = value.new_empty(*rows, value.shape[-1])
    row_sum = value.new_empty(rows, dtype=torch.float32)
    base = value.new_empty(framed, dtype=torch.float32)
    sender = value.new_empty(framed, dtype=torch.int32)
    if row_sum.numel() == 0 or value.numel() == 0:
        return out.zero_(), row_sum.zero_(), base.zero_(), sender.fill_(-1)
    run = _decode if rows[2] <= MOST_DECODED else _forward
    return planned(run, call, (), (out, row_sum, base, sender))  # type: ignore[return-value]


def _forward(
    host: Host, call: Call, out: Tensor, row_sum: Tensor, base: Tensor, sender: Tensor
) -> tuple[Tensor, ...]:
    nearest, p = call.frame == "nearest", Launch(call, "forward", host=host)
    if nearest:
        find_nearest(p, Nearest(base, sender))
    lists = p.lists(of_queries=True)
    at = Nearest(base, p.places(sender)) if nearest else None
    p.start(
        forward_kernel, (p.batch * p.heads * p.receive.tiles,),
        *_weighed(p), at, lists, lists.entries.shape[2], out, row_sum,
        p.head_counts(p.send.heads), p.queries, p.keys, p.call.eps,
        variants=p.ways, EVEN=p.keys == p.send.planes.stride, **p.compiled("forward"),
    )  # fmt: skip
    if nearest:
        base, sender = p.rows_back(base), p.rows_back(sender)
    return p.rows_back(out), p.rows_back(row_sum), base, sender


def find_nearest(p: Launch, nearest: Nearest) -> None:
    """Each receiver's nearest allowed sender, by its number in the call, the receivers in the order of p."""
    p.start(
        nearest_kernel, (p.batch * p.heads * p.receive.tiles,),
        p.receive.planes, p.send.planes, p.frames.units, p.receive.boxes, p.send.boxes, p.mask, p.mask_tiles,
        p.texts, nearest, p.law(), p.reach, p.head_counts(p.send.heads), p.queries, p.keys,
        CHUNK=CHUNK_OF_NEAREST, TILE=p.tile("forward"), FORM=p.form(), options=_FOUR_WARPS,
    )  # fmt: skip


def _decode(
    host: Host, call: Call, out: Tensor, row_sum: Tensor, base: Tensor, sender: Tensor
) -> tuple[Tensor, ...]:
    """The forward with the senders split over programs."""
    p = Launch(call, "forward", arranged=False, host=host)
    receive, send = (Frequencies(x, *x.stride()) for x in p.call[:2])
    rows = p.batch * p.heads * p.queries
    keys_block = 64 if p.block_d <= 64 else 32
    tiles = cdiv(p.keys, keys_block)
    # by the shapes alone, so that the sums are taken in the same order on every device
    part_tiles = cdiv(tiles, max(1, min(cdiv(tiles, 2), _PROGRAMS // rows)))
    parts = cdiv(tiles, part_tiles)
    mixed, total = p.empty(rows, parts, p.value_dim), p.empty(rows, parts)
    heads = p.head_counts(p.call.send.shape[1])
    sizes = p.queries, p.keys, parts, part_tiles
    compiled: dict[str, Any] = {
        "TILE": p.tile("forward", KEYS=keys_block),
        "FORM": p.form(),
        "options": _FOUR_WARPS,
    }
    nearest = of_part = None
    if p.nearest:
        nearest = Nearest(base, sender)
        of_part = Nearest(p.empty(rows, parts), p.empty(rows, parts, dtype=torch.int32))
        p.start(
            nearest_part_kernel, (rows, parts),
            receive, send, p.mask, p.texts, of_part, heads, *sizes, **compiled,
        )  # fmt: skip
    p.start(
        part_kernel, (rows, parts),
        receive, send, p.values(), p.law(), p.mask, p.texts, p.dropout, of_part, nearest, mixed, total,
        heads, *sizes, PARTS=max(64, next_power_of_2(parts)), **compiled,
    )  # fmt: skip
    p.start(
        combine_kernel, (rows,), mixed, total, out, row_sum, parts, p.call.eps,
        DIM=p.value_dim, BLOCK_D=p.block_d, options=_FOUR_WARPS,
    )  # fmt: skip
    return out, row_sum, base, sender


def _weighed(p: Launch) -> tuple[Any, ...]:
    """The arguments that the kernels which weigh pairs begin with. Unsorted, places are the numbers, and a
    sender that stands nowhere meets nobody but itself."""
    numbered = p.order is not None or p.call.symmetric
    receive, send = (x.planes if numbered else x.planes._replace(numbers=None) for x in (p.receive, p.send))
    return receive, send, p.values(), p.law(), p.mask, p.mask_tiles, p.texts, p.dropout, p.frames.units


def backward(
    call: Call,
    grad: Tensor,
    out: Tensor,
    row_sum: Tensor,
    base: Tensor,
    sender: Tensor,
    grad_nearest: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of receive, send, value, coupling and bandwidth; grad_nearest: dL/d base, or None."""
    receive, send, value, coupling = call[:4]
    if row_sum.numel() == 0 or value.numel() == 0:
        return tuple(x.new_zeros(x.shape) for x in call[:5])  # type: ignore[return-value]
    # hooks on saved tensors may give them back in another layout
    saved = (x.contiguous() for x in (out, row_sum, base, sender))
    asked = None if grad_nearest is None else grad_nearest.contiguous()
    given = last_contiguous(grad), *saved, asked
    rows = call.receive.shape[:3]
    results = (
        torch.empty_like(receive, memory_format=torch.contiguous_format),
        row_sum.new_empty(rows),
        row_sum.new_empty(*rows[:2], tiles_of_receivers(call)),
        _per_head(rows[1], send),
        _per_head(rows[1], value),
    )
    grad_receive, by_row, by_tile, grad_send, grad_value = planned(_backward, call, given, results)
    return (
        grad_receive,
        sum_groups(grad_send, send),
        sum_groups(grad_value, value),
        by_row.sum_to_size(coupling.shape),
        by_tile.sum((0, 2)),
    )


def _backward(
    host: Host,
    call: Call,
    grad: Tensor,
    out: Tensor,
    row_sum: Tensor,
    base: Tensor,
    sender: Tensor,
    grad_nearest: Tensor | None,
    *results: Tensor,
) -> tuple[Tensor, ...]:
    """The gradients of receivers, of their coupling and, by tile, of their bandwidth; those of send and value
    for each head of receivers."""
    p = Launch(call, "receivers", "senders", base=base if call.frame == "nearest" else None, host=host)
    # to the order in which p has the receivers, and the results back again
    grad, out, row_sum = (p.sorted_rows(x) for x in (grad, out, row_sum))
    if grad_nearest is not None:
        grad_nearest = p.sorted_rows(grad_nearest)
    if p.nearest:
        base, sender = p.sorted_rows(base), p.places(p.sorted_rows(sender))
    nearest = Nearest(base, sender) if p.nearest else None
    by_query, by_key = p.lists(of_queries=True), p.lists(of_queries=False)
    heads_in_all = p.batch * p.heads
    for_senders = ForSenders(
        p.empty(heads_in_all, ROW_NUMBERS.value, p.receive.planes.stride),
        p.empty(heads_in_all, 2, p.receive.tiles, dtype=torch.int32),
    )
    of_receivers, (grad_send, grad_value) = Gradients(*results[:3]), results[3:]
    gradient = Rows(grad, *grad.stride()[:3])
    sizes = p.head_counts(p.send.heads), p.queries, p.keys
    p.start(
        receivers_kernel, (heads_in_all * p.receive.tiles,),
        *_weighed(p), nearest, by_query, by_query.entries.shape[2], gradient, grad_nearest, out, row_sum,
        for_senders, of_receivers, *sizes, p.call.eps,
        variants=p.ways, EVEN=p.keys == p.send.planes.stride, **p.compiled("receivers"),
    )  # fmt: skip
    p.start(
        senders_kernel, (heads_in_all * p.send.tiles,),
        *_weighed(p), by_key, by_key.entries.shape[2], gradient, for_senders, grad_send, grad_value,
        *sizes, variants=p.ways, EVEN=p.queries == p.receive.planes.stride, NEAREST=p.nearest,
        **p.compiled("senders"),
    )  # fmt: skip
    by_row = (p.rows_back(x) for x in of_receivers[:2])
    return *by_row, of_receivers.bandwidth, p.senders_back(grad_send), p.senders_back(grad_value)


def _per_head(heads: int, x: Tensor) -> Tensor:
    """Room for the gradient of x from each head of receivers; float32 if several are to be summed."""
    shape = (len(x), heads, *x.shape[2:])
    return x.new_empty(shape, dtype=x.dtype if x.shape[1] == heads else torch.float32)

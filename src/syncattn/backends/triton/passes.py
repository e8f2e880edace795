"""The forward and the backward as sequences of kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from syncattn.backends.triton.backward import receivers_kernel, senders_kernel
from syncattn.backends.triton.decode import combine_kernel, nearest_part_kernel, part_kernel
from syncattn.backends.triton.forward import forward_kernel
from syncattn.backends.triton.launch import CHUNK_OF_NEAREST, SPLIT, Lists, Problem, last_contiguous, on
from syncattn.backends.triton.nearest import nearest_kernel

MOST_DECODED = 4  # up to so many receivers the senders are split over programs, of which there are about
_PROGRAMS = 1056  # eight for each multiprocessor of an H200: the loads of one are few


def forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(out (B, H, N, d) in value's dtype, and what the backward needs: the row sums (B, H, N) float32; in the
    nearest frame also the nearest sender's D, float32, and place, int32, (B, H, N), else empty ones)."""
    value, nearest = arguments[2], arguments[10]
    rows = arguments[0].shape[:3]
    framed = rows if nearest else (0,)
    out = value.new_empty(*rows, value.shape[-1])
    row_sum = value.new_empty(rows, dtype=torch.float32)
    base = value.new_empty(framed, dtype=torch.float32)
    sender = value.new_empty(framed, dtype=torch.int32)
    if row_sum.numel() == 0 or value.numel() == 0:
        return out.zero_(), row_sum.zero_(), base.zero_(), sender.fill_(-1)
    if rows[2] <= MOST_DECODED:
        _decode(Problem(arguments, arranged=False), arguments, out, row_sum, base, sender)
        return out, row_sum, base, sender
    p = Problem(arguments)
    if nearest:
        find_nearest(p, base, sender)
    sender_place = p.places(sender) if nearest else sender
    lists = None
    if p.listed:
        lists = p.lists(p.reach(base if nearest else None), of_queries=True)
    with on(p.device):
        forward_kernel[(p.batch * p.heads * p.receive.tiles,)](
            *common(p), base, sender_place, *_walk(p, lists), out, row_sum,
            p.heads, p.send.heads, p.value.shape[1], p.queries, p.keys, p.receive.tiles, p.send.tiles,
            p.options.eps, p.options.edge,
            EVEN=p.keys == p.send.plane, LISTED=lists is not None,
            ORDERED=lists is not None and lists.order is not None, **p.pairs(), **p.weights(),
        )  # fmt: skip
    if nearest:
        base, sender = p.rows_back(base), p.rows_back(sender)
    return p.rows_back(out), p.rows_back(row_sum), base, sender


def find_nearest(p: Problem, base: Tensor, sender: Tensor) -> None:
    """Each receiver's nearest allowed sender, into base and sender (B, H, N): its number in the call, the
    receivers in the order of p."""
    with on(p.device):
        nearest_kernel[(p.batch * p.heads * p.receive.tiles,)](
            *_frequencies(p), p.receive.low, p.receive.high, p.send.low, p.send.high, p.mask, *p.mask_strides,
            *_mask_tiles(p), base, sender,
            p.heads, p.send.heads, p.queries, p.keys, p.receive.tiles, p.send.tiles,
            **p.pairs(), NUMBERED=p.numbered, CHUNK=CHUNK_OF_NEAREST, num_warps=4,
        )  # fmt: skip


def _decode(
    p: Problem, arguments: Sequence[Any], out: Tensor, row_sum: Tensor, base: Tensor, sender: Tensor
) -> None:
    """The forward with the senders split over programs."""
    receive, send = arguments[:2]
    rows = p.batch * p.heads * p.queries
    keys_block = 64 if p.block_d <= 64 else 32
    tiles = triton.cdiv(p.keys, keys_block)
    # by the shapes alone, so that the sums are taken in the same order on every device
    part_tiles = triton.cdiv(tiles, max(1, min(triton.cdiv(tiles, 2), _PROGRAMS // rows)))
    parts = triton.cdiv(tiles, part_tiles)
    mixed = row_sum.new_empty(rows, parts, p.value_dim)
    total = row_sum.new_empty(rows, parts)
    least, place = total, sender
    pairs = p.pairs()
    common = {name: pairs[name] for name in ("FREQ", "BLOCK_M", "CAUSAL", "SELF", "MASK")}
    common |= {"KEYS": keys_block, "num_warps": 4}
    sides = (receive, *receive.stride(), send, *send.stride())
    mask = (p.mask, *p.mask_strides)
    with on(p.device):
        if p.options.nearest:
            least, place = torch.empty_like(total), sender.new_empty(rows, parts)
            nearest_part_kernel[(rows, parts)](
                *sides, *mask, least, place,
                p.heads, send.shape[1], p.queries, p.keys, parts, part_tiles, **common,
            )  # fmt: skip
        weights = p.weights()
        names = ("DIM", "BLOCK_D", "DROPOUT", "NEAREST", "POWER", "HAS_EDGE")
        part_kernel[(rows, parts)](
            *sides, p.value, *p.value.stride()[:3], p.coupling, *p.coupling.stride(), p.bandwidth, *mask,
            *p.dropout(), least, place, base, sender, mixed, total,
            p.heads, send.shape[1], p.value.shape[1], p.queries, p.keys, parts, part_tiles, p.options.edge,
            PARTS=max(64, triton.next_power_of_2(parts)), **common, **{name: weights[name] for name in names},
        )  # fmt: skip
        combine_kernel[(rows,)](
            mixed, total, out, row_sum, parts, p.options.eps, DIM=p.value_dim, BLOCK_D=p.block_d, num_warps=4
        )


def common(p: Problem) -> tuple[Any, ...]:
    """The arguments that all kernels over weighed pairs begin with."""
    return (
        *_frequencies(p), p.value, *p.value.stride()[:3],
        p.coupling, *p.coupling.stride(), p.bandwidth, p.mask, *p.mask_strides, *_mask_tiles(p), *p.dropout(),
    )  # fmt: skip


def _frequencies(p: Problem) -> tuple[Any, ...]:
    return (
        p.receive.planes, p.receive.plane, p.receive.numbers, p.send.planes, p.send.plane, p.send.numbers,
    )  # fmt: skip


def _mask_tiles(p: Problem) -> tuple[Any, ...]:
    if p.mask_tiles is None:
        return p.bandwidth, 0, 0, 0, 0
    return p.mask_tiles, *p.mask_tiles.stride()


def _walk(p: Problem, lists: Lists | None) -> tuple[Tensor, int, Tensor, Tensor]:
    if lists is None:
        return p.bandwidth, 0, p.bandwidth, p.bandwidth
    order = lists.counts if lists.order is None else lists.order
    return lists.entries, lists.entries.shape[2], lists.counts, order


def backward(
    grad: Tensor, out: Tensor, row_sum: Tensor, base: Tensor, sender: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of receive, send, value, coupling and bandwidth."""
    receive, send, value, coupling = arguments[:4]
    if row_sum.numel() == 0 or value.numel() == 0:
        return tuple(x.new_zeros(x.shape) for x in arguments[:5])  # type: ignore[return-value]
    p = Problem(arguments)
    # hooks on saved tensors may give them back in another layout
    row_sum, base, sender = (x.contiguous() for x in (row_sum, base, sender))
    # to the order in which p has the receivers, and grad_receive and the like back again
    grad, out = last_contiguous(p.sorted_rows(grad)), p.sorted_rows(out).contiguous()
    row_sum = p.sorted_rows(row_sum)
    if p.options.nearest:
        base, sender = p.sorted_rows(base), p.places(p.sorted_rows(sender))
    nearest = base if p.options.nearest else None
    by_query = by_key = None
    if p.listed:
        reach = p.reach(nearest)
        by_query, by_key = p.lists(reach, of_queries=True), p.lists(reach, of_queries=False)
    row_numbers = row_sum.new_empty(6, p.batch * p.heads, p.receive.plane)
    grad_coupling = torch.empty_like(row_sum)
    ranges = torch.empty(2, p.batch * p.heads * p.receive.tiles, dtype=torch.int32, device=p.device)
    grad_receive = receive.new_empty(receive.shape)
    grad_bandwidth = row_sum.new_empty(p.batch, p.heads, p.receive.tiles)
    grad_send = _per_head(p, send)
    grad_value = _per_head(p, value)
    sizes = (
        p.heads, p.send.heads, p.value.shape[1], p.queries, p.keys, p.receive.tiles, p.send.tiles,
        row_numbers.stride(0), p.options.eps, p.options.edge,
    )  # fmt: skip
    constants = {"LISTED": p.listed, "SPLIT": SPLIT[p.value.dtype], **p.pairs(), **p.weights()}
    gradient = (grad, *grad.stride()[:3])
    with on(p.device):
        receivers_kernel[(p.batch * p.heads * p.receive.tiles,)](
            *common(p), base, sender, *_walk(p, by_query), *gradient, out, row_sum,
            row_numbers, ranges, grad_receive, grad_coupling, grad_bandwidth, *sizes,
            EVEN=p.keys == p.send.plane,
            ORDERED=by_query is not None and by_query.order is not None, **constants,
        )  # fmt: skip
        senders_kernel[(p.batch * p.heads * p.send.tiles,)](
            *common(p), *_walk(p, by_key), *gradient,
            row_numbers, ranges, ranges.shape[1], grad_send, grad_value, *sizes,
            EVEN=p.queries == p.receive.plane,
            ORDERED=by_key is not None and by_key.order is not None, **constants,
        )  # fmt: skip
    return (
        p.rows_back(grad_receive),
        _sum_groups(p.senders_back(grad_send), send),
        _sum_groups(p.senders_back(grad_value), value),
        p.rows_back(grad_coupling).sum_to_size(coupling.shape),
        grad_bandwidth.sum((0, 2)),
    )


def _per_head(p: Problem, x: Tensor) -> Tensor:
    """Room for the gradient of x from each head of receivers; float32 if several are to be summed."""
    shape = (p.batch, p.heads, *x.shape[2:])
    return x.new_empty(shape, dtype=x.dtype if x.shape[1] == p.heads else torch.float32)


def _sum_groups(gradient: Tensor, like: Tensor) -> Tensor:
    """(B, H, M, x) to like's (B, heads, M, x): the sum over the heads of receivers that share a head."""
    if gradient.shape[1] == like.shape[1]:
        return gradient
    return gradient.unflatten(1, (like.shape[1], -1)).sum(2).to(like.dtype)

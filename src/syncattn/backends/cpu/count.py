"""Counting locked pairs, and finding nearest senders, by the native kernel: the walk of its forward pass,
without weighing and mixing."""

from __future__ import annotations

import torch
from torch import Tensor

from syncattn.backends.call import Call
from syncattn.backends.counting import FARTHEST, Pairs, add_settled, for_counting, radius_square, slack
from syncattn.backends.cpu import library
from syncattn.backends.cpu.library import buffer, pointer
from syncattn.backends.cpu.problem import COLUMNS, Inputs, describe, put_back

_ROOM = 2**14
"""Pairs in doubt that there is room for at first; counting begins anew if there are more."""


def count(call: Call) -> Tensor:
    """How many senders each receiver locks with, (B, H, N) int64; top_k is not considered. Eager's counts."""
    if _is_empty(call):
        return torch.zeros(call.receive.shape[:3], dtype=torch.int64, device="cpu")
    call, inputs, counts, doubtful, sender = _walked(call)
    pairs = _in_callers_order(doubtful, inputs, sender)
    counts = put_back(counts, inputs.order.receive)
    if len(doubtful):
        add_settled(counts, call, pairs)
    return counts


def nearest(call: Call) -> Tensor:
    """Each receiver's nearest allowed sender, (B, H, N) int64; any number where it has none."""
    if _is_empty(call):
        return torch.zeros(call.receive.shape[:3], dtype=torch.int64, device="cpu")
    _, inputs, _, _, sender = _walked(call._replace(frame="nearest"))
    if inputs.order.send is not None:
        sender = inputs.order.send.gather(2, sender.long())
    return put_back(sender, inputs.order.receive).long()


def _is_empty(call: Call) -> bool:
    return call.receive.shape[0] * call.receive.shape[2] * call.send.shape[2] == 0


def _walked(call: Call) -> tuple[Call, Inputs, Tensor, Tensor, Tensor]:
    """(the call for counting, what the kernel is given, what `_counted` gives, and each row's nearest sender
    as the kernel orders, (B, H, N) int32, or (0,) in the absolute frame)."""
    batch, heads, queries, _ = call.receive.shape
    call = for_counting(call)
    # The kernel wants columns, and reads none of them.
    unread = call.send.new_zeros(1, 1, 1, COLUMNS).expand(batch, 1, call.send.shape[2], COLUMNS)
    inputs = describe(call._replace(value=unread), None)
    problem = inputs.problem
    problem.symmetric = 0  # it would count each pair once
    framed = (batch, heads, queries) if problem.nearest else (0,)
    base, sender = buffer(*framed), buffer(*framed, dtype=torch.int32)
    problem.base, problem.nearest_sender = pointer(base), pointer(sender, torch.int32)
    return call, inputs, *_counted(call, inputs), sender


def _counted(call: Call, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """(how many lock beyond doubt (B, H, N) int64, the pairs in doubt (P, 3) int32), as the kernel orders."""
    problem, radius = inputs.problem, radius_square(call).float()
    if inputs.order.receive is not None:
        radius = radius.gather(2, inputs.order.receive.long())
    radius = radius.contiguous()
    counts = buffer(problem.batch, problem.heads, problem.queries, dtype=torch.int64)
    found, room = buffer(1, dtype=torch.int64), _ROOM
    while True:
        doubtful = buffer(room, 3, dtype=torch.int32)
        found.zero_()
        library.count(
            problem,
            library.KernelCount(
                radius=pointer(radius),
                slack=slack(call),
                farthest=FARTHEST,
                locked=pointer(counts, torch.int64),
                room=room,
                doubtful_count=pointer(found, torch.int64),
                doubtful=pointer(doubtful, torch.int32),
            ),
        )
        if int(found) <= room:
            return counts, doubtful[: int(found)]
        room = int(found)


def _in_callers_order(doubtful: Tensor, inputs: Inputs, nearest: Tensor) -> Pairs:
    """The pairs by the caller's numbers; `nearest` (B, H, N): each row's nearest sender, or (0,)."""
    number, row, key = doubtful.long().unbind(-1)
    heads = inputs.problem.heads
    batch, head = number.div(heads, rounding_mode="floor"), number % heads
    closest = nearest[batch, head, row].long() if nearest.numel() else None
    receive, send = inputs.order
    if receive is not None and send is not None:
        row, key = receive[batch, head, row].long(), send[batch, head, key].long()
        closest = None if closest is None else send[batch, head, closest].long()
    return Pairs(batch, head, row, key, closest)

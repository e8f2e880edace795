"""Calls of one receiver after a growing past, by the native kernel: described once, then only moved on."""

from __future__ import annotations

import torch
from torch import Tensor

from syncattn.backends.call import Call, within_bounds
from syncattn.backends.cpu import library
from syncattn.backends.cpu.library import buffer, pointer
from syncattn.backends.cpu.problem import AS_GIVEN, describe, rounded


class Decoding:
    """The kernel's forward pass for calls that differ from a first one in their tensors alone.

    Nothing is checked, recorded or brought to another form: it is for a layer that generates, whose senders
    were looked at when they came, and gives what the operator gives, bit for bit.
    """

    def __init__(self, call: Call) -> None:
        """Of a checked call of one causal receiver; its bandwidth is that of all later calls."""
        self._inputs = describe(within_bounds(call), AS_GIVEN)

    def __call__(self, receive: Tensor, send: Tensor, value: Tensor, coupling: Tensor) -> Tensor:
        """out (B, H, 1, d).

        Args:
            receive: (B, H, 1, m), contiguous; all are float32.
            send, value: (B, H, M, m) and (B, H, M, d), the receiver's own at the end; heads may lie apart.
            coupling: (B, H, 1), within the bounds of a `Call`.
        """
        problem = self._inputs.problem
        batch, heads, keys, columns = value.shape
        out = buffer(batch, heads, 1, columns)
        row_sum = buffer(batch, heads, 1)
        problem.batch, problem.keys = batch, keys
        problem.receive, problem.send, problem.value = pointer(receive), pointer(send), pointer(value)
        problem.send_strides, problem.value_strides = send.stride()[:2], value.stride()[:2]
        problem.coupling, problem.coupling_strides = pointer(coupling), coupling.stride()
        problem.out, problem.row_sum = pointer(out), pointer(row_sum)
        if problem.nearest:
            base, sender = buffer(batch, heads, 1), buffer(batch, heads, 1, dtype=torch.int32)
            problem.base, problem.nearest_sender = pointer(base), pointer(sender, torch.int32)
        library.forward(problem)
        return out


def decoding(call: Call) -> Decoding | None:
    """What computes calls like this one of one receiver; None where it would have to copy all that is cached,
    at each call, into a form that the kernel reads."""
    plain = call.send.dtype == call.value.dtype == torch.float32 and call.mask is None
    alone = call.is_causal and call.receive.shape[2] == 1 and call.dropout_p == 0
    whole = call.value.shape[-1] == rounded(call.value.shape[-1])
    grouped = call.send.shape[1] != call.receive.shape[1] or call.value.shape[1] != call.receive.shape[1]
    return Decoding(call) if plain and alone and whole and not grouped else None

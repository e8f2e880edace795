"""One more token of a layer after its past, by one call of the native kernel for all groups of heads."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from syncattn.backends.backend import DecodingLayer
from syncattn.backends.call import Call, within_bounds
from syncattn.backends.cpu import library
from syncattn.backends.cpu.library import KernelHeads, KernelToken, buffer, pointer
from syncattn.backends.cpu.problem import AS_GIVEN, describe, rounded


class Decoding:
    """What a layer's later tokens have in common, as the kernel has it.

    Nothing is checked, recorded or brought to another form: it is for a layer that generates, whose senders
    were looked at when they came. It gives what the operator gives, bit for bit, and notices where numbers
    that it was made of have changed, however that was done.
    """

    def __init__(self, calls: Sequence[Call], layer: DecodingLayer) -> None:
        """Of checked calls of one causal receiver, each of a group of heads."""
        self._layer = layer
        self._inputs = [describe(within_bounds(call), AS_GIVEN) for call in calls]
        self._groups = (KernelHeads * len(calls))()
        for to, inputs, own in zip(self._groups, self._inputs, layer.heads, strict=True):
            to.problem = inputs.problem
            to.heads = pointer(own, torch.int64)
        first = self._inputs[0].problem
        self._width, self._columns = first.freq_dim, first.value_dim
        self._token = KernelToken(
            heads=len(layer.coupling),
            freq_dim=self._width,
            value_dim=self._columns,
            groups=len(calls),
            group=self._groups,
            coupling=pointer(layer.coupling),
            delayed=pointer(layer.delayed, torch.bool),
        )
        if layer.drift is not None:
            self._token.slopes, self._token.directions = map(pointer, layer.drift)
        self._watch(layer.watched)
        self._argument = ctypes.byref(self._token)
        self._shown: list[tuple[Tensor, Tensor] | None] = [None] * len(calls)

    def _watch(self, watched: Sequence[Tensor]) -> None:
        self._at = [x.data_ptr() for x in watched]
        sizes = [x.nbytes for x in watched]
        self._known = b"".join(ctypes.string_at(at, n) for at, n in zip(self._at, sizes, strict=True))
        self._where = (ctypes.c_void_p * len(sizes))(*self._at)
        self._sizes = (ctypes.c_int64 * (len(sizes) + 1))(*sizes, 0)
        self._token.watched = ctypes.cast(self._where, ctypes.c_void_p)
        self._token.watched_bytes = ctypes.cast(self._sizes, ctypes.c_void_p)
        self._token.known = ctypes.cast(ctypes.c_char_p(self._known), ctypes.c_void_p)

    def stands(self) -> bool:
        """Whether what it was made of stands where it stood; what stands there, each call looks at."""
        return [x.data_ptr() for x in self._layer.watched] == self._at

    def show(self, number: int, send: Tensor, value: Tensor, filled: int, first: int) -> None:
        """Say where a group's tokens stand.

        Args:
            number: of the group.
            send, value: the memory (B, h, capacity, m) and (B, h, capacity, d), a head's tokens contiguous.
            filled: how many there are, fewer than there is room for.
            first: which of them is read first.
        """
        group, shown = self._groups[number], self._shown[number]
        group.filled, group.first = filled, first
        if shown is not None and shown[0] is send and shown[1] is value:
            return
        self._shown[number] = send, value
        group.send, group.value = pointer(send), pointer(value)
        group.send_strides, group.value_strides = send.stride()[:2], value.stride()[:2]

    def __call__(
        self,
        content: Tensor,
        sent: Tensor | None,
        before: Tensor | None,
        value: Tensor,
        coherence: Tensor | None,
        count: Tensor,
        nearest: Tensor | None = None,
    ) -> tuple[Tensor, Tensor] | None:
        """(out (B, 1, H d), what the token emits (B, H, m)); it is written behind each group's others.

        None, with nothing changed that is held, where the call has to be made the long way.

        Args:
            content: (B, H, m), where the layer drifts contents, else what the token listens with. All are
                contiguous, float32.
            sent: (B, H, m), likewise of what it emits; None where the layer drifts and both are the same.
            before: (B, H, m), what the token before emitted, for delayed heads.
            value: (B, H, d).
            coherence: (B, H), the length of the sum of all phases' directions; None: there are no phases.
            count: (B, 1) int64, the real tokens before this one.
            nearest: (B, H), for D of each head's nearest sender, in the nearest frame; None: nobody wants it.
        """
        token, batch = self._token, content.shape[0]
        out = buffer(batch, 1, token.heads * self._columns)
        token.batch, token.content, token.value = batch, pointer(content), pointer(value)
        token.before, token.coherence = pointer(before), pointer(coherence)
        token.count, token.out = pointer(count, torch.int64), pointer(out)
        token.nearest = pointer(nearest)
        token.sent, emitted = pointer(sent), sent
        if emitted is None or self._layer.drift is not None:
            emitted = buffer(batch, token.heads, self._width)
            token.emitted = pointer(emitted)
        return (out, emitted) if library.next_token(self._argument) else None


def decoding(calls: Sequence[Call], layer: DecodingLayer) -> Decoding | None:
    """What computes a layer's later calls like these, each of one receiver and a group of heads; None where
    it would have to copy all that is cached, at each call, into a form that the kernel reads."""
    return Decoding(calls, layer) if all(map(_is_plain, calls)) else None


def _is_plain(call: Call) -> bool:
    plain = call.send.dtype == call.value.dtype == torch.float32 and call.mask is None
    alone = call.is_causal and call.receive.shape[2] == 1 and call.dropout_p == 0
    whole = call.value.shape[-1] == rounded(call.value.shape[-1])
    grouped = call.send.shape[1] != call.receive.shape[1] or call.value.shape[1] != call.receive.shape[1]
    return plain and alone and whole and not grouped

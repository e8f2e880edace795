"""What a backend declares: how it computes a call, and, as data, which calls it can take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from syncattn.backends.call import Call, exports_to_onnx, is_transformed


class Capabilities(NamedTuple):
    """Which calls a backend can take, as far as fields tell; None, or True: all.

    Attributes:
        device: the only kind of device that it runs on.
        compute_dtypes: of the arithmetic.
        powers: of S in the strength.
        top_k: whether it can choose the nearest.
        packed: whether it knows sequence_ids, several texts in one row.
        most_coordinates, most_columns: of a frequency (m) and of a value (d).
        weights: whether it can return S and P.
        transforms: whether it has forward-mode derivatives, and goes through torch.func.
        onnx: whether ONNX has a translation of what it computes with.
    """

    device: str | None = None
    compute_dtypes: tuple[torch.dtype, ...] | None = None
    powers: tuple[float, ...] | None = None
    top_k: bool = True
    packed: bool = True
    most_coordinates: int | None = None
    most_columns: int | None = None
    weights: bool = True
    transforms: bool = True
    onnx: bool = True

    def missing(self, call: Call) -> str | None:
        """What this call needs that is not there, in words, or None."""
        device, coordinates, columns = call.receive.device, call.receive.shape[-1], call.value.shape[-1]
        if self.device is not None and device.type != self.device:
            return f"it runs on the {self.device.upper()}, the tensors are on {device}"
        if call.return_weights and not self.weights:
            return "it never holds S and P (return_weights=True)"
        if self.compute_dtypes is not None and call.compute_dtype not in self.compute_dtypes:
            own = " and ".join(_name(dtype) for dtype in self.compute_dtypes)
            return f"it computes in {own}, this call needs {_name(call.compute_dtype)}"
        if self.powers is not None and call.power not in self.powers:
            return f"it has powers {' and '.join(f'{p:g}' for p in self.powers)}, got {call.power:g}"
        if call.top_k is not None and not self.top_k:
            return "it has no top_k"
        if call.sequence_ids is not None and not self.packed:
            return "it has no sequence_ids (several texts in one row)"
        if self.most_coordinates is not None and coordinates > self.most_coordinates:
            return f"it takes a freq_dim of up to {self.most_coordinates}, got {coordinates}"
        if self.most_columns is not None and columns > self.most_columns:
            return f"it takes values of up to {self.most_columns} columns, got {columns}"
        if not self.transforms and is_transformed():
            return "it has no forward-mode or torch.func derivative"
        if not self.onnx and exports_to_onnx():
            return "ONNX has no translation of its operator"
        return None


def _nothing(call: Call) -> None:
    return None


class DecodingLayer(NamedTuple):
    """What a layer that generates has besides its groups' calls; float32, contiguous.

    Attributes:
        heads: which heads each group has, (h,) int64; None: all, in their order.
        coupling: K (H,).
        drift: slopes (H,) and directions (H, m), of heads that drift and emit what they listen with; None:
            frequencies are given as they are.
        delayed: (H,) bool, heads that send what the token before emitted; None: no head does.
        watched: tensors that the above and the calls' bandwidths were made of.
    """

    heads: tuple[Tensor | None, ...]
    coupling: Tensor
    drift: tuple[Tensor, Tensor] | None
    delayed: Tensor | None
    watched: tuple[Tensor, ...]


class Decoding(Protocol):
    """What computes a layer's later tokens one by one, see `backends/cpu/decode.py`."""

    def stands(self) -> bool:
        """Whether the tensors that it watches stand where they stood."""

    def show(self, number: int, send: Tensor, value: Tensor, filled: int, first: int) -> None:
        """Say where a group's tokens stand."""

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
        """The next token's result, and what it emits; None: it has to be computed the long way."""


class Backend(NamedTuple):
    """One way of computing the operator.

    Attributes:
        run: the call to out (B, H, N, d), or, with `return_weights`, to (out, S, P); with `return_nearest`,
            where it gives that, to these and the nearest senders' D (B, H, N).
        capabilities: which calls it can take.
        unavailable: why it cannot run on this machine at all, or None.
        refuses: what else speaks against this call, as its device's age, or None.
        only_by_name: why it does not take a call that asks for no backend, though it could, or None.
        locked_counts: the call, whatever its top_k, to how many senders each receiver locks with, (B, H, N)
            int64, without gradients; None if it has no such pass.
        nearest: the call, whatever its frame, to each receiver's nearest allowed sender, (B, H, N) int64,
            without gradients, at a cost that follows what locks; None if it has no such pass.
        gives_nearest: (the call, whether it asks for this backend by name) to whether what `return_nearest`
            asks for comes with the result.
        keeps_bounds: whether it does itself what `call.within_bounds` does.
        decoding: of a layer that generates, the calls of its groups of heads, each of one causal receiver, to
            what computes its later tokens where nothing has to be checked anew, or to None; None if it has no
            such form.
    """

    run: Callable[[Call], Tensor | tuple[Tensor, ...]]
    capabilities: Capabilities = Capabilities()
    unavailable: Callable[[], str | None] = lambda: None
    refuses: Callable[[Call], str | None] = _nothing
    only_by_name: Callable[[Call], str | None] = _nothing
    locked_counts: Callable[[Call], Tensor] | None = None
    nearest: Callable[[Call], Tensor] | None = None
    gives_nearest: Callable[[Call, bool], bool] = lambda call, by_name: False
    keeps_bounds: bool = False
    decoding: Callable[[Sequence[Call], DecodingLayer], Decoding | None] | None = None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

"""One checked call of the operator: what every backend receives."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from syncattn.values import readable

_Function = TypeVar("_Function", bound=Callable)
FRAMES = ("absolute", "nearest")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Beyond these a coupling acts as the bound: kappa^3 and 1/kappa^2 stay normal float32 numbers. At the one,
# nothing but equal frequencies locks; at the other, nothing but underflow unlocks.
WEAKEST, STRONGEST = 1e-10, 1e15
NARROWEST = 1e30  # of the bandwidth: only equal frequencies lock
HIGHEST = 1e13  # of a frequency: its squared differences stay far below what stands for "may not attend"


class Call(NamedTuple):
    """The operator's arguments after `prepare` has checked and normalised them.

    Backends may rely on every statement made here and need check nothing again; those that keep bounds
    (backend.py) are given coupling and bandwidth without.
    """

    receive: Tensor  # (B, H, N, m)
    send: Tensor  # (B, Hs, M, m), Hs divides H
    value: Tensor  # (B, Hv, M, d), Hv divides H
    coupling: Tensor  # (B or 1, H, N or 1), compute dtype, from 1e-10 to 1e15 or NaN
    bandwidth: Tensor  # (H,), compute dtype, positive or NaN
    mask: Tensor | None  # bool, (B or 1, H or 1, N or 1, M or 1), True = may attend
    seed: Tensor | None  # int64 scalar, given to backends exactly when dropout_p > 0
    sequence_ids: (
        Tensor | None
    )  # (B or 1, M) int64: pairs of one id that is not negative may attend; then M >= N
    is_causal: bool  # key j is allowed for query i when j <= i + (M - N); then M >= N
    self_coupling: bool  # False leaves out the pair (i, i + M - N); then M >= N
    top_k: int | None  # at least 1; larger than M keeps everything
    dropout_p: float  # in [0, 1)
    frame: str  # one of FRAMES
    power: float  # positive
    edge: float  # not negative
    eps: float  # not negative
    symmetric: bool  # receive and send are the same tensor: the diagonal of D is exactly 0
    return_weights: bool
    return_nearest: bool

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of the arithmetic: float32, or float64 if any input has it."""
        return self.bandwidth.dtype


def prepare(*arguments: Any, **options: Any) -> Call:
    """Check the arguments of `selective_synchronization_attention` and bring them to one form: see `check`
    and `within_bounds`."""
    return within_bounds(check(*arguments, **options))


def within_bounds(call: Call) -> Call:
    """The call with coupling and bandwidth as a `Call` has them."""
    coupling = _positive_or_nan(call.coupling).clamp(WEAKEST, STRONGEST)
    bandwidth = _positive_or_nan(call.bandwidth).clamp(max=NARROWEST)
    return call._replace(coupling=coupling, bandwidth=bandwidth)


def check(
    receive: Tensor,
    send: Tensor,
    value: Tensor,
    coupling: Tensor,
    bandwidth: Tensor,
    *,
    attn_mask: Tensor | None = None,
    sequence_ids: Tensor | None = None,
    is_causal: bool = False,
    self_coupling: bool = True,
    top_k: int | None = None,
    dropout_p: float = 0.0,
    frame: str = "absolute",
    power: float = 1,
    edge: float = 0.0,
    eps: float = 1e-8,
    checked_senders: int = 0,
    return_weights: bool = False,
    return_nearest: bool = False,
) -> Call:
    """Check the arguments of `selective_synchronization_attention` and bring them to one form, but for the
    bounds of coupling and bandwidth, for backends that keep those themselves.

    Values (finite frequencies, positive coupling and bandwidth, masks of 0 and -inf) are read only where
    that is free of a device synchronisation: on CPU tensors, outside `torch.compile` and `torch.export`.
    Elsewhere NaN, and a coupling or bandwidth that is not positive and finite, turn the rows that they touch
    into NaN, never into a plausible number; an infinite sender locks with nobody; a bad mask fails an
    assertion on the device. Of the first `checked_senders` they are not read again.

    Raises:
        TypeError: an argument is not of the kind expected.
        ValueError: a shape, dtype, device, option or value is not as documented.
    """
    _check_tensors(receive, send, value, coupling, bandwidth)
    batch, heads, queries, _ = receive.shape
    keys = send.shape[-2]
    check_options(top_k, dropout_p, frame, power, edge, eps)
    flags = {"is_causal": is_causal, "self_coupling": self_coupling}
    flags |= {"return_weights": return_weights, "return_nearest": return_nearest}
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise TypeError(f"{name} must be True or False, got {flag!r}")
    if keys < queries and (is_causal or not self_coupling):
        option = "is_causal=True" if is_causal else "self_coupling=False"
        raise ValueError(
            f"{option} needs at least as many senders as receivers (queries sit at the end), "
            f"got N = {queries} receivers and M = {keys} senders"
        )

    compute_dtype = torch.promote_types(torch.promote_types(receive.dtype, value.dtype), torch.float32)
    coupling = _normalise_coupling(coupling, batch, heads, queries).to(compute_dtype)
    if bandwidth.shape != (heads,):
        raise ValueError(f"bandwidth must have shape (H,) = ({heads},), got {tuple(bandwidth.shape)}")
    bandwidth = bandwidth.to(compute_dtype)
    _check_frequencies("receive", receive)
    if send is not receive:
        _check_frequencies("send", send, checked_senders)
    _check_positive("coupling", coupling)
    _check_positive("bandwidth", bandwidth)

    mask = None if attn_mask is None else _normalise_mask(attn_mask, (batch, heads, queries, keys), receive)
    return Call(
        receive=receive,
        send=send,
        value=value,
        coupling=coupling,
        bandwidth=bandwidth,
        mask=mask,
        seed=None,
        sequence_ids=_normalise_ids(sequence_ids, batch, queries, keys, receive.device),
        is_causal=is_causal,
        self_coupling=self_coupling,
        top_k=top_k,
        dropout_p=float(dropout_p),
        frame=frame,
        power=float(power),
        edge=float(edge),
        eps=float(eps),
        symmetric=send is receive,
        return_weights=return_weights,
        return_nearest=return_nearest,
    )


def require_dense(name: str, tensor: Any) -> None:
    """Raise unless the argument is a tensor with a number for every index: not a nested or a sparse one."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.is_nested:
        raise ValueError(
            f"{name} must be a dense tensor, in which shorter sequences are padded "
            f"(torch.nested.to_padded_tensor) and a mask hides the padding, got a nested tensor"
        )
    if tensor.layout != torch.strided:
        raise ValueError(f"{name} must be a dense tensor (torch.strided), got layout {tensor.layout}")


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Arithmetic in the dtypes it is written in: autocast off (the meta device has none to switch off)."""
    if device.type == "meta" or not (torch.compiler.is_compiling() or torch.is_autocast_enabled(device.type)):
        return nullcontext()  # entering the other takes time
    return torch.autocast(device.type, enabled=False)


def expand_heads(x: Tensor, heads: int) -> Tensor:
    """Repeat grouped heads so that there is one for each receive head, as `enable_gqa` does in SDPA."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def _check_tensors(receive: Any, send: Any, value: Any, coupling: Any, bandwidth: Any) -> None:
    named = {
        "receive": receive,
        "send": send,
        "value": value,
        "coupling": coupling,
        "bandwidth": bandwidth,
    }
    for name, tensor in named.items():
        require_dense(name, tensor)
        if tensor.dtype not in DTYPES:
            dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            raise ValueError(f"{name} must have a floating-point dtype ({dtypes}), got {tensor.dtype}")
        if tensor.device != receive.device:
            raise ValueError(
                f"all tensors must be on one device: receive is on {receive.device}, "
                f"{name} is on {tensor.device}"
            )
    for name, tensor, form in (
        ("receive", receive, "(B, H, N, m)"),
        ("send", send, "(B, H, M, m)"),
        ("value", value, "(B, H, M, d)"),
    ):
        if tensor.ndim != 4:
            raise ValueError(f"{name} must have shape {form}, got {tuple(tensor.shape)}")
        if tensor.shape[0] != receive.shape[0]:
            raise ValueError(
                f"{name} must have receive's batch size {receive.shape[0]}, got {tensor.shape[0]} "
                f"(shape {tuple(tensor.shape)})"
            )
        if receive.shape[1] == 0:
            raise ValueError(f"receive must have at least one head, got shape {tuple(receive.shape)}")
        if tensor.shape[1] == 0 or receive.shape[1] % tensor.shape[1]:
            raise ValueError(
                f"the number of heads of {name}, {tensor.shape[1]}, must divide receive's, {receive.shape[1]}"
            )
    if receive.dtype != send.dtype:
        raise ValueError(f"send must have receive's dtype {receive.dtype}, got {send.dtype}")
    if receive.shape[-1] != send.shape[-1]:
        raise ValueError(
            f"receive and send must have the same freq_dim, got {receive.shape[-1]} and {send.shape[-1]}"
        )
    if receive.shape[-1] == 0:
        raise ValueError("freq_dim (the last dimension of receive and send) must be at least 1, got 0")
    if send.shape[-2] != value.shape[-2]:
        raise ValueError(
            f"send and value must have the same number of tokens M, got {send.shape[-2]} and "
            f"{value.shape[-2]}"
        )


def check_options(
    top_k: int | None, dropout_p: float, frame: str, power: float, edge: float, eps: float
) -> None:
    """Raise TypeError or ValueError if an option is not as `selective_synchronization_attention` has it."""
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
        raise ValueError(f"top_k must be None or an integer of at least 1, got {top_k!r}")
    numbers = {"dropout_p": dropout_p, "power": power, "edge": edge, "eps": eps}
    for name, number in numbers.items():
        if not isinstance(number, (int, float)):
            raise TypeError(f"{name} must be a number, got {type(number).__name__}")
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p must be in [0, 1), got {dropout_p!r}")
    if frame not in FRAMES:
        raise ValueError(f"frame must be one of {FRAMES}, got {frame!r}")
    if not 0 < power < float("inf"):
        raise ValueError(f"power must be positive and finite, got {power!r}")
    if not 0 <= edge < float("inf"):
        raise ValueError(f"edge must be at least 0 and finite, got {edge!r}")
    if not 0 <= eps < float("inf"):
        raise ValueError(f"eps must be at least 0 and finite, got {eps!r}")


def _normalise_coupling(coupling: Tensor, batch: int, heads: int, queries: int) -> Tensor:
    # The number of dimensions first: comparing the sizes alone would make torch.export assume that B != H.
    if coupling.ndim == 1 and coupling.shape == (heads,):
        return coupling.view(1, heads, 1)  # by indices it takes three times as long
    if coupling.ndim == 2 and coupling.shape == (batch, heads):
        return coupling[:, :, None]
    if coupling.shape == (batch, heads, queries):
        return coupling
    raise ValueError(
        f"coupling must have shape (H,) = ({heads},), (B, H) = ({batch}, {heads}) or "
        f"(B, H, N) = ({batch}, {heads}, {queries}), got {tuple(coupling.shape)}"
    )


def _normalise_mask(mask: Tensor, shape: tuple[int, int, int, int], receive: Tensor) -> Tensor:
    require_dense("attn_mask", mask)
    if mask.device != receive.device:
        raise ValueError(f"attn_mask must be on receive's device {receive.device}, got {mask.device}")
    fits = mask.ndim <= 4 and all(
        a in (1, b) for a, b in zip(reversed(mask.shape), reversed(shape), strict=False)
    )
    if not fits:
        raise ValueError(
            f"attn_mask must be broadcastable to (B, H, N, M) = {shape}, got {tuple(mask.shape)}"
        )
    if mask.is_floating_point():
        mask = boolean_mask(mask)
    elif mask.dtype != torch.bool:
        raise ValueError(
            f"attn_mask must be boolean (True = may attend) or hold only 0 and -inf, got {mask.dtype}"
        )
    return mask.reshape((1,) * (4 - mask.ndim) + mask.shape)


def _normalise_ids(
    sequence_ids: Any, batch: int, queries: int, keys: int, device: torch.device
) -> Tensor | None:
    if sequence_ids is None:
        return None
    require_dense("sequence_ids", sequence_ids)
    dtype = sequence_ids.dtype
    if dtype.is_floating_point or dtype.is_complex or dtype == torch.bool:
        raise ValueError(f"sequence_ids must hold integers, got {dtype}")
    if sequence_ids.device != device:
        raise ValueError(f"sequence_ids must be on receive's device {device}, got {sequence_ids.device}")
    shape = sequence_ids.shape
    if sequence_ids.ndim != 2 or shape[0] not in (1, batch) or shape[1] != keys:
        raise ValueError(f"sequence_ids must have shape (B or 1, M) = ({batch}, {keys}), got {tuple(shape)}")
    if keys < queries:
        raise ValueError(
            f"sequence_ids needs at least as many senders as receivers (queries sit at the end), "
            f"got N = {queries} receivers and M = {keys} senders"
        )
    return sequence_ids.to(torch.int64)


def boolean_mask(mask: Tensor, name: str = "attn_mask") -> Tensor:
    """Read a floating-point mask of 0 (may attend) and -inf (may not) as a boolean one, True = may attend.

    Raises:
        ValueError: any other number is in it: there is no score that a bias could be added to. Where values
            are not read (see `check`), a device assertion fails instead.
    """
    allowed = mask == 0
    values = readable(mask)
    if values is None:
        known = allowed | (mask == -torch.inf)
        torch._assert_async(known.all(), f"{name} must hold only 0 (may attend) and -inf (may not)")
        return allowed
    known = (values == 0) | (values == -torch.inf)
    if not bool(known.all()):
        raise ValueError(
            f"{name} is additive: synchronization has no score to add to. Use a boolean mask, or only 0 "
            f"(may attend) and -inf (may not); got values such as {values[~known][0].item():g}"
        )
    return allowed


def constant_when_compiled(function: _Function) -> _Function:
    """torch.compile takes the function's result for a constant and does not look into it: it asks the disk,
    the environment or the device. As `torch.compiler.assume_constant_result`, which imports torch._dynamo."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def is_transformed() -> bool:
    """Whether forward-mode differentiation or a torch.func transform (vmap, grad, jvp) is under way."""
    return torch.autograd.forward_ad._current_level >= 0 or _is_within_transform()


@constant_when_compiled  # a transform is part of what is compiled, or guarded on by the compiler itself
def _is_within_transform() -> bool:
    return torch._C._functorch.peek_interpreter_stack() is not None


@constant_when_compiled
def exports_to_onnx() -> bool:
    """Whether torch.onnx.export is recording, which needs operators that ONNX knows."""
    recording = torch.compiler.is_exporting() or torch.jit.is_tracing()
    return recording and torch.onnx.is_in_onnx_export()  # asked only then: it takes time to import


def is_plain(tensor: Tensor) -> bool:
    """Whether the tensor holds numbers on the CPU, and nothing records or replaces what is done with it."""
    if is_transformed() or readable(tensor) is None:
        return False
    return torch._C._len_torch_dispatch_stack() == 0 and not torch.jit.is_tracing()


def _check_frequencies(name: str, tensor: Tensor, checked: int = 0) -> None:
    """Look at the frequencies of tokens, but for the first so many, which were looked at before."""
    values = readable(tensor)
    if values is None:
        return
    everything, values = values, values if checked == 0 else values[:, :, checked:]
    if values.numel() == 0:
        return
    low, high = torch.aminmax(values)
    if not (low.item() >= -HIGHEST and high.item() <= HIGHEST):  # NaN fails both
        values = everything
        bad = ~(values.abs() <= HIGHEST)
        at = tuple(bad.nonzero()[0].tolist())
        raise ValueError(
            f"{name} must hold finite frequencies, at most {HIGHEST:g} in size, got {values[at].item()} "
            f"at index {at} ({int(bad.sum())} bad of {values.numel()})"
        )


def _check_positive(name: str, tensor: Tensor) -> None:
    values = readable(tensor)
    if values is not None and values.numel():
        low, high = torch.aminmax(values)
        if not (low.item() > 0 and high.item() < float("inf")):  # NaN fails both
            good = (values > 0) & torch.isfinite(values)
            raise ValueError(f"{name} must be positive and finite, got {values[~good][0].item():g}")


def _positive_or_nan(tensor: Tensor) -> Tensor:
    """The tensor; where values are not read, NaN for what is not positive and finite."""
    if readable(tensor) is not None:
        return tensor
    return torch.where((tensor > 0) & (tensor < torch.inf), tensor, torch.nan)

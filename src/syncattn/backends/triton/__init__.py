"""The GPU kernels, in Triton: fused, in O(N) memory, walking only the tiles that can lock.

The arithmetic is float32 but for the products with half-precision values, which the tensor cores take. This
file says which calls it takes, and makes it an operator that autograd, `torch.compile` and `torch.export`
know; triton is imported by the first call. How it works: docs/kernel.md. Correct in Triton's interpreter,
compiled for sm_90; not yet measured on a GPU.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

from syncattn.backends.call import Call, constant_when_compiled, is_transformed
from syncattn.backends.operator import FUSED_SCHEMA, differentiate, fused_arguments

_MOST_COORDINATES, _MOST_COLUMNS = 128, 256
_OLDEST = (3, 4)


@constant_when_compiled
def interpreted() -> bool:
    """Whether kernels run on the CPU, in Triton's interpreter (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


@constant_when_compiled
def unavailable() -> str | None:
    """Why this backend cannot run on this machine, or None."""
    if (missing := _missing()) is not None:
        return missing
    return None if interpreted() or _has_gpu() else "there is no GPU"


@cache
def _has_gpu() -> bool:
    return torch.cuda.is_available()


@cache
def _missing() -> str | None:
    try:
        found = version("triton")
    except PackageNotFoundError:
        return "triton is not installed (pip install 'syncattn[gpu]', on Linux)"
    parts = tuple(int(x) for x in found.split(".")[:2])
    return None if parts >= _OLDEST else f"it needs triton 3.4 or later, {found} is installed"


def refuses(call: Call) -> str | None:
    """Why this backend cannot take the call, or None."""
    device = call.receive.device.type
    if device != "cuda" and not (device == "cpu" and interpreted()):
        return f"it runs on GPUs, the tensors are on {call.receive.device}"
    if device == "cuda" and (old := _too_old(call.receive.device)) is not None:
        return old
    if call.return_weights:
        return "it never holds S and P (return_weights=True)"
    if call.compute_dtype != torch.float32:
        return f"it computes in float32, this call needs {str(call.compute_dtype).removeprefix('torch.')}"
    if call.power not in (1, 2):
        return f"it has powers 1 and 2, got {call.power:g}"
    if call.top_k is not None:
        return "it has no top_k"
    if call.receive.shape[-1] > _MOST_COORDINATES:
        return f"it takes a freq_dim of up to {_MOST_COORDINATES}, got {call.receive.shape[-1]}"
    if call.value.shape[-1] > _MOST_COLUMNS:
        return f"it takes values of up to {_MOST_COLUMNS} columns, got {call.value.shape[-1]}"
    return "it has no forward-mode or torch.func derivative" if is_transformed() else None


@constant_when_compiled
def _too_old(device: torch.device) -> str | None:
    """Asked of a device in use only: the question itself starts CUDA, which a forked process cannot."""
    if torch.version.hip is not None or torch.cuda.get_device_capability(device)[0] >= 8:
        return None
    return "it needs compute capability 8.0 or later"


def only_by_name(call: Call) -> str:
    """Why it does not take a call that asks for no backend."""
    if call.receive.device.type == "cpu":
        return "Triton's interpreter is for tests: on CPU tensors it is used only when asked for by name"
    # What no GPU has computed yet is nobody's default. The first session with one: run the tests marked gpu
    # and `syncattn bench --device cuda`, then drop this.
    return "it has not been run on a GPU yet: ask for it by name, backend='triton'"


def run(call: Call) -> Tensor:
    """The operator: out (B, H, N, d)."""
    out, *_ = _forward(*fused_arguments(call))
    return out


@torch.library.custom_op(
    "syncattn::triton_forward",
    mutates_args=(),
    schema=f"({FUSED_SCHEMA}) -> (Tensor, Tensor, Tensor, Tensor)",
    device_types=("cpu", "cuda"),
)
def _forward(*arguments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from syncattn.backends.triton import passes

    return passes.forward(*arguments)


@_forward.register_fake
def _(*arguments):
    receive, value, nearest = arguments[0], arguments[2], arguments[10]
    rows = receive.shape[:3]
    framed = rows if nearest else (0,)
    return (
        value.new_empty(*rows, value.shape[-1]),
        value.new_empty(rows, dtype=torch.float32),
        value.new_empty(framed, dtype=torch.float32),
        value.new_empty(framed, dtype=torch.int32),
    )


@torch.library.custom_op(
    "syncattn::triton_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor out, Tensor row_sum, Tensor base, Tensor sender, "
    f"{FUSED_SCHEMA}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    device_types=("cpu", "cuda"),
)
def _backward(grad, out, row_sum, base, sender, *arguments):
    """The gradients of receive, send, value, coupling and bandwidth."""
    from syncattn.backends.triton import passes

    return passes.backward(grad, out, row_sum, base, sender, *arguments)


@_backward.register_fake
def _(grad, out, row_sum, base, sender, receive, send, value, coupling, bandwidth, *options):
    return tuple(x.new_empty(x.shape) for x in (receive, send, value, coupling, bandwidth))


differentiate("triton", _forward, _backward)

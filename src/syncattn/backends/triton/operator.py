"""The GPU kernels, in Triton: fused, in O(N) memory, walking only the tiles that can lock.

The arithmetic is float32 but for the products with half-precision values, which the tensor cores take. This
file says which calls it takes, and makes it an operator that autograd, `torch.compile` and `torch.export`
know; triton is imported by the first call. How it works, and what of it has run on a GPU: docs/kernel-gpu.md.
"""

from __future__ import annotations

import os
import shutil
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

from syncattn.backends.backend import Backend, Capabilities
from syncattn.backends.call import Call, constant_when_compiled
from syncattn.backends.operator import gives_nearest, register
from syncattn.backends.triton.blocks import ENOUGH, shared_memory

_OLDEST = (3, 4)
_MOST_COORDINATES, _MOST_COLUMNS = 128, 256


@constant_when_compiled
def interpreted() -> bool:
    """Whether kernels run on the CPU, in Triton's interpreter (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


@constant_when_compiled
def unavailable() -> str | None:
    """Why this backend cannot run on this machine, or None."""
    if (missing := _missing()) is not None:
        return missing
    if interpreted():
        return None
    if not _has_gpu():
        return "there is no GPU"
    return None if _has_compiler() else "Triton found no C compiler: install gcc or clang, or name one in CC"


@cache
def _has_gpu() -> bool:
    return torch.cuda.is_available()


@cache
def _has_compiler() -> bool:
    """Whether Triton finds what it builds its launchers with."""
    return any(map(shutil.which, (os.environ.get("CC") or "gcc", "gcc", "clang")))


@cache
def _missing() -> str | None:
    try:
        found = version("triton")
    except PackageNotFoundError:
        return "triton is not installed (pip install 'syncattn[gpu]', on Linux)"
    parts = tuple(int(x) for x in found.split(".")[:2])
    return None if parts >= _OLDEST else f"it needs triton 3.4 or later, {found} is installed"


@constant_when_compiled
def _too_old(device: torch.device) -> str | None:
    """Asked of a device in use only: the question itself starts CUDA, which a forked process cannot."""
    if torch.version.hip is not None or _capability(device)[0] >= 8:
        return None
    return "it needs compute capability 8.0 or later"


@constant_when_compiled
@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@constant_when_compiled
@cache
def _shared_memory(device: torch.device) -> int | None:
    """Bytes that a program may have there; None where nobody says, and on AMD's GPUs, whose need is not known
    from shapes."""
    if torch.version.hip is not None:
        return None
    return getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", None)


def _too_small(call: Call) -> str | None:
    """Whether the kernels need more shared memory than the device has, where Triton would end in an error."""
    m, d, dtype = call.receive.shape[-1], call.value.shape[-1], call.value.dtype
    if m > _MOST_COORDINATES or d > _MOST_COLUMNS or dtype == torch.float64:
        return None  # which is refused for itself
    there = _shared_memory(call.receive.device)
    if there is None or there >= ENOUGH:
        return None
    gradients = torch.is_grad_enabled() and any(x.requires_grad for x in call[:5])
    size = 4 if dtype == torch.float32 else 2
    need = shared_memory(m, d, size, gradients, _capability(call.receive.device))
    if need <= there:
        return None
    return (
        f"m {m} and d {d} in {str(dtype).removeprefix('torch.')} need up to {need / 1024:.0f} KiB of shared "
        f"memory{', gradients included' * gradients}, this GPU has {there / 1024:.0f} KiB for a program"
    )


def refuses(call: Call) -> str | None:
    """What about this call's device it cannot do, or None."""
    device = call.receive.device
    if device.type == "cpu" and interpreted():
        return None
    if device.type != "cuda":
        return f"it runs on GPUs, the tensors are on {device}"
    return _too_old(device) or _too_small(call)


# What has not been through its checks on a GPU is nobody's default (`gpu_session.py --steps check`).
_CHECKED_ON = 9  # the compute capability of H100 and H200
# Coordinates: more have other blocks than they had then, as float32 values of above 128 columns have.
_CHECKED_UP_TO = 64


def only_by_name(call: Call) -> str | None:
    """Why it does not take a call that asks for no backend, or None."""
    if call.receive.device.type == "cpu":
        return "Triton's interpreter is for tests: on CPU tensors it is used only when asked for by name"
    if torch.version.hip is not None or _capability(call.receive.device)[0] != _CHECKED_ON:
        return "it was checked on an H100 and an H200 alone: elsewhere ask for it by name, backend='triton'"
    if call.sequence_ids is not None:
        return "several texts in one row were not checked on a GPU: ask by name, backend='triton'"
    if call.receive.shape[-1] > _CHECKED_UP_TO:
        return f"a freq_dim above {_CHECKED_UP_TO} was not checked on a GPU: ask by name, backend='triton'"
    if call.value.dtype == torch.float32 and call.value.shape[-1] > 128:
        return "float32 values of above 128 columns were not checked on a GPU: ask by name, backend='triton'"
    return None


def gives_nearest_here(call: Call, by_name: bool) -> bool:
    """Whether the nearest senders' D comes with the result. Its gradient was not checked on a GPU: where one
    is recorded, only with a call that asks for this backend by name, as all calls of CPU tensors do."""
    recorded = torch.is_grad_enabled() and any(x.requires_grad for x in call[:5])
    return gives_nearest(call, by_name) and (by_name or not recorded)


def run(call: Call) -> Tensor | tuple[Tensor, Tensor]:
    """The operator: out (B, H, N, d), and with `return_nearest` also the nearest senders' D (B, H, N)."""
    return OPERATOR(call)


def _forward(call: Call) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from syncattn.backends.triton import passes

    return passes.forward(call)


def _saved(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    value, rows = call.value, call.receive.shape[:3]
    framed = rows if call.frame == "nearest" else (0,)
    return (
        value.new_empty(rows, dtype=torch.float32),
        value.new_empty(framed, dtype=torch.float32),
        value.new_empty(framed, dtype=torch.int32),
    )


def _backward(
    call: Call,
    grad: Tensor,
    grad_nearest: Tensor | None,
    out: Tensor,
    row_sum: Tensor,
    base: Tensor,
    sender: Tensor,
) -> tuple[Tensor, ...]:
    """The gradients of receive, send, value, coupling and bandwidth."""
    from syncattn.backends.triton import passes

    return passes.backward(call, grad, out, row_sum, base, sender, grad_nearest)


OPERATOR = register("triton", _forward, _backward, _saved, ("row_sum", "base", "sender"), ("cpu", "cuda"))

BACKEND = Backend(
    run=run,
    unavailable=unavailable,
    refuses=refuses,
    only_by_name=only_by_name,
    gives_nearest=gives_nearest_here,
    keeps_bounds=True,
    capabilities=Capabilities(
        compute_dtypes=(torch.float32,),
        powers=(1, 2),
        top_k=False,
        most_coordinates=_MOST_COORDINATES,
        most_columns=_MOST_COLUMNS,
        packed=True,
        weights=False,
        transforms=False,
        onnx=False,
    ),
)

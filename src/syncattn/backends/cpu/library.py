"""The compiled kernel behind ctypes: loading it, its instances, its threads, and one call of it."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_PATH = Path(__file__).parent / "_kernel.so"
_POINTERS = ctypes.c_void_p
_LONG_WAY = (3, 4)  # what kernel/token.cpp returns where something changed, or cannot be computed with
# Without the two options an installer takes what it has cached, the wheel without a kernel.
REBUILD = (
    "pip install --no-cache-dir --force-reinstall --no-deps . "
    "(in place of the dot whatever syncattn was installed from)"
)


class KernelProblem(ctypes.Structure):
    """`SyncattnProblem` of kernel/problem.h, field by field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "heads", "send_heads", "value_heads")),
        *((name, ctypes.c_int64) for name in ("queries", "keys", "freq_dim", "value_dim")),
        ("receive", _POINTERS),
        ("send", _POINTERS),
        ("send_strides", ctypes.c_int64 * 2),
        ("value", _POINTERS),
        ("value_strides", ctypes.c_int64 * 2),
        ("coupling", _POINTERS),
        ("coupling_strides", ctypes.c_int64 * 3),
        ("bandwidth", _POINTERS),
        ("mask", _POINTERS),
        ("mask_strides", ctypes.c_int64 * 4),
        ("receive_index", _POINTERS),
        ("send_index", _POINTERS),
        ("receive_place", _POINTERS),
        ("text", _POINTERS),
        ("text_stride", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("is_causal", "self_coupling", "nearest", "symmetric", "power")),
        ("edge", ctypes.c_float),
        ("eps", ctypes.c_float),
        ("dropout", ctypes.c_int32),
        ("dropout_threshold", ctypes.c_uint32),
        ("dropout_scale", ctypes.c_float),
        ("seed", ctypes.c_uint64),
        *((name, _POINTERS) for name in ("out", "row_sum", "base", "nearest_sender")),
        *((name, _POINTERS) for name in ("grad_out", "grad_base", "grad_receive", "grad_send")),
        *((name, _POINTERS) for name in ("grad_value", "grad_coupling", "grad_bandwidth")),
    )


class KernelCount(ctypes.Structure):
    """`SyncattnCount` of kernel/problem.h, field by field."""

    _fields_ = (
        ("radius", _POINTERS),
        ("slack", ctypes.c_float),
        ("farthest", ctypes.c_float),
        ("locked", _POINTERS),
        ("room", ctypes.c_int64),
        ("doubtful_count", _POINTERS),
        ("doubtful", _POINTERS),
    )


class KernelHeads(ctypes.Structure):
    """`SyncattnHeads` of kernel/token.h, field by field."""

    _fields_ = (
        ("problem", KernelProblem),
        ("heads", _POINTERS),
        ("send", _POINTERS),
        ("send_strides", ctypes.c_int64 * 2),
        ("value", _POINTERS),
        ("value_strides", ctypes.c_int64 * 2),
        ("filled", ctypes.c_int64),
        ("first", ctypes.c_int64),
    )


class KernelToken(ctypes.Structure):
    """`SyncattnToken` of kernel/token.h, field by field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "heads", "freq_dim", "value_dim", "groups")),
        ("group", ctypes.POINTER(KernelHeads)),
        *((name, _POINTERS) for name in ("content", "slopes", "directions", "emitted", "sent")),
        *((name, _POINTERS) for name in ("delayed", "before", "value", "coherence", "coupling", "count")),
        *((name, _POINTERS) for name in ("out", "nearest", "watched", "watched_bytes", "known")),
    )


@cache
def load() -> ctypes.CDLL | str:
    """The library, or why there is none."""
    if sys.byteorder != "little":
        return "its kernel is written for little-endian machines"
    if not _PATH.exists():
        return _not_built()
    try:
        library = ctypes.CDLL(str(_PATH))
    except OSError as error:
        return f"its kernel cannot be loaded: {error}"
    size = getattr(library, "syncattn_problem_bytes", lambda: 0)
    token = getattr(library, "syncattn_token_bytes", lambda: 0)
    fits = size() == ctypes.sizeof(KernelProblem) + ctypes.sizeof(KernelCount)
    if not fits or token() != ctypes.sizeof(KernelToken) + ctypes.sizeof(KernelHeads):
        return f"its kernel was built from another version of syncattn. Build it again: {REBUILD}"
    library.syncattn_instance.restype = ctypes.c_char_p
    for function in (library.syncattn_forward, library.syncattn_backward):
        function.argtypes = (ctypes.POINTER(KernelProblem), ctypes.c_char_p, ctypes.c_int, ctypes.c_void_p)
    library.syncattn_count.argtypes = (
        *(ctypes.POINTER(KernelProblem), ctypes.POINTER(KernelCount)),
        *(ctypes.c_char_p, ctypes.c_int, ctypes.c_void_p),
    )
    library.syncattn_next_token.argtypes = (
        *(ctypes.POINTER(KernelToken), ctypes.c_char_p, ctypes.c_int, ctypes.c_void_p),
    )
    library.syncattn_order.argtypes = (
        *(ctypes.POINTER(KernelProblem), ctypes.c_int, ctypes.c_void_p),
        *(ctypes.c_void_p, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int32)),
    )
    return library


def _not_built() -> str:
    """That there is no kernel, why, and what to do, as this machine is now."""
    if sys.platform == "win32":
        return "its kernel is not for Windows: its sources need the vector attributes of GCC and Clang"
    why = _PATH.with_suffix(".txt")  # what the install wrote
    failed = f" that builds it ({' '.join(why.read_text(encoding='utf-8').split())})" if why.exists() else ""
    compilers = os.environ.get("CXX", ""), "c++", "g++", "clang++"
    found = next((path for name in compilers if (path := shutil.which(name))), None)
    do = f"There is one now, {found}: build it with" if found else "Nor is there one now: install one, then"
    missing = f"the install found no C++17 compiler (GCC or Clang){failed}"
    return f"its kernel was not built: {missing}. {do} {REBUILD}"


def instances() -> list[str]:
    """The instruction sets that the kernel has and this machine runs, the one that is used last."""
    library = load()
    names: list[str] = []
    while not isinstance(library, str) and (name := library.syncattn_instance(len(names))) is not None:
        names.append(name.decode())
    return names


def chosen_instance() -> str | None:
    """The instruction set that calls use: SYNCATTN_CPU_INSTANCE, else the best; None without a kernel."""
    names = instances()
    return (os.environ.get("SYNCATTN_CPU_INSTANCE") or names[-1]) if names else None


@cache
def team() -> int | None:
    """The address of torch's own `GOMP_parallel` (OpenMP): the kernel runs on torch's threads.

    None where torch has another runtime: the kernel then starts threads for each call.
    """
    folder = Path(torch.__file__).parent / "lib"
    for path in sorted(folder.glob("libtorch_cpu*")):
        try:
            # a handle's symbols include those of the libraries that it was linked to
            return ctypes.cast(ctypes.CDLL(str(path)).GOMP_parallel, ctypes.c_void_p).value
        except (OSError, AttributeError):
            continue
    return None


def forward(problem: KernelProblem) -> None:
    """Run the forward pass; see `_run`."""
    _run(_loaded().syncattn_forward, problem)


def backward(problem: KernelProblem) -> None:
    """Run the backward pass; see `_run`."""
    _run(_loaded().syncattn_backward, problem)


def count(problem: KernelProblem, to: KernelCount) -> None:
    """Count the pairs that lock; see `_run`."""
    _run(_loaded().syncattn_count, problem, to)


def next_token(token: Any) -> bool:
    """Compute a `KernelToken`, given by reference, see `_run`; False where the long way has to."""
    name = os.environ.get("SYNCATTN_CPU_INSTANCE")
    code = _loaded().syncattn_next_token(
        token, name.encode() if name else None, torch.get_num_threads(), team()
    )
    if code in _LONG_WAY:
        return False
    _raise(code, name)
    return True


def _run(function: Any, *structures: ctypes.Structure) -> None:
    """Run a pass on as many threads as torch uses.

    SYNCATTN_CPU_INSTANCE names an instruction set to use in place of the best one (see `instances`).

    Raises:
        MemoryError: there is no memory for its tables, O(N).
        RuntimeError: the instruction set asked for is not one that this machine runs.
    """
    name = os.environ.get("SYNCATTN_CPU_INSTANCE")
    _raise(function(*structures, name.encode() if name else None, torch.get_num_threads(), team()), name)


def _raise(code: int, name: str | None) -> None:
    if code == 2:
        raise RuntimeError(
            f"SYNCATTN_CPU_INSTANCE must be one of {instances()} on this machine, got {name!r}"
        )
    if code:
        raise MemoryError("the CPU kernel found no memory for its tables")


def order(problem: KernelProblem, receive_order: Tensor, send_order: Tensor) -> bool:
    """Decide whether to order the call's tokens; if so, write each head's order (B, H, N), (B, H, M)."""
    ordered = ctypes.c_int32()
    orders = pointer(receive_order, torch.int32), pointer(send_order, torch.int32)
    if _loaded().syncattn_order(problem, torch.get_num_threads(), team(), *orders, ordered):
        raise MemoryError("the CPU kernel found no memory for the order of the tokens")
    return bool(ordered.value)


def _loaded() -> ctypes.CDLL:
    library = load()
    assert not isinstance(library, str), library
    return library


def buffer(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Memory for the kernel to fill."""
    return torch.empty(shape, dtype=dtype, device="cpu")


def pointer(tensor: Tensor | None, dtype: torch.dtype = torch.float32) -> int | None:
    """A tensor's address, null for None. The kernel cannot see what is there: it must be of this dtype."""
    if tensor is None:
        return None
    assert tensor.dtype == dtype and tensor.is_cpu, f"{dtype} on the CPU, got {tensor.dtype}, {tensor.device}"
    return tensor.data_ptr()

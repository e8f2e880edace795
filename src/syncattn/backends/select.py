"""Which backend takes a call, and the reasons why the others do not. Nothing falls back silently."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from syncattn.backends import eager
from syncattn.backends.backend import Backend
from syncattn.backends.call import Call, prepare
from syncattn.backends.counting import for_counting
from syncattn.backends.cpu import operator as cpu
from syncattn.backends.tiled import operator as tiled
from syncattn.backends.triton import operator as triton

# In order of preference: the first that is available and does not refuse takes the call.
BACKENDS: dict[str, Backend] = {
    "triton": triton.BACKEND,
    "cpu": cpu.BACKEND,
    "tiled": tiled.BACKEND,
    "eager": eager.BACKEND,
}


class _Block:
    """An open block of `use_backend`; equal to no other."""

    def __init__(self, backend: str) -> None:
        self.backend = backend


class _Thread(threading.local):
    def __init__(self) -> None:  # runs in each thread
        self.open: list[_Block] = []


# The open blocks in the order in which they were entered: of each thread, and of all of them.
_thread = _Thread()
_open: list[_Block] = []


class BackendError(ValueError):
    """The backend asked for does not exist, cannot run here, or cannot take the call."""


class Explanation(NamedTuple):
    """The backend that takes a call, and why the ones preferred to it, or all others, do not."""

    backend: str
    reasons: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{self.backend}: takes this call"]
        return "\n".join(lines + [f"{name}: {reason}" for name, reason in self.reasons.items()])


@contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Within it, every call of the operator that names no backend asks for this one, those of layers and
    models too: as `torch.nn.attention.sdpa_kernel` does for SDPA. A call that it cannot take raises
    ValueError.

    It holds for the whole process: a checkpointed forward runs again on threads of autograd, and
    `nn.DataParallel` has threads of its own. A thread with blocks of its own goes by its innermost one; all
    others go by the block that was entered last among those that are open, whoever's it is.

    Raises:
        ValueError: no such backend, or it cannot run on this machine.

    Example:
        >>> with syncattn.use_backend("tiled"):
        ...     out = model(input_ids)
    """
    _check_name(backend, or_none=False)
    if (reason := BACKENDS[backend].unavailable()) is not None:
        raise BackendError(f"backend={backend!r} cannot run here: {reason}")
    block = _Block(backend)
    # A compiled function puts back a list that it changed, over what other threads did to it meanwhile.
    lists = [_thread.open] if torch.compiler.is_compiling() else [_thread.open, _open]
    for blocks in lists:
        blocks.append(block)
    try:
        yield
    finally:
        for blocks in lists:
            blocks.remove(block)


def asked_for() -> str | None:
    """The backend that blocks of `use_backend` ask for here and now."""
    innermost = (_thread.open or _open)[-1:]
    return innermost[0].backend if innermost else None


def _check_name(backend: object, or_none: bool = True) -> None:
    if (isinstance(backend, str) and backend in BACKENDS) or (or_none and backend is None):
        return
    kinds = "None or one of" if or_none else "one of"
    raise BackendError(f"backend must be {kinds} {tuple(BACKENDS)}, got {backend!r}")


def _reason(candidate: Backend, call: Call, backend: str | None) -> str | None:
    """Why a call that asks for this backend, or for none, is not for the candidate, or None."""
    reason = candidate.unavailable() or candidate.refuses(call) or candidate.capabilities.missing(call)
    return candidate.only_by_name(call) if reason is None and backend is None else reason


def choose(call: Call, backend: str | None = None) -> Backend:
    """What `select` chooses, without the reasons why it is not another."""
    _check_name(backend)
    asked = backend or asked_for()
    for candidate in BACKENDS.values() if asked is None else [BACKENDS[asked]]:
        if _reason(candidate, call, asked) is None:
            return candidate
    return BACKENDS[select(call, backend).backend]  # which says why there is none


def select(call: Call, backend: str | None = None) -> Explanation:
    """Choose the backend for a checked call.

    Raises:
        ValueError: the backend asked for is unknown or cannot take this call; the message says why.
    """
    _check_name(backend)
    backend = backend or asked_for()
    reasons: dict[str, str] = {}
    chosen = None
    for name, candidate in BACKENDS.items():
        reason = _reason(candidate, call, backend)
        if reason is None and chosen is None and backend in (None, name):
            chosen = name
        else:
            preferred = f"not asked for (backend={backend!r})" if backend else f"{chosen} is preferred"
            reasons[name] = reason or preferred
    if chosen is None:  # what nobody takes, eager does not
        raise BackendError(f"backend={backend!r} cannot take this call: {reasons[backend or 'eager']}")
    return Explanation(chosen, reasons)


@torch.no_grad()
def locked_counts(call: Call) -> Tensor:
    """How many senders each receiver of a checked call locks with, (B, H, N) int64, on the call's device.

    By the first backend that counts and runs here, whatever `use_backend` asks for: no N x M matrix is made,
    and on the CPU the counts are those that eager would make (see counting.py). Elsewhere it is `tiled` that
    counts. With top_k the nearest k that lock.
    """
    alike = for_counting(call)
    for candidate in BACKENDS.values():
        if candidate.locked_counts is not None and _reason(candidate, alike, None) is None:
            counts = candidate.locked_counts(alike)
            # S falls with D: those that lock are the nearest ones
            return counts if call.top_k is None else counts.clamp(max=call.top_k)
    raise BackendError(select(alike).reasons.get("tiled", "no backend counts this call"))


def seeker(call: Call) -> Callable[[Call], Tensor] | None:
    """What finds each receiver's nearest sender without a look at every pair, on the call's device; None: no
    backend does."""
    alike = for_counting(call)
    for candidate in BACKENDS.values():
        if candidate.nearest is not None and _reason(candidate, alike, None) is None:
            return candidate.nearest
    return None


def explain(*args: Any, backend: str | None = None, **kwargs: Any) -> Explanation:
    """Which backend would take this call, and why not the others.

    Takes the arguments of `syncattn.selective_synchronization_attention`, checks them the same way and
    computes nothing. Print the result, or read its `backend` and `reasons`.
    """
    return select(prepare(*args, **kwargs), backend)


def availability() -> dict[str, str | None]:
    """Each backend's name, with None if it can run on this machine, else the reason why not."""
    return {name: backend.unavailable() for name, backend in BACKENDS.items()}

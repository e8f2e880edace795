"""Passes seen before, at little cost to the host.

What a pass allocates and starts follows from the form of its call: shapes, strides, dtypes, options, and
which addresses are multiples of 16, or the same. So the first pass of a form is noted while it runs: its
kernels as compiled, their grids and numbers, and which tensor each address is of. From then on such a pass is
one piece of memory for all that it works in, and the starts. No memory and no address is kept from call to
call: a pass can be captured in a CUDA graph, and runs in whichever stream is the current one.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from syncattn.backends.call import Call
from syncattn.backends.triton import start
from syncattn.backends.triton.launch import settings

# Callers may have ever new forms: then what is kept is dropped and noted again.
_plans: dict[tuple[Any, ...], Plan | None] = {}
_MOST_PLANS = 2_000
_TENSORS = 8  # the first fields of a call
_ALIGNED = 256  # bytes, as torch's own allocations at least
Results = tuple[Tensor, ...]


class Plan(NamedTuple):
    """The starts of one form of a pass. `Values` are first the constants, then the addresses of its tensors,
    those of what it works in, and groups of all these."""

    constants: tuple[Any, ...]
    size: int  # bytes that it works in
    offsets: tuple[int, ...]  # where in them each tensor begins
    groups: tuple[itemgetter, ...]
    # (how to start, grid, what stands between the stream and the arguments, which values are those)
    starts: tuple[tuple[Any, tuple[int, ...], tuple[Any, ...], itemgetter], ...]

    def run(self, device: torch.device, addresses: list[int]) -> None:
        """All starts, in the current stream of the device, which is the current one."""
        room = torch.empty(self.size, dtype=torch.uint8, device=device)
        begin = room.data_ptr()
        values = [*self.constants, *addresses, *[begin + x for x in self.offsets]]
        values += [group(values) for group in self.groups]
        stream = start.stream_of(device.index)
        for begun, grid, what, arguments in self.starts:
            begun(*grid, stream, *what, *arguments(values))


def planned(
    run: Callable[..., Results], call: Call, given: tuple[Tensor | None, ...], results: Results
) -> Results:
    """run(host, call, *given, *results): it fills the results and gives them, or others in their place.

    Where it gives the results themselves, and its kernels work on tensors of the call, on those given, on the
    results and on what `host` allocates alone, it is not run again for a call of the same form: what it
    started is. So run does nothing to these tensors but start kernels.
    """
    device = call.receive.device
    if device.type != "cuda":
        return run(start.Host(device), call, *given, *results)
    if device.index != start.current_device():
        with torch.cuda.device(device):
            return _here(run, call, given, results)
    return _here(run, call, given, results)


def _here(
    run: Callable[..., Results], call: Call, given: tuple[Tensor | None, ...], results: Results
) -> Results:
    device, tensors = call.receive.device, cast("tuple[Tensor | None, ...]", (*call[:_TENSORS], *given))
    form: list[Any] = [run, device.index, *call[_TENSORS:], *settings(call)]
    addresses: list[int] = []
    first: dict[int, int] = {}  # which of the tensors are at one address: in the next call they may not be
    for x in tensors:
        if x is None:
            form.append(None)
            addresses.append(0)
        else:
            addresses.append(at := x.data_ptr())
            form += x.shape, x.stride(), x.dtype, at & 15 == 0, first.setdefault(at, len(first))
    addresses += [x.data_ptr() for x in results]  # new ones, whose form follows
    key = tuple(form)
    plan = _plans.get(key)
    if plan is not None and not start.is_watched():
        plan.run(device, addresses)
        return results
    host = start.Host(device, noting=key not in _plans)
    found = run(host, call, *given, *results)
    if host.noting:
        if len(_plans) >= _MOST_PLANS:
            _plans.clear()
        same = all(x is y for x, y in zip(found, results, strict=True))
        _plans[key] = _plan_of(host, addresses) if same else None
    return found


def _plan_of(host: start.Host, addresses: list[int]) -> Plan | None:
    """What was noted; None if something in it is of this call alone, or cannot be started by itself."""
    if None in host.starts:
        return None
    constants: list[Any] = []
    groups: dict[tuple[int, ...], int] = {}
    size, offsets = 0, []
    for x in host.made:
        offsets.append(size)
        size += -(-x.nbytes // _ALIGNED) * _ALIGNED
    # The places of the values from the end of the constants on, whose number is not known yet, are negative:
    # -1 is the first. All of them are made places from the start below.
    places = {at: -1 - i for i, at in enumerate(addresses) if at}
    places |= {x.data_ptr(): -1 - len(addresses) - i for i, x in enumerate(host.made) if x.numel()}
    first_group = len(addresses) + len(offsets)

    def place(x: Any) -> int:
        if isinstance(x, Tensor):
            return places[x.data_ptr()]
        if isinstance(x, tuple):
            members = tuple(map(place, x))
            return -1 - first_group - groups.setdefault(members, len(groups))
        constants.append(x)
        return len(constants) - 1

    try:
        starts = [(x, [place(y) for y in x.arguments]) for x in host.starts if x is not None]
    except KeyError:  # a tensor that torch made
        return None

    def getter(found: Any) -> itemgetter:
        return itemgetter(*[x if x >= 0 else len(constants) - 1 - x for x in found])

    return Plan(
        tuple(constants),
        size,
        tuple(offsets),
        tuple(map(getter, groups)),
        tuple((x.run, x.grid, x.what, getter(found)) for x, found in starts),
    )

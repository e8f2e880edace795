"""Starting kernels, at little cost to the host.

Triton's own launcher finds out at each start what of every argument a kernel is compiled for, and puts all of
it into a text by which it looks the kernel up: with arguments in groups tens of microseconds, several times
what starting it takes. Here what decides makes a short key, and a kernel found once is started directly.
Of passes seen before not even the key is made: plan.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton import knobs
from triton.runtime.driver import driver
from triton.runtime.errors import OutOfResources

# The kernels as compiled. Callers may have ever new keys: then what is kept is dropped and found again.
_found: dict[tuple[Any, ...], Any] = {}
_MOST_FOUND = 10_000
_HIGHEST = 2**31  # numbers from here on are passed in 8 bytes
# On AMD's GPUs a kernel is compiled for the sizes of tensors, too.
_DIRECT = torch.version.hip is None


class Started(NamedTuple):
    """A kernel that was started, and how: run(*grid, stream, *what, *arguments)."""

    run: Any
    grid: tuple[int, ...]
    what: tuple[Any, ...]  # the function, and what the driver is to know of it
    arguments: tuple[Any, ...]


class Host:
    """Starts the kernels of a pass, and allocates what they work in. Noting, it keeps both for plan.py."""

    def __init__(self, device: torch.device, noting: bool = False) -> None:
        self.device, self.noting = device, noting
        self.made: list[Tensor] = []
        self.starts: list[Started | None] = []  # None: a kernel that cannot be started by itself

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Memory without values, for the pass."""
        x = torch.empty(shape, dtype=dtype, device=self.device)
        if self.noting:
            self.made.append(x)
        return x

    def start(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        *arguments: Any,
        options: dict[str, int] | None = None,
        variants: tuple[dict[str, Any], ...] = ({},),
        **constants: Any,
    ) -> None:
        """`kernel[grid](*arguments, **variant, **constants, **options)` on the device, in its current stream,
        for each of the variants.

        Arguments and constants are in the order of the kernel's parameters; the options are the compiler's.
        """
        each = [variant | constants for variant in variants]
        if self.device.type != "cuda":
            for given in each:
                kernel[grid](*arguments, **given, **(options or {}))
        elif self.device.index == current_device():
            started = _start_here(kernel, self.device.index, grid, arguments, each, options or {})
            if self.noting:
                self.starts += started
        else:
            with torch.cuda.device(self.device):
                _start_here(kernel, self.device.index, grid, arguments, each, options or {})


def _start_here(
    kernel: Any,
    device: int,
    grid: tuple[int, ...],
    arguments: tuple[Any, ...],
    each: list[dict[str, Any]],
    options: dict[str, int],
) -> list[Started | None]:
    key = [kernel.fn, device, *options.values()]
    passed = _described(arguments, key)
    grid_of_three = grid[0], grid[1] if len(grid) > 1 else 1, 1
    started: list[Started | None] = []
    for constants in each:
        found = _found.get(whole := (*key, *constants.values()))
        if found is None or is_watched():
            assert [*constants] == kernel.arg_names[len(arguments) :], (kernel, constants)
            try:
                found = kernel[grid](*arguments, **constants, **options)
            except OutOfResources as error:
                raise RuntimeError(_too_large(kernel, error)) from error
            if not (_DIRECT and hasattr(found, "packed_metadata")):
                started.append(None)
                continue
            # it is there already, not being compiled
            if len(_found) >= _MOST_FOUND:
                _found.clear()
            _found[whole] = found
            what = found.function, found.packed_metadata, None, None, None
        else:
            what = found.function, found.packed_metadata, None, None, None
            stream = stream_of(device)
            found.run(*grid_of_three, stream, *what, *passed, *constants.values())
        started.append(Started(found.run, grid_of_three, what, (*arguments, *constants.values())))
    return started


def _too_large(kernel: Any, error: OutOfResources) -> str:
    """What to say where a GPU lacks what a kernel takes, and nobody knew from the call's shapes."""
    what, need, there = error.name, error.required, error.limit
    if "shared memory" in what:
        what, need, there = "KiB of shared memory", f"{need / 1024:.0f}", f"{there / 1024:.0f}"
    return (
        f"backend 'triton' cannot take this call here: {kernel.fn.__name__} needs {need} {what}, this GPU "
        f"has {there} for a program. Take backend='tiled', or fewer coordinates (m) or columns of values (d)"
    )


def _described(arguments: tuple[Any, ...], key: list[Any]) -> tuple[Any, ...]:
    """The arguments with addresses in place of tensors, of which the driver would be asked one by one. To key
    is added what kernels are compiled for, at least: more finds the same kernel under several keys."""
    passed = []
    for x in arguments:
        kind = type(x)
        if kind is int:
            if -_HIGHEST <= x < _HIGHEST:
                key.append(x & 15 and 1 + (x == 1))
            else:
                key.append((x & 15 == 0, x < 2**63))
        elif x is None:
            key.append(None)
        elif isinstance(x, Tensor):
            dtype, x = x.dtype, x.data_ptr()
            key.append(dtype if x & 15 == 0 else (dtype, False))
        else:
            key.append(kind)
            if isinstance(x, tuple):
                x = _described(x, key)
        passed.append(x)
    return tuple(passed)


def is_watched() -> bool:
    """Whether a profiler wants to be told of each start."""
    for hook in (knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook):
        if hook is not None and getattr(hook, "calls", True):
            return True
    return False


def current_device() -> int:
    """The number of the current GPU."""
    return torch.cuda.current_device()


def stream_of(device: int) -> int:
    """The current one of the GPU of that number."""
    return driver.active.get_current_stream(device)

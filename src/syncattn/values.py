"""Which tensors' values may be looked at: to look must cost nothing, and there must be some."""

from __future__ import annotations

import torch
from torch import Tensor

# Under these modes numbers are not computed, or may not become constants of a graph.
_TRACING = (torch._C._TorchDispatchModeKey.FAKE, torch._C._TorchDispatchModeKey.PROXY)


def unwrapped(tensor: Tensor) -> Tensor:
    """The tensor without the wrappers of torch.func's transforms: what vmap maps is a dimension of it."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def readable(tensor: Tensor, any_device: bool = False) -> Tensor | None:
    """The tensor's values, unwrapped, where looking at them waits for no device; else None.

    So it is on the CPU, or on any device that the caller would wait for; not while compiling, exporting or
    tracing; and of tensors that hold numbers: not of fake or distributed ones.
    """
    if not any_device and tensor.device.type != "cpu":
        return None
    if torch.compiler.is_compiling() or any(map(torch._C._get_dispatch_mode, _TRACING)):
        return None
    tensor = unwrapped(tensor)
    plain = type(tensor) in (Tensor, torch.nn.Parameter)
    there = tensor.device.type == "cpu" or (any_device and not tensor.is_meta)
    return tensor.detach() if plain and there else None

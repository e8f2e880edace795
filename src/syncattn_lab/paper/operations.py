"""Counting operations: floating-point operations of matrix products, and elements of everything else.

Counts need shapes alone, so they are made on meta tensors, which have no memory, at any number of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from syncattn.bench.timing import spread

_aten: Any = torch.ops.aten
# Products are counted by PyTorch itself; an empty tensor is no work.
_NOT_COUNTED = (_aten.mm, _aten.bmm, _aten.addmm, _aten.baddbmm, _aten.empty, _aten.empty_like)


class Operations(NamedTuple):
    """What a call does.

    Attributes:
        products: floating-point operations of matrix products, a multiplication and an addition each.
        elements: elements that all other operations read or write, whichever are more. Each counts once,
            be it an addition or an arcsine.
    """

    products: int
    elements: int

    @property
    def total(self) -> int:
        return self.products + self.elements


class _Elements(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        views = (r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if func.overloadpacket not in _NOT_COUNTED and not any(views):
            outs = out if isinstance(out, (tuple, list)) else (out,)
            # A scatter writes what it is given; the matrix around it stays.
            tensors = args[2:] if func.overloadpacket is _aten.scatter_ else (*args, *outs)
            self.count += max((x.numel() for x in tensors if isinstance(x, Tensor)), default=0)
        return out


def count(function: Callable[..., object], *shapes: Iterable[int]) -> Operations:
    """The operations of `function` on float32 tensors of these shapes."""
    tensors = [torch.empty(tuple(shape), device="meta") for shape in shapes]
    with FlopCounterMode(display=False) as products, _Elements() as elements:
        function(*tensors)
    return Operations(products.get_total_flops(), elements.count)


def exponent(sizes: Sequence[int], values: Sequence[float]) -> float:
    """e of the power law values ~ sizes**e: the slope of the least-squares line through the logarithms."""
    x = [math.log(size) for size in sizes]
    y = [math.log(value) for value in values]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y)) / sum((a - mean_x) ** 2 for a in x)


def exponent_of_times(sizes: Sequence[int], seconds: Sequence[Sequence[float | None]]) -> dict[str, Any]:
    """The spread of `exponent` over the rounds, seconds[size][round], in which every size was timed."""
    rounds = [[s for s in values if s is not None] for values in zip(*seconds)]
    return spread([exponent(sizes, values) for values in rounds if len(values) == len(sizes)])

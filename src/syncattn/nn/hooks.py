"""Modules that are called for each token: without what a call costs, where nobody stands in between."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as of_torch

# As PyTorch has them: some libraries put others in their place, for all modules that there are.
_CALL, _LINEAR = nn.Module.__call__, nn.Linear.forward
_NORM, _DROPOUT = nn.LayerNorm.forward, nn.Dropout.forward


def nobody_listens() -> bool:
    """Whether no gradients are recorded, nothing compiles or traces, no hooks are set for all modules, and
    the classes below compute as PyTorch made them."""
    if nn.Module.__call__ is not _CALL or nn.Linear.forward is not _LINEAR:
        return False
    if nn.LayerNorm.forward is not _NORM or nn.Dropout.forward is not _DROPOUT:
        return False
    return not (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or of_torch._global_forward_hooks
        or of_torch._global_forward_pre_hooks
    )


def is_plain(module: nn.Module) -> bool:
    """Whether a call of the module, while nobody listens, runs its class's `forward` and nothing else: it has
    no hooks, no `forward` of its own, and was not compiled."""
    own = module.__dict__
    return not (
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or "forward" in own
        or module._compiled_call_impl is not None
    )


def applied(linear: nn.Module, x: Tensor, alone: bool) -> Tensor:
    """`linear(x)`.

    Args:
        alone: what `nobody_listens` said.
    """
    if alone and type(linear) is nn.Linear and is_plain(linear):
        own = linear._parameters
        weight = own.get("weight")
        if weight is not None:
            return F.linear(x, weight, own.get("bias"))
    return linear(x)


def normalised(norm: nn.Module, x: Tensor, alone: bool) -> Tensor:
    """`norm(x)`, as `applied`."""
    if alone and type(norm) is nn.LayerNorm and is_plain(norm):
        own = norm._parameters
        return torch.layer_norm(x, norm.normalized_shape, own.get("weight"), own.get("bias"), norm.eps)
    return norm(x)


def dropped(dropout: nn.Module, x: Tensor, alone: bool) -> Tensor:
    """`dropout(x)`, as `applied`."""
    if alone and type(dropout) is nn.Dropout and not dropout.training and is_plain(dropout):
        return x
    return dropout(x)

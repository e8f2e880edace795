"""Densities of a whole model: measured on real activations, set there before training, limited during it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from syncattn.nn.attention import SelectiveSynchronizationAttention
from syncattn.nn.density import Locking, excess_coupling

# What the layer's forward takes that decides which pairs are allowed.
_DECIDES = (
    *("query", "key", "value", "key_padding_mask", "attn_mask", "is_causal", "self_attention"),
    *("positions", "key_positions", "sequence_ids"),
)
_FORWARD = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask", "", "is_causal")


def calibrate(
    model: nn.Module,
    *args: Any,
    density_range: tuple[float, float] | None = None,
    partners_range: tuple[float, float] | None = None,
    **kwargs: Any,
) -> None:
    """Set every synchronization layer's coupling and bandwidth, in place, on what it is really given.

    One forward pass, ``model(*args, **kwargs)``, without gradients: each layer is calibrated on its own input
    just before it computes, so that the next one sees activations of a calibrated model. A head's frequency
    gets a gradient only through pairs that lock; this is what makes sure that some do.

    Args:
        model: anything that holds `SelectiveSynchronizationAttention` layers.
        *args, **kwargs: a real batch.
        density_range: the ladder's ends for all layers; None for each layer's own.
        partners_range: the ladder's ends in partners in place of densities: how many senders a receiver of
            the first and of the last head locks with, whatever the length of the text.

    Of a batch with more than 2^20 pairs a head, 64 receivers stand for all, evenly spaced over it.

    Processes that train copies of one model must all give it the same batch, or calibrate before
    DistributedDataParallel makes the copies equal; `fully_shard` comes after calibration.

    Raises:
        ValueError: the model has no such layer, one cannot be calibrated, or its parameters are sharded.
    """
    if _is_sharded(model):
        raise ValueError(
            "calibrate needs whole parameters, got a model with sharded ones, in which what it writes would "
            "be lost: calibrate before fully_shard"
        )

    def hook(layer: SelectiveSynchronizationAttention, arguments: dict[str, Any]) -> None:
        layer.calibrate_(**arguments, density_range=density_range, partners_range=partners_range)

    _visit(model, lambda name: hook, args, kwargs)


def locked_density(model: nn.Module, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
    """The fraction of allowed pairs that lock, (H,) float32 per synchronization layer, by the layers' names.

    See `count_locked`.
    """
    return {name: found.density for name, found in count_locked(model, *args, **kwargs).items()}


def count_locked(model: nn.Module, *args: Any, **kwargs: Any) -> dict[str, Locking]:
    """How many pairs lock per synchronization layer, by the layers' names: each with its `density`, the
    fraction of allowed pairs, and its `partners`, how many senders a receiver locks with, (H,) float32.

    One forward pass, ``model(*args, **kwargs)``, without gradients.

    Raises:
        ValueError: the model has no such layer.
    """
    found: dict[str, Locking] = {}

    def hook_for(name: str):
        def hook(layer: SelectiveSynchronizationAttention, arguments: dict[str, Any]) -> None:
            found[name] = layer.count_locked(**arguments)

        return hook

    _visit(model, hook_for, args, kwargs)
    return found


def limit_density_(
    model: nn.Module,
    limit: float | None,
    *args: Any,
    max_partners: float | None = None,
    gain: float = 0.2,
    **kwargs: Any,
) -> dict[str, Tensor]:
    """Lower the couplings of layers in which more pairs lock than a limit allows, in place; what they locked.

    For training, every ten steps or so: it is training that decides how many pairs lock, not the start.
    Where a layer's heads lock shares s_h with a mean s above the limit, log K_h falls by
    gain * log(s / limit) * s_h / max s: the widest heads give way, and heads that lock little, which could
    die, are hardly touched. Where the mean is below the limit, gradients alone decide. In rows so short that
    the nearest senders, which always lock, are half of the limit, the limit is raised to twice their share.
    Of two limits the tighter one counts: a share of the pairs makes the cost quadratic in the length of the
    text, a number of partners linear.

    One forward pass, ``model(*args, **kwargs)``, without gradients. Processes with copies of one model must
    all give it the same batch.

    Args:
        model: anything that holds `SelectiveSynchronizationAttention` layers.
        limit: the highest mean share of allowed pairs in each layer, in (0, 1]; None for none.
        max_partners: the highest mean number of senders that a receiver of a layer locks with; None for none.
        *args, **kwargs: a real batch; a few sequences are enough.
        gain: how much of the excess is taken away at a time.

    Returns:
        The densities before, as `locked_density`.

    Raises:
        ValueError: `limit`, `max_partners` or `gain` is out of range, the model has no such layer, or a
            layer's heads share one coupling (parametrisation="softplus").
    """
    if limit is not None and not 0 < limit <= 1:
        raise ValueError(f"limit must be a share of the pairs, in (0, 1], got {limit!r}")
    if max_partners is not None and not 0 < max_partners < math.inf:
        raise ValueError(f"max_partners must be positive and finite, got {max_partners!r}")
    if not 0 < gain < math.inf:
        raise ValueError(f"gain must be positive and finite, got {gain!r}")
    found: dict[str, Tensor] = {}
    changes: list[tuple[SelectiveSynchronizationAttention, Tensor]] = []
    sharded = _is_sharded(model)

    def hook_for(name: str):
        def hook(layer: SelectiveSynchronizationAttention, arguments: dict[str, Any]) -> None:
            if layer.parametrisation != "log":
                raise ValueError(
                    f"parametrisation must be 'log', with a coupling per head, got "
                    f"{layer.parametrisation!r} in {name}"
                )
            counted = layer.count_locked(**arguments)
            found[name] = counted.density
            excess = excess_coupling(counted, layer.frame, limit, max_partners)
            if sharded:  # what a layer computes with is a copy of its shards: they change afterwards
                changes.append((layer, gain * excess))
            else:
                layer.raw_coupling.sub_((gain * excess).to(layer.raw_coupling))

        return hook

    _visit(model, hook_for, args, kwargs)
    if sharded:
        _lower_sharded(model, changes)
    return found


def _is_sharded(model: nn.Module) -> bool:
    """Whether `fully_shard` was applied to a model, or a part of it."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    from torch.distributed.fsdp import FSDPModule

    return any(isinstance(module, FSDPModule) for module in model.modules())


@torch.no_grad()
def _lower_sharded(model: nn.Module, changes: list[tuple[SelectiveSynchronizationAttention, Tensor]]) -> None:
    """Subtract from couplings of which each process holds some; the first process's changes count."""
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor, distribute_tensor

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    for layer, change in changes:
        raw: Any = layer.raw_coupling
        change = change.to(raw.device, raw.dtype)
        if isinstance(raw, DTensor):  # not one of fully_shard's ignored_params
            change = distribute_tensor(change, raw.device_mesh, raw.placements)
        raw.sub_(change)


def _visit(model: nn.Module, hook_for: Callable[[str], Callable], args: tuple, kwargs: dict) -> None:
    """Run the model once in eval mode; each layer's hook gets its arguments by name before it computes."""
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, SelectiveSynchronizationAttention)]
    if not layers:
        raise ValueError(f"{type(model).__name__} holds no SelectiveSynchronizationAttention layer")
    for name, layer in layers:
        if layer.raw_coupling.is_meta:
            raise ValueError(
                "counting and calibrating need the parameters in memory: do it before they are offloaded or "
                f"after they are filled, got layer {name!r} on the meta device"
            )

    def register(name: str, layer: nn.Module):
        hook = hook_for(name)

        def before(module: nn.Module, positional: tuple, named: dict[str, Any]) -> None:
            given = dict(zip(_FORWARD, positional)) | named
            hook(module, {k: v for k, v in given.items() if k in _DECIDES})

        return layer.register_forward_pre_hook(before, with_kwargs=True)

    handles = [register(name, layer) for name, layer in layers]
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            model(*args, **kwargs)
    finally:
        for module, was in training.items():
            module.training = was
        for handle in handles:
            handle.remove()

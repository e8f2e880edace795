"""The linear map behind each attention, fitted again in closed form to what sparse heads give.

What a head cuts off is missing in what its layer adds to the residual stream. Part of it can be said by the
other heads, part is the same for all tokens: ridge regression finds the projection that gives, from the
sparse heads, most nearly what the original gave. It starts from the original's own weights, so that a strong
ridge changes nothing, and how strong it is is decided on batches that were not fitted to.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from syncattn.integrations.transformers import AttentionCall, watching

RIDGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""What is tried, by the mean square of the heads' results."""

Batch = dict[str, Any]
Projections = dict[int, nn.Module]
Weights = dict[int, tuple[Tensor, Tensor | None]]


@torch.no_grad()
def find_projections(model: Any, batch: Batch) -> Projections:
    """Each attention's projection by layer: the linear map that is called next with its result.

    Raises:
        ValueError: an attention is followed by something else, or several by one map.
    """
    latest: list[tuple[int, Tensor]] = []
    layers: list[Any] = []
    found: dict[int, nn.Module] = {}

    def watch(call: AttentionCall, out: Tensor) -> Tensor:
        layers.append(call.module.layer_idx)
        latest[:] = [(call.module.layer_idx, out.transpose(1, 2).flatten(2))]  # type: ignore[list-item]
        return out

    def look(module: nn.Module, args: tuple[Any, ...]) -> None:
        if latest and args and isinstance(args[0], Tensor) and args[0].numel() == latest[0][1].numel():
            layer, out = latest[0]
            if args[0].shape[-1] == out.shape[-1] and torch.equal(args[0].reshape(out.shape), out):
                found.setdefault(layer, module)

    maps = [module for module in model.modules() if type(module) in (nn.Linear, Conv1D)]
    hooks = [module.register_forward_pre_hook(look) for module in maps]
    try:
        with watching(watch):
            model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    missing = [layer for layer in layers if layer not in found]
    if missing or len(set(map(id, found.values()))) < len(found):
        raise ValueError(
            f"{type(model).__name__}: refit needs a linear map of its own right after each attention, and "
            f"layers {missing or sorted(found)} have none: convert with refit=False"
        )
    return found


def weights_of(projections: Projections) -> Weights:
    """A copy of their weights and biases."""
    return {
        layer: tuple(None if x is None else x.detach().clone() for x in (module.weight, module.bias))  # type: ignore
        for layer, module in projections.items()
    }


@torch.no_grad()
def set_weights(projections: Projections, weights: Weights) -> None:
    """Give them what `weights_of` copied."""
    for layer, module in projections.items():
        for own, kept in zip((module.weight, module.bias), weights[layer]):
            if kept is not None:
                own.copy_(kept)  # type: ignore[operator, union-attr]


@torch.no_grad()
def results_of(model: Any, batches: list[Batch], projections: Projections) -> list[dict[int, Tensor]]:
    """What the projections give now for each batch's real tokens, (tokens, E) by layer.

    In bfloat16, which is nearer than any of the fits, if the model's numbers are wider: 2 bytes for each
    token, layer and coordinate are kept.
    """
    layers = sorted(projections)
    modules = [projections[layer] for layer in layers]
    return [
        {
            layer: real_rows(out, batch).bfloat16()
            for layer, out in zip(layers, watched(model, modules, batch)[1])
        }
        for batch in batches
    ]


def watched(model: Any, modules: list[nn.Module], batch: Batch) -> tuple[Any, list[Tensor]]:
    """A model's outputs for a batch, and what these modules of it give, in their order."""
    found: dict[int, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _, __, out, at=at: found.update({at: out}))
        for at, module in enumerate(modules)
    ]
    try:
        outputs = model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs, [found[at] for at in range(len(modules))]


@torch.no_grad()
def refit_projections(
    model: Any,
    batches: list[Batch],
    held: set[int],
    projections: Projections,
    wanted: list[dict[int, Tensor]],
) -> tuple[tuple[float, float], ...]:
    """Fit the projections again, the first layer first, each with those before it fitted.

    Normal equations in float64. A bias is fitted where the projection has one, without a ridge.

    Args:
        batches: of the model, whose couplings are set.
        held: the numbers of the batches that only decide how strong the ridge is.
        projections: with their own weights, which are changed.
        wanted: what they gave in the original: `results_of`.

    Returns:
        (before, after) for each layer in order: the error on the batches held out, the mean square of what is
        missing by that of what is wanted. A projection that no fit makes better there keeps its weights.
    """
    errors = []
    for layer in sorted(projections):
        module: Any = projections[layer]
        inside = module.weight.shape[0 if isinstance(module, Conv1D) else 1]
        size, outside = inside + (module.bias is not None), wanted[0][layer].shape[-1]
        options: Any = {"dtype": torch.float64, "device": module.weight.device}
        gram = [torch.zeros(size, size, **options) for _ in range(2)]  # fitted to, held out
        cross = [torch.zeros(size, outside, **options) for _ in range(2)]
        missing = total = 0.0
        for number, batch in enumerate(batches):
            rows, gives = _reached(model, batch, module)
            target = wanted[number][layer].double()
            part, rest = number in held, target - gives.double()
            rows = rows.double()
            if module.bias is not None:
                rows = torch.cat((rows, torch.ones_like(rows[:, :1])), -1)
            gram[part] += rows.mT @ rows
            cross[part] += rows.mT @ rest
            if part:
                missing, total = missing + rest.square().sum().item(), total + target.square().sum().item()
        diagonal = torch.full((size,), gram[0].diagonal()[:inside].mean().item(), **options)
        diagonal[inside:] = 1e-9 * diagonal[0]  # the bias
        best, change = missing, None
        for ridge in RIDGES:
            tried, info = torch.linalg.solve_ex(gram[0] + torch.diag(ridge * diagonal), cross[0])
            error = missing - 2 * (tried * cross[1]).sum() + (tried * (gram[1] @ tried)).sum()
            if not info.any() and error < best:
                best, change = error.item(), tried
        if change is not None:
            weight = change[:inside] if isinstance(module, Conv1D) else change[:inside].mT
            module.weight.copy_(module.weight.double() + weight)
            if module.bias is not None:
                module.bias.copy_(module.bias.double() + change[inside])
        errors.append((missing / max(total, 1e-300), best / max(total, 1e-300)))
    return tuple(errors)


class _Reached(Exception):
    """The model need not go on."""


def _reached(model: Any, batch: Batch, module: nn.Module) -> tuple[Tensor, Tensor]:
    """What a module is given and gives for a batch's real tokens, (tokens, in) and (tokens, out)."""
    found: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        found.extend((real_rows(args[0], batch), real_rows(out, batch)))
        raise _Reached

    hook = module.register_forward_hook(keep)
    try:
        model(**batch)
    except _Reached:
        pass
    finally:
        hook.remove()
    return found[0], found[1]


def real_rows(rows: Tensor, batch: Batch) -> Tensor:
    """The rows of a batch's real tokens, (tokens, E)."""
    mask = batch.get("attention_mask")
    rows = rows.reshape(-1, rows.shape[-1])
    if isinstance(mask, Tensor) and mask.ndim == 2 and mask.numel() == len(rows):
        return rows[mask.flatten().bool()]
    return rows

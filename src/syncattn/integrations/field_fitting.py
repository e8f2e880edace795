"""How strong each head's field is, in closed form: what brings its results nearest to the original's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from syncattn.integrations.field import mean_value
from syncattn.integrations.transformers import AttentionCall, watching

Batch = dict[str, Any]


@torch.no_grad()
def results_of_heads(model: Any, batches: list[Batch]) -> list[dict[int, Tensor]]:
    """What each layer's heads give for each batch, (B, H, N, dv) by layer, in bfloat16: of a model that is as
    the original."""
    found: list[dict[int, Tensor]] = []

    def watch(call: AttentionCall, out: Tensor) -> Tensor:
        found[-1][call.module.layer_idx] = out.bfloat16()  # type: ignore[index]
        return out

    for batch in batches:
        found.append({})
        with watching(watch):
            model(**batch)
    return found


@torch.no_grad()
def fit_fields(
    model: Any, batches: list[Batch], wanted: list[dict[int, Tensor]], layers: int
) -> list[list[float]]:
    """Each head's share s by least squares, the first layer first, each with those before it fitted.

    The model's configuration has them then, as `ssa_field`, and they are returned.

    Args:
        batches: of the model, whose couplings are set.
        wanted: `results_of_heads` of the original.
        layers: how many.
    """
    shares: list[list[float]] = [[] for _ in range(layers)]
    for layer in sorted(wanted[0]):
        model.config.ssa_field = [row or 0.0 for row in shares]
        sums = [_sums(model, batch, layer, results[layer]) for batch, results in zip(batches, wanted)]
        along, square = torch.stack(sums).sum(0)
        shares[layer] = (along / square.clamp(min=1e-30)).clamp(0, 1).tolist()
    model.config.ssa_field = [[round(share, 6) for share in row] or 0.0 for row in shares]
    return model.config.ssa_field


class _Reached(Exception):
    """The model need not go on."""


def _sums(model: Any, batch: Batch, layer: int, wanted: Tensor) -> Tensor:
    """The products of what a field would add to a layer's heads, with what they miss and with itself, summed
    over a batch's real tokens: (2, H)."""
    found: list[Tensor] = []

    def watch(call: AttentionCall, out: Tensor) -> Tensor:
        if call.module.layer_idx != layer:
            return out
        mean, _ = mean_value(call.value, call.mask)
        gain = (mean.repeat_interleave(out.shape[1] // call.value.shape[1], 1) - out).double()
        missing = wanted.to(gain) - out
        real = _rows(batch, gain)
        found.append(torch.stack([(real * gain * other).sum((0, 2, 3)) for other in (missing, gain)]))
        raise _Reached

    try:
        with watching(watch):
            model(**batch)
    except _Reached:
        pass
    return found[0]


def _rows(batch: Batch, like: Tensor) -> Tensor:
    """1 for the real tokens among (B, H, N, dv), else 0."""
    mask = batch.get("attention_mask")
    if isinstance(mask, Tensor) and mask.shape == like.shape[:3:2]:
        return mask[:, None, :, None].to(like)
    return torch.ones((), dtype=like.dtype, device=like.device)

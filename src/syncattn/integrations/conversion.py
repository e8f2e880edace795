"""A pretrained model's attention made sparse without training: the couplings lowered, head by head.

Through SSA (syncattn.integrations.transformers) a model computes what it did, and its coupling says how far
below a row's highest score a sender still weighs: the head's reach. A head whose scores are spread loses little
by a short reach, one that averages over a whole text loses much. `convert` finds for each head how many pairs
it would lock, and how much of the model's output it would change, at each of a ladder of reaches; among all
choices it takes the one that changes least for its density, and then measures what it did.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from syncattn.checks import check_real
from syncattn.integrations.softmax import BANDWIDTH, coupling_of_reach
from syncattn.integrations.transformers import COUPLING, NAME, AttentionCall, register, watching
from syncattn.margin import margin_of

REACHES = tuple(15.0 * 0.75**step for step in range(18))
"""The ladder, in units of the scores, from kappa 9.9e3 to a reach of .11."""

PROBES = 4
"""Random directions of the output along which a head's effect is measured, for each batch."""

Output = Callable[[Any, Mapping[str, Tensor]], Tensor]


class Conversion(NamedTuple):
    """What `convert` did, measured on its data.

    Attributes:
        coupling: kappa of each layer's heads, as the model's configuration has it now.
        density: the share of the allowed pairs that lock, of each layer's heads.
        cosine: the mean cosine between the outputs before and after.
        worst: the smallest.
    """

    coupling: list[list[float]]
    density: list[list[float]]
    cosine: float
    worst: float

    @property
    def mean_density(self) -> float:
        """The mean over all heads."""
        rows = [number for row in self.density for number in row]
        return sum(rows) / len(rows)

    def __str__(self) -> str:
        lines = [
            f"mean density {self.mean_density:.3f}, cosine {self.cosine:.5f} (smallest {self.worst:.5f})",
            "layer  density of each head",
        ]
        for layer, row in enumerate(self.density):
            lines.append(f"{layer:5d}  " + " ".join(f"{number:.2f}" for number in row))
        return "\n".join(lines)


def mean_pooled(outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """A sentence's embedding: the mean of its real tokens' last hidden states, (B, E)."""
    hidden = outputs[0]
    mask = batch.get("attention_mask")
    if mask is None:
        return hidden.mean(1)
    real = mask[..., None].to(hidden.dtype)
    return (hidden * real).sum(1) / real.sum(1).clamp(min=1)


def every_token(outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """The first output of a model, hidden states or logits, of the real tokens: (tokens, E)."""
    hidden = outputs[0]
    mask = batch.get("attention_mask")
    if mask is None or mask.shape != hidden.shape[:2]:
        return hidden.flatten(0, -2)
    return hidden[mask.bool()]


class _Heads:
    """What a model's heads would do at each reach: sums over batches, (layers, heads, reaches) float64."""

    def __init__(self) -> None:
        self.locked: dict[int, Tensor] = {}
        self.change: dict[int, Tensor] = {}
        self.allowed: dict[int, float] = {}

    def add(self, call: AttentionCall, out: Tensor, slopes: Sequence[Tensor]) -> None:
        """A batch's call, its result and the slopes of the output along each probe by it."""
        layer = call.module.layer_idx
        below, allowed = _below(call)
        heads = call.query.shape[1]
        value = call.value.repeat_interleave(heads // call.value.shape[1], 1)
        locked, change = [], []
        for reach in REACHES:
            margin = margin_of(2 * below, torch.tensor(coupling_of_reach(reach)), torch.tensor(BANDWIDTH))
            weight = margin.clamp(min=0).masked_fill(~allowed, 0.0)
            locked.append((weight > 0).sum((0, 2, 3)).double())
            weight = weight / weight.sum(-1, keepdim=True).clamp(min=1e-30)
            difference = weight.to(value.dtype) @ value - out
            effect = torch.stack([(slope * difference).sum((2, 3)) for slope in slopes])  # (probes, B, H)
            change.append(effect.double().square().sum((0, 1)))
        none = torch.zeros(heads, len(REACHES), dtype=torch.float64)
        self.locked[layer] = self.locked.get(layer, none) + torch.stack(locked, -1)
        self.change[layer] = self.change.get(layer, none) + torch.stack(change, -1)
        self.allowed[layer] = self.allowed.get(layer, 0.0) + allowed.expand_as(below).sum().item() / heads


def _below(call: AttentionCall) -> tuple[Tensor, Tensor]:
    """How far each score is below its row's highest, (B, H, N, M) float32 at least, and what is allowed."""
    heads, (queries, keys) = call.query.shape[1], (call.query.shape[2], call.key.shape[2])
    dtype = torch.promote_types(call.query.dtype, torch.float32)
    key = call.key.to(dtype).repeat_interleave(heads // call.key.shape[1], 1)
    score = (call.query.to(dtype) * call.scaling) @ key.mT
    allowed = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=score.device)
    if call.mask is not None:
        allowed = allowed & call.mask
    if call.is_causal:
        allowed = allowed.tril(keys - queries)
    score = score.masked_fill(~allowed, -torch.inf)
    highest = score.amax(-1, keepdim=True)
    return (highest - score).masked_fill(~allowed | highest.isinf(), 0.0), allowed

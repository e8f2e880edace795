"""What a conversion did: which pairs lock, layer by layer and head by head, and how far the outputs moved.

`convert` and `distil` tell it in the same words, and measure it here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from syncattn.checks import short
from syncattn.integrations.softmax import BANDWIDTH
from syncattn.integrations.transformers import COUPLING, AttentionCall, watching
from syncattn.margin import margin_of
from syncattn.models.pooling import mean_pooling

Output = Callable[[Any, Mapping[str, Tensor]], Tensor]

SETTINGS = ("ssa_coupling", "ssa_field")
"""The fields of a configuration that a conversion sets."""

KEPT = 0.99
"""From this density on a head is told of as softmax: nothing to speak of is cut off."""


class Conversion(NamedTuple):
    """What `convert` or `distil` did, measured on data.

    Attributes:
        coupling: kappa of each layer's heads, as the model's configuration has it now.
        density: the share of the allowed pairs that lock, of each layer's heads.
        cosine: the mean cosine between the outputs before and after.
        worst: the smallest.
        refitted: (before, after) for each layer whose projection was fitted again, in their order: the error
            on batches it was not fitted to, the mean square of what is missing by that of what is wanted.
        field: the share of the field in what each layer's heads give; None if there is none.
    """

    coupling: list[list[float]]
    density: list[list[float]]
    cosine: float
    worst: float
    refitted: tuple[tuple[float, float], ...] = ()
    field: list[list[float]] | None = None

    @property
    def mean_density(self) -> float:
        """The mean over all heads."""
        rows = [number for row in self.density for number in row]
        return sum(rows) / len(rows)

    @property
    def kept(self) -> list[tuple[int, int]]:
        """(layer, head) of those that are softmax still: `KEPT` of their pairs or more lock."""
        pairs = [(layer, head, x) for layer, row in enumerate(self.density) for head, x in enumerate(row)]
        return [(layer, head) for layer, head, x in pairs if x >= KEPT]

    def __str__(self) -> str:
        lines = [
            f"mean density {self.mean_density:.3f}, cosine {self.cosine:.5f} (smallest {self.worst:.5f})",
            "layer  density of each head",
        ]
        for layer, row in enumerate(self.density):
            lines.append(f"{layer:5d}  " + " ".join(f"{number:.2f}" for number in row))
        for layer, (before, after) in enumerate(self.refitted):
            lines.append(f"{layer:5d}  error of the attention {before:.4f}, {after:.4f} when fitted again")
        for layer, row in enumerate(self.field or ()):
            lines.append(f"{layer:5d}  share of the field " + " ".join(f"{number:.2f}" for number in row))
        if self.kept:
            lines.append("kept as softmax: " + ", ".join(f"layer {x} head {y}" for x, y in self.kept))
        return "\n".join(lines)


def mean_pooled(outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """A sentence's embedding: the mean of its real tokens' last hidden states, (B, E)."""
    return mean_pooling(outputs[0], batch.get("attention_mask"))


def every_token(outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """The first output of a model, hidden states or logits, of the real tokens: (tokens, E)."""
    hidden = outputs[0]
    mask = batch.get("attention_mask")
    if mask is None or mask.shape != hidden.shape[:2]:
        return hidden.flatten(0, -2)
    return hidden[mask.bool()]


def batches_of(data: Any, model: nn.Module) -> list[dict[str, Any]]:
    batches = list(data) if isinstance(data, Iterable) and not isinstance(data, Mapping) else None
    if batches is None or not all(isinstance(batch, Mapping) for batch in batches):
        raise TypeError(f"data must be batches, each a dictionary of a call's arguments, got {short(data)}")
    if not batches:
        raise ValueError("data must hold at least one batch, got none")
    device = next(model.parameters()).device
    return [{k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()} for batch in batches]


def check_recording(name: str) -> None:
    """Make sure that gradients can be had: within `torch.no_grad` they can, by `torch.enable_grad`."""
    if torch.is_inference_mode_enabled():
        raise ValueError(f"{name} must be called outside of torch.inference_mode: it needs gradients")


def rows_of(model: nn.Module, batch: dict[str, Any], output: Output) -> Tensor:
    """The rows (..., E) that a caller's `output` makes of a model's outputs for a batch.

    Raises:
        TypeError, ValueError: it is no function, or gives something else.
    """
    if not callable(output):
        raise TypeError(f"output must be a function of the outputs and the batch, got {short(output)}")
    rows = output(model(**batch), batch)
    if not isinstance(rows, Tensor):
        raise TypeError(f"output must give a tensor (..., E), got {type(rows).__name__}")
    if rows.ndim < 2 or not rows.is_floating_point():
        raise ValueError(f"output must give real rows (..., E), got {rows.dtype} {tuple(rows.shape)}")
    return rows


@torch.no_grad()
def outputs_of(model: nn.Module, batches: list[dict[str, Any]], output: Output) -> Tensor:
    rows = torch.cat([rows_of(model, batch, output).flatten(0, -2).double() for batch in batches])
    if not rows.isfinite().all():
        raise ValueError("model gives outputs that are not finite for this data")
    return rows


def settings_of(config: Any) -> dict[str, Any]:
    """What a configuration has of `SETTINGS`, for `restore`."""
    return {name: getattr(config, name) for name in SETTINGS if hasattr(config, name)}


def restore(config: Any, settings: Mapping[str, Any]) -> None:
    """Give a configuration back what it had of `SETTINGS`."""
    for name in SETTINGS:
        if name in settings:
            setattr(config, name, settings[name])
        elif hasattr(config, name):
            delattr(config, name)


def set_couplings(model: Any, coupling: Mapping[int, list[float]]) -> None:
    """Give a model's layers these couplings, and those between that have none softmax's."""
    heads = len(next(iter(coupling.values())))
    count = max(coupling) + 1
    model.config.ssa_coupling = [coupling.get(layer, [COUPLING] * heads) for layer in range(count)]


def measure(model: Any, batches: list[dict[str, Any]], output: Output, reference: Tensor) -> Conversion:
    """What the model does with its couplings, which its configuration holds as a list for each layer.

    Args:
        reference: `outputs_of` the original, (rows, E).
    """
    with counting(model) as counts:
        given = outputs_of(model, batches, output)
    cosine = torch.cosine_similarity(given, reference, dim=-1)
    # Of a text without real tokens both are 0: nothing was changed there.
    cosine = torch.where((given == reference).all(-1), 1.0, cosine)
    found = counts.density()
    density = [found[layer].tolist() if layer in found else [] for layer in range(max(found) + 1)]
    config = model.config
    field = getattr(config, "ssa_field", None)
    mean, worst = cosine.mean().item(), cosine.min().item()
    return Conversion(config.ssa_coupling, density, mean, worst, field=field)


class Counts:
    """How many pairs of each layer's heads lock, and may, over all calls that were watched."""

    def __init__(self) -> None:
        self.locked: dict[int, Tensor] = {}
        self.allowed: dict[int, float] = {}

    def density(self) -> dict[int, Tensor]:
        """The share that locks, (H,) float64 on the CPU, of each layer that was called, in order."""
        return {layer: self.locked[layer] / self.allowed[layer] for layer in sorted(self.locked)}


@contextmanager
def counting(model: Any) -> Iterator[Counts]:
    """Within it, the pairs of this model's calls are counted."""
    counts = Counts()

    @torch.no_grad()
    def watch(call: AttentionCall, out: Tensor) -> Tensor:
        if getattr(call.module, "config", None) is model.config:
            layer: Any = call.module.layer_idx
            below, allowed = below_highest(call)
            kappa = call.coupling.to(below)[None, :, None, None]
            margin = margin_of(2 * below, kappa, torch.full_like(kappa, BANDWIDTH))
            locked = ((margin > 0) & allowed).sum((0, 2, 3)).double().cpu()
            counts.locked[layer] = counts.locked.get(layer, 0) + locked
            pairs = allowed.expand_as(below)[:, 0].sum().item()
            counts.allowed[layer] = counts.allowed.get(layer, 0) + pairs
        return out

    with watching(watch):
        yield counts


def below_highest(call: AttentionCall) -> tuple[Tensor, Tensor]:
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

"""A pretrained model's attention made sparse without training: the couplings lowered, head by head.

Through SSA (syncattn.integrations.transformers) a model computes what it did, and its coupling says how far
below a row's highest score a sender still weighs: the head's reach. A head whose scores are spread loses
little by a short reach, one that averages over a whole text loses much. `convert` finds for each head how
many pairs it would lock, and how much of the model's output it would change, at each of a ladder of reaches;
among all choices it takes the one that changes least for its density, and then measures what it did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from syncattn.checks import check_real, short
from syncattn.integrations.softmax import BANDWIDTH, coupling_of_reach
from syncattn.integrations.transformers import COUPLING, NAME, AttentionCall, register, watching
from syncattn.margin import margin_of

REACHES = tuple(20.0 * 0.75**step for step in range(19))
"""The ladder, in units of the scores, from kappa 1.4e5 to a reach of .11."""

PROBES = 4
"""Random directions of the output along which a head's effect is measured, for each batch."""

_SHORTEST = (
    4  # senders that a row of the data may attend to, in the mean: of fewer, there is nothing to spare
)

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
        self.rows: dict[int, int] = {}

    def add(self, call: AttentionCall, out: Tensor, slopes: Sequence[Tensor]) -> None:
        """A batch's call, its result and the slopes of the output along each probe by it."""
        layer: Any = call.module.layer_idx
        below, allowed = _below(call)
        heads = call.query.shape[1]
        value = call.value.to(below.dtype).repeat_interleave(heads // call.value.shape[1], 1)
        locked, change = [], []
        for reach in REACHES:
            kappa = torch.full_like(below[0, 0, 0, 0], coupling_of_reach(reach))
            margin = margin_of(2 * below, kappa, torch.full_like(kappa, BANDWIDTH))
            weight = margin.clamp(min=0).masked_fill(~allowed, 0.0)
            locked.append((weight > 0).sum((0, 2, 3)).double().cpu())
            weight = weight / weight.sum(-1, keepdim=True).clamp(min=1e-30)
            difference = weight @ value - out
            effect = torch.stack([(slope * difference).sum((2, 3)) for slope in slopes])  # (probes, B, H)
            change.append(effect.double().square().sum((0, 1)).cpu())
        none = torch.zeros(heads, len(REACHES), dtype=torch.float64, device="cpu")
        self.locked[layer] = self.locked.get(layer, none) + torch.stack(locked, -1)
        self.change[layer] = self.change.get(layer, none) + torch.stack(change, -1)
        self.allowed[layer] = self.allowed.get(layer, 0.0) + allowed.expand_as(below)[:, 0].sum().item()
        self.rows[layer] = self.rows.get(layer, 0) + below.shape[0] * below.shape[2]


def convert(
    model: Any,
    data: Iterable[Mapping[str, Tensor]],
    *,
    density: float | None = None,
    error: float | None = None,
    output: Output = mean_pooled,
) -> Conversion:
    """Make a pretrained model's attention sparse: its own weights, SSA, and a coupling for every head.

    The model then has `attn_implementation="ssa"` and `config.ssa_coupling`, which `save_pretrained` keeps.
    It takes about as long as 30 forward passes over the data, and a batch's weights of one layer in memory.

    Args:
        model: of transformers, with its own attention or "ssa" without couplings; one whose attention modules
            have a `layer_idx` each: encoders and decoders, no encoder-decoders.
        data: batches, each the keyword arguments of one call of the model, without labels; a few hundred
            texts as long as those that it is for.
        density: the wanted mean density, in (0, 1): what locks of the allowed pairs, over all heads. Or
        error: the wanted error, in (0, 1): 1 less the mean cosine of the outputs. Exactly one of the two.
        output: makes the rows (..., E) that are compared of the model's outputs and the batch: `mean_pooled`
            for a sentence encoder, `every_token` for hidden states and logits.

    Returns:
        What was done, measured on the data.

    Raises:
        TypeError, ValueError: an argument is wrong, the model cannot be served or is converted already, or no
            coupling reaches what is wanted. The model is then as it was.
    """
    if (density is None) == (error is None):
        raise ValueError(f"exactly one of density and error must be given, got {density!r} and {error!r}")
    name, wanted = ("density", density) if error is None else ("error", error)
    check_real(name, wanted, "between 0 and 1", lambda x: 0 < x < 1)
    config = getattr(model, "config", None)
    if not hasattr(model, "set_attn_implementation") or config is None:
        raise TypeError(f"model must be a model of transformers, got {type(model).__name__}")
    if getattr(config, "ssa_coupling", None) is not None:
        raise ValueError(
            "model is converted already: its configuration has ssa_coupling. Set that to None first"
        )
    batches = _batches(data, model)

    before, modes = config._attn_implementation, [(module, module.training) for module in model.modules()]
    had = hasattr(config, "ssa_coupling")
    done = False
    try:
        model.eval()
        register()
        model.set_attn_implementation(NAME)
        if config._attn_implementation != NAME or not model._can_set_attn_implementation():
            raise ValueError(
                f"{type(model).__name__}: its attention is not called through the AttentionInterface"
            )
        reference = _outputs(model, batches, output)
        result = _search(model, batches, output, reference, name, float(wanted))  # type: ignore[arg-type]
        config.ssa_coupling = result.coupling
        done = True
    finally:
        for module, training in modes:
            module.training = training
        if not done:
            model.set_attn_implementation(before)
            if had:
                config.ssa_coupling = None
            elif hasattr(config, "ssa_coupling"):
                del config.ssa_coupling
    return result


def _batches(data: Any, model: nn.Module) -> list[dict[str, Any]]:
    batches = list(data) if isinstance(data, Iterable) and not isinstance(data, Mapping) else None
    if batches is None or not all(isinstance(batch, Mapping) for batch in batches):
        raise TypeError(f"data must be batches, each a dictionary of a call's arguments, got {short(data)}")
    if not batches:
        raise ValueError("data must hold at least one batch, got none")
    device = next(model.parameters()).device
    return [{k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()} for batch in batches]


@torch.no_grad()
def _outputs(model: nn.Module, batches: list[dict[str, Any]], output: Output) -> Tensor:
    rows = torch.cat([output(model(**batch), batch).flatten(0, -2).double() for batch in batches])
    if not rows.isfinite().all():
        raise ValueError("model gives outputs that are not finite for this data")
    return rows


def _search(
    model: Any, batches: list[dict[str, Any]], output: Output, reference: Tensor, name: str, wanted: float
) -> Conversion:
    """The sparsest couplings within an error, or those of least error within a density, by bisection of the
    choices that change least for their density."""
    choices = _choices(_heads(model, batches, output))

    def measured(at: int) -> Conversion:
        return _measure(model, batches, output, reference, choices[at])

    low, high = 0, len(choices) - 1  # from dense to sparse
    best = measured(high if name == "density" else low)
    found = best.mean_density if name == "density" else 1 - best.cosine
    if found > wanted:
        extreme = "shortest" if name == "density" else "longest"
        raise ValueError(
            f"{name} must be at least {found:.4g}, that of the {extreme} reach on this data, got {wanted:g}"
        )
    while low < high:
        middle = (low + high) // 2 if name == "density" else (low + high + 1) // 2
        tried = measured(middle)
        if name == "density":
            low, high = (low, middle) if tried.mean_density <= wanted else (middle + 1, high)
            best = tried if tried.mean_density <= wanted else best
        else:
            low, high = (middle, high) if 1 - tried.cosine <= wanted else (low, middle - 1)
            best = tried if 1 - tried.cosine <= wanted else best
    return best


def _heads(model: Any, batches: list[dict[str, Any]], output: Output) -> _Heads:
    """What every head would do, to first order: from the slopes of the outputs by the heads' results."""
    heads = _Heads()
    generator = torch.Generator("cpu").manual_seed(0)
    for batch in batches:
        calls: list[tuple[AttentionCall, Tensor]] = []
        probes: list[Tensor] = []

        def watch(call: AttentionCall, out: Tensor, calls=calls, probes=probes) -> Tensor:
            if getattr(call.module, "config", None) is not model.config:
                return out  # another model's, or a part with a configuration of its own: checked below
            tensors = {name: getattr(call, name).detach() for name in ("query", "key", "value")}
            calls.append((call._replace(**tensors), out.detach()))
            probes.append(torch.zeros_like(out, requires_grad=True))
            return out + probes[-1]

        with watching(watch), torch.enable_grad():
            rows = torch.nn.functional.normalize(output(model(**batch), batch).float(), dim=-1)
        _check_layers(model, [call.module for call, _ in calls])
        slopes = []
        for number in range(PROBES):
            direction = torch.randn(rows.shape, generator=generator, dtype=rows.dtype).to(rows.device)
            loss = (rows * direction).sum()
            slopes.append(torch.autograd.grad(loss, probes, retain_graph=number + 1 < PROBES))
        with torch.no_grad():
            for at, (call, out) in enumerate(calls):
                heads.add(call, out, [slope[at] for slope in slopes])
    if min(heads.allowed[layer] / heads.rows[layer] for layer in heads.allowed) < _SHORTEST:
        raise ValueError(
            f"data must hold longer texts: a row may attend to fewer than {_SHORTEST} in the mean"
        )
    return heads


def _check_layers(model: nn.Module, modules: list[Any]) -> None:
    layers = [getattr(module, "layer_idx", None) for module in modules]
    if not layers or None in layers or len(set(layers)) < len(layers):
        raise ValueError(
            f"{type(model).__name__}: couplings are kept by layer, so every attention module must be called "
            f"once and have a layer_idx of its own, got {short(layers)}"
        )


def _choices(heads: _Heads) -> list[dict[int, list[float]]]:
    """For each layer its heads' couplings, from dense to sparse: at every price of a change, the sum of
    density and price times change is least."""
    layers = sorted(heads.locked)
    density = {layer: heads.locked[layer] / heads.allowed[layer] for layer in layers}
    change = heads.change
    scale = max(change[layer].max().item() for layer in layers) or 1.0
    found: list[dict[int, list[int]]] = []
    for step in range(240):
        price = 10 ** (10 - step / 15) / scale
        rungs = {layer: (density[layer] + price * change[layer]).argmin(-1).tolist() for layer in layers}
        if not found or rungs != found[-1]:
            found.append(rungs)
    found[:0] = [{layer: [0] * len(found[0][layer]) for layer in layers}]
    found.append({layer: [len(REACHES) - 1] * len(found[0][layer]) for layer in layers})
    return [
        {layer: [round(coupling_of_reach(REACHES[rung]), 4) for rung in row] for layer, row in rungs.items()}
        for rungs in found
    ]


def _measure(
    model: Any,
    batches: list[dict[str, Any]],
    output: Output,
    reference: Tensor,
    coupling: dict[int, list[float]],
) -> Conversion:
    """What the model does with these couplings, which it then has."""
    count = max(coupling) + 1
    heads = len(next(iter(coupling.values())))
    model.config.ssa_coupling = [coupling.get(layer, [COUPLING] * heads) for layer in range(count)]
    locked: dict[int, Tensor] = {}
    allowed_pairs: dict[int, float] = {}

    def watch(call: AttentionCall, out: Tensor) -> Tensor:
        if getattr(call.module, "config", None) is model.config:
            layer: Any = call.module.layer_idx
            below, allowed = _below(call)
            kappa = call.coupling.to(below)[None, :, None, None]
            margin = margin_of(2 * below, kappa, torch.full_like(kappa, BANDWIDTH))
            locked[layer] = locked.get(layer, 0) + ((margin > 0) & allowed).sum((0, 2, 3)).double().cpu()
            allowed_pairs[layer] = allowed_pairs.get(layer, 0) + allowed.expand_as(below)[:, 0].sum().item()
        return out

    with watching(watch):
        cosine = torch.cosine_similarity(_outputs(model, batches, output), reference, dim=-1)
    density = [
        (locked[layer] / allowed_pairs[layer]).tolist() if layer in locked else [] for layer in range(count)
    ]
    return Conversion(model.config.ssa_coupling, density, cosine.mean().item(), cosine.min().item())


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

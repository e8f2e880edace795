"""A pretrained model's attention made sparse without training: the couplings lowered, head by head.

Through SSA (syncattn.integrations.transformers) a model computes what it did, and its coupling says how far
below a row's highest score a sender still weighs: the head's reach. A head whose scores are spread loses
little by a short reach, one that averages over a whole text loses much. `convert` finds for each head how
many pairs it would lock, and how much of the model's output it would change, at each of a ladder of reaches;
among all choices it takes the one that changes least for its density, and then measures what it did.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from syncattn.checks import check_flag, check_real, short
from syncattn.integrations.field import mean_value
from syncattn.integrations.field_fitting import fit_fields, results_of_heads
from syncattn.integrations.measuring import (
    SETTINGS,
    Conversion,
    Output,
    batches_of,
    below_highest,
    check_recording,
    every_token,
    mean_pooled,
    measure,
    outputs_of,
    restore,
    rows_of,
    set_couplings,
    settings_of,
)
from syncattn.integrations.projections import (
    Projections,
    Weights,
    find_projections,
    refit_projections,
    results_of,
    set_weights,
    weights_of,
)
from syncattn.integrations.softmax import BANDWIDTH, coupling_of_reach
from syncattn.integrations.transformers import NAME, AttentionCall, register, watching
from syncattn.margin import margin_of

__all__ = ["Conversion", "convert", "every_token", "mean_pooled"]

REACHES = tuple(20.0 * 0.75**step for step in range(19))
"""The ladder, in units of the scores, from kappa 1.4e5 to a reach of .11."""

PROBES = 4
"""Random directions of the output along which a head's effect is measured, for each batch."""

_SHORTEST = 4  # senders that a row may attend to, in the mean: of fewer, there is nothing to spare
_LOOKED_AT = 8  # batches that the heads' effects are found on: they need thirty times a forward pass
_TRIED = 48  # choices for all heads, from dense to sparse, that the search halves when it fits again


class _Heads:
    """What a model's heads would do at each reach: sums over batches, (heads, reaches) float64 by layer.

    Attributes:
        locked: how many pairs lock.
        effect: of what the output would change by, e, and would gain from a whole field, g: the sums of e^2,
            of e g, and of g^2, one after the other.
        allowed, rows: how many pairs and rows there are.
    """

    def __init__(self, field: bool) -> None:
        self.field = field
        self.locked: dict[int, Tensor] = {}
        self.effect: dict[int, Tensor] = {}
        self.allowed: dict[int, float] = {}
        self.rows: dict[int, int] = {}

    def add(self, call: AttentionCall, out: Tensor, slopes: Sequence[Tensor]) -> None:
        """A batch's call, its result and the slopes of the output along each probe by it."""
        layer: Any = call.module.layer_idx
        below, allowed = below_highest(call)
        heads = call.query.shape[1]
        value = call.value.to(below.dtype).repeat_interleave(heads // call.value.shape[1], 1)
        mean, _ = mean_value(value, call.mask) if self.field else (value, None)
        locked, effects = [], []
        for reach in REACHES:
            kappa = torch.full_like(below[0, 0, 0, 0], coupling_of_reach(reach))
            margin = margin_of(2 * below, kappa, torch.full_like(kappa, BANDWIDTH))
            weight = margin.clamp(min=0).masked_fill(~allowed, 0.0)
            locked.append((weight > 0).sum((0, 2, 3)).double().cpu())
            weight = weight / weight.sum(-1, keepdim=True).clamp(min=1e-30)
            given = weight @ value
            change = _along(slopes, given - out)
            gain = _along(slopes, mean - given) if self.field else torch.zeros_like(change)
            products = torch.stack((change * change, change * gain, gain * gain))
            effects.append(products.sum((1, 2)).cpu())
        none = torch.zeros(heads, len(REACHES), dtype=torch.float64, device="cpu")
        self.locked[layer] = self.locked.get(layer, none) + torch.stack(locked, -1)
        self.effect[layer] = self.effect.get(layer, none) + torch.stack(effects, -1)
        self.allowed[layer] = self.allowed.get(layer, 0.0) + allowed.expand_as(below)[:, 0].sum().item()
        self.rows[layer] = self.rows.get(layer, 0) + below.shape[0] * below.shape[2]

    @property
    def change(self) -> dict[int, Tensor]:
        """The square of what the output would change by, with the share of the field that makes it least."""
        found = {}
        for layer, (square, mixed, gain) in self.effect.items():
            share = (-mixed / gain.clamp(min=1e-30)).clamp(0, 1)
            found[layer] = square + 2 * share * mixed + share * share * gain
        return found


def _along(slopes: Sequence[Tensor], difference: Tensor) -> Tensor:
    """How the output moves along each probe, to first order: (probes, B, H) float64."""
    return torch.stack([(slope * difference).sum((2, 3)) for slope in slopes]).double()


def convert(
    model: Any,
    data: Iterable[Mapping[str, Tensor]],
    *,
    density: float | None = None,
    error: float | None = None,
    output: Output = mean_pooled,
    refit: bool = False,
    field: bool = False,
) -> Conversion:
    """Make a pretrained model's attention sparse: its own weights, SSA, and a coupling for every head.

    The model then has `attn_implementation="ssa"` and `config.ssa_coupling`, which `save_pretrained` keeps.
    It takes about as long as 30 forward passes over the data, and a batch's weights of one layer in memory;
    with `refit`, as long as 10 more passes for each layer.

    Args:
        model: of transformers, with its own attention or "ssa" without couplings; one whose attention modules
            have a `layer_idx` each: encoders and decoders, no encoder-decoders.
        data: batches, each the keyword arguments of one call of the model, without labels; a few hundred
            texts as long as those that it is for.
        density: the wanted mean density, in (0, 1): what locks of the allowed pairs, over all heads. Or
        error: the wanted error, in (0, 1): 1 less the mean cosine of the outputs. Exactly one of the two.
        output: makes the rows (..., E) that are compared of the model's outputs and the batch: `mean_pooled`
            for a sentence encoder, `every_token` for hidden states and logits.
        refit: also fit the projection behind each attention again, in closed form, to what the original's
            gave: its weights change then. Every fourth batch, or the last of fewer, is not fitted to, and all
            that is told is measured on those. It wants many texts: below a thousand of them, more is better.
        field: also give each head a share of the mean of its text's values in the place of what it cuts off
            (`config.ssa_field`, syncattn.integrations.field), fitted in closed form before the projections.
            For encoders alone. Batches are held out as for `refit`.

    Returns:
        What was done, measured on the data, or on what of it was held out.

    Raises:
        TypeError, ValueError: an argument is wrong, the model cannot be served or is converted already, or no
            coupling reaches what is wanted. The model is then as it was.
    """
    if (density is None) == (error is None):
        raise ValueError(f"exactly one of density and error must be given, got {density!r} and {error!r}")
    name, wanted = ("density", density) if error is None else ("error", error)
    check_real(name, wanted, "between 0 and 1", lambda x: 0 < x < 1)
    check_flag("refit", refit)
    check_flag("field", field)
    config = getattr(model, "config", None)
    if not hasattr(model, "set_attn_implementation") or config is None:
        raise TypeError(f"model must be a model of transformers, got {type(model).__name__}")
    for setting in SETTINGS:
        if getattr(config, setting, None) is not None:
            raise ValueError(
                f"model is converted already: its configuration has {setting}. Set that to None first"
            )
    check_recording("convert")
    batches = batches_of(data, model)
    if (refit or field) and len(batches) < 2:
        name = "refit" if refit else "field"
        raise ValueError(f"data must hold at least 2 batches with {name}=True, one is held out, got 1")

    before, modes = config._attn_implementation, [(module, module.training) for module in model.modules()]
    had = settings_of(config)
    projections: Projections = {}
    own: Weights = {}
    done = False
    try:
        model.eval()
        register()
        model.set_attn_implementation(NAME)
        if config._attn_implementation != NAME or not model._can_set_attn_implementation():
            raise ValueError(
                f"{type(model).__name__}: its attention is not called through the AttentionInterface"
            )
        heads = _heads(model, batches[:: -(-len(batches) // _LOOKED_AT)], output, field)
        if refit:
            projections = find_projections(model, batches[0])
            own = weights_of(projections)
        search = _Search(model, batches, output, projections, own, field)
        result = search.find(_choices(heads), name, float(wanted))  # type: ignore[arg-type]
        done = True
    finally:
        for module, training in modes:
            module.training = training
        if not done:
            set_weights(projections, own)
            model.set_attn_implementation(before)
            restore(config, had)
    return result


class _Search:
    """What a model does at one choice of couplings after another, with its projections fitted again if any
    are given: measured on all batches, or on those that are held out."""

    def __init__(
        self,
        model: Any,
        batches: list[dict[str, Any]],
        output: Output,
        projections: Projections,
        own: Weights,
        field: bool,
    ) -> None:
        self.model, self.batches, self.output = model, batches, output
        self.projections, self.own = projections, own
        numbers = range(len(batches))
        self.held = set(numbers[3::4] or numbers[-1:]) if projections or field else set(numbers)
        self.measured_on = [batches[number] for number in sorted(self.held)]
        self.fitted_to = [batches[number] for number in numbers if number not in self.held]
        self.reference = outputs_of(model, self.measured_on, output)
        self.wanted = results_of(model, batches, projections) if projections else []
        self.heads = results_of_heads(model, self.fitted_to) if field else []

    def measured(self, coupling: dict[int, list[float]]) -> tuple[Conversion, Weights]:
        """What the model does with these couplings, which it then has, and its projections' weights."""
        set_couplings(self.model, coupling)
        set_weights(self.projections, self.own)
        if self.heads:
            fit_fields(self.model, self.fitted_to, self.heads, max(coupling) + 1)
        errors: tuple[tuple[float, float], ...] = ()
        if self.projections:
            errors = refit_projections(self.model, self.batches, self.held, self.projections, self.wanted)
        found = measure(self.model, self.measured_on, self.output, self.reference)
        return found._replace(refitted=errors), weights_of(self.projections)

    def find(self, choices: list[dict[int, list[float]]], name: str, wanted: float) -> Conversion:
        """The sparsest couplings within an error, or those of least error within a density, by bisection of
        the choices that change least for their density. The model then has them, and their weights."""
        if self.projections and len(choices) > _TRIED:
            last = len(choices) - 1
            choices = [choices[round(step * last / (_TRIED - 1))] for step in range(_TRIED)]
        low, high = 0, len(choices) - 1  # from dense to sparse
        best = self.measured(choices[high if name == "density" else low])
        found = best[0].mean_density if name == "density" else 1 - best[0].cosine
        if found > wanted:
            extreme = "shortest" if name == "density" else "longest"
            raise ValueError(
                f"{name} must be at least {found:.4g}, that of the {extreme} reach on this data, got "
                f"{wanted:g}"
            )
        while low < high:
            middle = (low + high) // 2 if name == "density" else (low + high + 1) // 2
            tried = self.measured(choices[middle])
            if name == "density":
                fits = tried[0].mean_density <= wanted
                low, high = (low, middle) if fits else (middle + 1, high)
            else:
                fits = 1 - tried[0].cosine <= wanted
                low, high = (middle, high) if fits else (low, middle - 1)
            best = tried if fits else best
        set_weights(self.projections, best[1])
        self.model.config.ssa_coupling = best[0].coupling
        if self.heads:
            self.model.config.ssa_field = best[0].field
        return best[0]


def _heads(model: Any, batches: list[dict[str, Any]], output: Output, field: bool) -> _Heads:
    """What every head would do, to first order: from the slopes of the outputs by the heads' results."""
    heads = _Heads(field)
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
            rows = rows_of(model, batch, output)
            if rows.grad_fn is None:
                raise ValueError("output must give rows that depend on the model's outputs, got some cut off")
            rows = torch.nn.functional.normalize(rows.float(), dim=-1)
        _check_layers(model, [call.module for call, _ in calls])
        slopes = []
        for number in range(PROBES):
            direction = torch.randn(rows.shape, generator=generator, dtype=rows.dtype).to(rows.device)
            slopes.append(torch.autograd.grad(rows, probes, direction, retain_graph=number + 1 < PROBES))
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
    change = heads.change  # a property: worked out once
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

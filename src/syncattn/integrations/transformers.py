"""SSA as an attention implementation of transformers: `attn_implementation="ssa"`.

    from syncattn.integrations.transformers import register

    register()
    model = AutoModel.from_pretrained(name, attn_implementation="ssa")
    model.config.ssa_coupling = 100.0          # the default, 1e5, is softmax attention to float32's precision

How queries and keys become frequencies is in syncattn.integrations.softmax. docs/models.md says what works
with what, and what is refused.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from syncattn.backends.call import constant_when_compiled
from syncattn.checks import check_real, short
from syncattn.integrations.exploring import add_to_explorer
from syncattn.integrations.field import add_field
from syncattn.integrations.softmax import softmax_limit
from syncattn.values import readable

try:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask
    from transformers.utils.output_capturing import _active_collector
except ImportError as error:
    raise ImportError(
        "syncattn.integrations.transformers needs transformers 5.17 or later: install syncattn with its "
        "'hf' extra"
    ) from error

NAME = "ssa"
"""What `attn_implementation` is set to."""

COUPLING = 1e5
"""The coupling kappa of models whose configuration has no `ssa_coupling`: what it cuts off is below 4e-9 of a
row's largest weight."""

_FORBIDDEN = -1e4  # an additive mask's entry from here down says that a pair may not attend
# Arguments with which models change their scores, or replace their keys, and what each means.
_REFUSED = {
    "position_bias": "a position bias is added to its scores",
    "softcap": "its scores are capped (softcap)",
    "s_aux": "its softmax has attention sinks (s_aux)",
    "sinks": "its softmax has attention sinks",
    "cache": "its keys come from a paged cache",
    "indices": "its keys are chosen by an index",
    "block_indices": "its keys are chosen by an index",
}


class AttentionCall(NamedTuple):
    """What an attention module asks for, as `softmax_limit` takes it: see there for the shapes."""

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    coupling: Tensor
    scaling: float
    mask: Tensor | None  # bool
    is_causal: bool


Watcher = Callable[[AttentionCall, Tensor], Tensor]
"""Is given a call and its result (B, H, N, dv), and returns the result that the model goes on with."""

_watchers: list[Watcher] = []


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Within it, the watcher sees every call of `ssa_attention` in this process."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


def register() -> None:
    """Add "ssa" to transformers' attention implementations: to its attention functions and its masks.

    From then on, in this process, `from_pretrained(..., attn_implementation="ssa")` and
    `model.set_attn_implementation("ssa")` take it, and `syncattn.explore` shows such models. Calling it again
    changes nothing.
    """
    AttentionInterface.register(NAME, ssa_attention)
    AttentionMaskInterface.register(NAME, ssa_mask)
    add_to_explorer(watching)


def ssa_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """What a model of transformers calls in the place of its own attention: see `register`.

    Args:
        module: the attention module. `module.config.ssa_coupling` is its coupling: see `coupling_of`; and
            `ssa_field` its field, if there is one: see `field_of`.
        query: (B, H, N, d), any floating dtype.
        key, value: (B, Hk, M, d) and (B, Hk, M, dv), Hk a divisor of H.
        attention_mask: broadcastable to (B, H, N, M): boolean, True = may attend, or a float mask of 0 and of
            -1e4 or less. None: all may attend, or a causal module's queries to the keys before them.
        dropout: of the weights, applied when above 0.
        scaling: of the scores q.k; None is 1 / sqrt(d).
        is_causal: what the module's `is_causal` says, if None.
        kwargs: what other implementations use.

    Returns:
        (B, N, H, dv) in value's dtype, and if the model was called with `output_attentions` the weights
        (B, H, N, M) in query's dtype, before dropout, else None. A row that may attend to nobody is 0.

    Raises:
        ValueError: the module adds to its scores, caps them or has sinks, its mask is additive, or its
            configuration's `ssa_coupling` does not fit.
    """
    refuse_scores(module, kwargs)
    batch, heads, queries, _ = query.shape
    if key.shape[1] == 0 or heads % key.shape[1]:
        raise ValueError(
            f"{_named(module)}: the heads of key must divide those of query, got {key.shape[1]} and {heads}"
        )
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    causal = bool(causal) and attention_mask is None and queries > 1
    if causal:  # a static cache before its first token: what comes after the queries is empty
        key, value = key[:, :, :queries], value[:, :, :queries]
    if 0 in (batch, queries, key.shape[2]):
        return value.new_zeros(batch, queries, heads, value.shape[-1]), None

    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    mask = boolean_mask(attention_mask, module)
    call = AttentionCall(
        module, query, key, value, coupling_of(module, heads, query.device), scaling, mask, causal
    )
    out, weight = softmax_limit(
        *call[1:6],
        attn_mask=mask,
        is_causal=causal,
        dropout_p=float(dropout),
        return_weights=_asks_for_weights(kwargs),
    )
    share = field_of(module, heads, query.device)
    if share is not None:
        if causal:
            raise ValueError(
                f"{_named(module)}: ssa_field needs texts whose tokens may all attend to the same ones, as "
                "an encoder's, got causal attention. Set config.ssa_field to None"
            )
        out, weight = add_field(out, weight, value, mask, share)
    for watcher in _watchers:
        out = watcher(call, out)
    return out.transpose(1, 2).contiguous(), None if weight is None else weight.to(query.dtype)


def ssa_mask(*args: Any, config: Any = None, **kwargs: Any) -> Tensor | None:
    """The mask of a model whose attention is "ssa": (B, 1, N, M) bool, True = may attend, or None where
    `ssa_attention` knows what may attend: all, or the causal pairs.

    The arguments are those of transformers' `sdpa_mask`, whose masks these are.

    Raises:
        ValueError: the model's attention is not called through transformers' interface, so that it would add
            this mask to its scores.
    """
    if config is not None and not _has_interface(type(config).__module__):
        raise ValueError(
            f"{type(config).__name__}: attn_implementation={NAME!r} cannot reach this model's attention: it "
            "is not called through transformers' AttentionInterface. Use its own implementation"
        )
    return sdpa_mask(*args, **kwargs)


def coupling_of(module: nn.Module, heads: int, device: torch.device) -> Tensor:
    """The coupling kappa of an attention module's heads, (H,) float32, from `module.config.ssa_coupling`.

    That is a number for all of them, or a list with an entry for each layer (by the module's `layer_idx`),
    a number or a list of H numbers. Without the field it is `COUPLING`.

    Args:
        module: the attention module.
        heads: H.
        device: where to.

    Raises:
        TypeError, ValueError: the field is not as described.
    """
    setting = _of_heads(module, "ssa_coupling", heads)
    for number in setting or ():
        check_real("ssa_coupling", number, "positive and finite", lambda x: 0 < x < float("inf"))
    return torch.tensor(setting or [COUPLING] * heads, dtype=torch.float32, device=device)


def field_of(module: nn.Module, heads: int, device: torch.device) -> Tensor | None:
    """The share of the field in what an attention module's heads give, (H,) float32, from
    `module.config.ssa_field`; None where there is none. See `syncattn.integrations.field`.

    The setting has the form of `ssa_coupling`, its numbers are from 0 to 1.

    Raises:
        TypeError, ValueError: it has not.
    """
    setting = _of_heads(module, "ssa_field", heads)
    for number in setting or ():
        check_real("ssa_field", number, "from 0 to 1", lambda x: 0 <= x <= 1)
    if setting is None or not any(setting):
        return None
    return torch.tensor(setting, dtype=torch.float32, device=device)


def _of_heads(module: nn.Module, name: str, heads: int) -> list[Any] | None:
    """A setting of a module's configuration as an entry for each of its heads; None if it is not there."""
    setting = getattr(getattr(module, "config", None), name, None)
    if isinstance(setting, (list, tuple)):
        layer = getattr(module, "layer_idx", None)
        if layer is None or not 0 <= layer < len(setting):
            raise ValueError(
                f"{name} must be a number, or a list with an entry for layer {layer} of {_named(module)}, "
                f"got a list of {len(setting)}"
            )
        setting = setting[layer]
    if setting is None:
        return None
    if not isinstance(setting, (list, tuple)):
        return [setting] * heads
    if len(setting) != heads:
        raise ValueError(
            f"{name} must have a number for each of the {heads} heads of {_named(module)}, got "
            f"{short(setting)}"
        )
    return list(setting)


def boolean_mask(mask: Tensor | None, module: nn.Module) -> Tensor | None:
    """A model's mask as a boolean one, True = may attend.

    Raises:
        ValueError: it holds other numbers than 0 (may attend) and -1e4 or less (may not): a bias on the
            scores. On other devices than the CPU a device assertion fails instead.
    """
    if mask is None or mask.dtype == torch.bool:
        return mask
    if not mask.is_floating_point():
        raise ValueError(
            f"{_named(module)}: attention_mask must be boolean (True = may attend) or floating-point, got "
            f"{mask.dtype}"
        )
    allowed = mask == 0
    values = readable(mask)
    if values is None:
        torch._assert_async((allowed | (mask <= _FORBIDDEN)).all(), "attention_mask adds to the scores")
        return allowed
    other = ~((values == 0) | (values <= _FORBIDDEN))
    if bool(other.any()):
        raise ValueError(
            f"{_named(module)}: attention_mask adds to the scores, which synchronization has not: it must "
            f"hold 0 (may attend) and -1e4 or less (may not), got values such as {values[other][0].item():g}"
        )
    return allowed


def refuse_scores(module: nn.Module, given: dict[str, Any]) -> None:
    """Raise ValueError if an attention call changes its scores by more than a mask.

    Args:
        module: the attention module, for the message.
        given: the keyword arguments that it calls the attention function with.
    """
    reasons = [what for name, what in _REFUSED.items() if given.get(name) is not None]
    reasons += [f"it is given {name}" for name in given if name.endswith("_bias") and name not in _REFUSED]
    if not reasons and isinstance(getattr(module, "sinks", None), Tensor):
        reasons = [_REFUSED["sinks"]]
    if reasons:
        raise ValueError(
            f"{_named(module)} cannot attend by synchronization: {', and '.join(reasons)}, which has no "
            f'counterpart in attn_implementation={NAME!r}. Use attn_implementation="eager"'
        )


def _asks_for_weights(given: dict[str, Any]) -> bool:
    """Whether the model was called with output_attentions. Some models do not hand that on to their layers:
    then what transformers collects during this call says so."""
    collected = _active_collector.get() or {}
    return bool(given.get("output_attentions")) or any(name.endswith("attentions") for name in collected)


def _named(module: nn.Module) -> str:
    kind = getattr(getattr(module, "config", None), "model_type", None)
    return f"{type(module).__name__} (model type {kind!r})" if kind else type(module).__name__


@constant_when_compiled
def _has_interface(configuration: str) -> bool:
    """Whether the models of a configuration's module call their attention through the interface."""
    return _read_interface(configuration)


@lru_cache(maxsize=256)
def _read_interface(configuration: str) -> bool:
    """The same, from the sources.

    Judged by the source of modeling_NAME beside configuration_NAME; where there is none, they are trusted.
    """
    package, _, file = configuration.rpartition(".")
    found = sys.modules.get(f"{package}.{file.replace('configuration_', 'modeling_', 1)}")
    if found is None or "configuration_" not in file:
        return True
    try:
        source = inspect.getsource(found)
    except (OSError, TypeError):
        return True
    return "ALL_ATTENTION_FUNCTIONS" in source or "Attention(nn.Module)" not in source

"""What the operator is called with, senders as they are or in every form in which somebody may meet them; and
what is kept of a call."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from syncattn.functional import go_on
from syncattn.nn.frequency import Frequencies
from syncattn.nn.groups import pick, put_together
from syncattn.nn.inputs import Inputs
from syncattn.nn.places import Places
from syncattn.nn.sight import Seen, Sight, forms_of_senders, in_one_call, only
from syncattn.nn.state import IncrementalState, Step
from syncattn.nn.tokens import last_real, last_real_input, with_before

_TENSORS = ("receive", "send", "value", "coupling", "bandwidth", "attn_mask")


class Operands(NamedTuple):
    """What the operator is called with, under its own names, of all that depends on who sees whom."""

    receive: Tensor  # (B, H, N, m)
    send: Tensor  # (B, H, M, m)
    value: Tensor  # (B, H, M, d)
    attn_mask: Tensor | None  # broadcastable to (B, H, N, M) bool, True = may attend
    is_causal: bool
    self_coupling: bool
    sequence_ids: Tensor | None = None  # (B, M) int64, which text a token belongs to


def as_they_are(
    made: Frequencies,
    value: Tensor,
    given: Inputs,
    seen: Seen,
    past: IncrementalState | None,
    self_coupling: bool,
) -> tuple[Operands, IncrementalState | None]:
    """The operator's call in which every sender, past ones too, stands once; and the past with these tokens.

    Where heads are read from different tokens on (`reads_all`), send and value are those of these tokens
    alone: `by_groups` puts in their place what each group of heads holds.

    Args:
        made, value: of these tokens, value (B, H, M, d).
        given, seen: the layer's inputs, and who may see whom of them.
        past: what came before; None: nothing, and nothing is kept.
        self_coupling: whether a receiver may listen to itself.
    """
    before = made.before(None if past is None else past.last_emitted)
    send, value = made.send(before, given.real, seen.follows), only(value, seen.heard)
    real, after = given.real, None
    if past is not None:
        after = past.extended(send, value, real, last_emitted=last_real(made.emitted, real, before))
        if given.positions is not None:
            after.starts = ()  # windows are those of numbered tokens
        if after.reads_all:
            send, value, real = after.held
        else:
            real = after.mask
        places = after.seen(given.queries, self_coupling)
        if places is not None:  # which says who is real, causality and who is itself, too
            return Operands(made.receive, send, value, places, False, True), after
    operands = Operands(made.receive, send, value, None, given.is_causal, self_coupling)
    if given.texts is not None:  # whose ids say what is padding, too
        return operands._replace(sequence_ids=given.texts.ids), after
    return operands._replace(attn_mask=both_allow(given.allowed, real)), after


def by_groups(after: IncrementalState, arguments: dict[str, Any]) -> Tensor | tuple[Tensor, ...]:
    """The operator, each group of heads over what is to be read of its tokens.

    Args:
        after: the past with the receivers in it.
        arguments: of the operator, of all heads; what it says of send and value is not read.

    Returns:
        As the operator: with return_weights, S and P (B, H, N, M) of all M tokens that there were, 0 for
        those that no head reads any more.
    """
    windows = after.windows
    mask, coupling, length = arguments["attn_mask"], arguments["coupling"], after.length
    results = []
    for group, start in zip(after.groups, after.starts or (0,) * len(after.groups), strict=True):
        own, gone = group.heads, max(0, start - group.first)
        tensors = (
            pick(arguments["receive"], own),
            group.send.narrow(2, gone, group.held - gone),
            group.value.narrow(2, gone, group.held - gone),
            pick(coupling, own, 0 if coupling.ndim == 1 else 1),
            pick(arguments["bandwidth"], own, 0),
        )
        seen = None if mask is None else mask.narrow(3, length - group.held + gone, group.held - gone)
        options = {name: x for name, x in arguments.items() if name not in _TENSORS} | {"attn_mask": seen}
        results.append(go_on(max(0, group.checked - gone), *tensors, **options))
    assert windows is not None
    out = put_together([x[0] if isinstance(x, tuple) else x for x in results], windows)
    if not isinstance(results[0], tuple):
        return out
    told = [[_of_all(x, length) for x in each[1:]] for each in results if isinstance(each, tuple)]
    return out, *(put_together(each, windows) for each in zip(*told, strict=True))


def _of_all(told: Tensor, length: int) -> Tensor:
    """What a group's operator gives besides its result: of pairs (B, h, N, M), those of all senders."""
    return pad(told, (length - told.shape[-1], 0)) if told.ndim == 4 else told


def remember_(
    after: IncrementalState,
    past: IncrementalState,
    given: Inputs,
    places: Places,
    made: Frequencies,
    sums: Tensor | None,
    looks_back: int,
) -> None:
    """Write into `after`, which `as_they_are` made of `past`, what later tokens need besides senders.

    Args:
        given, places, made: of these tokens.
        sums: (B, H, N, p, 2), the phases' sums up to each of them; None without an order parameter.
        looks_back: how many tokens before are mixed in.
    """
    mixed_in = None
    if looks_back:
        mixed_in = with_before(given.key, looks_back, past.last_input, given.real)
        after.last_input = last_real_input(mixed_in, given.real, past.last_input)
    after.origin, after.last_place = places.origin, places.last
    if sums is not None and given.keys > 0:
        after.phase_sum = sums[:, :, -1]
    if past.steps is None:
        return
    step = Step(
        mark=past.mark(),
        real=given.real,
        emitted=made.emitted,
        before=made.before(past.last_emitted),
        given=mixed_in,
        sums=sums,
        origin=places.origin,
        place=places.position,
    )
    after.record_(past, step)


def in_every_form(
    sight: Sight, made: Frequencies, value: Tensor, given: Inputs, self_coupling: bool
) -> Operands:
    """The operator's call in which every sender stands in all its forms.

    Args:
        sight: of a mask that all who see a sender do not agree on.
        made, value: of these tokens, value (B, H, M, d); or of twice as many, with the token before mixed in
            and then without, where a token shift does that.
        given: the layer's inputs.
        self_coupling: whether a receiver may listen to itself.
    """
    receive, keys, queries = made.receive, given.keys, given.queries
    emitted, told = (made.emitted, made.emitted), (value, value)
    if value.shape[2] != keys:
        receive = torch.where(
            sight.of_receivers()[..., None], receive[:, :, :queries], receive[:, :, queries:]
        )
        emitted, told = ((x[:, :, :keys], x[:, :, keys:]) for x in (made.emitted, value))
    forms = forms_of_senders(sight, emitted, told, given.real, made.nobody, made.delayed)
    send, value, mask = in_one_call(forms, self_coupling)
    return Operands(receive, send, value, mask, is_causal=False, self_coupling=True)


def both_allow(allowed: Tensor | None, real: Tensor | None) -> Tensor | None:
    """A call's mask (B or 1, H or 1, N or 1, M): what attn_mask allows, of senders that are real (B, M)."""
    if real is None:
        return allowed
    seen = real[:, None, None, :]
    return seen if allowed is None else allowed & seen

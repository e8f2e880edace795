"""How a layer's inputs become the operator's arguments: frequencies, values, effective coupling and masks.

The layer, `syncattn.nn.attention`, holds the parameters and calls the operator with what is made here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from syncattn.functional import coherence, order_parameter, phase_parts
from syncattn.nn.frequency import Frequencies
from syncattn.nn.sight import Sight, forms_of_senders, in_one_call, look_back, only, seen_pairs
from syncattn.nn.state import IncrementalState
from syncattn.nn.tokens import (
    allowed_by_mask,
    attend_themselves,
    check_dense,
    last_real,
    last_real_input,
    mix_previous,
    positions,
    real_tokens,
    shift_by_one,
)

if TYPE_CHECKING:  # the layer imports this file
    from syncattn.nn.attention import SelectiveSynchronizationAttention


def to_batch_first(
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    key_padding_mask: Tensor | None,
    embed_dim: int,
    batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Inputs as (B, N, E), checked; key and value filled in, the same objects in self-attention.

    Args:
        query, key, value, key_padding_mask: as the layer's `forward` takes them.
        embed_dim: E.
        batch_first: whether batched inputs are (B, N, E); False: (N, B, E).

    Returns:
        (query, key, value, key_padding_mask): (B, N, E), (B, M, E) twice, and (B, M) or None.

    Raises:
        ValueError: an input has another shape, or key and value have different tokens.
    """
    key = query if key is None else key
    value = key if value is None else value
    for name, x in (("query", query), ("key", key), ("value", value)):
        check_dense(name, x)
        if x.ndim not in (2, 3) or x.shape[-1] != embed_dim or x.ndim != query.ndim:
            raise ValueError(
                f"{name} must have shape (B, N, {embed_dim}) or (N, {embed_dim}), got {tuple(x.shape)}"
            )
    if key.shape[:-1] != value.shape[:-1]:
        raise ValueError(
            f"key and value must have the same tokens, got {tuple(key.shape)} and {tuple(value.shape)}"
        )

    def arrange(x: Tensor) -> Tensor:
        return x[None] if x.ndim == 2 else x if batch_first else x.transpose(0, 1)

    if query.ndim == 2 and key_padding_mask is not None and key_padding_mask.ndim == 1:
        key_padding_mask = key_padding_mask[None]
    arranged = arrange(query)
    arranged_key = arranged if key is query else arrange(key)
    arranged_value = arranged_key if value is key else arrange(value)
    return arranged, arranged_key, arranged_value, key_padding_mask


def operator_arguments(
    layer: SelectiveSynchronizationAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
    is_causal: bool,
    state: IncrementalState | None,
    self_attention: bool | None = None,
) -> dict[str, Any]:
    """What the operator is called with, and the state brought up to date.

    Args:
        layer: whose parameters make frequencies, values and coupling of the inputs.
        query, key, value, key_padding_mask: (B, N, E), (B, M, E) twice, and (B, M), from `to_batch_first`.
        attn_mask, is_causal, state, self_attention: as the layer's `forward` takes them; the state is changed
            in place.

    Returns:
        The operator's arguments by name, all but dropout_p, backend and return_weights. With an attn_mask
        every sender may stand there in several forms: see `syncattn.nn.sight`.

    Raises:
        ValueError: a mask or the number of tokens is not as `forward` documents it, an argument does not go
            with `state`, or the mask not with a token shift.
    """
    itself = attend_themselves(query, key, self_attention)
    if itself and self_attention and key is not query:
        key, value = query, query if value is key else value
    if state is not None and (not itself or not is_causal or attn_mask is not None):
        raise ValueError(
            "state is for causal self-attention: it needs is_causal=True, and neither key nor attn_mask"
        )
    batch, queries, _ = query.shape
    keys = key.shape[1]
    if state is not None and state.send is not None and state.send.shape[0] != batch:
        raise ValueError(f"state holds a batch of {state.send.shape[0]} sequences, got {batch}")
    if is_causal and queries > keys:
        raise ValueError(
            f"is_causal=True needs as many keys as queries or more, got {keys} keys and {queries} queries"
        )
    real = real_tokens(key_padding_mask, batch, keys)
    allowed = allowed_by_mask(attn_mask, batch, layer.num_heads, queries, keys)
    pairs = sight = None
    heard = None if real is None else real[:, None]  # by anybody
    if allowed is not None:
        pairs = seen_pairs(allowed.expand(-1, -1, queries, keys), real, is_causal)
        heard = pairs.any(-2)
        sight = _sight(layer, pairs, real, itself, is_causal)
    count, last = (None, None) if state is None else (state.count, state.last_emitted)
    position = positions(real, keys, count, query.device)
    own = position if itself else positions(None, queries, None, query.device)
    own = position[:, keys - queries :] if is_causal else own
    first = None  # the places at which a sender may have nobody before it
    if layer.frequency.delay and last is None:
        first = position.new_zeros(1, 1) if sight is None else position

    in_forms = sight is not None and sight.follows is None
    twice = in_forms and layer.shift is not None  # the tokens with the one before mixed in, and then without
    if layer.shift is not None:
        given, follows = (query, key, value), None if sight is None else sight.follows
        query, key, value = _mix_previous(layer.shift, *given, real, itself, is_causal, state, follows)
        if sight is not None and twice:
            same = query is key
            query, key, value = (torch.cat(both, 1) for both in zip((query, key, value), given))
            key = query if same else key
            position, own = position.repeat(1, 2), own.repeat(1, 2)
            pairs = torch.cat((sight.seen & sight.before, sight.seen & ~sight.before), -1)
            heard = pairs.any(-2)
    made = layer.frequency(None if itself and key is query else query, key, own, position, first)
    values = layer.value_proj(value).unflatten(-1, (layer.num_heads, layer.head_dim)).transpose(1, 2)
    coupling = _effective_coupling(layer, key, queries, real, pairs, heard, is_causal, state)
    receive, self_coupling = made.receive, layer.self_coupling or not itself
    if sight is not None and in_forms:
        if twice:
            mixed, alone = receive[:, :, :queries], receive[:, :, queries:]
            receive = torch.where(sight.of_receivers()[..., None], mixed, alone)
        emitted, told = (
            (x[:, :, :keys], x[:, :, keys:]) if twice else (x, x) for x in (made.emitted, values)
        )
        forms = forms_of_senders(sight, emitted, told, real, made.nobody, made.delayed)
        send, values, allowed = in_one_call(forms, self_coupling)
        is_causal, self_coupling = False, True
    else:
        send, last = delay_by_one(made, last, real, None if sight is None else sight.follows)
        values = only(values, heard)
        if state is not None:
            state.last_emitted = last_real(made.emitted, real, last)
            counted = keys if real is None else real.sum(-1, keepdim=True)
            state.count = position.new_zeros(batch, 1) + counted + (0 if count is None else count)
            send, values, real = state.append(send, values, real)
        if real is not None:
            seen = real[:, None, None, :]
            allowed = seen if allowed is None else allowed & seen
    return {
        "receive": receive,
        "send": send,
        "value": values,
        "coupling": coupling,
        "bandwidth": layer.bandwidth,
        "attn_mask": allowed,
        "is_causal": is_causal,
        "self_coupling": self_coupling,
        "top_k": layer.top_k,
        "frame": layer.frame,
        "power": layer.power,
        "edge": layer.edge,
        "eps": layer.eps,
    }


def _sight(
    layer: SelectiveSynchronizationAttention,
    pairs: Tensor,
    real: Tensor | None,
    itself: bool,
    is_causal: bool,
) -> Sight | None:
    """What receivers may see of the token before each sender; None: there is nothing to heed."""
    if layer.shift is None and not layer.frequency.delay:
        return None
    if layer.shift is not None and not itself and not is_causal:
        raise ValueError(
            "attn_mask does not go with a token shift in cross-attention: a query is mixed with the query "
            "before it, of which a mask of keys says nothing. Leave the mask out, make the layer with "
            "token_shift=False, or say self_attention=True if keys are the queries, is_causal=True if the "
            "queries are the keys' end; got a mask and a key that is not query"
        )
    return look_back(pairs, real, receivers_too=layer.shift is not None)


def _mix_previous(
    shift: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    real: Tensor | None,
    itself: bool,
    is_causal: bool,
    state: IncrementalState | None,
    follows: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What frequencies and values are made of with a token shift (2, E); query stays key where it was.

    Causal queries that are not the keys themselves still sit at their end: the key before precedes them.
    """
    before = None if state is None else state.last_input
    if state is not None:
        state.last_input = last_real_input(key, real, before)
    mixed = mix_previous(key, shift[0], before, real, follows)
    value = mix_previous(value, shift[1], before, real, follows)
    if itself:
        return mixed, mixed, value
    ahead, query_real = key.shape[1] - query.shape[1] if is_causal else 0, None
    if is_causal and real is not None:
        query_real, real = real[:, ahead:], real[:, :ahead]
    preceding = last_real_input(key[:, :ahead], real, None) if ahead else None
    follows = None if follows is None else follows[:, ahead:]
    return mix_previous(query, shift[0], preceding, query_real, follows), mixed, value


def delay_by_one(
    made: Frequencies, last: Tensor | None, real: Tensor | None, follows: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """What couples to the receivers (B, H, M, m): in delayed heads, what the real token before emitted. And
    what was emitted before these tokens, where that is known.

    Args:
        made: of these tokens.
        last: what the last real token before these emitted (B, H, m); None at a sequence's start.
        real: (B, M) bool, False = padding, which emits nothing; None if there is none.
        follows: (B or 1, M) bool, False where a sender counts as the first of its sequence; None: by `last`.
    """
    emitted, nobody = made.emitted, made.nobody
    if nobody is None and last is None:
        return emitted, None
    if last is None:
        assert nobody is not None
        last = nobody[:, :, 0].expand(emitted.shape[0], -1, -1)
    previous = shift_by_one(emitted, last.to(emitted.dtype), real)
    if follows is not None and nobody is not None:
        previous = torch.where(follows[:, None, :, None], previous, nobody)
    return torch.where(made.delayed[:, None, None], previous, emitted), last


def _effective_coupling(
    layer: SelectiveSynchronizationAttention,
    x: Tensor,
    queries: int,
    real: Tensor | None,
    pairs: Tensor | None,
    heard: Tensor | None,
    is_causal: bool,
    state: IncrementalState | None,
) -> Tensor:
    """kappa = K r: (H,), (B, H) or (B, H, N); r over the senders x that each query may see, by `pairs`."""
    coupling = layer.coupling
    if layer.phase_proj is None:
        return coupling
    phase = layer.phase_proj(x).unflatten(-1, (layer.num_heads, -1)).transpose(1, 2)
    if state is not None:
        r = _running_coherence(phase, real, state)
    elif pairs is None:
        r = order_parameter(phase, real, is_causal)
        r = r[..., r.shape[-1] - queries :] if is_causal else r
    else:
        r = order_parameter(only(phase, heard), pairs)
    coupling = coupling.to(r.dtype)
    kappa = r * (coupling if r.ndim == 2 else coupling[:, None])
    # Phases that cancel exactly leave no coupling, and 0 has no locking threshold.
    return kappa.clamp(min=1e-6)


def _running_coherence(phase: Tensor, real: Tensor | None, state: IncrementalState) -> Tensor:
    """r of each new token (B, H, N) from the prefix sums in state, which are brought up to date."""
    parts, counts = phase_parts(phase, real)
    sums, counts = parts.cumsum(2), counts.cumsum(2)
    if state.phase_sum is not None and state.count is not None:
        sums = sums + state.phase_sum[:, :, None]
        counts = counts + state.count[:, None]
    if sums.shape[2] > 0:
        state.phase_sum = sums[:, :, -1]
    return coherence(sums, counts)

"""How a layer's inputs become the operator's arguments: frequencies, values, effective coupling and masks.

The layer, `syncattn.nn.attention`, holds the parameters and calls the operator with what is made here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from syncattn.functional import coherence, order_parameter, phase_parts
from syncattn.nn.state import IncrementalState
from syncattn.nn.tokens import (
    allowed_pairs,
    last_input,
    last_real,
    mix_previous,
    positions,
    real_tokens,
    same_tokens,
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
) -> dict[str, Any]:
    """What the operator is called with, and the state brought up to date.

    Args:
        layer: whose parameters make frequencies, values and coupling of the inputs.
        query, key, value, key_padding_mask: (B, N, E), (B, M, E) twice, and (B, M), from `to_batch_first`.
        attn_mask, is_causal, state: as the layer's `forward` takes them; the state is changed in place.

    Returns:
        The operator's arguments by name, all but dropout_p, backend and return_weights.

    Raises:
        ValueError: a mask or the number of tokens is not as `forward` documents it, or an argument does not
            go with `state`.
    """
    itself = same_tokens(query, key)
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
    allowed = allowed_pairs(attn_mask, batch, layer.num_heads, queries, keys)
    count = None if state is None else state.count
    position = positions(real, keys, count, query.device)

    own = position if itself else positions(None, queries, None, query.device)
    if layer.shift is not None:
        query, key, value = _mix_previous(layer.shift, query, key, value, real, itself, is_causal, state)

    emitted = layer.frequency.emit(key, position)
    if key is query and layer.frequency.symmetric:
        receive = emitted
    else:
        receive = layer.frequency.receive(query, position[:, keys - queries :] if is_causal else own)
    send, last = emitted, None if state is None else state.last
    if layer.frequency.delay:
        last = layer.frequency.before_all(emitted.shape[0]) if last is None else last
        send = layer.frequency.delay_by_one(emitted, real, last)
    values = layer.value_proj(value).unflatten(-1, (layer.num_heads, layer.head_dim)).transpose(1, 2)
    coupling = _effective_coupling(layer, key, queries, real, allowed, is_causal, state)
    if state is not None:
        state.last = last_real(emitted, real, last)
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
        "self_coupling": layer.self_coupling or not itself,
        "top_k": layer.top_k,
        "frame": layer.frame,
        "power": layer.power,
        "edge": layer.edge,
        "eps": layer.eps,
    }


def _mix_previous(
    shift: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    real: Tensor | None,
    itself: bool,
    is_causal: bool,
    state: IncrementalState | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What frequencies and values are made of with a token shift (2, E); query stays key where it was.

    Causal queries that are not the keys themselves still sit at their end: the key before precedes them.
    """
    before = None if state is None else state.last_input
    if state is not None:
        state.last_input = last_input(key, real, before)
    mixed = mix_previous(key, shift[0], before, real)
    value = mix_previous(value, shift[1], before, real)
    if itself:
        return mixed, mixed, value
    ahead, query_real = key.shape[1] - query.shape[1] if is_causal else 0, None
    if is_causal and real is not None:
        query_real, real = real[:, ahead:], real[:, :ahead]
    preceding = last_input(key[:, :ahead], real, None) if ahead else None
    return mix_previous(query, shift[0], preceding, query_real), mixed, value


def _effective_coupling(
    layer: SelectiveSynchronizationAttention,
    x: Tensor,
    queries: int,
    real: Tensor | None,
    allowed: Tensor | None,
    is_causal: bool,
    state: IncrementalState | None,
) -> Tensor:
    """kappa = K r: (H,), (B, H) or (B, H, N); r over the senders x that each query may see."""
    strength = layer.coupling_strength
    if layer.phase_proj is None:
        return strength
    phase = layer.phase_proj(x).unflatten(-1, (layer.num_heads, -1)).transpose(1, 2)
    if state is not None:
        r = _running_coherence(phase, real, state)
    elif allowed is None:
        r = order_parameter(phase, real, is_causal)
        r = r[..., r.shape[-1] - queries :] if is_causal else r
    else:
        allowed = allowed if real is None else allowed & real[:, None, None, :]
        r = order_parameter(phase, allowed.expand(-1, -1, queries, -1), is_causal)
    strength = strength.to(r.dtype)
    kappa = r * (strength if r.ndim == 2 else strength[:, None])
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

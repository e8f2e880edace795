"""A layer's inputs as its `forward` takes them, checked and brought to one form."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from syncattn.nn.packing import Texts, find_texts
from syncattn.nn.state import IncrementalState
from syncattn.nn.tokens import allowed_by_mask, attend_themselves, check_dense, positions, real_tokens
from syncattn.values import readable


class Inputs(NamedTuple):
    """What a layer is called with, batch first."""

    query: Tensor  # (B, N, E)
    key: Tensor  # (B, M, E); the same object as query where the caller gave one
    value: Tensor  # (B, M, E); the same object as key where the caller gave one
    real: Tensor | None  # (B, M) bool, False = padding; None if there is none
    allowed: Tensor | None  # (B or 1, H or 1, N or 1, M or 1) bool by attn_mask, True = may attend
    is_causal: bool  # query i sees key j when j <= i + (M - N)
    itself: bool  # whether the queries are the keys
    positions: Tensor | None = None  # (B or 1, N, A), the queries'; None: they are numbered
    key_positions: Tensor | None = None  # (B or 1, M, A), the keys'
    texts: Texts | None = None  # several in a row; None: each row is one

    @property
    def queries(self) -> int:
        """N."""
        return self.query.shape[1]

    @property
    def keys(self) -> int:
        """M."""
        return self.key.shape[1]


def batch_first(
    query: Tensor, key: Tensor | None, value: Tensor | None, embed_dim: int, is_batch_first: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs as (B, N, E), checked; key and value filled in, the same objects in self-attention.

    Args:
        query, key, value: as the layer's `forward` takes them.
        embed_dim: E.
        is_batch_first: whether batched inputs are (B, N, E); False: (N, B, E).

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
        return x[None] if x.ndim == 2 else x if is_batch_first else x.transpose(0, 1)

    arranged = arrange(query)
    arranged_key = arranged if key is query else arrange(key)
    return arranged, arranged_key, arranged_key if value is key else arrange(value)


def checked_inputs(
    num_heads: int,
    tokens: tuple[Tensor, Tensor, Tensor],
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
    is_causal: bool,
    self_attention: bool | None,
) -> Inputs:
    """The layer's inputs, from tokens that `batch_first` arranged.

    Raises:
        ValueError: a mask or the number of tokens is not as the layer's `forward` documents it, or key is not
            query although `self_attention` says so.
    """
    query, key, value = tokens
    itself = attend_themselves(query, key, self_attention)
    if itself and self_attention and key is not query:
        key, value = query, query if value is key else value
    batch, queries, _ = query.shape
    keys = key.shape[1]
    if is_causal and queries > keys:
        raise ValueError(
            f"is_causal=True needs as many keys as queries or more, got {keys} keys and {queries} queries"
        )
    real = real_tokens(key_padding_mask, batch, keys)
    allowed = allowed_by_mask(attn_mask, batch, num_heads, queries, keys)
    return Inputs(query, key, value, real, allowed, is_causal, itself)


def go_on_from(past: IncrementalState, given: Inputs) -> Inputs:
    """The inputs as they go on from a state: where it has forgotten tokens, without positions, which can but
    number the tokens then.

    Raises:
        ValueError: they are not causal self-attention without an attn_mask, of another batch size, or their
            positions leave out a number after tokens were forgotten.
    """
    if not given.itself or not given.is_causal or given.allowed is not None:
        raise ValueError(
            "state is for causal self-attention: it needs is_causal=True, and neither key nor attn_mask"
        )
    batch = given.query.shape[0]
    if given.texts is not None:
        raise ValueError(
            "sequence_ids must be left out with a state, which holds one text a row, got "
            f"{tuple(given.texts.ids.shape)}"
        )
    if past.sizes is not None and past.sizes[0] != batch:
        raise ValueError(f"state holds a batch of {past.sizes[0]} sequences, got {batch}")
    if given.positions is None or not past.forgets:
        return given
    own = positions(given.real, given.keys, past.count, given.query.device)[..., None]
    alike: Tensor = given.positions == own  # (B, N, A)
    alike = alike if given.real is None else alike | ~given.real[..., None]
    known = readable(alike, any_device=True)
    if known is None or not bool(known.all()):
        raise ValueError(
            "positions must be left out, or number the tokens on by 1, with a state that has forgotten what "
            "lies behind its heads' windows, which are those of numbered tokens, got others of shape "
            f"{tuple(given.positions.shape)}. DecoderCache(config, evict=False) keeps all and takes any"
        )
    return given._replace(positions=None, key_positions=None)


def with_texts(given: Inputs, sequence_ids: Any, is_single: bool) -> Inputs:
    """A layer's inputs with the `sequence_ids` that it was called with; `is_single`: without a batch.

    Raises:
        TypeError, ValueError: they are not as the layer's `forward` documents them.
    """
    if sequence_ids is None:
        return given
    if not given.itself or given.allowed is not None:
        other = "a key that is not query" if not given.itself else "an attn_mask"
        raise ValueError(
            "sequence_ids are for self-attention without an attn_mask, which can keep texts apart by itself, "
            f"got {other}"
        )
    texts = find_texts(sequence_ids, given.real, given.query, is_single)
    real = texts.ids >= 0
    known = readable(real)
    return given._replace(texts=texts, real=None if known is not None and bool(known.all()) else real)

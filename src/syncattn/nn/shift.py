"""Tokens with the one before mixed in, where the layer has a token shift."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from syncattn.nn.inputs import Inputs
from syncattn.nn.places import Places
from syncattn.nn.sight import Seen
from syncattn.nn.state import IncrementalState
from syncattn.nn.tokens import last_real_input, mix_previous, with_before


class Mixed(NamedTuple):
    """What frequencies, phases and values are made of. Where senders have several forms and the token before
    is mixed in, M and N tokens stand here twice: with it, and then without."""

    query: Tensor  # (B, N, E)
    key: Tensor  # (B, M, E), the same object as query where that was
    value: Tensor  # (B, M, E)
    places: Places
    pairs: Tensor | None  # (B or 1, H or 1, N, M) bool, who may see whom of these; None without attn_mask
    heard: Tensor | None  # (B or 1, H or 1, M) bool, whom anybody may see; None: everybody


def mix_tokens(
    given: Inputs, seen: Seen, places: Places, shift: Tensor | None, past: IncrementalState | None
) -> Mixed:
    """What frequencies, phases and values are made of, with the layer's token shift (2, E), its short
    convolution (2, L, E), or without one.

    Raises:
        ValueError: receivers disagree on the token before a sender, of which a convolution has several.
    """
    query, key, value = given.query, given.key, given.value
    if shift is None:
        return Mixed(query, key, value, places, seen.pairs, seen.heard)
    if shift.ndim == 3 and seen.in_forms:
        raise ValueError(
            "attn_mask must hide a sender's tokens before it from all or from none who see the sender, with "
            "a short_convolution, got one that differs among them (a sliding window, say), or one that "
            "cannot be looked at here"
        )
    query, key, value = _shifted(given, shift, None if past is None else past.last_input, seen.follows)
    if seen.sight is None or not seen.in_forms:
        return Mixed(query, key, value, places, seen.pairs, seen.heard)
    sight, is_one = seen.sight, query is key
    query, key, value = (torch.cat(both, 1) for both in zip((query, key, value), given[:3], strict=True))
    places = places._replace(own=places.own.repeat(1, 2, 1), position=places.position.repeat(1, 2, 1))
    pairs = torch.cat((sight.seen & sight.before, sight.seen & ~sight.before), -1)
    return Mixed(query, query if is_one else key, value, places, pairs, pairs.any(-2))


def _shifted(
    given: Inputs, shift: Tensor, before: Tensor | None, follows: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value with the token before mixed in; query stays key where it was.

    Causal queries that are not the keys themselves still sit at their end: the key before precedes them.
    """
    query, key, value, real, _, is_causal, itself = given[:7]
    mixed = mix_previous(key, shift[0], before, real, follows)
    value = mix_previous(value, shift[1], before, real, follows)
    if itself:
        return mixed, mixed, value
    ahead, query_real = given.keys - given.queries if is_causal else 0, None
    if is_causal and real is not None:
        query_real, real = real[:, ahead:], real[:, :ahead]
    preceding = None
    if ahead:
        length = 1 if shift.ndim == 2 else shift.shape[1]
        preceding = last_real_input(with_before(key[:, :ahead], length, None, real), real, None)
    follows = None if follows is None else follows[:, ahead:]
    return mix_previous(query, shift[0], preceding, query_real, follows), mixed, value

"""Tokens with the one before mixed in, where the layer has a token shift, and where they stand."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from syncattn.nn.inputs import Inputs
from syncattn.nn.sight import Seen
from syncattn.nn.state import IncrementalState
from syncattn.nn.tokens import last_real_input, mix_previous, positions


class Places(NamedTuple):
    """Where tokens stand in their sequences."""

    own: Tensor  # (B or 1, N) int64, the receivers' positions
    position: Tensor  # (B or 1, M) int64, the senders'
    first: Tensor | None  # (B or 1, M or 1): where a sender may have nobody before it; None: nowhere


class Mixed(NamedTuple):
    """What frequencies, phases and values are made of. Where senders have several forms and the token before
    is mixed in, M and N tokens stand here twice: with it, and then without."""

    query: Tensor  # (B, N, E)
    key: Tensor  # (B, M, E), the same object as query where that was
    value: Tensor  # (B, M, E)
    places: Places
    pairs: Tensor | None  # (B or 1, H or 1, N, M) bool, who may see whom of these; None without attn_mask
    heard: Tensor | None  # (B or 1, H or 1, M) bool, whom anybody may see; None: everybody


def find_places(given: Inputs, seen: Seen, past: IncrementalState | None, has_delay: bool) -> Places:
    """Where the tokens stand: counted from each sequence's first real token, on from the past."""
    count = None if past is None else past.count
    device = given.query.device
    position = positions(given.real, given.keys, count, device)
    if given.itself:
        own = position
    elif given.is_causal:  # queries sit at the keys' end
        own = position[:, given.keys - given.queries :]
    else:
        own = positions(None, given.queries, None, device)
    first = None
    if has_delay and (past is None or past.last_emitted is None):
        first = position.new_zeros(1, 1) if seen.sight is None else position
    return Places(own, position, first)


def mix_tokens(
    given: Inputs, seen: Seen, places: Places, shift: Tensor | None, past: IncrementalState | None
) -> Mixed:
    """What frequencies, phases and values are made of, with the layer's token shift (2, E) or without one."""
    query, key, value = given.query, given.key, given.value
    if shift is None:
        return Mixed(query, key, value, places, seen.pairs, seen.heard)
    query, key, value = _shifted(given, shift, None if past is None else past.last_input, seen.follows)
    if seen.sight is None or not seen.in_forms:
        return Mixed(query, key, value, places, seen.pairs, seen.heard)
    sight, is_one = seen.sight, query is key
    query, key, value = (torch.cat(both, 1) for both in zip((query, key, value), given[:3], strict=True))
    places = Places(places.own.repeat(1, 2), places.position.repeat(1, 2), places.first)
    pairs = torch.cat((sight.seen & sight.before, sight.seen & ~sight.before), -1)
    return Mixed(query, query if is_one else key, value, places, pairs, pairs.any(-2))


def _shifted(
    given: Inputs, shift: Tensor, before: Tensor | None, follows: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value with the token before mixed in; query stays key where it was.

    Causal queries that are not the keys themselves still sit at their end: the key before precedes them.
    """
    query, key, value, real, _, is_causal, itself = given
    mixed = mix_previous(key, shift[0], before, real, follows)
    value = mix_previous(value, shift[1], before, real, follows)
    if itself:
        return mixed, mixed, value
    ahead, query_real = given.keys - given.queries if is_causal else 0, None
    if is_causal and real is not None:
        query_real, real = real[:, ahead:], real[:, :ahead]
    preceding = last_real_input(key[:, :ahead], real, None) if ahead else None
    follows = None if follows is None else follows[:, ahead:]
    return mix_previous(query, shift[0], preceding, query_real, follows), mixed, value

"""Where tokens stand: positions on A axes, as they are given, or each token's number in its sequence.

Positions enter through differences alone, so given ones are counted from each sequence's first real token
before anything is multiplied: what is small stays exact, however far out the sequence lies.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from syncattn.nn.inputs import Inputs
from syncattn.nn.packing import counted_from_first
from syncattn.nn.sight import Seen
from syncattn.nn.state import IncrementalState
from syncattn.nn.tokens import positions, shift_by_one
from syncattn.values import readable


class Places(NamedTuple):
    """Where tokens stand, counted from their sequence's first real token."""

    own: Tensor  # (B or 1, N, A) int64 or real, the receivers' positions
    position: Tensor  # (B or 1, M, A), the senders'
    first: Tensor | None  # (B or 1, M or 1, A): where a sender may have nobody before it; None: nowhere
    origin: Tensor | None  # (B, A), what given positions are counted from; None: tokens are numbered
    last: Tensor | None  # (B, A), where the last real token stands; None: tokens are numbered


class Located(NamedTuple):
    """Where the tokens of one sequence each stand, and what later ones have to know of it."""

    position: Tensor  # (B or 1, M, A)
    origin: Tensor | None  # (B, A)
    last: Tensor | None  # (B, A)


def find_places(given: Inputs, seen: Seen, past: IncrementalState | None, has_delay: bool) -> Places:
    """Where the tokens of a layer's call stand: as given, or counted, on from the past."""
    batch, keys, _ = given.key.shape
    position, origin, last = locate(given.real, (batch, keys), given.key_positions, past, given.key.device)
    if given.texts is not None:
        position = counted_from_first(position, given.texts)
    if given.itself:
        own = position
    elif given.positions is not None:
        assert origin is not None
        own = given.positions - origin[:, None]
    elif given.is_causal:  # queries sit at the keys' end
        own = position[:, given.keys - given.queries :]
    else:
        own = positions(None, given.queries, None, given.query.device)[..., None]
    first = None
    if has_delay and (past is None or past.last_emitted is None):
        first = position.new_zeros(1, 1, position.shape[-1]) if seen.sight is None else position
    return Places(own, position, first, origin, last)


def locate(
    real: Tensor | None,
    shape: tuple[int, int],
    given: Tensor | None,
    past: IncrementalState | None,
    device: torch.device,
) -> Located:
    """Where tokens stand, counted from their sequence's first real one; padding, where the real token before
    it does.

    Args:
        real: (B, M) bool, False = padding; None if there is none.
        shape: (B, M).
        given: positions (B or 1, M, A), checked; None: they go on by 1 from token to token.
        past: what came before; None: nothing.
        device: of the tokens.
    """
    batch, tokens = shape
    count = None if past is None else past.count
    held = None if past is None else past.origin
    if given is None:
        if past is None or held is None or past.last_place is None:
            return Located(positions(real, tokens, count, device)[..., None], None, None)
        position = past.last_place[:, None] + (positions(real, tokens, None, device)[..., None] + 1)
        return Located(position, held, last_of(position, past.last_place))
    if real is not None or past is not None:
        given = given.expand(batch, -1, -1)
    origin = _first_real(given, real)
    if count is not None:  # sequences that have begun keep their origin: of numbered tokens it is 0
        begun = torch.zeros_like(origin) if held is None else held
        origin = torch.where(count == 0, origin, begun)
    position = given - origin[:, None]
    if past is not None and past.last_place is not None:
        last = past.last_place
    elif count is not None:
        last = (count - 1).expand(-1, given.shape[-1])
    else:
        last = torch.full_like(origin, -1)
    last = last.to(position.dtype)
    if real is not None:
        before = shift_by_one(position[:, None], last[:, None], real)[:, 0]
        position = torch.where(real[..., None], position, before)
    return Located(position, origin, last_of(position, last))


def last_of(position: Tensor, last: Tensor) -> Tensor:
    """Where the last real token stands (B, A), given that padding stands where the one before it does."""
    return position[:, -1].clone() if position.shape[1] else last  # a view would keep all of them alive


def _first_real(given: Tensor, real: Tensor | None) -> Tensor:
    """The position of each sequence's first real token, (B, A); 0 where there is none."""
    if given.shape[1] == 0:
        return given.new_zeros(given.shape[0], given.shape[2])
    if real is None:
        return given[:, 0].clone()
    index = real.int().argmax(1)[:, None, None].expand(-1, 1, given.shape[-1])
    first = given.gather(1, index)[:, 0]
    return torch.where(real.any(1, keepdim=True), first, 0)


def with_positions(given: Inputs, own: Tensor | None, of_keys: Tensor | None, axes: int) -> Inputs:
    """A layer's inputs with the positions that it was called with.

    Args:
        given: the inputs without them.
        own, of_keys: `positions` and `key_positions` as the layer's `forward` takes them.
        axes: A.

    Raises:
        ValueError: positions are not as the layer's `forward` documents them.
    """
    if given.itself:
        if of_keys is not None:
            raise ValueError(
                "key_positions must be left out in self-attention, where positions are the keys' too, got "
                f"{tuple(of_keys.shape)}"
            )
    elif (own is None) != (of_keys is None):
        missing, there = ("positions", "key_positions") if own is None else ("key_positions", "positions")
        raise ValueError(
            f"{missing} must be given with {there} in cross-attention, got {there} alone: distances are "
            "between the two"
        )
    own = checked_positions("positions", own, given.query, given.real if given.itself else None, axes)
    of_keys = (
        own if given.itself else checked_positions("key_positions", of_keys, given.key, given.real, axes)
    )
    return given._replace(positions=own, key_positions=of_keys)


def checked_positions(
    name: str, given: Tensor | None, of: Tensor, real: Tensor | None, axes: int
) -> Tensor | None:
    """Positions (B or 1, N, A) of tokens (B, N, E), on their device; None for numbered ones."""
    batch, tokens, _ = of.shape
    if given is None:
        if axes > 1:
            raise ValueError(
                f"{name} must be given to a layer of axes={axes}, of shape (B or 1, N, A) = "
                f"({batch}, {tokens}, {axes}), got None"
            )
        return None
    if not isinstance(given, Tensor):
        raise TypeError(f"{name} must be a tensor (B or 1, N, A), got {type(given).__name__}")
    if given.is_nested or given.is_complex() or given.dtype == torch.bool:
        kind = "a nested tensor" if given.is_nested else given.dtype
        raise ValueError(f"{name} must be real numbers (B or 1, N, A), got {kind}")
    if given.ndim != 3 or given.shape[0] not in (1, batch) or given.shape[1:] != (tokens, axes):
        raise ValueError(
            f"{name} must have shape (B or 1, N, A) = ({batch}, {tokens}, {axes}), with A = axes as the "
            f"layer was made, got {tuple(given.shape)}"
        )
    given = given.to(of.device)
    if given.is_floating_point():
        where = given if real is None else torch.where(real[..., None], given, 0)
        finite = readable(where.isfinite().all())  # elsewhere looking would make a device wait
        if finite is not None and not bool(finite.all()):
            raise ValueError(f"{name} must be finite, got NaN or infinity")
        if given.dtype.itemsize < 4:
            given = given.float()
    return given


def lattice(tokens: int, axes: int) -> Tensor:
    """Positions (1, N, A) float32 of tokens one apart, which fill a cube row by row."""
    side = 1
    while side**axes < tokens:
        side += 1
    number = torch.arange(tokens, dtype=torch.int64, device="cpu")
    places = [number // side**a % side for a in reversed(range(axes))]
    return torch.stack(places, dim=-1)[None].float()

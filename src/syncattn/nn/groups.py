"""Heads that hold the same tokens of the past, and from which token on each group of heads has to be read.

Heads of like window (windows.py) stand together. What lies before a group's window cannot lock with any
token to come: it is not read, and may be forgotten. Starts are multiples of BLOCK, and depend on the number
of tokens alone, not on what was forgotten: so a cache that forgets gives what one that keeps everything
gives, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from syncattn.nn.room import Room, may_have_room, with_room
from syncattn.nn.windows import PLACE_ROUNDED

# Tokens that are forgotten together. Eight of the CPU kernel's tiles of senders, after which what it does
# with a tile repeats: so it sums up in the same order as over all senders, in calls of as many rows as one
# block has.
BLOCK = 512
_ALIKE = 2  # heads stand together where none keeps more than so many times as many tokens as another
_ROOMY = 3  # a room for more than so many times the tokens held is given up for a smaller one

Heads = slice | Tensor | None  # slice or int64 numbers; None: all heads


class Windows(NamedTuple):
    """Groups of heads by their windows, and whether tokens behind these are forgotten."""

    heads: tuple[Heads, ...]
    reach: tuple[
        float, ...
    ]  # of each group its longest window, in positions; infinite: it reaches everything
    back: Tensor | None  # where the groups' heads, one group after the other, stand; None: in their order
    evict: bool


def in_groups(windows: Tensor, evict: bool) -> Windows | None:
    """Groups of the heads with these windows (H,), narrow ones first; None where all are infinite."""
    each = windows.tolist()
    if all(math.isinf(window) for window in each):
        return None
    groups: list[list[int]] = []
    for head in sorted(range(len(each)), key=each.__getitem__):
        if groups and _kept(each[head]) <= _ALIKE * _kept(each[groups[-1][0]]):
            groups[-1].append(head)
        else:
            groups.append([head])
    groups = [sorted(group) for group in groups]
    reach = tuple(max(each[head] for head in group) for group in groups)
    if len(groups) == 1:
        return Windows((None,), reach, None, evict)
    order = [head for group in groups for head in group]
    back = None
    if order != sorted(order):
        back = torch.tensor(order, dtype=torch.int64, device=windows.device).argsort()
    return Windows(tuple(_index(group, windows.device) for group in groups), reach, back, evict)


def _kept(window: float) -> float:
    return window if math.isinf(window) else BLOCK * (window // BLOCK + 2)


def _index(heads: list[int], device: torch.device) -> Heads:
    first, last = heads[0], heads[-1]
    if last - first + 1 == len(heads):
        return slice(first, last + 1)
    return torch.tensor(heads, dtype=torch.int64, device=device)


def pick(x: Tensor, heads: Heads, dim: int = 1) -> Tensor:
    """These heads of x."""
    if heads is None:
        return x
    if isinstance(heads, slice):
        return x.narrow(dim, heads.start, heads.stop - heads.start)
    return x.index_select(dim, heads.to(x.device))


def starts_of(windows: Windows, mask: Tensor | None, tokens: int) -> tuple[int, ...]:
    """The first token that each group has to be read from, by all that come after so many tokens.

    Args:
        mask: (B, M) bool, True = a real token, M at least `tokens`, a multiple of BLOCK; None: all are.
    """
    reach = [each + tokens * PLACE_ROUNDED for each in windows.reach]
    if mask is None:  # the last of the tokens left out stands at start - 1, the next to come at `tokens`
        ends = [tokens + 1 - each for each in reach]
        return tuple(max(0, math.ceil(end) - 1) // BLOCK * BLOCK if end > 0 else 0 for end in ends)
    real = mask[:, :tokens].unflatten(1, (-1, BLOCK)).sum(-1).cumsum(-1)  # (B, blocks)
    apart = real[:, -1:] - real + 1  # of the next to come from the last real one of so many blocks
    beyond = [((real == 0) | (apart > each)).all(0) for each in reach]
    return tuple(BLOCK * int(row) for row in torch.stack(beyond).long().cumprod(-1).sum(-1).tolist())


def may_look(some: Tensor) -> bool:
    """Whether a past with tensors like this one may be looked at and written anew: nothing records what is
    done, be it gradients, a compiler or a CUDA graph."""
    captured = some.is_cuda and torch.cuda.is_current_stream_capturing()
    return not captured and may_have_room((some, some), (some, some))


class Group:
    """Tokens that some heads hold. What it holds is never changed: whoever goes on makes another.

    Attributes:
        heads: which heads.
        first: the number of the first token held.
        held: how many tokens.
        room: the memory that they stand in; None: they are tensors of their own.
        skip: how many tokens stand in the room before them.
    """

    __slots__ = ("__weakref__", "_send", "_value", "first", "heads", "held", "room", "skip")

    def __init__(
        self,
        heads: Heads,
        first: int,
        send: Tensor | None,
        value: Tensor | None,
        room: Room | None = None,
        skip: int = 0,
    ) -> None:
        """Of tokens (B, h, M, m) and (B, h, M, d); or, without them, of all that a room holds but `skip`."""
        self.heads, self.first, self._send, self._value = heads, first, send, value
        self.room, self.skip = room, skip
        if room is not None:
            self.held = room.filled - skip
            room.give_to(self)
        else:
            assert value is not None
            self.held = value.shape[2]

    def __getstate__(self) -> dict[str, Any]:
        send, value = self.send, self.value
        if self.room is not None:
            send, value = send.clone(), value.clone()
        own = {"heads": self.heads, "first": self.first, "held": self.held, "room": None, "skip": 0}
        return own | {"_send": send, "_value": value}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, held in state.items():
            setattr(self, name, held)

    @property
    def send(self) -> Tensor:
        """What the tokens emit, as it enters the operator (B, h, M, m): of a room, a view."""
        if self._send is None:
            assert self.room is not None
            self._send = self.room.send.narrow(2, self.skip, self.held)
        return self._send

    @property
    def value(self) -> Tensor:
        """Their values (B, h, M, d): of a room, a view."""
        if self._value is None:
            assert self.room is not None
            self._value = self.room.value.narrow(2, self.skip, self.held)
        return self._value

    @property
    def length(self) -> int:
        """How many tokens there were, those before the first among them."""
        return self.first + self.held

    @property
    def nbytes(self) -> int:
        """What is held, in bytes, without the room for more."""
        return self.send.nbytes + self.value.nbytes

    @property
    def spare_nbytes(self) -> int:
        """The memory kept besides: for tokens to come, and of such as were forgotten since it was made."""
        return 0 if self.room is None else self.room.nbytes - self.nbytes

    @property
    def checked(self) -> int:
        """How many of the first senders held are known to be finite."""
        return 0 if self.room is None else min(max(0, self.room.checked - self.skip), self.held)

    @property
    def _owns(self) -> bool:
        return self.room is not None and self.room.is_owned_by(self)

    def extended(self, send: Tensor, value: Tensor) -> Group:
        """With more tokens (B, h, N, m) and (B, h, N, d)."""
        if not may_have_room((self.send, self.value), (send, value)):
            longer = torch.cat((self.send, send), dim=2), torch.cat((self.value, value), dim=2)
            return Group(self.heads, self.first, *longer)
        room, skip, new = self.room, self.skip, send.shape[2]
        if room is None or not self._owns or not room.takes(new):
            checked = self.checked if self._owns else 0
            room, skip = with_room(self.send, self.value, new), 0
            room.checked = checked
        room.append(send, value)
        return Group(self.heads, self.first, None, None, room, skip)

    @property
    def has_room(self) -> bool:
        """Whether one more token can be written where it will stay."""
        return self.room is not None and self._owns and self.room.takes(1)

    def with_next(self) -> Group:
        """With the token that somebody wrote behind those of a group that has room, and looked at."""
        assert self.room is not None
        self.room.filled += 1
        self.room.checked = self.room.filled
        return Group(self.heads, self.first, None, None, self.room, self.skip)

    def cut(self, length: int) -> Group:
        """Without the tokens from number `length` on."""
        kept = length - self.first
        assert 0 <= kept <= self.held, (length, self.first, self.held)
        if self.room is None or not self._owns:
            send, value = self.send.narrow(2, 0, kept), self.value.narrow(2, 0, kept)
            return Group(self.heads, self.first, send, value)
        self.room.cut(self.skip + kept)
        return Group(self.heads, self.first, None, None, self.room, self.skip)

    def without(self, first: int) -> Group:
        """Without the tokens before number `first`, whose memory is given up at once or by the next room."""
        gone = first - self.first
        kept = self.held - gone
        room = self.room
        if room is not None and self._owns and room.send.shape[2] <= _ROOMY * max(BLOCK, kept):
            return Group(self.heads, first, None, None, room, self.skip + gone)
        return self.of(self.heads, None, first)

    def of(self, heads: Heads, own: Heads, first: int) -> Group:
        """Some heads, in a room of their own, from the token of this number on.

        Args:
            heads: what they are called.
            own: where they stand among this group's; None: they are all of it.
        """
        gone = first - self.first
        send, value = (pick(x.narrow(2, gone, self.held - gone), own) for x in (self.send, self.value))
        room = Room(send, value, 2 * max(1, send.shape[2]))
        room.checked = max(0, self.checked - gone)
        return Group(heads, first, None, None, room)

    def selected(self, index: Tensor) -> Group:
        """The sequences that index (int64) names, in its order."""
        if self.room is not None and self._owns and not torch.is_grad_enabled():
            # once: the next token would copy what is selected into a room again
            room = self.room.selected(index.to(self.send.device), self.skip)
            return Group(self.heads, self.first, None, None, room)
        send, value = (x.index_select(0, index.to(x.device)) for x in (self.send, self.value))
        return Group(self.heads, self.first, send, value)

    def repeated(self, repeats: int) -> Group:
        """Each sequence so many times, one after the other."""
        send, value = (x.repeat_interleave(repeats, dim=0) for x in (self.send, self.value))
        return Group(self.heads, self.first, send, value)


def put_together(parts: Sequence[Tensor], windows: Windows) -> Tensor:
    """What the groups give (B, h, N, x) each, as (B, H, N, x) in the heads' order."""
    if len(parts) == 1:
        return parts[0]
    every = torch.cat(list(parts), dim=1)
    return every if windows.back is None else every.index_select(1, windows.back.to(every.device))

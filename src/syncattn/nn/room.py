"""Memory for the tokens of a past, with room for more: one more token is written where it will stay."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from syncattn.backends.call import is_transformed

_LEAST = 64  # tokens that there is room for at first
_PLAIN = (Tensor, torch.nn.Parameter)


class Room:
    """Frequencies (B, H, capacity, m) and values (B, H, capacity, d) of tokens; the first are filled.

    Groups (groups.py) hold views of what is filled. Only the owner, the group that holds its end, may write
    more there, or, once it went back, write over what it left: whoever else has a view of the memory makes a
    room of its own before it goes on. So nothing that a group holds is ever changed.

    Attributes:
        send, value: the memory.
        filled: how many tokens are there.
        checked: how many of the first senders are known to be finite.
    """

    def __init__(self, send: Tensor, value: Tensor, capacity: int) -> None:
        """Room for so many tokens, of which these are the first."""
        self.send, self.value = (x.new_empty(*x.shape[:2], capacity, x.shape[3]) for x in (send, value))
        self.filled = self.checked = 0
        self._owner: weakref.ref[Any] | None = None
        self.append(send, value)

    def append(self, send: Tensor, value: Tensor) -> None:
        """Write tokens (B, H, N, m) and (B, H, N, d) behind those that are there."""
        new = send.shape[2]
        self.send.narrow(2, self.filled, new).copy_(send)
        self.value.narrow(2, self.filled, new).copy_(value)
        self.filled += new

    def cut(self, tokens: int) -> None:
        """Go back to the first so many tokens."""
        self.filled, self.checked = tokens, min(tokens, self.checked)

    def selected(self, index: Tensor, skip: int = 0) -> Room:
        """Another room of this size, with the sequences that index (int64) names, in its order, without their
        first `skip` tokens."""
        send, value = (x.narrow(2, 0, 0).index_select(0, index) for x in (self.send, self.value))
        other = Room(send, value, self.send.shape[2])
        kept = self.filled - skip
        for to, x in ((other.send, self.send), (other.value, self.value)):
            torch.index_select(x.narrow(2, skip, kept), 0, index, out=to.narrow(2, 0, kept))
        other.filled, other.checked = kept, max(0, self.checked - skip)
        return other

    def is_owned_by(self, group: Any) -> bool:
        """Whether this group may write here."""
        return self._owner is not None and self._owner() is group

    def give_to(self, group: Any) -> None:
        """Make a group the owner."""
        self._owner = weakref.ref(group)

    @property
    def nbytes(self) -> int:
        """The memory taken, in bytes, filled or not."""
        return self.send.nbytes + self.value.nbytes

    def takes(self, tokens: int) -> bool:
        """Whether so many more can be written here and now."""
        fits = self.filled + tokens <= self.send.shape[2]
        return fits and (torch.is_inference_mode_enabled() or not self.send.is_inference())


def with_room(send: Tensor, value: Tensor, tokens: int) -> Room:
    """A room with these senders (B, H, M, m) and (B, H, M, d), for so many more and as many again."""
    return Room(send, value, max(_LEAST, 2 * (send.shape[2] + tokens)))


def may_have_room(held: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]) -> bool:
    """Whether new tokens may be written into memory, in place of being concatenated with those that are held.

    Not where gradients are recorded (what was saved for them must stay), nor where something compiles, traces
    or replaces what is done with tensors.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if torch._C._len_torch_dispatch_stack() or is_transformed():
        return False
    if any(type(x) not in _PLAIN or x.is_meta for x in (*held, *new)):
        return False
    return all(a.dtype == b.dtype and a.device == b.device for a, b in zip(held, new, strict=True))

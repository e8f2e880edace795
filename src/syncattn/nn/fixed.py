"""The past of a layer in memory of a fixed size, with its length as a tensor: for programs that are compiled
or exported once and run for every token."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from syncattn.nn.state import IncrementalState

_PLACED = ("send", "value")  # (B, H, capacity, m) and (B, H, capacity, d)
_KEPT = ("mask", "phase_sum", "last_input", "last_emitted", "count", "origin", "last_place", "filled")


@dataclass(eq=False)
class FixedState(IncrementalState):
    """An `IncrementalState` of so many places, made once; how many are filled is a tensor.

    Before the first token it is an empty past like any other, and a call attends to its own tokens alone.
    From then on all places are read under a mask of those that are filled (`seen`), so that no call depends
    on the length. What is held is written where it stands, in two steps: tokens at once, into places that
    nobody reads yet, and all the rest, the length too, by `settle_`. So a call that fails changes nothing.

    Attributes:
        capacity: L, the number of places.
        filled: how many are, () int64; None before the first token.
        mask: (B, L) bool, where a real token stands.
        memory: every tensor of the past, by its name. It outlives `reset_`, so that programs find it again.
        coming: what `settle_` goes on to.
        fresh: of the tokens that came first, (send, value, real): all that they attend to.
    """

    capacity: int = 0
    filled: Tensor | None = None
    memory: dict[str, Tensor] = field(default_factory=dict)
    coming: FixedState | None = None
    fresh: tuple[Tensor, Tensor, Tensor | None] | None = None

    def __getstate__(self) -> dict[str, Any]:
        memory = {name: held.clone() for name, held in self.memory.items()}
        return vars(self) | {"memory": memory, "coming": None, "fresh": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self.filled is not None:
            self.hold_in_(self.memory)

    def hold_in_(self, memory: dict[str, Tensor]) -> None:
        """Hold the past that stands in these tensors."""
        self.memory = memory
        for name in _KEPT:
            setattr(self, name, memory.get(name))

    @property
    def send(self) -> Tensor | None:
        """What the tokens emit, in all places (B, H, L, m); None before the first one."""
        return None if self.filled is None else self.memory["send"]

    @property
    def value(self) -> Tensor | None:
        """Their values (B, H, L, d), as `send`."""
        return None if self.filled is None else self.memory["value"]

    @property
    def length(self) -> int:
        """How many places are filled, padding among them: a number, for which a device is waited for; where
        something compiles, a tensor."""
        if self.filled is None:
            return 0
        return self.filled if torch.compiler.is_compiling() else int(self.filled)  # type: ignore[return-value]

    @property
    def sizes(self) -> tuple[int, int, int, int] | None:
        """(B, H, m, d) of what is held; None before the first token."""
        if self.filled is None:
            return None
        batch, heads, _, freq_dim = self.memory["send"].shape
        return batch, heads, freq_dim, self.memory["value"].shape[3]

    @property
    def reads_all(self) -> bool:
        """True: whatever the heads' windows."""
        return True

    @property
    def held(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """(send, value, mask) that the newest tokens attend to, causally or as `seen` says."""
        return self.fresh or (self.memory["send"], self.memory["value"], None)

    @property
    def checked(self) -> int:
        """0: which of the senders were looked at is not known."""
        return 0

    @property
    def nbytes(self) -> int:
        """The memory in bytes, filled or not."""
        return sum(held.nbytes for held in self.memory.values())

    @property
    def spare_nbytes(self) -> int:
        """0: all memory is counted by `nbytes`."""
        return 0

    def extended(
        self, send: Tensor, value: Tensor, real: Tensor | None, *, last_emitted: Tensor | None
    ) -> FixedState:
        """As `IncrementalState.extended`. The tokens stand in the places after those that are filled; that
        there are so many was made sure of before.

        Raises:
            ValueError: gradients would be recorded, or the tokens have another dtype than those before.
        """
        batch, _, new, _ = value.shape
        self._make_room_(send, value)
        place = torch.arange(new, dtype=torch.int64, device=value.device)
        if self.filled is not None:
            place = place + self.filled
        for name, given in (("send", send), ("value", value)):
            self.memory[name].index_copy_(2, place, given.detach())
        is_real = value.new_ones(batch, new, dtype=torch.bool) if real is None else real
        mask, count = self.mask, self.count
        if mask is None or count is None:
            mask = value.new_zeros(batch, self.capacity, dtype=torch.bool)
            count = torch.zeros(batch, 1, dtype=torch.int64, device=value.device)
        return FixedState(
            mask=mask.index_copy(1, place, is_real),
            phase_sum=self.phase_sum,
            last_input=self.last_input,
            last_emitted=last_emitted,
            count=count + (new if real is None else real.sum(-1, keepdim=True)),
            origin=self.origin,
            last_place=self.last_place,
            capacity=self.capacity,
            filled=place.new_tensor(new) if self.filled is None else self.filled + new,
            memory=self.memory,
            fresh=(send, value, real) if self.filled is None else None,
        )

    def seen(self, queries: int, self_coupling: bool) -> Tensor | None:
        """Which places the newest tokens may attend to, (B, 1, N, L) bool; None: they are the first, and
        `held` has them alone.

        Args:
            queries: N, how many they are.
            self_coupling: whether they may attend to themselves.
        """
        if self.fresh is not None:
            return None
        assert self.mask is not None and self.filled is not None
        place = torch.arange(self.capacity, dtype=torch.int64, device=self.mask.device)
        own = self.filled - queries + place.narrow(0, 0, queries)[:, None]
        before = place <= own if self_coupling else place < own
        return before & self.mask[:, None, None, :]

    def become_(self, other: IncrementalState) -> None:
        """Go on to what this was extended to, once `settle_` says so."""
        assert isinstance(other, FixedState)
        self.coming = other

    def settle_(self) -> None:
        """Hold what was to come; nothing fails from here on."""
        after, self.coming = self.coming, None
        if after is None:
            return
        for name in _KEPT:
            setattr(self, name, self._written(name, getattr(after, name)))

    def give_up_(self) -> None:
        """Do not go on to what was to come: its tokens leave their places."""
        self.coming = None
        if not self.memory:
            return
        place = torch.arange(self.capacity, dtype=torch.int64, device=self.memory["send"].device)
        held = 0 if self.filled is None else self.memory["filled"]
        for name in _PLACED:
            self.memory[name].masked_fill_((place >= held)[:, None], 0)

    def reset_(self) -> None:
        """Forget all tokens. The memory stays."""
        self.coming = None
        for name in _KEPT:
            setattr(self, name, None)
        for name in _PLACED:
            if name in self.memory:
                self.memory[name].zero_()

    def start_(self) -> None:
        """Forget all tokens, which were padding, but not that some came: what is held is what the first real
        one finds, in tensors, and a program that goes on from there can be run for it, too."""
        assert self.filled is not None
        for name in (*_PLACED, "filled", "mask"):
            self.memory[name].zero_()

    def select_(self, index: Tensor) -> None:
        """Put the sequences that index (B,) int64 names, in its order, in the places of all."""
        for name, held in self.memory.items():
            if name != "filled":
                held.copy_(held.index_select(0, index.to(held.device)))

    def _make_room_(self, send: Tensor, value: Tensor) -> None:
        """Have memory for tokens like these."""
        recorded = torch.is_grad_enabled() and (send.requires_grad or value.requires_grad)
        if recorded and not torch.compiler.is_exporting():  # a program has none
            raise ValueError(
                "a cache of fixed size is written over, so it records no gradients: call the model under "
                "torch.no_grad(), or give it a DecoderCache, which grows"
            )
        for name, given in (("send", send), ("value", value)):
            held = self.memory.get(name)
            shape = (*given.shape[:2], self.capacity, given.shape[3])
            if held is not None and (held.shape, held.dtype, held.device) == (
                shape,
                given.dtype,
                given.device,
            ):
                continue
            if self.filled is not None:
                assert held is not None
                raise ValueError(
                    f"a cache of fixed size holds {held.dtype} on {held.device}, got tokens of {given.dtype} "
                    f"on {given.device}: call the model as for its first tokens, or reset() the cache"
                )
            self.memory[name] = _new(given, shape).zero_()

    def _written(self, name: str, new: Tensor | None) -> Tensor | None:
        """A tensor of the past, in the memory of its name, or, if that has another form, in new memory."""
        if new is None:
            return None
        held = self.memory.get(name)
        if held is None or (held.shape, held.dtype, held.device) != (new.shape, new.dtype, new.device):
            held = self.memory[name] = _new(new, tuple(new.shape))
        held.copy_(new.detach())
        return held


def _new(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Memory that is written again and again, inside and outside of inference mode."""
    inside = not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()
    with torch.inference_mode(False) if inside else nullcontext():
        made = torch.empty(shape, dtype=like.dtype, device=like.device)
    if made.is_cuda and not torch.compiler.is_compiling():
        torch._dynamo.mark_static_address(made)  # CUDA graphs may then write into it
    return made

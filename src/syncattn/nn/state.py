"""What incremental decoding remembers of the tokens seen so far."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from syncattn.nn.room import Room, may_have_room, with_room
from syncattn.nn.tokens import last_real, last_real_input

_RECORDED = 1024  # tokens that can be taken back at least, of those that came since recording began


@dataclass(eq=False)
class IncrementalState:
    """The past of one attention layer, grown in place by each call that is given it and succeeds.

    Without gradients, from the second call on, its tokens stand in memory with room for more (`room`), into
    which later ones are written; `send` and `value` are views of that. Elsewhere, as where gradients are
    recorded or something is compiled, each call concatenates. A copy (copy.copy, copy.deepcopy, pickle) has
    memory of its own.

    Per token and head it holds freq_dim + head_dim numbers (softmax attention: 2 x head_dim); besides, per
    head, the order parameter's 2 x phase_dim prefix sums and the last token's frequency (for delayed heads).

    Attributes:
        send: what the past tokens emit, as it enters the operator (B, H, M, m).
        value: their values (B, H, M, d).
        mask: (B, M) bool, True = a real token; None while no padding was ever seen.
        phase_sum: the sums of (cos, sin) of the real tokens' phases (B, H, p, 2), float32 at least.
        last_input: the last real token's hidden state (B, E); None without a token shift.
        last_emitted: the frequency that the last real token emitted (B, H, m), before any delay.
        count: how many real tokens each sequence has had (B, 1), int64.
        origin: what given positions are counted from (B, A); None while tokens are numbered.
        last_place: where the last real token stands, counted from there (B, A).
        steps: what it takes to forget the last tokens (`crop_`); None: that is not recorded.
        room: the memory that send and value are views of; None: they are tensors of their own.
    """

    send: Tensor | None = None
    value: Tensor | None = None
    mask: Tensor | None = None
    phase_sum: Tensor | None = None
    last_input: Tensor | None = None
    last_emitted: Tensor | None = None
    count: Tensor | None = None
    origin: Tensor | None = None
    last_place: Tensor | None = None
    steps: list[Step] | None = None
    room: Room | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        own = vars(self) | {"room": None}
        if self.room is not None and self.send is not None and self.value is not None:
            own |= {"send": self.send.clone(), "value": self.value.clone()}
        return own

    @property
    def length(self) -> int:
        """How many tokens are held, padding included."""
        return 0 if self.value is None else self.value.shape[-2]

    @property
    def held(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """(send, value, mask) of a state that holds tokens."""
        assert self.send is not None and self.value is not None
        return self.send, self.value, self.mask

    @property
    def nbytes(self) -> int:
        """What is held, in bytes, without the room for more."""
        held = (getattr(self, name) for name in _TENSORS)
        return sum(x.numel() * x.element_size() for x in held if x is not None)

    @property
    def spare_nbytes(self) -> int:
        """The memory kept for tokens to come, in bytes."""
        if self.room is None or self.send is None or self.value is None:
            return 0
        return self.room.nbytes - self.send.nbytes - self.value.nbytes

    @property
    def checked(self) -> int:
        """How many of the first senders are known to be finite: they were looked at when they came."""
        return 0 if self.room is None else min(self.room.checked, self.length)

    def extended(
        self,
        send: Tensor,
        value: Tensor,
        real: Tensor | None,
        *,
        last_emitted: Tensor | None,
    ) -> IncrementalState:
        """The past with more tokens in it, in a new object; this one is left as it is.

        Args:
            send, value: of the tokens to add, (B, H, N, m) and (B, H, N, d).
            real: (B, N) bool, True = a real token; None if all are.
            last_emitted: the new one. All that does not grow with the tokens stays as it is.
        """
        batch, _, new, _ = value.shape
        mask = self.mask
        if real is not None or mask is not None:
            mask = value.new_ones(batch, self.length, dtype=torch.bool) if mask is None else mask
            after = value.new_ones(batch, new, dtype=torch.bool) if real is None else real
            mask = torch.cat((mask, after), dim=-1)
        count = self.count
        if count is None:
            count = torch.zeros(batch, 1, dtype=torch.int64, device=value.device)
        all_send, all_value, room = self._with(send, value)
        extended = IncrementalState(
            send=all_send,
            value=all_value,
            mask=mask,
            phase_sum=self.phase_sum,
            last_input=self.last_input,
            last_emitted=last_emitted,
            origin=self.origin,
            last_place=self.last_place,
            count=count + (new if real is None else real.sum(-1, keepdim=True)),
            room=room,
        )
        if room is not None:
            room.give_to(extended)
        return extended

    def _with(self, send: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Room | None]:
        """send and value with the past before them, and the room that they stand in, if they do."""
        if self.send is None or self.value is None:
            return send, value, None
        if not may_have_room((self.send, self.value), (send, value)):
            return torch.cat((self.send, send), dim=-2), torch.cat((self.value, value), dim=-2), None
        room, new = self.room, send.shape[2]
        if room is None or not room.is_owned_by(self) or not room.takes(new):
            room = with_room(self.send, self.value, new)
            room.checked = self.checked if self.room is not None and self.room.is_owned_by(self) else 0
        room.append(send, value)
        return *room.held(), room

    def record_(self, past: IncrementalState, step: Step) -> None:
        """Of a past that was extended to this: keep what `crop_` needs, if the past was recorded.

        Of the last 1,024 tokens, or of those of the last call, a token takes E + H (m + 2 p) numbers more.
        """
        if past.steps is None:
            return
        steps, first = [*past.steps, step], 0
        while first + 1 < len(steps) and steps[first + 1].mark.length + _RECORDED <= self.length:
            first += 1
        self.steps = steps[first:]

    def reaches(self, length: int) -> bool:
        """Whether `crop_` can go back to so many tokens."""
        if length in (0, self.length):
            return True
        return bool(self.steps and self.steps[0].mark.length <= length < self.length)

    def crop_(self, length: int) -> None:
        """Keep the first so many tokens, padding included: all is as it was when they had just been added.

        Raises:
            ValueError: there are fewer, or it was not recorded how to forget the others.
        """
        if not self.reaches(length):
            raise ValueError(
                f"length must be one that the state can go back to, got {length}: it holds {self.length} "
                "tokens and goes back to where recording began (state.steps = []), by 1,024 tokens at least, "
                "or to 0"
            )
        if length == self.length:
            return
        at = [step for step in self.steps or () if step.mark.length <= length]
        if at:
            self.rewind_(at[-1].until(length))
        else:
            self.rewind_(Mark(0, IncrementalState(), False))

    def was_checked_(self) -> None:
        """The operator has looked at all senders that are held: it need not do so again."""
        if self.room is not None:
            self.room.checked = self.length

    def become_(self, other: IncrementalState) -> None:
        """Hold what another state holds, and own its room where that one did; nothing is copied."""
        for name in _TENSORS:
            setattr(self, name, getattr(other, name))
        self.steps, self.room = other.steps, other.room
        if other.room is not None and other.room.is_owned_by(other):
            other.room.give_to(self)

    def mark(self) -> Mark:
        """What `rewind_` goes back to. It holds no tokens: it costs nothing while the state grows."""
        rest = IncrementalState(
            phase_sum=self.phase_sum,
            last_input=self.last_input,
            last_emitted=self.last_emitted,
            count=self.count,
            origin=self.origin,
            last_place=self.last_place,
        )
        return Mark(self.length, rest, self.mask is not None)

    def rewind_(self, mark: Mark) -> None:
        """Forget the tokens that came after a mark of this state."""
        held, past, room, steps = mark.length, mark.rest, self.room, self.steps
        if self.value is not None and self.send is not None and held:
            past = replace(past, send=self.send[:, :, :held], value=self.value[:, :, :held])
        if self.mask is not None and mark.has_mask:
            past = replace(past, mask=self.mask[:, :held])
        self.become_(past)
        self.steps = None if steps is None else [step for step in steps if step.mark.length < held]
        if room is not None and room.is_owned_by(self) and held:
            room.cut(held)
            self.room = room

    def select_(self, index: Tensor) -> None:
        """Keep the sequences that index (int64) names, in its order: beams, or a filtered batch.

        Tokens that are there now cannot be taken back afterwards (`crop_`).
        """
        self.steps = None if self.steps is None else []
        room = self.room
        in_room = room is not None and room.is_owned_by(self) and not torch.is_grad_enabled()
        for name in _TENSORS if not in_room else _TENSORS[2:]:
            held = getattr(self, name)
            if held is not None:
                setattr(self, name, held.index_select(0, index.to(held.device)))
        self.room = None
        if room is not None and in_room:  # once: the next token would copy what is selected into a room again
            self.room = room.selected(index.to(room.send.device))
            self.room.give_to(self)
            self.send, self.value = self.room.held()

    def repeat_(self, repeats: int) -> None:
        """Repeat each sequence of the batch, one after the other; as in `select_`, there is no way back."""
        self.steps = None if self.steps is None else []
        self.room = None
        for name in _TENSORS:
            held = getattr(self, name)
            if held is not None:
                setattr(self, name, held.repeat_interleave(repeats, dim=0))


class Mark(NamedTuple):
    """A moment in a state's life."""

    length: int
    rest: IncrementalState  # without what grows with the tokens
    has_mask: bool


class Step(NamedTuple):
    """The tokens of one call, and what it takes to go back to a moment between them."""

    mark: Mark  # before them
    real: Tensor | None  # (B, N) bool, False = padding; None if there is none
    emitted: Tensor  # (B, H, N, m), before any delay
    before: Tensor | None  # (B, H, m), what stood before the first
    given: Tensor | None  # (B, N, E), the hidden states; None without a token shift
    sums: Tensor | None  # (B, H, N, p, 2), the phases' sums up to each; None without an order parameter
    origin: Tensor | None = None  # (B, A), as in `IncrementalState`
    place: Tensor | None = None  # (B or 1, N, A), where they stand, counted from there

    def until(self, length: int) -> Mark:
        """The moment at which the state held so many tokens, all before these and some of them."""
        rest, n = self.mark.rest, length - self.mark.length
        if n == 0:
            return self.mark
        real = None if self.real is None else self.real[:, :n]
        count = self.emitted.new_zeros(self.emitted.shape[0], 1, dtype=torch.int64)
        if rest.count is not None:
            count = rest.count
        given = None if self.given is None else last_real_input(self.given[:, :n], real, rest.last_input)
        past = IncrementalState(
            phase_sum=None if self.sums is None else self.sums[:, :, n - 1],
            last_input=given,
            last_emitted=last_real(self.emitted[:, :, :n], real, self.before),
            count=count + (n if real is None else real.sum(-1, keepdim=True)),
        )
        if self.origin is not None and self.place is not None:
            past.origin, past.last_place = self.origin, self.place[:, n - 1].clone()
        return Mark(length, past, self.mark.has_mask or real is not None)


_TENSORS = (
    "send", "value", "mask", "phase_sum", "last_input", "last_emitted", "count", "origin", "last_place",
)  # fmt: skip

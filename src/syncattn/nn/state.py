"""What incremental decoding remembers of the tokens seen so far."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from syncattn.nn.groups import BLOCK, Group, Windows, may_look, pick, starts_of
from syncattn.nn.room import Room
from syncattn.nn.tokens import last_real, last_real_input

_RECORDED = 1024  # tokens that can be taken back at least, of those that came since recording began


@dataclass(eq=False)
class IncrementalState:
    """The past of one attention layer, grown in place by each call that is given it and succeeds.

    Without gradients, from the second call on, its tokens stand in memory with room for more, into which
    later ones are written; `send` and `value` are views of that. Elsewhere, as where gradients are recorded
    or something is compiled, each call concatenates. A copy (copy.copy, copy.deepcopy, pickle) has memory of
    its own.

    Per token and head it holds freq_dim + head_dim numbers (softmax attention: 2 x head_dim); besides, per
    head, the order parameter's 2 x phase_dim prefix sums and the last token's frequency (for delayed heads).

    Given `windows`, each head is read from where its window begins, and what lies before is forgotten.

    Attributes:
        groups: what heads hold of the tokens: one group while all hold and read the same.
        mask: (B, M) bool, True = a real token, of all tokens ever; None while no padding was ever seen.
        phase_sum: the sums of (cos, sin) of the real tokens' phases (B, H, p, 2), float32 at least.
        last_input: the last real token's hidden state (B, E); None without a token shift.
        last_emitted: the frequency that the last real token emitted (B, H, m), before any delay.
        count: how many real tokens each sequence has had (B, 1), int64.
        origin: what given positions are counted from (B, A); None while tokens are numbered.
        last_place: where the last real token stands, counted from there (B, A).
        steps: what it takes to forget the last tokens (`crop_`); None: that is not recorded.
        windows: how far heads reach, by groups; None: nothing is known, everything is read.
        starts: from which token on each of them is read; empty: from the first.
        looked: for how many tokens that was found.
        decoding: what a layer made once for all tokens that come singly (decoding.py).
    """

    groups: tuple[Group, ...] = ()
    mask: Tensor | None = None
    phase_sum: Tensor | None = None
    last_input: Tensor | None = None
    last_emitted: Tensor | None = None
    count: Tensor | None = None
    origin: Tensor | None = None
    last_place: Tensor | None = None
    steps: list[Step] | None = None
    windows: Windows | None = None
    starts: tuple[int, ...] = ()
    looked: int = 0
    decoding: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"decoding": None, "groups": tuple(copy.copy(group) for group in self.groups)}

    @property
    def send(self) -> Tensor | None:
        """What the past tokens emit, as it enters the operator (B, H, M, m); None where there are none, or
        heads hold different ones (`groups`)."""
        return self.groups[0].send if len(self.groups) == 1 else None

    @property
    def value(self) -> Tensor | None:
        """Their values (B, H, M, d); None as in `send`."""
        return self.groups[0].value if len(self.groups) == 1 else None

    @property
    def room(self) -> Room | None:
        """The memory that both are views of; None: they are tensors of their own."""
        return self.groups[0].room if len(self.groups) == 1 else None

    def hold_(self, send: Tensor, value: Tensor) -> None:
        """Hold these tokens (B, H, M, m) and (B, H, M, d) of all heads, in place of those that are held."""
        self.groups, self.starts, self.looked = (Group(None, 0, send, value),), (), 0

    @property
    def length(self) -> int:
        """How many tokens there were, padding and those that were forgotten included."""
        return self.groups[0].length if self.groups else 0

    @property
    def sizes(self) -> tuple[int, int, int, int] | None:
        """(B, H, m, d) of what is held; None while that is nothing."""
        if not self.groups:
            return None
        heads = sum(group.value.shape[1] for group in self.groups)
        first = self.groups[0]
        return first.value.shape[0], heads, first.send.shape[3], first.value.shape[3]

    @property
    def forgets(self) -> bool:
        """Whether tokens were forgotten that lie behind their heads' windows."""
        return any(group.first for group in self.groups)

    @property
    def reads_all(self) -> bool:
        """Whether all heads are read together, from the first token on: `held` is what the operator takes."""
        return len(self.groups) == 1 and not any(self.starts)

    @property
    def held(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """(send, value, mask) of a state that holds tokens, of all heads the same."""
        (group,) = self.groups
        return group.send, group.value, self.mask

    def seen(self, queries: int, self_coupling: bool) -> Tensor | None:
        """A mask (B, 1, N, M) of what the newest tokens may attend to among `held`, where that holds places
        that are not filled (fixed.py); None: those that are real, causally."""
        return None

    @property
    def checked(self) -> int:
        """How many of the first senders are known to be finite: they were looked at when they came."""
        return self.groups[0].checked if len(self.groups) == 1 else 0

    @property
    def nbytes(self) -> int:
        """What is held, in bytes, without the room for more."""
        held = (getattr(self, name) for name in _TENSORS)
        besides = sum(x.numel() * x.element_size() for x in held if x is not None)
        return besides + sum(group.nbytes for group in self.groups)

    @property
    def spare_nbytes(self) -> int:
        """The memory kept for tokens to come, in bytes, and that of some that were forgotten."""
        return sum(group.spare_nbytes for group in self.groups)

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
        groups = tuple(each.extended(pick(send, each.heads), pick(value, each.heads)) for each in self.groups)
        return replace(
            self,
            groups=groups or (Group(None, 0, send, value),),
            mask=mask,
            last_emitted=last_emitted,
            count=count + (new if real is None else real.sum(-1, keepdim=True)),
            steps=None,
        )

    def look_ahead_(self) -> None:
        """Find from where on the tokens to come will read the past; forget what lies before.

        Where it is recorded how to go back, what the earliest of these moments would read is kept.
        """
        if self.windows is None or self.origin is not None or not self.groups:
            return
        if not may_look(self.groups[0].send):
            return
        at = self.length // BLOCK * BLOCK
        if at > self.looked:
            found = starts_of(self.windows, self.mask, at)
            self.looked = at
            self.starts = tuple(map(max, found, self.starts)) if self.starts else found
        if not any(self.starts):
            return
        first = (0,) * len(self.starts)
        if self.windows.evict:
            first = self.starts
            if self.steps:  # starts only grow
                first = self.steps[0].mark.rest.starts or (0,) * len(first)
        if len(self.groups) < len(self.starts):
            (whole,) = self.groups
            self.groups = tuple(map(whole.of, self.windows.heads, self.windows.heads, first))
        self.groups = tuple(
            group if group.first >= start else group.without(start)
            for group, start in zip(self.groups, first, strict=True)
        )

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
            self.rewind_(Mark(0, IncrementalState(windows=self.windows), False))

    def was_checked_(self) -> None:
        """The operator has looked at all senders that are held: it need not do so again."""
        for group in self.groups:
            if group.room is not None:
                group.room.checked = group.skip + group.held

    def become_(self, other: IncrementalState) -> None:
        """Hold what another state holds; nothing is copied."""
        for name, held in vars(other).items():
            setattr(self, name, held)

    def mark(self) -> Mark:
        """What `rewind_` goes back to. It holds no tokens: it costs nothing while the state grows."""
        return Mark(self.length, replace(self, groups=(), mask=None, steps=None), self.mask is not None)

    def rewind_(self, mark: Mark) -> None:
        """Forget the tokens that came after a mark of this state."""
        held, steps = mark.length, self.steps
        groups = tuple(group.cut(held) for group in self.groups) if held else ()
        past = replace(mark.rest, groups=groups, windows=self.windows)
        if self.mask is not None and mark.has_mask:
            past = replace(past, mask=self.mask[:, :held])
        self.become_(past)
        self.steps = None if steps is None else [step for step in steps if step.mark.length < held]

    def select_(self, index: Tensor) -> None:
        """Keep the sequences that index (int64) names, in its order: beams, or a filtered batch.

        Tokens that are there now cannot be taken back afterwards (`crop_`).
        """
        self.steps = None if self.steps is None else []
        self.groups = tuple(group.selected(index) for group in self.groups)
        for name in _TENSORS:
            held = getattr(self, name)
            if held is not None:
                setattr(self, name, held.index_select(0, index.to(held.device)))

    def repeat_(self, repeats: int) -> None:
        """Repeat each sequence of the batch, one after the other; as in `select_`, there is no way back."""
        self.steps = None if self.steps is None else []
        self.groups = tuple(group.repeated(repeats) for group in self.groups)
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
        past = replace(
            rest,
            phase_sum=None if self.sums is None else self.sums[:, :, n - 1],
            last_input=given,
            last_emitted=last_real(self.emitted[:, :, :n], real, self.before),
            count=count + (n if real is None else real.sum(-1, keepdim=True)),
        )
        if self.origin is not None and self.place is not None:
            past.origin, past.last_place = self.origin, self.place[:, n - 1].clone()
        return Mark(length, past, self.mark.has_mask or real is not None)


# of all heads
_TENSORS = ("mask", "phase_sum", "last_input", "last_emitted", "count", "origin", "last_place")

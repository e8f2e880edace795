"""What incremental decoding remembers of the tokens seen so far."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(eq=False)
class IncrementalState:
    """The past of one attention layer, grown in place by each call that is given it and succeeds.

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
        """The memory held, in bytes."""
        held = (getattr(self, name) for name in _TENSORS)
        return sum(x.numel() * x.element_size() for x in held if x is not None)

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
        return IncrementalState(
            send=send if self.send is None else torch.cat((self.send, send), dim=-2),
            value=value if self.value is None else torch.cat((self.value, value), dim=-2),
            mask=mask,
            phase_sum=self.phase_sum,
            last_input=self.last_input,
            last_emitted=last_emitted,
            origin=self.origin,
            last_place=self.last_place,
            count=count + (new if real is None else real.sum(-1, keepdim=True)),
        )

    def become_(self, other: IncrementalState) -> None:
        """Hold what another state holds; nothing is copied."""
        for name in _TENSORS:
            setattr(self, name, getattr(other, name))

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
        held, past = mark.length, mark.rest
        if self.value is not None and self.send is not None and held:
            past = replace(past, send=self.send[:, :, :held], value=self.value[:, :, :held])
        if self.mask is not None and mark.has_mask:
            past = replace(past, mask=self.mask[:, :held])
        self.become_(past)

    def select_(self, index: Tensor) -> None:
        """Keep the sequences that index (int64) names, in its order: beams, or a filtered batch."""
        for name in _TENSORS:
            held = getattr(self, name)
            if held is not None:
                setattr(self, name, held.index_select(0, index.to(held.device)))

    def repeat_(self, repeats: int) -> None:
        """Repeat each sequence of the batch, one after the other."""
        for name in _TENSORS:
            held = getattr(self, name)
            if held is not None:
                setattr(self, name, held.repeat_interleave(repeats, dim=0))


class Mark(NamedTuple):
    """A moment in a state's life."""

    length: int
    rest: IncrementalState  # without what grows with the tokens
    has_mask: bool


_TENSORS = tuple(field.name for field in fields(IncrementalState))

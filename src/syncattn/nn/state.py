"""What incremental decoding remembers of the tokens seen so far."""

from __future__ import annotations

import torch
from torch import Tensor


class IncrementalState:
    """The past of one attention layer, grown in place by each call that is given it.

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
    """

    def __init__(self) -> None:
        self.send: Tensor | None = None
        self.value: Tensor | None = None
        self.mask: Tensor | None = None
        self.phase_sum: Tensor | None = None
        self.last_input: Tensor | None = None
        self.last_emitted: Tensor | None = None
        self.count: Tensor | None = None

    _TENSORS = ("send", "value", "mask", "phase_sum", "last_input", "last_emitted", "count")

    @property
    def length(self) -> int:
        """How many tokens are held, padding included."""
        return 0 if self.value is None else self.value.shape[-2]

    @property
    def nbytes(self) -> int:
        """The memory held, in bytes."""
        held = (getattr(self, name) for name in self._TENSORS)
        return sum(x.numel() * x.element_size() for x in held if x is not None)

    def append(
        self, send: Tensor, value: Tensor, real: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Add tokens: send (B, H, N, m), value (B, H, N, d), real (B, N) bool or None; returns all held."""
        past = self.length
        batch, new = value.shape[0], value.shape[-2]
        if real is not None or self.mask is not None:
            device = value.device
            before = (
                self.mask
                if self.mask is not None
                else torch.ones(batch, past, dtype=torch.bool, device=device)
            )
            after = real if real is not None else torch.ones(batch, new, dtype=torch.bool, device=device)
            self.mask = torch.cat((before, after), dim=-1)
        self.send = send if self.send is None else torch.cat((self.send, send), dim=-2)
        self.value = value if self.value is None else torch.cat((self.value, value), dim=-2)
        return self.send, self.value, self.mask

    def select_(self, index: Tensor) -> None:
        """Keep the sequences that index (int64) names, in its order: beams, or a filtered batch."""
        for name in self._TENSORS:
            held = getattr(self, name)
            if held is not None:
                setattr(self, name, held.index_select(0, index.to(held.device)))

    def repeat_(self, repeats: int) -> None:
        """Repeat each sequence of the batch, one after the other."""
        for name in self._TENSORS:
            held = getattr(self, name)
            if held is not None:
                setattr(self, name, held.repeat_interleave(repeats, dim=0))

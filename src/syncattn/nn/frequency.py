"""From hidden states to natural frequencies: the content's part, the position's part, delay and detuning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from syncattn.checks import check_choice, check_count, check_flag, check_range
from syncattn.nn.options import check_delay
from syncattn.nn.tokens import delayed_heads, shift_by_one

POSITIONS = ("drift", "own_drift", "rotary", "none")


def check_frequency(freq_dim: int, position: str, window_range: Sequence[float], delay: float) -> None:
    """Make sure that the options of a `Frequency` are in range.

    Raises:
        TypeError, ValueError: they are not.
    """
    check_count("freq_dim", freq_dim)
    check_choice("position", position, POSITIONS)
    if position == "own_drift" and freq_dim < 2:
        raise ValueError(f"position='own_drift' needs freq_dim of at least 2, got {freq_dim}")
    if position == "rotary" and freq_dim % 2:
        raise ValueError(f"position='rotary' needs an even freq_dim, got {freq_dim}")
    check_range("window_range", window_range, math.inf)
    check_delay(delay)


class Frequencies(NamedTuple):
    """What a layer makes its receive and send frequencies of."""

    receive: Tensor  # (B, H, N, m)
    emitted: Tensor  # (B, H, M, m), what senders emit; the same tensor as `receive` where it can be
    nobody: Tensor | None  # (B or 1, H, M or 1, m), what a token without content emits at the place before
    delayed: Tensor  # (H,) bool, the heads that couple to what the token before emitted

    def before(self, last_emitted: Tensor | None) -> Tensor | None:
        """What stands before the first of these tokens (B, H, m): what the last real one before them emitted,
        at a sequence's start a token without content; None without a delay and a past."""
        if last_emitted is not None or self.nobody is None:
            return last_emitted
        return self.nobody[:, :, 0].expand(self.emitted.shape[0], -1, -1)

    def send(self, before: Tensor | None, real: Tensor | None, follows: Tensor | None) -> Tensor:
        """What couples to the receivers (B, H, M, m): in delayed heads, what the real token before emitted.

        Args:
            before: what stands before these tokens, from `before`.
            real: (B, M) bool, False = padding, which emits nothing; None if there is none.
            follows: (B or 1, M) bool, False where a sender counts as the first of its sequence; None: nobody
                else than the first.
        """
        if before is None:
            return self.emitted
        previous = shift_by_one(self.emitted, before.to(self.emitted.dtype), real)
        if follows is not None and self.nobody is not None:
            previous = torch.where(follows[:, None, :, None], previous, self.nobody)
        return torch.where(self.delayed[:, None, None], previous, self.emitted)


class Frequency(nn.Module):
    """The natural frequencies of every head, w_i = W x_i + (position's part).

    Args:
        embed_dim: E, size of the hidden states.
        num_heads: H.
        freq_dim: m, coordinates of a frequency.
        directed: receive and send frequencies have projections of their own; False is the symmetric form.
        position: "drift": slope_h i u_h is added, u_h a learned direction among the content's coordinates, so
            that content can pull a token to other positions. "own_drift": the last coordinate is slope_h i
            alone, so that in the absolute frame a token locks at most floor(rho / |slope_h|) tokens away.
            "rotary": pairs of coordinates are turned by angles proportional to i. "none": without delay,
            the layer does not see order.
        window_range: (narrowest, widest), in tokens: slopes start at sqrt(2 m) / window with windows in
            geometric progression over the heads. At a distance of one window, position detunes as much
            as two unrelated tokens' contents do.
        delay: fraction of heads that couple to the frequency which the token before emitted but read this
            token's value: "what followed my like". Before the first token stands one without content.
        detuning: a learned offset per head on the receive frequency; with drift it moves the window.
        bias: whether projections have a bias (the published form has; a symmetric D does not see it).

    Positions and drift are computed in float32 at least, whatever autocast says: at position 4,096 a bfloat16
    drift would be wrong by whole windows.
    """

    delayed: Tensor

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        freq_dim: int,
        *,
        directed: bool = False,
        position: str = "drift",
        window_range: tuple[float, float] = (4.0, 64.0),
        delay: float = 0.5,
        detuning: bool = False,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_frequency(freq_dim, position, window_range, delay)
        for name, flag in (("directed", directed), ("detuning", detuning), ("bias", bias)):
            check_flag(name, flag)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.embed_dim, self.num_heads, self.freq_dim = embed_dim, num_heads, freq_dim
        self.position, self.window_range, self.delay = position, tuple(window_range), delay
        self.content_dim = freq_dim - 1 if position == "own_drift" else freq_dim
        self.receive_proj = nn.Linear(embed_dim, num_heads * self.content_dim, bias, **factory)
        self.send_proj = (
            nn.Linear(embed_dim, num_heads * self.content_dim, bias, **factory) if directed else None
        )
        drifts = position in ("drift", "own_drift")
        self.log_slope = nn.Parameter(torch.empty(num_heads, **factory)) if drifts else None
        self.direction = (
            nn.Parameter(torch.empty(num_heads, freq_dim, **factory)) if position == "drift" else None
        )
        self.detuning = nn.Parameter(torch.empty(num_heads, freq_dim, **factory)) if detuning else None
        self.register_buffer("delayed", delayed_heads(num_heads, delay, device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Contents ~ N(0, 1) per coordinate on layer-normalised input; windows log-spaced over the heads."""
        # of a module made on the meta device and emptied since, this holds anything
        self.delayed.copy_(delayed_heads(self.num_heads, self.delay, self.delayed.device))
        for projection in (self.receive_proj, self.send_proj):
            if projection is not None:
                nn.init.normal_(projection.weight, std=self.embed_dim**-0.5)
                if projection.bias is not None:
                    nn.init.zeros_(projection.bias)
        if self.log_slope is not None:
            low, high = (math.log(w) for w in self.window_range)
            # one head has the middle; made on the CPU in float32, the same numbers wherever the module is
            ends = (low, high) if self.num_heads > 1 else ((low + high) / 2,) * 2
            windows = torch.linspace(*ends, self.num_heads, dtype=torch.float32, device="cpu")
            with torch.no_grad():
                self.log_slope.copy_(0.5 * math.log(2 * self.freq_dim) - windows)
        if self.direction is not None:
            nn.init.normal_(self.direction)
            with torch.no_grad():
                self.direction.div_(self.direction.norm(dim=-1, keepdim=True))
        if self.detuning is not None:
            nn.init.normal_(self.detuning, std=0.5)

    @property
    def symmetric(self) -> bool:
        """Whether what a token emits is what it listens with (before any delay)."""
        return self.send_proj is None and self.detuning is None

    def forward(
        self, query: Tensor | None, key: Tensor, own: Tensor, position: Tensor, first: Tensor | None
    ) -> Frequencies:
        """Everything that depends on this module's tensors, in one call: what loads them for a call, as
        offloading does, loads them here.

        Args:
            query: receivers (B, N, E); None: they are the senders.
            key: senders (B, M, E).
            own: the receivers' positions (B or 1, N).
            position: the senders' (B or 1, M).
            first: at which places a sender may have nobody before it, (B or 1, M or 1); None: nowhere.
        """
        emitted = self.emit(key, position)
        if query is None and self.symmetric:
            receive = emitted
        else:
            receive = self.receive(key if query is None else query, own)
        nobody = None if first is None else self._nobody(key, first)
        return Frequencies(receive, emitted, nobody, self.delayed)

    def receive(self, x: Tensor, position: Tensor) -> Tensor:
        """What tokens listen with: x (B, N, E), position (B or 1, N) -> (B, H, N, m), float32 at least."""
        frequency = self._locate(self._content(self.receive_proj, x), position)
        if self.detuning is not None:
            frequency = frequency + self.detuning[:, None].to(frequency.dtype)
        return frequency

    def emit(self, x: Tensor, position: Tensor) -> Tensor:
        """What tokens emit, before any delay: as `receive`."""
        return self._locate(self._content(self.send_proj or self.receive_proj, x), position)

    def _nobody(self, like: Tensor, position: Tensor) -> Tensor:
        """What a token without content emits at the place before each position (B or 1, M): (.., H, M, m)."""
        content = self._content(self.send_proj or self.receive_proj, like.new_zeros(1, 1, self.embed_dim))
        return self._locate(content.expand(position.shape[0], -1, position.shape[1], -1), position - 1)

    def _content(self, projection: nn.Linear, x: Tensor) -> Tensor:
        content = projection(x).unflatten(-1, (self.num_heads, self.content_dim)).transpose(1, 2)
        return content.to(torch.promote_types(content.dtype, torch.float32))

    def _locate(self, content: Tensor, position: Tensor) -> Tensor:
        """Add the position's part to contents (B, H, N, m)."""
        if self.position == "none":
            return content
        at = position[:, None, :, None].to(content.dtype)  # (B or 1, 1, N, 1)
        if self.position == "rotary":
            return rotate(content, position)
        assert self.log_slope is not None
        drift = at * self.log_slope.to(content.dtype).exp()[:, None, None]
        if self.direction is None:
            return torch.cat((content, drift.expand(*content.shape[:-1], 1)), dim=-1)
        unit = nn.functional.normalize(self.direction.to(content.dtype), dim=-1)
        return content + drift * unit[:, None]


def rotate(x: Tensor, position: Tensor, base: float = 10_000.0) -> Tensor:
    """Rotary position (Su et al. 2021): of x (B, H, N, 2k), coordinates c and c + k turn by i base^(-c/k).

    Squared distances and products of rotated vectors see positions only through their difference.
    """
    half = x.shape[-1] // 2
    rates = base ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angle = position[:, None, :, None].to(torch.float32) * rates  # (B or 1, 1, N, k)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)

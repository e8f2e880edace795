"""From hidden states to natural frequencies: the content's part, the position's part, delay and detuning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from syncattn.checks import check_flag
from syncattn.nn.mix import (
    DRIFTS,
    HELICES,
    Run,
    check_frequency,
    directed_heads,
    forms_of_heads,
    frozen_scales,
    kept_coordinates,
    runs_of,
    scales_of_heads,
)
from syncattn.nn.tokens import delayed_heads, shift_by_one

_RADIUS = 1.5
"""Of bounded contents at the start, in their typical length: of Gaussian contents .003 are longer at 16
coordinates."""
_SHORTEST = 1e-12  # what a length is divided as, for contents that are 0


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
        directed: receive and send frequencies have projections of their own; False is the symmetric form. Or
            a list with one flag per head: a directed head has E m parameters more (and m with a bias), a
            symmetric one beside it has none and is what it is alone. At the start what a directed head emits
            is what it listens with.
        directed_rank: None, or the rank r of what a directed head asks beyond what it offers: it emits W x
            and listens with (W + U V) x, V (r, E) and U (m, r) learned, U = 0 at the start. r (E + m)
            parameters a head, in place of the second projection's.
        position: "drift": slope_h i u_h is added, u_h a learned direction among the content's coordinates, so
            that content can pull a token to other positions. "own_drift": the last coordinate is slope_h i
            alone, so that in the absolute frame a token locks at most floor(rho / |slope_h|) tokens away.
            "rotary": pairs of coordinates are turned by angles proportional to i. "helix": amplitude_h (cos
            (i / w), sin(i / w)), for each w of `helix_scales`, is added to two of the content's coordinates:
            bounded, so that near is preferred and far stays within reach of a token that is alike.
            "own_helix": those coordinates are the helix's alone. "screw", "own_screw": drift and helix, a
            window with circles in it. "none": without delay, the layer does not see order. Or a list with one
            form per head. All but "helix" and "screw" make D depend on differences of positions alone; a
            helix among contents is counted from each sequence's first token.
        window_range: (narrowest, widest), in tokens: slopes start at sqrt(2 m) / window with windows in
            geometric progression over the heads. At a distance of one window, position detunes as much
            as two unrelated tokens' contents do.
        windows: None, or each head's window at the start, in place of `window_range`'s; None for a head that
            does not drift.
        delay: fraction of heads that couple to the frequency which the token before emitted but read this
            token's value: "what followed my like"; or a list with one flag per head. Before the first token
            stands one without content.
        detuning: a learned offset per head on the receive frequency; with drift it moves the window.
        bias: whether projections have a bias (the published form has; a symmetric D does not see it).
        bounded_content: contents longer than a learned radius, one for each head (directed heads have another
            for what they emit), are shortened to it. Nearly none are at the start. What a head can reach is
            then proved from its radius and its slope, the tighter the wider E is.
        axes: A, how many coordinates a position has. Each axis has its slope and direction in each drifting
            head, and its own coordinates of "own_drift" and of a helix; "rotary" deals its pairs out to them.
        helix_scales: w, in tokens, or in the positions' unit. Or a list with one such list for each head, all
            as long as each other; None for a head without a helix. A helix starts at an amplitude at which
            two places far apart detune, on average, by a quarter of what two unrelated tokens' contents do.

    Positions are real numbers, (B or 1, N, A), or (B or 1, N) on one axis. Positions and drift are computed
    in float32 at least, whatever autocast says: at position 4,096 a bfloat16 drift would be wrong by whole
    windows.
    """

    delayed: Tensor

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        freq_dim: int,
        *,
        directed: bool | Sequence[bool] = False,
        directed_rank: int | None = None,
        position: str | Sequence[str] = "drift",
        window_range: tuple[float, float] = (4.0, 64.0),
        windows: Sequence[float | None] | None = None,
        delay: float | Sequence[bool] = 0.5,
        detuning: bool = False,
        bias: bool = False,
        bounded_content: bool = False,
        axes: int = 1,
        helix_scales: Sequence[float] | Sequence[Sequence[float] | None] = (4.0, 16.0, 64.0),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        heads: dict[str, Any] = {"num_heads": num_heads, "directed": directed, "windows": windows}
        heads["directed_rank"] = directed_rank
        check_frequency(
            freq_dim, position, window_range, delay, axes=axes, helix_scales=helix_scales, **heads
        )
        for name, flag in (("detuning", detuning), ("bias", bias), ("bounded_content", bounded_content)):
            check_flag(name, flag)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.embed_dim, self.num_heads, self.freq_dim = embed_dim, num_heads, freq_dim
        self.position, self.window_range, self.delay = position, tuple(window_range), delay
        self.windows = None if windows is None else tuple(windows)
        self.axes, self.helix_scales = axes, frozen_scales(helix_scales)
        forms = forms_of_heads(position, num_heads)
        # Where all heads keep coordinates for position, contents have none there; in a mix they go unused.
        scales = scales_of_heads(helix_scales, forms)
        self._circles = max(len(of_head) for of_head in scales)
        kept = kept_coordinates(axes, self._circles)
        self.content_dim = freq_dim - (kept.get(forms[0], 0) if len(set(forms)) == 1 else 0)
        # what position needs of parameters, of those heads that have the form; (A, ...) with several axes
        self.directed = directed_heads(directed, num_heads)
        self._runs, counts = runs_of(forms, self.directed, scales)
        self.receive_proj = nn.Linear(embed_dim, num_heads * self.content_dim, bias, **factory)
        # of directed heads alone, in their order: what emits; or, with a rank, V and U of what asks
        self.directed_rank = directed_rank
        apart, asking = (counts.sent, 0) if directed_rank is None else (0, counts.sent)
        self.send_proj = nn.Linear(embed_dim, apart * self.content_dim, bias, **factory) if apart else None
        self.ask_proj, self.ask_mix = None, None
        if directed_rank is not None and asking:
            self.ask_proj = nn.Linear(embed_dim, asking * directed_rank, False, **factory)
            self.ask_mix = nn.Parameter(torch.empty(asking, directed_rank, self.content_dim, **factory))
        # the logarithms of the longest contents heard, and of those that projections of their own emit
        bounded = num_heads * bounded_content, apart * bounded_content
        self.log_radius, self.log_sent_radius = (
            nn.Parameter(torch.empty(of_heads, **factory)) if of_heads else None for of_heads in bounded
        )
        first = () if axes == 1 else (axes,)

        def of_axes(*sizes: int) -> nn.Parameter | None:
            return nn.Parameter(torch.empty(*first, *sizes, **factory)) if sizes[0] else None

        self.log_slope = of_axes(counts.slopes)
        self.direction = of_axes(counts.directions, freq_dim)
        self.log_amplitude = of_axes(counts.amplitudes)
        self.detuning = nn.Parameter(torch.empty(num_heads, freq_dim, **factory)) if detuning else None
        self.register_buffer("delayed", delayed_heads(num_heads, delay, device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Contents ~ N(0, 1) per coordinate on layer-normalised input; windows log-spaced over the heads;
        directed heads symmetric."""
        # of a module made on the meta device and emptied since, this holds anything
        self.delayed.copy_(delayed_heads(self.num_heads, self.delay, self.delayed.device))
        nn.init.normal_(self.receive_proj.weight, std=self.embed_dim**-0.5)
        if self.receive_proj.bias is not None:
            nn.init.zeros_(self.receive_proj.bias)
        if self.log_radius is not None:
            nn.init.constant_(self.log_radius, math.log(_RADIUS * self.content_dim**0.5))
        if self.ask_proj is not None and self.ask_mix is not None:
            nn.init.normal_(self.ask_proj.weight, std=self.embed_dim**-0.5)
            nn.init.zeros_(self.ask_mix)
        self.start_symmetric_()
        if self.log_slope is not None:
            windows = self._log_windows()
            drifting = [run.heads for run in self._runs if run.form in DRIFTS]
            windows = torch.cat([windows[heads] for heads in drifting])
            with torch.no_grad():
                self.log_slope.copy_(0.5 * math.log(2 * self.freq_dim) - windows)
        if self.log_amplitude is not None:
            nn.init.zeros_(self.log_amplitude)
        if self.direction is not None:
            nn.init.normal_(self.direction)
            with torch.no_grad():
                self.direction.div_(self.direction.norm(dim=-1, keepdim=True))
        if self.detuning is not None:
            nn.init.normal_(self.detuning, std=0.5)

    @torch.no_grad()
    def start_symmetric_(self) -> None:
        """Make directed heads with a second projection emit what they listen with.

        Like finds like then from the first step, and that a head asks for other than it offers is learned.
        From two random maps AdamW learns neither as soon.
        """
        pairs = [(self.log_radius, self.log_sent_radius)]
        if self.send_proj is not None:
            pairs += [(getattr(self.receive_proj, x), getattr(self.send_proj, x)) for x in ("weight", "bias")]
        for heard, sent in pairs:
            if heard is not None and sent is not None:
                of_heads = heard.unflatten(0, (self.num_heads, -1))
                own = torch.cat([of_heads[run.heads] for run in self._runs if run.sent is not None])
                sent.copy_(own.flatten(0, 1))

    def _log_windows(self) -> Tensor:
        """The logarithms of all heads' windows at the start, (H,), the same numbers wherever the module is;
        anything for a head that does not drift."""
        made: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
        if self.windows is not None:
            return torch.tensor([math.log(window or 1) for window in self.windows], **made)
        low, high = (math.log(w) for w in self.window_range)
        ends = (low, high) if self.num_heads > 1 else ((low + high) / 2,) * 2  # one head has the middle
        return torch.linspace(*ends, self.num_heads, **made)

    @property
    def is_mixed(self) -> bool:
        """Whether some heads have a second projection and others do not."""
        return any(self.directed) and not all(self.directed) and self.ask_proj is None

    @property
    def has_delay(self) -> bool:
        """Whether heads may be delayed."""
        return self.delay > 0 if isinstance(self.delay, (int, float)) else any(self.delay)

    @property
    def symmetric(self) -> bool:
        """Whether what a token emits is what it listens with (before any delay)."""
        return self.send_proj is None and self.ask_proj is None and self.detuning is None

    def forward(
        self, query: Tensor | None, key: Tensor, own: Tensor, position: Tensor, first: Tensor | None
    ) -> Frequencies:
        """Everything that depends on this module's tensors, in one call: what loads them for a call, as
        offloading does, loads them here.

        Args:
            query: receivers (B, N, E); None: they are the senders.
            key: senders (B, M, E).
            own: the receivers' positions (B or 1, N, A), or (B or 1, N).
            position: the senders'.
            first: at which places a sender may have nobody before it, of M or 1; None: nowhere.
        """
        if query is None and self.is_mixed:
            # What symmetric heads listen with is what they emit: it is made once.
            heard = self._locate(self._content(self.receive_proj, key), position)
            receive, emitted = self._detuned(heard), self._with_sent(heard, key, position)
        elif query is None and self.ask_proj is not None:
            # What heads ask is what they offer and more: the first projection's result is made once.
            offered = self._projected(self.receive_proj, key)
            heard = self._bounded(offered + self.asked(key), self.log_radius)
            receive = self._detuned(self._locate(heard, position))
            emitted = self._locate(self._bounded(offered, self.log_radius), position)
        else:
            emitted = self.emit(key, position)
            if query is None and self.symmetric:
                receive = emitted
            else:
                receive = self.receive(key if query is None else query, own)
        nobody = None if first is None else self._nobody(key, first)
        return Frequencies(receive, emitted, nobody, self.delayed)

    def receive(self, x: Tensor, position: Tensor) -> Tensor:
        """What tokens listen with: x (B, N, E), position (B or 1, N, A) -> (B, H, N, m), float32 at least."""
        content = self._projected(self.receive_proj, x)
        if self.ask_proj is not None:
            content = content + self.asked(x)
        return self._detuned(self._locate(self._bounded(content, self.log_radius), position))

    def emit(self, x: Tensor, position: Tensor) -> Tensor:
        """What tokens emit, before any delay: as `receive`."""
        return self._locate(self._sent_content(x), position)

    def _detuned(self, frequency: Tensor) -> Tensor:
        if self.detuning is None:
            return frequency
        return frequency + self.detuning[:, None].to(frequency.dtype)

    def _sent_content(self, x: Tensor) -> Tensor:
        """The contents that tokens emit: x (B, M, E) -> (B, H, M, c)."""
        if self.send_proj is None or not self.is_mixed:
            return self._content(self.send_proj or self.receive_proj, x)
        heard, sent = self._content(self.receive_proj, x), self._content(self.send_proj, x)
        return torch.cat(
            [heard[:, run.heads] if run.sent is None else sent[:, run.sent] for run in self._runs], dim=1
        )

    def _with_sent(self, heard: Tensor, x: Tensor, position: Tensor) -> Tensor:
        """What tokens x (B, M, E) emit (B, H, M, m), given what they would listen with, without detuning."""
        assert self.send_proj is not None
        sent, at = self._content(self.send_proj, x), _on_axes(position)
        return torch.cat(
            [
                heard[:, run.heads] if run.sent is None else self._add(sent[:, run.sent], at, run)
                for run in self._runs
            ],
            dim=1,
        )

    def _nobody(self, like: Tensor, position: Tensor) -> Tensor:
        """What a token without content emits at the place before each position, less 1 on every axis:
        (B or 1, M, A) -> (B or 1, H, M, m)."""
        content = self._sent_content(like.new_zeros(1, 1, self.embed_dim))
        return self._locate(content.expand(position.shape[0], -1, position.shape[1], -1), position - 1)

    def _content(self, projection: nn.Linear, x: Tensor) -> Tensor:
        log_radius = self.log_radius if projection is self.receive_proj else self.log_sent_radius
        return self._bounded(self._projected(projection, x), log_radius)

    def _projected(self, projection: nn.Linear, x: Tensor) -> Tensor:
        """Contents as long as they come: x (B, N, E) -> (B, h, N, c), float32 at least."""
        content = projection(x).unflatten(-1, (-1, self.content_dim)).transpose(1, 2)
        return content.to(torch.promote_types(content.dtype, torch.float32))

    def asked(self, x: Tensor) -> Tensor:
        """U V x of each head, what it listens with beside what it emits: x (B, N, E) -> (B, H, N, c), float32
        at least; 0 of symmetric heads. For layers with a rank."""
        assert self.ask_proj is not None and self.ask_mix is not None
        found = self.ask_proj(x).unflatten(-1, (len(self.ask_mix), -1)).transpose(1, 2)
        found = found.to(torch.promote_types(found.dtype, torch.float32))
        asked = found @ self.ask_mix.to(found.dtype)
        if all(self.directed):
            return asked
        nothing = asked.new_zeros(1).expand(*asked.shape[:1], self.num_heads, *asked.shape[2:])
        parts = [nothing[:, run.heads] if run.sent is None else asked[:, run.sent] for run in self._runs]
        return torch.cat(parts, dim=1)

    def _bounded(self, content: Tensor, log_radius: Tensor | None) -> Tensor:
        return content if log_radius is None else shortened(content, log_radius)

    def _locate(self, content: Tensor, position: Tensor) -> Tensor:
        """Add the position's part to contents (B, H, N, m)."""
        at = _on_axes(position)
        if len(self._runs) == 1:
            return self._add(content, at, self._runs[0])
        return torch.cat([self._add(content[:, run.heads], at, run) for run in self._runs], dim=1)

    def _add(self, content: Tensor, at: Tensor, run: Run) -> Tensor:
        """Add the position's part to contents (B, h, N, m) of the heads of one run."""
        if run.form == "none":
            return content
        if run.form == "rotary":
            return rotate(content, at)
        at = at[:, None].to(content.dtype)  # (B or 1, 1, N, A)
        if run.form in HELICES:
            content = self._with_helix(content, self._helix(at, run), run)
        if run.form in DRIFTS:
            content = self._with_drift(content, at, run)
        return content

    def _with_helix(self, content: Tensor, helix: Tensor, run: Run) -> Tensor:
        """Contents with the helix (B or 1, h, N, 2 L A) in their first coordinates."""
        drifts = self.axes if run.form == "own_screw" else 0  # which keeps coordinates for these, too
        rest = self.freq_dim - helix.shape[-1] - drifts
        if run.form in ("helix", "screw"):
            return content + nn.functional.pad(helix, (0, rest))
        content = content[..., : self.freq_dim - drifts][..., -rest:]  # all of it where all heads are alike
        return torch.cat((helix.expand(*content.shape[:-1], -1), content), dim=-1)

    def _with_drift(self, content: Tensor, at: Tensor, run: Run) -> Tensor:
        """Contents that drift: along a direction of theirs, or in the last coordinates, which are drift's."""
        slopes = self._slopes(content.dtype)[:, run.slopes]
        drifts = [at[..., a : a + 1] * slopes[a, :, None, None] for a in range(self.axes)]
        if run.form in ("own_drift", "own_screw"):
            content = content[..., : self.freq_dim - self.axes]
            return torch.cat((content, *(drift.expand(*content.shape[:-1], 1) for drift in drifts)), dim=-1)
        for drift, unit in zip(drifts, self._units(content.dtype)[:, run.directions]):
            content = content + drift * unit[:, None]
        return content

    def drifts(self) -> tuple[Tensor, Tensor]:
        """Of a form that drifts in the content's coordinates, on one axis: slopes (h, 1, 1) and directions
        (h, 1, m), float32 at least, by whose product with the position contents move."""
        assert self.log_slope is not None
        dtype = torch.promote_types(self.log_slope.dtype, torch.float32)
        return self._slopes(dtype)[0, :, None, None].detach(), self._units(dtype)[0, :, None].detach()

    def _slopes(self, dtype: torch.dtype) -> Tensor:
        """(A, h), of the heads that drift."""
        assert self.log_slope is not None
        return self.log_slope.to(dtype).exp().view(self.axes, -1)

    def _units(self, dtype: torch.dtype) -> Tensor:
        """(A, h, m), of those that drift in the content's coordinates."""
        assert self.direction is not None
        units = nn.functional.normalize(self.direction.to(dtype), dim=-1)
        return units.view(self.axes, -1, self.freq_dim)

    def _helix(self, at: Tensor, run: Run) -> Tensor:
        """The helix of at (B or 1, 1, N, A), (B or 1, h, N, 2 L A): per axis L cosines, then L sines."""
        assert self.log_amplitude is not None
        amplitudes = self.log_amplitude.to(at.dtype).exp().view(self.axes, -1)[:, run.amplitudes]
        # Of two places far apart a helix of radius sqrt(c / 2L) detunes by c on average, contents by 2 m.
        radius = (self.freq_dim / 2 / (2 * self._circles)) ** 0.5
        parts = []
        for a in range(self.axes):
            angles = torch.cat([at[..., a : a + 1] / scale for scale in run.scales], dim=-1)
            circles = torch.cat((angles.cos(), angles.sin()), dim=-1) * radius
            parts.append(circles * amplitudes[a, :, None, None])
        return torch.cat(parts, dim=-1)


def shortened(content: Tensor, log_radius: Tensor) -> Tensor:
    """Contents (B, H, N, c) no longer than their heads' radii, given as logarithms (H,)."""
    length = torch.linalg.vector_norm(content, dim=-1, keepdim=True).clamp(min=_SHORTEST)
    return content * (log_radius.to(content.dtype).exp()[:, None, None] / length).clamp(max=1)


def _on_axes(position: Tensor) -> Tensor:
    """Positions as (B or 1, N, A)."""
    return position[..., None] if position.ndim == 2 else position


def rotate(x: Tensor, position: Tensor, base: float = 10_000.0, rates: Tensor | None = None) -> Tensor:
    """Rotary position (Su et al. 2021): of x (B, H, N, 2k), coordinates c and c + k turn by i base^(-c/k), or
    by i times other `rates` (k,).

    Squared distances and products of rotated vectors see positions only through their difference. With
    positions (B or 1, N, A) on several axes, pair c turns by its own axis c mod A, at the rate of the first
    pair of those A.
    """
    half = x.shape[-1] // 2
    at = position[..., None] if position.ndim == 2 else position
    dtype = torch.promote_types(x.dtype, torch.float32)
    pair = torch.arange(half, device=x.device, dtype=torch.int64)
    axes = at.shape[-1]
    if rates is None:
        rates = base ** (-(pair - pair % axes).to(dtype) / half)
    turned = at if axes == 1 else at[..., pair % axes]  # (B or 1, N, 1 or k)
    angle = turned[:, None].to(dtype) * rates  # (B or 1, 1, N, k)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


def turn_values(value: Tensor, position: Tensor, base: float | Sequence[float | bool | None]) -> Tensor:
    """Values (B, H, N, 2k) turned as `rotate` does, in float32 at least, in their own dtype again.

    Args:
        base: of all heads, or a list with one for each: None or False where values stay as they are.
    """
    if isinstance(base, (int, float)):
        wide = torch.promote_types(value.dtype, torch.float32)
        return rotate(value.to(wide), position, base).to(value.dtype)
    parts, start = [], 0
    for own, heads in groupby(base):  # heads side by side that have one base are turned together
        part = value[:, start : start + len(list(heads))]
        parts.append(part if not own else turn_values(part, position, own))
        start += part.shape[1]
    return torch.cat(parts, dim=1)

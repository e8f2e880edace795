"""How far a head can reach, proved from its weights: the distance beyond which no sender can lock.

With a drift, a pair t = slope (x_i - x_j) apart along the unit vector u detunes by D = |c_i - s_j + t u|^2,
where the contents c and s come from normalised inputs and are bounded: their difference reaches at most H
against u, and is no longer than R. So D >= (t - H)^2. In the absolute frame a pair locks only if
D <= rho^2, hence t <= H + rho. In the nearest frame D is counted from the nearest allowed sender's, which is
(R + slope g)^2 at most, g being the distance of the token before: t <= H + sqrt(rho^2 + (R + slope g)^2).
Contents that are shortened to a radius r of their head have H, R <= 2 r, whatever the weights are.
docs/generation.md has the argument whole.
"""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from syncattn import locking
from syncattn.nn.frequency import Frequency

# Contents may be off by this share of what is summed up for them: inputs, weights, the token shift's sum and
# the result, rounded to bfloat16 (2^-9) each, as autocast may have it, and a reduction of parts.
_ROUNDED = 2.0**-6
_SLACK = 1 + 2.0**-8  # of the distance itself: D and rho^2 as backends round them
PLACE_ROUNDED = 2.0**-20  # of a position: drifts are float32, so far out they shift by this share


class _Contents(NamedTuple):
    """Where each head's contents lie: within `radius` of a centre in every direction, along u within
    `along`."""

    centre: Tensor  # (H, m)
    radius: Tensor  # (H,)
    along: Tensor  # (H,)


def head_windows(attention: Any, norm: nn.Module | None) -> Tensor:
    """For each head of a layer the distance, in positions, beyond which no sender can lock: (H,) float64.

    It holds for causal self-attention over tokens one position apart, whatever they are; infinite where
    nothing is known: heads whose position is not a drift alone, positions on several axes, or modules that
    are not plainly those that this file knows (replaced, hooked, sharded, not on this machine).

    Args:
        attention: a `SelectiveSynchronizationAttention`.
        norm: the LayerNorm whose output, and nothing else, the layer is given; None: its inputs have no
            bound.
    """
    heads = attention.num_heads
    unknown = torch.full((heads,), math.inf, dtype=torch.float64, device="cpu")
    frequency = getattr(attention, "frequency", None)
    if type(frequency) is not Frequency or type(norm) is not nn.LayerNorm or frequency.axes > 1:
        return unknown
    linear = [x for x in (frequency.receive_proj, frequency.send_proj, frequency.ask_proj) if x is not None]
    if any(type(projection) is not nn.Linear for projection in linear):
        return unknown
    if not all(_is_plain(module) for module in (attention, norm, frequency, *linear)):
        return unknown
    with torch.no_grad():
        return _Layer(attention, norm).windows()


def _is_plain(module: nn.Module) -> bool:
    """Whether a module does what its class says, with numbers that can be read."""
    hooked = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    tensors = (*module.parameters(), *module.buffers())
    plain = all(type(x) in (Tensor, nn.Parameter) and not x.is_meta for x in tensors)
    return plain and not hooked


class _Layer:
    """What bounds a layer's frequencies, of all heads, float64 on the CPU."""

    def __init__(self, attention: Any, norm: nn.LayerNorm) -> None:
        self.attention, size = attention, attention.embed_dim
        made: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
        exact = copy.deepcopy(attention.frequency).to(**made)
        # (H,) the longest contents that receivers and senders may have; None: as long as they come
        self.radii = _radii(exact)
        exact.log_radius = exact.log_sent_radius = None
        # Unbounded, a frequency is an affine map of the input, and what position adds: asked for columns.
        columns = torch.cat((torch.zeros(1, size, **made), torch.eye(size, **made)))
        at_0 = torch.zeros(1, 1 + size, dtype=torch.int64, device="cpu")
        made_of = (exact.receive,) if exact.symmetric else (exact.receive, exact.emit)
        sides = [make(columns[None], at_0)[0] for make in made_of]  # (H, 1 + E, m), of symmetric heads one
        self.maps = [(x[:, 1:] - x[:, :1]).mT for x in sides]  # (H, m, E) each
        self.offsets = [x[:, 0] for x in sides]  # (H, m); a detuning is the receivers'
        detuning = torch.zeros_like(self.offsets[0]) if exact.detuning is None else exact.detuning
        self.detunings = [detuning, torch.zeros_like(detuning)][: len(sides)]
        places = torch.tensor([[0, 1, 2, 1000]], dtype=torch.int64, device="cpu")
        moved = exact.emit(torch.zeros(1, 4, size, **made), places)[0]
        moved = moved - moved[:, :1]  # (H, 4, m)
        self.drift = moved[:, 1]
        straight = (moved - places[0, :, None] * self.drift[:, None]).norm(dim=-1).amax(-1)
        self.drifts = straight <= 1e-9 * moved.norm(dim=-1).amax(-1)
        given = dict(norm.named_parameters())  # a LayerNorm's own, as `head_windows` made sure
        self.scales = _exact(given.get("weight", torch.ones_like(columns[0])))
        self.origin = _exact(given.get("bias", torch.zeros_like(columns[0])))
        # of each of the tokens before, nearest first, its share in what frequencies are made of
        self.shares = columns[:0] if attention.shift is None else _exact(attention.shift)[0].view(-1, size)

    def windows(self) -> Tensor:
        """Of all heads, (H,); infinite where there is none."""
        attention, slope = self.attention, self.drift.norm(dim=-1)
        unit, late = self.drift / slope[:, None], _exact(attention.frequency.delayed)
        before = range(len(self.shares) + 1)
        sides = [[self._contents(side, unit, n) for n in before] for side in range(len(self.maps))]
        # what can reach back is never a text's first token; a delayed head's first sender has no content
        received = sides[0][1:] if len(self.shares) else sides[0]
        sent = [*sides[-1], self._contents(len(sides) - 1, unit, None)]
        pairs = [(a, b, a.centre - b.centre) for a in received for b in sent]
        reach = _largest([a.along + b.along - (apart * unit).sum(-1) for a, b, apart in pairs])  # H
        longest = _largest([a.radius + b.radius + apart.norm(dim=-1) for a, b, apart in pairs])  # R
        squared = _largest_radii(attention) ** 2
        if attention.frame == "nearest":  # senders' frequencies of delayed heads stood one position back
            squared = squared + (longest + slope * (late + (not attention.self_coupling))) ** 2
        windows = (reach + squared.sqrt()) * _SLACK / slope - late
        known = self.drifts & (slope > 0) & slope.isfinite() & windows.isfinite()
        return torch.where(known, windows.clamp(min=1), math.inf)

    def _contents(self, side: int, unit: Tensor, before: int | None) -> _Contents:
        """What receivers (side 0) or senders (the last) may be, of tokens that so many others precede, as far
        as they are mixed in; None: of nobody, a token without content. Infinite where weights have no number.

        A LayerNorm's output is weight * z + bias with |z| <= sqrt(E) and a sum of 0, so what a map A makes of
        it is within sqrt(E) |A weight| of A bias; each token before adds such a one.
        """
        matrix, offset = self.maps[side], self.offsets[side]
        if before is None:
            rounded = _ROUNDED * offset.norm(dim=-1)
            return self._bounded(side, unit, _Contents(offset, rounded, rounded))
        shares = torch.cat((torch.ones_like(self.scales)[None], self.shares[:before]))
        maps, root = matrix[:, None] * (shares * self.scales)[:, None], math.sqrt(matrix.shape[-1])
        free = maps - maps.mean(-1, keepdim=True)  # (H, n, m, E); z sums to 0
        squares = free @ free.mT
        sound = squares.isfinite().flatten(1).all(-1)
        squares = torch.where(sound[:, None, None, None], squares, 0)
        squares = torch.linalg.eigvalsh(squares)[..., -1]  # of each the largest
        radius = torch.where(sound, root * squares.clamp(min=0).sqrt().sum(-1), math.inf)
        along = root * (unit[:, None, None] @ free).flatten(2).norm(dim=-1).sum(-1)
        summed = matrix.abs() @ (shares.abs().sum(0) * self.origin.abs()) + offset.abs()
        rounded = _ROUNDED * (root * maps.flatten(2).norm(dim=-1).sum(-1) + summed.norm(dim=-1))
        centre = matrix @ (shares.sum(0) * self.origin) + offset
        return self._bounded(side, unit, _Contents(centre, radius + rounded, along + rounded))

    def _bounded(self, side: int, unit: Tensor, found: _Contents) -> _Contents:
        """The same contents shortened to the head's radius. They shrink towards 0, so in no direction do they
        come farther from there than they were, or than the radius; where none is long enough nothing changes.
        """
        if self.radii is None:
            return found
        most, detuning = self.radii[side], self.detunings[side]
        content = found.centre - detuning
        farthest = content.norm(dim=-1) + found.radius
        along = torch.minimum((content * unit).sum(-1).abs() + found.along, most)
        unchanged = farthest <= most
        return _Contents(
            torch.where(unchanged[:, None], found.centre, detuning),
            torch.where(unchanged, found.radius, most),
            torch.where(unchanged, found.along, along),
        )


def _radii(exact: Frequency) -> list[Tensor] | None:
    """Of receivers and senders, as far as rounding goes; of symmetric heads once. None: they have none."""
    if exact.log_radius is None:
        return None
    heard = exact.log_radius.exp() * (1 + _ROUNDED)
    if exact.log_sent_radius is None:
        return [heard, heard]
    sent = exact.log_sent_radius.exp() * (1 + _ROUNDED)
    return [
        heard,
        torch.cat([heard[run.heads] if run.sent is None else sent[run.sent] for run in exact._runs]),
    ]


def _largest(of_heads: list[Tensor]) -> Tensor:
    return torch.stack(of_heads).amax(0)


def _largest_radii(attention: Any) -> Tensor:
    """Each head's rho at the largest effective coupling there can be, since r <= 1, (H,); infinite where it
    has no number."""
    coupling, bandwidth = _exact(attention.coupling), _exact(attention.bandwidth)
    sound = coupling.isfinite() & bandwidth.isfinite() & (bandwidth > 0)
    coupling = torch.where(sound, coupling, 1).clamp(1e-6, 1e15)
    bandwidth = torch.where(sound, bandwidth, 1).clamp(max=1e30)
    return torch.where(sound, locking.locking_radius(coupling, bandwidth) * _SLACK, math.inf)


def _exact(x: Tensor) -> Tensor:
    return x.detach().to(device="cpu", dtype=torch.float64)

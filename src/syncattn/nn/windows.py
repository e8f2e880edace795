"""How far a head can reach, proved from its weights: the distance beyond which no sender can lock.

With a drift, a pair t = slope (x_i - x_j) apart along the unit vector u detunes by D = |c_i - s_j + t u|^2,
where the contents c and s come from normalised inputs and are bounded: their difference reaches at most H
against u, and is no longer than R. So D >= (t - H)^2. In the absolute frame a pair locks only if
D <= rho^2, hence t <= H + rho. In the nearest frame D is counted from the nearest allowed sender's, which is
(R + slope g)^2 at most, g being the distance of the token before: t <= H + sqrt(rho^2 + (R + slope g)^2).
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
    """Where one head's contents lie: within `radius` of a centre in every direction, along u within
    `along`."""

    centre: Tensor  # (m,)
    radius: float
    along: float


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
    linear = [x for x in (frequency.receive_proj, frequency.send_proj) if x is not None]
    if any(type(projection) is not nn.Linear for projection in linear):
        return unknown
    if not all(_is_plain(module) for module in (attention, norm, frequency, *linear)):
        return unknown
    with torch.no_grad():
        layer = _Layer(attention, norm)
        return torch.tensor([layer.window(head) for head in range(heads)], dtype=torch.float64, device="cpu")


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
        # A frequency is an affine map of the input, and what position adds to it: it is asked for columns.
        columns = torch.cat((torch.zeros(1, size, **made), torch.eye(size, **made)))
        at_0 = torch.zeros(1, 1 + size, dtype=torch.int64, device="cpu")
        received, sent = (make(columns[None], at_0)[0] for make in (exact.receive, exact.emit))
        self.maps = [(x[:, 1:] - x[:, :1]).mT for x in (received, sent)]  # (H, m, E) each
        self.offsets = [x[:, 0] for x in (received, sent)]  # (H, m); a detuning is the receivers'
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

    def window(self, head: int) -> float:
        """Of one head; infinite where there is none."""
        slope = float(self.drift[head].norm())
        if not bool(self.drifts[head]) or not 0 < slope < math.inf:
            return math.inf
        attention, unit = self.attention, self.drift[head] / slope
        before = range(len(self.shares) + 1)
        # what can reach back is never a text's first token; a delayed head's first sender has no content
        received = [self._contents(0, head, unit, n) for n in before if n or not len(self.shares)]
        sent = [*(self._contents(1, head, unit, n) for n in before), self._contents(1, head, unit, None)]
        pairs = [(a, b, a.centre - b.centre) for a in received for b in sent]
        reach = max(a.along + b.along - float(apart @ unit) for a, b, apart in pairs)  # H
        longest = max(a.radius + b.radius + float(apart.norm()) for a, b, apart in pairs)  # R
        squared = _largest_radius(attention, head) ** 2
        late = int(bool(attention.frequency.delayed[head]))  # senders' frequencies stood one position back
        if attention.frame == "nearest":
            squared += (longest + slope * (late + (not attention.self_coupling))) ** 2
        window = (reach + math.sqrt(squared)) * _SLACK / slope - late
        return max(1.0, window) if math.isfinite(window) else math.inf

    def _contents(self, side: int, head: int, unit: Tensor, before: int | None) -> _Contents:
        """What a receiver (side 0) or sender (1) may be, of tokens that so many others precede, as far as
        they are mixed in; None: of nobody, a token without content.

        A LayerNorm's output is weight * z + bias with |z| <= sqrt(E) and a sum of 0, so what a map A makes of
        it is within sqrt(E) |A weight| of A bias; each token before adds such a one.
        """
        matrix, offset = self.maps[side][head], self.offsets[side][head]
        if before is None:
            rounded = _ROUNDED * float(offset.norm())
            return _Contents(offset, rounded, rounded)
        shares = torch.cat((torch.ones_like(self.scales)[None], self.shares[:before]))
        maps, root = matrix * (shares * self.scales)[:, None], math.sqrt(matrix.shape[1])  # (n, m, E)
        free = maps - maps.mean(-1, keepdim=True)  # z sums to 0
        squares = torch.linalg.eigvalsh(free @ free.mT)[:, -1]  # of each the largest
        radius = root * float(squares.clamp(min=0).sqrt().sum())
        along = root * float((unit @ free).norm(dim=-1).sum())
        summed = matrix.abs() @ (shares.abs().sum(0) * self.origin.abs()) + offset.abs()
        rounded = _ROUNDED * (root * float(maps.flatten(1).norm(dim=-1).sum()) + float(summed.norm()))
        return _Contents(matrix @ (shares.sum(0) * self.origin) + offset, radius + rounded, along + rounded)


def _largest_radius(attention: Any, head: int) -> float:
    """rho at the largest effective coupling there can be, since r <= 1; infinite where it has no number."""
    coupling = _exact(attention.coupling)[head].clamp(1e-6, 1e15)
    bandwidth = _exact(attention.bandwidth)[head].clamp(max=1e30)
    if not bool(torch.isfinite(coupling) & torch.isfinite(bandwidth) & (bandwidth > 0)):
        return math.inf
    return float(locking.locking_radius(coupling, bandwidth)) * _SLACK


def _exact(x: Tensor) -> Tensor:
    return x.detach().to(device="cpu", dtype=torch.float64)

"""How far a head can reach, proved from its weights: the distance beyond which no sender can lock.

With a drift, a pair t = slope (x_i - x_j) apart along the unit vector u detunes by D = |c_i - s_j + t u|^2,
where the
contents c and s come from normalised inputs and are bounded: their difference reaches at most H against u,
    and is
no longer than R. So D >= (t - H)^2. In the absolute frame a pair locks only if D <= rho^2, hence t <= H +
rho. In the nearest frame D is counted from the nearest allowed sender's, which is (R + slope g)^2 at most, g
being the
distance of the token before: t <= H + sqrt(rho^2 + (R + slope g)^2). docs/generation.md has the argument
    whole.
"""

from __future__ import annotations

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
    nothing
    is known: heads without a drift, positions on several axes, or modules that are not plainly those that
        this
    file knows (replaced, hooked, sharded, not on this machine).

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
    modules = [attention, norm, frequency, frequency.receive_proj, frequency.send_proj]
    if not all(_is_plain(module) for module in modules if module is not None):
        return unknown
    linear = [frequency.receive_proj, frequency.send_proj or frequency.receive_proj]
    if any(type(projection) is not nn.Linear for projection in linear) or frequency.log_slope is None:
        return unknown
    with torch.no_grad():
        return torch.tensor(
            [_window(attention, norm, head) for head in range(heads)], dtype=torch.float64, device="cpu"
        )


def _is_plain(module: nn.Module) -> bool:
    """Whether a module does what its class says, with numbers that can be read."""
    hooked = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    tensors = (*module.parameters(), *module.buffers())
    plain = all(type(x) in (Tensor, nn.Parameter) and not x.is_meta for x in tensors)
    return plain and not hooked


def _window(attention: Any, norm: nn.LayerNorm, head: int) -> float:
    frequency = attention.frequency
    run = next(run for run in frequency._runs if run.heads.start <= head < run.heads.stop)
    if run.form not in ("drift", "own_drift"):
        return math.inf
    number = head - run.heads.start
    slope = float(_exact(frequency.log_slope.float())[run.own.start + number].exp())
    own = run.form == "own_drift"
    if own:
        unit = torch.zeros(frequency.freq_dim, dtype=torch.float64, device="cpu")
        unit[-1] = 1
    else:
        direction = frequency.direction.float()[run.pure.start + number]
        unit = _exact(nn.functional.normalize(direction, dim=-1))
    received = sent = _contents(attention, norm, frequency.receive_proj, head, unit, own)
    if frequency.send_proj is not None:
        sent = _contents(attention, norm, frequency.send_proj, head, unit, own)
    received = received[:1]  # what can reach back is never a text's first
    detuning = torch.zeros_like(unit)
    if frequency.detuning is not None:
        detuning = _exact(frequency.detuning)[head]
    pairs = [(a, b, a.centre + detuning - b.centre) for a in received for b in sent]
    reach = max(a.along + b.along - float(apart @ unit) for a, b, apart in pairs)  # H
    longest = max(a.radius + b.radius + float(apart.norm()) for a, b, apart in pairs)  # R
    squared = _largest_radius(attention, head) ** 2
    late = int(bool(frequency.delayed[head]))  # the sender's frequency stood one position further back
    if attention.frame == "nearest":
        squared += (longest + slope * (late + (not attention.self_coupling))) ** 2
    window = (reach + math.sqrt(squared)) * _SLACK / slope - late
    return max(1.0, window) if math.isfinite(window) else math.inf


def _contents(
    attention: Any, norm: nn.LayerNorm, projection: nn.Linear, head: int, unit: Tensor, own: bool
) -> list[_Contents]:
    """What a projection may give one head: of a token after another, of a text's first, and of nobody.

    A LayerNorm's output is weight * z + bias with |z| <= sqrt(E) and a sum of 0, so what a map A makes of it
    is within sqrt(E) |A weight| of A bias; with a token shift a second such token is added.
    """
    frequency, size = attention.frequency, attention.embed_dim
    rows = frequency.content_dim
    matrix = _exact(projection.weight)[head * rows : (head + 1) * rows]
    offset = matrix.new_zeros(rows)
    if projection.bias is not None:
        offset = _exact(projection.bias)[head * rows : (head + 1) * rows]
    if own:  # the last coordinate is the position's, whatever stands there
        matrix, offset = matrix[: frequency.freq_dim - 1], offset[: frequency.freq_dim - 1]
    missing = frequency.freq_dim - len(matrix)
    matrix = nn.functional.pad(matrix, (0, 0, 0, missing))
    offset = nn.functional.pad(offset, (0, missing))
    weight = matrix.new_ones(size) if norm.weight is None else _exact(norm.weight)
    bias = matrix.new_zeros(size) if norm.bias is None else _exact(norm.bias)
    share = matrix.new_zeros(size) if attention.shift is None else _exact(attention.shift)[0]

    def around(maps: list[Tensor], centre: Tensor, summed: Tensor) -> _Contents:
        root = math.sqrt(size)
        free = [a - a.mean(1, keepdim=True) for a in maps]  # z sums to 0
        rounded = _ROUNDED * (root * sum(float(a.norm()) for a in maps) + float(summed.norm()))
        radius = root * sum(float(torch.linalg.eigvalsh(a @ a.T)[-1].clamp(min=0).sqrt()) for a in free)
        along = root * sum(float((unit @ a).norm()) for a in free)
        return _Contents(centre, radius + rounded, along + rounded)

    first, second = matrix * weight, matrix * (share * weight)
    size_of_bias = matrix.abs() @ ((1 + share.abs()) * bias.abs()) + offset.abs()
    after = around([first, second], matrix @ ((1 + share) * bias) + offset, size_of_bias)
    alone = around([first], matrix @ bias + offset, size_of_bias)
    nobody = _Contents(offset, _ROUNDED * float(offset.norm()), _ROUNDED * float(offset.norm()))
    return [after, alone, nobody]


def _largest_radius(attention: Any, head: int) -> float:
    """rho at the largest effective coupling there can be, since r <= 1; infinite where it has no number."""
    coupling = _exact(attention.coupling)[head].clamp(1e-6, 1e15)
    bandwidth = _exact(attention.bandwidth)[head].clamp(max=1e30)
    if not bool(torch.isfinite(coupling) & torch.isfinite(bandwidth) & (bandwidth > 0)):
        return math.inf
    return float(locking.locking_radius(coupling, bandwidth)) * _SLACK


def _exact(x: Tensor) -> Tensor:
    return x.detach().to(device="cpu", dtype=torch.float64)

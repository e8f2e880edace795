"""Layers with position in the frequency, and how far, where and how they lock."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from syncattn import locking, order_parameter, selective_synchronization_attention
from syncattn.nn import SelectiveSynchronizationAttention
from syncattn_lab.paper.random_blocks import drifting_layer, random_tokens, seeded, set_locking, set_slope


def tokens_of(seed: int, tokens: int, embed_dim: int) -> Tensor:
    """Layer-normalised random tokens (1, N, E), float64."""
    return F.layer_norm(random_tokens(seed, 1, tokens, embed_dim), (embed_dim,))


def synchronization(
    layer: SelectiveSynchronizationAttention, x: Tensor, first: int = 0, dtype: torch.dtype = torch.float64
) -> Tensor:
    """S (H, N, N) of tokens x (1, N, E) that stand at positions first, first + 1, ..., without a mask."""
    layer, x = layer.to(dtype), x.to(dtype)
    w = layer.frequency.emit(x, first + torch.arange(x.shape[1])[None])
    _, sync, _ = selective_synchronization_attention(
        w, w, w, layer.coupling, layer.bandwidth, backend="eager", return_weights=True
    )
    layer.to(torch.float64)
    return sync[0]


def farthest_locked(sync: Tensor) -> Tensor:
    """The largest |i - j| of a locked pair, per head of S (H, N, N)."""
    place = torch.arange(sync.shape[-1])
    return ((sync > 0) * (place[:, None] - place).abs()).amax((-1, -2))


def own_drift_windows(heads: int, tokens: int, draws: int, seed: int) -> dict[str, float]:
    """Windows of heads with random locking radius, slope and sharpness, position in its own coordinate.

    Returns:
        `wrong`: heads whose window on constant content is not floor(rho / slope); `exceeded`: heads whose
        window on random content is longer; `reached`: the share of these in which it is as long; of `heads`
        in all."""
    wrong = exceeded = reached = 0
    longest = 0
    for draw in range(draws):
        uniform = torch.rand(3, heads, generator=seeded(1000 * seed + draw), dtype=torch.float64)
        radius = 10 ** (1.5 * uniform[0] - 0.5)
        window = torch.exp(uniform[1] * math.log(0.7 * tokens))  # rho / slope, from 1
        layer = drifting_layer("own_drift", 2 * heads, heads, seed + draw)
        set_locking(layer, radius, 10 ** (5 * uniform[2] - 2))
        set_slope(layer, radius / window)
        bound = (locking.locking_radius(layer.coupling, layer.bandwidth) / _slope(layer)).floor()
        constant = farthest_locked(synchronization(layer, torch.zeros(1, tokens, 2 * heads)))
        # contents of a fifth of the radius, so that some of the farthest pairs tie enough to lock
        layer.frequency.receive_proj.weight.mul_(0.2 * radius.repeat_interleave(3)[:, None])
        random = farthest_locked(synchronization(layer, tokens_of(seed + draw, tokens, 2 * heads)))
        wrong += int((constant != bound).sum())
        exceeded += int((random > bound).sum())
        reached += int((random == bound).sum())
        longest = max(longest, int(bound.max()))
    return {
        "heads": heads * draws,
        "wrong": wrong,
        "exceeded": exceeded,
        "reached": reached / (heads * draws),
        "longest": longest,
    }


def shared_drift_windows(heads: int, tokens: int, draws: int, seed: int) -> dict[str, float]:
    """Windows of heads with a shared drift against (rho + spread of content along u) / slope.

    The spread is measured on the text, or bounded from the weights: |u . W x| <= |W^T u| sqrt(E) for any
    layer-normalised x. Windows of the default slopes, densities of the calibrated start.

    Returns:
        `of_spread`, `of_weights`: the largest window over each bound; `mean_of_...`: the means;
        `beyond_radius`: the share of heads whose window is longer than rho / slope, that of a drift of its
        own."""
    embed_dim = 8 * heads
    of_spread, of_weights, beyond = [], [], []
    for draw in range(draws):
        layer = drifting_layer("drift", embed_dim, heads, seed + draw, density_range=(0.05, 0.5))
        x = tokens_of(seed + draw, tokens, embed_dim)
        window = farthest_locked(synchronization(layer, x))
        radius, spread, norm = content_along_drift(layer, x)
        slope = _slope(layer)
        of_spread.append(window / ((radius + spread) / slope))
        of_weights.append(window / ((radius + 2 * norm * math.sqrt(embed_dim)) / slope))
        beyond.append((window > radius / slope).double())
    spread_ratio, weights_ratio = torch.stack(of_spread), torch.stack(of_weights)
    return {
        "heads": heads * draws,
        "of_spread": float(spread_ratio.max()),
        "of_weights": float(weights_ratio.max()),
        "mean_of_spread": float(spread_ratio.mean()),
        "mean_of_weights": float(weights_ratio.mean()),
        "beyond_radius": float(torch.stack(beyond).mean()),
    }


def content_along_drift(layer: SelectiveSynchronizationAttention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(rho, the spread of u . W x over the tokens, |W^T u|), per head (H,)."""
    frequency = layer.frequency
    assert frequency.direction is not None
    unit = F.normalize(frequency.direction, dim=-1)
    along = torch.einsum("hm,hme->he", unit, frequency.receive_proj.weight.view(*unit.shape, -1))
    content = x[0] @ along.T  # (N, H)
    radius = locking.locking_radius(layer.coupling, layer.bandwidth)
    return radius, content.amax(0) - content.amin(0), along.norm(dim=-1)


def _slope(layer: SelectiveSynchronizationAttention) -> Tensor:
    assert layer.frequency.log_slope is not None
    return layer.frequency.log_slope.exp()


def translations(tokens: int, seed: int) -> list[dict[str, Any]]:
    """How much S changes when all positions move: per position, dtype and shift.

    `difference`: the largest of an S; `changed`: the share of locked pairs that unlock or the reverse.
    """
    found = []
    for position in ("drift", "own_drift"):
        # A sharpness of 1 locks with S far from 0 up to the edge, where rounding shows most.
        layer = drifting_layer(position, 64, 8, seed, density_range=(0.05, 0.5), sharpness=1.0)
        x = tokens_of(seed, tokens, 64)
        for name, dtype in (("float64", torch.float64), ("float32", torch.float32)):
            at_start = synchronization(layer, x, 0, dtype)
            for shift in (1_000, 10_000):
                moved = synchronization(layer, x, shift, dtype)
                changed = ((moved > 0) != (at_start > 0)).sum() / (at_start > 0).sum()
                found.append(
                    {
                        "position": position,
                        "dtype": name,
                        "shift": shift,
                        "difference": float((moved - at_start).abs().max()),
                        "changed": float(changed),
                    }
                )
    return found


LINES = ("own_drift", "drift", "none", "sinusoidal")  # the last: as published, encodings added to the tokens


def locked_per_row(lengths: Sequence[int], seed: int) -> dict[str, Any]:
    """How many tokens the last 32 tokens of a text lock to, for texts of several lengths, causal.

    The texts differ but for their last 128 tokens, within which the windows of the drifting heads lie.
    Densities without drift would be .2 to .6.

    Returns: per line of LINES and length: `locked`, the mean number per row; `density`, its share of all
        tokens up to the row's; `window`, the longest distance; and `change`, the largest difference of an
        output of these rows from the shortest text to the others."""
    ending, rows = tokens_of(seed, 128, 64), 32
    found: dict[str, Any] = {}
    for name in LINES:
        position = name if "drift" in name else "none"
        layer = drifting_layer(position, 64, 4, seed, window_range=(8.0, 16.0))
        ladder = locking.density_ladder(0.2, 0.6, 4).double()
        set_locking(layer, locking.gaussian_radius(ladder, layer.frequency.content_dim), 10.0)
        line: dict[str, Any] = {"locked": [], "density": [], "window": []}
        outs = []
        for length in lengths:
            x = torch.cat((tokens_of(seed + length, length - 128, 64), ending), 1)
            if name == "sinusoidal":
                x = x + sinusoidal(length, 64)
            out, weight = layer(
                x[:, -rows:], x, need_weights=True, average_attn_weights=False, is_causal=True
            )
            locked = weight[0] > 0  # (H, 32, N)
            before = torch.arange(length - rows, length)[:, None] - torch.arange(length)
            line["locked"].append(float(locked.sum(-1).double().mean()))
            line["density"].append(float((locked.sum(-1) / (before[:, 0] + 1)).mean()))
            line["window"].append(int((locked * before).max()))
            outs.append(out)
        found[name] = line | {"change": max(float((out - outs[0]).abs().max()) for out in outs[1:])}
    return found


def default_layer_change(lengths: Sequence[int], seed: int) -> dict[str, float]:
    """How much the last 32 outputs of the library's default layer change with the text before the last 128
    tokens, causal, four heads, at its initialisation: from the shortest text to longer ones.

    Its order parameter is on, its frame is the nearest token's, half of the heads are delayed, self is left
    out.

    Returns: `relative`, the largest norm of the change over that of the output; `largest`, of an output."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = SelectiveSynchronizationAttention(64, 4, dtype=torch.float64)
    layer.eval().requires_grad_(False)
    ending = tokens_of(seed, 128, 64)
    outs = []
    for length in lengths:
        x = torch.cat((tokens_of(seed + length, length - 128, 64), ending), 1)
        outs.append(layer(x, is_causal=True)[0][:, -32:])
    changes = [out - outs[0] for out in outs[1:]]
    return {
        "relative": max(float(change.norm() / outs[0].norm()) for change in changes),
        "largest": max(float(change.abs().max()) for change in changes),
    }


def moved_weights(published: SelectiveSynchronizationAttention, x: Tensor, places: int, seed: int) -> float:
    """How much the weights among tokens x (B, N, E) change when they move from before to behind `places`
    other tokens, in the layer that `from_reference` makes of the published parameters."""
    parameters = dict(published.named_parameters())
    names = {"K": "raw_coupling", "alpha": "raw_bandwidth"}
    modules = {
        "W_omega": "frequency.receive_proj",
        "W_theta": "phase_proj",
        "W_v": "value_proj",
        "W_o": "out_proj",
    }
    names |= {f"{w}.{p}": f"{m}.{p}" for w, m in modules.items() for p in ("weight", "bias")}
    state = {name: parameters[ours] for name, ours in names.items()}
    with torch.random.fork_rng(devices=[]):
        layer = SelectiveSynchronizationAttention.from_reference(state, published.num_heads).eval()
    others = random_tokens(seed + 1, x.shape[0], places, x.shape[2])
    n = x.shape[1]
    with torch.no_grad():
        first = layer(torch.cat((x, others), 1), need_weights=True, average_attn_weights=False)[1]
        last = layer(torch.cat((others, x), 1), need_weights=True, average_attn_weights=False)[1]
    return float((first[..., :n, :n] - last[..., -n:, -n:]).abs().max())


def sinusoidal(tokens: int, width: int) -> Tensor:
    """The encodings that Transformers add to their tokens (Vaswani et al. 2017), (N, E) float64."""
    rate = 10_000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angle = torch.arange(tokens, dtype=torch.float64)[:, None] * rate
    return torch.stack((angle.sin(), angle.cos()), -1).flatten(-2)


def running_coherence(tokens: int, sequences: int, seed: int) -> dict[str, float]:
    """The running order parameter at the published initialisation: phases of variance 1/3, 64 a token.

    Its mean over sequences at the first, second, 128th and last token, which scale the coupling.
    """
    phase = random_tokens(seed, sequences, 1, tokens, 64) / math.sqrt(3)
    r = order_parameter(phase, is_causal=True).mean((0, 1))
    return {name: float(r[n - 1]) for name, n in (("1", 1), ("2", 2), ("128", 128), ("last", tokens))}


def reversal_gap(position: str, tokens: int, seed: int) -> float:
    """Largest |f(reversed X) - reversed f(X)| of the layer without a mask."""
    layer = drifting_layer(position, 64, 8, seed, density_range=(0.05, 0.5))
    x = tokens_of(seed, tokens, 64)
    backward = layer(x.flip(1), need_weights=True)[0]
    return float((backward - layer(x, need_weights=True)[0].flip(1)).abs().max())

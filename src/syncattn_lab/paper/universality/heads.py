"""What one head can attend to: softmax as a limit, the limits of the symmetric form, and what lifts them."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from syncattn import locking, selective_synchronization_attention
from syncattn_lab.paper.random_blocks import drifting_layer, random_tokens, set_locking, set_slope


def softmax_limit(couplings: list[float], tokens: int, size: int, seed: int) -> list[dict[str, float]]:
    """How far SSA is from softmax attention, per coupling kappa.

    w^r = (q, 0) and w^s = (k, sqrt(R^2 - |k|^2)) have D = |q|^2 + R^2 - 2 q.k: of exp(-alpha D), a
    normalised row is softmax(2 alpha q.k), and S tends to exp(-alpha D) as kappa grows. alpha = 1 / (2
    sqrt(size)) makes it PyTorch's attention, which is the judge of the output.

    Returns: per coupling: `weights` and `output`, the largest differences; `lonely`, the share of rows that
        lock to nobody."""
    query, key, value = random_tokens(seed, 3, 1, 1, tokens, size)
    squared_norm = key.square().sum(-1, keepdim=True)
    lift = (squared_norm.max() - squared_norm).clamp(min=0).sqrt()
    receive = torch.cat((query, torch.zeros_like(lift)), -1)
    send = torch.cat((key, lift), -1)
    bandwidth = torch.tensor([0.5 / math.sqrt(size)], dtype=torch.float64)
    wanted = torch.softmax(query @ key.transpose(-1, -2) / math.sqrt(size), -1)
    wanted_out = F.scaled_dot_product_attention(query, key, value)
    found = []
    for coupling in couplings:
        out, _, weight = selective_synchronization_attention(
            receive,
            send,
            value,
            torch.tensor([coupling], dtype=torch.float64),
            bandwidth,
            eps=0.0,  # the rows' sums are as small as exp(-alpha D)
            backend="eager",
            return_weights=True,
        )
        found.append(
            {
                "coupling": coupling,
                "weights": float((weight - wanted).abs().max()),
                "output": float((out - wanted_out).abs().max()),
                "lonely": float((weight.sum(-1) == 0).double().mean()),
            }
        )
    return found


def symmetric_heads(seeds: int, tokens: int, freq_dim: int, seed: int) -> dict[str, float]:
    """The paper's form, self kept, at densities from .01 to .99 and sharpness .1 to 1000, causal or not.

    Returns: `largest_weight` that a token gives to another, of which one is its copy; `self_below_largest`,
        the most by which S_ii falls short of its row's largest S; `imaginary`, the largest imaginary part
        of an eigenvalue of P; the same of the matrix that attends to the token before (cyclically) and of a
        head with send frequencies of its own."""
    density = torch.linspace(0.01, 0.99, 12, dtype=torch.float64)
    sharpness = torch.tensor([0.1, 10.0, 1000.0], dtype=torch.float64)
    coupling, bandwidth = locking.calibrate(density[:, None], freq_dim, sharpness)
    coupling, bandwidth = coupling.flatten(), bandwidth.flatten()
    heads = coupling.numel()
    largest = short = imaginary = directed = 0.0
    itself = torch.eye(tokens, dtype=torch.bool)
    for one in range(seeds):
        w, send = random_tokens(seed + one, 2, 1, heads, tokens, freq_dim)
        w[..., -1, :] = w[..., 0, :]  # of all tokens a copy gets the most
        value = torch.zeros_like(w)
        for is_causal in (False, True):
            _, sync, weight = selective_synchronization_attention(
                w, w, value, coupling, bandwidth, is_causal=is_causal, backend="eager", return_weights=True
            )
            largest = max(largest, float(weight.masked_fill(itself, 0).max()))
            short = max(short, float((sync.amax(-1) - sync.diagonal(dim1=-2, dim2=-1)).max()))
            if not is_causal:
                imaginary = max(imaginary, _imaginary(weight))
        _, _, weight = selective_synchronization_attention(
            w, send, value, coupling, bandwidth, backend="eager", return_weights=True
        )
        directed = max(directed, _imaginary(weight))
    return {
        "heads": seeds * heads,
        "largest_weight": largest,
        "self_below_largest": short,
        "imaginary": imaginary,
        "imaginary_wanted": _imaginary(torch.eye(tokens, dtype=torch.float64).roll(1, 0)),
        "imaginary_directed": directed,
    }


def previous_token(tokens: int) -> dict[str, Any]:
    """How much of its weight a head that knows positions can put on the token before, causal, one window.

    Returns: per kind of head the least weight over the rows from the second on, and its P as a matrix:
        `symmetric` (self kept; the best of many slopes and sharpnesses), `detuned` (centred on the token
        before by a detuning of one slope), `directed` (self kept, send frequencies of its own),
        `self_left_out`."""
    ratio = torch.linspace(
        0.505, 0.995, 40, dtype=torch.float64
    )  # slope / rho: the token before locks, no other
    sharpness = torch.logspace(-2, 3, 11, dtype=torch.float64)
    ratio, sharpness = (grid.flatten() for grid in torch.meshgrid(ratio, sharpness, indexing="ij"))
    found = {
        "symmetric": _drifting_head(tokens, ratio, sharpness),
        "detuned": _drifting_head(tokens, torch.tensor([2.0]), torch.tensor([10.0]), detuning=True),
        "directed": _directed_head(tokens),
        "self_left_out": _drifting_head(
            tokens, torch.tensor([0.75]), torch.tensor([10.0]), self_coupling=False
        ),
    }
    weights = {}
    for name, weight in found.items():
        least = weight.diagonal(-1, dim1=-2, dim2=-1).amin(-1)  # (heads,)
        weights[name] = {
            "weight": float(least.max()),
            "matrix": [[round(p, 6) for p in row] for row in weight[least.argmax()].tolist()],
        }
    return weights


def _drifting_head(tokens: int, ratio: Tensor, sharpness: Tensor, **options: Any) -> Tensor:
    """P (heads, N, N), causal, of heads without content whose slope is `ratio` locking radii, per head."""
    heads = ratio.numel()
    layer = drifting_layer("own_drift", heads, heads, seed=0, freq_dim=2, **options)
    set_locking(layer, torch.ones_like(sharpness), sharpness)
    set_slope(layer, ratio)
    if layer.frequency.detuning is not None:
        layer.frequency.detuning.zero_()
        layer.frequency.detuning[:, -1] = -ratio
    weights = layer(
        torch.zeros(1, tokens, heads, dtype=torch.float64),
        need_weights=True,
        average_attn_weights=False,
        is_causal=True,
    )[1]
    return weights[0]


def _directed_head(tokens: int) -> Tensor:
    """P (1, N, N), causal, of a head that sends with the code of its place and receives with that of the
    place before: points on a circle, of which only equal ones lock. The tokens are the unit vectors e_i."""
    angle = 2 * math.pi * torch.arange(tokens, dtype=torch.float64) / tokens
    code = torch.stack((angle.cos(), angle.sin()))  # (2, N)
    layer = drifting_layer("none", tokens, 1, seed=0, freq_dim=2, directed=True)
    assert layer.frequency.send_proj is not None
    layer.frequency.send_proj.weight.copy_(code)
    layer.frequency.receive_proj.weight.copy_(code.roll(1, 1))
    radius = torch.full((1,), math.sin(math.pi / tokens), dtype=torch.float64)  # half of neighbours' distance
    set_locking(layer, radius, 10.0)
    place = torch.eye(tokens, dtype=torch.float64)[None]
    return layer(place, need_weights=True, average_attn_weights=False, is_causal=True)[1][0]


def what_followed(tokens: int, seed: int) -> dict[str, float]:
    """How much of its weight a head without position puts on what followed its token's earlier copy.

    The text is N / 2 different tokens and then the same again, causal; the rows of the second half count,
    without the first of them.

    Returns:
        `symmetric`: the mean weight over the rows, of the best of several densities; `delayed`: the mean
        weight with a head that couples to what the token before emitted."""
    half = tokens // 2
    vocabulary = F.layer_norm(random_tokens(seed, 1, half, 16), (16,))
    text = torch.cat((vocabulary, vocabulary), 1)
    rows = torch.arange(half + 1, tokens)

    def mean(density: float, **options: Any) -> float:
        options |= {"freq_dim": 8, "density_range": (density, density)}
        layer = drifting_layer("none", 16, 1, seed, **options)
        layer.frequency.receive_proj.weight.copy_(random_tokens(seed + 1, 8, 16) / 4)
        layer.calibrate_(text, is_causal=True)
        weight = layer(text, need_weights=True, is_causal=True)[1][0]
        return float(weight[rows, rows - half + 1].mean())

    # With as few locked pairs as there are equal tokens, only equal tokens lock.
    return {
        "symmetric": max(mean(density) for density in (0.05, 0.2, 0.5, 0.8, 0.95, 1.0)),
        "delayed": mean(0.5 / tokens, delay=1.0),
    }


def _imaginary(weight: Tensor) -> float:
    """The largest imaginary part of an eigenvalue of these matrices."""
    return float(torch.linalg.eigvals(weight).imag.abs().max())

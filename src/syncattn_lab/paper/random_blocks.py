"""Random tokens, and blocks and layers of random weights, that several claims are measured on.

Everything is float64, so that what is measured on them is not rounding's error.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from syncattn import locking
from syncattn.nn import OSNBlock, SelectiveSynchronizationAttention
from syncattn.nn.published import published

PUBLISHED_COHERENCE = math.exp(-1 / 6)  # r of phases with the published initialisation's variance of 1/3


def seeded(seed: int) -> torch.Generator:
    """A private source of random numbers."""
    return torch.Generator().manual_seed(seed)


def random_tokens(seed: int, *shape: int) -> Tensor:
    """N(0, 1) in float64, of this shape."""
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def make_blocks(
    kind: type[OSNBlock],
    depth: int,
    embed_dim: int,
    num_heads: int,
    seed: int,
    feed_forward: int = 32,
    activation: str = "gelu",
    **attention: Any,
) -> list[OSNBlock]:
    """Blocks in evaluation mode, LayerNorm first, float64; nobody else's random numbers change."""
    frame: dict[str, Any] = {
        "dim_feedforward": feed_forward,
        "dropout": 0.0,
        "activation": activation,
        "batch_first": True,
        "norm_first": True,
        "dtype": torch.float64,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        blocks = [kind(embed_dim, num_heads, **frame, **attention) for _ in range(depth)]
    return [block.eval().requires_grad_(False) for block in blocks]


def run_blocks(blocks: list[OSNBlock], x: Tensor, **arguments: Any) -> Tensor:
    """x (B, N, E) through all blocks, to the same shape."""
    for block in blocks:
        x = block(x, **arguments)
    return x


def published_blocks(
    kind: type[OSNBlock],
    depth: int,
    embed_dim: int,
    num_heads: int,
    seed: int,
    density: float = 0.3,
    **changed: Any,
) -> list[OSNBlock]:
    """Blocks of the published form at a coupling and bandwidth with which about this share of pairs locks.

    At the published initialisation itself tokens never communicate, and nothing about sequences could be
    seen.

    Args:
        changed: arguments of the layer other than the published ones.
    """
    freq_dim = embed_dim // num_heads
    blocks = make_blocks(kind, depth, embed_dim, num_heads, seed, **published(freq_dim) | changed)
    coupling, bandwidth = locking.calibrate(density, freq_dim, sharpness=10.0, variance=1 / 3)
    for block in blocks:
        attention = block.self_attn
        assert isinstance(attention, SelectiveSynchronizationAttention)
        attention.raw_coupling.fill_(_raw(float(coupling) / PUBLISHED_COHERENCE))
        attention.raw_bandwidth.fill_(_raw(float(bandwidth)))
    return blocks


def permutation_gap(blocks: list[OSNBlock], x: Tensor, seed: int) -> float:
    """Largest |f(P x) - P f(x)| over the tokens of x (B, N, E), for one random permutation P."""
    order = torch.randperm(x.shape[1], generator=seeded(seed))
    difference = run_blocks(blocks, x[:, order]) - run_blocks(blocks, x)[:, order]
    return float(difference.abs().max())


def _raw(value: float) -> float:
    """The raw parameter whose softplus is value."""
    return value + math.log(-math.expm1(-value))


def drifting_layer(
    position: str, embed_dim: int, heads: int, seed: int, **options: Any
) -> SelectiveSynchronizationAttention:
    """A float64 layer in the paper's form but for its position: self kept, absolute frame, power 1, r = 1.

    With position "none" it does not drift. Nobody else's random numbers change.
    """
    paper: dict[str, Any] = {
        "freq_dim": 4,
        "position": position,
        "delay": 0.0,
        "self_coupling": True,
        "frame": "absolute",
        "power": 1,
        "order_parameter": False,
        "density_range": None,
        "dtype": torch.float64,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = SelectiveSynchronizationAttention(embed_dim, heads, **paper | options)
    return layer.eval().requires_grad_(False)


def set_locking(layer: SelectiveSynchronizationAttention, radius: Tensor, sharpness: Tensor | float) -> None:
    """Give the layer's heads these locking radii (H,) and sharpnesses, in place."""
    coupling, bandwidth = locking.coupling_from_radius(radius, sharpness)
    layer.raw_coupling.copy_(coupling.log())
    layer.raw_bandwidth.copy_(bandwidth.log())


def set_slope(layer: SelectiveSynchronizationAttention, slope: Tensor) -> None:
    """Give the layer's heads these drifts per token (H,), in place."""
    assert layer.frequency.log_slope is not None
    layer.frequency.log_slope.copy_(slope.log())

"""Position in the frequency: who locks as published, and with a drift."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from syncattn.nn import OSNBlock, SelectiveSynchronizationAttention
from syncattn_lab.paper.position.layers import (
    content_along_drift,
    default_layer_change,
    locked_per_row,
    moved_weights,
    own_drift_windows,
    reversal_gap,
    running_coherence,
    shared_drift_windows,
    synchronization,
    tokens_of,
    translations,
)
from syncattn_lab.paper.random_blocks import (
    drifting_layer,
    make_blocks,
    permutation_gap,
    published_blocks,
    random_tokens,
    set_locking,
    set_slope,
)
from syncattn_lab.paper.section import Extent, Numbers


def measure(extent: Extent, tell: Callable[[str], None]) -> Numbers:
    seed = extent.seed
    lengths = extent.size([128, 256, 512, 1024, 2048, 4096], [128, 512, 2048])
    return {
        "permutation": _permutation(extent.size(128, 32), seed),
        "own_drift": own_drift_windows(16, 128, extent.size(16, 3), seed),
        "shared_drift": shared_drift_windows(8, extent.size(512, 256), extent.size(8, 2), seed),
        "translation": translations(extent.size(128, 64), seed),
        "lengths": lengths,
        "extrapolation": locked_per_row(lengths, seed),
        "default_layer": default_layer_change(lengths, seed),
        "coherence": running_coherence(lengths[-1], extent.size(16, 4), seed),
        "reversal": {name: reversal_gap(name, 64, seed) for name in ("own_drift", "drift")},
        "matrices": _matrices(64, seed),
    }


def _permutation(tokens: int, seed: int) -> dict[str, float]:
    """How far permuted tokens' outputs are from permuted outputs, published and with drift; and how much the
    published weights among tokens depend on where they stand."""
    x = random_tokens(seed, 2, tokens, 16)
    blocks = published_blocks(OSNBlock, 2, 16, 4, seed)
    attention = blocks[0].self_attn
    assert isinstance(attention, SelectiveSynchronizationAttention)
    drifting = make_blocks(OSNBlock, 2, 16, 4, seed, position="drift")
    return {
        "published": permutation_gap(blocks, x, seed),
        "moved": moved_weights(attention, x, 1_000, seed),
        "drift": permutation_gap(drifting, x, seed),
    }


def _matrices(tokens: int, seed: int) -> dict[str, Any]:
    """S of one head on the same tokens without position and with either drift, and the bounds of its
    window."""
    embed_dim, radius, slope = 16, 1.2, 0.15
    x = tokens_of(seed, tokens, embed_dim)
    found: dict[str, Any] = {"window": int(radius / slope)}
    for name in ("none", "own_drift", "drift"):
        layer = drifting_layer(name, embed_dim, 1, seed, freq_dim=3 if name == "own_drift" else 2)
        layer.frequency.receive_proj.weight.copy_(random_tokens(seed, 2, embed_dim) / (2 * embed_dim**0.5))
        set_locking(layer, torch.tensor([radius], dtype=torch.float64), 1.0)
        if name != "none":
            set_slope(layer, torch.tensor([slope], dtype=torch.float64))
        if name == "drift":
            _, spread, norm = content_along_drift(layer, x)
            found["bound_of_spread"] = (radius + float(spread)) / slope
            found["bound_of_weights"] = (radius + 2 * float(norm) * embed_dim**0.5) / slope
        found[name] = [[round(s, 4) for s in row] for row in synchronization(layer, x)[0].tolist()]
    return found

"""Proposition 2, position in the natural frequency: not as published, and what a drift makes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from syncattn.nn import OSNBlock, SelectiveSynchronizationAttention
from syncattn_lab.paper.figures.position import draw
from syncattn_lab.paper.measures.position_layers import (
    content_along_drift,
    default_layer_change,
    drifting_layer,
    locked_per_row,
    moved_weights,
    own_drift_windows,
    reversal_gap,
    running_coherence,
    set_locking,
    set_slope,
    shared_drift_windows,
    synchronization,
    tokens_of,
    translations,
)
from syncattn_lab.paper.measures.universality_constructions import (
    make_blocks,
    permutation_gap,
    published_blocks,
    random_tokens,
)
from syncattn_lab.paper.section import (
    FAILS,
    HOLDS,
    HOLDS_IF,
    Claim,
    Drawing,
    Numbers,
    Plan,
    Section,
    above,
    below,
    between,
    exactly,
)


def measure(plan: Plan, tell: Callable[[str], None]) -> Numbers:
    seed = plan.seed
    lengths = plan.size([128, 256, 512, 1024, 2048, 4096], [128, 512, 2048])
    return {
        "permutation": _permutation(plan.size(128, 32), seed),
        "own_drift": own_drift_windows(16, 128, plan.size(16, 3), seed),
        "shared_drift": shared_drift_windows(8, plan.size(512, 256), plan.size(8, 2), seed),
        "translation": translations(plan.size(128, 64), seed),
        "lengths": lengths,
        "extrapolation": locked_per_row(lengths, seed),
        "default_layer": default_layer_change(lengths, seed),
        "coherence": running_coherence(lengths[-1], plan.size(16, 4), seed),
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


def claims(numbers: Numbers) -> list[Claim]:
    return [
        _as_published(numbers),
        _with_drift(numbers),
        _translation_invariance(numbers),
        _extrapolation(numbers),
    ]


def _as_published(numbers: Numbers) -> Claim:
    gap = numbers["permutation"]
    return Claim(
        "position-as-published",
        "Abstract, Proposition 2",
        "The natural frequencies carry position and meaning together, so that no separate positional "
        "encoding is needed.",
        FAILS,
        "As published a frequency is W x_i + b and knows nothing of i: when tokens move from before to "
        f"behind 1,000 others, the weights among them change by {gap['moved']:.1e}, and permuted tokens give "
        f"the permuted output (largest difference {gap['published']:.1e}). The layer does not see order "
        "unless an encoding is added to its input, "
        f"the very thing said to be eliminated. With a drift the same difference is {gap['drift']:.2f}.",
        (
            below("change of the weights among tokens that move by 1,000 places", gap["moved"], 1e-12),
            below("published form, largest |f(P x) - P f(x)|", gap["published"], 1e-12),
            above("the same with a drift", gap["drift"], 1e-2),
        ),
    )


def _with_drift(numbers: Numbers) -> Claim:
    own, shared, backward = numbers["own_drift"], numbers["shared_drift"], numbers["reversal"]
    return Claim(
        "position-with-drift",
        "Proposition 2, with drift (our addition)",
        "Position and meaning can share one frequency, and position then bounds who can lock.",
        HOLDS_IF,
        "It holds if the frequency drifts, w_i = W x_i + slope i u. With the drift in a coordinate of "
        f"its own the window is floor(rho / slope) tokens: to the token in {own['heads']} heads on "
        f"constant content, windows up to {own['longest']}, and never longer on random content. With u "
        "among the content's coordinates it is at most (rho + spread of content along u) / slope "
        f"(reached to {shared['of_spread']:.0%}), and by the weights alone at most (rho + 2 |W^T u| "
        f"sqrt(E)) / slope (to {shared['of_weights']:.0%}). What it does not give: a direction of time, "
        "without a mask and with position in its own coordinate (reversed tokens, reversed outputs: "
        f"{backward['own_drift']:.1e}); nor counting, see universality.",
        (
            exactly(
                "own coordinate, constant content: windows other than floor(rho / slope)", own["wrong"], 0
            ),
            exactly("own coordinate, random content: longer windows", own["exceeded"], 0),
            between("share of windows that random content fills", own["reached"], 0.5, 1),
            between(
                "shared: longest window over its bound from the content's spread", shared["of_spread"], 0.5, 1
            ),
            between("shared: longest window over its bound from the weights", shared["of_weights"], 0.1, 1),
            above("shared: windows longer than rho / slope, share", shared["beyond_radius"], 0.5),
            below("own coordinate, no mask: |f(reversed x) - reversed f(x)|", backward["own_drift"], 1e-12),
            above("the same, shared", backward["drift"], 1e-3),
        ),
    )


def _translation_invariance(numbers: Numbers) -> Claim:
    worst = {
        dtype: {
            key: max(row[key] for row in numbers["translation"] if row["dtype"] == dtype)
            for key in ("difference", "changed")
        }
        for dtype in ("float64", "float32")
    }
    return Claim(
        "translation-invariance",
        "Proposition 2, with drift (our addition)",
        "With drift S depends on how far apart two tokens are, not on where they stand.",
        HOLDS,
        f"Moving all positions by up to 10,000 changes S by {worst['float64']['difference']:.1e} in "
        f"float64. In float32 the drift's rounding shows, {worst['float32']['difference']:.1e} at 10,000, "
        f"as the frequencies are themselves large there, and {worst['float32']['changed']:.2%} of the "
        "locked pairs change.",
        (
            below("largest change of S in float64", worst["float64"]["difference"], 1e-9),
            below("locked pairs that change in float64, share", worst["float64"]["changed"], 1e-4),
            below("largest change of S in float32", worst["float32"]["difference"], 0.1),
            below("locked pairs that change in float32, share", worst["float32"]["changed"], 1e-2),
        ),
    )


def _extrapolation(numbers: Numbers) -> Claim:
    found, r, default = numbers["extrapolation"], numbers["coherence"], numbers["default_layer"]
    short, long = numbers["lengths"][0], numbers["lengths"][-1]
    own, shared, none, added = (found[name] for name in ("own_drift", "drift", "none", "sinusoidal"))
    change = max(own["change"], shared["change"])
    per_row = max(abs(line["locked"][-1] - line["locked"][0]) for line in (own, shared))
    settled = 1 - r["last"] / r["2"]
    return Claim(
        "extrapolation",
        "Proposition 2, with drift (our addition)",
        "With drift a layer does on long texts what it does on short ones.",
        HOLDS_IF,
        "It holds if the windows are finite and the order parameter does not move: measured in the paper's "
        "form with drift, the order parameter off, without delay, self kept. There the last tokens of a "
        f"text of {long:,} lock to as many tokens as after {short} ({own['locked'][-1]:.1f} with a drift "
        f"of its own, {shared['locked'][-1]:.1f} with a shared one) and their outputs agree to "
        f"{change:.1e}. Without position they lock to {none['locked'][0]:.0f} and "
        f"{none['locked'][-1]:.0f} and an output changes by {none['change']:.1f}; with sinusoidal "
        f"encodings added to the tokens, by {added['change']:.1f}. The running order parameter falls from "
        f"{r['2']:.3f} at the second token to {r['last']:.3f}: it lowers the coupling by {settled:.1%}, "
        "nearly all of it within the first 128. In the library's default layer, where it is on, the last 32 "
        f"outputs do change: from {short} tokens to {long:,} or fewer by {default['relative']:.2%} of their "
        f"norm at most (an entry by {default['largest']:.1e}).",
        (
            below("change of an output, with drift, from the shortest to longer texts", change, 1e-9),
            exactly("change of the tokens that a row locks to, with drift", per_row, 0),
            above(
                "the same without position, ratio", none["locked"][-1] / none["locked"][0], long / short / 2
            ),
            above("change of an output with sinusoidal encodings added", added["change"], 1e-2),
            between("running order parameter, loss from token 2 on", settled, 0.05, 0.12),
            below("the same from token 128 on", abs(1 - r["last"] / r["128"]), 0.01),
            between("default layer: relative change of its last outputs", default["relative"], 1e-6, 0.02),
        ),
    )


SECTION = Section(
    "position",
    "Proposition 2: position in the frequency",
    measure,
    claims,
    (
        Drawing(
            "position", "Who locks, without position and with drift, and how density falls with length", draw
        ),
    ),
)

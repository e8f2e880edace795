"""Mixes of heads by name: what a layer is made with for texts, images, series and points."""

from __future__ import annotations

from typing import Any

from syncattn.checks import check_choice, check_count

CAUSAL = ("text", "recall")
"""Those for texts, which are read in order."""
PRESETS = (*CAUSAL, "images", "series", "points")


def preset(name: str, num_heads: int) -> dict[str, Any]:
    """The options of a layer whose heads are a mix for one kind of data.

    They are keyword arguments of `SelectiveSynchronizationAttention` and `OSNBlock`, and fields of
    `OSNConfig`. What is to be another follows behind: ``preset("text", 8) | {"value_rotation": 100.0}``.
    docs/positions.md has a table of them.

    "text": windows; in a quarter of the heads, the widest, a helix in coordinates of its own, which finds
        what is alike at any distance; every second head delayed, the last one always; token shift.
    "recall": windows; a quarter of the heads, the widest, without position; a convolution of four tokens in
        place of the token shift, so that four tokens name a place; delays as in "text". What it has learned
        to recall or to copy it does in texts many times longer.
    "images": two axes, rows and columns; windows of 1.5 to 6 patches; a quarter of the heads without
        position; co-rotating values; a dense start, since a pair that does not lock has no gradient: limit
        the density while it trains. Nobody has a token before.
    "series": windows in one half of the heads, seasons in the other, in coordinates of their own; delay and
        token shift; co-rotating values. What is in the unit of the times is to be given: `window_range`, and
        `helix_scales`, of a season of length T the number T / 2 pi.
    "points": three axes; a radius in each head, in coordinates of its own and in the absolute frame, so that
        it hears nobody beyond; sums in place of averages; co-rotating values. `window_range`, .8 to 1.6, is
        in the unit of the positions. Nobody has a token before.

    Args:
        name: one of these.
        num_heads: H, at least 2 where the mix is of two kinds: in all but "points".

    Raises:
        TypeError, ValueError: there is no such preset, or its mix does not fit so many heads.
    """
    check_choice("preset", name, PRESETS)
    check_count("num_heads", num_heads)
    if num_heads == 1 and name != "points":
        raise ValueError(f"num_heads must be at least 2 for preset={name!r}, a mix of two kinds, got 1")
    few, half = max(1, num_heads // 4), num_heads // 2
    last_delayed = [(num_heads - h) % 2 == 1 for h in range(num_heads)]
    ordered: dict[str, Any] = {"delay": last_delayed, "token_shift": True}
    far = ["drift"] * (num_heads - few) + ["none"] * few
    # Texts alone have been read with the models' gate and directed heads, and recall was measured symmetric.
    unordered: dict[str, Any] = {
        "delay": 0.0,
        "token_shift": False,
        "directed": False,
        "value_rotation": 100.0,
        "nearest_gate": False,
    }
    if name == "text":
        return ordered | {
            "position": ["drift"] * (num_heads - few) + ["own_helix"] * few,
            "value_rotation": None,
        }
    if name == "recall":
        return ordered | {
            "position": far,
            "token_shift": False,
            "short_convolution": 4,
            "directed": False,
        }
    if name == "series":
        return ordered | {
            "position": ["own_drift"] * (num_heads - half) + ["own_helix"] * half,
            "value_rotation": 100.0,
            "nearest_gate": False,
            "directed": False,
        }
    if name == "images":
        return unordered | {
            "axes": 2,
            "position": far,
            "window_range": (1.5, 6.0),
            "density_range": (0.3, 0.95),
        }
    return unordered | {
        "axes": 3,
        "freq_dim": 6,
        "position": "own_drift",
        "window_range": (0.8, 1.6),
        "frame": "absolute",
        "self_coupling": True,
        "eps": 1.0,
        "order_parameter": False,
    }

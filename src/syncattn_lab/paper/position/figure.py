"""The picture of the section on position."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from syncattn_lab.paper.section import Numbers

OWN, SHARED, PUBLISHED, ENCODED, THEORY = "#1b8a8f", "#0b4f6c", "#cf5c2b", "#8d63c4", "#8a929b"
# Positive values start at a visible tint, so that the page's colour is exactly 0 and nothing else.
TEAL = LinearSegmentedColormap.from_list("osn", ["#d5ecec", "#6fbabd", "#1b8a8f", "#0b4447"])
RUST = LinearSegmentedColormap.from_list("published", ["#f8e2d6", "#e6a283", "#cf5c2b", "#6b2a0e"])


def draw(numbers: Numbers) -> Figure:
    """S of one head without position, with a drift of its own, with a shared drift; density against
    length."""
    figure = Figure(figsize=(11, 3.35), layout="constrained")
    axes = figure.subplots(1, 4)
    matrices = numbers["matrices"]
    window = matrices["window"]
    _draw_matrix(axes[0], matrices["none"], RUST, "as published: no position", "S, content alone")
    _draw_matrix(
        axes[1],
        matrices["own_drift"],
        TEAL,
        "drift in its own coordinate",
        f"window: exactly {window} tokens",
    )
    _draw_band(axes[1], window + 0.5, "#26292e", "-", len(matrices["none"]))
    spread, weights = matrices["bound_of_spread"], matrices["bound_of_weights"]
    _draw_matrix(
        axes[2],
        matrices["drift"],
        TEAL,
        "drift shared with content",
        f"bound: {int(spread)} (content), {int(weights)} (weights)",
    )
    _draw_band(axes[2], spread, "#26292e", "-", len(matrices["none"]))
    _draw_band(axes[2], weights, THEORY, (0, (4, 3)), len(matrices["none"]))
    axes[0].set_ylabel("receiver")
    _draw_density(axes[3], numbers)
    return figure


def _draw_matrix(
    axes: Axes, matrix: list[list[float]], shades: LinearSegmentedColormap, title: str, below: str
) -> None:
    axes.imshow(np.ma.masked_equal(np.array(matrix), 0), cmap=shades, vmin=0, vmax=1, interpolation="nearest")
    axes.set(xticks=[], yticks=[], title=title, xlabel=f"sender\n{below}")


def _draw_band(axes: Axes, distance: float, colour: str, dashes: str | tuple, tokens: int) -> None:
    """Lines at |i - j| = distance."""
    ends = np.array([-0.5, tokens - 0.5])
    for sign in (-1, 1):
        axes.plot(ends, ends + sign * distance, color=colour, lw=0.9, ls=dashes)
    axes.set(xlim=(-0.5, tokens - 0.5), ylim=(tokens - 0.5, -0.5))


def _draw_density(axes: Axes, numbers: Numbers) -> None:
    lengths = np.array(numbers["lengths"])
    found = numbers["extrapolation"]
    lines = {  # label, colour, marker, and the label's height over the line's
        "none": ("no position", PUBLISHED, "o", 1.35),
        "sinusoidal": ("encoding added to tokens", ENCODED, "s", 0.7),
        "drift": ("shared drift", SHARED, "D", 1.35),
        "own_drift": ("own drift", OWN, "o", 0.75),
    }
    for name, (label, colour, marker, height) in lines.items():
        density = np.array(found[name]["density"])
        axes.loglog(lengths, density, color=colour, marker=marker, ms=4, lw=1.6)
        falls = "drift" in name
        at = lengths[0] * (lengths[-1] / lengths[0]) ** (0.5 if falls else 1.0)
        level = height * np.exp(np.interp(np.log(at), np.log(lengths), np.log(density)))
        above = height > 1
        side = "left" if falls and above else "right"
        axes.text(at, level, label, color=colour, ha=side, va="bottom" if above else "top", fontsize=8.5)
    # a row that locks to the same number of tokens wherever it stands; half of the 32 rows come later than it
    for name in ("own_drift", "drift"):
        axes.loglog(
            lengths,
            found[name]["locked"][-1] / (lengths - 15.5),
            color=THEORY,
            lw=1,
            ls=(0, (4, 3)),
            zorder=3,
        )
    axes.text(lengths[0], 2.2e-4, "dashed: constant per row", color=THEORY, fontsize=8.5)
    ticks = lengths if len(lengths) < 4 else lengths[::-2][::-1]
    axes.set_xticks(ticks, [f"{n:,}" for n in ticks])
    axes.minorticks_off()
    axes.set_box_aspect(1)
    axes.set(title="density against length", xlabel="tokens", ylim=(1.5e-4, 1))

"""Draw locking.png: a head's law of locking by its sharpness, the density by the radius, softmax as a limit.

python docs/figures/locking.py            # writes docs/figures/locking.png; needs matplotlib
"""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.axes import Axes

from syncattn import drawing, locking

COLOURS = ["#0b3c5d", "#2b7a9b", "#c2862b", "#8c3b1a"]


def law(axes: Axes) -> None:
    """S against the distance, at one locking radius."""
    distance = torch.linspace(0, 1.3, 400, dtype=torch.float64)
    for sharpness, colour in zip((0.1, 1.0, 10.0, 100.0), COLOURS):
        S = locking.synchronization(distance**2, *locking.coupling_from_radius(1.0, sharpness))
        axes.plot(distance, S, color=colour, label=f"c = {sharpness:g}")
    axes.axvline(1.0, color="#8a8f98", linewidth=0.8, linestyle=":")
    axes.set(title="synchronization S", xlabel="distance √D, in locking radii", ylim=(0, 1.03))
    axes.legend()


def density(axes: Axes) -> None:
    """The share of Gaussian frequencies that lock, against the radius at which half do."""
    for freq_dim, colour in zip((1, 4, 16, 64), COLOURS):
        half = locking.gaussian_radius(0.5, freq_dim)
        ratio = torch.linspace(0.01, 2, 400, dtype=torch.float64)
        axes.plot(
            ratio, locking.gaussian_density(ratio * half, freq_dim), color=colour, label=f"m = {freq_dim}"
        )
    axes.set(title="density of Gaussian frequencies", xlabel="radius, 1 where half of the pairs lock")
    axes.legend()


def limit(axes: Axes) -> None:
    """W against the score below the row's best, beside softmax."""
    score = torch.linspace(0, 8, 400, dtype=torch.float64)
    for coupling, colour in zip((3.0, 10.0, 100.0), COLOURS):
        # alpha 1/4 and D = 2 (s_max - s): the strength is the margin, with power 2
        margin = locking.locking_margin(2 * score, coupling, 0.25)
        axes.plot(score, margin.clamp(min=0), color=colour, label=f"κ = {coupling:g}")
    axes.plot(score, torch.exp(-score), color="#26292e", linewidth=0.9, linestyle="--", label="softmax")
    axes.set(title="strength W", xlabel="score below the row's largest", yscale="log", ylim=(3e-4, 1.2))
    axes.legend()


with drawing.canvas("light", 10.5, 3.3, "constrained") as figure:
    for axes, draw in zip(figure.subplots(1, 3), (law, density, limit)):
        draw(axes)
    Path(__file__).with_name("locking.png").write_bytes(drawing.png(figure))

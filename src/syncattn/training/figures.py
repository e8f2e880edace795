"""Densities over a run as a picture for pages without scripts, PNG bytes; and the models' colours."""

from __future__ import annotations

import math
from typing import Any

import matplotlib
import numpy as np

from syncattn.drawing import PAGES, canvas, png

COLOURS = {"osn": "#1b8a8f", "alibi": "#dd7a1c", "rotary": "#8d63c4"}


def densities(run: dict[str, Any], tokens_per_step: int, page: str) -> bytes:
    """Each head's density over one run, one panel per layer."""
    entries = [entry for entry in run["history"] if "density" in entry]
    values = np.array([entry["density"] for entry in entries])  # (T, layers, heads)
    read = np.array([entry["step"] for entry in entries]) * tokens_per_step
    _, layers, heads = values.shape
    columns = min(layers, 4)
    rows = math.ceil(layers / columns)
    with canvas(page, max(4.4, 2.9 * columns) + 1.1, 2.7 * rows + 0.3, "constrained") as figure:
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        colours = matplotlib.colormaps["viridis"](np.linspace(0.2 if page == "dark" else 0.0, 0.92, heads))
        for layer, axes in enumerate(grid.flat):
            if layer >= layers:
                axes.axis("off")
                continue
            for head in range(heads):
                axes.plot(read, values[:, layer, head], color=colours[head], lw=1.4, label=f"head {head + 1}")
            mean = values[:, layer].mean(axis=-1)
            axes.plot(read, mean, color=PAGES[page]["ink"], lw=1.6, ls=(0, (4, 2)), label="mean of the heads")
            axes.set_title(f"layer {layer + 1}")
            axes.set_ylim(0, 1)
            axes.set_xlim(left=0)
            axes.grid(axis="y", lw=0.6)
            axes.xaxis.set_major_formatter(_short)
        figure.supxlabel("tokens read", fontsize=10)
        figure.supylabel("density", fontsize=10)
        lines, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(lines, labels, loc="outside right center", fontsize=8.5)
        return png(figure)


def _short(value: float, position: float = 0) -> str:
    """A number of tokens as an axis shows it: 0, 50k, 1.5M."""
    if value >= 1e5:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if value else "0"

"""The report's pictures, as PNG bytes, each for a light and for a dark page."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm, to_rgb
from matplotlib.figure import Figure

from syncattn.drawing import PAGES, canvas, png

COLOURS = {"osn": "#1b8a8f", "alibi": "#dd7a1c", "rotary": "#8d63c4"}


def loss_curves(models: list[dict[str, Any]], tokens_per_step: int, page: str) -> bytes:
    """Training loss (pale) and validation loss (points) against tokens read; a line per model and seed."""
    with canvas(page, 8.2, 3.9, "constrained") as figure:
        axes = figure.subplots()
        lowest, starts = math.inf, []
        for model in models:
            colour = COLOURS[model["name"]]
            for index, run in enumerate(model["runs"]):
                step, training = _series(run, "loss")
                axes.plot(step * tokens_per_step, training, color=colour, lw=1.1, alpha=0.45)
                step, loss = _series(run, "validation_loss")
                label = model["title"] if index == 0 else None
                axes.plot(step * tokens_per_step, loss, color=colour, lw=1.8, marker="o", ms=4, label=label)
                lowest = min(lowest, *loss, *training)
                starts.append(loss[0])
        # The first steps fall from ln(vocabulary) and would flatten everything else.
        top = max(starts) + 0.15 * (max(starts) - lowest) + 0.05
        axes.set_ylim(lowest - 0.05 * (top - lowest), top)
        axes.set_xlim(left=0)
        axes.set_xlabel("tokens read")
        axes.set_ylabel("loss, nats per token")
        axes.xaxis.set_major_formatter(_short)
        axes.grid(axis="y", lw=0.6)
        axes.legend(
            title="points: validation · pale: training", title_fontsize=8.5, alignment="left", fontsize=9
        )
        return png(figure)


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


def weight_matrices(layer: list[list[list[float]]], labels: list[str], colour: str, page: str) -> bytes:
    """One layer's weights on a sentence, a panel per head: rows are tokens that listen, columns those read.

    All panels are one image with text around it: axes of their own, with a tick per token, take seconds to
        draw.
    """
    weights = np.array(layer)  # (heads, N, N)
    heads, size, _ = weights.shape
    columns = min(heads, 4)
    rows = math.ceil(heads / columns)
    ramp, norm = _ramp(colour, page), PowerNorm(0.5, 0, 1)
    paper, zero = (to_rgb(PAGES[page][name]) for name in ("paper", "zero"))
    seen = np.tril(np.ones((size, size), dtype=bool))
    gap = 4  # in tokens: room for a panel's title
    image = np.empty((rows * (size + gap), columns * (size + 2) - 2, 3))
    image[:] = paper
    margin = 0.5 + 0.045 * max(map(len, labels))  # inches for the tokens and the name of the axis
    panels = 2.7 * columns, 2.7 * rows * (size + gap) / size
    with canvas(page, margin + panels[0] + 0.9, margin + panels[1]) as figure:
        total = figure.get_figwidth(), figure.get_figheight()
        axes = figure.add_axes(
            (margin / total[0], margin / total[1], panels[0] / total[0], panels[1] / total[1])
        )
        for head in range(heads):
            top, left = (head // columns) * (size + gap) + gap, (head % columns) * (size + 2)
            shown = ramp(norm(weights[head]))[..., :3]
            shown[weights[head] == 0] = zero
            shown[~seen] = paper
            image[top : top + size, left : left + size] = shown
            nonzero = (weights[head][seen] > 0).mean()
            title = f"head {head + 1} · {100 * nonzero:.0f} % nonzero"
            axes.text(left + size / 2, top - 1.2, title, ha="center", va="bottom", fontsize=9)
            if head % columns == 0:
                _token_labels(axes, labels, left - 1, top, across=False)
            if head + columns >= heads:
                _token_labels(axes, labels, left, top + size, across=True)
        axes.imshow(image, interpolation="nearest", aspect="auto")
        axes.axis("off")
        centre = (margin + panels[0] / 2) / total[0], (margin + panels[1] / 2) / total[1]
        figure.text(centre[0], 0.1 / total[1], "token that is read", ha="center", fontsize=9.5)
        figure.text(
            0.15 / total[0],
            centre[1],
            "token that listens",
            rotation=90,
            ha="center",
            va="center",
            fontsize=9.5,
        )
        _colour_bar(figure, ramp, norm)
        return png(figure)


def _token_labels(axes: Axes, labels: list[str], x: float, y: float, across: bool) -> None:
    longest = max(map(len, labels))
    size = 6.5 if longest <= 2 else 5.0
    for index, label in enumerate(labels):
        # `parse_math=False`: a dollar sign in the text is a dollar sign.
        if across:
            upright = {"rotation": 90, "va": "top"} if longest > 2 else {"va": "top"}
            axes.text(x + index, y, label, ha="center", fontsize=size, parse_math=False, **upright)
        else:
            axes.text(x, y + index, label, ha="right", va="center", fontsize=size, parse_math=False)


def _colour_bar(figure: Figure, ramp: LinearSegmentedColormap, norm: PowerNorm) -> None:
    width, height = figure.get_figwidth(), figure.get_figheight()
    axes = figure.add_axes((1 - 0.75 / width, 0.5, 0.14 / width, min(1.8 / height, 0.38)))
    axes.imshow(ramp(np.linspace(1, 0, 128))[:, None], aspect="auto", extent=(0, 1, 0, 1))
    ticks = (0, 0.1, 0.25, 0.5, 1)
    axes.yaxis.tick_right()
    axes.set_yticks([float(norm(t)) for t in ticks], [f"{t:g}" for t in ticks], fontsize=8.5)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.set_title("weight", fontsize=9.5)
    for side in axes.spines.values():
        side.set_visible(False)


def _ramp(colour: str, page: str) -> LinearSegmentedColormap:
    """From a tint that is not the colour of exact zeros, through the model's colour, to the ink's."""
    paper, full = (np.array(to_rgb(c)) for c in (PAGES[page]["paper"], colour))
    return LinearSegmentedColormap.from_list(
        "weights", [tuple(0.7 * paper + 0.3 * full), colour, PAGES[page]["ink"]]
    )


def both_pages(draw: Callable[[str], bytes]) -> tuple[bytes, bytes]:
    """The same figure for a light and for a dark page."""
    return draw("light"), draw("dark")


def _short(value: float, position: float = 0) -> str:
    """A number of tokens as an axis shows it: 0, 50k, 1.5M."""
    if value >= 1e5:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if value else "0"


def _series(run: dict[str, Any], name: str) -> tuple[np.ndarray, np.ndarray]:
    entries = [entry for entry in run["history"] if name in entry]
    return np.array([entry["step"] for entry in entries]), np.array([entry[name] for entry in entries])

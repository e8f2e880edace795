"""The pictures of the weight matrices at initialisation: figure 4, and its statistics head by head."""

from __future__ import annotations

import math
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor

from syncattn_lab.paper.matrices import statistics
from syncattn_lab.paper.section import Numbers

# name -> (label, what it is, colour)
LABELS = {
    "published_figure": ("published,\nfigure's setting", "raw K 100, raw α −5", "#cf5c2b"),
    "published_default": ("published,\ndefault", "raw K 1, raw α 1", "#cf5c2b"),
    "calibrated": ("calibrated", "density .05 to .5", "#0b6e8f"),
    "calibrated_alike": ("calibrated,\nheads alike", "density .16", "#0b6e8f"),
    "trainable": ("trainable\ndefault", "causal, drift, delay", "#1b8a8f"),
    "softmax": ("softmax", "nn.MultiheadAttention", "#8d63c4"),
    "softmax_linear": ("softmax", "nn.Linear's default", "#8d63c4"),
}
ROWS = ("published_figure", "published_default", "calibrated", "softmax")  # of figure 4
SHADES = LinearSegmentedColormap.from_list(
    "weights", ["#e3f1f5", "#8cc8d8", "#2b92ac", "#0b5a78", "#06263a"]
).with_extremes(bad="white")
# The scale of every matrix: P as a multiple of the uniform share, clipped at both ends.
LOW, HIGH = 2.0**-4, 2.0**5
LEVELS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"  # "0" is exactly 0 and nothing else


def encode(relative: Tensor) -> list[str]:
    """A matrix of weights over the uniform share, (R, C), as one string per row, one character per weight.

    "0" stands for exactly 0; the other 61 levels of LEVELS for multiples LOW to HIGH, evenly in the
    logarithm. What lies beyond takes the nearest level.
    """
    steps = len(LEVELS) - 2
    at = torch.log(relative.double().clamp(LOW, HIGH) / LOW) / math.log(HIGH / LOW) * steps
    levels = torch.where(relative > 0, 1 + at.round(), 0.0).long()
    return ["".join(LEVELS[level] for level in row) for row in levels.tolist()]


def decode(rows: list[str]) -> Tensor:
    """The inverse of `encode`, up to the levels' width: (R, C) float64, 0 where it was exactly 0."""
    levels = torch.tensor([[LEVELS.index(one) for one in row] for row in rows], dtype=torch.float64)
    value = LOW * (HIGH / LOW) ** ((levels - 1) / (len(LEVELS) - 2))
    return torch.where(levels > 0, value, 0.0)


COLUMNS = (
    ("density", "density"),
    ("off_diagonal_mass", "weight on\nothers"),
    ("effective_share", "$N_{eff}/N$"),
    ("total_variation", "distance\nfrom\nuniform"),
    ("divergence", "divergence\nof heads"),
    ("over_shuffled", "minus\nchance"),
)


def draw_matrices(numbers: Numbers) -> Figure:
    """Figure 4: eight heads of four settings on one scale, with the means of their statistics."""
    heads = numbers["heads"]
    panel, gap, row_height, left, top, column = 0.8, 0.05, 1.06, 1.36, 0.62, 0.62
    width = left + heads * (panel + gap) + len(COLUMNS) * column + 0.1
    height = top + len(ROWS) * row_height + 0.62
    figure = Figure(figsize=(width, height))

    def place(x: float, y: float, w: float, h: float) -> Axes:
        """Axes at inches from the upper left corner: a weight is a whole number of pixels."""
        return figure.add_axes((x / width, 1 - (y + h) / height, w / width, h / height))

    def write(x: float, y: float, text: str, **style: Any) -> None:
        figure.text(x / width, 1 - y / height, text, **style)

    image = None
    for row, name in enumerate(ROWS):
        setting = numbers["settings"][name]
        label, detail, colour = LABELS[name]
        y = top + row * row_height
        write(0.08, y + panel / 2 - 0.07, label, color=colour, fontweight="bold", va="center", fontsize=9.5)
        write(0.08, y + panel / 2 + (0.13 if "\n" in label else 0.04), detail, va="top", fontsize=7.5)
        for h in range(heads):
            axes = place(left + h * (panel + gap), y, panel, panel)
            relative = decode(setting["picture"][h])
            image = axes.imshow(
                relative.where(relative > 0, torch.nan).numpy(),
                cmap=SHADES,
                norm=LogNorm(LOW, HIGH),
                interpolation="nearest",
            )
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_visible(True)
            share = setting["per_head"]["density"][h]
            axes.set_xlabel(_short(share), fontsize=7.5, labelpad=2)
            if row == 0:
                axes.set_title(f"head {h + 1}", fontsize=8.5, pad=4)
        for c, (statistic, _) in enumerate(COLUMNS):
            x = left + heads * (panel + gap) + (c + 0.55) * column
            write(x, y + panel / 2, _mean(setting, statistic), ha="center", va="center", fontsize=9.5)
    for c, (_, title) in enumerate(COLUMNS):
        x = left + heads * (panel + gap) + (c + 0.55) * column
        write(x, top - 0.08, title, ha="center", va="bottom", fontsize=7.8, linespacing=1.05)
    write(left - 0.08, top + panel + 0.09, "density", fontsize=7.5, ha="right", va="center")
    bar = place(left + 2 * (panel + gap), height - 0.48, 3 * panel, 0.11)
    assert image is not None
    colours = Colorbar(bar, image, orientation="horizontal", extend="both")
    colours.set_ticks([1 / 16, 1 / 4, 1, 4, 16], labels=["1/16", "1/4", "1", "4", "16"])
    bar.tick_params(which="both", labelsize=8, length=2)
    bar.minorticks_off()
    x = left + 2 * (panel + gap) - 0.15
    write(x, height - 0.43, "weight over the uniform share", ha="right", va="center", fontsize=8.5)
    text = (
        f"white: exactly 0. All matrices on one scale; first {numbers['shown']} of {numbers['tokens']} tokens"
    )
    write(left + 5 * (panel + gap) + 0.25, height - 0.43, text, va="center", fontsize=8.5)
    return figure


PANELS = (
    ("density", "density"),
    ("off_diagonal_mass", "weight on others"),
    ("effective_share", "$N_{eff}/N$"),
    ("total_variation", "distance from uniform"),
)


def draw_statistics(numbers: Numbers) -> Figure:
    """Every head of every setting by its statistics, and the divergence between heads beside chance."""
    figure = Figure(figsize=(10.5, 4.2), layout=ConstrainedLayoutEngine(wspace=0.06))
    panels = figure.subplots(1, len(PANELS) + 1, sharey=True)
    names = list(LABELS)
    for axes, (statistic, title) in zip(panels, PANELS):
        for row, name in enumerate(names):
            values = numbers["settings"][name]["per_head"][statistic]
            offsets = [0.42 * (h / (len(values) - 1) - 0.5) for h in range(len(values))]
            at = [row + offset for offset in offsets]
            axes.plot(
                values, at, "o", color=LABELS[name][2], markersize=4, alpha=0.85, clip_on=False, zorder=3
            )
        axes.set_title(title, fontsize=9.5)
        axes.set_xlim(0, 1)
    axes = panels[-1]
    for row, name in enumerate(names):
        setting = numbers["settings"][name]
        if setting["divergence"] is None:
            axes.text(0.03, row, "no head hears others", va="center", fontsize=8)
            continue
        axes.plot(
            [setting["divergence_shuffled"]] * 2,
            [row - 0.28, row + 0.28],
            color="#8a9099",
            linewidth=2,
            zorder=2,
        )
        axes.plot(
            setting["divergence"], row, "o", color=LABELS[name][2], markersize=6, clip_on=False, zorder=3
        )
    axes.set_title("heads' divergence\n(grey: by chance)", fontsize=9.5)
    axes.set_xlim(0, 1)
    for axes in panels:
        axes.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
        axes.grid(axis="x", linewidth=0.6)
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(
        range(len(names)),
        [LABELS[n][0].replace("\n", " ") + "\n" + LABELS[n][1] for n in names],
        fontsize=8.5,
    )
    for tick, name in zip(panels[0].get_yticklabels(), names):
        tick.set_color(LABELS[name][2])
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    return figure


def _mean(setting: Numbers, statistic: str) -> str:
    if statistic == "over_shuffled":
        over = setting["over_shuffled"]
        return "–" if over is None else _short(over["mean"])
    value = setting["divergence"] if statistic == "divergence" else setting["mean"][statistic]
    return "–" if value is None else _short(value)


def _short(value: float) -> str:
    """At most three digits after the point, without the 0 before it; a small one as <.001, signless."""
    if value in (0, 1):
        return str(int(value))
    if abs(value) < 0.001:
        return "<.001"
    text = f"{abs(value):.3f}" if abs(value) < 0.1 or abs(value) > 0.99 else f"{abs(value):.2f}"
    return ("−" if value < 0 else "") + text.removeprefix("0")


def table(numbers: Numbers) -> str:
    """Every setting's statistics as Markdown, and what they mean."""
    lines = [
        f"Means over {numbers['heads']} heads and {numbers['draws']} draws of weights and tokens, "
        f"{numbers['tokens']} tokens.",
        "",
        "| setting | density | weight on others | isolated rows | N_eff / N | N_eff / locked | total "
        "variation | among others | sd heads / sd draws | divergence | minus masks | minus shuffled |",
        "| --- |" + " --- |" * 11,
    ]
    for name, setting in numbers["settings"].items():
        label, detail, _ = LABELS[name]
        cells = [f"{setting['mean'][statistic]:.3f}" for statistic in statistics.PER_HEAD]
        cells.append(f"{setting['sd_heads']:.4f} / {setting['sd_draws']:.4f}")
        cells.append("none" if setting["divergence"] is None else f"{setting['divergence']:.4f}")
        for over in (setting["over_masks"], setting["over_shuffled"]):
            cells.append("none" if over is None else f"{over['mean']:+.4f} ± {over['error']:.4f}")
        lines.append(f"| {' '.join(label.split())} ({detail}) | {' | '.join(cells)} |")
    lines += [
        "",
        "Density counts pairs of different tokens. Divergence is Jensen-Shannon's between the heads, on "
        "what each row reads from others; masks: of independent random masks of the same densities; "
        "shuffled: with each row's own weights in random places. ±: one standard error.",
    ]
    return "\n".join(lines) + "\n"

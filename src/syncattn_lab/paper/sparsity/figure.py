"""The picture of the density law: how the share of locked pairs grows with the locking radius."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from syncattn.drawing import PAGES
from syncattn_lab.paper.section import Numbers

PUBLISHED = "#cf5c2b"
SHADES = ("#a9d8e3", "#7cc3d3", "#4fabc0", "#2b92ac", "#0b6e8f", "#0a526d", "#083a52")  # m from 1 to 64


def draw_law(numbers: Numbers) -> Figure:
    """The density law for each m with what was counted, the mixtures, and the width of the transition."""
    colours = PAGES["light"]
    figure = Figure(figsize=(10.5, 7.4), layout="constrained")
    panels = figure.subplot_mosaic([["law", "law"], ["mixtures", "width"]], height_ratios=[1.15, 1])
    axes = panels["law"]
    for one, shade in zip(numbers["law"], SHADES):
        axes.plot(one["curve"]["radius"], one["curve"]["density"], color=shade, linewidth=1.8)
        _points(axes, one, shade)
        axes.plot([], [], color=shade, marker="o", markersize=4.5, label=f"$m$ = {one['m']}")
    for name, text, where in (
        ("published_default", "published default:\n{locked} of {pairs:,} pairs lock", (0.03, 0.72)),
        ("published_figure", "published figure:\nall {locked:,} pairs lock", (2.12, 0.78)),
    ):
        at, pairs = numbers["published"][name], numbers["published"]["pairs"]
        share = at["locked"] / pairs
        axes.plot(at["radius"], share, marker="D", color=PUBLISHED, markersize=8, clip_on=False, zorder=5)
        axes.annotate(
            text.format(locked=at["locked"], pairs=pairs),
            (at["radius"], share),
            xytext=where,
            color=PUBLISHED,
            va="center",
            arrowprops={"arrowstyle": "-", "color": PUBLISHED, "linewidth": 0.8, "shrinkA": 2, "shrinkB": 5},
        )
    axes.set_title("Density law: lines from theory, points counted", loc="left", fontweight="bold")
    axes.legend(loc="lower right", ncols=1, bbox_to_anchor=(0.99, 0.02))
    axes.set_xlim(0, 2.6)

    axes = panels["mixtures"]
    for one, shade in zip(numbers["mixtures"], (SHADES[1], SHADES[3], SHADES[6])):
        label = f"$m$ = {one['m']}, {one['clusters']} clusters"
        axes.plot(one["curve"]["radius"], one["curve"]["density"], color=shade, linewidth=1.8)
        _points(axes, one, shade)
        axes.plot([], [], color=shade, marker="o", markersize=4.5, label=label)
    axes.set_title("Frequencies in clusters", loc="left", fontweight="bold")
    axes.legend(loc="lower right")
    axes.set_xlim(0, 2.6)
    for axes in (panels["law"], panels["mixtures"]):
        axes.set_xlabel(r"locking radius over the frequencies' spread, $\rho\,/\,(s\sqrt{2m})$")
        axes.set_ylabel("share of pairs that lock")
        axes.set_ylim(-0.02, 1.04)
        axes.grid(linewidth=0.6)

    axes = panels["width"]
    dimensions = [one["m"] for one in numbers["law"]]
    axes.plot(
        dimensions,
        [one["width"]["law"] for one in numbers["law"]],
        color=colours["ink"],
        alpha=0.45,
        linewidth=1.5,
    )
    for one, shade in zip(numbers["law"], SHADES):
        width = one["width"]["measured"]
        axes.plot(one["m"], width, marker="o", color=shade, markersize=6)
        axes.annotate(
            f"{width:.3g}", (one["m"], width), xytext=(5, 6), textcoords="offset points", fontsize=9
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(dimensions, [str(m) for m in dimensions])
    axes.set_yticks([1, 2, 5, 10], ["1", "2", "5", "10"])
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(0.85, 100)
    axes.set_ylim(1, 18)
    axes.set_xlabel("coordinates of a frequency, $m$")
    axes.set_ylabel(r"$\rho$ at 90 % over $\rho$ at 10 %")
    axes.set_title("Room for error narrows with $m$", loc="left", fontweight="bold")
    axes.grid(linewidth=0.6)
    return figure


def _points(axes: Axes, one: Numbers, shade: str) -> None:
    axes.plot(
        [point["radius"] for point in one["points"]],
        [point["measured"] for point in one["points"]],
        linestyle="none",
        marker="o",
        markersize=4.5,
        color=shade,
        markeredgecolor="white",
        markeredgewidth=0.7,
    )

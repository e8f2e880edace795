"""Draw what the examples of docs/positions.md learn: each trains its model, then a picture is made of it.

    python docs/figures/positions.py                 # images, series and points; needs matplotlib
    python docs/figures/positions.py series          # one of them

Writes docs/figures/images.png, series.png and points.png. The numbers are those of examples/digits.py,
series.py and points.py, which run first, with their own seeds.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle

HERE = Path(__file__).parent
INK, FAINT, LINE = "#1d2733", "#6b7682", "#c9d0d6"
LOCKED, OTHER = "#0b6e8f", "#cf5c2b"
# Positive weights start at a visible tint, so that what shows no tint weighs exactly 0.
SHADES = LinearSegmentedColormap.from_list("sync", ["#bfe0ea", "#66b0c8", "#0b6e8f", "#083a52"])


def example(name: str) -> dict[str, Any]:
    """What a script of examples/ leaves behind: its model and its data."""
    return runpy.run_path(str(HERE.parents[1] / "examples" / f"{name}.py"))


@torch.no_grad()
def images(found: dict[str, Any]) -> None:
    """One digit, one of its patches, and whom it hears: every head of both layers."""
    image = found["x"][found["test"]][:1]  # the first test image
    focus = 4 * 2 + 1  # of the 4 x 4 patches, in the third row the second
    attentions = found["model"](image, output_attentions=True).attentions
    figure, axes = plt.subplots(2, 4, figsize=(9.6, 5.2))
    for row, weights in zip(axes, attentions):
        for head, at in enumerate(row):
            at.imshow(image[0, 0], cmap="gray_r", vmin=-1, vmax=1.6, extent=(0, 8, 8, 0))
            for patch, weight in enumerate(weights[0, head, focus].tolist()):
                y, x = divmod(patch, 4)
                edge = {"edgecolor": LINE, "linewidth": 0.6}
                if weight > 0:
                    at.add_patch(
                        Rectangle((2 * x, 2 * y), 2, 2, facecolor=SHADES(weight), alpha=0.75, **edge)
                    )
                    at.text(
                        *(2 * x + 1, 2 * y + 1, f"{weight:.2f}".lstrip("0")),
                        ha="center",
                        va="center",
                        fontsize=8,
                        color="white" if weight > 0.3 else INK,
                    )
                else:
                    at.add_patch(Rectangle((2 * x, 2 * y), 2, 2, fill=False, **edge))
            y, x = divmod(focus, 4)
            at.add_patch(Rectangle((2 * x, 2 * y), 2, 2, fill=False, edgecolor=OTHER, linewidth=2.2))
            form = found["model"].config.position[head]
            at.set_title(f"head {head} ({form})", fontsize=9, color=INK)
            at.set(xticks=[], yticks=[])
    for row, name in zip(axes, ("first layer", "second layer")):
        row[0].set_ylabel(name, fontsize=10, color=INK)
    save(figure, "images")


@torch.no_grad()
def series(found: dict[str, Any]) -> None:
    """One year's forecast from two years with gaps, and whom one week of it hears."""
    model, last = found["model"], found["PAST"]
    row = len(found["past"]) // 2
    past, future = found["past"][row : row + 1], found["future"][row, :, 0]
    attentions = model(past, output_attentions=True).attentions[0][0]  # (H, N + P, N + P)
    weeks = torch.arange(last + found["NEXT"])
    week = last + 30
    figure, (above, *below) = plt.subplots(
        5, 1, figsize=(9.6, 7.2), sharex=True, height_ratios=[4, 1, 1, 1, 1]
    )
    above.plot(weeks[:last], past[0, :, 0], "o", color=INK, markersize=3, label="measured, and given")
    above.plot(weeks[last:], future, "o", color=LINE, markersize=3, label="measured, not given")
    for (name, values), colour in zip(found["told"].items(), (LOCKED, OTHER)):
        above.plot(weeks[last:], values[row, :, 0], color=colour, linewidth=1.6, label=name)
    above.legend(frameon=False, fontsize=9)
    above.set_ylabel("CO2, ppm")
    for head, at in enumerate(below):
        weights = attentions[head, week]
        heard = weights > 0
        at.bar(weeks[heard], weights[heard], width=0.9, color=LOCKED)
        at.set_ylabel(f"head {head}\n{model.config.position[head]}", fontsize=8)
        at.set_ylim(0, 1.05 * weights.max())
    for at in (above, *below):
        at.axvline(week, color=OTHER, linewidth=0.8, linestyle=":")
        at.axvline(last - 0.5, color=LINE, linewidth=0.8)
    below[-1].set_xlabel(
        "weeks; the bars are the weights with which the dotted week hears others, first layer"
    )
    save(figure, "series")


@torch.no_grad()
def points(found: dict[str, Any]) -> None:
    """One particle and whom it hears in each head of the first layer; forces, told and true."""
    torch.manual_seed(1)
    places, charges = found["cloud"](1, 500)
    inputs = {"inputs_embeds": found["embed"](charges), "positions": places}
    weights = found["base"](**inputs, output_attentions=True).attentions[0][0]  # (H, N, N)
    where = places[0]
    focus = int((where - where.mean(0)).norm(dim=-1).argmin())  # near the middle
    figure, axes = plt.subplots(1, 3, figsize=(12.6, 4.2))
    for at, head in zip(
        axes, (int(weights.gt(0).sum((1, 2)).argmin()), int(weights.gt(0).sum((1, 2)).argmax()))
    ):
        heard = weights[head, focus] > 0
        heard[focus] = False
        at.scatter(*where[~heard, :2].T, s=5, color=LINE)
        at.scatter(
            *where[heard, :2].T,
            s=30,
            c=weights[head, focus][heard],
            cmap=SHADES,
            edgecolor=INK,
            linewidth=0.4,
        )
        at.scatter(*where[focus, :2], s=70, marker="*", color=OTHER, zorder=3)
        reach = (where[heard] - where[focus]).norm(dim=-1).max() if heard.any() else 0
        at.set_title(
            f"head {head} hears {int(heard.sum())} of 499, none farther than {reach:.2f}", fontsize=9
        )
        at.set(aspect="equal", xticks=[], yticks=[])
    told, true = found["model"](places, charges)[0], found["forces"](places, charges)[0]
    axes[2].scatter(true.flatten(), told.flatten(), s=4, color=LOCKED, alpha=0.5)
    ends = [float(true.min()), float(true.max())]
    axes[2].plot(ends, ends, color=OTHER, linewidth=0.8)
    axes[2].set(xlabel="force, each component", ylabel="told", aspect="equal")
    save(figure, "points")


def save(figure: Any, name: str) -> None:
    """Write docs/figures/NAME.png."""
    for at in figure.axes:
        for side in ("top", "right"):
            at.spines[side].set_visible(False)
        at.tick_params(labelsize=8, colors=FAINT)
    figure.tight_layout()
    figure.savefig(HERE / f"{name}.png", dpi=110, bbox_inches="tight")
    plt.close(figure)


if __name__ == "__main__":
    drawn = {"images": (images, "digits"), "series": (series, "series"), "points": (points, "points")}
    for name in sys.argv[1:] or drawn:
        draw, script = drawn[name]
        draw(example(script))

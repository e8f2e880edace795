"""Figure 1: tokens on the phase circle, on the frequency axis, and their synchronization."""

from __future__ import annotations

import math

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure

from syncattn.locking import synchronization
from syncattn_lab.paper.section import Numbers

GROUPS = ("function words", "content words")
COLOURS = ("#0b6e8f", "#b8761a")
THRESHOLD = "#6b7682"


def draw(numbers: Numbers) -> Figure:
    """(a) the phase circle, (b) the frequency axis, (c) the matrix, sorted and in the sentence's order."""
    figure = Figure(figsize=(10, 6.2), layout="constrained")
    panels = figure.subplot_mosaic(
        [["circle", "axis", "axis"], ["circle", "sorted", "sentence"]],
        width_ratios=[1.75, 1, 1],
        height_ratios=[1, 1.12],
    )
    _circle(panels["circle"], numbers)
    _axis(panels["axis"], numbers)
    _matrix(panels["sorted"], numbers, numbers["order"])
    _matrix(panels["sentence"], numbers, list(range(len(numbers["words"]))))
    panels["circle"].set_title("a  Locked phases keep together", loc="left", weight="bold")
    panels["axis"].set_title("b  Frequencies within the threshold lock", loc="left", weight="bold")
    panels["sorted"].set_title("c  S, sorted by frequency", loc="left", weight="bold")
    panels["sentence"].set_title("S, in the sentence's order", loc="left")
    return figure


def _circle(axes: Axes, numbers: Numbers) -> None:
    turn = np.linspace(0, 2 * math.pi, 361)
    axes.plot(np.cos(turn), np.sin(turn), color="#c9d0d6", linewidth=1, zorder=0)
    # The picture is turned so that the groups stand left and right; only differences of phases mean anything.
    group = np.array(numbers["group"])
    phase = np.array(numbers["phase"])
    phase = phase - np.angle(np.exp(1j * phase[group == 1]).mean())
    at = np.exp(1j * phase)
    for i in range(len(at)):
        for j in range(i):
            if (s := numbers["sync"][i][j]) > 0:
                ends = at[[i, j]]
                axes.plot(
                    ends.real, ends.imag, color=COLOURS[group[i]], linewidth=0.5 + 3 * s, alpha=0.45, zorder=1
                )
    for i, word in enumerate(numbers["words"]):
        axes.plot(at[i].real, at[i].imag, "o", color=COLOURS[group[i]], markersize=10, zorder=2)
        spot = 1.17 * at[i]
        axes.text(
            spot.real,
            spot.imag,
            word,
            ha="left" if spot.real > 0 else "right",
            va="center",
            fontsize=12,
            weight="bold" if word == "." else "normal",
        )
    mean = np.array(numbers["mean_frequency"])
    for g, name in enumerate(GROUPS):
        speed = mean[group == g].mean()
        side = (-1, 1)[g]
        start = 0.5 * math.pi - side * 0.72  # beside the top, each arrow in its own group's direction
        arc = 1.13 * np.exp(1j * (start + math.copysign(0.5, speed) * np.linspace(0, 1, 30)))
        axes.plot(arc.real[:-2], arc.imag[:-2], color=COLOURS[g], linewidth=1.4)
        axes.annotate(
            "",
            (arc[-1].real, arc[-1].imag),
            (arc[-4].real, arc[-4].imag),
            arrowprops={"arrowstyle": "-|>", "color": COLOURS[g], "shrinkA": 0, "shrinkB": 0},
        )
        axes.text(
            side * 0.82,
            1.34,
            f"{name}\nturn at {speed:+.2f}".replace("-", "\N{MINUS SIGN}"),
            color=COLOURS[g],
            ha="center",
            va="center",
        )
    axes.text(0, -1.3, "lines join locked pairs; thickness is S", ha="center", fontsize=9, color=THRESHOLD)
    axes.plot([-1.5, 1.5], [-1.42, 1.55], alpha=0)  # room for the words
    axes.set_aspect("equal", adjustable="datalim")  # fills its place, so that the titles are level
    axes.axis("off")


def _axis(axes: Axes, numbers: Numbers) -> None:
    frequency = np.array(numbers["frequency"])
    group = np.array(numbers["group"])
    for g, colour in enumerate(COLOURS):
        members = np.flatnonzero(group == g)
        focus = members[np.argsort(frequency[members])[len(members) // 2]]
        # dense towards the edges, where S falls steeply
        grid = frequency[focus] + numbers["radius"] * np.sin(np.linspace(-0.5 * math.pi, 0.5 * math.pi, 401))
        squared = torch.from_numpy((grid - frequency[focus]) ** 2)
        s = synchronization(squared, numbers["coupling"], numbers["bandwidth"]).numpy()
        axes.fill_between(grid, s, color=colour, alpha=0.13, linewidth=0)
        axes.plot(grid, s, color=colour, linewidth=1.6)
        for side in (-1, 1):
            axes.axvline(
                frequency[focus] + side * numbers["radius"],
                ymax=0.77,
                color=THRESHOLD,
                linestyle=(0, (4, 3)),
                linewidth=0.9,
            )
        axes.annotate(
            "",
            (frequency[focus], 1.1),
            (frequency[focus] + numbers["radius"], 1.1),
            arrowprops={"arrowstyle": "<->", "color": THRESHOLD, "shrinkA": 0, "shrinkB": 0},
        )
        axes.text(
            frequency[focus] + 0.5 * numbers["radius"], 1.15, r"$\rho$", ha="center", va="bottom", fontsize=11
        )
        axes.text(
            frequency[focus] - 0.04,
            1.15,
            f"S to \N{LEFT DOUBLE QUOTATION MARK}{numbers['words'][focus]}\N{RIGHT DOUBLE QUOTATION MARK}",
            ha="right",
            va="bottom",
            color=colour,
            fontsize=9.5,
        )
    for i, word in enumerate(numbers["words"]):
        axes.plot(frequency[i], 0, "o", color=COLOURS[group[i]], markersize=7, clip_on=False, zorder=3)
        axes.annotate(
            word,
            (frequency[i], 0),
            (0, -8 - 12 * (list(numbers["order"]).index(i) % 2)),  # neighbours' words stand in two rows
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=10,
            weight="bold" if word == "." else "normal",
            annotation_clip=False,
        )
    between = 0.5 * (frequency[group == 0].max() + frequency[group == 1].min())
    axes.text(between, 0.86, "locking\nthreshold", ha="center", va="center", fontsize=8, color=THRESHOLD)
    axes.set_xlim(-2.75, 2.75)
    axes.set_ylim(0, 1.36)
    axes.set_yticks([0, 0.5, 1])
    axes.set_xticks([-2, 0, 2])
    axes.tick_params(axis="x", pad=26)
    axes.set_xlabel("natural frequency", labelpad=1)
    axes.set_ylabel("synchronization", y=0.36)
    axes.spines["left"].set_bounds(0, 1)


def _matrix(axes: Axes, numbers: Numbers, order: list[int]) -> None:
    words = [numbers["words"][i] for i in order]
    sync = np.array(numbers["sync"])[np.ix_(order, order)]
    picture = np.ones((*sync.shape, 3))  # exactly 0 stays paper-white
    for i, j in zip(*np.nonzero(sync)):
        picture[i, j] = _shade(COLOURS[numbers["group"][order[i]]])(sync[i, j])[:3]
        axes.text(
            j,
            i,
            f"{sync[i, j]:.2f}".lstrip("0").replace("1.00", "1"),
            ha="center",
            va="center",
            fontsize=8,
            color="white" if sync[i, j] > 0.62 else "#26292e",
        )
    axes.imshow(picture)
    ticks = range(len(words))
    axes.set_xticks(ticks, words)
    axes.set_yticks(ticks, words)
    axes.set_xticks([t - 0.5 for t in ticks[1:]], minor=True)
    axes.set_yticks([t - 0.5 for t in ticks[1:]], minor=True)
    axes.grid(which="minor", color="#e6eaed", linewidth=0.6)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(True)
    zeros = int((sync == 0).sum())
    axes.set_xlabel(f"{zeros} of {sync.size} exactly 0 (white)", fontsize=9)


def _shade(colour: str) -> LinearSegmentedColormap:
    """From a tint that cannot be taken for white to the colour itself."""
    tint = [1 - 0.22 * (1 - part) for part in to_rgb(colour)]
    return LinearSegmentedColormap.from_list("shade", [tuple(tint), to_rgb(colour)])

"""Figure 5: the order parameter over random inputs, by position, and against what locks."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from syncattn_lab.paper.section import Numbers

OSN, PUBLISHED, THEORY, INK = "#0b6e8f", "#cf5c2b", "#6b7682", "#26292e"
PUBLISHED_MEAN, PUBLISHED_SD = 0.847, 0.002  # as the paper's figure gives them


def draw(numbers: Numbers) -> Figure:
    figure = Figure(figsize=(10, 3.5), layout="constrained")
    distribution, running, alike = figure.subplots(1, 3, width_ratios=[1, 1.1, 1])
    _distribution(distribution, numbers)
    _running(running, numbers)
    _alike(alike, numbers)
    return figure


def _distribution(axes: Axes, numbers: Numbers) -> None:
    value = numbers["value"]
    r = np.array(value["r"])  # (inputs, H)
    low, high = r.min() - 0.0004, r.max() + 0.0004
    edges = np.linspace(low, high, 29)
    axes.axvspan(
        PUBLISHED_MEAN - PUBLISHED_SD, PUBLISHED_MEAN + PUBLISHED_SD, color=PUBLISHED, alpha=0.13, linewidth=0
    )
    axes.axvline(PUBLISHED_MEAN, color=PUBLISHED, linewidth=1.2)
    heights, _, _ = axes.hist(
        r.ravel(), edges.tolist(), color=OSN, alpha=0.8, edgecolor="white", linewidth=0.4
    )
    axes.axvline(value["limit"], color=THEORY, linestyle=(0, (4, 3)), linewidth=1.2)
    top = float(np.max(heights))
    axes.set_ylim(0, 1.42 * top)
    # above the bars, one at each side
    axes.text(
        PUBLISHED_MEAN + 0.0003,
        1.40 * top,
        f"published\n{PUBLISHED_MEAN} \N{PLUS-MINUS SIGN} {PUBLISHED_SD}",
        color=PUBLISHED,
        va="top",
        fontsize=9,
    )
    axes.text(
        value["limit"] - 0.0003,
        1.40 * top,
        f"$e^{{-1/6}}$\n{value['limit']:.4f}",
        color=THEORY,
        ha="right",
        va="top",
        fontsize=9,
    )
    axes.text(
        0.99,
        0.74,
        f"measured\n{value['mean']:.4f}\n\N{PLUS-MINUS SIGN} {r.std(ddof=1):.4f}",
        transform=axes.transAxes,
        color=OSN,
        ha="right",
        va="top",
        fontsize=9,
    )
    axes.set_xlim(low, high)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(f"r: {value['inputs']} inputs, {numbers['heads']} heads, {numbers['tokens']} tokens")
    axes.set_title("a  At initialisation", loc="left", weight="bold")


def _running(axes: Axes, numbers: Numbers) -> None:
    running, limit = numbers["running"], numbers["value"]["limit"]
    mean, sd = np.array(running["mean"]), np.array(running["sd"])
    at = np.arange(1, len(mean) + 1)
    axes.axhline(limit, color=THEORY, linestyle=(0, (4, 3)), linewidth=1.2)
    axes.fill_between(at, mean - sd, np.minimum(mean + sd, 1), color=OSN, alpha=0.2, linewidth=0)
    fine = np.geomspace(1, len(mean), 200)
    axes.plot(
        fine,
        np.sqrt(limit**2 + (1 - limit**2) / fine),
        color=THEORY,
        linewidth=1.1,
        linestyle=(0, (1.5, 1.2)),
        label=r"$\sqrt{R^2 + (1 - R^2)/n}$",
    )
    axes.plot(
        fine,
        limit + (1 - limit**4) / (4 * limit * fine),
        color=INK,
        linewidth=1.2,
        label=r"$R + (1 - R^4) / 4Rn$",
        zorder=3,
    )
    shown = np.unique(np.geomspace(1, len(mean), 26).round().astype(int))
    axes.plot(
        shown,
        mean[shown - 1],
        "o",
        color=OSN,
        markersize=4.5,
        label="measured \N{PLUS-MINUS SIGN} sd",
        zorder=4,
    )
    axes.text(len(mean), limit - 0.004, r"$R = e^{-1/6}$", color=THEORY, ha="right", va="top", fontsize=9)
    axes.set_xscale("log", base=2)
    ticks = [1, 4, 16, 64, 256]
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.minorticks_off()
    axes.set_ylim(0.825, 1.008)
    axes.legend(loc="upper right", fontsize=9, handlelength=1.4)
    axes.set_xlabel("position n")
    axes.set_ylabel("running r")
    axes.set_title("b  Running form, causal", loc="left", weight="bold")


def _alike(axes: Axes, numbers: Numbers) -> None:
    alike = numbers["alike"]
    q = np.array(alike["correlation"])
    fine = np.linspace(0, 1, 200)
    axes.plot(fine, np.exp(-(1 - fine) / 6), color=THEORY, linewidth=1.1)
    axes.plot(q, alike["r"], "o", color=OSN, markersize=4.5)
    axes.plot(q, alike["density_figure"], color=PUBLISHED, linewidth=1.6, linestyle=(0, (5, 2)))
    axes.plot(q, alike["density_default"], color=PUBLISHED, linewidth=1.6)
    axes.text(0.02, math.exp(-1 / 6) - 0.05, "r in both settings", color=OSN, va="top", fontsize=9)
    axes.text(0.02, 1.025, "pairs that lock, raw K 100", color=PUBLISHED, va="bottom", fontsize=9)
    axes.text(0.02, 0.035, "pairs that lock, defaults", color=PUBLISHED, va="bottom", fontsize=9)
    axes.text(0.5, 0.5, r"line: $e^{-(1-q)/6}$", color=THEORY, ha="center", fontsize=9)
    axes.set_ylim(-0.03, 1.14)
    axes.set_yticks([0, 0.5, 1])
    axes.set_xticks([0, 0.5, 1])
    axes.set_xlabel("how alike the tokens are (correlation q)")
    axes.set_title("c  r does not see what locks", loc="left", weight="bold")

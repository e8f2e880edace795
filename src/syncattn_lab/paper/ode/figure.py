"""The pictures and the table of the section `ode`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from syncattn_lab.paper.section import Numbers

LOCKED, DRIFTING, THEORY, OTHER = "#0b6e8f", "#cf5c2b", "#7a828c", "#8d63c4"
CLUSTERS = ("#083a52", "#0b6e8f", "#38a3ad")
SHADES = LinearSegmentedColormap.from_list("signed", ["#8f3413", "#e9a98c", "#ffffff", "#8cc0cf", "#083a52"])
# White is exactly 0 and nothing else: what is positive starts at a visible tint.
EXACT = LinearSegmentedColormap.from_list(
    "exact",
    [(0.0, "#ffffff"), (0.5, "#ffffff"), (0.5001, "#dceef2"), (0.75, "#8cc0cf"), (1.0, "#083a52")],
    N=4001,
)


def trajectories(numbers: Numbers) -> Figure:
    """Pairs' phase differences, a network's phases, and its mean frequencies."""
    data = numbers["trajectories"]
    figure = Figure(figsize=(8, 6.4), layout="constrained")
    panels = figure.subplot_mosaic([["pairs", "network"], ["pairs", "plateaus"]], width_ratios=[1, 1.25])
    _pairs(panels["pairs"], data)
    _phases(panels["network"], data)
    _plateaus(panels["plateaus"], data)
    return figure


def _pairs(axes: Axes, data: Numbers) -> None:
    times = np.asarray(data["pair_times"])
    for x, turns in zip(data["pair_ratio"], data["pair_turns"]):
        colour = LOCKED if x <= 1 else DRIFTING
        if x <= 1:
            settled = [math.asin(x) / math.tau] * 2
            axes.plot([0, times[-1]], settled, color=THEORY, linestyle=(0, (2, 2)), linewidth=0.9, zorder=1)
        else:
            beat = math.sqrt(x * x - 1) / math.tau
            axes.plot(times, beat * times, color=THEORY, linestyle=(0, (2, 2)), linewidth=0.9, zorder=1)
        axes.plot(times, turns, color=colour, linewidth=2, solid_capstyle="round")
        axes.annotate(
            f"x = {x:g}",
            (times[-1], turns[-1]),
            xytext=(5, 4 if x == 0.9 else -4 if x == 0.5 else 0),
            textcoords="offset points",
            color=colour,
            va="center",
        )
    axes.set_title("Two oscillators, x = detuning / K J", loc="left")
    axes.set_xlabel("time · K J")
    axes.set_ylabel("phase difference (turns)")
    axes.set_xlim(0, 1.27 * times[-1])
    axes.set_xticks([0, 10, 20, 30])
    axes.grid(axis="y", linewidth=0.6)
    axes.text(
        0.04,
        0.97,
        "x > 1: drifts for ever",
        transform=axes.transAxes,
        color=DRIFTING,
        va="top",
    )
    axes.text(0.04, 0.92, "x < 1: locks at arcsin x", transform=axes.transAxes, color=LOCKED, va="top")
    axes.text(0.04, 0.87, "dotted: closed form", transform=axes.transAxes, color=THEORY, va="top")


def _colours(data: Numbers) -> list[str]:
    """A colour for each cluster of equal mean frequency, and one for those that lock to nobody."""
    colours, cluster = [], -1
    mean, partners = data["mean_frequency"], data["partners"]
    for n, count in enumerate(partners):
        if count == 0:
            colours.append(DRIFTING)
            continue
        if n == 0 or partners[n - 1] == 0 or mean[n] - mean[n - 1] > 0.05:
            cluster += 1
        colours.append(CLUSTERS[cluster % len(CLUSTERS)])
    return colours


def _phases(axes: Axes, data: Numbers) -> None:
    for turns, colour in zip(data["turns"], _colours(data)):
        axes.plot(data["times"], turns, color=colour, linewidth=1.4 if colour == DRIFTING else 0.9, alpha=0.9)
    axes.set_title(f"A network of {len(data['frequency'])}: its phases", loc="left")
    axes.set_xlabel("time")
    axes.set_ylabel("phase (turns)")
    axes.set_xlim(0, data["times"][-1])
    axes.text(
        0.03, 0.95, "bundles a turn apart are in phase", transform=axes.transAxes, color=THEORY, va="top"
    )
    axes.grid(axis="y", linewidth=0.6)


def _plateaus(axes: Axes, data: Numbers) -> None:
    frequency, mean = np.asarray(data["frequency"]), np.asarray(data["mean_frequency"])
    ends = [min(frequency.min(), mean.min()) - 0.3, max(frequency.max(), mean.max()) + 0.3]
    axes.plot(ends, ends, color=THEORY, linestyle=(0, (2, 2)), linewidth=0.9, zorder=1)
    axes.scatter(frequency, mean, s=22, c=_colours(data), edgecolors="white", linewidths=0.5, zorder=2)
    axes.set_title("and its long-time mean frequencies", loc="left")
    axes.set_xlabel("natural frequency")
    axes.set_ylabel("mean frequency")
    axes.grid(linewidth=0.6)
    axes.text(0.03, 0.93, "flat: locked to one another", transform=axes.transAxes, color=LOCKED, va="top")
    axes.text(0.03, 0.82, "between: locked to nobody", transform=axes.transAxes, color=DRIFTING, va="top")
    axes.text(0.97, 0.06, "dotted: without coupling", transform=axes.transAxes, color=THEORY, ha="right")


def order_parameter(numbers: Numbers) -> Figure:
    """r against K / Kc, the equation's lines and the simulation's points; below it the difference."""
    order = numbers["order"]
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    panels = figure.subplot_mosaic([["r"], ["error"]], height_ratios=[3, 1], sharex=True)
    r, error = panels["r"], panels["error"]
    below = order["below"]
    for name, colour, marker in (("lorentzian", OTHER, "s"), ("gaussian", LOCKED, "o")):
        one = order[name]
        r.plot(one["curve_ratio"], one["curve"], color=colour, linewidth=1.6, alpha=0.75)
        look: dict[str, Any] = {
            "color": colour,
            "linestyle": "none",
            "marker": marker,
            "markersize": 6.5,
            "markeredgecolor": "white",
        }
        r.plot(order["ratio"], one["r"], **look)
        middle = 65
        r.annotate(
            name.title(),
            (one["curve_ratio"][middle], one["curve"][middle]),
            xytext=(4, -9),
            textcoords="offset points",
            color=colour,
            va="top",
        )
        difference = np.subtract(one["r"], one["theory"])[below:]
        error.plot(order["ratio"][below:], 1000.0 * difference, **look)
    r.axvline(1.0, color=THEORY, linestyle=(0, (2, 2)), linewidth=0.9)
    error.axvline(1.0, color=THEORY, linestyle=(0, (2, 2)), linewidth=0.9)
    r.annotate(
        "critical coupling", (1.0, 0.93), xytext=(-6, 0), textcoords="offset points", ha="right", color=THEORY
    )
    noise = 2.0 / math.sqrt(order["count"])
    r.plot([0.2, 1.0], [noise, noise], color=THEORY, linewidth=0.9)
    r.annotate(
        r"$2/\sqrt{N}$", (0.2, noise), xytext=(0, 4), textcoords="offset points", color=THEORY, va="bottom"
    )
    r.set_title(
        f"Order parameter: the equation (lines), {order['count']:,} oscillators integrated (points)",
        loc="left",
    )
    r.set_ylabel("order parameter r")
    r.set_ylim(-0.02, 1.02)
    error.axhline(0.0, color=THEORY, linewidth=0.9)
    error.set_ylim(-1.2, 1.2)
    error.set_yticks([-1, 0, 1])
    error.set_ylabel("points − lines\n(thousandths)")
    error.set_xlabel("coupling K / critical coupling")
    for axes in (r, error):
        axes.grid(axis="y", linewidth=0.6)
        axes.set_xlim(0.15, 3.1)
    return figure


def network(numbers: Numbers) -> Figure:
    """The pair formula and the ODE's mean cosines, of a partly locked broad cluster and separated ones."""
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    grid = figure.subplots(2, 3)
    kinds = (("broad, alpha 0.5", "one broad cluster, partly locked"), ("separated", "separated clusters"))
    for (rule, true, scatter), (name, title) in zip(grid, kinds):
        one = numbers["networks"][name]
        formula, field, ode = (
            np.asarray(one[f"shown_{key}"]) for key in ("formula", "local_field", "mean_cosine")
        )
        rule.imshow(formula, cmap=EXACT, vmin=-1, vmax=1, interpolation="nearest")
        image = true.imshow(ode, cmap=SHADES, vmin=-1, vmax=1, interpolation="nearest")
        for axes in (rule, true):
            axes.set_xticks([])
            axes.set_yticks([])
            for side in axes.spines.values():
                side.set_visible(True)
        rule.set_ylabel(f"{title}\n(by frequency)")
        rule.set_xlabel(f"lock agreement {one['agreement']:.3f}")
        true.set_xlabel(f"error of the formula {one['error']:.3f}")
        others = ~np.eye(len(ode), dtype=bool)
        scatter.plot([-1, 1], [-1, 1], color=THEORY, linewidth=0.9, zorder=1)
        dots: dict[str, Any] = {"s": 5, "alpha": 0.35, "linewidths": 0, "rasterized": True}
        scatter.scatter(ode[others], formula[others], color=DRIFTING, label="pair formula", **dots)
        scatter.scatter(ode[others], field[others], color=LOCKED, label="shared field", **dots)
        scatter.set_box_aspect(1)
        for limits, ticks in ((scatter.set_xlim, scatter.set_xticks), (scatter.set_ylim, scatter.set_yticks)):
            limits(-1.08, 1.08)
            ticks([-1, 0, 1])
        scatter.grid(linewidth=0.6)
        scatter.set_xlabel("integrated")
        scatter.set_ylabel("closed form")
    grid[0, 0].set_title("Pair formula (white: 0)", loc="left")
    grid[0, 1].set_title("Integrated, mean of cos", loc="left")
    grid[0, 2].set_title("Closed forms against it", loc="left")
    legend = grid[1, 2].legend(loc="lower right", handletextpad=0.1, borderaxespad=0.1, markerscale=2)
    for handle in legend.legend_handles:
        handle.set_alpha(1)
    figure.colorbar(
        image, ax=grid[:, :2], location="bottom", shrink=0.5, aspect=30, pad=0.03, ticks=[-1, 0, 1]
    )
    return figure


def table(numbers: Numbers) -> str:
    """The networks, each a line; means over a network of even and one of drawn frequencies."""
    lines = [
        "| network | K | bandwidth | r | locked pairs | by the rule | agreement | error of cos | within "
        "clusters | with the best kappa | error of the local field | transitivity | of the rule |",
        "| --- |" + " --- |" * 12,
    ]
    for name, one in numbers["networks"].items():
        cells = [
            f"{one['coupling']:g}",
            alpha_text(one),
            f"{sum(one['r']) / len(one['r']):.2f}",
            f"{one['locked_density']:.3f}",
            f"{one['rule_density']:.3f}",
            f"{one['agreement']:.3f}",
            f"{one['error']:.4f}",
            f"{one['error_within']:.4f}",
            f"{one['error_best_kappa']:.4f}",
            f"{one['error_local_field']:.4f}, {one['error_local_field_drawn']:.4f}",
            f"{one['transitivity']:.3f}",
            f"{one['transitivity_rule']:.3f}",
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def alpha_text(one: Numbers) -> str:
    """A network's bandwidth."""
    # The library takes no alpha of 0: the mean field has one that makes no difference.
    return "0" if one["bandwidth"] < 1e-9 else f"{one['bandwidth']:g}"

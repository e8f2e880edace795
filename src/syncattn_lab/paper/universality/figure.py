"""The picture of the section on Theorem 1."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from syncattn_lab.paper.section import Numbers

OSN, PUBLISHED, THEORY = "#1b8a8f", "#cf5c2b", "#8a929b"
# Positive values start at a visible tint, so that the page's colour is exactly 0 and nothing else.
TEAL = LinearSegmentedColormap.from_list("osn", ["#d5ecec", "#6fbabd", "#1b8a8f", "#0b4447"])
RUST = LinearSegmentedColormap.from_list("published", ["#f8e2d6", "#e6a283", "#cf5c2b", "#6b2a0e"])


def draw(numbers: Numbers) -> Figure:
    """Softmax as a limit; the best previous-token head of the paper's form and with a detuning; Deep Sets."""
    figure = Figure(figsize=(11, 3.1), layout="constrained")
    axes = figure.subplots(1, 4)
    _draw_limit(axes[0], numbers)
    heads = numbers["previous_token"]
    _draw_head(axes[1], heads["symmetric"], "token before: paper's form", RUST, "symmetric, self kept, best")
    _draw_head(axes[2], heads["detuned"], "token before: a detuning", TEAL, "centred on the token before")
    axes[1].set_ylabel("receiver")
    _draw_deviation(axes[3], numbers)
    return figure


def _draw_limit(axes: Axes, numbers: Numbers) -> None:
    rows = numbers["softmax_limit"]
    coupling = np.array([row["coupling"] for row in rows])
    error = np.array([row["weights"] for row in rows])
    axes.loglog(coupling, error[-1] * (coupling[-1] / coupling) ** 2, color=THEORY, lw=1, ls=(0, (4, 3)))
    axes.loglog(coupling, error, color=OSN, marker="o", ms=4.5, lw=1.8)
    axes.set_ylim(min(error) / 5, 20)
    axes.text(2e6, 3e-3, r"$\propto 1/\kappa^2$", color=THEORY)
    axes.set_box_aspect(1)
    axes.set_title("softmax is a limit of SSA")
    axes.set_xlabel(r"effective coupling $\kappa$")
    axes.set_ylabel("largest error of a weight")


def _draw_head(axes: Axes, head: Numbers, title: str, shades: LinearSegmentedColormap, kind: str) -> None:
    matrix = np.array(head["matrix"])
    axes.imshow(np.ma.masked_equal(matrix, 0), cmap=shades, vmin=0, vmax=1)
    for row, column in np.argwhere(matrix > 0):
        if row - column == 1:
            shown = f"{matrix[row, column]:.2f}".lstrip("0") if matrix[row, column] < 0.995 else "1"
            ink = "white" if matrix[row, column] > 0.4 else "#26292e"
            axes.text(column, row, shown, ha="center", va="center", fontsize=6, color=ink)
    axes.set(xticks=[], yticks=[], title=title, xlabel=f"sender\n{kind}")


def _draw_deviation(axes: Axes, numbers: Numbers) -> None:
    rows = numbers["deviation"]
    hinges = [row["hinges"] for row in rows]
    axes.loglog(hinges, [row["bound"] for row in rows], color=THEORY, lw=1, ls=(0, (4, 3)), label="bound")
    axes.loglog(
        hinges, [row["error"] for row in rows], color=OSN, marker="o", ms=4.5, lw=1.8, label="measured"
    )
    axes.set_xticks(hinges, [str(n) for n in hinges])
    axes.minorticks_off()
    axes.set_box_aspect(1)
    axes.set_title("an equivariant map, by hand")
    axes.set_xlabel("hidden units")
    axes.set_ylabel(r"error of $(x_i - \bar x)^2 - \mathrm{var}$")
    axes.legend()

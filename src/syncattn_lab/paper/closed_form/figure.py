"""The picture of the section on the closed form."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from syncattn.locking import coupling_from_radius, synchronization
from syncattn_lab.paper.section import Numbers

LOCKED, DRIFTING, THEORY, INK = "#1b8a8f", "#cf5c2b", "#8a929b", "#26292e"
SHADES = ["#0b4447", "#127277", "#1b8a8f", "#6fbabd"]  # from the middle of the locking region to its edge


def draw(numbers: Numbers) -> Figure:
    """Pairs settling or drifting; S of many pairs on the closed form's curve; the time that settling
    takes."""
    figure = Figure(figsize=(10.4, 3.3), layout="constrained")
    axes = figure.subplots(1, 3)
    _draw_courses(axes[0], numbers)
    _draw_pairs(axes[1], numbers)
    _draw_slowing(axes[2], numbers)
    return figure


def _draw_courses(axes: Axes, numbers: Numbers) -> None:
    courses = numbers["courses"]
    shades = iter(SHADES)
    for course in courses:
        locks = course["ratio"] <= 1
        colour = next(shades) if locks else DRIFTING
        time = course["spacing"] * np.arange(len(course["cosine"]))
        axes.plot(time, course["cosine"], color=colour, lw=1.8 if locks else 1.3, zorder=2 if locks else 1)
        label = f"x = {course['ratio']:g}" if locks else f"x = {course['ratio']:g}, mean 0"
        axes.plot(time[[0, -1]], [course["end"]] * 2, color=THEORY, lw=0.9, ls=(0, (4, 3)), zorder=0)
        axes.text(time[-1] * 1.02, course["end"], label, color=colour, va="center", fontsize=8.5)
    axes.set(
        title="pairs settle or drift",
        xlabel=r"time, in $1/(\kappa J)$;  $x = \Delta\omega / (\kappa J)$",
        ylabel=r"$\cos\psi$",
        ylim=(-1.08, 1.12),
    )
    axes.margins(x=0)


def _draw_pairs(axes: Axes, numbers: Numbers) -> None:
    pairs = numbers["pairs"]
    distance = np.linspace(0, 1.25, 500)
    kappa, alpha = (float(x) for x in coupling_from_radius(1.0, pairs["sharpness"]))
    curve = [float(synchronization(d**2, kappa, alpha)) for d in distance]
    axes.plot(distance, curve, color=INK, lw=1.2, label="closed form")
    shown = pairs["shown"]
    axes.plot(
        shown["distance"], shown["integrated"], "o", color=LOCKED, ms=4, alpha=0.55, mew=0, label="integrated"
    )
    axes.set(
        title="S, in closed form and integrated",
        xlabel=r"detuning $\sqrt{D}$ / locking radius",
        ylabel="synchronization S",
        ylim=(-0.03, 1.03),
        xlim=(0, 1.25),
    )
    axes.legend(loc="lower left")


def _draw_slowing(axes: Axes, numbers: Numbers) -> None:
    rows = numbers["slowing"]
    cosine = np.array([row["cosine"] for row in rows])
    time = np.array([row["time"] for row in rows])
    line = np.array([cosine.min(), 1.0])
    axes.loglog(line, time[-1] * cosine[-1] / line, color=THEORY, lw=1, ls=(0, (4, 3)))
    axes.loglog(cosine, time, color=LOCKED, marker="o", ms=4.5, lw=1.8)
    axes.invert_xaxis()
    middle = float(np.sqrt(cosine.min()))
    axes.text(middle * 0.8, 0.3 * time[-1] * cosine[-1] / middle, r"$\propto 1/\cos\psi^*$", color=THEORY)
    axes.set(
        title="time to settle, towards the edge",
        xlabel=r"$\cos\psi^* = S/J$, 0 at the edge",
        ylabel=r"time to $10^{-6}$, in $1/(\kappa J)$",
    )

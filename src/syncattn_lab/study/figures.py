"""The quality study's pictures, as PNG bytes; None where there is nothing to draw."""

from __future__ import annotations

import math
import textwrap
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from syncattn.drawing import canvas, png
from syncattn.training.figures import COLOURS, _short
from syncattn_lab.study.marks import (
    FAINT,
    INK,
    colours,
    difference_label,
    end_labels,
    marker,
    seed_dots,
    ticks,
)
from syncattn_lab.study.records import DEFAULT
from syncattn_lab.study.summary import Cell, Group, context, curve, difference, lengths, rate_losses, sweep
from syncattn_lab.study.verdicts import EXTRAPOLATION, best_transformer, number, percent

_WIDEST = 48  # characters of a title, which goes on in another line
_DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (8, 3)))
"""A line style for each learning rate, from the smallest."""


def curves(group: Group, task: str) -> bytes | None:
    """Validation loss against tokens read: a line per variant, mean over the seeds at its chosen rate."""
    cells = [cell for cell in group.of_task(task) if curve(cell)[0]]
    if not cells:
        return None
    paint = colours(group.cells.values())
    with canvas("light", 8.2, 3.9, "constrained") as figure:
        axes = figure.subplots()
        ends, values, starts = [], [], []
        for cell in cells:
            read, loss = curve(cell)
            axes.plot(read, loss, color=paint[cell.variant], lw=1.8, marker=marker(cell), ms=3.5)
            ends.append((loss[-1], cell.title, paint[cell.variant]))
            values += loss
            starts.append(loss[len(loss) // 5])  # the fall from ln(256) would flatten everything else
        lowest, top = min(values), max(starts)
        axes.set_ylim(lowest - 0.05 * (top - lowest + 0.01), top + 0.15 * (top - lowest) + 0.01)
        axes.set_xlim(left=0)
        axes.set_xlabel("tokens read")
        axes.set_ylabel("validation loss, nats per byte")
        axes.xaxis.set_major_formatter(FuncFormatter(_short))
        axes.grid(axis="y", lw=0.6)
        end_labels(axes, ends, 3.3)
        return png(figure)


def differences(group: Group) -> bytes | None:
    """Test loss against the default variant's mean, a panel per task: a dot per seed, a bar at the mean."""
    tasks = [task for task in group.tasks if _reference(group, task) is not None]
    if not tasks:
        return None
    paint = colours(group.cells.values())
    names = list(group.variants)
    titles = [textwrap.fill(group.variants[name], _WIDEST) for name in names]
    widest = max(len(line) for title in titles for line in title.splitlines())
    rows = 0.36 if all("\n" not in title for title in titles) else 0.46
    with canvas(
        "light", 0.4 + 0.07 * widest + 2.6 * len(tasks), 0.95 + rows * len(names), "constrained"
    ) as figure:
        panels = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
        for axes, task in zip(panels, tasks):
            base = _reference(group, task)
            axes.axvline(0, color=INK, lw=0.8)
            for row, name in enumerate(names):
                cell = group.cell(task, name)
                if cell is not None and base is not None:
                    values = [value - base for value in cell.values("test_loss")]
                    seed_dots(axes, values, row, paint[name], marker(cell))
            axes.set_title(task, loc="left")
            axes.grid(axis="x", lw=0.6)
            axes.set_axisbelow(True)
            axes.xaxis.set_major_formatter(FuncFormatter(difference_label))
            axes.locator_params(axis="x", nbins=4)
            axes.tick_params(axis="y", length=0)
        panels[0].set_yticks(range(len(names)), titles)
        panels[0].set_ylim(len(names) - 0.4, -0.6)
        figure.supxlabel("test loss, difference to the mean of the OSN, nats per byte", fontsize=9.5)
        return png(figure)


def extrapolation(group: Group, task: str) -> bytes | None:
    """Loss over that at the training length, against length; lines that leave the picture say where to."""
    cells = [cell for cell in group.of_task(task) if len(lengths(cell)) > 1]
    if not cells:
        return None
    paint = colours(group.cells.values())
    every = sorted({length for cell in cells for length in lengths(cell)})
    with canvas("light", 8.2, 3.7, "constrained") as figure:
        axes = figure.subplots()
        ratios = [entry["ratio"] for cell in cells for entry in lengths(cell).values()]
        low, top = min([0.99, *ratios]) - 0.005, min(max([1.04, *ratios]) + 0.01, 1.25)
        axes.set_ylim(low, top)
        ends = []
        for cell in cells:
            found = lengths(cell)
            shown = [entry["ratio"] for entry in found.values()]
            axes.plot(list(found), shown, color=paint[cell.variant], lw=1.8, marker=marker(cell), ms=4)
            ends.append((shown[-1], f"{cell.title}  {percent(shown[-1])}", paint[cell.variant]))
        axes.axhline(EXTRAPOLATION, color=INK, lw=0.9, ls=(0, (4, 3)))
        axes.axvline(context(cells[0]), color=FAINT, lw=1.2, zorder=0)
        axes.annotate(
            f"target: at most {percent(EXTRAPOLATION, 0)}",
            (0.72, EXTRAPOLATION),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
        )
        axes.set_xscale("log", base=2)
        ticks(axes, every, [f"{length:,}" for length in every])
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value, 0)))
        axes.set_xlabel(f"tokens in the window (trained at {context(cells[0]):,})")
        axes.set_ylabel("test loss, change from\nthe training length")
        axes.grid(axis="y", lw=0.6)
        end_labels(axes, ends, 3.0)
        return png(figure)


def ablation(group: Group) -> bytes | None:
    """Validation loss less that of the group's first variant, sorted; the band is the spread of its seeds."""
    reference = next(iter(group.variants))
    changes = {name: _changes(group, name, reference) for name in group.variants if name != reference}
    ranked = sorted(
        (name for name, found in changes.items() if found), key=lambda name: fmean(changes[name].values())
    )
    if not ranked:
        return None
    tasks = [task for task in group.tasks if any(task in changes[name] for name in ranked)]
    widest = max(len(group.variants[name]) for name in ranked)
    size = 0.8 + 0.065 * widest + 2.9 * len(tasks), 1.0 + 0.24 * len(ranked)
    with canvas("light", *size, "constrained") as figure:
        panels = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
        for axes, task in zip(panels, tasks):
            cell = group.cell(task, reference)
            spread = cell.spread("validation_loss") if cell else None
            if spread is not None:
                axes.axvspan(-spread, spread, color=FAINT, alpha=0.6, lw=0, zorder=0)
            rows = [(row, changes[name][task]) for row, name in enumerate(ranked) if task in changes[name]]
            tints = ["#b5523b" if value > 0 else COLOURS["osn"] for _, value in rows]
            axes.barh([row for row, _ in rows], [value for _, value in rows], height=0.62, color=tints)
            axes.axvline(0, color=INK, lw=0.8)
            for row, value in rows:
                axes.annotate(
                    number(value, signed=True),
                    (value, row),
                    xytext=(3 if value >= 0 else -3, 0),
                    textcoords="offset points",
                    ha="left" if value >= 0 else "right",
                    va="center",
                    fontsize=7.5,
                )
            axes.margins(x=0.16)
            axes.set_title(task + ("" if spread is None else f" (band: ± {number(spread)})"), loc="left")
            axes.xaxis.set_major_formatter(FuncFormatter(difference_label))
            axes.locator_params(axis="x", nbins=5)
            axes.grid(axis="x", lw=0.6)
            axes.set_axisbelow(True)
            axes.tick_params(axis="y", length=0)
        panels[0].set_yticks(range(len(ranked)), [group.variants[name] for name in ranked], fontsize=8.5)
        panels[0].set_ylim(len(ranked) - 0.4, -0.6)
        label = f"validation loss, difference to “{group.variants[reference]}”, nats per byte"
        figure.supxlabel(label, fontsize=9.5)
        return png(figure)


def density(group: Group) -> bytes | None:
    """Test loss against density, a panel per task; the Transformer as a line across."""
    points = {task: _density_points(group, task) for task in group.tasks}
    tasks = [task for task in group.tasks if points[task]]
    if not tasks:
        return None
    with canvas(
        "light", 1.0 + 3.6 * len(tasks) + (1.6 if len(tasks) == 1 else 0), 3.7, "constrained"
    ) as figure:
        panels = figure.subplots(1, len(tasks), squeeze=False)[0]
        for axes, task in zip(panels, tasks):
            shown = points[task]
            axes.plot(
                [p[0] for p in shown], [p[1] for p in shown], color=COLOURS["osn"], lw=1.6, marker="o", ms=5
            )
            for x, y, title in shown:
                style = {"rotation": 30, "rotation_mode": "anchor", "fontsize": 7.5}
                axes.annotate(title, (x, y), xytext=(4, 5), textcoords="offset points", **style)
            other = best_transformer(group.of_task(task))
            loss = other.mean("test_loss") if other is not None else None
            if other is not None and loss is not None:
                axes.axhline(loss, color=colours([other])[other.variant], lw=1.4)
                axes.annotate(
                    other.title,
                    (0.99, loss),
                    xycoords=("axes fraction", "data"),
                    xytext=(0, 3),
                    textcoords="offset points",
                    ha="right",
                    color=colours([other])[other.variant],
                    fontsize=8.5,
                )
            axes.set_xscale("log")
            axes.margins(x=0.2, y=0.2)
            places = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1]
            low, high = axes.get_xlim()
            kept = [tick for tick in places if low <= tick <= high]
            ticks(axes, kept, [number(tick, 2) if tick < 1 else "1" for tick in kept])
            axes.set_title(task, loc="left")
            axes.grid(axis="y", lw=0.6)
        figure.supxlabel("density: share of earlier tokens that lock", fontsize=9.5)
        figure.supylabel("test loss, nats per byte", fontsize=9.5)
        return png(figure)


def rates(group: Group, task: str) -> bytes | None:
    """Validation loss of the first seed against learning rate, a line per variant, crosses: diverged."""
    cells = [cell for cell in group.of_task(task) if len(cell.tried) > 1]
    if not cells:
        return None
    paint = colours(group.cells.values())
    every = sorted({rate for cell in cells for rate in cell.tried})
    with canvas("light", 8.2, 3.7, "constrained") as figure:
        axes = figure.subplots()
        axes.set_xscale("log")
        finite = [v for cell in cells for v in rate_losses(cell).values() if math.isfinite(v)]
        top = (
            min(max(finite), min(finite) + 4 * (float(np.median(finite)) - min(finite)) + 0.1)
            if finite
            else 1.0
        )
        for index, cell in enumerate(cells):
            found = sorted(rate_losses(cell).items())
            held = [(rate, loss) for rate, loss in found if math.isfinite(loss)]
            axes.plot(
                [rate for rate, _ in held],
                [loss for _, loss in held],
                color=paint[cell.variant],
                ls=_DASHES[0] if "bf16" not in cell.title.lower() else _DASHES[1],
                lw=1.8,
                marker=marker(cell),
                ms=4,
                label=cell.title,
            )
            for rate, loss in found:
                if math.isinf(loss):
                    axes.plot(
                        rate,
                        1 - 0.045 * (index + 0.5),
                        transform=axes.get_xaxis_transform(),
                        marker="x",
                        ms=7,
                        mew=2,
                        color=paint[cell.variant],
                    )
        if finite:
            room = top - min(finite) + 0.02
            diverged = any(math.isinf(v) for cell in cells for v in rate_losses(cell).values())
            axes.set_ylim(min(finite) - 0.06 * room, top + (0.3 if diverged else 0.08) * room)
        ticks(axes, every, [f"{rate:g}" for rate in every])
        axes.set_xlabel("learning rate")
        axes.set_ylabel("validation loss, nats per byte")
        axes.grid(axis="y", lw=0.6)
        figure.legend(loc="outside right center", fontsize=8.5, title="×: diverged", title_fontsize=8.5)
        return png(figure)


def sizes(variants: dict[str, list[Cell]]) -> bytes | None:
    """Validation loss of the first seed against parameters, a line per variant and learning rate."""
    kept = {name: cells for name, cells in variants.items() if len(cells) > 1}
    if not kept:
        return None
    paint = colours(cell for cells in kept.values() for cell in cells)
    every = sorted({rate for cells in kept.values() for cell in cells for rate in cell.tried})
    counts = sorted({cell.parameters for cells in kept.values() for cell in cells if cell.parameters})
    marks = [c for i, c in enumerate(counts) if i == 0 or c > 1.05 * counts[i - 1]]
    with canvas("light", 8.2, 4.1, "constrained") as figure:
        axes = figure.subplots()
        axes.set_xscale("log")
        for name, cells in kept.items():
            for index, rate in enumerate(every):
                losses = [(cell.parameters or 0, rate_losses(cell).get(rate, math.inf)) for cell in cells]
                held = [(count, loss) for count, loss in losses if math.isfinite(loss)]
                axes.plot(
                    [count for count, _ in held],
                    [loss for _, loss in held],
                    color=paint[name],
                    ls=_DASHES[index % len(_DASHES)],
                    lw=1.6,
                    marker=marker(cells[0]),
                    ms=4,
                )
        ticks(axes, marks, [f"{round(count, -3):,}" for count in marks])
        axes.set_xlabel("parameters")
        axes.set_ylabel("validation loss, nats per byte")
        axes.grid(axis="y", lw=0.6)
        key = [
            Line2D([], [], color=paint[name], lw=1.6, marker=marker(cells[0]), ms=4, label=cells[0].title)
            for name, cells in kept.items()
        ]
        for index, rate in enumerate(every):
            dash = _DASHES[index % len(_DASHES)]
            key.append(Line2D([], [], color=INK, lw=1.4, ls=dash, label=f"learning rate {rate:g}"))
        figure.legend(handles=key, loc="outside right center", fontsize=8.5, handlelength=3.4)
        return png(figure)


def accuracies(group: Group, kind: str) -> bytes | None:
    """Test accuracy of a synthetic kind against what its tasks differ in; a line per variant, dots: seeds."""
    name, panels = sweep(group, kind)
    cells = [cell for cell in group.cells.values() if cell.task_kind == kind]
    if sum(map(len, panels.values())) < 2 or not any(cell.values("test_accuracy") for cell in cells):
        return None
    paint = colours(group.cells.values())
    width = 1.2 + max(4.4, 3.4 * len(panels))
    fit = int(13 * width) // (6 + max(map(len, group.variants.values())))  # letters of 1/13 inch
    with canvas("light", width, 4.0, "constrained") as figure:
        grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (title, tasks) in zip(grid, panels.items()):
            for order, variant in enumerate(dict.fromkeys(cell.variant for cell in cells)):
                shown = [(x, group.cell(task, variant)) for x, (_, task) in enumerate(tasks)]
                held = [(x, cell, cell.mean("test_accuracy")) for x, cell in shown if cell is not None]
                line = [(x, mean, cell) for x, cell, mean in held if mean is not None]
                if not line:
                    continue
                style: dict[str, Any] = {"color": paint[variant], "marker": marker(line[0][2])}
                means = [mean for _, mean, _ in line]
                label = group.variants[variant] if axes is grid[0] else None
                style |= {"label": label, "zorder": 9 - order}
                axes.plot([x for x, _, _ in line], means, lw=1.8, ms=4.5, **style)
                for x, _, cell in line:
                    seeds = cell.values("test_accuracy")
                    axes.scatter([x] * len(seeds), seeds, s=9, alpha=0.45, color=paint[variant], lw=0)
            axes.set_xticks(range(len(tasks)), [label for label, _ in tasks])
            axes.set_ylim(-0.03, 1.03)
            axes.margins(x=0.08)
            axes.set_xlabel(name)
            axes.set_title(title, loc="left")
            axes.grid(axis="y", lw=0.6)
        grid[0].set_ylabel("test accuracy")
        figure.legend(loc="outside lower center", ncols=max(1, min(3, len(paint), fit)), fontsize=8.5)
        return png(figure)


def _density_points(group: Group, task: str) -> list[tuple[float, float, str]]:
    """(density, test loss, title) of every OSN of a task, from sparse to dense."""
    found = [(cell.density, cell.mean("test_loss"), cell.title) for cell in group.of_task(task)]
    return sorted((x, y, title) for x, y, title in found if x is not None and y is not None)


def _reference(group: Group, task: str) -> float | None:
    cell = group.cell(task, DEFAULT)
    return cell.mean("test_loss") if cell is not None else None


def _changes(group: Group, name: str, reference: str) -> dict[str, float]:
    """By task, how far a variant's mean validation loss is from the reference's."""
    found = {}
    for task in group.tasks:
        cell, other = group.cell(task, name), group.cell(task, reference)
        change = difference(cell, other, "validation_loss")
        if change is not None:
            found[task] = change
    return found

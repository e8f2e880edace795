"""The frontier's page: pictures, tables, and in sentences when to choose which."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from syncattn.drawing import canvas, png
from syncattn.training.figures import COLOURS
from syncattn_lab.study.frontier import JUDGED, Panel, Point, catches_up, last_loss, ratio
from syncattn_lab.study.marks import FAINT, INK
from syncattn_lab.study.summary import curve
from syncattn_lab.study.tables import count_text, mean_text, table
from syncattn_lab.study.verdicts import number

ALIKE = 0.02
"""Nats of test loss within which two models are called alike: one seed of each, and seeds differ by that."""
AS_FAST = 1.05
"""Times another's seconds up to which a model is called as fast."""
TRANSFORMER, PLAIN_TRANSFORMER, ALIBI = "#c2457f", "#e3a3c3", "#7a5ea8"
WINDOW, UNBOUND = "#b0894f", "#7c9a34"
_OSNS = ("#8fd0c5", "#4bb3a7", COLOURS["osn"], "#0d4a4f", "#082a2d")
_TITLES = {"forward": "forward", "training": "training", "generation": "generated, from a cache"}


def frontier(panels: Sequence[Panel], kinds: Sequence[str] = ("forward", "training")) -> bytes | None:
    """Test loss against microseconds a token: a column a context, a row a kind, labels whom a token reads."""
    timed = [panel for panel in panels if any(point.seconds for point in panel.points)]
    if not timed:
        return None
    with canvas("light", _width(timed), 1.1 + 2.5 * len(kinds), "constrained") as figure:
        grid = figure.subplots(len(kinds), len(timed), sharey=True, sharex="row", squeeze=False)
        for row, kind in zip(grid, kinds):
            for axes, panel in zip(row, timed):
                _costs(axes, panel, kind)
            axes = row[0]
            axes.set_xscale("log")
            low, high = axes.get_xlim()
            axes.set_xlim(low / 1.25, high * 1.45)
            axes.set_ylabel(f"test loss ({_TITLES[kind]})")
            for axes in row:
                _log_ticks(axes)
        for axes, panel in zip(grid[0], timed):
            axes.set_title(f"{panel.context:,} tokens", loc="left")
        grid[-1][len(timed) // 2].set_xlabel("microseconds a token, one thread")
        figure.legend(handles=_key(timed), loc="outside lower center", ncols=3, fontsize=8.5)
        return png(figure)


def progress(panels: Sequence[Panel]) -> bytes | None:
    """Validation loss against training seconds, a panel a context; a line across: the Transformer's last."""
    timed = [panel for panel in panels if any(point.seconds for point in panel.points)]
    if not timed:
        return None
    with canvas("light", _width(timed), 3.9, "constrained") as figure:
        row = figure.subplots(1, len(timed), sharey=True, squeeze=False)[0]
        ends, tops = [], []
        for axes, panel in zip(row, timed):
            for point, colour in _painted(panel):
                read, losses = curve(point.cell)
                if point.seconds is None or not read:
                    continue
                times = [tokens * point.seconds.cost("training") for tokens in read]
                axes.plot(times, losses, color=colour, lw=1.6, ls=_dashes(point))
                axes.plot(times[-1:], losses[-1:], color=colour, marker=_marker(point), ms=4.5)
                ends.append(losses[-1])
                tops.append(losses[len(losses) // 6])
            base = panel.transformer
            level = last_loss(base.cell) if base is not None else None
            if level is not None:
                axes.axhline(level, color=TRANSFORMER, lw=0.8, ls=(0, (4, 3)))
            axes.set_xscale("log")
            _log_ticks(axes)
            axes.set_title(f"{panel.context:,} tokens", loc="left")
            axes.grid(axis="y", lw=0.6)
        row[0].set_ylim(min(ends) - 0.05, min(max(tops), min(ends) + 1.4))
        row[0].set_ylabel("validation loss, nats per byte")
        row[len(timed) // 2].set_xlabel("training seconds, one thread: a step's times the steps")
        figure.legend(handles=_key(timed), loc="outside lower center", ncols=3, fontsize=8.5)
        return png(figure)


def costs(panel: Panel) -> list[str]:
    """A row a model: losses, what a token costs, and that as a multiple of the fused Transformer's."""
    base = panel.fused
    header = ["model", "partners by layer", "parameters", "validation", "test", "forward, µs", "training, µs"]
    whose = "the Transformer's" if base is None else f"those of {base.cell.title}"
    header += ["generated, µs", f"the three as multiples of {whose}", "training by the clock, µs"]
    rows = []
    for point in [*panel.osns, *(p for p in panel.points if p.cell.model != "osn")]:
        seconds = point.seconds
        locked = seconds.partners if seconds is not None else None
        ratios = [ratio(point, base, kind) for kind in ("forward", "training", "generation")]
        rows.append(
            [
                point.cell.title,
                "–" if locked is None else ", ".join(f"{x:.1f}" for x in locked),
                count_text(point.cell),
                mean_text(point.cell, "validation_loss"),
                mean_text(point.cell, "test_loss"),
                *(
                    "–" if seconds is None else f"{1e6 * seconds.cost(kind):,.1f}"
                    for kind in ("forward", "training", "generation")
                ),
                ", ".join(number(each, 2) for each in ratios),
                "–" if seconds is None else f"{1e6 * median(seconds.clock['training']):,.1f}",
            ]
        )
    return table(header, rows)


def catching_up(panel: Panel) -> list[str]:
    """Until when each model has the last losses of the full Transformers and of the judged OSN."""
    goals = [each for each in (panel.transformer, panel.fused, panel.judged) if each is not None]
    goals = [goal for place, goal in enumerate(goals) if goal not in goals[:place]]
    levels = [(goal, loss) for goal in goals if (loss := last_loss(goal.cell)) is not None]
    if not levels or not any(point.seconds for point in panel.points):
        return []
    header = ["model", "last loss", "seconds"]
    header += [f"to {number(loss)}, the last of {goal.cell.title}" for goal, loss in levels]
    rows = []
    for point in [*panel.osns, *(p for p in panel.points if p.cell.model != "osn")]:
        whole = point.whole
        row = [point.cell.title, number(last_loss(point.cell)), "–" if whole is None else f"{whole:,.0f}"]
        for goal, loss in levels:
            until, total = point.until(loss), goal.whole
            share = "" if until is None or total is None else f" ({number(until / total, 2)})"
            row.append(_reached(point, until) + share)
        rows.append(row)
    return table(header, rows)


def _reached(point: Point, until: float | None) -> str:
    if until is not None:
        return f"{until:,.0f}"
    return "–" if point.seconds is None else "not reached"


def advice(panel: Panel) -> str:
    """When to choose which, at this context, in a sentence of what was measured."""
    osn, base, fused, window = panel.judged, panel.transformer, panel.fused, panel.window
    where = f"{panel.context:,} tokens"
    if osn is None or base is None:
        return f"**{where}**: no word on it, for the two models to compare were not both trained."
    lead = base.loss - osn.loss
    said = f"with {JUDGED} partners the OSN ends {_beside(lead)} the full Transformer"
    ratios = [ratio(osn, fused, kind) for kind in ("training", "forward", "generation")]
    if None in ratios:
        return f"**{where}**: {said}; its time was not measured."
    train, forward, token = (each or 0.0 for each in ratios)
    soon = catches_up(osn, base)[0]
    if soon is not None:
        said += f", whose last loss it has after {number(soon, 2)} of that one's seconds"
    whose = "the Transformer's time"
    if fused is not None and fused is not base:
        whose = "the time of one without a gate, all fused,"
        sooner, most = catches_up(osn, fused)
        if sooner is not None:
            said += f" ({number(sooner, 2)} of those of one without a gate, to its loss"
            said += f"; to any on its way at most {number(most, 2)})" if most is not None else ")"
    said += (
        f"; a token takes {number(train, 2)} of {whose} in training, "
        f"{number(forward, 2)} forward, {number(token, 2)} generated"
    )
    share = ratio(window, fused, "training")
    if window is not None and share is not None:
        said += f". The Transformer that reads the last {window.label.removeprefix('last ')} tokens takes "
        said += (
            f"{number(share, 2)} in training and ends {_beside(window.loss - osn.loss, above=True)} the OSN"
        )
    choice = _choice(lead, train if soon is None else soon, forward, token)
    return f"**{where}: {choice}.** {said[0].upper()}{said[1:]}."


def _beside(lead: float, above: bool = False) -> str:
    """How far one loss is below another, or above it."""
    first, second = ("above", "below") if above else ("below", "above")
    return f"{number(abs(lead))} nats {first if lead >= 0 else second}"


def _choice(lead: float, *times: float) -> str:
    """Whom to choose.

    Args:
        lead: nats by which the OSN is below.
        times: of training, reading and generating, as multiples of the Transformer's.
    """
    names = ("training", "reading", "generating")
    slow = [name for name, each in zip(names, times) if each > AS_FAST]
    quick = [name for name, each in zip(names, times) if each < 1 / AS_FAST]
    if lead > ALIKE:
        return "the OSN" + (f", unless time counts in {' or '.join(slow)}" if slow else ", by loss and time")
    if lead < -ALIKE:
        return "the Transformer" + (f", unless time counts in {' or '.join(quick)}" if quick else "")
    if slow and quick:
        return f"alike; the OSN for {' and '.join(quick)}, the Transformer for {' and '.join(slow)}"
    return "the OSN, for its time" if quick else "the Transformer, for its time" if slow else "either"


def section(panel: Panel) -> list[str]:
    """A context's part of the page."""
    caught = catching_up(panel)
    about = "Training seconds to a validation loss, in brackets as multiples of those of the model named:"
    parts = [f"## {panel.title}", "", *costs(panel), ""]
    return parts + (["", about, "", *caught, "", *_worst(panel)] if caught else [])


def _worst(panel: Panel) -> list[str]:
    base = panel.transformer
    if base is None:
        return []
    found = [(point, catches_up(point, base)[1]) for point in panel.points if point is not base]
    said = [f"{point.cell.title} {number(most, 2)}" for point, most in found if most is not None]
    about = (
        "At whichever loss the full Transformer passes after the first fifth of its run, seconds are at most "
    )
    about += "these multiples of its own"
    return [f"{about}: {'; '.join(said)}.", ""] if said else []


def _costs(axes: Axes, panel: Panel, kind: str) -> None:
    """One panel of the frontier: a line through the bounded OSNs, a mark and a label for each model."""
    bound = [point for point in panel.osns if point.seconds is not None and point.partners is not None]
    line = [(1e6 * p.seconds.cost(kind), p.loss) for p in bound if p.seconds is not None]
    axes.plot([x for x, _ in line], [y for _, y in line], color=FAINT, lw=1.4, zorder=1)
    for place, (point, colour) in enumerate(_painted(panel)):
        if point.seconds is None:
            continue
        x = 1e6 * point.seconds.cost(kind)
        axes.scatter([x], [point.loss], s=42, color=colour, marker=_marker(point), lw=0, zorder=3)
        axes.annotate(
            point.label,
            (x, point.loss),
            xytext=(5, 4) if place % 2 == 0 else (5, -11),
            textcoords="offset points",
            fontsize=8,
            color=INK,
        )
    axes.margins(y=0.12)
    axes.grid(lw=0.6)
    axes.set_axisbelow(True)


def _painted(panel: Panel) -> list[tuple[Point, str]]:
    """Points with their colours: a kind's, and an OSN's the darker the more partners it has."""
    found = []
    for point in panel.points:
        if point.cell.model == "transformer":
            given = point.cell.runs[0].get("settings", {}).get("config", {})
            plain = PLAIN_TRANSFORMER if "score_gate" not in given else TRANSFORMER
            found.append((point, ALIBI if given.get("position") == "alibi" else plain))
        elif point.cell.model != "osn":
            found.append((point, WINDOW))
        else:
            found.append((point, UNBOUND if point.partners is None else _shade(point.partners)))
    return found


def _shade(partners: float) -> str:
    """4 partners and fewer, 8, 16, 32, more."""
    return _OSNS[sum(partners > bound for bound in (4, 8, 16, 32))]


def _width(panels: Sequence[Panel]) -> float:
    """Inches; the legend needs some."""
    return max(8.2, 1.2 + 2.9 * len(panels))


def _marker(point: Point) -> str:
    return {"transformer": "s", "osn": "o"}.get(point.cell.model, "D")


def _dashes(point: Point) -> str:
    return "-" if point.cell.model == "osn" else "--"


def _key(panels: Sequence[Panel]) -> list[Line2D]:
    """A legend's entries, each title once."""
    found: dict[str, Line2D] = {}
    ordered = [each for panel in panels for each in _painted(panel)]
    ordered.sort(key=lambda each: (each[0].cell.model != "osn", each[0].partners or 99))
    for point, colour in ordered:
        style: dict[str, Any] = {
            "color": colour,
            "marker": _marker(point),
            "ms": 5,
            "lw": 1.4,
            "ls": _dashes(point),
        }
        found.setdefault(point.cell.title, Line2D([], [], label=point.cell.title, **style))
    return list(found.values())


def _log_ticks(axes: Axes) -> None:
    """1, 2 and 5 of each power of ten that the axis has; more of them where it has less than one power."""
    low, high = axes.get_xlim()
    bases = (1, 2, 5) if high > 10 * low else (1, 1.5, 2, 3, 4, 5, 7)
    places = [base * 10.0**power for power in range(-1, 6) for base in bases]
    axes.xaxis.set_major_locator(FixedLocator([place for place in places if low <= place <= high]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())

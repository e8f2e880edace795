"""Accuracy by length: tasks tested at other sizes than they were learned at, in tables and pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from syncattn.drawing import canvas, png
from syncattn.page import Chart, Line
from syncattn.training.compare import mean_and_spread
from syncattn_lab.study.marks import FAINT, INK, colours, marker, ticks
from syncattn_lab.study.summary import Cell, Group
from syncattn_lab.study.tables import table
from syncattn_lab.study.verdicts import OPEN, Verdict, decide, number

LOSS_FREE = 0.005
"""By so much the accuracy at the longest windows may be below that at the training length."""


def by_setting(cell: Cell) -> dict[str, dict[str, Any]]:
    """What a variant's runs scored at each size, such as "pairs 16, length 64"; {} if they were not tested.

    Each has its "setting" and "length", and means over the seeds: "accuracy", "exact" (the share of windows
    all of whose answers are right), "density" and "partners" (None for softmax); and "seeds", the accuracies.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for line in cell.runs:
        for entry in line["result"].get("tests") or []:
            found.setdefault(setting_text(entry["setting"]), []).append(entry)
    return {name: _means(entries) for name, entries in found.items()}


def learned(cell: Cell) -> int:
    """Tokens in the longest windows that a variant was trained on; a run's options do not know them."""
    return int(cell.runs[0]["config"]["max_position_embeddings"])


def setting_text(setting: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:,}" for name, value in setting.items())


def accuracies(group: Group, task: str) -> list[str]:
    """Test accuracy of every variant at every size of a task, whole windows in brackets; then what locks."""
    cells = [(cell, by_setting(cell)) for cell in group.of_task(task)]
    cells = [(cell, found) for cell, found in cells if found]
    if not cells:
        return []
    names = list(dict.fromkeys(name for _, found in cells for name in found))
    lengths = {name: found[name]["length"] for _, found in cells for name in found}
    header = [f"model; {_axis(names[0])} (tokens)", *(f"{_short(x)} ({lengths[x]:,})" for x in names)]
    rows = [[cell.title, *(_told(found.get(name)) for name in names)] for cell, found in cells]
    locking = [
        [cell.title, *(_locking(found.get(name)) for name in names)]
        for cell, found in cells
        if any(entry["density"] is not None for entry in found.values())
    ]
    more = ["", "Partners of a receiver, and density in brackets, means over layers and heads:", ""]
    return [*table(header, rows), *([*more, *table(header, locking)] if locking else [])]


def picture(group: Group, task: str) -> bytes | None:
    """Accuracy against the window's length, a line for each variant, dots: seeds, small: whole windows."""
    cells = [(cell, by_setting(cell)) for cell in group.of_task(task)]
    cells = [(cell, found) for cell, found in cells if len(found) > 1]
    if not cells:
        return None
    names = list(dict.fromkeys(name for _, found in cells for name in found))
    place = {name: x for x, name in enumerate(names)}
    lengths = {name: found[name]["length"] for _, found in cells for name in found}
    paint = colours(group.cells.values())
    with canvas("light", 8.2, 3.1 + 0.2 * len(cells), "constrained") as figure:
        axes = figure.subplots()
        for cell, found in cells:
            style: dict[str, Any] = {"color": paint[cell.variant], "marker": marker(cell)}
            x = [place[name] for name in found]
            y = [entry["accuracy"] for entry in found.values()]
            axes.plot(x, y, lw=1.8, ms=4.5, label=cell.title, **style)
            whole = [entry["exact"] for entry in found.values()]
            axes.plot(x, whole, lw=1.1, ls=(0, (1, 2)), color=paint[cell.variant])
            for where, entry in zip(x, found.values()):
                axes.scatter(
                    [where] * len(entry["seeds"]), entry["seeds"], s=9, alpha=0.45, lw=0, color=style["color"]
                )
        own = learned(cells[0][0])
        within = [place[name] for name in names if lengths[name] <= own]
        axes.axvspan(-0.5, max(within, default=-0.5) + 0.5, color=FAINT, alpha=0.35, lw=0, zorder=0)
        axes.annotate(
            f"trained up to {own:,} tokens", (0.01, 0.1), xycoords="axes fraction", fontsize=8.5, color=INK
        )
        ticks(axes, range(len(names)), [f"{_short(name)}\n{lengths[name]:,}" for name in names])
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel(f"{_axis(names[0])}, and below it tokens in the window")
        axes.set_ylabel("test accuracy (dotted: whole windows)")
        axes.grid(axis="y", lw=0.6)
        figure.legend(loc="outside lower center", ncols=1, fontsize=8.5)
        return png(figure)


def chart(group: Group, task: str) -> Chart | None:
    """The same for the page in the browser; of sizes of one length the last counts."""
    paint = colours(group.cells.values())
    lines = []
    shown = [cell for cell in group.of_task(task) if by_setting(cell)]
    for cell in shown:
        found = {entry["length"]: entry["accuracy"] for entry in by_setting(cell).values()}
        if len(found) > 1:
            lines.append(Line(cell.title, list(found), list(found.values()), (paint[cell.variant],) * 2))
    if not lines:
        return None
    ends = "; ".join(f"{line.name} {line.y[-1]:.3f}" for line in lines)
    says = f"Test accuracy at {lines[0].x[-1]:,} tokens: {ends}."
    title = f"{task}: test accuracy by length, trained up to {learned(shown[0]):,} tokens"
    return Chart(title, says, "tokens in the window", "accuracy", lines, (-0.02, 1.02), log=True)


def verdicts(groups: Sequence[Group]) -> list[Verdict]:
    """For each OSN of a task that was tested by size: at or above the Transformer, and no loss at length."""
    found = []
    for group in groups:
        for task in group.tasks:
            cells = [cell for cell in group.of_task(task) if by_setting(cell)]
            others = [cell for cell in cells if cell.model == "transformer"]
            for osn in cells:
                if osn.model == "osn":
                    found += [_ahead(task, osn, others), _extrapolates(task, osn, others)]
    return found


def _ahead(task: str, osn: Cell, others: Sequence[Cell]) -> Verdict:
    target = f"{task}, {osn.title}: at or above the best Transformer's accuracy at every size (three digits)"
    if not others:
        return Verdict(target, OPEN, "no run of a Transformer")
    theirs: dict[str, float] = {}
    for other in others:
        for name, entry in by_setting(other).items():
            theirs[name] = max(theirs.get(name, 0.0), entry["accuracy"])
    gaps = [
        (round(entry["accuracy"], 3) - round(theirs[name], 3), name, entry["accuracy"], theirs[name])
        for name, entry in by_setting(osn).items()
        if name in theirs
    ]
    if not gaps:
        return Verdict(target, OPEN, "no size that both were tested at")
    gap, name, ours, best = min(gaps)
    text = f"at {sum(each[0] >= 0 for each in gaps)} of {len(gaps)} sizes; "
    text += f"{'worst' if gap < 0 else 'closest'}: {name}: {number(ours)} against {number(best)}"
    return Verdict(target, decide(gap >= 0), text)


def _extrapolates(task: str, osn: Cell, others: Sequence[Cell]) -> Verdict:
    target = f"{task}, {osn.title}: accuracy at most {number(LOSS_FREE)} lower at the longest windows"
    drop, text = fall(osn)
    said = [f"{other.title}: {fall(other)[1]}" for other in others]
    state = OPEN if math.isnan(drop) else decide(drop <= LOSS_FREE)
    return Verdict(target, state, "; ".join([text, *said]))


def fall(cell: Cell) -> tuple[float, str]:
    """How much lower accuracy is at the longest windows than at the longest learned; and both in words."""
    own = learned(cell)
    entries = list(by_setting(cell).values())
    within = [entry for entry in entries if entry["length"] <= own]
    if not within or entries[-1]["length"] <= own:
        return math.nan, "not tested beyond its length"
    base, last = within[-1], entries[-1]
    times = last["length"] / base["length"]
    text = f"{number(base['accuracy'])} at {base['length']:,} tokens, "
    text += f"{number(last['accuracy'])} at {times:.0f} ×"
    return base["accuracy"] - last["accuracy"], text


def _means(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    means: dict[str, Any] = {"setting": entries[0]["setting"], "length": entries[0]["length"]}
    for name in ("accuracy", "exact", "density", "partners"):
        values = [entry[name] for entry in entries if entry.get(name) is not None]
        means[name] = mean_and_spread(values)[0] if values else None
    return means | {"seeds": [entry["accuracy"] for entry in entries]}


def _told(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "–"
    spread = mean_and_spread(entry["seeds"])[1] if len(entry["seeds"]) > 1 else None
    text = number(entry["accuracy"]) + ("" if spread is None else f" ± {number(spread)}")
    return f"{text} ({number(entry['exact'], 2)})"


def _locking(entry: dict[str, Any] | None) -> str:
    if entry is None or entry["density"] is None:
        return "–"
    return f"{entry['partners']:.1f} ({number(entry['density'], 2)})"


def _axis(name: str) -> str:
    """The name of what the sizes are told by: the first thing that is set."""
    return name.partition(" ")[0]


def _short(name: str) -> str:
    return name.partition(", ")[0].rpartition(" ")[2]

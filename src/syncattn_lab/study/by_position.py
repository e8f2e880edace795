"""Loss by position in the window, what a model makes of all it has read before: in a table and a picture.

Windows are of the training length, unless another is given.
"""

from __future__ import annotations

from syncattn.drawing import canvas, png
from syncattn.training.compare import mean_and_spread
from syncattn_lab.study.marks import colours, end_labels, marker, ticks
from syncattn_lab.study.summary import Cell, Group, context
from syncattn_lab.study.tables import table
from syncattn_lab.study.verdicts import number


def losses(cell: Cell, length: int | None = None) -> dict[int, float]:
    """Test loss by the stretch's first position, means over seeds; {} if unknown."""
    found: dict[int, list[float]] = {}
    for line in cell.runs:
        measured = (line["result"].get("lengths") or {}).get(str(length or context(cell))) or {}
        for begin, loss in measured.get("by_position") or []:
            found.setdefault(begin, []).append(loss)
    return {begin: mean_and_spread(values)[0] for begin, values in found.items()}


def losses_by_position(group: Group, task: str, length: int | None = None) -> list[str]:
    """A row for each variant, a column for each stretch of positions."""
    cells = [(cell, losses(cell, length)) for cell in group.of_task(task)]
    cells = [(cell, found) for cell, found in cells if found]
    if not cells:
        return []
    begins = sorted({begin for _, found in cells for begin in found})
    ends = [*begins[1:], length or context(cells[0][0])]
    header = ["model; tokens", *(f"{begin:,} to {end - 1:,}" for begin, end in zip(begins, ends))]
    return table(header, [[cell.title, *(number(found.get(x)) for x in begins)] for cell, found in cells])


def picture(group: Group, task: str, length: int | None = None) -> bytes | None:
    """Loss less that of the first Transformer at the same positions (of the first variant, if none)."""
    cells = [(cell, losses(cell, length)) for cell in group.of_task(task)]
    cells = [(cell, found) for cell, found in cells if len(found) > 1]
    if len(cells) < 2:
        return None
    base = next((cell for cell, _ in cells if cell.model == "transformer"), cells[0][0])
    theirs = losses(base, length)
    paint = colours(group.cells.values())
    with canvas("light", 8.2, 3.9, "constrained") as figure:
        axes = figure.subplots()
        ends = []
        for cell, found in cells:
            begins = [begin for begin in found if begin in theirs]
            change = [found[begin] - theirs[begin] for begin in begins]
            places = [max(begin, min(32, context(cell))) for begin in begins]  # the first stretch begins at 1
            axes.plot(places, change, lw=1.8, marker=marker(cell), ms=4, color=paint[cell.variant])
            ends.append((change[-1], cell.title, paint[cell.variant]))
        axes.set_xscale("log", base=2)
        ends_of = [*list(theirs)[1:], length or context(base)]
        labels = [f"{begin:,} to\n{end - 1:,}" for begin, end in zip(theirs, ends_of)]
        ticks(axes, [max(begin, 32) for begin in theirs], labels)
        axes.tick_params(axis="x", labelsize=8)
        axes.set_xlabel("position in the window")
        axes.set_ylabel(f"test loss, nats per byte, less that of\n“{base.title}”", fontsize=9)
        axes.grid(axis="y", lw=0.6)
        end_labels(axes, ends, 3.1)
        return png(figure)

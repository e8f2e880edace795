"""What the quality study's pictures share: colours, markers, ticks and names at the ends of lines."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

from syncattn.drawing import PAGES
from syncattn.training.figures import COLOURS
from syncattn_lab.study.records import DEFAULT
from syncattn_lab.study.summary import Cell
from syncattn_lab.study.verdicts import number

INK, FAINT = PAGES["light"]["ink"], PAGES["light"]["faint"]
_DELAYED = {"alibi": "#a3480d", "rotary": "#c2457f"}
_OTHER_OSN = ("#3f6fb5", "#7c9a34", "#12545c", "#62b6cb", "#8a6d3b", "#5f6b7a")
_OTHER = ("#b0894f", "#8a8f98", "#5d4a7e", "#c9a227")


def colours(cells: Iterable[Cell]) -> dict[str, str]:
    """A colour for each variant: the comparison page's for the OSN and the Transformers, and others."""
    found: dict[str, str] = {}
    for cell in cells:
        name = f"{cell.variant} {cell.title}".lower()
        position = next((each for each in ("alibi", "rotary") if each in name), None)
        if cell.variant == DEFAULT:
            wanted = [COLOURS["osn"]]
        elif cell.model == "osn":
            wanted = list(_OTHER_OSN)
        elif position is not None:
            wanted = [_DELAYED[position] if "delay" in name else COLOURS[position]]
        else:
            wanted = []
        if cell.variant not in found:
            free = (each for each in (*wanted, *_OTHER) if each not in found.values())
            found[cell.variant] = next(free, INK)
    return found


def seed_dots(axes: Axes, values: Sequence[float], row: int, colour: str, marker: str) -> None:
    if values:
        mean = float(np.mean(values))
        axes.scatter(values, [row] * len(values), s=26, color=colour, alpha=0.65, lw=0, marker=marker)
        axes.plot([mean, mean], [row - 0.26, row + 0.26], color=colour, lw=2.2)


def marker(cell: Cell) -> str:
    return "o" if cell.model == "osn" else "s"


def difference_label(value: float, position: float = 0) -> str:
    return number(value, signed=True) if abs(value) >= 0.0005 else "0"


def ticks(axes: Axes, places: Sequence[float], labels: Sequence[str]) -> None:
    """Ticks of a logarithmic x axis at these places alone."""
    axes.xaxis.set_major_locator(FixedLocator(list(places)))
    axes.set_xticks(list(places), list(labels))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())


def end_labels(axes: Axes, ends: Sequence[tuple[float, str, str]], height: float) -> None:
    """Names right of the lines' ends, moved apart where they would meet; `height` of the axes in inches."""
    low, high = axes.get_ylim()
    gap = 0.165 / height
    placed = -math.inf
    rows = []
    for value, text, colour in sorted(ends):
        placed = max((min(value, high) - low) / (high - low), placed + gap)
        rows.append((placed, text, colour))
    limit = 1.0
    for place, text, colour in reversed(rows):
        limit = min(place, limit)
        axes.annotate(text, (1.012, limit), xycoords="axes fraction", va="center", fontsize=9, color=colour)
        limit -= gap

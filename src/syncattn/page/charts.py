"""Lines over an axis: drawn in the browser by uPlot, read by pointer and keys; without scripts a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

from syncattn.page.tables import table

_MOST_ROWS = 16
# viridis (Smith and van der Walt), a tenth of the way at a time
_VIRIDIS = "440154 482878 3e4989 31688e 26828e 1f9e89 35b779 6ece58 b5de2b fde725".split()  # noqa: SIM905


class Line(NamedTuple):
    """One line of a chart.

    Attributes:
        name: what the legend calls it; lines of one name are switched together.
        x, y: its points, x rising; y in the chart's unit. Points that are None or not finite are left out.
        colour: as CSS has it, on a light and on a dark page.
        low, high: the edges of a band around it, as many as y; None for no band.
        pale: a thin line in the background, such as a training loss, which the table leaves out.
        dashed: drawn in dashes.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    colour: tuple[str, str]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    pale: bool = False
    dashed: bool = False


class Chart(NamedTuple):
    """What a chart shows.

    Attributes:
        title: above it.
        says: what is seen, in a sentence or two, for who does not see it.
        x, y: the axes' names, with units.
        lines: drawn in this order.
        span: the lowest and highest y shown; None for as far as the points go.
        digits: after the point of a y that is read.
        log: whether x is shown by its logarithm.
    """

    title: str
    says: str
    x: str
    y: str
    lines: Sequence[Line]
    span: tuple[float, float] | None = None
    digits: int = 3
    log: bool = False

    @property
    def data(self) -> dict[str, Any]:
        """What the page's script draws."""
        return {
            **{name: getattr(self, name) for name in ("title", "says", "x", "y", "span", "digits", "log")},
            "lines": [
                {
                    **{name: getattr(line, name) for name in ("name", "colour", "pale", "dashed")},
                    "x": list(line.x),
                    **{name: _finite(getattr(line, name)) for name in ("y", "low", "high")},
                }
                for line in self.lines
            ],
        }


def chart(shown: Chart, place: int) -> str:
    """A chart's place in the page, and its table.

    Args:
        shown: the chart; its `data` is number `place` of what `report` is given.
        place: counted from 0.
    """
    return (
        f'<figure class="chart card"><figcaption>{escape(shown.title)}</figcaption>'
        f'<div class="plot" data-chart="{place}"></div>'
        f'<details class="fallback" open><summary>As a table</summary>{_table(shown)}</details></figure>'
    )


def viridis(count: int) -> list[tuple[str, str]]:
    """So many colours in viridis' order, each for a light and for a dark page, away from the paper's end."""
    places = [n / max(count - 1, 1) for n in range(count)]
    return [(_along(0.78 * place), _along(0.28 + 0.72 * place)) for place in places]


def _along(place: float) -> str:
    at = place * (len(_VIRIDIS) - 1)
    low = min(int(at), len(_VIRIDIS) - 2)
    first, second = (bytes.fromhex(_VIRIDIS[n]) for n in (low, low + 1))
    return "#" + "".join(f"{round(a + (at - low) * (b - a)):02x}" for a, b in zip(first, second))


def _finite(values: Sequence[float | None] | None) -> list[float | None] | None:
    if values is None:
        return None
    return [None if value is None or not math.isfinite(value) else float(f"{value:.6g}") for value in values]


def _table(shown: Chart) -> str:
    """The lines' points, the last ones included; where there are many, evenly chosen."""
    lines = [line for line in shown.lines if not line.pale]
    places = sorted({x for line in lines for x in line.x})
    step = max(1, math.ceil(len(places) / _MOST_ROWS))
    kept = places[::-1][::step][::-1]
    points = [dict(zip(line.x, _finite(line.y) or [], strict=True)) for line in lines]
    rows = [[f"{x:,g}", *(_number(found.get(x), shown.digits) for found in points)] for x in kept]
    return table(f"{shown.title}: {shown.y}", [shown.x, *(line.name for line in lines)], rows)


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"

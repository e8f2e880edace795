"""HTML tables, which the page's script lets its reader sort."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple


class Cell(NamedTuple):
    """One cell of a table, where a plain text is not enough.

    Attributes:
        text: what is shown.
        value: what the column is sorted by; None for the text itself, as a number if it begins as one.
        mark: a CSS colour, of a dot before the text; "" for none.
        prose: whether it is a sentence, which is folded, and stands at the left.
    """

    text: str
    value: float | None = None
    mark: str = ""
    prose: bool = False


def table(
    caption: str, header: Sequence[str], rows: Sequence[Sequence[str | Cell]], *, sorts: bool = False
) -> str:
    """An HTML table in a box that scrolls sideways by itself.

    Args:
        caption: what it shows, above it and as the box's name for screen readers.
        header: the columns' names.
        rows: as many cells each.
        sorts: whether a click on a column's name sorts by it; numbers then stand at the right.
    """
    kinds = [_kind(cell) if sorts else "" for cell in rows[0]] if rows else [""] * len(header)
    head = "".join(
        f'<th scope="col"{_attribute("class", kind)}>{escape(name)}</th>' for name, kind in zip(header, kinds)
    )
    body = ""
    for row in rows:
        body += "<tr>"
        for cell, name, kind in zip(row, header, kinds, strict=True):
            # on a phone the cells of a row stand below each other, each with its column's name
            body += _cell(cell, _attribute("class", kind) + _attribute("data-name", name if sorts else ""))
        body += "</tr>\n"
    box, inner = ("wide whole", ' class="sorts"') if sorts else ("wide", "")
    return (
        f'<div class="{box}" tabindex="0" role="region"{_attribute("aria-label", caption)}><table{inner}>'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>"
        "</div>"
    )


def mark(colour: str) -> str:
    """A dot of a colour, as the legends have it."""
    return f'<span class="mark" style="background:{escape(colour, quote=True)}"></span>'


def _kind(cell: str | Cell) -> str:
    """The class of a column that begins with this cell."""
    text, prose = (cell, False) if isinstance(cell, str) else (cell.text, cell.prose)
    return "text" if prose else "number" if text[:1] and text[0] in "0123456789.-−+±∞–" else ""


def _attribute(name: str, value: str) -> str:
    return f' {name}="{escape(value, quote=True)}"' if value else ""


def _cell(cell: str | Cell, attributes: str) -> str:
    if isinstance(cell, str):
        cell = Cell(cell)
    if cell.value is not None:
        attributes += f' data-value="{cell.value!r}"'
    return f"<td{attributes}>{mark(cell.mark) if cell.mark else ''}{escape(cell.text)}</td>"

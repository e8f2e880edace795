"""Text for a terminal of any width. Imports nothing slow."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


def width() -> int | None:
    """The columns of the terminal that stdout is; None for a file or a pipe, which have no edge."""
    if sys.stdout is None or not sys.stdout.isatty():
        return None
    return max(shutil.get_terminal_size().columns, 20)


def quiet_progress(console: Console) -> Progress:
    """A bar for what is timed: it shows what is under way, and is not there where nobody watches."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
        refresh_per_second=1,  # it draws in a thread of its own, which should not disturb what is timed
    )


def fold(parts: Sequence[str], columns: int | None, indent: str = "  ", between: str = "  ") -> str:
    """The parts in as few lines as it takes, all lines but the first indented.

    A part, such as a number with its name and unit, stays on one line, unless it is longer than a line: then
    it is broken at spaces. With `columns=None` all are on one line.
    """
    if columns is None:
        return between.join(parts)
    lines, current = [], ""
    for part in parts:
        if current and len(current + between + part) > columns:
            lines.append(current)
            current = ""
        current = current + between + part if current else (indent if lines else "") + part
    return "\n".join(piece for line in [*lines, current] for piece in _broken(line, columns, indent))


def _broken(line: str, columns: int, indent: str) -> list[str]:
    if len(line) <= columns:
        return [line]
    return textwrap.wrap(
        line.strip(),
        columns,
        initial_indent=line[: len(line) - len(line.lstrip())],
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )

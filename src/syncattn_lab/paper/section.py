"""What a section of the reproduction is: numbers that are measured, the claims on them, their pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from syncattn.page import Chart
from syncattn_lab.paper.judge import Claim

Numbers = dict[str, Any]


class Extent(NamedTuple):
    """How much is measured.

    Attributes:
        quick: small sizes, for a look and for the tests.
        seed: of everything that is drawn at random.
    """

    quick: bool = False
    seed: int = 0

    def size(self, full: Any, quick: Any) -> Any:
        """One of two, for a full and for a quick run."""
        return quick if self.quick else full


class Drawing(NamedTuple):
    """A picture of a section's numbers.

    Attributes:
        name: the file's name without its extension.
        title: what it shows, one line.
        draw: makes it from the numbers, as they come back from JSON; called inside `drawing.style`.
    """

    name: str
    title: str
    draw: Callable[[Numbers], Figure]


class Section(NamedTuple):
    """One part of the paper.

    Attributes:
        name: as `syncattn paper --section` takes it.
        title: one line.
        measure: makes the numbers, nothing but what JSON can hold. It is given the extent and a function that
            takes a line about what is going on.
        claims: the verdicts, from the numbers alone.
        drawings: the pictures.
        table: lines of Markdown made from the numbers, if the section has a table.
        threads: of PyTorch, while measuring. With one the numbers do not depend on the cores, nor the
            time on who else uses them; None for as many as PyTorch takes.
        charts: curves for the page in the browser, made from the numbers; None without any.
    """

    name: str
    title: str
    measure: Callable[[Extent, Callable[[str], None]], Numbers]
    claims: Callable[[Numbers], list[Claim]]
    drawings: tuple[Drawing, ...] = ()
    table: Callable[[Numbers], str] | None = None
    threads: int | None = 1
    charts: Callable[[Numbers], list[Chart]] | None = None

"""What a section of the reproduction is: numbers that are measured, the claims on them, their pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from matplotlib.figure import Figure

HOLDS, HOLDS_IF, FAILS = "holds", "holds if", "does not hold"
VERDICTS = (HOLDS, HOLDS_IF, FAILS)
Numbers = dict[str, Any]


class Plan(NamedTuple):
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


class Check(NamedTuple):
    """One measured number and what it is held to.

    Attributes:
        what: what was measured, with its unit.
        measured: the number.
        expected: what it must be, in words: "below 1e-12", "between .74 and .96".
        met: whether it is.
    """

    what: str
    measured: float
    expected: str
    met: bool


class Timing(NamedTuple):
    """A time, or a ratio of times: reported with its spread. No verdict hangs on it, for it hangs on what
    else the machine does.

    Attributes:
        what: what was timed, with its unit.
        median, low, high: over the rounds, with the quartiles.
    """

    what: str
    median: float
    low: float
    high: float


class Claim(NamedTuple):
    """One claim of the paper with what was found.

    Attributes:
        name: a short name in lower case with hyphens, the claim's address in the ledger.
        source: where the paper makes it: "Theorem 2", "Abstract", "Figure 5".
        says: the claim in our words.
        verdict: one of VERDICTS. It stands only if every check is met.
        finding: what was found, with its numbers; for HOLDS_IF it says under which condition.
        checks: the measurements that the verdict rests on, one at least: counts, bytes, values of formulas.
            A time is none of them; tests/paper lets the clock say anything.
        times: what was timed beside them.
    """

    name: str
    source: str
    says: str
    verdict: str
    finding: str
    checks: tuple[Check, ...]
    times: tuple[Timing, ...] = ()

    @property
    def shown(self) -> bool:
        """Whether the measurements bear the verdict out."""
        return bool(self.checks) and all(check.met for check in self.checks)


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
        measure: makes the numbers, nothing but what JSON can hold. It is given the plan and a function that
            takes a line about what is going on.
        claims: the verdicts, from the numbers alone.
        drawings: the pictures.
        table: lines of Markdown made from the numbers, if the section has a table.
        threads: of PyTorch, while measuring. With one the numbers do not depend on the cores, nor the
            time on who else uses them; None for as many as PyTorch takes.
    """

    name: str
    title: str
    measure: Callable[[Plan, Callable[[str], None]], Numbers]
    claims: Callable[[Numbers], list[Claim]]
    drawings: tuple[Drawing, ...] = ()
    table: Callable[[Numbers], str] | None = None
    threads: int | None = 1


def timing(what: str, found: dict[str, Any]) -> Timing:
    """A time from what `bench.timing.spread` says of its rounds."""
    return Timing(what, found["median"], *found["quartiles"])


def below(what: str, measured: float, limit: float) -> Check:
    """A check that a number is below a limit."""
    return Check(what, measured, f"below {limit:g}", measured < limit)


def above(what: str, measured: float, limit: float) -> Check:
    """A check that a number is above a limit."""
    return Check(what, measured, f"above {limit:g}", measured > limit)


def between(what: str, measured: float, low: float, high: float) -> Check:
    """A check that a number lies in a range, both ends included."""
    return Check(what, measured, f"from {low:g} to {high:g}", low <= measured <= high)


def exactly(what: str, measured: float, expected: float) -> Check:
    """A check that a number is the expected one to the last bit: counts, exact zeros."""
    text = f"{int(expected):,}" if expected == int(expected) else f"{expected:g}"
    return Check(what, measured, f"exactly {text}", measured == expected)

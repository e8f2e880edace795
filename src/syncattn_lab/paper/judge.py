"""What a claim is judged by: its verdict, and the measurements that it rests on."""

from __future__ import annotations

from typing import Any, NamedTuple

HOLDS, HOLDS_IF, FAILS = "holds", "holds if", "does not hold"
VERDICTS = (HOLDS, HOLDS_IF, FAILS)


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
            A time is none of them; tests/lab/paper lets the clock say anything.
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

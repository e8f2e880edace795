"""Loss against seconds a token against partners: what was timed, and how soon a loss is reached."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

from syncattn.training.errors import UserError
from syncattn_lab.study.summary import Cell, Group, context, curve, tokens_per_step
from syncattn_lab.study.verdicts import OPEN, Verdict, best_transformer, decide, number

SECONDS_FILE = "seconds.jsonl"
"""A line for each model and round, as benchmarks/frontier/seconds.py writes them."""
KINDS = ("forward", "training", "generation")
JUDGED = 16
"""Partners of the OSN that is judged: the default's, chosen before any run."""
WANTED = {256: 1.0, 4096: 1 / 3}
"""Of the Transformer's seconds to its last loss, those that the OSN may take to the same loss, by context."""
EARLY = 0.2
"""Part of a Transformer's run whose losses are not asked for: there each model falls to what bytes are."""


@dataclass(frozen=True)
class Seconds:
    """What a token costs one model, every timed call.

    Attributes:
        key: of the run.
        rounds: their numbers.
        cpu, clock: by kind, one of `KINDS`, seconds a token of the process and of the clock.
        partners: mean over the heads, a number a layer; None for softmax.
    """

    key: str
    rounds: frozenset[int]
    cpu: dict[str, tuple[float, ...]]
    clock: dict[str, tuple[float, ...]]
    partners: list[float] | None

    def cost(self, kind: str) -> float:
        """Median process seconds a token."""
        return median(self.cpu[kind])


class Point(NamedTuple):
    """A model of one context, its loss and its costs; `seconds` is None where nothing was timed."""

    cell: Cell
    seconds: Seconds | None

    @property
    def loss(self) -> float:
        return self.cell.mean("test_loss") or float("nan")

    @property
    def partners(self) -> float | None:
        """The bound in training, by number; None for a model or a limit without one."""
        found = self.cell.lines[0]["options"].get("max_partners")
        return found if self.cell.model == "osn" else None

    @property
    def label(self) -> str:
        """Whom a token reads: at most so many partners, the last so many tokens, or all."""
        if self.partners is not None:
            return f"{self.partners:g}"
        if self.cell.model == "osn":
            return f"{number(self.cell.lines[0]['options'].get('max_density'), 2)} of all"
        window = self.cell.lines[0].get("settings", {}).get("config", {}).get("window")
        return "all" if window is None else f"last {window:,}"

    def until(self, loss: float) -> float | None:
        """Training seconds until the validation loss is first this low; None if it never is, or untimed."""
        tokens = tokens_to(self.cell, loss)
        return None if tokens is None or self.seconds is None else tokens * self.seconds.cost("training")

    @property
    def whole(self) -> float | None:
        """Training seconds of the whole run: a step's times the steps."""
        line = self.cell.runs[0]
        tokens = tokens_per_step(line) * line["options"]["steps"]
        return None if self.seconds is None else tokens * self.seconds.cost("training")


class Panel(NamedTuple):
    """All finished models of one context on one task."""

    context: int
    task: str
    title: str
    points: list[Point]

    @property
    def transformer(self) -> Point | None:
        """The full Transformer with the lowest test loss."""
        best = best_transformer([point.cell for point in self.points])
        return next((point for point in self.points if point.cell is best), None)

    @property
    def fused(self) -> Point | None:
        """The full Transformer whose seconds are fused attention's: one without gate and slopes, if there is
        one, or else `transformer`."""
        usual = [point for point in self.points if point.cell.model == "transformer" and _is_fused(point)]
        return usual[0] if usual else self.transformer

    @property
    def window(self) -> Point | None:
        return next((point for point in self.points if point.cell.model == "peer"), None)

    @property
    def osns(self) -> list[Point]:
        """Those with a bound on partners, from few to many, then the others."""
        found = [point for point in self.points if point.cell.model == "osn"]
        return sorted(found, key=lambda point: point.partners or float("inf"))

    @property
    def judged(self) -> Point | None:
        return next((point for point in self.osns if point.partners == JUDGED), None)


def _is_fused(point: Point) -> bool:
    given = point.cell.lines[0].get("settings", {}).get("config", {})
    return not given.get("score_gate") and given.get("position", "rotary") == "rotary"


def read_seconds(path: Path) -> list[Seconds]:
    """What was timed, all rounds of a model together; [] if there is no such file.

    Raises:
        UserError: a line is malformed; the message names the file and the line's number.
    """
    if not path.is_file():
        return []
    found: dict[str, list[Seconds]] = {}
    for count, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            line = json.loads(text)
            of = {"forward": line["tokens"], "training": line["tokens"], "generation": 1}
            cpu, clock = (
                {kind: tuple(float(pair[side]) / of[kind] for pair in line[kind]) for kind in KINDS}
                for side in (0, 1)
            )
            if not all(cpu.values()) or min(map(min, cpu.values())) <= 0 or not isinstance(line["key"], str):
                raise ValueError
            each = Seconds(line["key"], frozenset([int(line["round"])]), cpu, clock, line["partners"])
        except (ValueError, KeyError, TypeError, IndexError, ZeroDivisionError):
            wanted = f"an object with key, round, tokens, partners and [process, clock] of {', '.join(KINDS)}"
            raise UserError(f"{path}, line {count}: expected {wanted}, got {text[:80]!r}") from None
        found.setdefault(each.key, []).append(each)
    return [_together(each) for each in found.values()]


def _together(rounds: Sequence[Seconds]) -> Seconds:
    cpu, clock = (
        {kind: tuple(second for each in rounds for second in getattr(each, side)[kind]) for kind in KINDS}
        for side in ("cpu", "clock")
    )
    numbers = frozenset(number for each in rounds for number in each.rounds)
    return Seconds(rounds[0].key, numbers, cpu, clock, rounds[-1].partners)


def panels(groups: Sequence[Group], seconds: Sequence[Seconds]) -> list[Panel]:
    """The comparisons by context, short ones first; without what did not finish."""
    timed = {each.key: each for each in seconds}
    found = []
    for group in groups:
        for task in group.tasks if group.kind == "comparison" else ():
            cells = [cell for cell in group.of_task(task) if cell.runs]
            points = [
                Point(cell, next((timed[run["key"]] for run in cell.runs if run["key"] in timed), None))
                for cell in cells
            ]
            if points:
                found.append(Panel(context(cells[0]), task, group.title, points))
    return sorted(found, key=lambda panel: panel.context)


def tokens_to(cell: Cell, loss: float) -> float | None:
    """Tokens read until the validation loss is first at or below this one, by a line between evaluations."""
    read, losses = curve(cell)
    for place, value in enumerate(losses):
        if value <= loss:
            if place == 0:
                return float(read[0])
            share = (losses[place - 1] - loss) / (losses[place - 1] - value)
            return read[place - 1] + share * (read[place] - read[place - 1])
    return None


def last_loss(cell: Cell) -> float | None:
    """The validation loss at the end of the curve: of fewer tokens than the one that is reported."""
    losses = curve(cell)[1]
    return losses[-1] if losses else None


def ratio(point: Point | None, other: Point | None, kind: str) -> float | None:
    """A token's seconds of one as a multiple of the other's; None where one was not timed."""
    if point is None or other is None or point.seconds is None or other.seconds is None:
        return None
    return point.seconds.cost(kind) / other.seconds.cost(kind)


def catches_up(point: Point, other: Point) -> tuple[float | None, float | None]:
    """Seconds to the losses of the other's run as multiples of the other's seconds to them.

    Returns:
        At the other's last loss, and the largest at any of its evaluations after the first fifth of its run;
        None where it does not get there, or is not timed.
    """
    read, losses = curve(other.cell)
    asked = [loss for tokens, loss in zip(read, losses) if tokens >= EARLY * read[-1]]
    pairs = [(point.until(loss), other.until(loss)) for loss in asked]
    found = [ours / theirs for ours, theirs in pairs if ours is not None and theirs]
    last = (point.until(losses[-1]), other.until(losses[-1])) if losses else (None, None)
    at_last = last[0] / last[1] if last[0] is not None and last[1] else None
    return at_last, max(found) if found and len(found) == len(pairs) else None


def verdicts(found: Sequence[Panel]) -> list[Verdict]:
    """Whether what was wanted is there, of the OSN with the default's number of partners."""
    return [_verdict(length, share, found) for length, share in WANTED.items()]


def _verdict(length: int, share: float, found: Sequence[Panel]) -> Verdict:
    times = "no slower than" if share == 1 else f"{number(1 / share, 0)} times faster than"
    target = f"{length:,} tokens: in wall time to a given loss {times} the Transformer"
    panel = next((each for each in found if each.context == length), None)
    osn, other = (panel.judged, panel.transformer) if panel is not None else (None, None)
    if osn is None or other is None:
        lacking = "OSN" if osn is None else "Transformer"
        return Verdict(target, OPEN, f"no finished run of the {lacking}")
    if osn.seconds is None or other.seconds is None:
        return Verdict(target, OPEN, "no step was timed")
    loss = last_loss(other.cell)
    if loss is None:
        return Verdict(target, OPEN, "no evaluation while training")
    at_last, at_most = catches_up(osn, other)
    if at_last is None:
        return Verdict(target, decide(False), f"the OSN's run does not come down to {number(loss)}")
    measured = (
        f"to {number(loss)}, the Transformer's last, {number(at_last, 2)} of its seconds "
        f"({osn.until(loss):,.0f} of {other.until(loss):,.0f})"
    )
    if at_most is not None:
        measured += f"; at any loss on its way, at most {number(at_most, 2)}"
    return Verdict(target, decide(at_last <= share), measured)

"""The study's targets, each met, missed or not measured, with the numbers that decide it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from syncattn_lab.study.records import DEFAULT
from syncattn_lab.study.summary import Cell, Group, context, lengths, rate_losses, size_cells

LEAD = 0.05
"""Nats per byte of test loss by which the OSN is to be below the best Transformer."""
DENSITY = 0.10
EXTRAPOLATION = 1.02
FACTOR = 8
RATE_TOLERANCE = 0.01
SAME_SIZE = 0.01
"""Relative difference of parameter counts up to which two models are of one size."""

MET, MISSED, OPEN = "met", "missed", "not measured"


@dataclass(frozen=True)
class Verdict:
    """A target in words, whether it is met, and the numbers in words."""

    target: str
    state: str
    measured: str


def verdicts(groups: Sequence[Group]) -> list[Verdict]:
    """All targets, in the plan's order where one has several rows."""
    return [
        *_leads(groups),
        *(_accuracy(groups, kind) for kind in ("recall", "induction")),
        *_extrapolation(groups),
        *_one_rate(groups),
        _dead_heads(groups),
    ]


def decide(*conditions: bool | None) -> str:
    """Missed if one condition fails, else not measured if one is not known, else met."""
    if False in conditions:
        return MISSED
    return OPEN if None in conditions or not conditions else MET


def number(value: float | None, digits: int = 3, signed: bool = False) -> str:
    """A number as the page shows it: 1.464, .003, +.024, −.010; a dash for None."""
    if value is None:
        return "–"
    if math.isinf(value):
        return "∞"
    text = f"{abs(value):.{digits}f}"
    text = text[1:] if text.startswith("0.") else text
    zero = float(f"{value:.{digits}f}") == 0
    sign = "−" if value < 0 and not zero else "+" if signed and not zero else ""
    return sign + text


def best_transformer(cells: Sequence[Cell], name: str = "test_loss", highest: bool = False) -> Cell | None:
    """The Transformer with the best mean of a result: the hardest to beat, whatever validation says."""
    found = [(cell.mean(name), cell) for cell in cells if cell.model == "transformer"]
    known = [(value, cell) for value, cell in found if value is not None]
    if not known:
        return None
    return (max if highest else min)(known, key=lambda item: item[0])[1]


def lead(osn: Cell, other: Cell) -> tuple[float | None, float | None]:
    """How far the OSN's mean test loss is below the other's, and the spread of that difference.

    The spread is the root of the sum of the two variances over the seeds; None where one has a single seed.
    """
    ours, theirs = osn.mean("test_loss"), other.mean("test_loss")
    our_spread, their_spread = osn.spread("test_loss"), other.spread("test_loss")
    difference = None if ours is None or theirs is None else theirs - ours
    if our_spread is None or their_spread is None:
        return difference, None
    return difference, math.hypot(our_spread, their_spread)


def _leads(groups: Sequence[Group]) -> list[Verdict]:
    found = []
    several = sum(group.kind == "comparison" for group in groups) > 1
    for group in groups:
        for task in group.tasks if group.kind == "comparison" else ():
            cells = group.of_task(task)
            if not cells[0].text:
                continue
            where = f"{task}, {group.title}" if several else task
            target = (
                f"{where}: test loss at least {number(LEAD, 2)} below the best tuned Transformer, by more "
                f"than the seeds' spread, with a density of at most {number(DENSITY, 2)}"
            )
            found.append(Verdict(target, *_lead(group.cell(task, DEFAULT), best_transformer(cells))))
    if not found:
        target = f"test loss at least {number(LEAD, 2)} below the best tuned Transformer on each text"
        found.append(Verdict(target, OPEN, "no comparison on a text"))
    return found


def _lead(osn: Cell | None, other: Cell | None) -> tuple[str, str]:
    if osn is None or other is None:
        return OPEN, f"no run of {'the OSN' if osn is None else 'a Transformer'}"
    if osn.diverged:
        return MISSED, f"{osn.diverged} of the OSN's runs at its chosen learning rate diverged"
    difference, spread = lead(osn, other)
    density = osn.density
    same = None
    if osn.parameters and other.parameters:
        same = abs(osn.parameters / other.parameters - 1) <= SAME_SIZE
    state = decide(
        None if difference is None else difference >= LEAD,
        None if difference is None or spread is None else difference > spread,
        None if density is None else density <= DENSITY,
        same,
    )
    if difference is None:
        return state, "no finished run of the OSN"
    text = (
        f"lead {number(difference)} over {other.title} ({number(osn.mean('test_loss'))} against "
        f"{number(other.mean('test_loss'))}), spread {number(spread)}, density {number(density, 2)}"
    )
    if spread is None:
        text += "; one seed has no spread"
    if other.diverged:
        text += f"; {other.diverged} of the Transformer's seeds diverged and are left out"
    if not same:
        text += f"; not of one size: {osn.parameters} and {other.parameters} parameters"
    return state, text


def _accuracy(groups: Sequence[Group], kind: str) -> Verdict:
    target = f"{kind}: accuracy at or above the best Transformer's at every size (three digits)"
    conditions: list[bool | None] = []
    gaps: list[tuple[float, str]] = []
    for group in groups:
        for task in group.tasks if group.kind == "synthetic" else ():
            cells = group.of_task(task)
            if cells[0].task_kind != kind:
                continue
            osn, other = group.cell(task, DEFAULT), best_transformer(cells, "test_accuracy", highest=True)
            ours = osn.mean("test_accuracy") if osn is not None else None
            theirs = other.mean("test_accuracy") if other is not None else None
            if osn is not None and osn.diverged:
                conditions.append(False)
                gaps.append((-math.inf, f"{task}: the OSN diverged"))
            elif ours is None or theirs is None or other is None:
                conditions.append(None)
            else:
                gap = round(ours, 3) - round(theirs, 3)
                conditions.append(gap >= 0)
                gaps.append((gap, f"{task}: {number(ours)} against {number(theirs)}, {other.title}"))
    if not conditions:
        return Verdict(target, OPEN, "no such task")
    text = f"at {conditions.count(True)} of {len(conditions)} sizes"
    if None in conditions:
        text += f", {conditions.count(None)} not measured"
    if gaps:
        gap, worst = min(gaps)
        text += f"; {'worst' if gap < 0 else 'closest'}: {worst}"
    return Verdict(target, decide(*conditions), text)


def _extrapolation(groups: Sequence[Group]) -> list[Verdict]:
    target = (
        f"test loss beyond the training length, up to {FACTOR} × it, at most "
        f"{100 * (EXTRAPOLATION - 1):.0f} % above that at the training length"
    )
    found = []
    for group in groups:
        for task in group.tasks:
            cells = [cell for cell in group.of_task(task) if max(lengths(cell), default=0) > context(cell)]
            if not cells:
                continue
            osn = next((cell for cell in cells if cell.variant == DEFAULT), None)
            state, text = OPEN, "OSN not measured"
            if osn is not None:
                ratio, reached = worst_ratio(osn)
                # A loss that is too high already needs no longer text to be missed.
                within = ratio <= EXTRAPOLATION
                state = decide(within, True if reached >= FACTOR or not within else None)
                text = f"OSN {percent(ratio)} at up to {reached:g} ×"
            others = [
                f"{cell.title} {percent(ratio)}" + (" (within too)" if ratio <= EXTRAPOLATION else "")
                for cell in cells
                if cell.model == "transformer"
                for ratio in [worst_ratio(cell)[0]]
            ]
            text += "; " + (", ".join(others) if others else "no Transformer measured")
            found.append(Verdict(f"{task}, {group.title}: {target}", state, text))
    return found or [Verdict(target, OPEN, "no run was evaluated at other lengths")]


def worst_ratio(cell: Cell) -> tuple[float, float]:
    """The largest loss over that at the training length, beyond it and up to 8 times it, and how far."""
    own = context(cell)
    measured = {n / own: entry["ratio"] for n, entry in lengths(cell).items() if own < n <= FACTOR * own}
    return max(measured.values(), default=math.nan), max(measured, default=0.0)


def percent(ratio: float, digits: int = 1) -> str:
    """A ratio as a change: +1.2 %, −0.4 %."""
    value = round(100 * (ratio - 1), digits)
    return "0 %" if value == 0 else f"{value:+.{digits}f} %".replace("-", "−")


def _one_rate(groups: Sequence[Group]) -> list[Verdict]:
    target = f"one learning rate within {number(RATE_TOLERANCE, 2)} of the best at every size"
    found = []
    for task, variants in size_cells(groups).items():
        if DEFAULT not in variants:
            continue
        state, text = common_rate(variants[DEFAULT])
        others = [
            f"{cells[0].title}: {common_rate(cells)[1]}"
            for cells in variants.values()
            if cells[0].model == "transformer"
        ]
        text = "; ".join([f"{variants[DEFAULT][0].title}: {text}", *others])
        found.append(Verdict(f"{task}: {target}", state, text))
    return found or [Verdict(target, OPEN, "no group about size")]


def common_rate(cells: Sequence[Cell]) -> tuple[str, str]:
    """Whether one learning rate serves all sizes: its state, and the rate with its largest distance in words.

    Args:
        cells: one model in all sizes, smallest first. Losses are validation losses of the first seed.
    """
    losses = [rate_losses(cell) for cell in cells]
    best = [min(each.values()) for each in losses]
    if math.inf in best:
        return MISSED, "all learning rates diverged at one size"
    everywhere = set.intersection(*map(set, losses))
    tried = set.union(*map(set, losses))
    own = ", ".join(f"{min(each, key=lambda rate: each[rate]):g}" for each in losses)
    if len(cells) < 2 or len(tried) < 2 or not everywhere:
        return OPEN, f"{len(cells)} sizes and {len(everywhere)} rates at all of them; best {own}"
    behind = {
        rate: max(each[rate] - lowest for each, lowest in zip(losses, best)) for rate in sorted(everywhere)
    }
    rate = min(behind, key=lambda rate: behind[rate])
    within = behind[rate] <= RATE_TOLERANCE + 1e-9
    # A rate that is not measured at every size might still serve.
    state = MET if within else MISSED if everywhere == tried else OPEN
    distance = (
        "diverged at one size" if math.isinf(behind[rate]) else f"at most {number(behind[rate])} behind"
    )
    return state, f"{rate:g} {distance} at {len(cells)} sizes (best {own})"


def _dead_heads(groups: Sequence[Group]) -> Verdict:
    runs = dead = affected = 0
    for group in groups:
        for (_, variant), cell in group.cells.items():
            for line in cell.lines if variant == DEFAULT else ():
                count = (line.get("result") or {}).get("dead_heads")
                if count is not None:
                    runs, dead, affected = runs + 1, dead + count, affected + (count > 0)
    target = "no dead heads (all rows locked to one sender only) in the default model"
    if not runs:
        return Verdict(target, OPEN, "no run counted them")
    text = f"{dead} in {runs} runs" + (f", in {affected} of them" if affected else "")
    return Verdict(target, MET if dead == 0 else MISSED, text)

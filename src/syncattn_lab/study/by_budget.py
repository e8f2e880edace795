"""Loss against bytes and against seconds, over groups that differ in their budget alone, with a fit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from syncattn.drawing import canvas, png
from syncattn_lab.study.marks import FAINT, INK, colours, difference_label, marker, ticks
from syncattn_lab.study.records import DEFAULT
from syncattn_lab.study.steps import Step
from syncattn_lab.study.summary import Cell, Group
from syncattn_lab.study.tables import mean_text, table
from syncattn_lab.study.verdicts import number

NOISE = 0.01
"""Nats by which a loss is taken to be uncertain: seeds of an OSN differ by about .006, of others by more."""
DRAWS = 400
EXPONENTS = np.geomspace(0.05, 2.0, 80)
AHEAD = (4, 16)
"""Times the largest budget at which the fits are asked for the lead."""

Floats = NDArray[np.float64]


class Series(NamedTuple):
    """One size of model on one text, over budgets: the OSN and one Transformer at each, bytes rising."""

    task: str
    parameters: int
    context: int
    tokens: list[int]
    osn: list[Cell]
    other: list[Cell]

    @property
    def title(self) -> str:
        return f"{self.task}, {round(self.parameters, -3):,} parameters, contexts of {self.context:,}"

    def losses(self) -> tuple[Floats, Floats]:
        """Test losses of both, (budgets,) each."""
        found = [[cell.mean("test_loss") or math.nan for cell in cells] for cells in (self.osn, self.other)]
        return np.array(found[0]), np.array(found[1])

    def leads(self) -> Floats:
        """How far the OSN is below the Transformer, nats per byte; negative where it is above."""
        ours, theirs = self.losses()
        return theirs - ours


class PowerLaw(NamedTuple):
    """L = floor + scale * (bytes / unit) ** -exponent."""

    floor: float
    scale: float
    exponent: float
    unit: float

    def at(self, tokens: float | Floats) -> Floats:
        return self.floor + self.scale * (np.asarray(tokens, dtype=np.float64) / self.unit) ** -self.exponent


def series_of(groups: Sequence[Group]) -> list[Series]:
    """Comparisons on a text that differ in nothing but how much is read; only those with several budgets."""
    found: dict[tuple[Any, ...], dict[str, dict[int, tuple[Cell, Cell]]]] = {}
    for group in groups:
        for task in group.tasks if group.kind == "comparison" else ():
            osn = group.cell(task, DEFAULT)
            if osn is None or not osn.text or not osn.runs:
                continue
            line = osn.runs[0]
            sizes = tuple(sorted(line["settings"]["sizes"].items())) if "settings" in line else ()
            place = (task, sizes, osn.title, line["options"]["context"], line["options"]["batch_size"])
            for other in group.of_task(task):
                if other.model == "transformer" and other.runs:
                    beside = found.setdefault(place, {}).setdefault(other.title, {})
                    beside[line["tokens"]] = (osn, other)
    rows = []
    for (task, _, _, context, _), others in found.items():
        # One Transformer at all budgets: the one that has most of them, of several the best of the last.
        budgets = max(others.values(), key=lambda each: (len(each), -_last_loss(each)))
        if len(budgets) > 1:
            tokens = sorted(budgets)
            pairs = [budgets[count] for count in tokens]
            ours, theirs = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
            size = ours[0].parameters or 0
            rows.append(Series(task, size, context, tokens, ours, theirs))
    return rows


def _last_loss(budgets: Mapping[int, tuple[Cell, Cell]]) -> float:
    """The Transformer's at the largest budget."""
    loss = budgets[max(budgets)][1].mean("test_loss")
    return math.inf if loss is None else loss


def seconds_of(cells: Sequence[Cell], steps: Mapping[str, Step]) -> tuple[list[float], bool]:
    """Training seconds of each, and whether they are of a measured step's CPU time rather than of the clock.

    The clock of a machine that others use says little; a step's time, measured alone, times the steps does.
    """
    runs = [cell.runs[0] for cell in cells]
    found = [steps[line["key"]].median for line in runs if line["key"] in steps]
    if found:
        usual = median(found)  # models of one size: who was not measured takes what the others do
        each = [steps[line["key"]].median if line["key"] in steps else usual for line in runs]
        return [second * line["options"]["steps"] for second, line in zip(each, runs)], True
    return [cell.mean("train_seconds") or math.nan for cell in cells], False


def fit_power(tokens: Sequence[int], losses: Floats) -> PowerLaw | None:
    """The least squares of L = a + b bytes^-c with a, b >= 0; None for fewer than three budgets."""
    if len(tokens) < 3:
        return None
    x = (np.array(tokens, dtype=np.float64) / tokens[0]) ** -EXPONENTS[:, None]  # (exponents, budgets)
    apart = x - x.mean(1, keepdims=True)
    scale = (apart @ losses) / (apart**2).sum(1)
    floor = losses.mean() - scale * x.mean(1)
    scale = np.where(floor < 0, (x @ losses) / (x**2).sum(1), scale)
    floor = np.maximum(floor, 0.0)
    error = ((floor[:, None] + scale[:, None] * x - losses) ** 2).sum(1)
    best = int(np.argmin(np.where(scale >= 0, error, np.inf)))
    return PowerLaw(float(floor[best]), float(scale[best]), float(EXPONENTS[best]), float(tokens[0]))


def fitted_leads(series: Series, tokens: Floats, draws: int = DRAWS) -> Floats | None:
    """The lead at some budgets by the difference of the two power laws: (3, budgets), 5 %, median and 95 %
    over draws of `NOISE` on every loss; None where there is no fit."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(draws):
        laws = [
            fit_power(series.tokens, losses + random.normal(0, NOISE, len(losses)))
            for losses in series.losses()
        ]
        if laws[0] is not None and laws[1] is not None:
            found.append(laws[1].at(tokens) - laws[0].at(tokens))
    return np.quantile(np.stack(found), [0.05, 0.5, 0.95], axis=0) if found else None


def fit_line(series: Series) -> tuple[float, float, float]:
    """The lead by doublings of the bytes: at the first budget, a doubling's change, its standard error.

    The error is what `NOISE` on every loss makes of it, since so few budgets do not show it themselves.
    """
    x = np.log2(np.array(series.tokens, dtype=np.float64) / series.tokens[0])
    slope, begin = np.polyfit(x, series.leads(), 1)
    return float(begin), float(slope), math.sqrt(2) * NOISE / math.sqrt(((x - x.mean()) ** 2).sum())


def page(series: Series, steps: Mapping[str, Step]) -> list[str]:
    """A table of the budgets, and in words where the lead goes."""
    leads = series.leads()
    ours, theirs = seconds_of(series.osn, steps), seconds_of(series.other, steps)
    header = ["bytes", series.osn[0].title, series.other[0].title, "lead", "seconds", "seconds, Transformer"]
    rows = [
        [
            f"{tokens:,}",
            mean_text(series.osn[index], "test_loss"),
            mean_text(series.other[index], "test_loss"),
            number(float(leads[index]), signed=True),
            f"{ours[0][index]:,.0f}",
            f"{theirs[0][index]:,.0f}",
        ]
        for index, tokens in enumerate(series.tokens)
    ]
    clock = "a finished model's step in process CPU seconds, times the steps"
    if not (ours[1] and theirs[1]):
        clock = "the clock, on a machine that others used at the same time: read no ratio from them"
    return [*table(header, rows), "", f"{_told(series)} Seconds are those of training: {clock}.", ""]


def _told(series: Series) -> str:
    begin, slope, error = fit_line(series)
    text = f"A doubling of the bytes changes the lead by {number(slope, signed=True)}"
    text += f" (± {number(error)}, if each loss is uncertain by {number(NOISE, 2)})"
    if slope < 0 and begin > 0:
        text += f"; by that line it is gone at {_bytes(series.tokens[0] * 2 ** (-begin / slope))}"
    text += "."
    laws = [fit_power(series.tokens, losses) for losses in series.losses()]
    if laws[0] is not None and laws[1] is not None:
        named = [
            f"{number(law.floor)} + {number(law.scale)} (bytes / {_bytes(law.unit)})^"
            f"−{number(law.exponent, 2)}"
            for law in laws
            if law is not None
        ]
        text += f" Fitted: OSN {named[0]}, Transformer {named[1]}"
        text += ", three budgets for three numbers, so exact and untested" if len(series.tokens) == 3 else ""
        later = np.array([times * series.tokens[-1] for times in AHEAD], dtype=np.float64)
        bounds = fitted_leads(series, later)
        if bounds is not None:
            said = [
                f"{number(float(middle), signed=True)} ({number(float(low), signed=True)} to "
                f"{number(float(high), signed=True)}) at {_bytes(where)}"
                for where, (low, middle, high) in zip(later, bounds.T)
            ]
            text += f"; what that says of the lead, with the same uncertainty: {', '.join(said)}"
        text += "."
    return text


def picture(series: Series, steps: Mapping[str, Step]) -> bytes:
    """Test loss against bytes and against seconds, and the lead against bytes with both fits."""
    paint = colours([series.osn[0], series.other[0]])
    with canvas("light", 10.2, 3.7, "constrained") as figure:
        by_bytes, by_time, lead = figure.subplots(1, 3)
        reach = np.geomspace(series.tokens[0], 4 * series.tokens[-1], 60)
        for cells, losses in zip((series.osn, series.other), series.losses()):
            style = {"color": paint[cells[0].variant], "marker": marker(cells[0])}
            seconds, measured = seconds_of(cells, steps)
            by_bytes.plot(series.tokens, losses, lw=1.8, ms=5, label=cells[0].title, **style)
            by_time.plot(seconds, losses, lw=1.8, ms=5, **style)
            law = fit_power(series.tokens, losses)
            if law is not None:
                by_bytes.plot(reach, law.at(reach), lw=1, ls=(0, (4, 3)), color=style["color"])
        begin, slope, _ = fit_line(series)
        bounds = fitted_leads(series, reach)
        if bounds is not None:
            lead.fill_between(reach, bounds[0], bounds[2], color=FAINT, alpha=0.7, lw=0)
            lead.plot(reach, bounds[1], color=INK, lw=1, ls=(0, (4, 3)))
        lead.plot(reach, begin + slope * np.log2(reach / reach[0]), color=INK, lw=1, ls=(0, (1, 2)))
        lead.plot(series.tokens, series.leads(), "o", color=paint[series.osn[0].variant], ms=6)
        lead.axhline(0, color=INK, lw=0.8)
        for axes in (by_bytes, by_time, lead):
            axes.set_xscale("log")
            axes.grid(axis="y", lw=0.6)
        for axes in (by_bytes, lead):
            ticks(axes, series.tokens, [_bytes(count) for count in series.tokens])
            axes.set_xlabel("bytes read")
        low, high = by_time.get_xlim()
        round_ones = [first * 10.0**power for power in range(-1, 8) for first in (1, 2, 5)]
        shown = [place for place in round_ones if low <= place <= high]
        ticks(by_time, shown, [f"{place:,g}" for place in shown])
        lead.yaxis.set_major_formatter(FuncFormatter(difference_label))
        by_bytes.set_ylabel("test loss, nats per byte")
        by_time.set_xlabel("CPU seconds of training" if measured else "seconds of training, busy machine")
        lead.set_ylabel("lead of the OSN, nats per byte")
        lead.set_title("dashed: fits; dotted: by doublings", loc="left", fontsize=8.5)
        figure.legend(loc="outside lower center", ncols=2, fontsize=8.5)
        return png(figure)


def _bytes(count: float) -> str:
    """2M, .5M, 1.3G."""
    if not count < 1e15:
        return "no budget"
    for unit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if count >= unit or letter == "M":
            value = count / unit
            break
    digits = 0 if value >= 10 or abs(value - round(value)) < 0.05 else 1
    return f"{number(value, digits)}{letter}"

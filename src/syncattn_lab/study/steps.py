"""What a step of a study's models costs, where that was measured: a file, a table and a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from syncattn.drawing import canvas, png
from syncattn.training.errors import UserError
from syncattn_lab.study.marks import colours
from syncattn_lab.study.summary import Cell, Group
from syncattn_lab.study.tables import mean_text, table
from syncattn_lab.study.verdicts import number

STEPS_FILE = "steps.jsonl"
"""A line for each model and round, as benchmarks/length/steps.py writes them."""


@dataclass(frozen=True)
class Step:
    """A training step of one model.

    Attributes:
        seconds: of one thread, process CPU seconds, every timed step.
        peak, before: bytes of memory at the most, and before the first step.
        partners: mean over the heads, a number a layer; None for softmax.
    """

    seconds: tuple[float, ...]
    peak: int
    before: int
    partners: list[float] | None

    @property
    def median(self) -> float:
        return median(self.seconds)


def read_steps(path: Path) -> dict[str, Step]:
    """Steps by the key of their run; {} if there is no such file.

    Raises:
        UserError: a line is malformed; the message names the file and the line's number.
    """
    if not path.is_file():
        return {}
    found: dict[str, list[Step]] = {}
    for count, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            line = json.loads(text)
            seconds = tuple(map(float, line["cpu_seconds"]))
            step = Step(seconds, int(line["peak_bytes"]), int(line["before_bytes"]), line["partners"])
            if not seconds or min(seconds) <= 0 or not isinstance(line["key"], str):
                raise ValueError
        except (ValueError, KeyError, TypeError):
            wanted = "an object with key, cpu_seconds, peak_bytes, before_bytes and partners"
            raise UserError(f"{path}, line {count}: expected {wanted}, got {text[:80]!r}") from None
        found.setdefault(line["key"], []).append(step)
    return {key: _together(steps) for key, steps in found.items()}


def _together(steps: Sequence[Step]) -> Step:
    """All rounds of a model as one."""
    seconds = tuple(second for step in steps for second in step.seconds)
    peak, before = max(step.peak for step in steps), max(step.before for step in steps)
    return Step(seconds, peak, before, steps[-1].partners)


def of_task(group: Group, task: str, steps: dict[str, Step]) -> list[tuple[Cell, Step]]:
    """The variants of a task whose steps were measured, in the plan's order."""
    found = []
    for cell in group.of_task(task):
        measured = [steps[line["key"]] for line in cell.runs if line["key"] in steps]
        found += [(cell, measured[0])] if measured else []
    return found


def costs(group: Group, task: str, steps: dict[str, Step]) -> list[str]:
    """A row for each variant: test loss, seconds a step, their ratio to the first Transformer's, memory."""
    found = of_task(group, task, steps)
    if not found:
        return []
    base = next((step for cell, step in found if cell.model == "transformer"), None)
    header = ["model", "test loss", "CPU seconds a step", "range", "of the Transformer's", "MiB, of it steps"]
    rows = []
    for cell, step in found:
        mib = step.peak / 2**20, (step.peak - step.before) / 2**20
        rows.append(
            [
                cell.title,
                mean_text(cell, "test_loss"),
                number(step.median),
                f"{number(min(step.seconds))} to {number(max(step.seconds))}",
                "–" if base is None else number(step.median / base.median, 2),
                f"{mib[0]:,.0f}, {mib[1]:,.0f}",
            ]
        )
        rows[-1].append("–" if step.partners is None else ", ".join(f"{x:.1f}" for x in step.partners))
    return table([*header, "partners by layer"], rows)


def picture(group: Group, task: str, steps: dict[str, Step]) -> bytes | None:
    """Seconds a step as bars, in the plan's order."""
    found = of_task(group, task, steps)
    if len(found) < 2:
        return None
    paint = colours(group.cells.values())
    with canvas("light", 8.2, 0.9 + 0.3 * len(found), "constrained") as figure:
        axes = figure.subplots()
        places = range(len(found))
        values: Sequence[float] = [step.median for _, step in found]
        axes.barh(places, values, height=0.62, color=[paint[cell.variant] for cell, _ in found])
        for place, (value, (cell, _)) in enumerate(zip(values, found)):
            loss = mean_text(cell, "test_loss")
            axes.annotate(
                f"{number(value, 2)} s, loss {loss}",
                (value, place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8.5,
            )
        axes.set_yticks(places, [cell.title for cell, _ in found])
        axes.set_ylim(len(found) - 0.4, -0.6)
        axes.set_xlim(0, 1.3 * max(values))
        axes.set_xlabel("CPU seconds of one thread for a training step")
        axes.grid(axis="x", lw=0.6)
        axes.set_axisbelow(True)
        return png(figure)

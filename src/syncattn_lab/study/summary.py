"""What a study's runs add up to: its lines, grouped, with the learning rate chosen for each variant and task.

Learning rates are chosen on validation, with the first seed; what is reported is test.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from syncattn.training.compare import mean_and_spread
from syncattn.training.errors import UserError
from syncattn_lab.study.plan import TEXT
from syncattn_lab.study.queue import chosen_rate
from syncattn_lab.study.records import PLAN_FILE, Line

_KEY = re.compile(r"(?P<cell>.+)/lr(?P<rate>[^/]+)/seed(?P<seed>\d+)")


@dataclass(frozen=True)
class Cell:
    """One variant on one task of one group.

    Attributes:
        group, task, task_kind, variant, title, model: as in the lines.
        lines: all its runs, in the plan's order, diverged ones too.
        rate: the chosen learning rate; None if all that were tried diverged.
    """

    group: str
    task: str
    task_kind: str
    variant: str
    title: str
    model: str
    lines: tuple[Line, ...]
    rate: float | None

    @property
    def at_rate(self) -> list[Line]:
        """The runs at the chosen learning rate, one for each seed."""
        return [line for line in self.lines if line["learning_rate"] == self.rate]

    @property
    def runs(self) -> list[Line]:
        """Those that are reported: at the chosen learning rate, and finished."""
        return [line for line in self.at_rate if line["outcome"] == "finished"]

    @property
    def diverged(self) -> int:
        """How many seeds diverged at the chosen rate; all that was tried if there is none."""
        lines = self.lines if self.rate is None else self.at_rate
        return sum(line["outcome"] == "diverged" for line in lines)

    @property
    def tried(self) -> dict[float, Line]:
        """The learning rates of the first seed, with their runs."""
        return {line["learning_rate"]: line for line in first_seed(self.lines)}

    @property
    def parameters(self) -> int | None:
        return next((line["parameters"] for line in self.lines if line.get("parameters")), None)

    @property
    def text(self) -> bool:
        return self.task_kind == TEXT

    def values(self, name: str) -> list[float]:
        """One number of the result of every reported run that has it."""
        found = (line["result"].get(name) for line in self.runs)
        return [value for value in found if value is not None]

    def mean(self, name: str) -> float | None:
        values = self.values(name)
        return mean_and_spread(values)[0] if values else None

    def spread(self, name: str) -> float | None:
        """Standard deviation over the seeds (n - 1); None for fewer than two."""
        values = self.values(name)
        return mean_and_spread(values)[1] if values else None

    @property
    def density(self) -> float | None:
        """Mean over layers, heads and seeds of the share of allowed pairs that lock; None for softmax."""
        found = [x for line in self.runs for layer in line["result"].get("density") or [] for x in layer]
        return mean_and_spread(found)[0] if found else None

    @property
    def dead_heads(self) -> int | None:
        """Heads that read one sender only, over the reported runs; None for softmax."""
        found = self.values("dead_heads")
        return int(sum(found)) if found else None


@dataclass(frozen=True)
class Group:
    """A group of the plan: its cells by (task, variant), and both in the plan's order."""

    name: str
    kind: str
    title: str
    tasks: tuple[str, ...]
    variants: dict[str, str]
    cells: dict[tuple[str, str], Cell]

    def cell(self, task: str, variant: str) -> Cell | None:
        return self.cells.get((task, variant))

    def of_task(self, task: str) -> list[Cell]:
        """The cells of one task, in the plan's order of variants."""
        return [self.cells[task, name] for name in self.variants if (task, name) in self.cells]


def as_groups(lines: Sequence[Line]) -> list[Group]:
    """The groups, in the plan's order."""
    found: dict[str, list[Line]] = {}
    for line in sorted(lines, key=lambda line: line["order"]):
        found.setdefault(line["group"], []).append(line)
    return [_group(name, members) for name, members in found.items()]


def first_seed(lines: Iterable[Line]) -> list[Line]:
    """A cell's runs of the seed that tried most learning rates, or else comes first in the plan."""
    seeds: dict[int, list[Line]] = {}
    for line in sorted(lines, key=lambda line: line["order"]):
        seeds.setdefault(line["seed"], []).append(line)
    return max(seeds.values(), key=len)  # the first of those that are equally long


def choose_rate(lines: Sequence[Line]) -> float | None:
    """The learning rate of a cell: the first seed's best on validation, never on test, as in the study.

    A single rate needs no choice. None if several were tried and all diverged.
    """
    rates = {line["learning_rate"] for line in lines}
    return rates.pop() if len(rates) == 1 else chosen_rate(first_seed(lines))


def difference(cell: Cell | None, other: Cell | None, name: str) -> float | None:
    """How much larger a result is in one cell than in another, on average; None where one lacks it.

    Over the seeds that both have, if there are any: they read the same windows in the same order.
    """
    if cell is None or other is None:
        return None
    by_seed = [
        {line["seed"]: line["result"][name] for line in each.runs if line["result"].get(name) is not None}
        for each in (cell, other)
    ]
    shared = by_seed[0].keys() & by_seed[1].keys()
    if shared:
        return fmean(by_seed[0][seed] - by_seed[1][seed] for seed in shared)
    first, second = cell.mean(name), other.mean(name)
    return None if first is None or second is None else first - second


def lengths(cell: Cell) -> dict[int, dict[str, Any]]:
    """Extrapolation of a variant: for each length in tokens its loss, ratio and density, means over seeds.

    The ratio is to the loss at the training length: measured with the other lengths, or else the test loss.
    Seeds that lack a length are left out of it.
    """
    runs = [line for line in cell.runs if line["result"].get("lengths")]
    every = sorted({int(length) for line in runs for length in line["result"]["lengths"]})
    found: dict[int, dict[str, Any]] = {}
    for length in every:
        pairs, densities = [], []
        for line in runs:
            measured = line["result"]["lengths"]
            entry = measured.get(str(length)) or {}
            base = measured.get(str(line["options"]["context"])) or {"loss": line["result"]["test_loss"]}
            if entry.get("loss") is not None and base.get("loss"):
                pairs.append((entry["loss"], base["loss"]))
            if entry.get("density") is not None:
                densities.append(entry["density"])
        if pairs:
            loss, base_loss = (mean_and_spread(values)[0] for values in zip(*pairs))
            found[length] = {
                "loss": loss,
                "ratio": loss / base_loss,
                "density": mean_and_spread(densities)[0] if densities else None,
            }
    return found


def context(cell: Cell) -> int:
    """The training length in tokens."""
    return int(cell.lines[0]["options"]["context"])


def tokens_per_step(line: Line) -> int:
    return int(line["options"]["batch_size"] * line["options"]["context"])


def curve(cell: Cell) -> tuple[list[int], list[float]]:
    """Tokens read and validation loss, mean over the seeds, where all seeds have one."""
    runs = [
        {e["step"]: e["validation_loss"] for e in line["history"] if e.get("validation_loss") is not None}
        for line in cell.runs
    ]
    runs = [run for run in runs if run]
    steps = sorted(set.intersection(*map(set, runs))) if runs else []
    read = [step * tokens_per_step(cell.lines[0]) for step in steps]
    return read, [mean_and_spread([run[step] for run in runs])[0] for step in steps]


def size_cells(groups: Sequence[Group]) -> dict[str, dict[str, list[Cell]]]:
    """The cells of all groups about size, by task and variant, smallest model first; a group is one size."""
    found: dict[str, dict[str, list[Cell]]] = {}
    for group in sorted((group for group in groups if group.kind == "size"), key=_smallest):
        for cell in group.cells.values():
            found.setdefault(cell.task, {}).setdefault(cell.variant, []).append(cell)
    return found


def rate_losses(cell: Cell) -> dict[float, float]:
    """Validation loss of each learning rate with the first seed; infinite where it diverged."""
    return {
        rate: line["result"]["validation_loss"] if line["outcome"] == "finished" else math.inf
        for rate, line in cell.tried.items()
    }


def sweep(group: Group, kind: str) -> tuple[str, dict[str, list[tuple[str, str]]]]:
    """How the tasks of one synthetic kind differ.

    Returns:
        The name of what varies within a panel ("pairs", or "pairs / length" where two go together), and for
        each panel's title its (label, task), from the smallest to the largest.
    """
    options: dict[str, dict[str, Any]] = {}
    for (task, _), cell in group.cells.items():
        if cell.task_kind == kind:
            given = cell.lines[0]["task_options"]
            options[task] = {k: v for k, v in given.items() if isinstance(v, int | float)}
    names = list(dict.fromkeys(name for given in options.values() for name in given))
    distinct = {name: len({given.get(name) for given in options.values()}) for name in names}
    varied = [name for name in names if distinct[name] > 1]
    if not varied:
        return "", {"": [(task, task) for task in options]}
    axis = max(varied, key=lambda name: distinct[name])
    others = [name for name in varied if name != axis]
    together = distinct[axis] == len(options)  # then the others follow from it
    panels: dict[str, list[tuple[str, str]]] = {}
    ranked = sorted(options.items(), key=lambda item: [item[1].get(name, -1) for name in (axis, *others)])
    for task, given in ranked:
        rest = [f"{given.get(name, '–')}" for name in others]
        label = " / ".join([f"{given.get(axis, '–')}", *(rest if together else [])])
        title = "" if together else ", ".join(f"{name} {value}" for name, value in zip(others, rest))
        panels.setdefault(title, []).append((label, task))
    return " / ".join([axis, *(others if together else [])]), dict(sorted(panels.items(), key=_natural))


def missing(keys: Sequence[str], groups: Sequence[Group]) -> tuple[int, int]:
    """How many of a plan's runs are missing, and how many there are to be.

    Of the seeds after the first only the chosen learning rate is run, so the plan's other keys do not count.
    """
    cells = {f"{g.name}/{task}/{variant}": cell for g in groups for (task, variant), cell in g.cells.items()}
    planned: dict[str, dict[str, list[float]]] = {}
    for key in keys:
        match = _KEY.fullmatch(key)
        if match is None:
            raise UserError(f"{PLAN_FILE} has the key {key!r}: expected GROUP/TASK/VARIANT/lrRATE/seedSEED")
        planned.setdefault(match["cell"], {}).setdefault(match["seed"], []).append(float(match["rate"]))
    lacking = total = 0
    for name, seeds in planned.items():
        cell = cells.get(name)
        done = {(str(line["seed"]), line["learning_rate"]) for line in cell.lines} if cell else set()
        first, *others = seeds
        grid = sum((first, rate) not in done for rate in seeds[first])
        lacking += grid
        total += len(seeds[first])
        if cell is not None and not grid and all(x["outcome"] == "diverged" for x in first_seed(cell.lines)):
            continue  # there is no rate to go on with
        total += len(others)
        lacking += sum(cell is None or (seed, cell.rate) not in done for seed in others)
    return lacking, total


def _group(name: str, lines: Sequence[Line]) -> Group:
    found: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        found.setdefault((line["task"], line["variant"]), []).append(line)
    cells = {(task, variant): _cell(members) for (task, variant), members in found.items()}
    tasks = tuple(dict.fromkeys(line["task"] for line in lines))
    titles: dict[str, str] = {}
    for line in lines:
        titles.setdefault(line["variant"], line["title"])
    return Group(name, lines[0]["kind"], lines[0]["group_title"], tasks, titles, cells)


def _natural(item: tuple[str, Any]) -> list[float]:
    return [float(number) for number in re.findall(r"\d+", item[0])]


def _cell(lines: Sequence[Line]) -> Cell:
    first = {name: lines[0][name] for name in ("group", "task", "task_kind", "variant", "title", "model")}
    return Cell(**first, lines=tuple(lines), rate=choose_rate(lines))


def _smallest(group: Group) -> float:
    """A group's size in parameters, which runs that diverged do not tell."""
    return min((cell.parameters for cell in group.cells.values() if cell.parameters), default=math.inf)

"""A run's history as charts of the reports: losses and densities against tokens read."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from syncattn.page.charts import Chart, Line, viridis

History = Sequence[dict[str, Any]]

TOKENS = "tokens read"


def loss_lines(
    name: str, histories: Sequence[History], tokens_per_step: int, colour: str, dashed: bool = False
) -> list[Line]:
    """A model's validation losses, the mean over its seeds with a band from the lowest to the highest.

    Args:
        histories: of its runs, one for each seed.
        colour: as CSS has it.
    """
    runs = [dict(zip(*series(history, "validation_loss"))) for history in histories]
    runs = [run for run in runs if run]
    if not runs:
        return []
    steps = sorted(set.intersection(*map(set, runs)))
    values = [[run[step] for run in runs] for step in steps]
    low = high = None
    if len(runs) > 1:
        low, high = list(map(min, values)), list(map(max, values))
    read = [step * tokens_per_step for step in steps]
    return [Line(name, read, list(map(fmean, values)), (colour, colour), low, high, dashed=dashed)]


def training_lines(name: str, histories: Sequence[History], tokens_per_step: int, colour: str) -> list[Line]:
    """A model's training losses, a pale line for each of its runs."""
    found = []
    for history in histories:
        steps, losses = series(history, "loss")
        if steps:
            read = [step * tokens_per_step for step in steps]
            found.append(Line(name, read, losses, (colour, colour), pale=True))
    return found


def loss_span(lines: Sequence[Line]) -> tuple[float, float] | None:
    """What of the losses is shown: the first steps fall from ln(vocabulary) and would flatten the others."""
    lowest = [y for line in lines for y in (*line.y, *(line.low or ())) if y is not None]
    starts = [line.y[0] for line in lines if not line.pale and line.y[0] is not None]
    if not lowest or not starts:
        return None
    low, start = min(lowest), max(starts)
    top = start + 0.15 * (start - low) + 0.05
    return low - 0.05 * (top - low), top


def density_charts(history: History, tokens_per_step: int, where: str = "") -> list[Chart]:
    """Each head's density over one run, a chart for each layer; none where the run recorded none.

    Args:
        where: what is said after the layer, such as the model.
    """
    entries = [entry for entry in history if entry.get("density")]
    if not entries:
        return []
    read = [entry["step"] * tokens_per_step for entry in entries]
    charts = []
    for layer in range(len(entries[0]["density"])):
        heads = list(zip(*(entry["density"][layer] for entry in entries), strict=True))
        means = [fmean(entry["density"][layer]) for entry in entries]
        lines = [
            Line(f"head {head + 1}", read, values, colour)
            for head, (values, colour) in enumerate(zip(heads, viridis(len(heads)), strict=True))
        ]
        lines.append(Line("mean of the heads", read, means, ("#26292e", "#d6d9de"), dashed=True))
        ends = ", ".join(f"{values[-1]:.3f}" for values in heads)
        says = (
            f"Density of {len(heads)} heads over training: their mean goes from {means[0]:.3f} to "
            f"{means[-1]:.3f}; at the end the heads have {ends}."
        )
        top = max(max(values) for values in heads)
        charts.append(
            Chart(f"Layer {layer + 1}{where}", says, TOKENS, "density", lines, (0.0, min(1.0, 1.05 * top)))
        )
    return charts


def series(history: History, name: str) -> tuple[list[int], list[Any]]:
    """The steps at which a history has this value, and the values."""
    entries = [entry for entry in history if entry.get(name) is not None]
    return [entry["step"] for entry in entries], [entry[name] for entry in entries]

"""The quality study's tables in Markdown, as lines of text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from syncattn_lab.study.records import DEFAULT
from syncattn_lab.study.summary import Cell, Group, context, difference, lengths, rate_losses, sweep
from syncattn_lab.study.verdicts import lead, number, percent


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table: the first column to the left, the others to the right."""
    lines = [_row(header), "| --- |" + " ---: |" * (len(header) - 1)]
    return [*lines, *map(_row, rows)]


def mean_text(cell: Cell | None, name: str) -> str:
    """Mean and standard deviation over the seeds: "1.464 ± .003"; without a deviation for one seed."""
    if cell is None:
        return "–"
    if not cell.runs:
        return "diverged" if cell.diverged else "–"
    mean, spread = cell.mean(name), cell.spread(name)
    text = number(mean) + ("" if spread is None else f" ± {number(spread)}")
    return text + (f" ({cell.diverged} diverged)" if cell.diverged else "")


def density_text(cell: Cell | None) -> str:
    """Mean density; 1 for softmax, which reads every pair."""
    if cell is not None and cell.model == "transformer":
        return "1"
    return number(cell.density if cell is not None else None, 2)


def results(group: Group, task: str) -> list[str]:
    """One task of a comparison: a row per variant, and a sentence for each Transformer that is ahead."""
    osn = group.cell(task, DEFAULT)
    rows, ahead = [], []
    for name, title in group.variants.items():
        cell = group.cell(task, name)
        change = difference(cell, osn, "test_loss")
        rows.append(
            [
                title,
                count_text(cell),
                rate_text(cell),
                mean_text(cell, "validation_loss"),
                mean_text(cell, "test_loss"),
                str(len(cell.runs)) if cell is not None else "–",
                density_text(cell),
                "–" if name == DEFAULT else number(change, signed=True),
            ]
        )
        if osn is not None and cell is not None and cell.model == "transformer" and change and change < 0:
            spread = lead(osn, cell)[1]
            about = f" (spread over the seeds {number(spread)})" if spread is not None else ""
            short = title.removeprefix("Transformer, ")
            ahead.append(f"The Transformer ({short}) is ahead by {number(-change)}{about}.")
    header = ["model", "parameters", "learning rate", "validation", "test", "seeds", "density", "test − OSN"]
    return [*table(header, rows), *(["", " ".join(ahead)] if ahead else [])]


def rate_grid(cells: Sequence[Cell], named: str = "model") -> list[str]:
    """Validation loss of every learning rate with the first seed; the chosen one is bold."""
    rates = sorted({rate for cell in cells for rate in cell.tried})
    if len(rates) < 2:
        return []
    rows = []
    for cell in cells:
        losses = rate_losses(cell)
        found = [_tried(losses.get(rate), rate == cell.rate) for rate in rates]
        rows.append([cell.title, *found])
    return table([named, *(f"{rate:g}" for rate in rates)], rows)


def extrapolation(group: Group, task: str) -> list[str]:
    """Test loss of every variant at every length, its change from the training length and its density."""
    cells = [cell for cell in group.of_task(task) if lengths(cell)]
    every = sorted({length for cell in cells for length in lengths(cell)})
    rows = []
    for cell in cells:
        found, row = lengths(cell), [cell.title]
        for length in every:
            entry = found.get(length)
            if entry is None:
                row.append("–")
                continue
            change = "" if length == context(cell) else f", {percent(entry['ratio'])}"
            share = "" if entry["density"] is None else f" ({number(entry['density'], 2)})"
            row.append(number(entry["loss"]) + change + share)
        rows.append(row)
    return table(["model", *(f"{length:,}" for length in every)], rows)


def ablation(group: Group) -> list[str]:
    """What was changed; per task validation loss, difference to the first row, density and dead heads."""
    reference = next(iter(group.variants))
    header = ["what changed", "parameters"]
    for task in group.tasks:
        header += [f"{task}: validation", "difference", "density", "dead heads"]
    rows = []
    for name, title in group.variants.items():
        cells = [group.cell(task, name) for task in group.tasks]
        row = [title, count_text(next((cell for cell in cells if cell and cell.parameters), None))]
        for task, cell in zip(group.tasks, cells):
            change = difference(cell, group.cell(task, reference), "validation_loss")
            dead = cell.dead_heads if cell is not None else None
            row += [
                mean_text(cell, "validation_loss"),
                "–" if name == reference else number(change, signed=True),
                density_text(cell),
                "–" if dead is None else str(dead),
            ]
        rows.append(row)
    return table(header, rows)


def density(group: Group, task: str) -> list[str]:
    """Loss, density and speed of every setting."""
    rows = []
    for name, title in group.variants.items():
        cell = group.cell(task, name)
        speeds = cell.values("tokens_per_second") if cell is not None else []
        rows.append(
            [
                title,
                count_text(cell),
                density_text(cell),
                mean_text(cell, "validation_loss"),
                mean_text(cell, "test_loss"),
                f"{round(fmean(speeds), -2):,.0f}" if speeds else "–",
            ]
        )
    header = ["setting", "parameters", "density", "validation", "test", "tokens/s (shared machine)"]
    return table(header, rows)


def stability(group: Group, task: str) -> list[str]:
    """Validation loss of every learning rate, then test loss and gradient norms at the chosen one."""
    cells = [group.cell(task, name) for name in group.variants]
    rates = sorted({rate for cell in cells if cell is not None for rate in cell.tried})
    rows = []
    for cell, title in zip(cells, group.variants.values()):
        if cell is None:
            rows.append([title] + ["–"] * (len(rates) + 3))
            continue
        losses = rate_losses(cell)
        norms = [line["result"].get("max_grad_norm") for line in cell.lines if line["outcome"] == "finished"]
        known = [norm for norm in norms if norm is not None]
        rows.append(
            [
                title,
                *(_tried(losses.get(rate), rate == cell.rate and len(rates) > 1, 3) for rate in rates),
                mean_text(cell, "test_loss"),
                _norm(cell.values("max_grad_norm")),
                _norm(known),
            ]
        )
    header = ["model", *(f"{rate:g}" for rate in rates), "test", "largest gradient norm", "at any rate"]
    return table(header, rows)


def sizes(variants: dict[str, list[Cell]]) -> list[str]:
    """Every model in every size: validation loss of each learning rate, test loss of the chosen one."""
    cells = [cell for found in variants.values() for cell in found]
    rates = sorted({rate for cell in cells for rate in cell.tried})
    rows = [
        [
            cell.title,
            count_text(cell),
            *(_tried(rate_losses(cell).get(rate), rate == cell.rate) for rate in rates),
            mean_text(cell, "test_loss"),
            density_text(cell),
        ]
        for cell in cells
    ]
    return table(["model", "parameters", *(f"{rate:g}" for rate in rates), "test", "density"], rows)


def accuracies(group: Group, kind: str) -> list[str]:
    """Test accuracy of every variant at every size of a synthetic kind, then the chosen rates."""
    name, panels = sweep(group, kind)
    tasks = [
        (", ".join(filter(None, (title, label))), task)
        for title, found in panels.items()
        for label, task in found
    ]
    variants = {cell.variant: cell.title for cell in group.cells.values() if cell.task_kind == kind}
    ordered = {variant: title for variant, title in group.variants.items() if variant in variants}
    header = [f"model; {name}" if name else "model", *(label for label, _ in tasks)]
    accuracy = [
        [title, *(mean_text(group.cell(task, variant), "test_accuracy") for _, task in tasks)]
        for variant, title in ordered.items()
    ]
    rates = [
        [title, *(rate_text(group.cell(task, variant)) for _, task in tasks)]
        for variant, title in ordered.items()
    ]
    several = any(len(cell.tried) > 1 for cell in group.cells.values() if cell.task_kind == kind)
    chosen = ["", "Learning rates chosen on validation:", "", *table(header, rates)] if several else []
    return [*table(header, accuracy), *chosen]


def count_text(cell: Cell | None) -> str:
    return f"{cell.parameters:,}" if cell is not None and cell.parameters else "–"


def rate_text(cell: Cell | None) -> str:
    """The chosen learning rate; "diverged" if none worked."""
    if cell is None:
        return "–"
    return "diverged" if cell.rate is None else f"{cell.rate:g}"


def _tried(loss: float | None, chosen: bool, digits: int = 4) -> str:
    if loss is None:
        return "–"
    text = "diverged" if math.isinf(loss) else number(loss, digits)
    return f"**{text}**" if chosen else text


def _norm(values: Sequence[float]) -> str:
    return f"{max(values):.3g}" if values else "–"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

"""A study as one HTML page that needs nothing else: targets, tables and curves of each group, its lines."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from syncattn.page import MOST_BYTES, Cell, Chart, Line, chart, download, report, table
from syncattn.training.curves import TOKENS, density_charts, loss_lines
from syncattn.training.files import write_text
from syncattn_lab.study import by_length, records, tables
from syncattn_lab.study.marks import INK, colours
from syncattn_lab.study.records import DEFAULT
from syncattn_lab.study.summary import Cell as Run
from syncattn_lab.study.summary import (
    Group,
    as_groups,
    context,
    lengths,
    missing,
    rate_losses,
    size_cells,
    sweep,
    tokens_per_step,
)
from syncattn_lab.study.verdicts import EXTRAPOLATION, best_transformer, verdicts

REPORT_FILE = "report.html"


def write_report(lines: Sequence[records.Line], path: Path, keys: Sequence[str] | None = None) -> None:
    """Write the page for a study's lines, whole or not at all.

    Args:
        lines: as `records.read_runs` gives them.
        keys: of all runs of the plan, so that the page says what is missing; None if there is no plan.

    Raises:
        UserError: the file cannot be written, or the plan has a malformed key.
    """
    write_text(path, render(lines, keys))


def render(lines: Sequence[records.Line], keys: Sequence[str] | None = None) -> str:
    """The page's HTML.

    Raises:
        UserError: the plan has a malformed key.
    """
    groups = as_groups(lines)
    charts: list[Chart] = []
    parts = [f'<p class="soft">{escape(_what_was_run(lines, groups, keys))}</p>', "<h2>Targets</h2>"]
    judged: list[list[str | Cell]] = [
        [Cell(v.target, prose=True), v.state, Cell(v.measured, prose=True)]
        for v in (*verdicts(groups), *by_length.verdicts(groups))
    ]
    parts.append(
        _card(table("What was wanted of the OSN", ["target", "verdict", "measured"], judged, sorts=True))
    )
    for group in groups:
        if group.kind != "size":
            parts += [f"<h2>{escape(group.title)}</h2>", *_group(group, charts)]
    sizes = size_cells(groups)
    if sizes:
        parts += ["<h2>Model size</h2>", *_sizes(sizes, charts)]
    body = "\n".join(parts)

    def page(record: str) -> str:
        whole = f"{body}\n<h2>Data</h2>\n<p>{record}</p>"
        return report("Quality study", whole, charts=[one.data for one in charts])

    kept = "".join(json.dumps(line, allow_nan=False) + "\n" for line in records.thin(lines))
    whole = page(download("runs.jsonl", kept, "Download the runs that this page is made from (runs.jsonl)"))
    if len(whole.encode()) <= MOST_BYTES:
        return whole
    return page("Every number is in runs.jsonl beside this page: they are too many for one page.")


def loss_chart(group: Group, task: str) -> Chart | None:
    """Validation loss of every variant at its chosen rate, the seeds' mean with a band; None without any."""
    paint = colours(group.cells.values())
    lines: list[Line] = []
    for cell in group.of_task(task):
        histories = [line["history"] for line in cell.runs]
        if cell.runs:
            lines += loss_lines(cell.title, histories, tokens_per_step(cell.lines[0]), paint[cell.variant])
    lines = [line for line in lines if line.y]
    if not lines:
        return None
    ends = "; ".join(f"{line.name} ends at {line.y[-1]:.3f}" for line in lines)
    values = [y for line in lines for y in (*line.y, *(line.low or ())) if y is not None]
    # the fall from ln(vocabulary) would flatten everything else
    top = max(line.y[len(line.y) // 5] or 0 for line in lines)
    low = min(values)
    span = (low - 0.05 * (top - low + 0.01), top + 0.15 * (top - low) + 0.01)
    title = f"{task}: validation loss, mean of the seeds with a band from the lowest to the highest"
    return Chart(title, f"Validation loss against tokens read: {ends}.", TOKENS, "nats per byte", lines, span)


def length_chart(group: Group, task: str) -> Chart | None:
    """Loss over that at the training length, against the window's length; None where it was not measured."""
    cells = [cell for cell in group.of_task(task) if len(lengths(cell)) > 1]
    if not cells:
        return None
    paint = colours(group.cells.values())
    lines = []
    for cell in cells:
        found = lengths(cell)
        ratios = [entry["ratio"] for entry in found.values()]
        lines.append(_line(cell.title, list(found), ratios, paint[cell.variant]))
    every = sorted({x for line in lines for x in line.x})
    target = [EXTRAPOLATION] * len(every)
    lines.append(Line("target: at most this", every, target, _both(INK), dashed=True))
    ends = "; ".join(f"{line.name} {line.y[-1]:.3f}" for line in lines[:-1])
    low = min(y for line in lines for y in line.y if y is not None)
    return Chart(
        f"{task}: test loss over that at the training length, {context(cells[0]):,}",
        f"At the longest window of {every[-1]:,} tokens: {ends}.",
        "tokens in the window",
        "ratio",
        lines,
        (min(low, 0.99) - 0.005, 1.25),
        log=True,
    )


def _group(group: Group, charts: list[Chart]) -> list[str]:
    parts = []
    if group.kind == "ablation":
        first = next(iter(group.variants.values()))
        parts += _html(f"Differences are to the first row, “{first}”", tables.ablation(group))
    if group.kind == "synthetic":
        for kind in dict.fromkeys(cell.task_kind for cell in group.cells.values()):
            parts += _html(f"{kind}: test accuracy", tables.accuracies(group, kind))
            parts += [_chart(one, charts) for one in _accuracy_charts(group, kind)]
        for task in group.tasks:
            parts += _html(f"{task}: test accuracy by size", by_length.accuracies(group, task))
            parts += _optional(by_length.chart(group, task), charts)
        return parts
    for task in group.tasks:
        parts.append(f"<h3>{escape(task)}</h3>")
        if group.kind == "comparison":
            parts += _html(f"{task}: losses in nats per byte", tables.results(group, task))
            parts += _html(_RATES, tables.rate_grid(group.of_task(task)))
            parts += _optional(loss_chart(group, task), charts)
            osn = group.cell(task, DEFAULT)
            parts += _densities(osn, charts) if osn is not None else []
        elif group.kind == "density":
            parts += _html(f"{task}: what a limit on the density costs", tables.density(group, task))
            parts += _optional(_density_chart(group, task), charts)
        elif group.kind == "stability":
            parts += _html(_RATES, tables.stability(group, task))
            parts += _optional(_rate_chart(group, task), charts)
        parts += _optional(length_chart(group, task), charts)
        if any(lengths(cell) for cell in group.of_task(task)):
            parts += _html(_LENGTHS, tables.extrapolation(group, task))
    return parts


_RATES = "Validation loss of each learning rate with the first seed; chosen: ✓"
_LENGTHS = "Test loss at each length, its change from the training length, and the density in brackets"


def _densities(cell: Run, charts: list[Chart]) -> list[str]:
    """A variant's densities by layer over the training of its first reported run."""
    run = next((line for line in cell.runs if any(entry.get("density") for entry in line["history"])), None)
    if run is None:
        return []
    where = f": density of each head, {cell.title}, {cell.task}, seed {run['seed']}"
    found = density_charts(run["history"], tokens_per_step(run), where)
    return ['<div class="cards">', *(_chart(one, charts) for one in found), "</div>"]


def _density_chart(group: Group, task: str) -> Chart | None:
    cells = [cell for cell in group.of_task(task) if cell.density is not None]
    found = sorted((c.density or 0, c.mean("test_loss") or math.nan, c.title) for c in cells if c.runs)
    if len(found) < 2:
        return None
    paint = colours(group.cells.values())
    x = [density for density, _, _ in found]
    lines = [
        _line("OSN, by its limit on the density", x, [loss for _, loss, _ in found], paint[cells[0].variant])
    ]
    other = best_transformer(group.of_task(task))
    loss = None if other is None else other.mean("test_loss")
    if other is not None and loss is not None:
        lines.append(_line(other.title, x, [loss] * len(x), paint[other.variant]))
    each = "; ".join(f"{title}: density {x:.3f}, loss {y:.3f}" for x, y, title in found)
    return Chart(
        f"{task}: test loss against density", each + ".", "density", "nats per byte", lines, log=True
    )


def _rate_chart(group: Group, task: str) -> Chart | None:
    cells = [cell for cell in group.of_task(task) if len(cell.tried) > 1]
    paint = colours(group.cells.values())
    lines = [_of_rates(cell, paint[cell.variant]) for cell in cells]
    if not lines:
        return None
    best = "; ".join(f"{cell.title}: best at {cell.rate:g}" for cell in cells if cell.rate is not None)
    title = f"{task}: validation loss against learning rate (where it diverged there is no point)"
    return Chart(title, best + ".", "learning rate", "nats per byte", lines, log=True)


def _of_rates(cell: Run, colour: str) -> Line:
    losses = sorted((rate, loss) for rate, loss in rate_losses(cell).items() if math.isfinite(loss))
    return _line(cell.title, [rate for rate, _ in losses], [loss for _, loss in losses], colour)


def _accuracy_charts(group: Group, kind: str) -> list[Chart]:
    """Accuracy against what a kind's tasks differ in, where that is a number and there are two of them."""
    name, panels = sweep(group, kind)
    paint = colours(group.cells.values())
    charts = []
    for title, tasks in panels.items():
        if len(tasks) < 2:
            continue
        sizes = [float(label.partition(" / ")[0]) for label, _ in tasks]
        lines = []
        for variant, shown in group.variants.items():
            points = [(x, group.cell(task, variant)) for x, (_, task) in zip(sizes, tasks)]
            means = [(x, None if cell is None else cell.mean("test_accuracy")) for x, cell in points]
            known = [(x, mean) for x, mean in means if mean is not None]
            if known:
                lines.append(_line(shown, [x for x, _ in known], [y for _, y in known], paint[variant]))
        if lines:
            ends = "; ".join(f"{line.name} {line.y[-1]:.3f}" for line in lines)
            says = f"Test accuracy at the largest size: {ends}."
            heading = ", ".join(filter(None, (kind, title))) + ": test accuracy"
            axis = name.partition(" / ")[0]
            charts.append(Chart(heading, says, axis, "accuracy", lines, (-0.02, 1.02), log=True))
    return charts


def _sizes(found: dict[str, dict[str, list[Run]]], charts: list[Chart]) -> list[str]:
    parts = []
    for task, variants in found.items():
        parts += _html(f"{task}: {_RATES}", tables.sizes(variants))
        paint = colours(cell for cells in variants.values() for cell in cells)
        lines = []
        for name, cells in variants.items():
            best = [(cell.parameters, min(rate_losses(cell).values(), default=math.inf)) for cell in cells]
            known = [(float(count), loss) for count, loss in best if count and math.isfinite(loss)]
            if known:
                x, y = [count for count, _ in known], [loss for _, loss in known]
                lines.append(_line(cells[0].title, x, y, paint[name]))
        if any(len(line.x) > 1 for line in lines):
            says = "; ".join(f"{line.name} from {line.y[0]:.3f} to {line.y[-1]:.3f}" for line in lines) + "."
            title = f"{task}: validation loss at the best learning rate, against size"
            parts.append(_chart(Chart(title, says, "parameters", "nats per byte", lines, log=True), charts))
    return parts


def _line(name: str, x: Sequence[float], y: Sequence[float], colour: str) -> Line:
    return Line(name, x, y, _both(colour))


def _both(colour: str) -> tuple[str, str]:
    """On a light and on a dark page; the ink's own is another on each."""
    return colour, "#d6d9de" if colour == INK else colour


def _optional(found: Chart | None, charts: list[Chart]) -> list[str]:
    return [] if found is None else [_chart(found, charts)]


def _chart(found: Chart, charts: list[Chart]) -> str:
    charts.append(found)
    return chart(found, len(charts) - 1)


def _html(caption: str, markdown: Sequence[str]) -> list[str]:
    """Tables and sentences of `tables`, as HTML with the same words."""
    parts: list[str] = []
    rows: list[list[str]] = []
    for line in (*markdown, ""):
        if line.startswith("|"):
            cells = line.strip("| ").replace("\\|", "\0").split(" | ")
            rows.append([_plain(cell.replace("\0", "|")) for cell in cells])
            continue
        if rows:
            header, _, *body = rows
            parts.append(_card(table(caption, header, body, sorts=True)))
            rows = []
        if line:
            parts.append(f"<p>{escape(line)}</p>")
            caption = line.rstrip(":")
    return parts


def _plain(cell: str) -> str:
    """A cell's words; what is bold in Markdown gets a tick."""
    return f"{cell.strip('*')} ✓" if cell.startswith("**") else cell


def _card(inside: str) -> str:
    return f'<div class="card">{inside}</div>'


def _what_was_run(lines: Sequence[records.Line], groups: Sequence[Group], keys: Sequence[str] | None) -> str:
    diverged = sum(line["outcome"] == "diverged" for line in lines)
    text = f"{len(lines)} runs" + (f", {diverged} of which diverged" if diverged else "") + ". "
    if keys is not None:
        lacking, total = missing(keys, groups)
        text += f"Missing: {lacking} of the plan's {total} runs. " if lacking else "The plan is complete. "
    return text + (
        "Models of a group read the same windows in the same order with the same seed. Learning rates are "
        "chosen on validation with the first seed, and what is judged is test. Losses are means ± standard "
        "deviation over the seeds; density is the mean over layers and heads of the share of earlier tokens "
        "that lock. A click on a column's name sorts by it."
    )

"""Turn the runs of `syncattn study` into docs/results/quality.md, its pictures, and the lines behind them.

    python benchmarks/publish_quality.py runs/quality --out docs/results

`--remarks benchmarks/quality/remarks.toml` adds what is typed in by hand: a TOML file with `[GROUP] text =
"..."`. What the page is made from is copied beside its pictures, so that the same page comes from

    python benchmarks/publish_quality.py docs/results/quality --out docs/results

Another study has a page of its own name: `--name tasks --title "..."` makes docs/results/tasks.md and tasks/.
With a steps.jsonl beside the lines (benchmarks/length/steps.py writes it), the page says what steps cost;
with a gaps.jsonl (benchmarks/at_length/measure.py), what is known of a line that was read long ago.
`--html FILE` also writes the page for the browser, as `syncattn study` does at its end.
"""

from __future__ import annotations

import argparse
import json
import re
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from syncattn.training.errors import UserError
from syncattn.training.figures import densities
from syncattn.training.files import disk_errors, read_json, remove_staging, staged
from syncattn_lab.study import by_budget, by_gap, by_length, by_position, figures, steps, tables
from syncattn_lab.study.lines import LINES_FILE
from syncattn_lab.study.records import DEFAULT, PLAN_FILE, Line, read_runs, thin
from syncattn_lab.study.report import write_report
from syncattn_lab.study.summary import (
    Cell,
    Group,
    as_groups,
    context,
    lengths,
    missing,
    size_cells,
    tokens_per_step,
)
from syncattn_lab.study.verdicts import OPEN, verdicts

NAME = "quality"
TITLE = "Quality study"
REMARKS_FILE = "remarks.toml"
FAR = 8
"""From so many times the training length on, the longest windows have losses by position of their own."""
ORDER = ("comparison", "ablation", "density", "stability", "size", "synthetic")

Pictures = dict[str, bytes]

_METHOD = (
    "Models of a group read the same windows in the same order with the same seed. Of several learning rates "
    "each model runs all with its first seed, and the other seeds with the one that is best on validation; "
    "what is judged is test. Losses are in nats per byte (synthetic tasks: per answer), means ± standard "
    "deviation (n − 1) over the seeds, without ± where there is one seed. Density is the mean over layers "
    "and heads of the share of earlier tokens that lock, at the end."
)
_JUDGED = (
    "The best Transformer is the one with the best test result, the hardest to beat. The spread of a "
    "lead is the root of the sum of the two variances over the seeds. The rate target compares validation "
    "losses of the first seed. A difference between two models is that over the seeds which both have."
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, help=f"folder with {LINES_FILE} and, if there is one, {PLAN_FILE}")
    parser.add_argument("--out", type=Path, required=True, help="folder of the page, such as docs/results")
    parser.add_argument(
        "--remarks", type=Path, help=f"default: {REMARKS_FILE} among the runs, if it is there"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write the page for the browser here")
    parser.add_argument("--name", default=NAME, help="of the page and its folder")
    parser.add_argument("--title", default=TITLE, help="the page's heading")
    arguments = parser.parse_args()
    if not re.fullmatch(r"[a-z][a-z0-9-]*", arguments.name):
        parser.error(f"--name must be of small letters, digits and '-', got {arguments.name!r}")
    try:
        publish(arguments.runs, arguments.out, arguments.remarks, arguments.name, arguments.title)
        if arguments.html is not None:
            runs = arguments.runs
            write_report(read_runs(runs / LINES_FILE), arguments.html, plan_keys(runs / PLAN_FILE))
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


def publish(runs: Path, out: Path, remarks: Path | None = None, name: str = NAME, title: str = TITLE) -> None:
    """Write the page and its folder, whole or not at all.

    Raises:
        UserError: malformed lines, plan or remarks, or `out`/`name` is not one that this program wrote.
    """
    lines = thin(read_runs(runs / LINES_FILE))
    keys = plan_keys(runs / PLAN_FILE)
    if remarks is None and (runs / REMARKS_FILE).is_file():
        remarks = runs / REMARKS_FILE
    notes = read_remarks(remarks, {line["group"] for line in lines}) if remarks is not None else {}
    copies = {LINES_FILE: "".join(json.dumps(line) + "\n" for line in lines).encode()}
    if keys is not None:
        copies[PLAN_FILE] = (json.dumps([{"key": key} for key in keys], indent=0) + "\n").encode()
    if remarks is not None:
        copies[REMARKS_FILE] = remarks.read_bytes()
    costs = steps.read_steps(runs / steps.STEPS_FILE)
    if costs:
        copies[steps.STEPS_FILE] = (runs / steps.STEPS_FILE).read_bytes()
    gaps = by_gap.read_gaps(runs / by_gap.GAPS_FILE)
    if gaps:
        copies[by_gap.GAPS_FILE] = (runs / by_gap.GAPS_FILE).read_bytes()
    _refuse_other_files(out / name)
    text, pictures = page(lines, keys, notes, name, title, costs, gaps)
    with disk_errors(f"cannot write to {out}"):
        out.mkdir(parents=True, exist_ok=True)
        remove_staging(out)
    with disk_errors(f"cannot write to {out}"), staged(out, last=f"{name}.md") as folder:
        (folder / name).mkdir()
        for file, content in (copies | pictures).items():
            (folder / name / file).write_bytes(content)
        (folder / f"{name}.md").write_text(text, encoding="utf-8")


def page(
    lines: list[Line],
    keys: list[str] | None,
    remarks: dict[str, str],
    name: str = NAME,
    title: str = TITLE,
    costs: dict[str, steps.Step] | None = None,
    gaps: dict[str, list[dict[str, Any]]] | None = None,
) -> tuple[str, Pictures]:
    """The page in Markdown and its pictures by file name."""
    groups = as_groups(lines)
    pictures: Pictures = {}
    parts = [f"# {title}", "", *head(lines, groups, keys, name, title), "", *targets(groups)]
    parts += budgets(groups, costs or {}, pictures)
    for kind in ORDER:
        found = [group for group in groups if group.kind == kind]
        # Each group about size is one size: they are one section.
        sections = [[group] for group in found] if kind != "size" else [found] if found else []
        for members in sections:
            heading = members[0].title if kind != "size" else "Model size"
            parts += ["", f"## {heading}", "", *SECTIONS[kind](members, pictures)]
            for group in members:
                parts += far_lines(group, gaps or {}, pictures)
                parts += step_costs(group, costs or {}, pictures)
                parts += remark(group, remarks)
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(parts))
    # Sections name pictures by the folder of the quality study.
    return text.replace(f"]({NAME}/", f"]({name}/").rstrip() + "\n", pictures


def head(
    lines: list[Line], groups: list[Group], keys: list[str] | None, name: str = NAME, title: str = TITLE
) -> list[str]:
    """What was run, with what and on what."""
    diverged = sum(line["outcome"] == "diverged" for line in lines)
    seconds = [
        (line["result"].get("wall_seconds") or 0) * (line["options"].get("threads") or 1)
        for line in lines
        if line["outcome"] == "finished"
    ]
    text = f"{len(lines)} runs" + (f", {diverged} of which diverged" if diverged else "")
    text += f"; {sum(seconds) / 3600:.1f} core hours" + (" without those" if diverged else "") + "."
    if keys is not None:
        lacking, total = missing(keys, groups)
        lack = f"**Missing: {lacking} of the plan's {total} runs.**"
        text += f" {lack}" if lacking else " The plan is complete."
        other = sum(line["key"] not in keys for line in lines)
        text += f" {other} of the runs are not of the plan as it is now." if other else ""
    rows = [
        [
            group.title,
            ", ".join(group.tasks) if len(group.tasks) <= 4 else f"{len(group.tasks)} tasks",
            str(len(group.variants)),
            _range({len({line["seed"] for line in cell.lines}) for cell in group.cells.values()}),
            _range({len(cell.tried) for cell in group.cells.values()}),
            _range({line["tokens"] for line in _lines(group)}),
            # a synthetic task has a length of its own, whatever the options say
            _range(
                {
                    line["tokens"] // line["options"]["steps"] // line["options"]["batch_size"]
                    for line in _lines(group)
                }
            ),
            _range({line["options"]["batch_size"] for line in _lines(group)}),
            _range({cell.parameters for cell in group.cells.values() if cell.parameters}),
            str(len(_lines(group))),
        ]
        for group in groups
    ]
    given = f' --name {name} --title "{title}"' if name != NAME else ""
    commands = dict.fromkeys(line.get("command") or "–" for line in lines)
    header = ["group", "tasks", "models", "seeds", "rates", "tokens a run", "context", "batch", "parameters"]
    return [
        "Generated from the runs' own lines, by",
        "",
        f"    python benchmarks/publish_quality.py docs/results/{name} --out docs/results{given}",
        "",
        f"{text} {_METHOD}",
        "",
        *tables.table([*header, "runs"], rows),
        "",
        *_texts(lines),
        f"Machine: {_distinct(lines, 'machine')}. Versions: {_distinct(lines, 'versions')}. "
        f"Commands: {'; '.join(f'`{command}`' for command in commands)}. "
        f"Every number: [{name}/{LINES_FILE}]({name}/{LINES_FILE}).",
    ]


def targets(groups: list[Group]) -> list[str]:
    """The verdicts as a table."""
    every = [*verdicts(groups), *by_length.verdicts(groups)]
    if all(group.kind == "synthetic" for group in groups):  # the other kinds' targets are another study's
        every = [each for each in every if each.state != OPEN]
    rows = [[each.target, f"**{each.state}**", each.measured] for each in every]
    lines = tables.table(["target", "verdict", "measured"], rows)
    lines[1] = "| --- | --- | --- |"
    return [
        "## Targets",
        "",
        *lines,
        "",
        _JUDGED,
    ]


def budgets(groups: list[Group], costs: dict[str, steps.Step], pictures: Pictures) -> list[str]:
    """Where the lead goes with more text, if comparisons differ in that alone."""
    parts: list[str] = []
    for number, series in enumerate(by_budget.series_of(groups), 1):
        drawn = picture(pictures, f"budgets-{number}", by_budget.picture(series, costs))
        parts += [f"### {series.title}", "", *by_budget.page(series, costs), *drawn]
    return ["", "## More text", "", *parts] if parts else []


def comparison(groups: Sequence[Group], pictures: Pictures) -> list[str]:
    (group,) = groups
    parts: list[str] = picture(pictures, f"{group.name}-differences", figures.differences(group))
    for task in group.tasks:
        cells = group.of_task(task)
        grid = tables.rate_grid(cells)
        intro = ["Validation loss of each learning rate, first seed (bold: chosen):", "", *grid, ""]
        parts += [f"### {task}", "", *tables.results(group, task), "", *(intro if grid else [])]
        parts += picture(pictures, f"{group.name}-{task}-loss", figures.curves(group, task))
        parts += extrapolation(group, task, pictures)
        osn = group.cell(task, DEFAULT)
        parts += training_density(osn, pictures) if osn is not None else []
    return parts


def training_density(cell: Cell, pictures: Pictures) -> list[str]:
    """Each head's density over the training of a variant's first reported run."""
    run = next((line for line in cell.runs if any(entry.get("density") for entry in line["history"])), None)
    if run is None:
        return []
    history = [entry for entry in run["history"] if entry.get("density")]
    drawn = densities({"history": history}, tokens_per_step(run), "light")
    title = f"Density of each head over training, {cell.title}, seed {run['seed']}:"
    return [title, "", *picture(pictures, f"{cell.group}-{cell.task}-density", drawn)]


def extrapolation(group: Group, task: str, pictures: Pictures) -> list[str]:
    """A task's losses at other lengths, where they were measured."""
    if not any(lengths(cell) for cell in group.of_task(task)):
        return []
    title = "Test loss at other lengths than the training length, with the density in brackets:"
    drawn = figures.extrapolation(group, task)
    return [
        title,
        "",
        *tables.extrapolation(group, task),
        "",
        *picture(pictures, f"{group.name}-{task}-lengths", drawn),
        *positions(group, task, pictures),
    ]


def positions(group: Group, task: str, pictures: Pictures) -> list[str]:
    """A task's losses by position in the window, where they were measured."""
    found = by_position.losses_by_position(group, task)
    if not found:
        return []
    drawn = picture(pictures, f"{group.name}-{task}-positions", by_position.picture(group, task))
    parts = ["Test loss by position in the window, at the training length:", "", *found, "", *drawn]
    cells = [cell for cell in group.of_task(task) if lengths(cell)]
    longest = max(max(lengths(cell)) for cell in cells)
    if longest >= FAR * context(cells[0]):
        found = by_position.losses_by_position(group, task, longest)
        drawn = by_position.picture(group, task, longest)
        parts += [f"The same in windows of {longest:,} tokens:", "", *found, ""]
        parts += picture(pictures, f"{group.name}-{task}-positions-{longest}", drawn)
    return parts


def far_lines(group: Group, gaps: dict[str, list[dict[str, Any]]], pictures: Pictures) -> list[str]:
    """What is known of a line that was read before, where it was measured."""
    parts: list[str] = []
    for task in group.tasks:
        found = by_gap.found_again(group, task, gaps)
        title = (
            f"A line of code with random names, read before, its beginning again after so many bytes of "
            f"other text ({task}): the share of right bytes in its rest, told one by one, and the loss in "
            "nats per byte; last, of a line that was never there:"
        )
        parts += ["", title, "", *found, ""] if found else []
        parts += picture(pictures, f"{group.name}-{task}-gaps", by_gap.picture(group, task, gaps))
    return parts


def step_costs(group: Group, costs: dict[str, steps.Step], pictures: Pictures) -> list[str]:
    """What a step of the finished models costs, where it was measured."""
    parts: list[str] = []
    for task in group.tasks:
        found = steps.costs(group, task, costs)
        title = f"A training step of the finished models ({task}), in process CPU seconds of one thread:"
        parts += ["", title, "", *found, ""] if found else []
        parts += picture(pictures, f"{group.name}-{task}-steps", steps.picture(group, task, costs))
    return parts


def ablation(groups: Sequence[Group], pictures: Pictures) -> list[str]:
    (group,) = groups
    reference = next(iter(group.variants.values()))
    parts = [f"Differences are to the first row, “{reference}”.", "", *tables.ablation(group), ""]
    parts += picture(pictures, group.name, figures.ablation(group))
    return _with_lengths(group, pictures, parts)


def density(groups: Sequence[Group], pictures: Pictures) -> list[str]:
    (group,) = groups
    parts = picture(pictures, group.name, figures.density(group))
    for task in group.tasks:
        parts += [f"### {task}", "", *tables.density(group, task), ""]
    return _with_lengths(group, pictures, parts)


def stability(groups: Sequence[Group], pictures: Pictures) -> list[str]:
    (group,) = groups
    parts: list[str] = []
    for task in group.tasks:
        about = "Validation loss of each learning rate, first seed (bold: chosen); then at the chosen rate:"
        parts += [f"### {task}", "", about, "", *tables.stability(group, task), ""]
        parts += picture(pictures, f"{group.name}-{task}", figures.rates(group, task))
    return _with_lengths(group, pictures, parts)


def synthetic(groups: Sequence[Group], pictures: Pictures) -> list[str]:
    (group,) = groups
    parts: list[str] = []
    kinds = list(dict.fromkeys(cell.task_kind for cell in group.cells.values()))
    for kind in kinds:
        parts += [f"### {kind}", ""] if len(kinds) > 1 else []
        parts += ["Test accuracy:", "", *tables.accuracies(group, kind), ""]
        parts += picture(pictures, f"{group.name}-{kind}", figures.accuracies(group, kind))
    for task in group.tasks:
        found = by_length.accuracies(group, task)
        about = "Test accuracy by size, whole windows right in brackets:"
        parts += [f"### {task}, by size", "", about, "", *found, ""] if found else []
        parts += picture(pictures, f"{group.name}-{task}-sizes", by_length.picture(group, task))
    return parts


def size(groups: Sequence[Group], pictures: Pictures) -> list[str]:
    parts = [", ".join(group.title for group in groups) + ".", ""]
    for task, variants in size_cells(groups).items():
        about = (
            "Validation loss of each learning rate, first seed (bold: chosen); test loss at the chosen rate:"
        )
        parts += [f"### {task}", "", about, "", *tables.sizes(variants), ""]
        parts += picture(pictures, f"size-{task}", figures.sizes(variants))
    for group in groups:
        parts += [line for task in group.tasks for line in extrapolation(group, task, pictures)]
    return parts


SECTIONS: dict[str, Callable[[Sequence[Group], Pictures], list[str]]] = {
    "comparison": comparison,
    "ablation": ablation,
    "density": density,
    "stability": stability,
    "size": size,
    "synthetic": synthetic,
}


def picture(pictures: Pictures, name: str, drawn: bytes | None) -> list[str]:
    """Keep a picture, if there is one; the lines that show it."""
    if drawn is None:
        return []
    pictures[f"{name}.png"] = drawn
    return [f"![{name.replace('-', ' ')}]({NAME}/{name}.png)", ""]


def remark(group: Group, remarks: dict[str, str]) -> list[str]:
    return ["", f"*Remark.* {remarks[group.name]}"] if group.name in remarks else []


def plan_keys(path: Path) -> list[str] | None:
    """The keys of all runs that a plan may come to; None if there is no such file."""
    if not path.is_file():
        return None
    entries = read_json(path)
    if not isinstance(entries, list) or not all(
        isinstance(e, dict) and isinstance(e.get("key"), str) for e in entries
    ):
        raise UserError(f"{path}: expected a list of objects with a key")
    return [entry["key"] for entry in entries]


def read_remarks(path: Path, groups: set[str]) -> dict[str, str]:
    """The remarks by group.

    Raises:
        UserError: unreadable, no TOML, or about a group that has no runs.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the remarks {path}: {error}") from error
    for name, entry in found.items():
        if name not in groups:
            raise UserError(
                f"{path}: no group {name!r} among the runs, which have {', '.join(sorted(groups))}"
            )
        if not isinstance(entry, dict) or set(entry) != {"text"} or not isinstance(entry["text"], str):
            raise UserError(f'{path}: expected [{name}] with text = "..." and nothing else')
    return {name: entry["text"].strip() for name, entry in found.items()}


def _with_lengths(group: Group, pictures: Pictures, parts: list[str]) -> list[str]:
    return parts + [line for task in group.tasks for line in extrapolation(group, task, pictures)]


def _refuse_other_files(folder: Path) -> None:
    """The folder is replaced as a whole: it must hold nothing that this program did not write."""
    ours = {LINES_FILE, PLAN_FILE, REMARKS_FILE, steps.STEPS_FILE, by_gap.GAPS_FILE}
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    other = [
        path.name for path in found if path.is_dir() or (path.suffix != ".png" and path.name not in ours)
    ]
    if other:
        raise UserError(
            f"{folder} would be replaced, but holds other files ({', '.join(other[:3])}): choose another "
            "--out"
        )


def _lines(group: Group) -> list[Line]:
    return [line for cell in group.cells.values() for line in cell.lines]


def _range(values: set[int]) -> str:
    if not values:
        return "–"
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _texts(lines: Sequence[Line]) -> list[str]:
    found = {line["task"]: line["data"] for line in lines if line.get("data")}
    rows = [
        [
            task,
            *(f"{data['characters'][part]:,}" for part in ("train", "validation", "test")),
            f"`{data['sha256'][:12]}`",
        ]
        for task, data in found.items()
    ]
    header = ["text", "training", "validation", "test characters", "sha256"]
    return [*tables.table(header, rows), ""] if rows else []


def _distinct(lines: Sequence[Line], name: str) -> str:
    """What the lines say of one kind, each different answer once."""
    said: list[dict[str, Any]] = []
    for line in lines:
        if line[name] not in said:
            said.append(line[name])
    return "; or ".join(
        ", ".join(f"{key} {value}" for key, value in each.items() if value and value != "not installed")
        for each in said
    )


if __name__ == "__main__":
    main()

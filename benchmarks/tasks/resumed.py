"""What the scripts here share: runs that go on where they stopped, and learning rates chosen on validation.

A run is a line of FOLDER/runs.jsonl with the key "CELL/lrRATE/seedSEED", a cell being a model, or a model
and what it learned.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

Line = dict[str, Any]


def parser(description: str | None, steps: int) -> argparse.ArgumentParser:
    """A command line with --out, --steps and --seeds."""
    found = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--out", type=Path, required=True)
    found.add_argument("--steps", type=int, default=steps)
    found.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    return found


def parse(given: argparse.ArgumentParser, fewest: int = 1) -> argparse.Namespace:
    """The command line, with at least `fewest` steps, those of the runs that are there, and seed 0 among the
    seeds."""
    arguments = given.parse_args()
    if arguments.steps < fewest:
        given.error(f"--steps must be at least {fewest}, got {arguments.steps}")
    if 0 not in arguments.seeds:
        given.error(f"--seeds must have 0, whose runs choose the rate, got {arguments.seeds}")
    begun = {line["steps"] for line in read(arguments.out) if "steps" in line}
    if begun - {arguments.steps}:
        given.error(
            f"--steps must be {min(begun)}, which the runs in {arguments.out} have, got {arguments.steps}: "
            "others want another --out"
        )
    return arguments


def read(folder: Path) -> list[Line]:
    """The lines that a folder has so far; it is made if there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "runs.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def keep(folder: Path, lines: list[Line], line: Line) -> None:
    """One more line, in the list and in the folder."""
    lines.append(line)
    with (folder / "runs.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def rate_of(line: Line) -> float:
    return float(line["key"].split("/lr")[1].split("/")[0])


def of_cell(lines: list[Line], cell: str) -> list[Line]:
    """A cell's runs, by seed."""
    found = [line for line in lines if line["key"].rsplit("/", 2)[0] == cell]
    return sorted(found, key=lambda line: int(line["key"].rsplit("/seed", 1)[1]))


def chosen(lines: list[Line], cell: str, best: Callable[..., Line] = max) -> list[Line]:
    """A cell's runs at the rate that its first seed validates best with, by seed.

    Args:
        lines: of all cells.
        cell: "MODEL", or "TASK/MODEL".
        best: `max` where validation is an accuracy, `min` where it is an error.
    """
    runs = of_cell(lines, cell)
    firsts = [line for line in runs if line["key"].endswith("/seed0")]
    if not firsts:
        return []
    rate = rate_of(best(firsts, key=lambda line: line["validation"]))
    return [line for line in runs if rate_of(line) == rate]


def go_on(
    folder: Path,
    lines: list[Line],
    cells: Sequence[str],
    rates: Iterable[float],
    seeds: Iterable[int],
    run: Callable[[str, float, int], Line],
    best: Callable[..., Line] = max,
) -> None:
    """Make the runs that are not there yet: with seed 0 all rates, with others the one that is chosen.

    Args:
        folder: of runs.jsonl.
        lines: what it has; the new ones follow.
        cells, rates, seeds: what to run.
        run: makes the line of a cell, a rate and a seed.
        best: as in `chosen`.
    """
    rates = list(rates)
    for seed in sorted(set(seeds)):
        for cell in cells:
            for rate in rates if seed == 0 else [rate_of(chosen(lines, cell, best)[0])]:
                if f"{cell}/lr{rate:g}/seed{seed}" in {line["key"] for line in lines}:
                    continue
                line = run(cell, rate, seed)
                keep(folder, lines, line)
                print(json.dumps({k: line[k] for k in ("key", "test", "seconds")}), flush=True)

"""Which run comes next, and the work of one process: several can share a study's folder."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from syncattn.training.errors import UserError
from syncattn.training.record import EARLIER, PLACE
from syncattn_lab.study.lines import LINES_FILE, append_line, read_lines
from syncattn_lab.study.plan import Plan, Run
from syncattn_lab.study.run import describe, perform

RUNS = "runs"
CLAIMS = "claims"
_WAIT_SECONDS = 2.0


def work(
    plan: Plan,
    out: Path,
    data: Path | None,
    console: Console | None = None,
    on_line: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """Do runs of a plan until all are done, whoever does them; returns when no run is left or in progress.

    A run is claimed by a lock on a file, which the system gives back when a process dies, so a study that
    was stopped or killed goes on with the same command.

    Args:
        data: the folder with the text tasks' files.
        on_line: called with the line of each run that this process finished.

    Raises:
        UserError: a run cannot be done, or `out` has one of the same name with other settings;
            `Interrupted` after Ctrl-C.
    """
    (out / CLAIMS).mkdir(parents=True, exist_ok=True)
    while True:
        lines = {line["key"]: line for line in read_lines(out / LINES_FILE)}
        todo = open_runs(plan, lines)
        if not todo:
            return
        for run in todo:
            with _claimed(out / CLAIMS / _file_name(run.key)) as mine:
                if not mine:
                    continue
                if run.key in {line["key"] for line in read_lines(out / LINES_FILE)}:
                    break  # another process has just finished it
                line = perform(run, out / RUNS / _file_name(run.key), data, console)
                append_line(out, line)
                if on_line is not None:
                    on_line(line)
                break
        else:
            time.sleep(_WAIT_SECONDS)  # the rest is with other processes, or waits for them


def open_runs(plan: Plan, lines: dict[str, dict[str, Any]]) -> list[Run]:
    """The runs that can be done now: those of first seeds in the plan's order, then the others'.

    So a study that is stopped early has one seed of everything before more seeds of anything. With several
    learning rates, those of a cell's first seed are all run, and the other seeds with the chosen one alone.

    Raises:
        UserError: a line was made with other settings than the plan has for its run.
    """
    found: list[Run] = []
    for runs in plan.cells().values():
        for run in runs:
            if run.key in lines:
                _same_settings(run, lines[run.key])
        firsts = [run for run in runs if run.first]
        missing = [run for run in firsts if run.key not in lines]
        found += missing
        if missing:
            continue
        rate = chosen_rate([lines[run.key] for run in firsts])
        others = [run for run in runs if not run.first and run.options.learning_rate == rate]
        found += [run for run in others if run.key not in lines]
    return sorted(found, key=lambda run: (not run.first, run.order))


def total_runs(plan: Plan) -> int:
    """How many runs the plan comes to, the choice of learning rates considered."""
    return sum(
        len({run.options.seed for run in runs}) - 1 + sum(run.first for run in runs)
        for runs in plan.cells().values()
    )


def chosen_rate(lines: Sequence[dict[str, Any]]) -> float | None:
    """The learning rate of the line with the best validation: accuracy where there is one, then loss.

    None if all diverged.
    """
    finished = [line for line in lines if line["outcome"] == "finished"]

    def merit(line: dict[str, Any]) -> tuple[float, float]:
        result = line["result"]
        return -(result["validation_accuracy"] or 0.0), result["validation_loss"]

    return min(finished, key=merit)["learning_rate"] if finished else None


def _same_settings(run: Run, line: dict[str, Any]) -> None:
    planned = json.loads(json.dumps(describe(run)))
    names = ("task_options", "model", "settings")
    differing = [name for name in names if planned[name] != line.get(name)]
    found = EARLIER | line.get("options", {})
    if any(value != found.get(name) for name, value in planned["options"].items() if name not in PLACE):
        differing.append("options")
    if differing:
        raise UserError(
            f"the run {run.key} was done with other settings ({', '.join(differing)} differ): give the "
            "changed group or variant another name, or use another --out"
        )


@contextmanager
def _claimed(path: Path) -> Iterator[bool]:
    """Whether the lock on this file is ours, for as long as the block lasts."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _file_name(key: str) -> str:
    return key.replace("/", "--")

"""The command `syncattn study`. Heavy imports are inside, so that `syncattn --help` is quick."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from syncattn.cli.options import command
from syncattn.option import argument, option
from syncattn.starting import loading
from syncattn.training.errors import Interrupted, UserError

if TYPE_CHECKING:
    from syncattn_lab.study.plan import Plan


@dataclass(frozen=True)
class Task:
    """Which runs are made, by how many, and where they go."""

    plan: Path = argument(MISSING, "A plan: a TOML file, such as benchmarks/quality/plan.toml.")
    out: Path = option(Path("runs/quality"), "A folder for the runs and their lines, runs.jsonl.")
    data: Path | None = option(
        None, "The folder with the text files that the plan names.", shown="the current one"
    )
    workers: int = option(1, "Processes that share the work, each with the plan's threads.")
    group: list[str] | None = option(None, "Only this group; can be given several times.", shown="all")
    quiet: bool = option(False, "No progress within runs.")
    device: str | None = option(None, "'cpu', 'cuda' or 'auto' for all runs.", shown="the plan's")
    backend: str | None = option(None, "The backend of all synchronization layers.", shown="the plan's")
    seconds: float | None = option(
        None, "Stop after so long, with checkpoints; the same command then goes on.", shown="no limit"
    )

    def __post_init__(self) -> None:
        if self.seconds is not None and not 0 < self.seconds < 1e8:
            raise UserError(f"--seconds must be positive and below 1e8, got {self.seconds}")
        if self.workers < 1:
            raise UserError(f"--workers must be at least 1, got {self.workers}")


@command
def study_command(task: Task) -> None:
    """Train the many small models of a plan; each leaves one JSON line, from which report.html is made.

    Ctrl-C stops, and so does the end of --seconds; the same command goes on where it stopped. Started several
    times at once with the same --out, the processes share the runs. benchmarks/publish_quality.py makes pages
    of Markdown.
    """
    begun = time.monotonic()

    def left() -> float | None:
        return None if task.seconds is None else max(task.seconds - (time.monotonic() - begun), 1e-3)

    with loading(quiet=task.quiet):
        from rich.console import Console

        from syncattn_lab.study.plan import read_plan
        from syncattn_lab.study.queue import total_runs, work
    from syncattn.training.files import write_json
    from syncattn_lab.study.records import PLAN_FILE

    whole = read_plan(task.plan)
    chosen = whole.only(task.group or []).at(task.device, task.backend)
    prepare(chosen, task.out, task.data)
    write_json(task.out / PLAN_FILE, [{"key": run.key, "first": run.first} for run in whole.runs])
    console = Console()
    if task.workers > 1:
        console.print(
            f"{total_runs(chosen)} runs, {task.workers} processes, lines in {task.out}", highlight=False
        )
        status = share(task.workers, left())
        if status:
            raise typer.Exit(status)
        show_report(task.out)
        return

    def tell(line: dict[str, Any]) -> None:
        console.print(sentence(line), highlight=False, soft_wrap=True)

    with until(left()) as clock:
        work(chosen, task.out, task.data, None if task.quiet else console, tell)
    if clock.is_up:
        console.print("the time is up: the same command goes on from here", highlight=False)
    show_report(task.out, quiet=task.quiet)


class Clock:
    """Whether a time limit has ended what ran under it."""

    is_up = False


@contextmanager
def until(seconds: float | None) -> Iterator[Clock]:
    """Interrupt what runs within after so many seconds, as Ctrl-C does, and go on behind it; None: never.

    A training run in it stops after its current step, with a checkpoint.
    """
    clock = Clock()
    if seconds is None:
        yield clock
        return

    def end(number: int, frame: Any) -> None:
        clock.is_up = True
        signal.raise_signal(signal.SIGINT)

    # A shell starts its background jobs with this signal ignored.
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield clock
    except (Interrupted, KeyboardInterrupt):
        if not clock.is_up:
            raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.signal(signal.SIGINT, interrupt)


def show_report(out: Path, quiet: bool = False) -> None:
    """Write the page of all runs in a study's folder, if there is one yet, and unless quiet say where it is.

    Raises:
        UserError: a line of the study is malformed, or the page cannot be written.
    """
    from syncattn.training.files import read_json
    from syncattn_lab.study.lines import LINES_FILE
    from syncattn_lab.study.records import PLAN_FILE, read_runs
    from syncattn_lab.study.report import REPORT_FILE, write_report

    if not (out / LINES_FILE).is_file():
        return
    keys = [entry["key"] for entry in read_json(out / PLAN_FILE)]
    write_report(read_runs(out / LINES_FILE), out / REPORT_FILE, keys)
    if not quiet:
        print(f"report: {out / REPORT_FILE}")


def prepare(plan: Plan, out: Path, data: Path | None) -> None:
    """Everything that can be refused before the first run: texts, configs, the output folder.

    Raises:
        UserError: what cannot be used.
    """
    from syncattn.training.files import disk_errors
    from syncattn_lab.study.lines import LINES_FILE, read_lines
    from syncattn_lab.study.plan import TEXT, build_config
    from syncattn_lab.study.queue import open_runs
    from syncattn_lab.study.records import PLAN_FILE
    from syncattn_lab.study.run import corpus_of
    from syncattn_lab.study.varied import task_of

    sizes: dict[str, tuple[int, int | None]] = {}
    for name, options in plan.tasks.items():
        if options.get("kind") == TEXT:
            corpus_of(name, options, data)
            sizes[name] = (256, None)
        else:
            task, _ = task_of(options)
            sizes[name] = (task.vocab_size, task.length)
    for runs in plan.cells().values():
        vocabulary, length = sizes[runs[0].task]
        build_config(runs[0], vocabulary, length or runs[0].options.context)
    known = (out / PLAN_FILE).is_file()
    if out.exists() and not out.is_dir():
        raise UserError(f"the output folder {out} is a file: expected a new folder or a study's own")
    if out.is_dir() and any(out.iterdir()) and not known:
        raise UserError(f"the output folder {out} is not empty and has no study: choose another")
    with disk_errors(f"cannot write to the output folder {out}"):
        out.mkdir(parents=True, exist_ok=True)
    open_runs(plan, {line["key"]: line for line in read_lines(out / LINES_FILE)})


def share(workers: int, seconds: float | None = None) -> int:
    """The same command in several processes; the exit status: 0, or that of the first that failed.

    Args:
        seconds: what is left of the time that the command has; None: it has no limit.

    Ctrl-C and SIGTERM reach all of them, and each stops after its current step with a checkpoint.
    """
    given = without(sys.argv[1:], "--workers", "--seconds")
    arguments = [sys.executable, "-m", "syncattn", *given, "--quiet"]
    arguments += [] if seconds is None else ["--seconds", f"{seconds:.3f}"]
    children = [subprocess.Popen(arguments, start_new_session=True) for _ in range(workers)]

    def stop(number: int, frame: Any) -> None:
        for child in children:
            if child.poll() is None:
                os.kill(child.pid, number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while any(child.poll() is None for child in children):
            if any(child.poll() for child in children):
                stop(signal.SIGINT, None)
            time.sleep(0.2)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return next((child.returncode for child in children if child.returncode), 0)


def sentence(line: dict[str, Any]) -> str:
    """A finished run in one line for the terminal."""
    if line["outcome"] != "finished":
        return f"{line['key']}: {line['message']}"
    result = line["result"]
    text = f"{line['key']}: validation {result['validation_loss']:.4f}, test {result['test_loss']:.4f}"
    if result["test_accuracy"] is not None:
        text += f", accuracy {result['test_accuracy']:.3f}"
    heads = [value for layer in result["density"] for value in layer]
    if heads:
        text += f", density {sum(heads) / len(heads):.3f}"
    return text + f", {line['parameters']:,} parameters, {result['wall_seconds']:.0f} s"


def without(arguments: list[str], *names: str) -> list[str]:
    """A command line without some of its options and their values."""
    kept, skip = [], False
    for word in arguments:
        if skip:
            skip = False
        elif word in names:
            skip = True
        elif word.partition("=")[0] not in names:
            kept.append(word)
    return kept

"""The command `syncattn bench`. Heavy imports are inside, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from syncattn.bench.plan import BenchPlan, chosen_suites, quick
from syncattn.cli.options import Panel, command
from syncattn.option import argument, option
from syncattn.starting import loading
from syncattn.training.options import numbers


@dataclass(frozen=True)
class Task:
    """What is measured, and where the numbers go."""

    suites: list[str] | None = argument(
        None,
        "table, tokens, variants, frequencies (together: operator), decode, generation, prefill, train, "
        "lengths, block, counting, scaling; "
        "gpu-64, gpu-128, gpu-decode, gpu-memory, gpu-generation, gpu-anchors, gpu-flex (together: gpu).",
        metavar="SUITE...",
        shown="all; with --device cuda gpu",
    )
    out: Path = option(Path("runs/bench"), "A folder for bench.json, bench.md and the figures.")
    quick: bool = option(False, "Small sizes, under two minutes.")
    threads: str = option("1,2", "CPU threads, as a list.")
    overwrite: bool = option(False, "Replace what an earlier run left in --out.", after="time_wrong")


@command
def bench_command(
    task: Task, sizes: Annotated[partial[BenchPlan], Panel(without=("suites", "threads"))]
) -> None:
    """Time the operator, the block and the training step beside softmax attention; check them first.

    A wrong result gets no number, and the exit status is 1. Ctrl-C leaves what is done in bench.json.
    """
    with loading():
        from rich.console import Console

        from syncattn.bench.run import run

    device: str = sizes.keywords["device"]
    threads = tuple(numbers("--threads", task.threads, int))
    suites = chosen_suites(task.suites or [], device)
    plan = sizes(suites=suites, threads=threads[:1] if device == "cuda" else threads)
    console = Console()
    if not console.is_terminal:
        console = Console(width=150)  # a file has no edge to fold the tables at
    status = run(quick(plan) if task.quick else plan, task.out, console, overwrite=task.overwrite)
    if status:
        raise typer.Exit(status)

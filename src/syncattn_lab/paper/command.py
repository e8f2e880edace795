"""The command `syncattn paper`. Heavy imports are inside, so that `syncattn --help` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from syncattn.cli.options import command
from syncattn.option import option
from syncattn.starting import loading
from syncattn.terminal import quiet_progress
from syncattn.training.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from syncattn_lab.paper.judge import Claim
    from syncattn_lab.paper.section import Extent


@dataclass(frozen=True)
class Task:
    """What is measured, and where it goes."""

    out: Path = option(Path("runs/paper"), "A folder for the figures, the numbers and the ledger.")
    section: list[str] | None = option(
        None,
        "Only this part; can be given several times: concept, architecture, benchmark, matrices, order, "
        "complexity, universality, sparsity, position, closed_form, ode.",
        metavar="NAME",
        shown="all",
    )
    quick: bool = option(False, "Small sizes, under two minutes.")
    seed: int = option(0, "Of everything that is drawn at random.")
    resume: bool = option(False, "Go on with the run in --out: what is there is kept.")
    overwrite: bool = option(False, "First remove what an earlier run left in --out, all of it.")

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**31:
            raise UserError(f"--seed must be from 0 to {2**31 - 1}, got {self.seed}")
        if self.resume and self.overwrite:
            raise UserError("--resume keeps what is there and --overwrite replaces it: give one of them")


@command
def paper_command(task: Task) -> None:
    """Make the paper's figures and table, and judge each of its claims by measurement.

    The exit status is 1 if a measurement does not bear out the ledger's verdict. Ctrl-C leaves the finished
    sections; --resume goes on.
    """
    with loading():
        from rich.console import Console

        from syncattn_lab.paper.section import Extent
        from syncattn_lab.paper.sections import NAMES

    names = tuple(dict.fromkeys(task.section or NAMES))
    for name in names:
        if name not in NAMES:
            raise UserError(f"--section must be one of {', '.join(NAMES)}, got {name!r}")
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a file has no edge to fold the table at
    extent = Extent(quick=task.quick, seed=task.seed)
    status = work(extent, task.out, names, console, resume=task.resume, overwrite=task.overwrite)
    if status:
        raise typer.Exit(status)


def work(
    extent: Extent,
    out: Path,
    names: tuple[str, ...],
    console: Console,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> int:
    """Run the sections into `out` and show what was found; the exit status: 0, 1 or, after Ctrl-C, 130.

    Raises:
        UserError: `out` cannot be used.
    """
    with loading():
        from syncattn_lab.paper.run import run

        progress = quiet_progress(console)
    from syncattn.training.files import check_output, disk_errors, remove_staging

    check_output(out, overwrite=overwrite or resume)
    with disk_errors(f"cannot write to the output folder {out}"):
        out.mkdir(parents=True, exist_ok=True)
        remove_staging(out)
        if overwrite:
            remove_earlier(out)
    try:
        with progress:
            task = progress.add_task("", total=len(names))
            found = run(
                extent,
                out,
                names,
                lambda line: console.print(line, highlight=False, soft_wrap=True),
                lambda one: progress.update(task, completed=names.index(one.name), description=one.title),
            )
    except KeyboardInterrupt:
        console.print(
            "interrupted: the finished sections are there; --resume goes on with the others", highlight=False
        )
        return 130
    _show(found, console)
    where = f"{out}/report.html, {out}/claims.md, and the figures in {out}"
    console.print(where, highlight=False, soft_wrap=True)
    return 0 if all(claim.shown for claims in found.values() for claim in claims) else 1


def remove_earlier(out: Path) -> None:
    """Remove the files that an earlier run wrote, and no others."""
    from syncattn_lab.paper.ledger import LEDGER_FILE
    from syncattn_lab.paper.report import REPORT_FILE
    from syncattn_lab.paper.run import CLAIMS_FILE, RECORD_FILE, files_of
    from syncattn_lab.paper.sections import NAMES, section

    for name in (RECORD_FILE, CLAIMS_FILE, LEDGER_FILE, REPORT_FILE):
        (out / name).unlink(missing_ok=True)
    for name in NAMES:
        for file in files_of(section(name)):  # numbers first: without them it counts as not measured
            (out / file).unlink(missing_ok=True)


def _show(found: dict[str, list[Claim]], console: Console) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from syncattn_lab.paper.judge import FAILS, HOLDS

    table = Table(box=box.SIMPLE_HEAD)
    for column in ("section", "claim", "where", "verdict"):
        table.add_column(column)
    colours = {HOLDS: "green", FAILS: "red"}
    for name, claims in found.items():
        for claim in claims:
            verdict = Text(claim.verdict, style=colours.get(claim.verdict, "yellow"))
            if not claim.shown:
                verdict = Text(f"not shown ({claim.verdict} was expected)", style="bold red")
            table.add_row(name, Text(claim.says), claim.source, verdict)
    console.print(table)
    for name, claims in found.items():
        for claim in claims:
            for check in claim.checks:
                if not check.met:
                    console.print(
                        f"not met: {name}, {claim.name}: {check.what} is {check.measured:g}, wanted "
                        f"{check.expected}",
                        style="bold red",
                        highlight=False,
                        soft_wrap=True,
                    )

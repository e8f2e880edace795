"""What `train` and `compare` print at their end. Heavy imports are inside, so that `--help` is quick."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syncattn.terminal import fold, width

if TYPE_CHECKING:
    from syncattn.training.record import Record


def show_run(record: Record, out: Path) -> None:
    """Print what a run gave; `out` is its folder."""
    result = record.result
    densities = [head for layer in result.density for head in layer]
    partners = [head for layer in result.partners for head in layer]
    numbers = [
        f"validation loss {result.validation_loss:.4f},",
        f"test {result.test_loss:.4f} nats per token;",
        *([f"density {sum(densities) / len(densities):.2f}{',' if partners else ';'}"] if densities else []),
        *([f"{sum(partners) / len(partners):.1f} partners;"] if partners else []),
        f"{record.parameters:,} parameters,",
        f"{result.wall_seconds:.0f} s",
    ]
    print(fold(numbers, width(), between=" "))
    # Not folded: to be copied.
    print(f'model in {out}; try: syncattn generate {shlex.quote(str(out))} --prompt "..."')


def show_comparison(results: dict[str, Any], report: Path) -> None:
    """Print the models' samples and the table of `results`, and where the report is."""
    from rich.console import Console
    from rich.text import Text

    from syncattn.training.report import table_rows

    console = Console()
    if not console.is_terminal:
        console = Console(width=110)
    for model in results["models"]:
        console.rule(f"{model['title']} continues", style="dim")
        console.print(Text(results["prompt"], style="dim") + Text(model["sample"]))
    console.rule(style="dim")
    show_table("loss in nats per token, lower is better", table_rows(results["models"]), console)
    console.print(f"report: {report}", highlight=False, soft_wrap=True)
    if results.get("explorer"):
        console.print(
            f"the OSN, to explore: {report.parent / results['explorer']}", highlight=False, soft_wrap=True
        )


def show_table(title: str, rows: list[list[str]], console: Any) -> None:
    """Print a table whose first row is its header and whose first column has names.

    Where the terminal is too narrow for it, each row becomes a list, so that no number is folded.
    """
    from rich import box
    from rich.table import Table

    header, *entries = rows
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for index, cell in enumerate(header):
        table.add_column(cell, justify="left" if index == 0 else "right", no_wrap=True)
    for row in entries:
        table.add_row(*row)
    needed = console.measure(table, options=console.options.update(width=10_000)).maximum
    if not console.is_terminal:
        console.width = max(console.width, needed)  # a file has no edge to cut the table at
    if needed <= console.width:
        console.print(table)
        return
    console.print(title, style="italic", highlight=False)
    indent = max(map(len, header))
    for row in entries:
        console.print(row[0], highlight=False)
        for name, cell in zip(header[1:], row[1:], strict=True):
            console.print(f"  {name:<{indent}}  {cell}", highlight=False)

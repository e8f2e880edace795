"""What `train` and `compare` print at their end. Heavy imports are inside, so that `--help` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer


def show_run(record: dict[str, Any], out: Path) -> None:
    """Print what a run gave; `record` is its training.json, `out` its folder."""
    result = record["result"]
    densities = [head for layer in result["density"] for head in layer]
    density = f"density {sum(densities) / len(densities):.2f}; " if densities else ""
    typer.echo(
        f"validation loss {result['validation_loss']:.4f}, test {result['test_loss']:.4f} nats per token; "
        f"{density}{record['parameters']:,} parameters, {result['wall_seconds']:.0f} s"
    )
    typer.echo(f'model in {out}; try: syncattn generate {out} --prompt "..."')


def show_comparison(results: dict[str, Any], report: Path) -> None:
    """Print the models' samples and the table of `results`, and where the report is."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from syncattn.training.report import table_rows

    console = Console()
    if not console.is_terminal:
        console = Console(width=110)  # a file has no edge to fold the table at
    header, *rows = table_rows(results["models"])
    table = Table(title="loss in nats per token, lower is better", title_justify="left", box=box.SIMPLE_HEAD)
    for index, cell in enumerate(header):
        table.add_column(cell, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    for model in results["models"]:
        console.rule(f"{model['title']} continues", style="dim")
        console.print(Text(results["prompt"], style="dim") + Text(model["sample"]))
    console.rule(style="dim")
    console.print(table)
    console.print(f"report: {report}", highlight=False, soft_wrap=True)

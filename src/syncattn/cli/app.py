"""The program. What needs more than typer is imported by the commands, so that `--help` is quick.

Other packages add commands by the entry points `syncattn.commands`, each a function that typer can call: so
the library need not know its laboratory.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Annotated

import typer

from syncattn import __version__
from syncattn.cli.bench import bench_command
from syncattn.cli.compare import compare_command
from syncattn.cli.doctor import doctor_command
from syncattn.cli.errors import user_errors
from syncattn.cli.explore import explore_command
from syncattn.cli.generate import generate_command
from syncattn.cli.train import train_command
from syncattn.training.errors import UserError

app = typer.Typer(
    name="syncattn",
    help="Selective Synchronization Attention: train, compare and use Oscillatory Synchronization Networks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"syncattn {__version__}")
        raise typer.Exit


@app.callback()
def _options_of_all(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """What stands before the name of a command."""


app.command("train")(train_command)
app.command("compare")(compare_command)
app.command("generate")(generate_command)
app.command("explore")(explore_command)
app.command("bench")(bench_command)
app.command("doctor")(doctor_command)


def _add(entry: EntryPoint) -> None:
    """Add a command that another package brings; one that cannot be loaded says so when it is called."""
    try:
        app.command(entry.name)(entry.load())
    except (ImportError, AttributeError) as error:
        reason = f"the command {entry.name!r}, {entry.value}, cannot be loaded: {error}"

        context = {"ignore_unknown_options": True, "allow_extra_args": True}

        @app.command(entry.name, help="Cannot be loaded.", context_settings=context)
        def broken() -> None:
            with user_errors():
                raise UserError(reason)


for _entry in sorted(entry_points(group="syncattn.commands"), key=lambda entry: entry.name):
    _add(_entry)

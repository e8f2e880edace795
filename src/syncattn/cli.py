"""The command line. What needs more than typer is imported by the commands, so that `--help` is quick."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from syncattn import __version__
from syncattn.bench.command import bench_command
from syncattn.doctor import doctor_command
from syncattn.paper.command import paper_command
from syncattn.starting import started
from syncattn.study.command import study_command
from syncattn.training.command import compare_command, generate_command, train_command

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
app.command("bench")(bench_command)
app.command("paper")(paper_command)
app.command("study")(study_command)
app.command("doctor")(doctor_command)


@contextmanager
def user_errors() -> Iterator[None]:
    """What a user can mend becomes a line on stderr and exit code 1 (Ctrl-C: 130); bugs keep their trace."""
    from syncattn.training.errors import Interrupted, UserError

    started()
    try:
        yield
    except UserError as error:
        print(f"syncattn: {error}", file=sys.stderr)
        raise typer.Exit(130 if isinstance(error, Interrupted) else 1) from None
    except ModuleNotFoundError as error:
        if not error.name or error.name.startswith("syncattn"):
            raise
        extra = "paper" if error.name.partition(".")[0] == "scipy" else "train"
        print(
            f"syncattn: this command needs '{error.name}': install syncattn with its '{extra}' extra",
            file=sys.stderr,
        )
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        print("syncattn: stopped", file=sys.stderr)
        raise typer.Exit(130) from None

"""How a command ends when something went wrong. Imports nothing slow: every command's file imports it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from syncattn.starting import started

_EXTRAS = {"scipy": "paper", "sklearn": "study"}
"""Which extra brings a package that a command may lack; all others come with `train`."""


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
        extra = _EXTRAS.get(error.name.partition(".")[0], "train")
        print(
            f"syncattn: this command needs '{error.name}': install syncattn with its '{extra}' extra",
            file=sys.stderr,
        )
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        print("syncattn: stopped", file=sys.stderr)
        raise typer.Exit(130) from None

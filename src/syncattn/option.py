"""Fields of dataclasses that say what they are, for the command line too. Imports nothing slow."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Option:
    """What the command line shows of a field.

    Attributes:
        help: a sentence.
        argument: whether it is given by its place; else by its name.
        flag: its name where that is not the field's, such as "--lr".
        metavar: what stands for the value in the help; None for the name of its type.
        shown: the default in words; None for the value itself, if it is not None.
        after: the field of another dataclass that it stands behind in the help.
    """

    help: str
    argument: bool = False
    flag: str | None = None
    metavar: str | None = None
    shown: str | None = None
    after: str | None = None


def option(default: Any, help: str, **more: Any) -> Any:
    """A field that is an option of the command line; `more` as in `Option`."""
    return field(default=default, metadata={"option": Option(help, **more)})


def argument(default: Any, help: str, **more: Any) -> Any:
    """A field that is given on the command line by its place; `MISSING` where it must be."""
    return field(default=default, metadata={"option": Option(help, argument=True, **more)})

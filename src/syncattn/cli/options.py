"""Commands whose options are the fields of dataclasses: the list of options stands where they are used."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from functools import partial
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

import typer

from syncattn.cli.errors import user_errors
from syncattn.option import Option


class Panel(NamedTuple):
    """How a command shows the fields of a dataclass, where that is not as they are.

    Attributes:
        title: of the box in the help that they stand in.
        without: fields that this command decides by itself.
        defaults: this command's own.
    """

    title: str | None = None
    without: tuple[str, ...] = ()
    defaults: dict[str, Any] = {}  # noqa: RUF012  nobody changes it


class Written(dict[str, str]):
    """What stands on the command line itself: `{name of the field: how its option is written}`."""


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Make a function of dataclasses a command with an option for each of their fields.

    Each parameter is annotated with a dataclass, which it then gets; or with `partial[of one]`, which the
    function calls when it knows the rest; either as `Annotated[..., Panel(...)]` if need be; or with
    `Written`. Only fields made by `syncattn.option` are options. What a user can mend ends the command in one
    line.
    """
    hints = get_type_hints(function, include_extras=True)
    del hints["return"]
    shown: list[inspect.Parameter] = [_parameter("ctx", typer.Context)]
    makers: dict[str, tuple[Any, bool, list[str]]] = {}
    later: list[tuple[str, inspect.Parameter]] = []
    for name, hint in hints.items():
        (kind, panel) = get_args(hint) if get_origin(hint) is Annotated else (hint, Panel())
        if kind is Written:
            continue
        whole = get_origin(kind) is not partial
        kind = kind if whole else get_args(kind)[0]
        found = _parameters(kind, panel)
        makers[name] = (kind, whole, [parameter.name for parameter, _ in found])
        shown += [parameter for parameter, after in found if after is None]
        later += [(after, parameter) for parameter, after in found if after is not None]
    for after, parameter in later:
        place = [other.name for other in shown].index(after) + 1
        shown.insert(place, parameter)
    writes = [name for name, hint in hints.items() if hint is Written]

    def run(ctx: typer.Context, **values: Any) -> None:
        with user_errors():
            made: dict[str, Any] = {name: _written(ctx) for name in writes}
            for name, (kind, whole, own) in makers.items():
                maker = partial(kind, **{field: values[field] for field in own})
                made[name] = maker() if whole else maker
            function(**made)

    run.__doc__, run.__name__ = function.__doc__, function.__name__
    run.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    return run


def _parameters(kind: Any, panel: Panel) -> list[tuple[inspect.Parameter, str | None]]:
    """The parameters of a command for the fields of a dataclass, each with the one it stands behind."""
    hints = get_type_hints(kind)
    found = []
    for field in fields(kind):
        shown: Option | None = field.metadata.get("option")
        if shown is None or field.name in panel.without:
            continue
        default = panel.defaults.get(field.name, field.default)
        always = default is not None and default is not MISSING
        common: dict[str, Any] = {
            "help": shown.help,
            "metavar": shown.metavar,
            "show_default": shown.shown or always,
            "rich_help_panel": None if shown.argument else panel.title,
        }
        name = shown.flag or "--" + field.name.replace("_", "-")
        # A switch that is off has no second name to switch it off.
        names = [name] if shown.flag or default is False else []
        made = typer.Argument(**common) if shown.argument else typer.Option(*names, **common)
        found.append((_parameter(field.name, Annotated[hints[field.name], made], default), shown.after))
    return found


def _parameter(name: str, annotation: Any, default: Any = MISSING) -> inspect.Parameter:
    empty = inspect.Parameter.empty
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=empty if default is MISSING else default,
        annotation=annotation,
    )


def _written(ctx: typer.Context) -> Written:
    names = {}
    for parameter in ctx.command.params:
        by_place = parameter.param_type_name == "argument"
        names[parameter.name] = (
            (parameter.metavar or "").rstrip(".") if by_place else max(parameter.opts, key=len)
        )
    sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
    return Written(
        {name: names[name] for name, source in sources.items() if source and source.name == "COMMANDLINE"}
    )

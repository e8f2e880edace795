"""Commands are made from dataclasses: an option for each field, what stands there, and what does not fit."""

import inspect
from dataclasses import MISSING, dataclass
from functools import partial
from typing import Annotated

import pytest

pytest.importorskip("typer")

import typer
from typer.testing import CliRunner

from syncattn.cli import bench, compare, generate, train
from syncattn.cli.options import Panel, Written, command
from syncattn.option import argument, option
from syncattn.training.errors import UserError
from syncattn.training.options import Sampling, TrainingOptions


@dataclass(frozen=True)
class Place:
    out: str = option(MISSING, "Where.")
    names: list[str] | None = argument(None, "Which.", metavar="NAME...")
    pairs: bool = option(True, "Whether.")
    late: int = option(7, "Behind the width.", after="width")


@dataclass(frozen=True)
class Shape:
    width: int = option(3, "How wide.", flag="--wide")
    depth: int | None = option(None, "How deep.", shown="as wide")
    seed: int = option(0, "Not here.")
    hidden: float = 0.5

    def __post_init__(self):
        if self.width < 1:
            raise UserError(f"width must be at least 1, got {self.width}")


def test_a_command_gets_dataclasses_and_what_was_written():
    got = []
    app = typer.Typer()

    @app.command()
    @command
    def work(
        place: Place,
        shape: Annotated[partial[Shape], Panel(without=("seed",), defaults={"depth": 4})],
        written: Written,
    ) -> None:
        """Work."""
        got.append((place, shape(seed=5), written))

    runner = CliRunner()
    result = runner.invoke(app, ["a", "b", "--out", "here", "--no-pairs", "--wide", "9"])
    assert result.exit_code == 0, result.output
    place, shape, written = got[0]
    assert place == Place("here", ["a", "b"], False, 7) and shape == Shape(9, 4, 5)
    assert written == {"names": "NAME", "out": "--out", "pairs": "--pairs", "width": "--wide"}
    bad = runner.invoke(app, ["--out", "here", "--wide", "0"])
    assert bad.exit_code == 1 and bad.stderr == "syncattn: width must be at least 1, got 0\n"
    assert runner.invoke(app, []).exit_code == 2  # --out must be there
    shown = runner.invoke(app, ["--help"], env={"COLUMNS": "100", "TERM": "dumb"}).stdout
    assert "Work." in shown and "--seed" not in shown and "--hidden" not in shown
    assert shown.index("--wide") < shown.index("--late") < shown.index("--depth")


def test_the_projects_commands_show_the_defaults_of_their_dataclasses():
    for function, kind, but in (
        (train.train_command, TrainingOptions, {}),
        (compare.compare_command, TrainingOptions, {"final_eval_tokens": 100_000}),
        (generate.generate_command, Sampling, {}),
    ):
        parameters = inspect.signature(function).parameters
        shared = {name for name in kind.__dataclass_fields__ if name in parameters} - {"init_from"}
        assert len(shared) > 4
        for name in shared:
            wanted = but.get(name, kind.__dataclass_fields__[name].default)
            assert parameters[name].default == wanted, name
    assert "threads" in inspect.signature(bench.bench_command).parameters

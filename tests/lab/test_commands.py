"""The laboratory's commands, which the command line finds by their entry points."""

import json
import subprocess
import sys
from importlib.metadata import EntryPoint, entry_points

import pytest

pytest.importorskip("typer")

import typer
from typer.testing import CliRunner

from syncattn.cli import app as program


def test_they_are_listed_and_cost_nothing_slow():
    """In a process of its own: nothing of them may have been loaded before."""
    code = (
        "import json, sys, syncattn.cli.app as cli\n"
        "slow = ('torch', 'numpy', 'transformers', 'matplotlib', 'scipy', 'rich.progress')\n"
        "names = [command.name for command in cli.app.registered_commands]\n"
        "print(json.dumps([names, [name for name in slow if name in sys.modules]]))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names, loaded = json.loads(run.stdout)
    assert {"paper", "study"} <= set(names) and not loaded


def test_every_entry_point_of_the_project_loads():
    ours = [
        entry
        for group in ("syncattn.commands", "syncattn.targets")
        for entry in entry_points(group=group)
        if entry.value.startswith("syncattn_lab.")
    ]
    assert {entry.name for entry in ours} == {"paper", "study", "project"}
    assert all(callable(entry.load()) for entry in ours)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (["study", "plan.toml", "--workers", "0"], "--workers must be at least 1, got 0"),
        (["paper", "--seed", "-1"], "--seed must be from 0 to 2147483647, got -1"),
        (["paper", "--resume", "--overwrite"], "--resume keeps what is there and --overwrite replaces it"),
    ],
)
def test_what_cannot_be_is_one_line(given, reason):
    result = CliRunner().invoke(program.app, given)
    assert result.exit_code == 1
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith(f"syncattn: {reason}")


@pytest.mark.parametrize(
    ("value", "reason"),
    [("no_such_package.command:run", "No module named"), ("json:no_such_function", "no attribute")],
)
def test_a_command_that_cannot_be_loaded_leaves_the_others_and_says_why(value, reason, monkeypatch):
    app = typer.Typer()
    app.command("well")(lambda: None)
    monkeypatch.setattr(program, "app", app)
    program._add(EntryPoint("broken", value, "syncattn.commands"))
    runner = CliRunner()
    assert runner.invoke(app, ["well"]).exit_code == 0
    result = runner.invoke(app, ["broken", "--any", "thing"])
    assert result.exit_code == 1
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith(f"syncattn: the command 'broken', {value}, cannot be loaded: ") and reason in line

"""The command `syncattn generate`. Heavy imports are inside, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from functools import partial
from pathlib import Path

import typer

from syncattn.cli.options import command
from syncattn.option import argument, option
from syncattn.starting import loading
from syncattn.training.options import Sampling


@dataclass(frozen=True)
class Task:
    """Which model goes on from what."""

    folder: Path = argument(
        MISSING, "A folder that `syncattn train` wrote, or the name of a model that comes with the package."
    )
    prompt: str = option(MISSING, "What to go on from.")


@command
def generate_command(task: Task, choice: partial[Sampling]) -> None:
    """Write text with a trained model."""
    with loading():
        from syncattn.training.checkpoints import load_model
        from syncattn.training.generate import generate
        from syncattn.training.settings import quiet

    sampling = choice()
    with quiet():
        model, tokenizer = load_model(task.folder)
        text = generate(model, tokenizer, task.prompt, sampling)
    typer.echo(task.prompt + text)

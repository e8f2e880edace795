"""The command `syncattn explore`. Heavy imports are inside, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from syncattn.cli.options import command
from syncattn.option import argument, option
from syncattn.starting import loading
from syncattn.training.errors import UserError

_MOST_CHARACTERS = 100_000
"""Read of a text at most: no page shows more."""


@dataclass(frozen=True)
class Task:
    """Which model reads what, and where the page goes."""

    folder: Path = argument(
        MISSING,
        "A folder that `syncattn train` wrote, or the name of a model that comes with the package.",
        metavar="MODEL",
    )
    text: Path = option(MISSING, "The file to read.", metavar="FILE")
    out: Path = option(Path("explore.html"), "The page.", metavar="PAGE")
    max_tokens: int = option(256, "Show this many tokens of the text at most.")
    switch_off: bool = option(True, "Also run the model without each of its heads.")
    overwrite: bool = option(False, "Replace --out.")

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UserError(f"max_tokens must be at least 1, got {self.max_tokens}")


@command
def explore_command(task: Task) -> None:
    """Show in the browser who locks to whom in a text, while coupling and bandwidth change."""
    if task.out.is_dir():
        raise UserError(f"--out must be a file, got the folder {task.out}")
    if task.out.exists() and not task.overwrite:
        raise UserError(f"{task.out} is there already: give another --out, or --overwrite")
    with loading():
        from syncattn.training.checkpoints import load_model
        from syncattn.training.explored import explore_text
        from syncattn.training.files import disk_errors, write_text
        from syncattn.training.settings import quiet

    text = _read(task.text)
    with quiet():
        model, tokenizer = load_model(task.folder)
        page, left_out = explore_text(
            model,
            tokenizer,
            text,
            title=f"{task.folder.name or task.folder} reads {task.text.name}",
            max_tokens=task.max_tokens,
            whole=len(text) < _MOST_CHARACTERS,
            switch_off=task.switch_off,
            history=_history(task.folder),
        )
    with disk_errors(f"cannot write {task.out}"):
        task.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(task.out, page.html)
    if left_out:
        print(left_out)
    print(f"{page.tokens} tokens, {len(page.html.encode()) / 1e6:.1f} MB: {task.out}; open it in a browser")


def _read(path: Path) -> str:
    from syncattn.training.texts import Reader

    if path.is_dir():
        raise UserError(f"--text must be a file, got the folder {path}")
    reader = Reader()
    text = reader.text(path, _MOST_CHARACTERS)
    if text == "":
        raise UserError(f"{path} is empty: there is nothing to read")
    reader.check()
    assert text is not None
    return text


def _history(folder: Path) -> list[Any]:
    """The densities that the run recorded as it went; none where there is no record."""
    from syncattn.training.files import read_object

    path = folder / "training.json"
    if not path.is_file():
        return []
    entries = read_object(path).get("history")
    found = entries if isinstance(entries, list) else []
    return [one for one in found if isinstance(one, dict)]

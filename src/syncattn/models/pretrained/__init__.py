"""The small models that come with the package."""

from __future__ import annotations

from pathlib import Path

from syncattn.checks import check_choice

_FOLDER = Path(__file__).parent


def names() -> tuple[str, ...]:
    """The names that `folder` takes."""
    return tuple(sorted(path.parent.name for path in _FOLDER.glob("*/config.json")))


def folder(name: str) -> Path:
    """Where a shipped model is: a folder for `from_pretrained`, of the model and of its tokenizer.

    "osn-python-1m" is an OSN of a million parameters over bytes, trained on the source of Python's standard
    library; the folder's README.md, its model card, has what it was trained on and how well it does.

    Args:
        name: one of `names()`.

    Raises:
        ValueError: there is no such model.

    Example:
        >>> from transformers import AutoModelForCausalLM
        >>> model = AutoModelForCausalLM.from_pretrained(folder("osn-python-1m"))
    """
    check_choice("name", name, names())
    return _FOLDER / name

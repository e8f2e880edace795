"""The tables that are made of docstrings: the names in docs/api/, the scripts in docs/examples.md.

A page of docs/api/ has a line `<!-- reference: MODULE -->` for each module; names after the module's are a
choice of its names, for modules without `__all__`. The table under that line, and that under
`<!-- examples -->`, are written by

    python docs/site/reference.py

Tests hold them to what is there. Below the names the site shows signatures and whole docstrings.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import types
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs/api").glob("*.md")), ROOT / "docs/examples.md"]
EXAMPLES = re.compile(r"^<!-- examples -->\n(?:\|.*\n)*", re.M)
MARK = re.compile(r"^<!-- reference: ([\w.]+)((?: \w+)*) -->\n(?:\|.*\n)*", re.M)


def things(module: str, chosen: str) -> dict[str, Any]:
    """What a module offers: its `__all__`, or the names that are asked for."""
    loaded = importlib.import_module(module)
    names = chosen.split() or sorted(loaded.__all__, key=lambda name: (name.lower(), name))
    return {name: getattr(loaded, name) for name in names}


def summary(thing: Any) -> str:
    """The first sentence of a thing's docstring, as the cell of a table."""
    return first_sentence(inspect.getdoc(thing) or "")


def first_sentence(text: str) -> str:
    paragraph = text.split("\n\n")[0].replace("\n", " ")
    sentence = re.split(r"(?<=\.)\s+(?=[A-Z`])", paragraph)[0]
    return sentence.replace("|", r"\|").replace("``", "`")


def table(module: str, chosen: str = "", link: bool = False) -> str:
    """Names and what they are. With `link` they are references that Sphinx resolves."""
    rows = ["| name | |", "| --- | --- |"]
    for name, thing in things(module, chosen).items():
        full = thing.__name__ if inspect.ismodule(thing) else f"{module}.{name}"
        shown = f"{{py:obj}}`{name} <{full}>`" if link and not inspect.ismodule(thing) else f"`{name}`"
        rows.append(f"| {shown} | {summary(thing)} |")
    return "\n".join(rows) + "\n"


def written(text: str) -> str:
    """A page with its tables made anew."""
    text = MARK.sub(lambda m: f"<!-- reference: {m[1]}{m[2]} -->\n{table(m[1], m[2])}", text)
    return EXAMPLES.sub(lambda m: f"<!-- examples -->\n{examples()}", text)


def examples() -> str:
    """The scripts in examples/, and what each says of itself."""
    rows = ["| script | |", "| --- | --- |"]
    for script in sorted((ROOT / "examples").glob("*.py")):
        says = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
        rows.append(f"| [{script.name}](../examples/{script.name}) | {first_sentence(says)} |")
    return "\n".join(rows) + "\n"


def shown(text: str) -> str:
    """A page as the site shows it: below each table everything that the docstrings say."""
    return MARK.sub(lambda m: f"{table(m[1], m[2], link=True)}\n{directives(m[1], m[2])}\n", text)


def directives(module: str, chosen: str) -> str:
    """What tells Sphinx to describe what a module offers."""
    lines = ["```{eval-rst}"]
    for name, thing in things(module, chosen).items():
        if inspect.ismodule(thing):
            continue  # has a section of its own
        lines.append("")
        if inspect.isclass(thing):
            lines += [f".. autoclass:: {module}.{name}", *_members(thing)]
        elif callable(thing):
            lines.append(f".. autofunction:: {module}.{name}")
        else:
            lines.append(f".. autodata:: {module}.{name}")
    return "\n".join([*lines, "```"])


def _members(thing: type) -> list[str]:
    """A class shows what it defines itself: models would bring all that PyTorch and transformers have."""
    if issubclass(thing, tuple):  # its fields stand in its docstring
        return []
    kinds = types.FunctionType | classmethod | staticmethod | property
    own = [
        name
        for name, value in vars(thing).items()
        if not name.startswith("_") and isinstance(value, kinds) and getattr(value, "__doc__", None)
    ]
    return [f"   :members: {', '.join(own)}"] if own else []


if __name__ == "__main__":
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        after = written(before)
        if after != before:
            page.write_text(after, encoding="utf-8")
            print(f"wrote {page}")

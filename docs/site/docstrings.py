"""The house's docstrings as reStructuredText.

They are plain text in Google's form, free of markup: an asterisk is a product, a bar a size, and an item of
`Args:` may begin with so many names that they fill several lines, which Sphinx's own reader of that form
takes for something else.
"""

from __future__ import annotations

import re

PROSE = ("Returns:", "Yields:")  # sections whose lines are sentences, not items


def converted(lines: list[str]) -> list[str]:
    """A docstring's lines, its indentation removed, as lines that docutils reads."""
    made: list[str] = []
    rest = [line.rstrip() for line in lines]
    while rest:
        if not rest[0]:
            made.append("")
            rest.pop(0)
        elif rest[0].startswith(">>>"):  # an example, as it is
            made += [*_taken(rest, bool), ""]
        elif rest[0].startswith(" "):  # a formula
            block = _taken(rest, lambda line: not line or line.startswith(" "))
            made += [".. code-block:: text", "", *block, ""]
        elif rest[0].endswith(":") and len(rest) > 1 and rest[1].startswith("    "):
            title = rest.pop(0)
            body = _taken(rest, lambda line: not line or line.startswith("    "))
            if re.fullmatch(r"[A-Z]\w+:", title):
                made += ["", f"**{title[:-1]}**", ""]
            else:
                made += [plain(title), ""]
            made += [plain(line[4:]) for line in body] if title in PROSE else _items(body)
            made.append("")
        else:
            made.append(plain(rest.pop(0)))
    return made


def _taken(rest: list[str], belongs) -> list[str]:
    """The first lines that belong together, removed from the rest; blank ones at their end stay."""
    count = 0
    while count < len(rest) and belongs(rest[count]):
        count += 1
    while count and not rest[count - 1]:
        count -= 1
    found, rest[:count] = rest[:count], []
    return found


def _items(body: list[str]) -> list[str]:
    """Names and what they are, as a list of definitions: an item begins where the indentation is least."""
    items: list[str] = []
    for line in filter(None, body):
        if line.startswith("     ") and items:
            items[-1] += " " + line.strip()
        else:
            items.append(line.strip())
    made = []
    for item in items:
        names, colon, says = item.partition(": ")
        if colon and names.count("`") % 2 == 0:
            made += [plain(names), f"    {plain(says)}", ""]
        else:
            made += [plain(item), ""]
    return made


def plain(line: str) -> str:
    """A line in which nothing but backticks is markup: they are code."""
    parts = re.split(r"(``.+?``|`[^`]+`)", line)
    for n, part in enumerate(parts):
        if n % 2:
            parts[n] = f"``{part.strip('`')}``"
        else:
            parts[n] = re.sub(r"([\\*|]|_\b)", r"\\\1", part)
    return "".join(parts)

"""The documentation's Python blocks run: the README's each alone, the guide's in order in one namespace."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def blocks(name: str) -> list[tuple[int, str]]:
    """(line, code) of each Python block of a Markdown file."""
    text = (ROOT / name).read_text(encoding="utf-8")
    found = re.finditer(r"^```python\n(.*?)^```", text, re.S | re.M)
    return [(text[: m.start()].count("\n") + 1, m.group(1)) for m in found]


def execute(name: str, line: int, code: str, namespace: dict) -> None:
    exec(compile("\n" * line + code, str(ROOT / name), "exec"), namespace)


@pytest.mark.parametrize(("line", "code"), blocks("README.md"))
def test_readme(line, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    execute("README.md", line, code, {})


def test_guide(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for line, code in blocks("docs/guide.md"):
        execute("docs/guide.md", line, code, namespace)

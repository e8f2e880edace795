"""The documentation's Python blocks run: the README's each alone, a page's in order in one namespace."""

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


WITH_CODE = sorted(
    f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md") if blocks(f"docs/{page.name}")
)


@pytest.mark.parametrize("page", WITH_CODE)
def test_page(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for line, code in blocks(page):
        execute(page, line, code, namespace)


PAGES = [
    "README.md",
    "CHANGELOG.md",
    *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md")),
]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.S | re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page} links to {target}, which is not there"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file.read_text(encoding="utf-8")), f"{page}: no heading for {target}"


def anchors(text: str) -> set[str]:
    """The addresses that GitHub gives the headings of a Markdown page."""
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}

"""The documentation site: Sphinx over the repository as it lies, so that links are those a viewer follows.

`make docs` runs it in strict mode. The pages stay plain Markdown. Two things are added while they are read:
the navigation, which is made of the sections and tables of docs/README.md, and in docs/api/ what reference.py
makes of the docstrings.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

import syncattn

sys.path.insert(0, str(Path(__file__).parent))
import docstrings
import reference

HOME = "docs/README"

project = "syncattn"
author = "the authors of syncattn"
copyright = "the authors of syncattn, Apache-2.0"
version = release = syncattn.__version__
html_title = f"syncattn {version}"
language = "en"
smartquotes = False  # a prime is a derivative

extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = HOME
include_patterns = ["README.md", "CHANGELOG.md", "docs/**.md", "benchmarks/**.md", "examples/**.md"]
exclude_patterns = [".*", "build", "dist", "runs", "src", "tests", "**/__pycache__"]
source_suffix = {".md": "markdown"}

# Headings are addressed as code hosts do it, and the pages are theirs: no syntax of our own.
myst_heading_anchors = 4
myst_links_external_new_tab = False

html_theme = "furo"
html_static_path = ["style.css", "search.js"]
html_css_files = ["style.css"]
html_js_files = ["search.js"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": False}
pygments_style = "friendly"
pygments_dark_style = "github-dark"

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"show-inheritance": True}
maximum_signature_line_length = 80
python_display_short_literal_types = True


def navigation(text: str) -> str:
    """Hidden trees of the pages that docs/README.md lists: one for each section, in order of its tables."""
    trees = []
    for section in re.split(r"^## ", text, flags=re.M)[1:]:
        caption, _, body = section.partition("\n")
        cells = re.findall(r"^\| *(\[.*?) \| ", body, re.M)
        pages = [target for cell in cells for target in re.findall(r"\]\(([^)#]+)\.md\)", cell)]
        if pages:
            entries = ["/" + posixpath.normpath(f"docs/{page}") for page in pages]
            entries = ["The project </README>" if entry == "/README" else entry for entry in entries]
            trees.append(
                "\n".join(["```{toctree}", ":hidden:", f":caption: {caption.strip()}", "", *entries, "```"])
            )
    return "\n\n".join(trees)


def describe(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    lines[:] = docstrings.converted(lines)


def read(app: Any, docname: str, source: list[str]) -> None:
    """Add to a page what only the site has."""
    if docname == HOME:
        source[0] += "\n\n" + navigation(source[0])
    if docname.startswith("docs/api/"):
        source[0] = reference.shown(source[0])


def finish(app: Any, error: Exception | None) -> None:
    """Someone who opens the folder gets to the first page."""
    if error is None:
        first = f"{HOME}.html"
        page = f'<!doctype html><meta charset="utf-8"><title>{html_title}</title>'
        page += f'<meta http-equiv="refresh" content="0; url={first}"><a href="{first}">{html_title}</a>\n'
        Path(app.outdir, "index.html").write_text(page, encoding="utf-8")


def setup(app: Any) -> None:
    app.connect("source-read", read)
    app.connect("autodoc-process-docstring", describe)
    app.connect("build-finished", finish)

"""What of the documentation site needs no site: navigation, reference, commands, the check of links."""

import ast
import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest

import syncattn

for needed in ("transformers", "scipy", "accelerate", "rich"):  # the reference is of all extras
    pytest.importorskip(needed)

ROOT = Path(__file__).parents[1]
INTERNAL = {"syncattn.page"}  # modules whose `__all__` is for the package itself
WRITE = "run: python docs/site/reference.py"


@pytest.fixture(scope="module", autouse=True)
def folder():
    sys.path.insert(0, str(ROOT / "docs/site"))
    yield
    sys.path.remove(str(ROOT / "docs/site"))


def module(name):
    return importlib.import_module(name)


def pages(pattern="*.md"):
    return sorted((ROOT / "docs").rglob(pattern))


def in_reference():
    """Every (module, name) that docs/api/ has."""
    reference = module("reference")
    found = set()
    for page in (ROOT / "docs/api").glob("*.md"):
        for mark in reference.MARK.finditer(page.read_text(encoding="utf-8")):
            found |= {(mark[1], name) for name in re.findall(r"^\| `(\w+)` \|", mark[0], re.M)}
    return found


def offered():
    """Every (module, name) of the modules with a surface that they declare."""
    package = Path(syncattn.__file__).parent
    for file in package.rglob("*.py"):
        if "__all__ =" in file.read_text(encoding="utf-8"):
            parts = file.relative_to(package.parent).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            if name not in INTERNAL:
                yield from ((name, public) for public in module(name).__all__)


def test_the_reference_has_every_public_name():
    missing = set(offered()) - in_reference()
    assert not missing, (
        f"not in docs/api/ (a module's first time needs a line there; else {WRITE}): {missing}"
    )


def test_the_reference_has_every_name_that_the_documentation_uses():
    known = in_reference()
    for page in [ROOT / "README.md", *pages(), *(ROOT / "examples").glob("*.py")]:
        text = page.read_text(encoding="utf-8")
        blocks = [text] if page.suffix == ".py" else re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)
        for block in blocks:
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("syncattn"):
                    for alias in node.names:
                        full = f"{node.module}.{alias.name}"
                        assert (node.module, alias.name) in known or full in {m for m, _ in known}, (
                            f"{page.relative_to(ROOT)} imports {full}, which docs/api/ does not have"
                        )


def test_tables_say_what_the_docstrings_say():
    reference = module("reference")
    for page in reference.PAGES:
        text = page.read_text(encoding="utf-8")
        assert reference.written(text) == text, f"{page.relative_to(ROOT)} is out of date; {WRITE}"


def test_every_name_in_the_reference_says_what_it_is():
    for page in (ROOT / "docs/api").glob("*.md"):
        assert not re.search(r"^\| `\w+` \|  \|", page.read_text(encoding="utf-8"), re.M), page


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"\]\(([^)#]+\.md)\)", (ROOT / "docs/README.md").read_text(encoding="utf-8")))
    there = {str(page.relative_to(ROOT / "docs")) for page in pages()} - {"README.md"}
    assert there <= listed, f"docs/README.md does not list {there - listed}"


def test_docstrings_become_restructured_text():
    text = """What it is: a * b and |x|.

    F = a_b * c

>>> f(2)  # *
4

Args:
    one, two,
        three: of `names`, 2 * 3
        and more.
    **rest: the others.

Returns:
    A sentence in
    two lines.
"""
    made = "\n".join(module("docstrings").converted(text.split("\n")))
    assert made.split("\n")[0] == r"What it is: a \* b and \|x\|."
    assert ".. code-block:: text\n\n    F = a_b * c\n" in made and "\n>>> f(2)  # *\n4\n" in made
    assert "one, two, three\n    of ``names``, 2 \\* 3 and more.\n" in made
    assert "\\*\\*rest\n    the others." in made and "A sentence in\ntwo lines." in made


def test_broken_links_are_found(tmp_path):
    check = module("check").check
    (tmp_path / "a.html").write_text(
        '<p id="x"><a href="b.html#y">b</a> <a href="#x">x</a>', encoding="utf-8"
    )
    (tmp_path / "b.html").write_text('<p id="y"><a href="https://example.org">out</a>', encoding="utf-8")
    assert check(tmp_path) == (2, 2, [])
    (tmp_path / "b.html").write_text(
        '<a href="c.html">c</a><img src="//example.org/x.png">', encoding="utf-8"
    )
    _, _, wrong = check(tmp_path)
    assert len(wrong) == 3 and any("no such place" in sentence for sentence in wrong)


SMALLER = ["--steps=2", "--batch-size=2", "--threads=1"]  # where the sizes are the saved model's
SMALL = [*SMALLER, "--context=16", "--hidden-size=16", "--heads=2", "--layers=1"]


def test_the_commands_for_your_own_text_run(tmp_path, monkeypatch):
    pytest.importorskip("typer")
    pytest.importorskip("accelerate")
    from typer.testing import CliRunner

    from syncattn.cli.app import app

    page = (ROOT / "docs/your-own-text.md").read_text(encoding="utf-8")
    commands = [
        line for block in re.findall(r"^```sh\n(.*?)^```", page, re.S | re.M) for line in block.split("\n")
    ]
    commands = [shlex.split(line, comments=True) for line in commands if line]
    assert [command[1] for command in commands] == ["train", "generate", "explore", "train", "compare"]
    monkeypatch.chdir(tmp_path)
    Path("my-texts").mkdir()
    for name in ("my-texts/one.txt", "my-texts/two.txt", "my-validation.txt", "more.txt"):
        Path(name).write_text(f"Once upon a time, in {name}, tokens locked. " * 30, encoding="utf-8")
    for _, command, *rest in commands:
        if command in ("train", "compare"):
            rest += SMALLER if "--init-from" in rest else SMALL
        if command == "generate":
            rest += ["--max-new-tokens", "2"]
        result = CliRunner().invoke(app, [command, *rest])
        assert result.exit_code == 0, f"{command} {rest}: {result.output}"
    for path in ("runs/mine/model.safetensors", "page.html", "runs/tuned", "runs/compared/report.html"):
        assert Path(path).exists()

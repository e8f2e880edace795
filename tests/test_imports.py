"""Who imports whom, by the sources: the library does not know its laboratory, nothing goes in a circle, and
everything depends on its own level of the house or on one below.

Imports inside functions and under TYPE_CHECKING count like all others.
"""

import ast
from pathlib import Path

SOURCES = Path(__file__).parents[1] / "src"

LEVELS = (
    ("checks", "values", "special_functions", "option", "starting", "terminal", "page"),
    ("margin",),
    ("locking", "order_parameter"),
    ("backends",),
    ("functional",),
    ("nn",),
    ("explorer",),
    ("syncattn",),  # the package's own file, which names what a user of the operator imports
    ("models",),
    ("integrations",),
    ("kuramoto",),
    ("drawing", "training"),
    ("bench",),
    ("cli", "__main__"),
)
"""The rooms of the library from the ground up: modules and packages of `syncattn`."""


def modules() -> dict[str, Path]:
    """Every module of the sources by its name; a package is its __init__ file."""
    found = {}
    for path in SOURCES.rglob("*.py"):
        parts = path.relative_to(SOURCES).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(name: str, source: str, known: set[str]) -> set[str]:
    """The modules among `known` that this source imports, wherever in it.

    `from package import name` is an import of package.name if that is a module, else of the package.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively: write the whole name"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in known else str(node.module))
    return (found & known) - {name}


def graph() -> dict[str, set[str]]:
    """Who imports whom."""
    known = modules()
    return {
        name: imports_of(name, path.read_text(encoding="utf-8"), set(known)) for name, path in known.items()
    }


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that reach each other (Tarjan's algorithm); none if nothing goes in a circle."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(edges[name]):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            at = stack.index(name)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for name in edges:
        if name not in index:
            visit(name)
    return found


def level(name: str) -> int:
    """The level of a module of the library."""
    _, _, inside = name.partition(".")
    room = inside.partition(".")[0] or name
    found = [number for number, rooms in enumerate(LEVELS) if room in rooms]
    assert len(found) == 1, f"the room {room!r} has {len(found)} levels in LEVELS, expected one"
    return found[0]


def test_the_library_does_not_know_its_laboratory():
    assert [
        (importer, imported)
        for importer, others in graph().items()
        for imported in others
        if importer.partition(".")[0] == "syncattn" and imported.partition(".")[0] != "syncattn"
    ] == []


def test_nothing_goes_in_a_circle():
    assert circles(graph()) == []


def test_dependencies_point_down():
    assert [
        (importer, imported)
        for importer, others in graph().items()
        for imported in others
        if importer.partition(".")[0] == "syncattn" and level(imported) > level(importer)
    ] == []


def test_imports_are_read_wherever_they_stand():
    source = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from a.b import Name
def f():
    import a.c
    from a import d, e
"""
    assert imports_of("a.x", source, {"a", "a.b", "a.c", "a.d", "a.x"}) == {"a", "a.b", "a.c", "a.d"}


def test_circles_are_found():
    edges = {"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": {"e"}, "e": set()}
    assert circles(edges) == [["a", "b", "c"]]
    assert circles(edges | {"c": set()}) == []

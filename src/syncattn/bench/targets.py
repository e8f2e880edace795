"""What somebody wants of a benchmark: targets come from outside, by the entry points `syncattn.targets`."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

HEADER = ["target", "threads", "wanted", "measured", "met"]


def judged(record: dict[str, Any]) -> dict[str, Any]:
    """What all targets say of a record, for the record itself.

    An entry point names a function of the record that returns such a dictionary:

        rows: one per target and setting, as HEADER has them.
        bounds: for the picture of time against density, by pass: [density, most time over SDPA's] each.
    """
    rows: list[list[str]] = []
    bounds: dict[str, list[list[float]]] = {}
    for entry in sorted(entry_points(group="syncattn.targets"), key=lambda entry: entry.name):
        assess: Callable[[dict[str, Any]], dict[str, Any]] = entry.load()
        found = assess(record)
        rows += found["rows"]
        for passes, points in found["bounds"].items():
            bounds.setdefault(passes, []).extend(points)
    return {"rows": rows, "bounds": bounds}

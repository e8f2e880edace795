"""The lines of a study's `runs.jsonl`, one finished or diverged run each: read, checked, and made smaller."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from syncattn.training.errors import UserError
from syncattn_lab.study.lines import read_lines
from syncattn_lab.study.plan import KINDS, TEXT

PLAN_FILE = "plan.json"
DEFAULT = "osn"
"""The variant that is judged, in every group, and that the others of a comparison are counted from."""
LARGE = 1_000_000
"""Bytes of lines above which the histories are thinned."""

Line = dict[str, Any]

_STRINGS = (
    "key",
    "kind",
    "group",
    "group_title",
    "task",
    "task_kind",
    "variant",
    "title",
    "model",
    "outcome",
)
_NUMBERS = ("order", "learning_rate", "seed", "tokens")
_OBJECTS = ("task_options", "options", "versions", "machine")
_OUTCOMES = ("finished", "diverged")


def read_runs(path: str | Path) -> list[Line]:
    """Read and check the runs of a study, in the plan's order.

    Raises:
        UserError: the file is missing, empty or unreadable, a line is malformed, or a run is there twice; the
            message names the file and the line's number.
    """
    path = Path(path)
    lines = read_lines(path)
    if not lines:
        raise UserError(f"{path} has no runs: expected what `syncattn study` writes, a JSON line for each")
    places: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        wrong = _problem(line)
        if wrong is None and line["key"] in places:
            wrong = f"the run {line['key']} is in line {places[line['key']]} already"
        if wrong:
            raise UserError(f"{path}, line {number}: {wrong}")
        places[line["key"]] = number
    return sorted(lines, key=lambda line: (line["order"], line["key"]))


def thin(lines: Sequence[Line]) -> list[Line]:
    """The lines with no more history than the report draws, rounded; the same again if they are small.

    Every validation loss is kept; densities over training are kept for the comparisons' default variant.
    """
    if sum(len(json.dumps(line)) for line in lines) <= LARGE:
        return list(lines)
    return [line | {"history": _thin_history(line)} for line in lines]


def _thin_history(line: Line) -> list[dict[str, Any]]:
    drawn = line["kind"] == "comparison" and line["variant"] == DEFAULT
    kept = []
    for entry in line["history"]:
        found = {"step": entry["step"]}
        if entry.get("validation_loss") is not None:
            found["validation_loss"] = round(entry["validation_loss"], 5)
        if drawn and entry.get("density"):
            found["density"] = [[round(value, 4) for value in layer] for layer in entry["density"]]
        if len(found) > 1:
            kept.append(found)
    return kept


def _problem(line: Line) -> str | None:
    """What is wrong with a line, in words; None for nothing."""
    for names, kind, text in (
        (_STRINGS, str, "text"),
        (_NUMBERS, (int, float), "a number"),
        (_OBJECTS, dict, "an object"),
    ):
        for name in names:
            if not isinstance(line.get(name), kind):
                return f"{name} must be {text}, got {line.get(name)!r}"
    for name, known in (("kind", KINDS), ("outcome", _OUTCOMES)):
        if line[name] not in known:
            return f"{name} must be one of {', '.join(known)}, got {line[name]!r}"
    history = line.get("history")
    if not isinstance(history, list) or not all(isinstance(e, dict) and "step" in e for e in history):
        return "history must be a list of objects with a step"
    for name in ("context", "batch_size", "steps"):
        if not isinstance(line["options"].get(name), int):
            return f"options must have a whole number {name}, got {line['options'].get(name)!r}"
    if line["outcome"] == "diverged":
        return None
    if not isinstance(line.get("result"), dict):
        return f"the result of a finished run must be an object, got {line.get('result')!r}"
    needed = ["validation_loss", "test_loss"]
    needed += [] if line["task_kind"] == TEXT else ["validation_accuracy", "test_accuracy"]
    for name in needed:
        if not isinstance(line["result"].get(name), int | float):
            return f"result: {name} must be a number, got {line['result'].get(name)!r}"
    return None

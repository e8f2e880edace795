"""The record of a study: one JSON line per finished run, appended whole, read with care."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

from syncattn.training.errors import UserError
from syncattn.training.files import disk_errors

LINES_FILE = "runs.jsonl"
FORMAT = 1


def append_line(out: Path, line: dict[str, Any]) -> None:
    """Append one run's line to `out`/runs.jsonl, whole, whatever other processes append at the same time.

    Raises:
        UserError: the file cannot be written.
    """
    path = out / LINES_FILE
    text = json.dumps({"format": FORMAT, **line}, allow_nan=False) + "\n"
    with disk_errors(f"cannot write {path}"), path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        before = file.seek(0, 2)
        try:
            file.write(text.encode())
            file.flush()
        except BaseException:  # Ctrl-C, too
            file.truncate(before)  # half a line would spoil the file
            raise


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All lines of a runs.jsonl, in the order in which the runs ended; [] if there is no such file.

    Raises:
        UserError: a line is damaged or of another format; the message has the file and the line's number.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: not JSON ({error}); remove the line to go on") from error
        if not isinstance(entry, dict) or entry.get("format") != FORMAT or "key" not in entry:
            raise UserError(f"{path}, line {number}: not a line of a study in format {FORMAT}")
        found.append(entry)
    return found

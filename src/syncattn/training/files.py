"""Output folders: refused, filled and recovered so that no final file is ever half-written."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from syncattn.training.errors import UserError

CHECKPOINTS = "checkpoints"
LOGS = "logs"
RUN_FILE = "run.json"
RESULT_FILE = "training.json"
_STAGING_PREFIX = ".partial-"


def prepare_output(out: Path, needed_bytes: int, *, overwrite: bool = False) -> None:
    """Make sure that results can be written to `out` before the work begins.

    With `overwrite`, what an earlier run left to go on from (checkpoints, logs, its result file) is removed;
    its model stays until the new one takes its place, and files of other origin are never touched.

    Raises:
        UserError: `out` is no folder, holds something already, cannot be written to, or has too little space.
    """
    check_output(out, overwrite=overwrite)
    with disk_errors(f"cannot write to the output folder {out}"):
        out.mkdir(parents=True, exist_ok=True)
        if overwrite:
            for name in (CHECKPOINTS, LOGS):
                shutil.rmtree(out / name, ignore_errors=True)
            (out / RESULT_FILE).unlink(missing_ok=True)
        remove_staging(out)
        # Permissions alone do not tell: the folder may be on a read-only or full file system.
        with tempfile.NamedTemporaryFile(dir=out, prefix=_STAGING_PREFIX) as probe:
            probe.write(b"0" * 4096)
            probe.flush()
            os.fsync(probe.fileno())
        free = shutil.disk_usage(out).free
    if free < needed_bytes:
        raise UserError(
            f"the output folder {out} is on a full disk: {free / 1e6:,.0f} MB are free, and this run needs "
            f"about {needed_bytes / 1e6:,.0f} MB"
        )


def check_output(out: Path, *, overwrite: bool = False) -> None:
    """Refuse a folder that holds something, or a path that is no folder, before any slow work."""
    if out.exists() and not out.is_dir():
        raise UserError(f"the output folder {out} is a file: expected a new or empty folder")
    with disk_errors(f"cannot read the output folder {out}"):
        occupied = out.is_dir() and any(not p.name.startswith(_STAGING_PREFIX) for p in out.iterdir())
    if occupied and not overwrite:
        raise UserError(
            f"the output folder {out} is not empty: choose another, go on from it with --resume, or replace "
            "its results with --overwrite"
        )


@contextmanager
def staged(out: Path, last: str | None = None) -> Iterator[Path]:
    """A temporary folder whose files move into `out` when the block succeeds.

    Each file or folder is moved in one step, `last` at the very end, so its presence proves that all is
    there. When the block fails, the temporary folder is removed and `out` is as it was.
    """
    folder = Path(tempfile.mkdtemp(dir=out, prefix=_STAGING_PREFIX))
    try:
        yield folder
        for path in sorted(folder.iterdir(), key=lambda p: (p.name == last, p.name)):
            target = out / path.name
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(path, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_staging(out: Path) -> None:
    """Remove what a run that was killed while writing left behind."""
    for path in out.glob(_STAGING_PREFIX + "*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        UserError: the folder cannot be written to, or the disk is full.
    """
    with disk_errors(f"cannot write {path}"), staged(path.parent) as folder:
        (folder / path.name).write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    """Write JSON whole or not at all; numbers that JSON does not have (nan) are refused."""
    write_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON that an earlier run wrote.

    Raises:
        UserError: missing, unreadable or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


@contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """Turn the ways in which Python, PyTorch and safetensors report a failed write into one clear line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not _is_disk_error(error):
            raise
        detail = (
            error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        )
        raise UserError(f"{doing}: {detail}") from error


def _is_disk_error(error: Exception) -> bool:
    if isinstance(error, OSError):
        return True
    # PyTorch raises RuntimeError and safetensors its own error, with nothing but the text to tell.
    text = str(error)
    return any(
        mark in text for mark in ("PytorchStreamWriter", "file write failed", "No space left", "I/O error")
    )

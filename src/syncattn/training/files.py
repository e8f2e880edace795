"""Files that are read with care; output folders that are refused, filled and recovered.

No final file is ever half-written.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard

from syncattn.training.errors import DiskError, UserError

CHECKPOINTS = "checkpoints"
START = "start"
PROGRESS_FILE = "progress.json"
LOGS = "logs"
RUN_FILE = "run.json"
RESULT_FILE = "training.json"
LOCK_FILE = ".lock"
_STAGING_PREFIX = ".partial-"
_LARGEST_JSON = 1 << 28


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
            # First what says that there is a run: one that is stopped here is not to be gone on with.
            for name in (RUN_FILE, RESULT_FILE):
                (out / name).unlink(missing_ok=True)
            for name in (CHECKPOINTS, LOGS):
                shutil.rmtree(out / name, ignore_errors=True)
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


def check_output(out: Path, *, overwrite: bool = False, resumes: bool = True) -> None:
    """Refuse a folder that holds something, or a path that is no folder, before any slow work.

    Args:
        resumes: whether who is told so has a --resume.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"the output folder {out} is a file: expected a new or empty folder")
    with disk_errors(f"cannot read the output folder {out}"):
        occupied = out.is_dir() and any(
            not path.name.startswith(_STAGING_PREFIX) and path.name != LOCK_FILE for path in out.iterdir()
        )
    if occupied and not overwrite:
        raise UserError(
            f"the output folder {out} is not empty: choose another, "
            + ("go on from it with --resume, " if resumes else "")
            + "or replace its results with --overwrite"
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


def read_json(path: Path, largest: int = _LARGEST_JSON) -> Any:
    """Read JSON of any kind, whose numbers are finite.

    Raises:
        UserError: what `check_file` raises, or it is no such JSON.
    """
    check_file(path, largest)
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text, parse_float=_finite, parse_constant=_finite)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        detail = "nested too deeply" if isinstance(error, RecursionError) else error
        raise UserError(
            f"cannot read {path}, it is truncated, corrupted or of another kind: {detail}"
        ) from error


def read_object(path: Path, largest: int = _LARGEST_JSON) -> dict[str, Any]:
    """`read_json` of a file that holds an object.

    Raises:
        UserError: it does not; and what `read_json` raises.
    """
    found = read_json(path, largest)
    if not isinstance(found, dict):
        got = "null" if found is None else f"a {type(found).__name__}"
        raise UserError(f"{path} must hold a JSON object, got {got}")
    return found


def check_file(path: Path, largest: int | None = None) -> None:
    """Make sure that there is a file that can be read to its end, and that its end is near enough.

    Args:
        largest: bytes; None for any size.

    Raises:
        UserError: nothing there, a link to nowhere, a folder or a device, no permission, too large.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise UserError(f"{path} is a link to {os.readlink(path)}, which is not there") from None
        raise UserError(f"no {path.name} in {path.parent}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device or a pipe"
        raise UserError(f"{path} must be a file, got {kind}")
    if largest is not None and status.st_size > largest:
        raise UserError(f"{path} must have at most {largest:,} bytes, got {status.st_size:,}")


def fingerprints(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file in a folder, by name."""
    return {path.name: fingerprint(path) for path in sorted(folder.iterdir()) if path.is_file()}


def fingerprint(path: Path) -> str:
    """The SHA-256 of a file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value that was read from JSON is a number; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"a number must be finite, got {text}")
    return number


@contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """Turn the ways in which Python, PyTorch and safetensors report a failed write into one clear line.

    Raises:
        DiskError: the write failed.
    """
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
        raise DiskError(f"{doing}: {detail}") from error


def _is_disk_error(error: Exception) -> bool:
    if isinstance(error, OSError):
        return True
    # PyTorch raises RuntimeError and safetensors its own error, with nothing but the text to tell.
    text = str(error)
    return any(
        mark in text for mark in ("PytorchStreamWriter", "file write failed", "No space left", "I/O error")
    )

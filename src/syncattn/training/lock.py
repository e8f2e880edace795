"""One process at a time in an output folder: a lock that the system gives back when its holder dies."""

from __future__ import annotations

import errno
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import IO

from syncattn.training.errors import UserError
from syncattn.training.files import LOCK_FILE, disk_errors

# What this chain of calls holds: a run within a comparison, `train` within `resume`. Another thread has none.
_HELD: ContextVar[frozenset[Path]] = ContextVar("held", default=frozenset())


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within the block, no other process and no other thread gets the lock of this folder.

    The folder is made if it is not there, and removed again if the block leaves it empty. Of several
    processes that train together, the first one takes the lock. A holder that is killed leaves the file,
    which means nothing, but no lock; one that forks hands the lock on to its children.

    Raises:
        UserError: another holds it, and which process that is; or the folder cannot be written to.
    """
    folder = folder.expanduser().resolve()
    if folder in _HELD.get() or int(os.environ.get("RANK", "0")) != 0:
        yield
        return
    made = [path for path in (folder, *folder.parents) if not path.exists()]  # innermost first
    file = None
    try:
        with disk_errors(f"cannot write to the output folder {folder}"):
            file = _take(folder / LOCK_FILE)
        held = _HELD.set(_HELD.get() | {folder})
        try:
            yield
        finally:
            _HELD.reset(held)
    finally:
        if file is not None:
            _give_back(file, folder / LOCK_FILE)
        for path in made:
            with suppress(OSError):  # it has something in it now
                path.rmdir()


def _take(path: Path) -> IO[bytes]:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab+", buffering=0)  # not "w": what another wrote stays
        try:
            if not _lock(file):
                file.seek(0)
                holder = file.read(200).decode(errors="replace").strip() or "another process"
                raise UserError(
                    f"the output folder {path.parent} is in use by {holder}: wait until that ends, or stop it"
                )
            # Whoever held it may have removed it since it was opened here: then it is nobody's file.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    file.truncate(0)
                    file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
                    return file
        except BaseException:
            file.close()
            raise
        file.close()


def _give_back(file: IO[bytes], path: Path) -> None:
    if os.name == "posix":  # while it is held, or the next one's could be removed
        path.unlink(missing_ok=True)
        file.close()
    else:  # Windows removes no open file
        file.close()
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _lock(file: IO[bytes]) -> bool:
    """Take the lock of an open file at once; whether nobody else has it."""
    try:
        if os.name == "posix":
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            # Others cannot read what is locked there: a byte far behind the text.
            file.seek(1 << 20)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        warnings.warn(
            f"the file system of {file.name} has no locks ({error.strerror}): nothing keeps another process "
            "from training there at the same time",
            stacklevel=6,
        )
    return True

"""Before PyTorch is there: threads that sleep, a word on the screen, Ctrl-C. Imports nothing slow."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""The variables by which a user says how threads wait; any of them set is the user's word."""

_by_us = False


def let_waiting_threads_sleep() -> None:
    """Ask OpenMP, by `OMP_WAIT_POLICY=passive`, that threads which wait for others sleep at once.

    By default they spin, and where another process wants the same core, those that have work wait for those
    that have none. The runtime reads the variable once, when PyTorch is loaded: later nothing is changed, and
    what the user has set is left as it is.
    """
    global _by_us
    if "torch" not in sys.modules and not any(name in os.environ for name in WAITING):
        os.environ["OMP_WAIT_POLICY"] = "passive"
        _by_us = True


def how_threads_wait() -> str:
    """The policy in force, and who chose it, in words."""
    if _by_us:
        return "asleep (OMP_WAIT_POLICY=passive, set by syncattn)"
    found = ", ".join(f"{name}={os.environ[name]}" for name in WAITING if name in os.environ)
    if found:
        return f"as the environment says ({found})"
    return "as OpenMP does by itself: PyTorch was loaded before syncattn could set OMP_WAIT_POLICY=passive"


@contextmanager
def loading(what: str = "PyTorch", *, quiet: bool = False) -> Iterator[None]:
    """Around slow imports: a line on stderr where that is a terminal, and Ctrl-C ends the process at once."""
    first = os.environ.get("RANK", "0") == "0"  # of several processes, one speaks
    with stopped_at_once():
        if first and not quiet and "torch" not in sys.modules and sys.stderr and sys.stderr.isatty():
            sys.stderr.write(f"loading {what} ...\n")  # as one piece: Ctrl-C may come right after it
            sys.stderr.flush()
        yield


@contextmanager
def stopped_at_once() -> Iterator[None]:
    """Within the block, in which nothing may be written, Ctrl-C ends the process with a line and status 130.

    Not by KeyboardInterrupt: libraries that are being imported turn it into errors of their own, or lose it.
    Where somebody else handles the signal, or ignores it, that holds.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return
    signal.signal(signal.SIGINT, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def started() -> None:
    """From here on Ctrl-C is KeyboardInterrupt again: there is something to put in order."""
    if signal.getsignal(signal.SIGINT) is _stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _stop(number: int, frame: FrameType | None) -> None:
    with suppress(OSError):
        os.write(2, b"syncattn: stopped while it was starting; nothing was written\n")
    os._exit(130)

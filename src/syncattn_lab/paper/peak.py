"""Peak memory of calls, each measured in a process of its own that is new; see `syncattn.bench.memory`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from syncattn.bench.memory import METHOD, grown_bytes, unavailable

__all__ = ["METHOD", "peak_bytes"]
_FEW = 64  # tokens of the call that loads the libraries
_PATIENCE = 600  # seconds


def peak_bytes(function: str, cases: list[dict[str, Any]]) -> list[int] | str:
    """Peak extra bytes of one call for each case, or the reason why there are no numbers.

    Args:
        function: "module:name" of a function that takes a case's items by name, `tokens` among them, and
            returns (what to call, bytes that it holds before the call). It is called in the new process.
        cases: worked through one after the other in the one process; what a call frees goes back to the
            system at once, but for what the CPU kernel keeps for a later call: a case of another form, or a
            smaller one, could use that, and wants a process of its own.

    Returns:
        For each case the bytes held before the call plus those that came in the call.
    """
    reason = unavailable("cpu")
    if reason is not None:
        return reason
    request = {"function": function, "cases": cases, "threads": torch.get_num_threads()}
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-m", "syncattn_lab.paper.peak"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=_PATIENCE,
        env=environment,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return f"the process failed: {last}"
    return json.loads(done.stdout)


def _measure(request: dict[str, Any]) -> list[int]:
    module, _, name = request["function"].partition(":")
    make: Callable[..., tuple[Callable[[], object], int]] = getattr(import_module(module), name)
    torch.set_num_threads(request["threads"])
    found = []
    for case in request["cases"]:
        warm, _ = make(**(case | {"tokens": min(_FEW, case["tokens"])}))
        warm()
        del warm
        run, held = make(**case)
        found.append(held + grown_bytes(run))
        del run
    return found


if __name__ == "__main__":
    print(json.dumps(_measure(json.loads(sys.stdin.read()))))

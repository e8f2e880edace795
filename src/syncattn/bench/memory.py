"""Peak extra memory of one call: what is allocated beyond the inputs, output and gradients included.

On the CPU a fresh process makes the inputs, does the same on a few tokens (libraries load), lets Linux forget
its peak (writes 5 to /proc/self/clear_refs), makes the call once, and reports VmHWM minus VmRSS before. The C
library is told to return freed memory at once, so that nothing is hidden in its pools. On a GPU the allocator
itself counts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

METHOD = {
    "cpu": "fresh process, /proc/self/clear_refs, VmHWM after one call minus VmRSS before, glibc's "
    "MALLOC_MMAP_THRESHOLD_=65536",
    "cuda": "torch.cuda.max_memory_allocated after one call minus memory_allocated before",
}
_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def unavailable(device: str) -> str | None:
    """Why memory cannot be measured here, or None."""
    if device == "cuda" or os.access(_CLEAR, os.W_OK):
        return None
    return f"{_CLEAR} cannot be written: it is there on Linux only"


def peak_bytes(case: dict[str, Any], contender: str, passes: str, device: str, seconds: float) -> int | str:
    """Peak extra bytes of one call in a fresh process, or the reason why there is no number.

    Args:
        case: `Case.as_dict()`.
        seconds: limit of the whole process.
    """
    if device == "cuda":
        return _measure({"case": case, "contender": contender, "passes": passes, "device": device})
    request = {"case": case, "contender": contender, "passes": passes, "device": device, "threads": 1}
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "syncattn.bench.memory"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=seconds,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return f"it took longer than {seconds:.0f} s"
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return f"the process failed: {last}"
    answer = json.loads(done.stdout)
    return answer["bytes"] if "bytes" in answer else answer["reason"]


def _measure(request: dict[str, Any]) -> int | str:
    """Make the call here and say what it took."""
    from dataclasses import replace

    import torch

    from syncattn.bench.contenders import make
    from syncattn.bench.inputs import Case, make_inputs

    case, device, passes = Case(**request["case"]), request["device"], request["passes"]
    if device == "cpu":
        torch.set_num_threads(request["threads"])
    few = replace(case, tokens=min(case.tokens, 256))
    runners = []
    for one in (
        (few, case) if device == "cpu" else (case,)
    ):  # few tokens may be another kernel, to be compiled
        inputs = make_inputs(one, device)
        contender = make(request["contender"], one, inputs, (passes,))
        if isinstance(contender, str):
            return contender
        runners.append(contender.runner(passes, torch.ones_like(inputs.value[:, :, : one.queries])))
    warm, run = runners[0], runners[-1]
    del inputs, contender
    warm()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = run()
        torch.cuda.synchronize()
        del result
        return torch.cuda.max_memory_allocated() - before
    return grown_bytes(run)


def grown_bytes(run: Callable[[], object]) -> int:
    """How far this process' memory grew, at its peak, over what it held before the call."""
    _CLEAR.write_text("5")  # Linux forgets the peak
    before = _kilobytes("VmRSS")
    run()
    return max(0, _kilobytes("VmHWM") - before) * 1024


def _kilobytes(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    raise OSError(f"{_STATUS} has no {name}")


if __name__ == "__main__":
    found = _measure(json.loads(sys.stdin.read()))
    print(json.dumps({"reason": found} if isinstance(found, str) else {"bytes": found}))

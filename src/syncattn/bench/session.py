"""One benchmark run: its record on disk, what it has learnt about times, and what it tells the user."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch

from syncattn.backends import availability
from syncattn.backends.cpu.library import chosen_instance
from syncattn.bench import memory
from syncattn.bench.contenders import SDPA, backend_names
from syncattn.bench.inputs import DRIFT_DENSITY, SHARPNESS
from syncattn.bench.plan import BenchPlan
from syncattn.bench.timing import Clock, Runner, interleave, ratios, spread
from syncattn.training.environment import command, machine, versions
from syncattn.training.files import write_json

JSON_FILE = "bench.json"
_FLAGS: tuple[str, ...] = (
    "avx2",
    "fma",
    "avx512f",
    "avx512bw",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_bf16",
)
_FLAGS += ("asimd", "sve", "bf16")
_HEAVY_PATIENCE = 6  # a heavy contender's call may take so many budgets


class Job(NamedTuple):
    """A part of the run that stands by itself: it measures something and adds it to the session."""

    title: str
    run: Callable[[Session], None]


class Field(NamedTuple):
    """Who takes part in one measurement.

    Attributes:
        runners: what is timed, by name.
        errors: of those that were checked: relative errors, by what they are of.
        wrong: those whose result is wrong, and how.
        left_out: those that do not take part, and why.
        heavy: those that get two rounds.
        warm: seconds of a call just made, for those that need no warm-up.
        notes: what else there is to record about some.
    """

    runners: dict[str, Runner]
    errors: dict[str, dict[str, Any]]
    wrong: dict[str, str]
    left_out: dict[str, str]
    heavy: frozenset[str] = frozenset()
    warm: dict[str, float] = {}  # noqa: RUF012
    notes: dict[str, dict[str, Any]] = {}  # noqa: RUF012


@dataclass
class Session:
    """What all jobs share.

    Args:
        plan: sizes and limits.
        out: the output folder, which exists.
        tell: is given every finished entry.
    """

    plan: BenchPlan
    out: Path
    tell: Callable[[dict[str, Any]], None] = lambda entry: None
    record: dict[str, Any] = field(default_factory=dict)
    seen: dict[tuple, tuple[int, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.clock = Clock(self.plan.device)
        self.backends = backend_names(self.plan.device)
        self.record = {
            "format": 1,
            "status": "running",
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": command(),
            "machine": machine() | {"flags": _cpu_flags(), "all_cores": os.cpu_count()},
            "versions": versions(),
            "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
            "environment": {
                n: os.environ[n] for n in sorted(os.environ) if n.startswith(("OMP_", "MKL_", "KMP_"))
            },
            "backends": {
                name: {"can_run": reason is None, "why_not": reason}
                for name, reason in availability().items()
            },
            "cpu_instance": chosen_instance(),
            "preferred": self.backends[0] if self.backends else None,
            "plan": self.plan.as_dict(),
            "method": {
                "time": "contenders interleaved in one process, in rotating order; forward without "
                "gradients; median and quartiles over rounds",
                "ratio": "time over the reference's in the same round; median and quartiles over rounds",
                "density": "calibrated (closed form for Gaussian frequencies, else on a sample of rows), "
                "then counted in float64 on other random rows",
                "correctness": "every contender that computes the operator held to the eager backend in "
                "float64 on a sample of rows, gradients with a cotangent that is 0 outside of them; wrong: "
                "no number",
                "memory": memory.METHOD[self.plan.device],
                "sharpness": SHARPNESS,
                "drift": f"content of density {DRIFT_DENSITY} inside the window",
            },
            "seconds": 0.0,
            "entries": [],
            "memory": [],
        }
        if self.clock.cuda:
            self.record["method"]["gpu"] = (
                "CUDA events around as many calls in a row as take 20 ms, 200 at most; graph: replayed as a "
                "CUDA graph, without the time that Python takes to launch"
            )
        self.begun = time.perf_counter()

    @property
    def preferred(self) -> str | None:
        """Our backend that a user gets when asking for none."""
        return self.record["preferred"]

    @property
    def wrong(self) -> list[str]:
        """The contenders whose result was wrong, one line each."""
        return [
            f"{entry['name']}, {entry['passes']}, {threads_text(entry['threads'])}: {name}: "
            f"{result['reason']}"
            for entry in self.record["entries"]
            for name, result in entry["contenders"].items()
            if result["status"] == "wrong"
        ]

    def save(self) -> None:
        """Write the record, whole, over the last one."""
        self.record["seconds"] = round(time.perf_counter() - self.begun, 1)
        write_json(self.out / JSON_FILE, self.record)

    def too_slow(self, key: tuple, tokens: int, heavy: bool = False, exponent: float = 2.0) -> str | None:
        """Why a contender is left out, judged by what the same one (key) took at fewer tokens; or None.

        Time is taken to grow with this power of the number of tokens.
        """
        if key not in self.seen:
            return None
        before, seconds = self.seen[key]
        expected = seconds * max(1.0, (tokens / before) ** exponent)
        limit = self.plan.budget * (_HEAVY_PATIENCE if heavy else 1)
        if expected <= limit:
            return None
        return f"one call would take about {expected:.0f} s, more than {limit:.0f} s (--budget)"

    def measure(self, entry: dict[str, Any], entrants: Field, reference: str = SDPA) -> dict[str, Any]:
        """Time those who take part, and add the entry.

        Args:
            entry: suite, name, threads, passes, and what else describes it.
            reference: whose time the others' is divided by.
        """
        timed = interleave(
            entrants.runners, self.clock, self.plan.rounds, self.plan.budget, entrants.heavy, entrants.warm
        )
        results: dict[str, Any] = {}
        for name, seconds in timed.items():
            measured = [s for s in seconds if s is not None]
            result = {"status": "measured", "seconds": seconds, "time": spread(measured)}
            if reference in timed:
                result["ratio"] = spread(ratios(seconds, timed[reference]))
            if name in entrants.errors:
                result["errors"] = entrants.errors[name]
            if name in entrants.notes:
                result["note"] = entrants.notes[name]
            results[name] = result
        for name, reason in entrants.wrong.items():
            wrong = {"status": "wrong", "reason": reason, "errors": entrants.errors.get(name, {})}
            results[name] = results.get(name, {}) | wrong
        for name, reason in entrants.left_out.items():
            results[name] = {"status": "left out", "reason": reason}
        entry = entry | {"reference": reference, "contenders": results}
        self.record["entries"].append(entry)
        self.save()
        self.tell(entry)
        return entry

    def measure_memory(self, entry: dict[str, Any], contender: str, found: int | str) -> None:
        """Add a peak, in bytes, or the reason why there is none."""
        got = {"bytes": None, "reason": found} if isinstance(found, str) else {"bytes": found, "reason": None}
        entry = entry | {"contender": contender} | got
        self.record["memory"].append(entry)
        self.save()
        self.tell(entry)


def threads_text(threads: int) -> str:
    """1 thread, 2 threads."""
    return f"{threads} thread{'s' if threads != 1 else ''}"


def set_threads(threads: int) -> None:
    """Of PyTorch's operators, ours included."""
    torch.set_num_threads(threads)


def out_of_memory(error: BaseException) -> bool:
    """Whether this is how Python or PyTorch say that memory has run out."""
    return isinstance(error, MemoryError) or any(
        text in str(error) for text in ("not enough memory", "out of memory", "can't allocate memory")
    )


def _cpu_flags() -> list[str]:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                have = set(line.partition(":")[2].split())
                return [flag for flag in _FLAGS if flag in have]
    except OSError:
        pass
    return []

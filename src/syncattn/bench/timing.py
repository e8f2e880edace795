"""Times: contenders interleaved in one process, and what their rounds say."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median, quantiles
from typing import Any

import torch

Runner = Callable[[], object]
_SHORTEST = 2e-3  # seconds: a shorter call is repeated inside one measurement
MOST_REPEATS = 200
_SHORTEST_QUEUE = 2e-2  # the same on a GPU, where calls queue: so long that launching the first is no part
_LONG = 0.5  # seconds: after a call so long nothing is left to warm up


class Clock:
    """Seconds of one call, on the CPU by the clock, on a GPU by its own events.

    Args:
        device: "cpu" or "cuda".
    """

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"

    def seconds(self, run: Runner, repeats: int = 1) -> float:
        """Mean seconds of one of `repeats` calls."""
        if not self.cuda:
            begin = time.perf_counter()
            for _ in range(repeats):
                run()
            return (time.perf_counter() - begin) / repeats
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begun.record()
        for _ in range(repeats):
            run()
        ended.record()
        torch.cuda.synchronize()
        return begun.elapsed_time(ended) / 1000 / repeats


def interleave(
    runners: dict[str, Runner],
    clock: Clock,
    rounds: int,
    budget: float,
    few: frozenset[str] = frozenset(),
    warm: dict[str, float] | None = None,
) -> dict[str, list[float | None]]:
    """Time every runner once a round, in rotating order, after one call of each to warm up.

    Args:
        rounds: at most so many.
        budget: seconds for one runner's measurements, warm-up not counted. One that has spent them sits out
            the remaining rounds (None), but has been timed twice at least.
        few: those that are timed in two rounds only.
        warm: seconds of a call just made; where it was a long one, it is the warm-up.

    Returns:
        Seconds per call, by name and round.
    """
    repeats, spent = {}, dict.fromkeys(runners, 0.0)
    for name, run in runners.items():
        known, shortest = (warm or {}).get(name, 0.0), _SHORTEST
        if clock.cuda:  # a first call compiles: it says nothing about the next, and warms nothing up
            run()
            known, shortest = 0.0, _SHORTEST_QUEUE
        once = known if known > _LONG else clock.seconds(run)
        if once < shortest or clock.cuda:  # the first call of all may be slow for reasons of its own
            once = min(once, clock.seconds(run))
        repeats[name] = min(MOST_REPEATS, max(1, round(shortest / max(once, 1e-9))))
    found: dict[str, list[float | None]] = {name: [] for name in runners}
    names = list(runners)
    for number in range(rounds if names else 0):
        start = number % len(names)
        timed: dict[str, float] = {}
        for name in names[start:] + names[:start]:
            if number >= 2 and (name in few or spent[name] > budget):
                continue
            timed[name] = clock.seconds(runners[name], repeats[name])
            spent[name] += timed[name] * repeats[name]
        for name in names:
            found[name].append(timed.get(name))
    return found


def spread(values: list[float]) -> dict[str, Any]:
    """Median, quartiles and number of some measurements."""
    low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else (values[0],) * 3
    return {"median": median(values), "quartiles": [low, high], "count": len(values)}


def spread_text(found: dict[str, Any]) -> str:
    """A median with its quartiles: 0.53 (0.52 to 0.54)."""
    low, high = found["quartiles"]
    digits = 3 if found["median"] < 0.1 else 2 if found["median"] < 10 else 1
    return f"{found['median']:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def ratios(above: list[float | None], below: list[float | None]) -> list[float]:
    """Round by round, one contender's time over another's, where both were timed."""
    return [a / b for a, b in zip(above, below) if a is not None and b is not None]

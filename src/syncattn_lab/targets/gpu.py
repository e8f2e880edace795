"""The project's targets for the GPU kernels, and what a record says about them."""

from __future__ import annotations

from statistics import median
from typing import Any

from syncattn.bench.contenders import FLASH, GRAPH, SDPA
from syncattn.bench.timing import ratios, spread

# Time over that of the faster of SDPA and FlashAttention, by the beginning of the case's name.
TIMES = (("dense", 1.0), ("25 %", 0.40), ("5 %", 0.15))
WINDOW, WINDOW_TOKENS, WINDOW_TIME = "window 512", 32768, 0.08
CACHE, CACHE_TIME, CACHE_BYTES = 32768, 0.65, 0.65
GROWTH = 1.1


def rows(record: dict[str, Any]) -> list[list[str]]:
    """One row per target and case: target, setting, wanted, measured (median, quartiles), met."""
    ours, found = str(record["preferred"]), []
    for entry in record["entries"]:
        bound = _bound(entry)
        if bound is not None:
            found += _row(entry, ours, bound) + _bytes_rows(entry, ours)
    return found + _memory_rows(record, ours)


def _bound(entry: dict[str, Any]) -> float | None:
    name, case = entry["name"], entry["case"]
    if entry["suite"] == "gpu-decode":
        return CACHE_TIME if case["tokens"] == CACHE else None
    if entry["suite"] not in ("gpu-64", "gpu-128"):
        return None
    if WINDOW in name:
        return WINDOW_TIME if case["tokens"] == WINDOW_TOKENS else None
    return next((bound for start, bound in TIMES if name.startswith(start)), None)


def _row(entry: dict[str, Any], ours: str, bound: float) -> list[list[str]]:
    contenders, case = entry["contenders"], entry["case"]
    graph = GRAPH if any(name.endswith(GRAPH) for name in contenders) else ""
    title = f"{entry['name']}, {entry['passes']}" + (", CUDA graph" if graph else "")
    if entry["suite"] != "gpu-decode":  # where the name has both
        title = f"{entry['name']}, d {case['head_dim']}, N {case['tokens']}, {entry['passes']}"
    result = contenders.get(ours + graph, {"status": "absent"})
    rivals = {
        name: contenders[name]["seconds"]
        for name in (SDPA + graph, FLASH + graph)
        if contenders.get(name, {}).get("status") == "measured"
    }
    if "seconds" not in result or not rivals:
        why = "no rival" if "seconds" in result else result["status"]
        return [[title, "GPU", f"<= {bound:g}", why, "no"]]
    best = min(rivals, key=lambda name: median(s for s in rivals[name] if s is not None))
    ratio = spread(ratios(result["seconds"], rivals[best]))
    low, high = ratio["quartiles"]
    measured = f"{ratio['median']:.3g} ({low:.3g} to {high:.3g}) × {best.removesuffix(GRAPH)}"
    if result["status"] == "wrong":  # timed all the same, by --time-wrong: no target is met
        return [[title, "GPU", f"<= {bound:g}", f"WRONG, {measured}", "no"]]
    return [[title, "GPU", f"<= {bound:g}", measured, "yes" if ratio["median"] <= bound else "no"]]


def _bytes_rows(entry: dict[str, Any], ours: str) -> list[list[str]]:
    """What decoding reads of the cache over what SDPA reads, by the pairs that were counted: frequencies in
    float32 of all senders, values of 2 bytes of those that lock."""
    case, counted = entry["case"], entry.get("counted") or {}
    if entry["suite"] != "gpu-decode" or ours not in entry["contenders"] or "density" not in counted:
        return []
    read = 4 * case["freq_dim"] + 2 * case["head_dim"] * counted["density"]
    share = read / (4 * case["head_dim"])
    title, text = f"{entry['name']}: bytes read of the cache", f"{share:.3g} (counted, not timed)"
    return [[title, "GPU", f"<= {CACHE_BYTES:g}", text, "yes" if share <= CACHE_BYTES else "no"]]


def _memory_rows(record: dict[str, Any], ours: str) -> list[list[str]]:
    found = []
    measured = [e for e in record["memory"] if e["suite"] == "gpu-memory" and e["bytes"]]
    for name in dict.fromkeys(each["name"] for each in measured):
        points = [(e["tokens"], e["bytes"]) for e in measured if (e["name"], e["contender"]) == (name, ours)]
        if len(points) < 2:
            continue
        (few, small), (many, large) = points[0], points[-1]
        growth = large / small / (many / few)
        title = f"{name}: peak memory from N {few} to {many} over linear growth, forward+backward"
        text = f"{growth:.2f} ({large / many / 1024:.1f} KiB a token at {many})"
        found.append([title, "GPU", f"<= {GROWTH}", text, "yes" if growth <= GROWTH else "no"])
    return found

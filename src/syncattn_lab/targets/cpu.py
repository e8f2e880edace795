"""The project's targets for the CPU kernel, and what a record says about them."""

from __future__ import annotations

from typing import Any

from syncattn.bench.contenders import PUBLISHED
from syncattn.bench.models import OSN, STEP
from syncattn.bench.operators import LAYER_FREQ_DIM
from syncattn.bench.plan import BACKWARD, FORWARD
from syncattn.bench.session import threads_text
from syncattn.bench.timing import ratios, spread, spread_text

# Time over SDPA's at N 4096, d 64, m 8, of the layer's form m 16: the name's beginning, then by pass.
TABLE = (
    ("layer", 0.18, 0.15),
    ("dense, symmetric, bf16", 0.95, 0.60),
    ("dense", 0.50, 0.42),
    ("25 %", 0.38, 0.33),
    ("5 %", 0.16, 0.14),
    ("1 %", 0.08, 0.07),
    ("causal, window 128", 0.10, 0.10),
)
SIZES = {"tokens": 4096, "head_dim": 64, "freq_dim": 8}
LAYER_SIZES = SIZES | {"freq_dim": LAYER_FREQ_DIM}
GROWTH, FASTER_THAN_PUBLISHED = 1.1, 40.0


def rows(record: dict[str, Any]) -> list[list[str]]:
    """One row per target and setting: what is wanted, what was measured (median, quartiles), whether met."""
    ours = record["preferred"]
    found = []
    for entry in record["entries"]:
        found += _operator_rows(entry, ours) if entry["suite"] == "table" else []
    for entry in record["entries"]:
        if entry["suite"] == "scaling" and entry["name"].endswith(f", {ours}"):
            found += _growth_rows(entry)
    found += _memory_rows(record, ours)
    for entry in record["entries"]:
        if entry["suite"] == "tokens" and PUBLISHED in entry["contenders"]:
            found += _published_rows(entry, ours)
        elif entry["passes"] == STEP:
            found.append(_row(entry["name"], entry, "< 1", entry["contenders"][OSN], 1.0))
        elif entry["suite"] == "decode":
            name = OSN if OSN in entry["contenders"] else ours
            title = entry["name"] if name == OSN else f"decoding, operator, {entry['name']}"
            result = entry["contenders"].get(name, {"status": "absent"})
            found.append(_row(title, entry, "<= 1", result, 1.0))
    return found


def bounds(record: dict[str, Any]) -> dict[str, list[list[float]]]:
    """The table's targets by pass: [density, most time over SDPA's], where the record is of their sizes."""
    suites = ("table", "variants")
    cases = [
        e["case"] for e in record["entries"] if e["suite"] in suites and e["case"].get("structure") != "layer"
    ]
    if not cases or any(cases[0][name] != size for name, size in SIZES.items()):
        return {}
    found: dict[str, list[list[float]]] = {FORWARD: [], BACKWARD: []}
    for name, forward, backward in TABLE:
        centre = 0.95 if name == "dense" else float(name.split()[0]) / 100 if name[0].isdigit() else None
        if centre is not None:
            found[FORWARD].append([centre, forward])
            found[BACKWARD].append([centre, backward])
    return found


def _operator_rows(entry: dict[str, Any], ours: str | None) -> list[list[str]]:
    sizes = LAYER_SIZES if entry["case"].get("structure") == "layer" else SIZES
    if any(entry["case"][name] != size for name, size in sizes.items()):
        return []  # the targets are stated for these sizes only
    for name, forward, backward in TABLE:
        if entry["name"] == name or entry["name"].startswith(name + ", "):
            bound = {FORWARD: forward, BACKWARD: backward}[entry["passes"]]
            result = entry["contenders"].get(str(ours), {"status": "absent"})
            title = f"{entry['name']}, {entry['passes']}"
            return [_row(title, entry, f"<= {bound:.2f}", result, bound)]
    return []


def _row(title: str, entry: dict[str, Any], wanted: str, result: dict[str, Any], bound: float) -> list[str]:
    if result["status"] != "measured" or "ratio" not in result:
        return [title, threads_text(entry["threads"]), wanted, result["status"], "no"]
    ratio = result["ratio"]
    return [title, threads_text(entry["threads"]), wanted, spread_text(ratio), _yes(ratio["median"] <= bound)]


def _growth_rows(entry: dict[str, Any]) -> list[list[str]]:
    tokens = list(entry["tokens"].values())
    first, *_, last = entry["tokens"]
    title = f"time from N {tokens[0]} to {tokens[-1]} over linear growth, {entry['passes']}"
    result = entry["contenders"].get(last, {"status": "absent"})
    if result["status"] != "measured" or entry["contenders"][first]["status"] != "measured":
        return [[title, threads_text(entry["threads"]), f"<= {GROWTH}", result["status"], "no"]]
    linear = tokens[-1] / tokens[0]
    growth = spread([r / linear for r in ratios(result["seconds"], entry["contenders"][first]["seconds"])])
    met = _yes(growth["median"] <= GROWTH)
    return [[title, threads_text(entry["threads"]), f"<= {GROWTH}", spread_text(growth), met]]


def _memory_rows(record: dict[str, Any], ours: str | None) -> list[list[str]]:
    points = [
        (each["tokens"], each["bytes"])
        for each in record["memory"]
        if each["suite"] == "scaling" and each["contender"] == ours and each["bytes"]
    ]
    if len(points) < 2:
        return []
    (few, small), (many, large) = points[0], points[-1]
    growth = large / small / (many / few)
    title = f"peak extra memory from N {few} to {many} over linear growth, {BACKWARD}"
    measured = f"{growth:.2f} ({large / many / 1024:.1f} KiB a token at {many})"
    return [[title, threads_text(1), f"<= {GROWTH}", measured, _yes(growth <= GROWTH)]]


def _published_rows(entry: dict[str, Any], ours: str | None) -> list[list[str]]:
    if entry["case"]["tokens"] != SIZES["tokens"]:
        return []
    title = f"published formulation's time over ours, N {SIZES['tokens']}, {entry['passes']}"
    theirs, mine = entry["contenders"][PUBLISHED], entry["contenders"].get(str(ours), {"status": "absent"})
    wanted = f">= {FASTER_THAN_PUBLISHED:g}"
    for result in (theirs, mine):
        if result["status"] != "measured":
            return [[title, threads_text(entry["threads"]), wanted, result["status"], "no"]]
    faster = spread(ratios(theirs["seconds"], mine["seconds"]))
    met = _yes(faster["median"] >= FASTER_THAN_PUBLISHED)
    return [[title, threads_text(entry["threads"]), wanted, spread_text(faster), met]]


def _yes(met: bool) -> str:
    return "yes" if met else "no"

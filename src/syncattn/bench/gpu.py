"""The suites of the GPU: values in bf16, frequencies in float32, against FlashAttention and FlexAttention.

    syncattn bench --device cuda --out runs/gpu

Compiling takes most of the time of a first run. What was measured so far: docs/kernel-gpu.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from syncattn.bench import generating
from syncattn.bench.contenders import ADASPLASH, FLASH, FLEX, GRAPH, SDPA, SSA_FLEX
from syncattn.bench.inputs import Case
from syncattn.bench.operators import job, memory_job, percent
from syncattn.bench.plan import BACKWARD, FORWARD, BenchPlan
from syncattn.bench.session import Job

HEAD_DIMS = (64, 128)
ANCHOR_TILES = (0.25, 0.1, 0.05, 0.01)
_LAYER = {"is_causal": True, "frame": "nearest", "self_coupling": False}
_DECODED = 4  # sequences decoded together


def cases(plan: BenchPlan, tokens: int, head_dim: int) -> list[Case]:
    """Dense, shares of the tiles, a causal window, and the layer's form in that window."""
    sizes = {"tokens": tokens, "heads": plan.gpu_heads, "head_dim": head_dim, "freq_dim": plan.freq_dim}
    base = Case(name="dense", dtype="mixed", density=plan.densities[0], **sizes)  # type: ignore[arg-type]
    found = [base]
    for share in plan.gpu_tiles:
        name = f"{percent(share)} of the tiles"
        found.append(replace(base, name=name, structure="segments", tiles=share, density=None))
    drift = replace(base, structure="drift", window=plan.gpu_window, density=None)
    found.append(replace(drift, name=f"causal, window {plan.gpu_window}", is_causal=True))
    found.append(replace(drift, name=f"layer, window {plan.gpu_window}", **_LAYER))  # type: ignore[arg-type]
    return found


def other_cases(plan: BenchPlan) -> list[Case]:
    """What `cases` leaves out, at the first N alone: more coordinates, half of the tiles, float32 values."""
    dense, quarter, *_, layer = cases(plan, plan.gpu_tokens[0], HEAD_DIMS[0])
    more = {"freq_dim": 2 * plan.freq_dim}
    named = [
        (dense, f"dense, m {more['freq_dim']}", more),
        (layer, f"{layer.name}, m {more['freq_dim']}", more),
        (quarter, "50 % of the tiles", {"tiles": 0.5}),
        (dense, "dense, float32", {"dtype": "fp32"}),
        (quarter, f"{quarter.name}, float32", {"dtype": "fp32"}),
    ]
    return [replace(case, name=name, **changed) for case, name, changed in named]  # type: ignore[arg-type]


def decode_cases(plan: BenchPlan, keys: int, head_dim: int) -> list[Case]:
    """One query of each sequence: every key in reach, 5 % of them, and the layer's form in its window."""
    dense, *_, layer = cases(plan, keys, head_dim)
    chosen = (dense, replace(dense, name="5 %", density=0.05), layer)
    one = {"queries": 1, "batch": _DECODED}
    name = f", d {head_dim}, {keys} cached"
    return [replace(each, name=each.name + name, **one) for each in chosen]  # type: ignore[arg-type]


def anchor_cases(plan: BenchPlan) -> list[Case]:
    """The most wanted first: values 64 wide over the tiles that lock, causal tiles, values 128 wide.

    What is dense comes at the second N first: who is slow there is left out at the first.
    """
    dense, tiled, windows = {}, {}, {}
    for tokens in plan.gpu_tokens[:2]:
        dense[tokens], quarter, *_, windows[tokens], _ = cases(plan, tokens, HEAD_DIMS[0])
        for share in ANCHOR_TILES:
            tiled[tokens, share] = replace(quarter, name=f"{percent(share)} of the tiles", tiles=share)
    large, small = plan.gpu_tokens[0], plan.gpu_tokens[:2][-1]
    found = [tiled[small, 0.25], tiled[large, 0.25], windows[large], dense[small], dense[large]]
    found += [tiled[tokens, share] for share in (0.05, 0.1) for tokens in (large, small)]
    found += [tiled[large, 0.01], windows[small]]  # of fewer tokens 1 % is less than a segment a class
    for tokens, head_dim, causal in (
        (small, 64, True),
        (small, 128, False),
        (large, 128, False),
    ):
        _, quarter, *_ = cases(plan, tokens, head_dim)
        name = f"25 % of the tiles{', causal' if causal else ''}, d {head_dim}"
        found.append(replace(quarter, name=name, tiles=0.25, is_causal=causal))
    return list(dict.fromkeys(found))


def jobs(plan: BenchPlan, backends: list[str]) -> Iterator[tuple[str, list[Job]]]:
    """(suite, its jobs), wanted or not; backends: ours that can run, the preferred first."""
    threads, ours = plan.threads[0], backends[:1]
    names, both = [SDPA, FLASH, *ours], (FORWARD, BACKWARD)
    for head_dim in HEAD_DIMS:
        suite = f"gpu-{head_dim}"
        over_tokens = [case for tokens in plan.gpu_tokens for case in cases(plan, tokens, head_dim)]
        over_tokens += other_cases(plan) if head_dim == HEAD_DIMS[0] else []
        yield suite, [job(suite, case, names, threads, both) for case in over_tokens]

    cached = [c for keys in plan.gpu_cache for width in HEAD_DIMS for c in decode_cases(plan, keys, width)]
    graphs = [name + GRAPH for name in names]  # a failed capture may disturb what comes after: these are last
    yield (
        "gpu-decode",
        [job("gpu-decode", case, each, threads, (FORWARD,)) for each in (names, graphs) for case in cached],
    )

    growing = []
    for tokens in sorted(plan.gpu_tokens):
        dense, *_, layer = cases(plan, tokens, HEAD_DIMS[0])
        growing += [memory_job("gpu-memory", case, [SDPA, *ours]) for case in (dense, layer)]
    yield "gpu-memory", growing
    yield generating.SUITE, list(generating.jobs(plan))

    anchors = [*names, SSA_FLEX, ADASPLASH]
    yield "gpu-anchors", [job("gpu-anchors", c, anchors, threads, both) for c in anchor_cases(plan)]

    masked = []  # FlexAttention takes longest to compile: the most wanted cases alone
    for head_dim in HEAD_DIMS:
        _, quarter, *_, window, _ = cases(plan, plan.gpu_tokens[0], head_dim)
        for case in (window, quarter):
            named = replace(case, name=f"{case.name}, d {head_dim}")
            masked.append(job("gpu-flex", named, [SDPA, FLASH, *ours, FLEX], threads, both))
    yield "gpu-flex", masked

"""The suite of the GPU: values in bf16, frequencies in float32, against FlashAttention and FlexAttention.

    syncattn bench --device cuda --out runs/gpu        under ten minutes on one GPU

Not yet run on one: docs/kernel.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from syncattn.bench.contenders import FLASH, FLEX, SDPA
from syncattn.bench.inputs import Case
from syncattn.bench.operators import job
from syncattn.bench.plan import BACKWARD, FORWARD, Plan
from syncattn.bench.session import Job

_LAYER = {"is_causal": True, "frame": "nearest", "self_coupling": False}


def cases(plan: Plan) -> list[Case]:
    """For each N: dense, sparse without an order to it, and the layer's form in a window."""
    found = []
    for tokens in plan.gpu_tokens:
        sizes = {"tokens": tokens, "heads": plan.heads, "head_dim": plan.head_dim, "freq_dim": plan.freq_dim}
        base = Case(name="", dtype="mixed", **sizes)  # type: ignore[arg-type]
        found.append(replace(base, name="dense", density=plan.densities[0]))
        found.append(replace(base, name="5 %", density=0.05))
        window = replace(base, structure="drift", window=plan.window)
        found.append(replace(window, name=f"causal, window {plan.window}", is_causal=True))
        found.append(replace(window, name=f"layer, window {plan.window}", **_LAYER))  # type: ignore[arg-type]
    return found


def jobs(plan: Plan, backends: list[str]) -> Iterator[tuple[str, list[Job]]]:
    """(suite, its jobs); backends: ours that can run, the preferred first."""
    threads, names = plan.threads[0], [SDPA, FLASH, *backends[:1]]
    timed = []
    for case in cases(plan):
        # FlexAttention takes longest to compile: only where its mask makes it more than FlashAttention
        in_window = case.is_causal and case.frame == "absolute"
        rivals = [*names, FLEX] if in_window else names
        timed.append(job("gpu", case, rivals, threads, (FORWARD, BACKWARD)))
    for case in cases(plan):
        cached = replace(case, name=f"{case.name}, one query", queries=1, batch=4)
        if case.frame == "nearest" or not case.is_causal:
            timed.append(job("gpu", cached, names, threads, (FORWARD,)))
    yield "gpu", timed

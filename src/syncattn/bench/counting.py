"""The suite "counting": what calibration, the limit in training and a density cost, beside a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from syncattn import nn as osn
from syncattn import selective_synchronization_attention
from syncattn.backends import eager
from syncattn.backends.call import Call, prepare
from syncattn.backends.select import locked_counts
from syncattn.bench.models import (
    build,
    calibrated_quietly,
    density_of,
    describe,
    operator_replaced,
    step_runner,
)
from syncattn.bench.plan import BenchPlan
from syncattn.bench.session import Field, Job, Session, set_threads

FORWARD_PASS, STEP = "forward", "training step"
# Counted beside the definition, which holds all pairs in memory, on so many first tokens.
_PREFIX = 256


def jobs(plan: BenchPlan) -> Iterator[tuple[str, list[Job]]]:
    """(suite, its jobs)."""
    size, *_ = plan.model_sizes
    found = [
        Job(f"counting, N {tokens}", partial(run_counting, size=size, tokens=tokens, threads=threads))
        for threads in plan.threads
        for tokens in plan.counting_tokens
    ]
    yield "counting", found


def run_counting(session: Session, size: tuple[int, int, int], tokens: int, threads: int) -> None:
    """Calibrate, limit and count on one sequence, beside the model's forward pass and a training step."""
    set_threads(threads)
    plan = session.plan
    generator = torch.Generator().manual_seed(plan.seed)
    model, _ = build(size, tokens, plan.device)
    # not even: words repeat in a text, and what repeats locks
    ids = torch.rand(1, tokens, generator=generator).square().mul(model.config.vocab_size)
    ids = ids.long().to(plan.device)
    calibrated_quietly(model, ids)

    def forward() -> object:
        with torch.no_grad():
            return model(ids, use_cache=False)

    runners: dict[str, Callable[[], object]] = {
        FORWARD_PASS: forward,
        STEP: step_runner(model, ids),
        "calibrate": lambda: calibrated_quietly(model, ids),
        "limit": lambda: osn.limit_density_(model, 1.0, ids),
        "count": lambda: osn.locked_density(model, ids),
    }
    name = f"counting, hidden {size[0]}, {size[1]} blocks, N {tokens}"
    described: dict[str, Any] = describe(session, "counting", name, threads, tokens, 1, size)
    described |= {"passes": "one sequence", "counted": density_of(model, ids)}
    off = miscounted(model, ids[:, :_PREFIX])
    wrong = {"count": f"{off} pairs are counted otherwise than by the definition"} if off else {}
    for one in wrong:
        del runners[one]
    session.measure(described, Field(runners, {"count": {"pairs": off}}, wrong, {}), FORWARD_PASS)


def miscounted(model: nn.Module, ids: Tensor) -> int:
    """By how many pairs the counts of a model's layers differ from the definition's S that are not 0."""
    calls: list[Call] = []

    def spy(*args: Any, return_weights: bool = False, **kwargs: Any) -> Any:
        calls.append(prepare(*args, **kwargs)._replace(return_weights=True))
        return selective_synchronization_attention(*args, **kwargs)

    with operator_replaced(spy), torch.no_grad():
        model(ids, use_cache=False)
    return sum(int(((eager.run(x)[1] > 0).sum(-1) - locked_counts(x)).abs().sum()) for x in calls)

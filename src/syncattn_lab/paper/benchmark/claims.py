"""What the paper's own benchmark shows, and what its sparse variant was for."""

from __future__ import annotations

from typing import Any

from syncattn.bench.timing import ratios, spread
from syncattn_lab.paper import judge
from syncattn_lab.paper.benchmark.figure import charts, draw, table
from syncattn_lab.paper.benchmark.measure import (
    _AGREEMENT,
    ALONE,
    BATCH,
    DENSE,
    HEADS,
    LOCKED,
    PUBLISHED,
    SDPA,
    SPARSE,
    TOP_K,
    TRAINABLE,
    TRANSFORMER,
    measure,
)
from syncattn_lab.paper.section import Drawing, Numbers, Section


def claims(numbers: Numbers) -> list[judge.Claim]:
    """What the paper's own benchmark shows, and what its sparse variant was for."""
    return [_slower(numbers), _sparse(numbers)]


def published_ratios(name: str, quantity: str) -> dict[int, float]:
    """The published A100 figures over those of the Transformer at the same N; of times for "throughput"."""
    pairs = zip(BATCH, PUBLISHED[quantity][name], PUBLISHED[quantity][TRANSFORMER])
    return {n: theirs / own if quantity == "throughput" else own / theirs for n, own, theirs in pairs}


def held_matrices(name: str) -> list[float]:
    """By how many N x N float32 matrices a published peak is above the Transformer's, for each N."""
    peaks = zip(PUBLISHED["peak"][name], PUBLISHED["peak"][TRANSFORMER])
    return [(own - theirs) / (BATCH[n] * HEADS * n * n * 4 / 2**20) for (own, theirs), n in zip(peaks, BATCH)]


def memory_ratios(rows: list[Numbers], name: str, over: str = TRANSFORMER) -> list[float]:
    """Peak over another contender's, for each N here."""
    return [row["contenders"][name]["peak_mib"] / row["contenders"][over]["peak_mib"] for row in rows]


def _times(numbers: Numbers, name: str, over: str = TRANSFORMER) -> list[dict[str, Any]]:
    """The spread of the rounds' times over another contender's, for each N here."""
    return [
        spread(ratios(row["contenders"][name]["seconds"], row["contenders"][over]["seconds"]))
        for row in numbers["rows"]
    ]


def _last_time(numbers: Numbers, name: str) -> float:
    return _times(numbers, name)[-1]["median"]


def _elements(numbers: Numbers, name: str, over: str) -> list[float]:
    """What one block's passes read or write over what another's do, at the paper's sizes."""
    mine, theirs = (numbers["counts"][each]["elements"] for each in (name, over))
    return [a / b for a, b in zip(mine, theirs)]


def _slower(numbers: Numbers) -> judge.Claim:
    rows = numbers["rows"]
    first, last = rows[0]["tokens"], rows[-1]["tokens"]
    here, there = _times(numbers, DENSE), published_ratios(DENSE, "throughput")
    kernel = _times(numbers, LOCKED, DENSE)[-1]
    more = _elements(numbers, DENSE, TRANSFORMER)
    products = (numbers["counts"][name]["products"] for name in (DENSE, TRANSFORMER))
    matrices = held_matrices(DENSE)
    least, most = min(BATCH), max(BATCH)
    checks: list[judge.Check] = [
        judge.below(
            "published block less ours, equal parameters, largest difference", _worst(rows), _AGREEMENT
        ),
        judge.above(
            "published A100: smallest time of dense OSN over the Transformer's", min(there.values()), 1.3
        ),
        judge.exactly(
            "operations of dense OSN's matrix products beyond the Transformer's, N "
            f"{least:,} to {most:,}, farthest from 0",
            max(abs(own - theirs) for own, theirs in zip(*products)),
            0,
        ),
        judge.above(
            f"elements that dense OSN's other passes move over the Transformer's, N {least:,}", more[0], 1.5
        ),
        judge.above(f"that ratio at N {most:,} over that at N {least:,}", more[-1] / more[0], 1.3),
        judge.below(
            "published A100: N x N matrices in dense OSN's peak beyond the Transformer's, farthest from 8",
            max(abs(value - 8) for value in matrices),
            0.02,
        ),
    ]
    memory = "its memory was not measured here"
    if "no_memory" not in numbers:
        ratio = memory_ratios(rows, DENSE)[-1]
        what = f"here: peak memory of dense OSN over the Transformer's, N {last}"
        checks.append(judge.between(what, ratio, 1.7, 5.0))
        ours_over_dense = memory_ratios(rows, LOCKED, DENSE)[-1]
        checks.append(
            judge.below(
                f"that of the same function by our kernel over dense OSN's, N {last}", ours_over_dense, 0.7
            )
        )
        memory = f"{ratio:.1f} times its memory here, {published_ratios(DENSE, 'peak')[last]:.1f} there"
    ours = "; ".join(f"{what}, {_last_time(numbers, name):.2f}" for name, what in _OURS_AS)
    over = "over the Transformer's, N"
    times = (
        judge.timing(f"here: time of dense OSN {over} {first}", here[0]),
        judge.timing(f"here: time of dense OSN {over} {last}", here[-1]),
        judge.timing(
            f"here: time of the same function by our kernel over the dense form's, N {last}", kernel
        ),
    )
    return judge.Claim(
        "slower-as-published",
        "Figure 3 and Table 1",
        "As published, an OSN block is slower than a Transformer block and needs more memory, the more so "
        "the longer the text.",
        judge.HOLDS,
        "The dense form makes the same matrix products, to the operation, and its other passes, over N x N "
        f"matrices most of them, move {more[0]:.1f} times the elements of the Transformer's at N = {least:,} "
        f"and {more[-1]:.1f} times at N = {most:,}. At N = {last} it takes {here[-1]['median']:.1f} times "
        f"the Transformer's time here and {there[last]:.1f} times on the A100 (N = {first}: "
        f"{here[0]['median']:.1f} and {there[first]:.1f}), and {memory}. The published peaks are "
        f"{min(matrices):.2f} to {max(matrices):.2f} N x N matrices above "
        "the Transformer's, at every N. It is the implementation, not the function: over that Transformer's "
        f"time at N = {last}: {ours}. Our trainable block, another function, takes "
        f"{_last_time(numbers, TRAINABLE):.2f}.",
        tuple(checks),
        times,
    )


_OURS_AS = (
    (LOCKED, "the same function by our kernel when every pair locks"),
    (ALONE, "the same when each locks with itself alone, as at the published initialisation"),
    (SDPA, "a Transformer with fused softmax"),
)


def _worst(rows: list[Numbers]) -> float:
    found = [row[key]["difference"] for row in rows for key in ("agreement", "agreement_top_k") if key in row]
    return max(found)


def _sparse(numbers: Numbers) -> judge.Claim:
    rows, last = numbers["rows"], numbers["rows"][-1]["tokens"]
    here = _times(numbers, SPARSE, DENSE)[-1]
    more = _elements(numbers, SPARSE, DENSE)
    figures = PUBLISHED["throughput"]
    there = [dense / sparse for dense, sparse in zip(figures[DENSE], figures[SPARSE])]
    extra = [
        (sparse - dense) * 2**20 - BATCH[n] * n * HEADS * TOP_K * 12
        for sparse, dense, n in zip(PUBLISHED["peak"][SPARSE], PUBLISHED["peak"][DENSE], BATCH)
    ]
    checks: list[judge.Check] = [
        judge.above("published A100: smallest time of top-64 over dense", min(there), 1.0),
        judge.exactly(
            "published A100: bytes of top-64's peak beyond dense's that are not the chosen values and places",
            max(abs(value) for value in extra),
            0,
        ),
        judge.above(
            f"elements that top-{TOP_K}'s passes move over dense's, least of all N to {max(BATCH):,}",
            min(more),
            1.05,
        ),
    ]
    memory = "memory was not measured here"
    if "no_memory" not in numbers:
        ratio = memory_ratios(rows, SPARSE, DENSE)[-1]
        checks.append(
            judge.between(f"here: peak memory of top-{TOP_K} over dense, N {last}", ratio, 0.98, 1.3)
        )
        memory = f"{ratio:.2f} times its memory"
    return judge.Claim(
        "sparse-variant-saves",
        "Figure 3 and Table 1",
        "Keeping only the 64 strongest partners of each token makes the OSN cheaper.",
        judge.FAILS,
        f"In the published figures top-64 is slower than dense at every N, by {min(there):.2f} to "
        f"{max(there):.2f} times, and its peak is dense's plus the chosen values and their places, 12 bytes "
        f"each, to the megabyte that is published: all of S is made first, so its passes move "
        f"{min(more):.2f} to {max(more):.2f} times the elements of dense's. Here it takes "
        f"{here['median']:.2f} times the dense form's time at N = {last} and {memory}.",
        tuple(checks),
        (judge.timing(f"here: time of top-{TOP_K} over dense, N {last}", here),),
    )


SECTION = Section(
    "benchmark",
    "Figure 3 and Table 1: the published benchmark, and ours",
    measure,
    claims,
    (Drawing("figure-3-benchmark", "Throughput, latency and peak memory against N", draw),),
    table,
    threads=None,
    charts=charts,
)

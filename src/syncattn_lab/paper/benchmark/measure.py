"""Figure 3 and Table 1: throughput, latency and peak memory of a block, beside the published A100 figures.

On the CPU, as the rest of `syncattn paper`; hence fewer trials than the paper's 10 warm-ups and 50 trials,
and ratios within each machine in place of times across machines. What a verdict hangs on is counted.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from syncattn.bench.inputs import Case, Inputs, count_locked
from syncattn.bench.timing import Clock, Runner, interleave
from syncattn.nn import OSNBlock
from syncattn_lab.paper.benchmark.blocks import (
    PublishedBlock,
    SoftmaxBlock,
    layer_of,
    lock_all,
    lock_half,
    make_block,
    published_block,
)
from syncattn_lab.paper.operations import count
from syncattn_lab.paper.peak import METHOD, peak_bytes
from syncattn_lab.paper.section import Extent, Numbers

WIDTH, HEADS, TOP_K = 512, 8, 64
BATCH = {128: 8, 256: 8, 512: 8, 1024: 4, 2048: 2, 4096: 1}
QUICK_BATCH = {128: 2, 256: 2, 512: 2}
# The published figures (A100): thousand tokens a second, and peak memory in MiB (their differences are whole
# numbers of float32 matrices only if a megabyte is 2^20 bytes).
PUBLISHED: dict[str, Any] = {
    "tokens": list(BATCH),
    "batch": list(BATCH.values()),
    "throughput": {
        "transformer": [1033, 1527, 1636, 1334, 977, 628],
        "osn_dense": [665, 1118, 950, 593, 350, 194],
        "osn_sparse": [638, 788, 700, 457, 277, 155],
    },
    "peak": {
        "transformer": [313, 353, 481, 609, 865, 1377],
        "osn_dense": [345, 481, 993, 1633, 2913, 5465],
        "osn_sparse": [351, 493, 1017, 1657, 2937, 5489],
    },
}
TRANSFORMER, SDPA, DENSE, SPARSE = "transformer", "transformer_sdpa", "osn_dense", "osn_sparse"
ALONE, LOCKED, TRAINABLE, OURS_TOP_K = "ours_alone", "ours_locked", "ours_trainable", "ours_top_k"
NAMES = (TRANSFORMER, SDPA, DENSE, SPARSE, ALONE, LOCKED, TRAINABLE)
# Ours with top_k is plain PyTorch, and slow: up to so many tokens it is checked, and timed in a full run.
_CHECKED_UP_TO, _TOP_K_UP_TO = 256, 512
_AGREEMENT = 1e-4
_COUNTED_ROWS = 64


def make(name: str, tokens: int, batch: int, seed: int) -> tuple[Callable[[], Tensor], int]:
    """(one call of a block without gradients, bytes of its parameters and of x)."""
    block, x = _kept_block(name, seed), tokens_of(tokens, batch, seed)
    held = x.nbytes + sum(p.nbytes for p in block.parameters())
    return torch.no_grad()(partial(block, x)), held


def make_named(name: str, seed: int) -> OSNBlock:
    """The block of this name, one of the constants above; all of the published form have equal parameters."""
    softmax = partial(make_block, SoftmaxBlock, WIDTH, HEADS, seed)
    of_published = partial(published_block, embed_dim=WIDTH, num_heads=HEADS, seed=seed)
    makers: dict[str, Callable[[], OSNBlock]] = {
        TRANSFORMER: lambda: softmax(fused=False),
        SDPA: lambda: softmax(fused=True),
        DENSE: lambda: of_published(PublishedBlock),
        SPARSE: lambda: of_published(PublishedBlock, top_k=TOP_K),
        ALONE: lambda: of_published(OSNBlock),
        LOCKED: lambda: lock_all(of_published(OSNBlock)),
        OURS_TOP_K: lambda: of_published(OSNBlock, top_k=TOP_K),
        TRAINABLE: lambda: make_block(OSNBlock, WIDTH, HEADS, seed),
    }
    return makers[name]()


_kept_block = cache(make_named)  # the process that measures peaks asks for each of them many times


def tokens_of(tokens: int, batch: int, seed: int) -> Tensor:
    """Random tokens (B, N, E) float32."""
    return torch.randn(batch, tokens, WIDTH, generator=torch.Generator().manual_seed(seed))


def measure(extent: Extent, tell: Callable[[str], None]) -> Numbers:
    """Agreement first, then times, then peaks in a new process."""
    batches = extent.size(BATCH, QUICK_BATCH)
    rounds, budget = extent.size(10, 5), extent.size(4.0, 0.3)
    rows = []
    for tokens, batch in batches.items():
        tell(f"benchmark: N {tokens}")
        rows.append(_row(tokens, batch, extent, rounds, budget))
    numbers: Numbers = {
        "setting": {"width": WIDTH, "heads": HEADS, "top_k": TOP_K, "device": "cpu", "dtype": "float32"}
        | {"threads": torch.get_num_threads(), "warm_ups": 1, "most_trials": rounds},
        "rows": rows,
        "counts": {name: counts(name, extent.seed) for name in (TRANSFORMER, DENSE, SPARSE)},
        "published": PUBLISHED,
    }
    tell("benchmark: peak memory, in a new process")
    cases = [
        {"name": name, "tokens": row["tokens"], "batch": row["batch"], "seed": extent.seed}
        for row in rows
        for name in row["contenders"]
    ]
    found = peak_bytes("syncattn_lab.paper.benchmark.measure:make", cases)
    if isinstance(found, str):
        return numbers | {"no_memory": found}
    places = {row["tokens"]: row["contenders"] for row in rows}
    for case, peak in zip(cases, found):
        places[case["tokens"]][case["name"]]["peak_mib"] = peak / 2**20
    return numbers | {"memory_method": METHOD["cpu"]}


@torch.no_grad()
def _row(tokens: int, batch: int, extent: Extent, rounds: int, budget: float) -> dict[str, Any]:
    """All contenders at one number of tokens."""
    seed = extent.seed
    x = tokens_of(tokens, batch, seed)
    names = NAMES + ((OURS_TOP_K,) if tokens <= extent.size(_TOP_K_UP_TO, 0) else ())
    blocks = {name: make_named(name, seed) for name in names}
    row: dict[str, Any] = {"tokens": tokens, "batch": batch}
    row["agreement"] = agreement(x[:1], seed)
    if tokens <= _CHECKED_UP_TO:  # in float64: which of two equally near senders is kept may hang on rounding
        row["agreement_top_k"] = agreement(x[:1].double(), seed, TOP_K)
    row["density"] = {name: density(blocks[name], x[:1], seed) for name in (ALONE, LOCKED, TRAINABLE)}
    runners: dict[str, Runner] = {name: partial(block, x) for name, block in blocks.items()}
    found = interleave(runners, Clock("cpu"), rounds, budget)
    row["contenders"] = {name: {"seconds": seconds} for name, seconds in found.items()}
    return row


@torch.no_grad()
def counts(name: str, seed: int) -> dict[str, list[int]]:
    """The operations of a block at all of the paper's sizes, see `Operations`; they need no memory."""
    block = make_named(name, seed).to("meta")
    found = [count(block, (batch, tokens, WIDTH)) for tokens, batch in BATCH.items()]
    return {"products": [one.products for one in found], "elements": [one.elements for one in found]}


@torch.no_grad()
def agreement(x: Tensor, seed: int, top_k: int | None = None) -> dict[str, float]:
    """The largest difference between the published block and ours with equal parameters, and the density.

    About half of the pairs lock: where all or none do, an error in which pairs lock would not show.
    """
    theirs, ours = (
        lock_half(published_block(kind, WIDTH, HEADS, seed, top_k)).to(x.dtype)
        for kind in (PublishedBlock, OSNBlock)
    )
    difference = (theirs(x) - ours(x)).abs().max()
    return {"difference": float(difference), "density": density(ours, x[:1], seed)}


@torch.no_grad()
def density(block: OSNBlock, x: Tensor, seed: int) -> float:
    """The share of the allowed pairs that lock in one of our blocks, x (1, N, E), counted on some rows."""
    call = layer_of(block).operator_call(block.norm1(x))
    case = Case("block", x.shape[1], self_coupling=call.self_coupling, frame=call.frame)
    inputs = Inputs(call.receive, call.send, call.value, call.coupling[0, :, 0], call.bandwidth)
    return count_locked(case, inputs, _COUNTED_ROWS, seed)["density"]

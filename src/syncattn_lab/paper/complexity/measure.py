"""Proposition 1, what the operator costs: operations counted exactly, processor time and memory measured.

The claims hang on counts and bytes; times are told beside them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import syncattn
from syncattn import locking
from syncattn.bench.inputs import Case, count_locked, make_inputs
from syncattn.bench.published import published_attention
from syncattn.bench.timing import Clock, Runner, interleave
from syncattn_lab.paper.operations import count, exponent
from syncattn_lab.paper.peak import peak_bytes
from syncattn_lab.paper.section import Extent, Numbers

WIDTH, TOP_K, HEADS = 64, 64, 2  # m = d and k as the paper's benchmark has them; two heads, for speed
FREQ_DIM, WINDOW, PARTNERS, DENSITY = 8, 128, 64, 0.05  # of ours
DENSE, SPARSE = "published, dense", f"published, top-{TOP_K}"
FIXED, CONTENT, ONE, DRIFT = "ours, 5 % lock", "ours, k lock, m = 8", "ours, k lock, m = 1", "ours, drift"
_OURS = (FIXED, CONTENT, ONE, DRIFT)
_COUNTED_ROWS = 64
_TILE = 64  # tokens, as the kernel's tiles of senders


class WorkClock(Clock):
    """Processor seconds of all threads of this process: what else the machine does is left out."""

    def seconds(self, run: Runner, repeats: int = 1) -> float:
        """Mean processor seconds of one of `repeats` calls."""
        begin = time.process_time()
        for _ in range(repeats):
            run()
        return (time.process_time() - begin) / repeats


def make(name: str, tokens: int, seed: int) -> tuple[Runner, int]:
    """(one call of a form without gradients, bytes of its inputs), by the names above."""
    if name in _OURS:
        run, tensors = _ours(ours_case(name, tokens), seed)
    else:
        run, tensors = _published(tokens, TOP_K if name == SPARSE else None, seed)
    return torch.no_grad()(run), sum(x.nbytes for x in tensors)


def _published(tokens: int, top_k: int | None, seed: int) -> tuple[Runner, list[Tensor]]:
    """The published operator on frequencies as wide as the head; half of the pairs lock."""
    generator = torch.Generator().manual_seed(seed)
    frequency, value = (torch.randn(1, tokens, HEADS, WIDTH, generator=generator) for _ in range(2))
    coupling, bandwidth = (x.expand(HEADS) for x in locking.calibrate(torch.tensor(0.5), WIDTH, 1.0))
    run = partial(published_attention, frequency, value, coupling, bandwidth, top_k=top_k)
    return run, [frequency, value]


def ours_case(name: str, tokens: int) -> Case:
    """The inputs of ours, one head 64 wide, weights S (power 1), two heads."""
    few = min(0.5, PARTNERS / tokens)
    fields: dict[str, dict[str, Any]] = {
        FIXED: {"density": DENSITY},
        CONTENT: {"density": few},
        ONE: {"density": few, "freq_dim": 1},
        DRIFT: {"structure": "drift", "window": WINDOW, "is_causal": True},
    }
    settings: dict[str, Any] = {"freq_dim": FREQ_DIM, "heads": HEADS, "power": 1} | fields[name]
    return Case(name, tokens, head_dim=WIDTH, **settings)


def _ours(case: Case, seed: int) -> tuple[Runner, list[Tensor]]:
    inputs = make_inputs(case, seed=seed)
    run = partial(syncattn.selective_synchronization_attention, *inputs, **case.options())
    return run, [inputs.receive, inputs.value]


def count_published(tokens: int, top_k: int | None = None) -> int:
    """Operations of the published operator for one sequence and one head."""
    frequency = (1, tokens, 1, WIDTH)
    run = partial(published_attention, top_k=top_k)
    return count(run, frequency, frequency, (1,), (1,)).total


def quadratic(counts: list[int], sizes: list[int]) -> tuple[Fraction, Fraction, Fraction]:
    """(a, b, c) with counts = a N^2 + b N + c at the first three sizes, exactly."""
    (x, y, z), (f, g, h) = (Fraction(n) for n in sizes[:3]), (Fraction(n) for n in counts[:3])
    first, second = (g - f) / (y - x), (h - g) / (z - y)
    a = (second - first) / (z - x)
    b = first - a * (x + y)
    return a, b, f - a * x * x - b * x


def measure(extent: Extent, tell: Callable[[str], None]) -> Numbers:
    """Counts, times, peaks; see the module's constants for the settings."""
    published = extent.size([512, 1024, 2048, 4096], [256, 512, 1024])
    lengths = extent.size([2048, 4096, 8192, 16384], [1024, 2048, 4096])
    drifting = extent.size([4096, 8192, 16384, 32768], [2048, 4096, 8192])
    sizes = {DENSE: published, SPARSE: published}
    sizes |= {FIXED: lengths, CONTENT: lengths, ONE: lengths, DRIFT: drifting}
    numbers: Numbers = {
        "setting": {"heads": HEADS, "head_dim": WIDTH, "top_k": TOP_K, "freq_dim": FREQ_DIM}
        | {"window": WINDOW, "partners": PARTNERS, "threads": torch.get_num_threads(), "device": "cpu"},
        "counts": _counts(),
        "sorted": _sorted(extent),
    }
    tell("complexity: times")
    numbers["series"] = {name: _series(name, sizes[name], extent) for name in sizes}
    numbers["density"] = _by_density(extent)
    tell("complexity: peak memory, in new processes")
    for name, tokens in sizes.items():
        # One for each form, small sizes first: what the kernel keeps of a call is too small for the next.
        cases = [{"name": name, "tokens": n, "seed": extent.seed} for n in tokens]
        peaks = peak_bytes("syncattn_lab.paper.complexity.measure:make", cases)
        if isinstance(peaks, str):
            numbers["no_memory"] = peaks
            return numbers
        grown = exponent(tokens[-2:], peaks[-2:])  # before, what does not grow weighs too much
        numbers["series"][name]["memory"] = {"tokens": tokens, "bytes": peaks, "exponent": grown}
    return numbers


def _series(name: str, sizes: list[int], extent: Extent) -> dict[str, Any]:
    """Seconds of one form, by size and round; of ours the pairs that it looks at as well."""
    runners: dict[str, Runner] = {str(tokens): make(name, tokens, extent.seed)[0] for tokens in sizes}
    found = interleave(runners, WorkClock("cpu"), rounds=extent.size(7, 5), budget=extent.size(5.0, 0.5))
    series: dict[str, Any] = {"tokens": sizes, "seconds": [found[str(tokens)] for tokens in sizes]}
    if name in _OURS:
        visited = [visited_pairs(ours_case(name, tokens), extent.seed) for tokens in sizes]
        series |= {"visited": visited, "visited_exponent": exponent(sizes, visited)}
        case = ours_case(name, sizes[-1])
        counted = count_locked(case, make_inputs(case, seed=extent.seed), _COUNTED_ROWS, extent.seed)
        series |= {"density": counted["of_all_pairs"], "keys_per_row": counted["keys_per_row"]}
    return series


def visited_pairs(case: Case, seed: int) -> int:
    """The pairs of those tiles of one head whose boxes are within reach of each other: others need no look.

    One coordinate is sorted first, as the kernel does. Tiles are of `_TILE` tokens on both sides; N is a
    multiple.
    """
    inputs = make_inputs(case, seed=seed)
    frequency = inputs.send[0, 0].double()
    if case.freq_dim == 1:
        frequency = frequency.sort(0).values
    radius = locking.locking_radius(inputs.coupling[0].double(), inputs.bandwidth[0].double())
    tiles = frequency.unflatten(0, (-1, _TILE))
    low, high = tiles.amin(1), tiles.amax(1)
    gap = torch.maximum(low[:, None] - high, low - high[:, None]).clamp(min=0)
    within = gap.square().sum(-1) <= radius.square()
    return int((within.tril() if case.is_causal else within).sum()) * _TILE**2


def _by_density(extent: Extent) -> dict[str, Any]:
    """Ours over the density, at one number of tokens: seconds by round, and operations for one head, 3 m to
    test a pair, be it locked or not, and 2 d to mix one that locks."""
    tokens = extent.size(4096, 2048)
    runners: dict[str, Runner] = {}
    counted = []
    for density in (0.01, 0.03, 0.1, 0.3, 0.9):
        case = Case("density", tokens, FREQ_DIM, WIDTH, HEADS, density=density, power=1)
        runners[str(density)] = torch.no_grad()(_ours(case, extent.seed)[0])
        inputs = make_inputs(case, seed=extent.seed)
        counted.append(count_locked(case, inputs, _COUNTED_ROWS, extent.seed)["density"])
    found = interleave(runners, WorkClock("cpu"), rounds=extent.size(9, 5), budget=extent.size(3.0, 0.5))
    operations = [tokens**2 * (3 * FREQ_DIM + 2 * WIDTH * density) for density in counted]
    return {
        "tokens": tokens,
        "density": counted,
        "operations": operations,
        "seconds": list(found.values()),
    }


def _counts() -> dict[str, Any]:
    """Operations for one head, at sizes far beyond what could be run, and the polynomial through them."""
    sizes = [2**n for n in range(9, 17)]  # far beyond what could be run
    found: dict[str, Any] = {"tokens": sizes}
    for name, top_k in ((DENSE, None), (SPARSE, TOP_K)):
        counts = [count_published(tokens, top_k) for tokens in sizes]
        a, b, c = quadratic(counts, sizes)
        found[name] = {
            "operations": counts,
            "quadratic": float(a),
            "linear": float(b),
            # of the polynomial through the first three sizes, at all sizes
            "misfit": float(max(abs(a * n * n + b * n + c - found) for n, found in zip(sizes, counts))),
            "last_doubling": exponent(sizes[-2:], counts[-2:]),
        }
    # what stays if the chosen k alone were mixed: everything but the second product, 2 N^2 d
    left = [c - 2 * n * n * WIDTH for n, c in zip(sizes, found[SPARSE]["operations"])]
    found["before_mixing_last_doubling"] = exponent(sizes[-2:], left[-2:])
    return found


def _sorted(extent: Extent) -> dict[str, Any]:
    """One coordinate, sorted: a token's partners are a stretch, which two searches find.

    At each size the radius is that of PARTNERS partners a token. `locked` is counted by the operator itself,
    in float64, from its N x N matrix; `visited` is the length of the stretches.
    """
    sizes = extent.size([512, 1024, 2048, 4096], [256, 512, 1024])
    generator = torch.Generator().manual_seed(extent.seed)
    visited, locked = [], []
    work: list[float] = []
    for tokens in sizes:
        w = torch.randn(tokens, generator=generator, dtype=torch.float64)
        density = torch.tensor(PARTNERS / tokens, dtype=torch.float64)
        coupling, bandwidth = locking.calibrate(density, 1, 100.0)
        radius = float(locking.locking_radius(coupling, bandwidth))
        ordered = np.sort(w.numpy())
        first = np.searchsorted(ordered, ordered - radius, side="left")
        beyond = np.searchsorted(ordered, ordered + radius, side="right")
        visited.append(int((beyond - first).sum()))
        frequency = w[None, None, :, None]
        _, sync, _ = syncattn.selective_synchronization_attention(
            frequency, frequency, frequency, coupling[None], bandwidth[None], return_weights=True
        )
        locked.append(int((sync > 0).sum()))
        # a sort and two searches; D, F and the sum of d values for each visited pair
        work.append(3 * tokens * float(np.log2(tokens)) + visited[-1] * (3 + 2 * WIDTH))
    return {
        "tokens": sizes,
        "visited": visited,
        "locked": locked,
        "difference": sum(abs(a - b) for a, b in zip(visited, locked)),
        "exponent": exponent(sizes, work),
    }

"""O(N^2 d) and O(N k d): the claims hang on counts and bytes; times are told beside them."""

from __future__ import annotations

from typing import Any

from syncattn.bench.timing import ratios, spread
from syncattn_lab.paper import judge
from syncattn_lab.paper.complexity.figure import draw
from syncattn_lab.paper.complexity.measure import (
    CONTENT,
    DENSE,
    DRIFT,
    FIXED,
    FREQ_DIM,
    ONE,
    PARTNERS,
    SPARSE,
    WIDTH,
    WINDOW,
    measure,
)
from syncattn_lab.paper.operations import exponent_of_times
from syncattn_lab.paper.section import Drawing, Numbers, Section


def claims(numbers: Numbers) -> list[judge.Claim]:
    """O(N^2 d) and O(N k d)."""
    return [_dense(numbers), _sparse(numbers)]


def _memory_checks(numbers: Numbers, name: str, low: float, high: float) -> list[judge.Check]:
    if "no_memory" in numbers:
        return []
    found = numbers["series"][name]["memory"]["exponent"]
    return [judge.between(f"{name}: exponent of the peak memory, last doubling of N", found, low, high)]


def _memory_text(numbers: Numbers, name: str) -> str:
    if "no_memory" in numbers:
        return "was not measured here"
    return f"grows with exponent {numbers['series'][name]['memory']['exponent']:.2f}"


def _exponent(numbers: Numbers, name: str, first: int = 0) -> dict[str, Any]:
    """The spread of a form's exponent of time, from the size with this index on."""
    series = numbers["series"][name]
    return exponent_of_times(series["tokens"][first:], series["seconds"][first:])


def _dense(numbers: Numbers) -> judge.Claim:
    counts, series = numbers["counts"][DENSE], numbers["series"][DENSE]
    whole, doubling = _exponent(numbers, DENSE), _exponent(numbers, DENSE, -2)
    passes = counts["quadratic"] - 4 * WIDTH
    return judge.Claim(
        "dense-complexity",
        "Proposition 1",
        "Dense SSA costs O(N² d) operations: quadratic in the number of tokens.",
        judge.HOLDS,
        f"Operations of the published form for one head, counted: {counts['quadratic']:g} N² + "
        f"{counts['linear']:g} N at d = {WIDTH}, plus a constant; {4 * WIDTH} of the "
        f"{counts['quadratic']:g} are two matrix products (4 d), {passes:g} passes over N x N matrices. "
        f"Processor time grows with exponent {whole['median']:.2f} for N from {series['tokens'][0]} to "
        f"{series['tokens'][-1]} ({doubling['median']:.2f} in the last doubling), and peak memory "
        f"{_memory_text(numbers, DENSE)}.",
        (
            judge.exactly("operations that are not a N² + b N + c, at eight sizes", counts["misfit"], 0),
            judge.between("exponent of the operations, last doubling", counts["last_doubling"], 1.99, 2.0),
            *_memory_checks(numbers, DENSE, 1.8, 2.05),
        ),
        (judge.timing("exponent of the time, last doubling", doubling),),
    )


def _sparse(numbers: Numbers) -> judge.Claim:
    counts, series = numbers["counts"], numbers["series"]
    top_k, drift, one, content = counts[SPARSE], series[DRIFT], series[ONE], series[CONTENT]
    grows = {name: _exponent(numbers, name) for name in (SPARSE, DRIFT, ONE, CONTENT)}
    by_density, stretch = numbers["density"], numbers["sorted"]
    density = by_density["density"]
    share = spread(ratios(by_density["seconds"][0], by_density["seconds"][-1]))
    cheaper = by_density["operations"][0] / by_density["operations"][-1]
    return judge.Claim(
        "sparse-complexity",
        "Proposition 1",
        "With k partners for each token SSA costs O(N k d) operations: linear in the number of tokens.",
        judge.HOLDS_IF,
        "It holds if a token's partners are known without testing every pair. The published top-k tests "
        f"them all: it makes D and S before it chooses, {top_k['quadratic']:g} N² operations for one head "
        f"({counts[DENSE]['quadratic']:g} N² dense); its time grows with exponent "
        f"{grows[SPARSE]['median']:.2f}, its peak memory {_memory_text(numbers, SPARSE)}. Ours with a "
        f"drifting frequency and a window of {WINDOW} tokens looks at pairs, tile by tile, whose number "
        f"grows with exponent {drift['visited_exponent']:.2f} up to N = {drift['tokens'][-1]:,}, its time "
        f"with {grows[DRIFT]['median']:.2f}, and its peak memory {_memory_text(numbers, DRIFT)}. With one "
        f"coordinate the tokens can be sorted: then exactly the {stretch['locked'][-1]:,} locked of "
        f"{stretch['tokens'][-1]:,}² pairs are visited (in tiles, as our kernel does: exponent "
        f"{one['visited_exponent']:.2f}, of its time {grows[ONE]['median']:.2f}). With {FREQ_DIM} "
        f"coordinates of content and {PARTNERS} partners tiles are within reach of each other, exponent "
        f"{content['visited_exponent']:.2f} (time {grows[CONTENT]['median']:.2f}): pairs have to be tested "
        f"to find those that lock. A test is cheap: with {density[0]:.1%} of the pairs "
        f"locked a call makes {cheaper:.2f} of the operations, and takes {share['median']:.2f} of the time, "
        f"of one with {density[-1]:.0%}. "
        "How the cost grows with k and d was not varied.",
        (
            judge.exactly(
                "top-k: operations that are not a N² + b N + c, at eight sizes", top_k["misfit"], 0
            ),
            judge.between(
                "top-k: exponent of the operations, last doubling", top_k["last_doubling"], 1.99, 2.0
            ),
            judge.between(
                "top-k, were the k partners alone mixed: exponent of the operations, last doubling",
                counts["before_mixing_last_doubling"],
                1.99,
                2.0,
            ),
            judge.above("top-k: operations over those of the dense form", _over_dense(counts), 1.0),
            *_memory_checks(numbers, SPARSE, 1.8, 2.05),
            judge.between(
                f"drift, window {WINDOW}: exponent of the pairs looked at",
                drift["visited_exponent"],
                0.9,
                1.1,
            ),
            *_memory_checks(numbers, DRIFT, 0.85, 1.15),
            *_memory_checks(numbers, FIXED, 0.85, 1.15),
            judge.exactly("one coordinate, sorted: visited less locked pairs", stretch["difference"], 0),
            judge.between(
                "one coordinate, sorted: exponent of the operations", stretch["exponent"], 0.9, 1.1
            ),
            judge.between(
                "one coordinate, in tiles: exponent of the pairs looked at", one["visited_exponent"], 0.9, 1.1
            ),
            judge.between(
                f"{FREQ_DIM} coordinates, in tiles: exponent of the pairs looked at",
                content["visited_exponent"],
                1.9,
                2.1,
            ),
            judge.below("ours: operations at density .01 over those at .9", cheaper, 0.5),
        ),
        (
            judge.timing("top-k: exponent of the time, last doubling", _exponent(numbers, SPARSE, -2)),
            judge.timing(f"drift, window {WINDOW}: exponent of the time", grows[DRIFT]),
            judge.timing("one coordinate, our kernel: exponent of the time", grows[ONE]),
            judge.timing("ours: time at density .01 over that at .9", share),
        ),
    )


def _over_dense(counts: Numbers) -> float:
    return counts[SPARSE]["operations"][-1] / counts[DENSE]["operations"][-1]


SECTION = Section(
    "complexity",
    "Proposition 1: operations, time and memory against the number of tokens",
    measure,
    claims,
    (Drawing("complexity", "Time and memory against N, time against density", draw),),
)

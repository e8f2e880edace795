"""What several texts in one row cost beside a batch of them: the operator, by default on `cpu`.

    python benchmarks/packing.py --texts 8 --length 512 --rounds 15
    python benchmarks/packing.py --texts 4 --length 2048 --heads 4 --drift 0 --clusters 16   # in k-d order

Both results are compared before anything is timed; then the two take turns, now the one first, now the other.
Times are the process's own (of all threads), which what else runs on the machine disturbs less. The ratio is
the median of the rounds' own ratios, packed over batch: 1 is what packing ought to cost.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import syncattn

LAYER = {"frame": "nearest", "self_coupling": False}
CASES: dict[str, dict[str, Any]] = {
    "causal, as the layers have it": {"is_causal": True, **LAYER},
    "causal, absolute frame": {"is_causal": True},
    "not causal, as the layers have it": LAYER,
    "not causal, absolute frame (symmetric)": {},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--coordinates", type=int, default=16, help="of a frequency, m")
    parser.add_argument("--coupling", type=float, default=2.0)
    parser.add_argument("--clusters", type=int, default=0, help="frequencies are near one of so many")
    parser.add_argument("--drift", type=float, default=0.02, help="of a coordinate, per token")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(
        f"{arguments.texts} texts of {arguments.length} tokens, {arguments.heads} heads, "
        f"m {arguments.coordinates}, d 64, power 2"
    )
    print("\n| case | pass | batch, ms | packed, ms | ratio |\n| --- | --- | --- | --- | --- |")
    for name, options in CASES.items():
        for passes, row in compare(options, arguments).items():
            print(f"| {name} | {passes} | {row[0]:.1f} | {row[1]:.1f} | {row[2]:.3f} |", flush=True)


def compare(options: dict[str, Any], arguments: argparse.Namespace) -> dict[str, tuple[float, float, float]]:
    """For each pass the median milliseconds of batch and packed row, and the median of the rounds' ratios."""
    texts, length, heads = arguments.texts, arguments.length, arguments.heads
    generator = torch.Generator().manual_seed(0)
    frequency = 0.6 * torch.randn(texts, heads, length, arguments.coordinates, generator=generator)
    if arguments.clusters:
        centres = torch.randn(arguments.clusters, arguments.coordinates, generator=generator)
        number = torch.randint(arguments.clusters, (texts, heads, length), generator=generator)
        frequency = 0.25 * frequency + centres[number]
    frequency[..., 0] += arguments.drift * torch.arange(length)
    value = torch.randn(texts, heads, length, 64, generator=generator)
    coupling, bandwidth = torch.full((heads,), arguments.coupling), torch.full((heads,), 0.3)
    ids = (torch.arange(texts * length) // length)[None]

    def row(x: Tensor) -> Tensor:
        return x.transpose(0, 1).reshape(1, heads, texts * length, -1).clone()

    def runner(w: Tensor, v: Tensor, **more: Any) -> Callable[[], Tensor]:
        w, v = w.requires_grad_(), v.requires_grad_()
        given = {"power": 2, "backend": arguments.backend, **options, **more}
        return lambda: syncattn.selective_synchronization_attention(w, w, v, coupling, bandwidth, **given)

    packed = runner(row(frequency), row(value), sequence_ids=ids)
    batch = runner(frequency, value)
    torch.testing.assert_close(packed(), row(batch()), rtol=1e-4, atol=1e-5)
    found = {}
    for name, run in (("forward", forward), ("forward and backward", both)):
        rounds = []
        for number in range(arguments.rounds + 2):
            order = (batch, packed) if number % 2 else (packed, batch)
            times = {each: seconds(run, each) for each in order}
            rounds.append((times[batch], times[packed]))
        rounds = rounds[2:]
        alone, together = (1000 * statistics.median(each) for each in zip(*rounds, strict=True))
        found[name] = (alone, together, statistics.median(b / a for a, b in rounds))
    return found


def forward(call: Callable[[], Tensor]) -> None:
    with torch.no_grad():
        call()


def both(call: Callable[[], Tensor]) -> None:
    call().sum().backward()


def seconds(run: Callable[[Callable[[], Tensor]], None], call: Callable[[], Tensor]) -> float:
    begin = time.process_time()
    run(call)
    return time.process_time() - begin


if __name__ == "__main__":
    main()

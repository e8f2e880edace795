"""Which tiles suit a GPU: the time of each kernel of the Triton backend, with several block sizes.

    python benchmarks/gpu_tune.py --out FOLDER [--forms dense,layer] [--widths 64,128] [--tokens 16384]

For each form of call, width of the values and entry of SIZES a forward and a backward run under torch's
profiler; the table has each kernel's time on the device, in microseconds, the smallest of a kernel marked.
FOLDER/tune.json gets all of it, renewed after every entry. The kernels are compiled first, by processes side
by side. What a variant computes is held to what the first of its form does.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import torch

from syncattn.backends.call import prepare
from syncattn.backends.triton import launch, passes
from syncattn.backends.triton.blocks import BLOCKS, Blocks, Kernels
from syncattn.bench.inputs import Case, make_inputs
from syncattn.training.files import write_text

# queries, keys, walk, warps, stages, registers.
SIZES = {
    "forward": [
        (64, 64, 64, 4, 2), (64, 64, 64, 4, 3), (128, 64, 64, 4, 3), (128, 64, 64, 8, 3),
        (64, 128, 64, 4, 3), (64, 64, 64, 4, 3, 128), (64, 64, 64, 4, 2, 128),
        (64, 64, 64, 4, 2, 168),
    ],
    "backward": [
        (64, 64, 64, 4, 2), (64, 64, 64, 4, 3), (64, 64, 32, 4, 2), (64, 64, 32, 4, 3),
        (64, 128, 64, 8, 2), (64, 128, 32, 8, 3), (64, 64, 64, 4, 2, 168),
    ],
}  # fmt: skip
LAYER = {"structure": "drift", "window": 512, "is_causal": True, "frame": "nearest", "self_coupling": False}
FORMS: dict[str, dict[str, Any]] = {
    "dense": {"density": 0.95, "freq_dim": 8},
    "dense-16": {"density": 0.95, "freq_dim": 16},
    "quarter": {"structure": "segments", "tiles": 0.25, "freq_dim": 8},
    "window": {"structure": "drift", "window": 512, "is_causal": True, "freq_dim": 8},
    "layer": LAYER | {"freq_dim": 16},
}


def case_of(form: str, width: int, tokens: int, heads: int = 16) -> Case:
    """That form of call, with values so wide."""
    return Case(form, head_dim=width, tokens=tokens, heads=heads, dtype="mixed", **FORMS[form])


def set_blocks(name: str, sizes: tuple[int, ...]) -> None:
    """Make these the blocks of the forward, or of both kernels of the backward, whatever the width."""
    blocks = Blocks(*sizes)
    for key, found in BLOCKS.items():
        BLOCKS[key] = (
            found._replace(forward=blocks) if name == "forward" else Kernels(found.forward, blocks, blocks)
        )


def kernel_times(run: Any, repeats: int) -> dict[str, float]:
    """Microseconds on the device of one `run`, by kernel, and of its calls from the host as "host"."""
    for _ in range(2):
        run()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(repeats):
            run()
        torch.cuda.synchronize()
    spent: dict[str, list[float]] = {}
    for event in profile.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            spent.setdefault(event.name[:60], []).append(event.time_range.elapsed_us())
    return {name: median(times) * len(times) / repeats for name, times in spent.items()}


def host_time(run: Any, device: str = "cuda") -> float:
    """Microseconds that the host takes to launch one `run`: a GPU is kept busy meanwhile."""
    times = []
    for _ in range(6 if device == "cuda" else 1):
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda._sleep(20_000_000)
        begun = time.perf_counter()
        run()
        times.append(time.perf_counter() - begun)
    if device == "cuda":
        torch.cuda.synchronize()
    return 1e6 * median(times[1:] or times)  # the first may be noted, or compile


def measure(form: str, width: int, tokens: int, chosen: list[tuple[str, int]], repeats: int) -> Any:
    """Yields a record for each (pass, number of its sizes)."""
    case = case_of(form, width, tokens)
    inputs = make_inputs(case, "cuda")
    launch.FEWEST_SORTED = 1 << 30  # the order costs the same for all
    call = prepare(*inputs, **case.options())
    grad = torch.randn_like(inputs.value)
    saved, right = passes.forward(call), {}
    for name, number in chosen:
        sizes = SIZES[name][number]
        set_blocks(name, sizes)
        record = {"form": form, "width": width, "tokens": tokens, "pass": name, "sizes": sizes}
        run = (
            (lambda: passes.forward(call))
            if name == "forward"
            else lambda: passes.backward(call, grad, *saved)
        )
        try:
            found = [x.float() for x in run()[: 2 if name == "forward" else 5]]
            want = right.setdefault(name, found)
            record["off"] = [float((a - b).norm() / b.norm()) for a, b in zip(found, want, strict=True)]
            record["finite"] = all(bool(x.isfinite().all()) for x in found)
            record["host"] = host_time(run)
            record["kernels"] = kernel_times(run, repeats)
        except Exception as error:
            record["failed"] = f"{type(error).__name__}: {error}"[:300]
        yield record
        set_blocks(name, SIZES[name][0])


def compile_all(
    forms: list[str], widths: list[int], chosen: list[str], most: int, jobs: int
) -> set[tuple[str, int, str, int]]:
    """Every variant once, in a process of its own, so that the compiler's cache has it; those that failed."""

    def one(*variant: Any) -> bool:
        form, width, name, number = map(str, variant)
        command = [sys.executable, __file__, "--forms", form, "--widths", width, "--tokens", "1024"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.run([*command, "--part", f"{name},{number}"], **quiet).returncode == 0

    every = [
        (form, width, name, number)
        for form in forms
        for width in widths
        for name in chosen
        for number in range(min(most, len(SIZES[name])))
    ]
    with ThreadPoolExecutor(jobs) as pool:
        return {variant for variant, fine in zip(every, pool.map(lambda v: one(*v), every)) if not fine}


def table(records: list[dict[str, Any]]) -> str:
    """The kernels over pairs, a line for each record; all others together."""
    lines = []
    for r in records:
        head = f"{r['form']:>9} {r['width']:>4} {r['pass']:>8} {','.join(map(str, r['sizes'])):>15}"
        if "failed" in r:
            lines.append(f"{head} {r['failed'][:70]}")
            continue
        kernels = dict(sorted(r["kernels"].items(), key=lambda x: -x[1]))
        told = " ".join(f"{n.removesuffix('_kernel')[:12]} {t:.0f}" for n, t in list(kernels.items())[:6])
        off = max(r["off"])
        lines.append(
            f"{head} all {sum(kernels.values()):8.0f} host {r['host']:5.0f} off {off:.0e}"
            f"{'' if r['finite'] else ' NOT FINITE'} | {told}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder of tune.json")
    parser.add_argument("--forms", default="dense,layer", help=f"a list out of {', '.join(FORMS)}")
    parser.add_argument("--widths", default="64,128", help="d, as a list")
    parser.add_argument("--tokens", type=int, default=16384, help="N")
    parser.add_argument("--passes", default="forward,backward", help="a list")
    parser.add_argument("--sizes", type=int, default=99, help="the first so many of SIZES only")
    parser.add_argument("--repeats", type=int, default=5, help="runs of which the median counts")
    parser.add_argument("--seconds", type=float, default=120, help="no further variant after so many")
    parser.add_argument("--jobs", type=int, default=14, help="processes that compile; 0: compile as it goes")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    given = parser.parse_args()
    forms, widths = given.forms.split(","), [int(x) for x in given.widths.split(",")]
    begun = time.monotonic()
    if given.part:
        name, number = given.part.split(",")
        records = list(measure(forms[0], widths[0], given.tokens, [(name, int(number))], 1))
        sys.exit(int("failed" in records[0] or not records[0]["finite"]))
    failed = set()
    if given.jobs:
        failed = compile_all(forms, widths, given.passes.split(","), given.sizes, given.jobs)
        print(f"compiled after {time.monotonic() - begun:.0f} s; failed: {sorted(failed)}", flush=True)
    records = []
    for form in forms:
        for width in widths:
            chosen = [
                (name, number)
                for name in given.passes.split(",")
                for number in range(min(given.sizes, len(SIZES[name])))
                if (form, width, name, number) not in failed
            ]
            for record in measure(form, width, given.tokens, chosen, given.repeats):
                if time.monotonic() - begun > given.seconds:
                    print("out of time", flush=True)
                    return
                records.append(record)
                print(table([record]), flush=True)
                if given.out:
                    given.out.mkdir(parents=True, exist_ok=True)
                    text = json.dumps({"variants": records}, indent=1)  # what is wrong may be NaN
                    write_text(given.out / "tune.json", text)


if __name__ == "__main__":
    main()

"""The parts of benchmarks/gpu_session.py that take a process of their own: benchmark suites, and training."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from syncattn.bench.plan import BenchPlan, quick
from syncattn.bench.run import run
from syncattn.training.contenders import contenders
from syncattn.training.data import load_corpus
from syncattn.training.environment import machine, versions
from syncattn.training.files import write_json
from syncattn.training.options import TrainingOptions
from syncattn.training.settings import make_config
from syncattn.training.tokenizers import make_tokenizer
from syncattn.training.train import train


def bench_part(suites: list[str], out: Path, warm: bool, dry: bool, tokens: list[int]) -> int:
    """`syncattn bench` of these suites, at so many tokens if any are given; wrong results are timed as well,
    marked as wrong."""
    plan = BenchPlan(
        suites=tuple(suites), threads=(1,), device="cpu" if dry else "cuda", rounds=5, time_wrong=True
    )
    if dry:
        toy = {"gpu_tokens": (64,), "gpu_cache": (64,), "gpu_heads": 1, "gpu_window": 16, "check_rows": 4}
        toy |= {"gpu_generation_keys": (24,), "gpu_generation_batches": (2,)}
        toy |= {"gpu_generation_size": (32, 1, 2)}
        plan = replace(plan, rounds=2, budget=0.01, **toy)
    elif "gpu-anchors" in suites:  # many cases, some of a rival that is slow where it is dense
        plan = replace(plan, rounds=3, budget=2.0)
    elif warm:
        plan = replace(quick(plan), rounds=2)
    if tokens:
        plan = replace(plan, gpu_tokens=tuple(tokens))
    return run(plan, out, Console(width=150))


def train_part(out: Path, seconds: float, warm: bool, dry: bool) -> int:
    """Train an OSN and a Transformer with as many parameters for about so many seconds each.

    A few steps of each come first, to see how many fit; both get as many. training.json is renewed after each
    model. A model that fails is told there; the other is trained all the same.
    """
    corpus = load_corpus(["stdlib"], 60_000 if dry else None)
    hidden, layers, heads, context, batch = (16, 1, 2, 16, 2) if dry else (512, 8, 8, 2048, 16)
    tokenizer = make_tokenizer("byte", corpus.train[:1000], context)
    config = make_config(tokenizer, context, hidden, layers, heads)
    first = TrainingOptions(
        context=context,
        batch_size=batch,
        steps=2 if dry else 13,
        log_every=1 if dry else 3,
        eval_every=2 if dry else 13,
        eval_tokens=2 * context,
        final_eval_tokens=(2 if dry else 64) * context,
        learning_rate=2e-3,
        precision="bf16",
        device="cpu" if dry else "cuda",
        backend="triton",
    )
    about = (
        f"stdlib, bytes; hidden {hidden}, {layers} blocks, {heads} heads, context {context}, batch {batch}, "
    )
    about += f"learning rate {first.learning_rate:g}, bf16, float32 weights; backend {first.backend}"
    record: dict[str, Any] = {"about": about, "machine": machine(), "versions": versions(), "models": []}
    out.mkdir(parents=True, exist_ok=True)

    def attempt(entrant: Any, name: str, options: TrainingOptions) -> dict[str, Any] | None:
        shown: dict[str, Any] = {
            "name": name,
            "title": entrant.title + ("" if name == entrant.name else f": {name}"),
        }
        record["models"].append(shown)
        if entrant.name != "osn":
            # A Transformer needs none of ours, not even that it works.
            options = replace(options, backend=None)
        try:
            folder = out / f"model-{len(record['models'])}"
            done = train(entrant.config, corpus, tokenizer, folder, options).to_json()
        except Exception as error:
            shown["failed"] = f"{type(error).__name__}: {error}"[:1000]
            done = None
        else:
            numbers = [x for layer in done["result"]["density"] for x in layer]
            shown |= {"steps": options.steps, "heads": done["result"]["density"]}
            shown |= done["result"] | {
                key: done[key] for key in ("parameters", "history", "options", "config")
            }
            shown["density"] = sum(numbers) / len(numbers) if numbers else None
            shown["seconds_per_step"] = _seconds_per_step(done["history"], batch * context)
        print({key: value for key, value in shown.items() if key not in ("history", "config")}, flush=True)
        write_json(out / "training.json", record)
        return shown if done else None

    entrants = contenders(config, ("rotary",), (first.learning_rate,))
    probes = [attempt(entrant, f"{first.steps} steps", first) for entrant in entrants]
    speeds = [probe["seconds_per_step"] for probe in probes if probe]
    if warm or not speeds:
        return int(not speeds)
    count = 2 if dry else min(20_000, max(50, int(seconds / max(speeds))))
    whole = replace(
        first,
        steps=count,
        log_every=max(1, count // 12),
        eval_every=max(1, count // 4),
        eval_tokens=(2 if dry else 8) * context,
    )
    done = [attempt(entrant, entrant.name, whole) for entrant, probe in zip(entrants, probes) if probe]
    if not dry:  # what the limit of the density costs, and what plain PyTorch takes
        attempt(entrants[0], "without a limit of the density", replace(first, max_density=None))
        attempt(entrants[0], "backend tiled", replace(first, backend="tiled"))
    return int(not all(done))


# Settings of the OSN whose steps are timed beside the default's; the Transformer gets what both have.
FORMS = {
    "preset text": {"preset": "text"},
    "preset recall: no position, convolution": {"preset": "recall"},
    "symmetric": {"settings": ["directed=false"]},
    "symmetric, no gate": {"settings": ["directed=false", "nearest_gate=false"]},  # as the H200 was asked
}


def steps_part(out: Path, seconds: float, dry: bool) -> int:
    """What the host takes for a pass; then a whole training step of an OSN and of a Transformer of its size,
    30M parameters, on as many tokens at several lengths and in several forms: forward, backward and AdamW
    under bf16 autocast, medians, in turn; at the first two lengths also with their blocks compiled
    (`layer.compile()`). steps.json is renewed after each."""
    import time

    import torch

    begun, failed = time.monotonic(), False
    record: dict[str, Any] = {"machine": machine(), "versions": versions(), "lengths": []}
    hidden, layers, heads, lengths, tokens = (32, 1, 2, (16, 32), 64)
    if not dry:
        hidden, layers, heads, lengths, tokens = 576, 8, 9, (1024, 8192, 2048, 32768), 65_536
    record["about"] = (
        f"hidden {hidden}, {layers} blocks, {heads} heads, {tokens:,} tokens a step, bf16 autocast"
    )
    record["host"] = []
    out.mkdir(parents=True, exist_ok=True)
    try:
        for found in host_times(dry):
            record["host"].append(found)
            print(found, flush=True)
            write_json(out / "steps.json", record)
    except Exception as error:  # the steps are more wanted
        record["host_failed"] = f"{type(error).__name__}: {error}"[:300]
    corpus = load_corpus(["stdlib"], 60_000 if dry else 1_000_000)
    tokenizer = make_tokenizer("byte", corpus.train[:1000], max(lengths))
    device = torch.device("cpu" if dry else "cuda")
    text = torch.tensor(list(corpus.train.encode()[:tokens]), device=device)
    plan = [(length, "") for length in lengths[:2]] + [(lengths[1], form) for form in FORMS]
    for length, form in plan + [(length, "") for length in lengths[2:]]:
        if not dry and time.monotonic() - begun > seconds:
            break
        shown = {"tokens": length, "form": form or "default", "models": []}
        try:
            config = make_config(tokenizer, length, hidden, layers, heads, **FORMS.get(form, {}))
            shown |= timed_steps(config, text.view(-1, length), not form and length in lengths[:2], dry)
        except Exception as error:  # the others are still wanted
            shown["failed"], failed = f"{type(error).__name__}: {error}"[:300], True
        record["lengths"].append(shown)
        write_json(out / "steps.json", record)
        print({k: v for k, v in shown.items() if k != "models"}, flush=True)
        for into in shown["models"]:
            print({k: v for k, v in into.items() if k != "seconds"}, flush=True)
    return int(failed)


def timed_steps(config: Any, ids: Any, compiled: bool, dry: bool) -> dict[str, Any]:
    """Medians of a training step of the OSN and of a Transformer like it, and their ratio; `compiled`: also
    with their blocks compiled."""
    import statistics
    import time

    import torch
    from transformers import AutoModelForCausalLM

    import syncattn
    from syncattn.training.loop import head_densities

    entrants, runs = contenders(config, ("rotary",), (1e-3,)), []
    shown: dict[str, Any] = {"batch": len(ids), "models": []}
    for is_compiled in (False, True) if compiled and not dry else (False,):
        for entrant in entrants:
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(entrant.config).to(ids.device)
            told = {"name": entrant.name, "title": entrant.title + ", compiled" * is_compiled}
            told["parameters"] = sum(p.numel() for p in model.parameters())
            if entrant.name == "osn":
                syncattn.nn.calibrate(model, ids[:1, :2048], use_cache=False)
                found = head_densities(model, ids[:1])
                told["density"] = statistics.fmean(x for layer in found for x in layer)
            if is_compiled:
                for layer in model.model.layers:
                    layer.compile(dynamic=False)
            runs.append((model, torch.optim.AdamW(model.parameters(), lr=1e-4, fused=not dry)))
            shown["models"].append(told | {"seconds": [], "bytes": None})
    for repeat in range(2 if dry else 7):
        for (model, optimizer), into in zip(runs, shown["models"], strict=True):
            if not dry:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
                held = torch.cuda.memory_allocated()
            first = time.perf_counter()
            _train_step(model, optimizer, ids, "tiled" if dry else "triton")
            if not dry:
                torch.cuda.synchronize()
                into["bytes"] = torch.cuda.max_memory_allocated() - held
            if repeat > 1 or dry:  # the first compile and warm up
                into["seconds"].append(time.perf_counter() - first)
    medians = []
    for into in shown["models"]:
        medians.append(statistics.median(into["seconds"]))
        into["median"] = medians[-1]
    # of the OSN over the Transformer: eager, compiled
    shown["ratios"] = [a / b for a, b in zip(medians[::2], medians[1::2], strict=True)]
    return shown


def host_times(dry: bool) -> Iterator[dict[str, Any]]:
    """Microseconds that the host takes to start a pass of some forms of call: from a plan, as calls of a form
    seen before are, and without (backends/triton/plan.py); and one of a new form each time."""
    import gpu_tune

    from syncattn.backends.call import prepare
    from syncattn.backends.triton import passes, plan, start

    device = "cpu" if dry else "cuda"
    planned = passes.planned

    def unplanned(run: Any, call: Any, given: Any, results: Any) -> Any:
        return run(start.Host(call.receive.device), call, *given, *results)

    def forgotten(*arguments: Any) -> Any:
        plan._plans.clear()
        return planned(*arguments)

    ways = {"planned": planned, "without plans": unplanned, "new forms": forgotten}
    for form in ("layer",) if dry else ("layer", "dense"):
        for tokens in (24,) if dry else (512, 2048, 8192):
            case = gpu_tune.case_of(form, 16 if dry else 64, tokens, heads=1 if dry else 16)
            inputs = gpu_tune.make_inputs(case, device)
            call = prepare(*inputs, **case.options())
            saved = passes.forward(call)
            told: dict[str, Any] = {"form": form, "tokens": tokens, "forward": {}, "backward": {}}
            for way, chosen in ways.items():
                passes.planned = chosen
                try:
                    forward = gpu_tune.host_time(partial(passes.forward, call), device)
                    again = partial(passes.backward, call, saved[0], *saved)
                    backward = gpu_tune.host_time(again, device)
                finally:
                    passes.planned = planned
                told["forward"][way], told["backward"][way] = round(forward, 1), round(backward, 1)
            yield told


def _train_step(model: Any, optimizer: Any, ids: Any, backend: str) -> None:
    import torch

    import syncattn

    with torch.autocast(ids.device.type, dtype=torch.bfloat16), syncattn.use_backend(backend):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def small_calls(chosen: list[str], dry: bool) -> int:
    """Small calls, forward and backward, beside `tiled`, for a memory checker to watch: of these forms of
    gpu_tune.py, or, named blocks-3, dense in every fifth of its block sizes from the third on. The exit
    status is 1 if anything is off."""
    import gpu_tune
    import torch

    import syncattn

    device, wrong = "cpu" if dry else "cuda", 0

    def compare(form: str, width: int, tokens: int, told: str) -> int:
        case = gpu_tune.case_of(form, width, tokens, heads=1 if dry else 2)
        results = []
        for backend in ("triton", "tiled"):
            inputs = [x.clone().requires_grad_() for x in gpu_tune.make_inputs(case, device)]
            out = syncattn.selective_synchronization_attention(*inputs, **case.options(), backend=backend)
            results.append([out, *torch.autograd.grad(out.float().square().sum(), inputs)])
        off = [float((a - b).detach().float().norm() / b.detach().float().norm()) for a, b in zip(*results)]
        fine = all(x <= 0.05 for x in off[:4])
        print(f"{form} d {width} N {tokens} {told}: {'fine' if fine else f'OFF {off}'}", flush=True)
        return int(not fine)

    blocks = [(name, sizes) for name, several in gpu_tune.SIZES.items() for sizes in several]
    for item in chosen:
        if item.startswith("blocks-"):
            for name, sizes in blocks[int(item.removeprefix("blocks-")) :: 5]:
                gpu_tune.set_blocks(name, sizes)
                for tokens in (300, 2048):
                    wrong += compare("dense", 64, tokens, f"{name} {sizes}")
                gpu_tune.set_blocks(name, gpu_tune.SIZES[name][0])
        else:
            for width in (16,) if dry else (64, 128):
                wrong += compare(item, width, 40 if dry else 300, "as it is")
    return int(wrong > 0)


def _seconds_per_step(history: list[dict[str, Any]], tokens: int) -> float:
    """Of the steps after the first log, which compile nothing; each log has the mean speed up to it."""
    spent = [
        (e["step"], e["step"] * tokens / e["tokens_per_second"]) for e in history if "tokens_per_second" in e
    ]
    (early, before), (late, after) = spent[0], spent[-1]
    return (after - before) / max(1, late - early)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--bench", help="suites of `syncattn bench`, as a list")
    parser.add_argument("--tokens", default="", help="with --bench: these N alone, as a list")
    parser.add_argument("--small-calls", help="forms of call, and blocks-0 to blocks-4, as a list")
    parser.add_argument(
        "--steps", type=float, help="seconds of timing whole training steps, and of the host's time"
    )
    parser.add_argument("--train", type=float, help="seconds of training for each model")
    parser.add_argument("--warm", action="store_true", help="only what compiles the kernels")
    parser.add_argument("--dry-run", action="store_true", help="toy sizes on the CPU")
    given = parser.parse_args()
    if given.small_calls:
        sys.exit(small_calls(given.small_calls.split(","), given.dry_run))
    if given.steps:
        sys.exit(steps_part(given.out, given.steps, given.dry_run))
    if given.bench:
        sys.exit(
            bench_part(
                given.bench.split(","), given.out, given.warm, given.dry_run,
                [int(n) for n in filter(None, given.tokens.split(","))],
            )
        )  # fmt: skip
    sys.exit(train_part(given.out, given.train, given.warm, given.dry_run))

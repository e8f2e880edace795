"""The parts of benchmarks/gpu_session.py that take a process of their own: benchmark suites, and training."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
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


def steps_part(out: Path, seconds: float, dry: bool) -> int:
    """A whole training step of an OSN and of a Transformer of its size, 30M parameters, on as many tokens at
    several lengths: forward, backward and AdamW under bf16 autocast, medians, in turn; at the first two also
    with their blocks compiled (`layer.compile()`). steps.json is renewed after each length."""
    import statistics
    import time

    import torch
    from transformers import AutoModelForCausalLM

    import syncattn
    from syncattn.training.loop import head_densities

    device = torch.device("cpu" if dry else "cuda")
    hidden, layers, heads, lengths, tokens = (16, 1, 2, (16, 32), 64)
    if not dry:
        hidden, layers, heads, lengths, tokens = 576, 8, 9, (1024, 8192, 2048, 32768), 65_536
    corpus = load_corpus(["stdlib"], 60_000 if dry else 1_000_000)
    tokenizer = make_tokenizer("byte", corpus.train[:1000], max(lengths))
    text = torch.tensor(list(corpus.train.encode()[:tokens]), device=device)
    begun, record = time.monotonic(), {"machine": machine(), "versions": versions(), "lengths": []}
    record["about"] = (
        f"hidden {hidden}, {layers} blocks, {heads} heads, {tokens:,} tokens a step, bf16 autocast"
    )
    out.mkdir(parents=True, exist_ok=True)
    for length in lengths:
        if time.monotonic() - begun > seconds:
            break
        config = make_config(tokenizer, length, hidden, layers, heads)
        ids, runs = text.view(-1, length), []
        shown: dict[str, Any] = {"tokens": length, "batch": len(ids), "models": []}
        entrants = contenders(config, ("rotary",), (1e-3,))
        kinds = [(entrant, False) for entrant in entrants]
        if not dry and length in lengths[:2]:
            kinds += [(entrant, True) for entrant in entrants]
        for entrant, is_compiled in kinds:
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(entrant.config).to(device)
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
        for into in shown["models"]:
            into["median"] = statistics.median(into["seconds"])
        medians = [into["median"] for into in shown["models"]]
        shown["ratios"] = [a / b for a, b in zip(medians[::2], medians[1::2], strict=True)]  # eager, compiled
        record["lengths"].append(shown)
        write_json(out / "steps.json", record)
        print({k: v for k, v in shown.items() if k != "models"}, flush=True)
        for into in shown["models"]:
            print({k: v for k, v in into.items() if k != "seconds"}, flush=True)
        del runs, model
    return 0


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
    parser.add_argument("--steps", type=float, help="seconds of timing whole training steps")
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

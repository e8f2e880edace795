"""A token for each text on a GPU, by an OSN and by the Transformer of the same code and size: with a cache
that grows, with one of fixed size, with that one's step in a CUDA graph, and compiled.

Times are those of whole steps, what the host takes among them, as a user's loop has them. Weights and caches
are bfloat16 there; on a CPU, where this is tried at toy sizes, float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from syncattn.backends import use_backend
from syncattn.bench.checking import as_json
from syncattn.bench.contenders import GRAPH, SDPA, first_line
from syncattn.bench.models import OSN, build, calibrated_quietly, density_of, describe, ladder
from syncattn.bench.plan import FORWARD, BenchPlan
from syncattn.bench.session import Field, Job, Session, out_of_memory, set_threads
from syncattn.bench.timing import MOST_REPEATS
from syncattn.models import DecoderCache, StaticDecoderCache

SUITE = "gpu-generation"
GROWING, FIXED, CAPTURED, COMPILED = "growing", "fixed", "fixed, CUDA graph", "fixed, compiled"
# What may disturb what comes after is last: a capture that fails, a compiler that takes all of the time.
WAYS = (GROWING, FIXED, CAPTURED, COMPILED)
# Every way begins with so many tokens, after which its logits are held to those of the whole text.
_FIRST = 4
_TOLERANCE = {"cpu": 1e-3, "cuda": 5e-2}  # bfloat16, which layer after layer rounds to
_CALIBRATED = 2048
_VOCABULARY = 256


class Models(NamedTuple):
    """What all jobs step through, and the density of the OSN's pairs."""

    by_name: dict[str, Any]
    counted: dict[str, Any]


def jobs(plan: BenchPlan) -> Iterator[Job]:
    """Way by way, each number of cached tokens and of texts; compiled the first of both alone."""
    models = cache(partial(_models, plan))
    for way in WAYS:
        for tokens in plan.gpu_generation_keys[: 1 if way == COMPILED else None]:
            for batch in plan.gpu_generation_batches[: 1 if way == COMPILED else None]:
                run = partial(run_way, models=models, way=way, tokens=tokens, batch=batch)
                yield Job(f"generation, {batch} x {tokens} cached, {way}", run)


def _models(plan: BenchPlan) -> Models:
    longest, device = max(plan.gpu_generation_keys), plan.device
    ours, theirs = build(plan.gpu_generation_size, longest, device)
    first = _ids(plan, min(longest, _CALIBRATED))
    calibrated_quietly(ours, first, partners_range=ladder(longest))
    counted = density_of(ours, first)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    return Models({OSN: ours.eval().to(dtype), SDPA: theirs.eval().to(dtype)}, counted)  # type: ignore[arg-type]


def _ids(plan: BenchPlan, tokens: int) -> Tensor:
    generator = torch.Generator().manual_seed(plan.seed)
    return torch.randint(_VOCABULARY, (1, tokens), generator=generator, device="cpu").to(plan.device)


@torch.no_grad()
def run_way(session: Session, models: Callable[[], Models], way: str, tokens: int, batch: int) -> None:
    """Both models' steps in one way: first held to the whole text, then timed; their caches' bytes."""
    plan = session.plan
    threads = plan.threads[0]
    set_threads(threads)
    by_name, counted = models()
    ids = _ids(plan, tokens + _FIRST)
    name = f"{batch} x {tokens} cached, {way}"
    described = describe(session, SUITE, name, threads, tokens, batch, plan.gpu_generation_size)
    described |= {"passes": FORWARD, "counted": counted, "backend": session.preferred, "cache": {}}
    graph = GRAPH if way == CAPTURED else ""
    entrants = Field({}, {}, {}, {}, notes={})
    for each, model in by_name.items():
        # by name, so that going elsewhere is an error; a Transformer needs none of ours
        ours = use_backend(session.preferred) if each == OSN and session.preferred else nullcontext()
        try:
            with ours:
                stepping = _Stepping(model, way, ids, tokens, batch)
                if isinstance(stepping.step, str):
                    entrants.left_out[each + graph] = stepping.step
                    continue
                whole = model(ids, use_cache=False, logits_to_keep=1).logits[:, -1]
        except Exception as error:  # a compiler's may be of any kind
            if out_of_memory(error):
                entrants.left_out[each + graph] = "out of memory"
            else:
                entrants.wrong[each + graph] = f"it failed: {first_line(error)}"
            continue
        found = _error(stepping.logits, whole.expand_as(stepping.logits))
        entrants.errors[each + graph] = as_json({"out": found})
        described["cache"][each] = _held(stepping.cache)
        if not found <= _TOLERANCE[plan.device]:
            entrants.wrong[each + graph] = f"the steps are off by {found:.1e} from the whole text"
            if not plan.time_wrong:
                continue
        run = partial(_with_backend, session.preferred if each == OSN else None, stepping.step)
        entrants.runners[each + graph] = run
        if plan.device == "cuda":
            entrants.notes[each + graph] = {"step_bytes": _step_bytes(run)}
    session.measure(described, entrants, reference=SDPA + graph)


class _Stepping:
    """A model with so many tokens of each text cached, and _FIRST more, a step each.

    Attributes:
        cache: what holds them.
        logits: (B, vocabulary), of the last of them.
        step: gives the logits of another token; or why there is no such step.
    """

    def __init__(self, model: Any, way: str, ids: Tensor, tokens: int, batch: int) -> None:
        self.model, self.ids, self.tokens = model, ids, tokens
        self.step: Callable[[], Tensor] | str = self._once
        if way in (CAPTURED, COMPILED) and not ids.is_cuda:
            what = "graphs are timed on GPUs only, forward"
            self.step = what if way == CAPTURED else "compiled steps are timed on GPUs only"
            return
        self.token = ids[:, :1].repeat(batch, 1)  # what every step reads
        self.call, self.cache = model, self._filled(way, batch)
        before = 0
        if way == CAPTURED:
            before = 3
            self.step = self._captured(before)
        elif way == COMPILED:
            self.call = torch.compile(model, fullgraph=True, mode="reduce-overhead")  # as `generate()` does
        for number in range(before, _FIRST):
            self._next(number)
            logits = self.step()
        self.logits = logits[:, -1].clone()

    def _filled(self, way: str, batch: int) -> DecoderCache:
        first, config = self.ids[:, : self.tokens], self.model.config
        if way == GROWING:  # a text is filled in once and repeated
            cached = DecoderCache(config)
            self.model(first, past_key_values=cached, logits_to_keep=1)
            cached.batch_repeat_interleave(batch)
            return cached
        # Room for all steps of ten rounds, the same in all runs: a compiled step is of one size. On a CPU a
        # measurement has few of them.
        room = 48 + (10 * MOST_REPEATS if self.ids.is_cuda else 16)
        cached = StaticDecoderCache(config, self.tokens + room)
        self.model(first.expand(batch, -1).contiguous(), past_key_values=cached, logits_to_keep=1)
        return cached

    def _next(self, number: int) -> None:
        at = self.tokens + number
        self.token.copy_(self.ids[:, at : at + 1])

    def _once(self) -> Tensor:
        return self.call(self.token, past_key_values=self.cache).logits

    def _captured(self, before: int) -> Callable[[], Tensor]:
        """The step, replayed from a graph: the kernels' time alone. The first tokens, so many, compile."""
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for number in range(before):
                self._next(number)
                self._once()
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = self._once()

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay


def _with_backend(name: str | None, step: Callable[[], Tensor]) -> Tensor:
    chosen: AbstractContextManager[Any] = nullcontext() if name is None else use_backend(name)
    with chosen, torch.no_grad():
        return step()


def _held(cached: DecoderCache) -> dict[str, int]:
    return {"nbytes": cached.nbytes, "spare_nbytes": cached.spare_nbytes}


def _step_bytes(run: Callable[[], object]) -> int:
    """What a step allocates at its peak, beyond what was there; a graph's own memory was there."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _error(found: Tensor, right: Tensor) -> float:
    if not bool(torch.isfinite(found).all()):
        return float("inf")
    return float((found.double() - right.double()).norm() / right.double().norm().clamp(min=1e-30))

"""The suites of the operator: the targets' table, its variants, over N, over m, a fixed window, decoding."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from syncattn.bench import memory
from syncattn.bench.checking import as_json, errors, truth, verdict
from syncattn.bench.contenders import ADASPLASH, PUBLISHED, SDPA, TILED, Contender, first_line, make
from syncattn.bench.inputs import Case, count_locked, make_inputs
from syncattn.bench.plan import BACKWARD, FORWARD, BenchPlan
from syncattn.bench.session import Field, Job, Session, out_of_memory, set_threads

_COUNTED_ROWS, _COUNTED_PAIRS = 256, 2**23
_BOTH = (FORWARD, BACKWARD)
# Of the layer's form: training holds a layer's density below .1.
LAYER_FREQ_DIM, LAYER_DENSITY = 16, 0.08


def percent(density: float) -> str:
    """A density as names have it: "dense" above .9, else "25 %"."""
    return "dense" if density > 0.9 else f"{100 * density:g} %"


def _base(plan: BenchPlan, **fields: Any) -> Case:
    sizes = {"tokens": plan.tokens, "heads": plan.heads, "head_dim": plan.head_dim, "freq_dim": plan.freq_dim}
    return Case(**(sizes | fields))


def table_cases(plan: BenchPlan) -> list[Case]:
    """The targets' rows: the layers' form first, then m of the plan, absolute frame, bf16; power 2."""
    cases = [
        _base(plan, name=f"{percent(density)}, {form}", density=density, directed=form == "directed")
        for density in plan.densities
        for form in ("symmetric", "directed")
    ]
    return [_layer(plan), *cases, *_in_bf16(plan), _drift(plan)]


def _in_bf16(plan: BenchPlan) -> list[Case]:
    """The densest and the sparsest, all tensors in bf16, SDPA's as well."""
    return [
        _base(plan, name=f"{percent(density)}, symmetric, bf16", density=density, dtype="bf16")
        for density in (plan.densities[0], plan.densities[-1])
    ]


def _layer(plan: BenchPlan) -> Case:
    """The default layer's form."""
    name = f"layer, causal, {percent(LAYER_DENSITY)}"
    form: dict[str, Any] = {"structure": "layer", "freq_dim": LAYER_FREQ_DIM, "density": LAYER_DENSITY}
    return _base(plan, name=name, frame="nearest", is_causal=True, self_coupling=False, **form)


def _drift(plan: BenchPlan, **fields: Any) -> Case:
    name = f"causal, window {plan.window}"
    settings: dict[str, Any] = {"structure": "drift", "window": plan.window, "is_causal": True}
    return _base(plan, **({"name": name} | settings | fields))


def variant_cases(plan: BenchPlan) -> list[Case]:
    """What the table leaves out: power 1, the nearest frame, clusters."""
    cases = []
    for density in plan.densities:
        some = percent(density)
        cases.append(_base(plan, name=f"{some}, symmetric, power 1", density=density, power=1))
        cases.append(
            _base(
                plan, name=f"{some}, directed, nearest frame", density=density, directed=True, frame="nearest"
            )
        )
        if density <= 0.9:
            cases.append(_base(plan, name=f"{some}, clustered", density=density, structure="clustered"))
    layer = {"frame": "nearest", "self_coupling": False}
    cases.append(_drift(plan, name=f"causal, window {plan.window}, nearest frame, self left out", **layer))
    return cases


def jobs(plan: BenchPlan, backends: list[str]) -> Iterator[tuple[str, list[Job]]]:
    """(suite, its jobs) for the operator's suites, wanted or not.

    Args:
        backends: ours that can run, in order of preference.
    """
    best = backends[:1]
    slow = [name for name in backends[1:] if name == TILED]
    fast = [name for name in backends if name not in slow]
    first = plan.threads[0]

    def all_threads(
        suite: str, cases: list[Case], names: list[str], extra: list[str], passes=_BOTH
    ) -> list[Job]:
        return [
            job(suite, case, [*names, *(extra if threads == first else [])], threads, passes)
            for threads in plan.threads
            for case in cases
        ]

    yield "table", all_threads("table", table_cases(plan), [SDPA, *fast], slow)
    yield "variants", [job("variants", case, [SDPA, *fast], first, _BOTH) for case in variant_cases(plan)]

    over_tokens = []
    for tokens in plan.token_sweep:
        for density in dict.fromkeys((plan.densities[0], 0.05)):
            case = _base(plan, name=percent(density), tokens=tokens, density=density)
            over_tokens.append(job("tokens", case, [SDPA, *fast, *slow], first, _BOTH))
        if tokens <= plan.tokens:
            case = _base(plan, name="as published", tokens=tokens, density=plan.densities[0], power=1)
            over_tokens.append(job("tokens", case, [SDPA, *best, PUBLISHED], first, _BOTH))
    for tokens in plan.memory_sweep:
        case = _base(plan, name="as published", tokens=tokens, density=plan.densities[0], power=1)
        over_tokens.append(memory_job("tokens", case, [SDPA, *backends, PUBLISHED]))
    yield "tokens", over_tokens

    over_dims = [
        _base(
            plan, name=f"{percent(density)}, m {dim}", tokens=plan.freq_tokens, freq_dim=dim, density=density
        )
        for dim in plan.freq_sweep
        for density in dict.fromkeys((plan.densities[0], 0.05))
    ]
    yield "frequencies", [job("frequencies", case, [SDPA, *fast], first, _BOTH) for case in over_dims]

    scaling = [
        Job(f"scaling, {name}, {passes}", partial(_scale, plan=plan, name=name, passes=passes))
        for name in backends
        for passes in _BOTH
    ]
    for tokens in plan.scaling:
        scaling.append(memory_job("scaling", _drift(plan, tokens=tokens), best))
    yield "scaling", scaling

    cached = []
    for keys in plan.decode_keys:
        one = {"tokens": keys, "queries": 1}
        cached.append(_base(plan, name=f"5 %, {keys} cached", density=0.05, **one))
        drifting = f"window {plan.window}, nearest frame, self left out, {keys} cached"
        layer = {"frame": "nearest", "self_coupling": False}
        cached.append(_drift(plan, name=drifting, **one, **layer))
    yield "decode", all_threads("decode", cached, [SDPA, *backends], [], (FORWARD,))


def job(suite: str, case: Case, names: list[str], threads: int, passes: tuple[str, ...]) -> Job:
    run = partial(run_case, suite=suite, case=case, names=names, threads=threads, passes=passes)
    return Job(f"{suite}: {case.name}, N {case.tokens}", run)


def run_case(
    session: Session, suite: str, case: Case, names: list[str], threads: int, passes: tuple[str, ...]
) -> None:
    """Make the inputs, count their density, check everyone, then time who is right."""
    set_threads(threads)
    plan = session.plan
    inputs = make_inputs(case, plan.device, plan.seed)
    rows = min(_COUNTED_ROWS, max(1, _COUNTED_PAIRS // (case.heads * case.batch * case.tokens)))
    counted = count_locked(case, inputs, rows, plan.seed)
    strange = _strange(case, counted["density"])
    right = truth(case, inputs, plan.check_rows, plan.seed, BACKWARD in passes)
    failed: dict[str, str] = {}
    few = frozenset({PUBLISHED, TILED, ADASPLASH} - {session.preferred})
    for kind in passes:
        entrants = Field({}, {}, dict(failed), {}, few, {}, {})
        for name in names:
            key = (suite, case.name, name, kind, threads)
            reason = strange or session.too_slow(key, case.tokens, heavy=name == PUBLISHED)
            made: Contender | str = reason or make(name, case, inputs, (kind,))
            if isinstance(made, str):
                entrants.left_out[name] = made
            elif name not in failed:
                _enter(made, entrants, case, right, kind, plan.time_wrong)
        if not plan.time_wrong:
            failed |= entrants.wrong
        entry = {"suite": suite, "name": case.name, "threads": threads, "passes": kind}
        entry |= {"case": case.as_dict(), "counted": counted, "checked_rows": len(right.rows)}
        done = session.measure(entry, entrants)
        for name, result in done["contenders"].items():
            if result["status"] == "measured":
                key = (suite, case.name, name, kind, threads)
                session.seen[key] = (case.tokens, result["time"]["median"])


def _enter(
    made: Contender, entrants: Field, case: Case, right: Any, passes: str, time_wrong: bool = False
) -> None:
    """Check who computes the operator, and let it run if it is right, or is to be timed all the same."""
    if made.note:
        entrants.notes[made.name] = made.note
    if made.ours or made.checked:
        begin = time.perf_counter()
        try:
            found = errors(made, right, passes)
        except Exception as error:  # a compiler's error may be of any kind
            if out_of_memory(error):
                entrants.left_out[made.name] = "out of memory"
            else:
                entrants.wrong[made.name] = f"it failed: {first_line(error)}"
            return
        entrants.warm[made.name] = time.perf_counter() - begin
        entrants.errors[made.name] = as_json(found)
        judged = {n: e for n, e in found.items() if n not in made.coarse or not e < math.inf}
        wrong = verdict(judged, case.dtype)
        if wrong is not None:
            entrants.wrong[made.name] = wrong
            if not time_wrong:
                return
    entrants.runners[made.name] = made.runner(passes, right.cotangent)


def _strange(case: Case, density: float) -> str | None:
    """Why the inputs are not what the case says, or None."""
    wanted = case.density
    if (
        case.density is None or wanted is None or case.queries is not None
    ):  # one query's own density may be anything
        return None
    if case.self_coupling and not case.directed:  # the law is of different tokens; each locks to itself
        wanted += (1 - wanted) / case.tokens
    few = 4 / case.tokens  # of so few tokens the share scatters
    if abs(density - wanted) <= 0.4 * wanted + few and (case.density <= 0.9 or density > 0.9 - few):
        return None
    return f"the inputs have density {density:.3f}, not {wanted}"


def _scale(session: Session, plan: BenchPlan, name: str, passes: str) -> None:
    """One backend over ever more tokens with a fixed window, all lengths interleaved."""
    set_threads(plan.threads[0])
    labels, entrants, counted = {}, Field({}, {}, {}, {}, frozenset(), {}, {}), {}
    key, exponent = ("scaling", name, passes), 2.0
    for tokens in plan.scaling:
        label = f"{name}, N {tokens}"
        labels[label] = tokens
        reason = session.too_slow(key, tokens, exponent=exponent)
        if reason is not None:
            entrants.left_out[label] = reason
            continue
        case = _drift(plan, tokens=tokens)
        inputs = make_inputs(case, plan.device, plan.seed)
        counted[label] = count_locked(case, inputs, 32, plan.seed)
        made = make(name, case, inputs, (passes,))
        if isinstance(made, str):
            entrants.left_out[label] = made
            continue
        right = truth(case, inputs, plan.check_rows, plan.seed, passes == BACKWARD)
        _enter(made._replace(name=label), entrants, case, right, passes)
        if label not in entrants.runners:
            break
        seconds = entrants.warm[label]
        if key in session.seen:  # who pays for the window alone grows linearly, and is not left out too early
            before, less = session.seen[key]
            exponent = min(2.0, max(1.0, math.log(seconds / less) / math.log(tokens / before)))
        session.seen[key] = (tokens, seconds)
    entry = {"suite": "scaling", "name": f"window {plan.window}, {name}", "threads": plan.threads[0]}
    entry |= {"passes": passes, "case": _drift(plan).as_dict(), "counted": counted, "tokens": labels}
    session.measure(entry, entrants, reference=f"{name}, N {plan.scaling[0]}")


def memory_job(suite: str, case: Case, names: list[str]) -> Job:
    return Job(f"{suite}: memory, N {case.tokens}", partial(_memory, suite=suite, case=case, names=names))


def _memory(session: Session, suite: str, case: Case, names: list[str]) -> None:
    """Peak extra memory of forward and backward."""
    impossible = memory.unavailable(session.plan.device)
    for name in names:
        key = (suite, "memory", name)
        reason = impossible or session.too_slow(key, case.tokens, heavy=name == PUBLISHED)
        begin = time.perf_counter()
        patience = 30 + 6 * session.plan.budget
        found = reason or memory.peak_bytes(case.as_dict(), name, BACKWARD, session.plan.device, patience)
        if reason is None:  # the process's start counts as well, and says nothing about growth
            session.seen[key] = (case.tokens, max(0.0, time.perf_counter() - begin - 10))
        entry = {"suite": suite, "name": case.name, "passes": BACKWARD, "tokens": case.tokens}
        session.measure_memory(entry | {"case": replace(case).as_dict()}, name, found)

"""The suites of whole models: a block, a training step, a decoding step, beside the softmax Transformer's."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from syncattn import nn as osn
from syncattn import selective_synchronization_attention
from syncattn.backends import explain
from syncattn.bench.checking import as_json
from syncattn.bench.contenders import SDPA
from syncattn.bench.plan import BACKWARD, FORWARD, BenchPlan
from syncattn.bench.session import Field, Job, Session, set_threads
from syncattn.models import (
    DecoderCache,
    OSNConfig,
    OSNForCausalLM,
    TransformerConfig,
    TransformerForCausalLM,
    match_parameters,
)
from syncattn.nn import attention as attention_layer

OSN, LLAMA = "osn", "llama"
STEP = "training step"
# A model is held to a float64 copy of itself on this many first tokens: it is causal, so they are exact.
_PREFIX = 128
_TOLERANCE = {"out": 1e-3, "gradient": 1e-2}
_VOCABULARY = 256
# Of more tokens in all texts the Transformer's cache alone would take gigabytes.
_MOST_CACHED = 2**17
# Beyond so many tokens the steps of fewer blocks are timed, and other models are not held to a whole forward.
_ALL_BLOCKS = 8192
# To calibrate on a long text takes longer than all that is timed.
_CALIBRATED = 256


def jobs(plan: BenchPlan) -> Iterator[tuple[str, list[Job]]]:
    """(suite, its jobs) for the models' suites, wanted or not."""
    size, *_ = plan.model_sizes
    lengths = [(threads, tokens) for threads in plan.threads for tokens in plan.model_tokens]
    yield (
        "block",
        [Job(f"block, N {n}", partial(run_block, size=size, tokens=n, threads=t)) for t, n in lengths],
    )
    yield (
        "train",
        [
            Job(f"training step, hidden {each[0]}, N {n}", partial(run_step, size=each, tokens=n, threads=t))
            for t, n in lengths
            for each in plan.model_sizes
        ],
    )
    yield (
        "lengths",
        [
            Job(
                f"training step, N {n}",
                partial(run_step, size=_blocks_for(plan, n), tokens=n, threads=t, suite="lengths"),
            )
            for t in plan.threads
            for n in plan.length_tokens
        ],
    )
    yield (
        "prefill",
        [
            Job(f"prefill, N {n}", partial(run_prefill, size=_blocks_for(plan, n), tokens=n, threads=t))
            for t in plan.threads
            for n in plan.length_tokens
        ],
    )
    yield (
        "decode",
        [
            Job(f"decoding step, {n} cached", partial(run_decode, size=size, tokens=n, threads=t))
            for t, n in lengths
        ],
    )
    yield (
        "generation",
        [
            Job(
                f"generation, {batch} x {n} cached",
                partial(run_generation, size=plan.generation_size, tokens=n, batch=batch, threads=threads),
            )
            for threads in plan.threads
            for batch in plan.generation_batches
            for n in plan.generation_keys
            if batch * n <= _MOST_CACHED
        ],
    )


def build(size: tuple[int, int, int], tokens: int, device: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """An OSN and a rotary Transformer with equally many parameters; the OSN is not calibrated yet.

    Args:
        size: (hidden size, blocks, heads).
    """
    hidden, layers, heads = size
    config = OSNConfig(
        vocab_size=_VOCABULARY,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=tokens,
    )
    ours, theirs = match_parameters(config, TransformerConfig.of_sizes(config, position="rotary"))
    torch.manual_seed(0)
    models: list[Any] = [OSNForCausalLM(ours), TransformerForCausalLM(theirs)]
    ours_there, theirs_there = (model.to(device) for model in models)
    return ours_there, theirs_there


def run_block(session: Session, size: tuple[int, int, int], tokens: int, threads: int) -> None:
    """One causal block of each model, of the same width; batch of `plan.step_tokens` tokens."""
    set_threads(threads)
    plan = session.plan
    models = dict(zip((OSN, SDPA), build(size, tokens, plan.device)))
    blocks: dict[str, Any] = {name: model.get_submodule("model.layers.0") for name, model in models.items()}
    generator = torch.Generator().manual_seed(plan.seed)
    batch = max(1, plan.step_tokens // tokens)
    x = torch.randn(batch, tokens, size[0], generator=generator).to(plan.device)
    with _quiet():
        osn.calibrate(blocks[OSN], x, is_causal=True, partners_range=ladder(tokens))

    def output(block: nn.Module, given: Tensor) -> Tensor:
        return block(given, is_causal=True)

    described = describe(
        session, "block", f"block, hidden {size[0]}, N {tokens}", threads, tokens, batch, size
    )
    described |= {"counted": density_of(blocks[OSN], x, is_causal=True)}
    described |= {"backend": _backend(lambda: output(blocks[OSN], x))}
    wrong, found = _check(blocks[OSN], x, output)
    for passes in (FORWARD, BACKWARD):
        entrants = _field(wrong, found)
        for name, block in blocks.items():
            if name in entrants.wrong:
                continue
            entrants.runners[name] = _block_runner(block, x, passes)
        session.measure(described | {"passes": passes}, entrants)


def _block_runner(block: nn.Module, x: Tensor, passes: str) -> Callable[[], object]:
    if passes == FORWARD:

        def forward() -> Tensor:
            with torch.no_grad():
                return block(x, is_causal=True)

        return forward
    given = x.clone().requires_grad_()
    leaves, cotangent = (given, *block.parameters()), torch.ones_like(x)
    return lambda: torch.autograd.grad(block(given, is_causal=True), leaves, cotangent, allow_unused=True)


def ladder(tokens: int) -> tuple[float, float] | None:
    """What training holds a model's heads to by default: in windows of more than 320 tokens 16 partners, the
    mean of this ladder; None: the densities that they are made with."""
    return (4.0, 40.0) if tokens > 320 else None


def _blocks_for(plan: BenchPlan, tokens: int) -> tuple[int, int, int]:
    """The size of the models that are timed on so many tokens: all of a model's blocks take alike."""
    hidden, blocks, heads = plan.generation_size
    return hidden, max(1, min(blocks, blocks * _ALL_BLOCKS // tokens)), heads


def run_step(
    session: Session, size: tuple[int, int, int], tokens: int, threads: int, suite: str = "train"
) -> None:
    """Loss, backward and AdamW of the two models; with a learning rate of 0 all steps are the same."""
    set_threads(threads)
    plan = session.plan
    batch = max(1, plan.step_tokens // tokens)
    generator = torch.Generator().manual_seed(plan.seed)
    ids = torch.randint(_VOCABULARY, (batch, tokens), generator=generator).to(plan.device)
    models = dict(zip((OSN, SDPA), build(size, tokens, plan.device)))
    calibrated_quietly(models[OSN], ids[:, :_ALL_BLOCKS], partners_range=ladder(tokens))

    def logits(model: nn.Module, given: Tensor) -> Tensor:
        return model(given, use_cache=False).logits

    name = f"training step, hidden {size[0]}, {size[1]} blocks, N {tokens}"
    described = describe(session, suite, name, threads, tokens, batch, size) | {"passes": STEP}
    described |= {
        "counted": density_of(models[OSN], ids),
        "backend": _backend(lambda: logits(models[OSN], ids)),
    }
    described |= {"parameters": {n: sum(p.numel() for p in m.parameters()) for n, m in models.items()}}
    entrants = _field(*_check(models[OSN], ids, logits))
    for each, model in models.items():
        if each not in entrants.wrong:
            run = step_runner(model, ids)
            if tokens > _ALL_BLOCKS:  # so long a call warms up for itself
                begin = time.perf_counter()
                run()
                entrants.warm[each] = time.perf_counter() - begin
            entrants.runners[each] = run
    session.measure(described, entrants)


def step_runner(model: nn.Module, ids: Tensor) -> Callable[[], object]:
    """A training step of AdamW with a learning rate of 0: all are the same."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()

    return step


def run_prefill(session: Session, size: tuple[int, int, int], tokens: int, threads: int) -> None:
    """A prompt of `tokens` read into an empty cache, logits of its last token alone."""
    set_threads(threads)
    plan = session.plan
    generator = torch.Generator().manual_seed(plan.seed)
    ids = torch.randint(_VOCABULARY, (1, tokens), generator=generator).to(plan.device)
    models = dict(zip((OSN, SDPA), build(size, tokens, plan.device)))
    calibrated_quietly(models[OSN], ids[:, :_ALL_BLOCKS], partners_range=ladder(tokens))
    name = f"prefill, hidden {size[0]}, {size[1]} blocks, N {tokens}"
    described = describe(session, "prefill", name, threads, tokens, 1, size) | {"passes": FORWARD}
    described |= {
        "counted": density_of(models[OSN], ids[:, :_ALL_BLOCKS]),
        "backend": _backend(lambda: models[OSN](ids[:, :_PREFIX], use_cache=False)),
    }

    def filled(model: Any, given: Tensor) -> Tensor:
        return model(given, past_key_values=DecoderCache(model.config)).logits

    entrants = _field(*_check(models[OSN], ids[:, : 2 * _PREFIX], filled, backward=False))
    for each, model in models.items():
        if each not in entrants.wrong:
            entrants.runners[each] = _prefill_runner(model.eval(), ids)
    session.measure(described, entrants)


def _prefill_runner(model: Any, ids: Tensor) -> Callable[[], object]:
    def prefill() -> object:
        with torch.no_grad():
            return model(ids, past_key_values=DecoderCache(model.config), logits_to_keep=1)

    return prefill


def run_decode(session: Session, size: tuple[int, int, int], tokens: int, threads: int) -> None:
    """One more token with a cache of `tokens`, which grows by the steps that are timed."""
    set_threads(threads)
    plan = session.plan
    generator = torch.Generator().manual_seed(plan.seed)
    ids = torch.randint(_VOCABULARY, (1, tokens + 1), generator=generator).to(plan.device)
    models = dict(zip((OSN, SDPA), build(size, tokens, plan.device)))
    with _quiet():
        osn.calibrate(models[OSN], ids)
    name = f"decoding step, hidden {size[0]}, {size[1]} blocks, {tokens} cached"
    described = describe(session, "decode", name, threads, tokens, 1, size) | {"passes": FORWARD}
    described |= {"counted": density_of(models[OSN], ids)}

    def logits(model: nn.Module, given: Tensor) -> Tensor:
        return model(given, use_cache=False).logits

    reason, found = _check(models[OSN], ids, logits, backward=False)
    described |= {"backend": _backend(lambda: logits(models[OSN], ids))}
    errors: dict[str, dict[str, Any]] = {OSN: {"whole": found["out"]}, SDPA: {}}
    wrong: dict[str, str] = {} if reason is None else {OSN: reason}
    runners = {}
    for each, model in models.items():
        model.eval()
        with torch.no_grad():
            cache = DecoderCache(model.config)
            model(ids[:, :-1], past_key_values=cache)
            step = model(ids[:, -1:], past_key_values=cache).logits[:, -1]
            whole = model(ids, use_cache=False).logits[:, -1]
        error = _error(step, whole)
        errors[each]["out"] = error
        if each in wrong:
            continue
        if not error <= _TOLERANCE["out"]:
            wrong[each] = f"the cached step is off by {error:.1e} from the whole forward"
        else:
            runners[each] = _decode_runner(model, cache, ids[:, -1:])
    session.measure(described, Field(runners, {n: as_json(e) for n, e in errors.items()}, wrong, {}))


def run_generation(
    session: Session, size: tuple[int, int, int], tokens: int, batch: int, threads: int
) -> None:
    """A token for each of `batch` texts with a cache of `tokens`, beside the Transformer and a Llama.

    A text is filled in once and repeated. Tokens per second over another's are the inverse of the ratio of
    times.
    """
    set_threads(threads)
    plan = session.plan
    generator = torch.Generator().manual_seed(plan.seed)
    ids = torch.randint(_VOCABULARY, (1, tokens + 1), generator=generator).to(plan.device)
    ours, theirs = build(size, tokens, plan.device)
    models: dict[str, Any] = {OSN: ours, SDPA: theirs, LLAMA: _llama(theirs.config, plan.device)}
    first = ids[:, :_CALIBRATED]
    calibrated_quietly(ours, first)
    name = f"{batch} x {tokens} cached"
    described = describe(session, "generation", name, threads, tokens, batch, size) | {"passes": FORWARD}
    described |= {"counted": density_of(ours, first)}
    described |= {"backend": _backend(lambda: models[OSN](first, use_cache=False))}
    errors, wrong, runners, held = {}, {}, {}, {}
    for each, model in models.items():
        model.eval()
        cache = DynamicCache() if each == LLAMA else DecoderCache(model.config)
        last = ids[:, -1:].expand(batch, -1)
        with torch.no_grad():
            model(ids[:, :-1], past_key_values=cache, logits_to_keep=1)
            cache.batch_repeat_interleave(batch)
            step = model(last, past_key_values=cache).logits[:, -1]
            whole = step
            if each == OSN or tokens <= _ALL_BLOCKS:
                whole = model(ids, use_cache=False, logits_to_keep=1).logits[:, -1]
        if isinstance(cache, DecoderCache):
            held[each] = {"nbytes": cache.nbytes, "spare_nbytes": cache.spare_nbytes}
        error = _error(step, whole.expand_as(step))
        errors[each] = as_json({"out": error})
        if error <= _TOLERANCE["out"]:
            runners[each] = _decode_runner(model, cache, last)
        else:
            wrong[each] = f"the cached step is off by {error:.1e} from the whole forward"
    session.measure(described | {"cache": held}, Field(runners, errors, wrong, {}))


def _llama(like: Any, device: str) -> Any:
    """A `LlamaForCausalLM` of the sizes that a `TransformerConfig` has."""
    from transformers import LlamaConfig, LlamaForCausalLM  # slow

    config = LlamaConfig(
        vocab_size=like.vocab_size,
        hidden_size=like.hidden_size,
        intermediate_size=like.intermediate_size,
        num_hidden_layers=like.num_hidden_layers,
        num_attention_heads=like.num_attention_heads,
        max_position_embeddings=like.max_position_embeddings,
        tie_word_embeddings=True,
    )
    model: Any = LlamaForCausalLM(config)
    return model.to(device)


def _decode_runner(model: nn.Module, cache: Any, last: Tensor) -> Callable[[], object]:
    def step() -> object:
        with torch.no_grad():
            return model(last, past_key_values=cache)

    return step


def describe(
    session: Session, suite: str, name: str, threads: int, tokens: int, batch: int, size: tuple[int, int, int]
) -> dict[str, Any]:
    """What an entry of the record says of a case of a model."""
    hidden, layers, heads = size
    case = {"tokens": tokens, "batch": batch, "hidden_size": hidden, "layers": layers, "heads": heads}
    return {"suite": suite, "name": name, "threads": threads, "case": case}


def _field(wrong: str | None, found: dict[str, float]) -> Field:
    return Field({}, {OSN: as_json(found)}, {} if wrong is None else {OSN: wrong}, {}, warm={})


def _check(
    model: nn.Module, given: Tensor, output: Callable[[nn.Module, Tensor], Tensor], backward: bool = True
) -> tuple[str | None, dict[str, float]]:
    """What is wrong with our model (or None), and its errors: outputs and all gradients on the first tokens.

    The truth is a float64 copy of the model on the definition. Gradients are those of a cotangent that is 0
    after the first tokens.
    """
    first = min(_PREFIX, given.shape[1])
    parameters = tuple(model.parameters()) if backward else ()
    double = copy.deepcopy(model).double()
    exact_input = given[:, :first]
    exact_input = exact_input.double() if given.is_floating_point() else exact_input
    with _definition():
        right = output(double, exact_input)
        cotangent = torch.randn(right.shape, generator=torch.Generator().manual_seed(5)).to(right)
        right_gradients = _gradients(right, tuple(double.parameters()) if backward else (), cotangent)
    out = output(model, given)
    padded = torch.zeros_like(out)
    padded[:, :first] = cotangent.to(out)
    gradients = _gradients(out, parameters, padded)
    found = {"out": _error(out[:, :first].detach(), right.detach())}
    # Parameters whose gradient is 0 but for rounding are held to the size of all of them together.
    scale = max((float(g.norm()) for g in right_gradients if g is not None), default=0.0)
    errors = [
        float((g.double() - r).norm()) / max(float(r.norm()), 1e-3 * scale)
        for g, r in zip(gradients, right_gradients)
        if g is not None and r is not None
    ]
    finite = all(bool(torch.isfinite(g).all()) for g in gradients if g is not None)
    if backward:
        found["parameters"] = max(errors) if finite else float("inf")
    bad = [
        f"{'out' if name == 'out' else 'gradient of ' + name} is off by {error:.1e}"
        for name, error in found.items()
        if not error <= _TOLERANCE["out" if name == "out" else "gradient"]
    ]
    return "; ".join(bad) or None, found


def _gradients(out: Tensor, leaves: tuple[Tensor, ...], cotangent: Tensor) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(out, leaves, cotangent, allow_unused=True) if leaves else ()


def _error(found: Tensor, right: Tensor) -> float:
    if not bool(torch.isfinite(found).all()):
        return float("inf")
    return float((found.double() - right.double()).norm() / right.double().norm().clamp(min=1e-30))


@contextmanager
def operator_replaced(replacement: Callable[..., Any]) -> Iterator[None]:
    """Within it, the layers call something else than the operator."""
    original = attention_layer.selective_synchronization_attention
    attention_layer.selective_synchronization_attention = replacement
    try:
        yield
    finally:
        attention_layer.selective_synchronization_attention = original


def _definition() -> Any:
    return operator_replaced(partial(selective_synchronization_attention, backend="eager"))


def _backend(run: Callable[[], object]) -> str:
    """Which backend serves the layers of a model."""
    names: list[str] = []

    def spy(*args: Any, return_weights: bool = False, **kwargs: Any) -> Any:
        names.append(explain(*args, **kwargs).backend)
        return selective_synchronization_attention(*args, **kwargs)

    with operator_replaced(spy), torch.no_grad():
        run()
    return ", ".join(dict.fromkeys(names))


def density_of(model: nn.Module, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Mean density over layers and heads, counted by the layers themselves."""
    begin = time.perf_counter()
    layers = osn.locked_density(model, *args, **kwargs)
    values = torch.cat(list(layers.values()))
    return {
        "density": float(values.mean()),
        "per_head": [float(values.min()), float(values.max())],
        "seconds": round(time.perf_counter() - begin, 2),
    }


def calibrated_quietly(model: nn.Module, *args: Any, **kwargs: Any) -> None:
    """Calibrate a model on a batch, see `_quiet`."""
    with _quiet():
        osn.calibrate(model, *args, **kwargs)


@contextmanager
def _quiet() -> Iterator[None]:
    """Calibration's note that a head cannot be as sparse as wanted: the density is counted anyway."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the wanted densities")
        yield

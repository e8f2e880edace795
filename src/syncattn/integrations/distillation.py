"""A short training that gives a sparse model back what its zeros took, against the original on bare texts.

The couplings start high and are lowered on a schedule, all by one factor, so that the density falls from
`START` to what is wanted while the weights adapt. At first only what each attention adds is compared with the
original's, layer by layer; then also what the model gives.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from syncattn.checks import check_count, check_real, short
from syncattn.integrations.conversion import convert
from syncattn.integrations.measuring import (
    Conversion,
    Output,
    batches_of,
    check_recording,
    counting,
    every_token,
    mean_pooled,
    measure,
    outputs_of,
    restore,
    settings_of,
)
from syncattn.integrations.projections import Projections, find_projections, real_rows, watched
from syncattn.integrations.resuming import (
    FILE,
    Kept,
    fingerprint,
    prepare,
    read_kept,
    tensors_of,
    write_kept,
)
from syncattn.integrations.transformers import COUPLING, NAME, register

START = 0.6
"""The density at the start, unless more is wanted at the end."""

WEAKEST = 1e-3
"""The least coupling: each row then locks to its nearest sender, and to what is as near."""

_LOWERED = 0.6  # the share of the schedule in which the density falls; the rest is spent where it is wanted
_ATTENTION_ONLY = 0.2  # the share in which only the attentions' results are compared
_WARMED = 0.05  # the share in which the learning rate rises
_COUNTED = 4  # steps between two looks at the density
_ALLOCATED = 4  # batches on which the heads' couplings are weighed against each other
_LONGEST_MOVE = 0.5  # of log kappa, at one look


def distil(
    model: Any,
    original: Any,
    data: Iterable[Mapping[str, Tensor]],
    *,
    density: float,
    seconds: float | None = None,
    steps: int | None = None,
    output: Output = mean_pooled,
    learning_rate: float = 1e-4,
    seed: int = 0,
    folder: str | Path | None = None,
    save_seconds: float = 60.0,
    progress: bool = True,
) -> Conversion:
    """Train a model through SSA to give what the original gives, while its couplings fall to a density.

    All weights are trained but the embeddings', without dropout. The model then has
    `attn_implementation="ssa"` and `config.ssa_coupling`, which `save_pretrained` keeps. It is changed only
    if this returns: after an error or Ctrl-C it has the weights and the couplings that it was given with.

    Args:
        model: of transformers, float32. If it is converted, its couplings' proportions are kept; if not,
            `convert` finds them first.
        original: a model of the same architecture with its own attention, or what `from_pretrained` takes for
            it. It is not changed, and in evaluation mode meanwhile.
        data: batches, each the keyword arguments of one call of the model, without labels. Every eighth, or
            the last of fewer, is not trained on, and all that is told is measured on those.
        density: the wanted mean density, in (0, 1).
        seconds: how long it may take, by the clock, but for the last measurement. The schedule goes by it, so
            that two runs differ. Or
        steps: how many batches to train on: the same seed gives the same model, up to rounding. Exactly
            one of the two.
        output: the rows (..., E) of the outputs that are compared in the report, and by their cosine in the
            training: as in `convert`.
        learning_rate: of AdamW, the highest.
        seed: of the order of the batches.
        folder: where to keep what the training has come to, in one file, so that the same call (original,
            data and options) goes on after an interruption; it is removed at the end. None keeps nothing.
        save_seconds: how often it is kept.
        progress: a line on stderr, every second on a terminal, every ten elsewhere.

    Returns:
        What the model does now, measured on the batches held out.

    Raises:
        TypeError, ValueError: an argument is wrong, the model cannot be served, the data are too few or too
            short, or what is kept in the folder is of another call.
        OSError: the folder cannot be written to, before the training begins.
        RuntimeError: the training diverged.
    """
    began = time.perf_counter()
    check_real("density", density, "between 0 and 1", lambda x: 0 < x < 1)
    if (seconds is None) == (steps is None):
        raise ValueError(f"exactly one of seconds and steps must be given, got {seconds!r} and {steps!r}")
    if seconds is not None:
        check_real("seconds", seconds, "positive and finite", lambda x: 0 < x < math.inf)
    if steps is not None:
        check_count("steps", steps)
    check_real("learning_rate", learning_rate, "positive and finite", lambda x: 0 < x < math.inf)
    check_real("save_seconds", save_seconds, "at least 0", lambda x: x >= 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be an integer, at least 0, got {short(seed)}")
    config = getattr(model, "config", None)
    if not hasattr(model, "set_attn_implementation") or config is None:
        raise TypeError(f"model must be a model of transformers, got {type(model).__name__}")
    other = {x.dtype for x in model.parameters() if x.dtype != torch.float32}
    if other:
        raise ValueError(f"model must be float32 to be trained, got {short(other)}")
    check_recording("distil")
    batches = batches_of(data, model)
    if len(batches) < 2:
        raise ValueError("data must hold at least 2 batches, one is held out, got 1")
    teacher = _teacher(model, original)
    options: dict[str, Any] = {
        "density": density,
        "seconds": seconds,
        "steps": steps,
        "learning_rate": learning_rate,
        "seed": seed,
        "batches": len(batches),
    }
    kept = None
    if folder is not None:
        prepare(Path(folder))
        options["original"] = fingerprint(teacher.state_dict())
        options["data"] = fingerprint(*batches)
        kept = read_kept(Path(folder), options, _trained(model))

    before, had = config._attn_implementation, settings_of(config)
    weights = {name: x.detach().clone() for name, x in model.state_dict().items()}
    modes = [(module, module.training) for each in (model, teacher) for module in each.modules()]
    wanted = [(x, x.requires_grad) for x in model.parameters()]
    done = False
    try:
        teacher.eval()
        register()
        if had.get("ssa_coupling") is None:
            if progress:
                print("weighing the heads' couplings against each other", file=sys.stderr, flush=True)
            convert(model, batches[:: -(-len(batches) // _ALLOCATED)], density=density, output=output)
        else:
            model.set_attn_implementation(NAME)
        model.eval()
        run = _Run(model, teacher, batches, output, options, progress)
        if kept is not None:
            run.take(kept)
        run.prepared = time.perf_counter() - began
        run.train(None if folder is None else Path(folder), save_seconds)
        result = run.finish()
        done = True
    finally:
        for x, requires_grad in wanted:
            x.requires_grad_(requires_grad)
        model.zero_grad(set_to_none=True)
        for module, training in modes:
            module.training = training
        if not done:
            model.load_state_dict(weights)
            model.set_attn_implementation(before)
            restore(config, had)
    if folder is not None:
        (Path(folder) / FILE).unlink(missing_ok=True)
    return result


def _teacher(model: Any, original: Any) -> Any:
    if not isinstance(original, nn.Module):
        if not isinstance(original, (str, Path)):
            raise TypeError(f"original must be a model, a name or a folder, got {type(original).__name__}")
        original = type(model).from_pretrained(original)
    if original is model:
        raise ValueError("original must be another model than model, which is changed: load it twice")
    own, others = (
        {name: tuple(x.shape) for name, x in each.named_parameters()} for each in (model, original)
    )
    if own != others:
        first = sorted(set(own.items()) ^ set(others.items()))[0]
        raise ValueError(f"original must be of the model's architecture, they differ in {short(first)}")
    if getattr(original.config, "ssa_coupling", None) is not None:
        raise ValueError("original must not be converted: its configuration has ssa_coupling")
    return original.to(next(model.parameters()).device)


def _trained(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that are trained: all but the embeddings' tables."""
    tables = {id(x) for m in model.modules() if isinstance(m, nn.Embedding) for x in m.parameters()}
    return {name: x for name, x in model.named_parameters() if id(x) not in tables}


class _Run:
    """A training: the model, what it is compared with, and how far it has come."""

    def __init__(
        self,
        model: Any,
        teacher: Any,
        batches: list[dict[str, Any]],
        output: Output,
        options: dict[str, Any],
        progress: bool,
    ) -> None:
        self.model, self.teacher, self.output, self.options = model, teacher, output, options
        self.progress = progress
        held = set(range(7, len(batches), 8)) or {len(batches) - 1}
        self.held = [batches[number] for number in sorted(held)]
        self.batches = [batch for number, batch in enumerate(batches) if number not in held]
        projections: Projections = find_projections(model, batches[0])
        names = {id(module): name for name, module in model.named_modules()}
        others = dict(teacher.named_modules())
        self.students = [projections[layer] for layer in sorted(projections)]
        self.teachers = [others[names[id(module)]] for module in self.students]
        self.parameters = _trained(model)
        for x in model.parameters():
            x.requires_grad_(False)
        for x in self.parameters.values():
            x.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(
            list(self.parameters.values()), lr=options["learning_rate"], weight_decay=0.0
        )
        self.proportions = _as_lists(model)
        self.raised = 0.0  # log of the factor on all couplings
        self.step = 0
        self.elapsed = 0.0  # seconds of training, in this call and those before
        self.prepared = 0.0  # seconds that this call took before
        self._raise(-30.0)
        least = self._count(self.held[0])
        if least > options["density"]:
            raise ValueError(
                f"density must be at least {least:.4g}, that of the shortest reach on this data, got "
                f"{options['density']:g}"
            )
        self._raise(30.0)
        self.density = self._count(self.held[0])
        for _ in range(20):  # up to the density at the start
            if self.density >= self._limit(0.0) or self.raised > 12:
                break
            self._raise(0.7 * math.log(self._limit(0.0) / self.density) + 0.05)
            self.density = self._count(self.held[0])

    def take(self, kept: Kept) -> None:
        """Go on from what was kept."""
        kept.load_into(self.parameters, self.optimizer)
        self.step, self.elapsed, self.proportions = kept.step, kept.elapsed, kept.proportions
        self.raised = 0.0
        self._raise(kept.raised)

    def train(self, folder: Path | None, save_seconds: float) -> None:
        began = time.perf_counter() - self.elapsed
        saved = shown = -math.inf
        loss = math.nan
        while (share := self._share()) < 1:
            self.elapsed = time.perf_counter() - began
            if self.elapsed - shown >= (1 if sys.stderr.isatty() else 10):
                self._show(share, loss)
                shown = self.elapsed
            loss = self._learn(share)
            self.step += 1
            self.elapsed = time.perf_counter() - began
            if folder is not None and self.elapsed - saved >= save_seconds:
                write_kept(folder, self._kept())
                saved = self.elapsed
        self._show(1.0, loss)
        if self.progress and sys.stderr.isatty():
            print(file=sys.stderr)

    @torch.no_grad()
    def finish(self) -> Conversion:
        """Lower the couplings until the held-out batches are within the density, and measure."""
        reference = outputs_of(self.teacher, self.held, self.output)
        for _ in range(20):
            found = measure(self.model, self.held, self.output, reference)
            excess = math.log(found.mean_density / self.options["density"])
            if excess <= 0:
                break
            self._raise(-excess - 0.005)
        return found

    def _share(self) -> float:
        """How much of the schedule is over."""
        if self.options["steps"] is not None:
            return self.step / self.options["steps"]
        return self.elapsed / max(self.options["seconds"] - self.prepared, 1e-9)

    def _limit(self, share: float) -> float:
        """The density at that share of the schedule: in geometric progression."""
        wanted = self.options["density"]
        return wanted * (max(START, wanted) / wanted) ** max(0.0, 1 - share / _LOWERED)

    def _raise(self, by: float) -> None:
        """Multiply all couplings by exp(by)."""
        self.raised += by
        factor = math.exp(self.raised)
        self.model.config.ssa_coupling = [
            [min(max(round(kappa * factor, 6), WEAKEST), COUPLING) for kappa in row]
            for row in self.proportions
        ]

    @torch.no_grad()
    def _count(self, batch: dict[str, Any]) -> float:
        """The mean density of the heads for a batch."""
        with counting(self.model) as counts:
            self.model(**batch)
        found = torch.cat(list(counts.density().values()))
        return max(found.mean().item(), 1e-6)

    def _learn(self, share: float) -> float:
        """One step."""
        epoch, at = divmod(self.step, len(self.batches))
        order = torch.randperm(
            len(self.batches), generator=torch.Generator("cpu").manual_seed(self.options["seed"] + epoch)
        )
        batch = self.batches[order[at]]
        if self.step % _COUNTED == 0:
            self.density = self._count(batch)
            move = math.log(self._limit(share) / self.density)
            self._raise(max(-_LONGEST_MOVE, min(_LONGEST_MOVE, move)))
        rate = self.options["learning_rate"] * min(1.0, (share + 1e-3) / _WARMED)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * min(share, 1.0))) + 1e-8
        diverged = RuntimeError(
            f"the training diverged at step {self.step}: use a lower learning_rate than "
            f"{self.options['learning_rate']:g}"
        )
        with torch.enable_grad():
            try:
                loss = self._loss(batch, share)
            except ValueError as error:  # the operator's checks, if the last step went too far
                raise diverged if self.step and "finite" in str(error) else error from error
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        if not math.isfinite(norm.item()):
            raise diverged
        self.optimizer.step()
        return loss.item()

    def _loss(self, batch: dict[str, Any], share: float) -> Tensor:
        """What the model misses of what the original gives, a number."""
        with torch.no_grad():
            expected, results = watched(self.teacher, self.teachers, batch)
        given, sparse = watched(self.model, self.students, batch)
        loss = torch.stack([_error(x, y, batch) for x, y in zip(sparse, results)]).mean()
        if share >= _ATTENTION_ONLY:
            cosine = torch.cosine_similarity(self.output(given, batch), self.output(expected, batch), dim=-1)
            whole = _error(every_token(given, batch), every_token(expected, batch), {})
            loss = 0.3 * loss + whole + 10 * (1 - cosine).mean()
        return loss

    def _kept(self) -> Kept:
        return Kept(
            tensors=tensors_of(self.parameters, self.optimizer),
            options=self.options,
            step=self.step,
            elapsed=self.elapsed,
            raised=self.raised,
            proportions=self.proportions,
        )

    def _show(self, share: float, loss: float) -> None:
        if not self.progress:
            return
        line = (
            f"distilling {min(share, 1.0):4.0%}  step {self.step}  {self.elapsed:.0f} s  "
            f"density {self.density:.3f}" + ("" if math.isnan(loss) else f"  loss {loss:.4f}")
        )
        print(line, end="\r" if sys.stderr.isatty() else "\n", file=sys.stderr, flush=True)


def _as_lists(model: Any) -> list[list[float]]:
    """A model's couplings as numbers for each layer's heads."""
    setting, heads = model.config.ssa_coupling, model.config.num_attention_heads
    layers = setting if isinstance(setting, (list, tuple)) else [setting] * model.config.num_hidden_layers
    return [[float(x) for x in (row if isinstance(row, (list, tuple)) else [row] * heads)] for row in layers]


def _error(given: Tensor, expected: Tensor, batch: dict[str, Any]) -> Tensor:
    """The mean square of the real tokens' difference by that of what is expected."""
    given, expected = real_rows(given, batch), real_rows(expected, batch)
    return (given - expected).square().sum() / expected.square().sum().clamp(min=1e-12)

"""Training on a synthetic task, and how many of its answers are right."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedConfig, PreTrainedModel, set_seed
from transformers.modeling_outputs import CausalLMOutput

import syncattn.models  # noqa: F401  registers the models with the Auto classes
from syncattn.training.errors import Interrupted, UserError
from syncattn.training.fit import fit
from syncattn.training.loop import diverged, head_locking
from syncattn.training.options import TrainingOptions
from syncattn.training.progress import Display
from syncattn.training.settings import as_told, first_model
from syncattn.training.train import PROBE_WINDOWS
from syncattn.training.windows import Windows, stacked
from syncattn_lab.study.synthetic import IGNORED, Task
from syncattn_lab.study.varied import Setting, Varied

EVALUATION_SEED = 0
"""Of the validation and test windows: not the run's own, so that all runs are judged on the same ones."""

TEST_TOKENS = 32_768
"""About so many tokens of windows are tested at each size, if these are not fewer than `FEWEST` windows."""
FEWEST = 2


class Scores(NamedTuple):
    """How well answers are told, given those before them."""

    loss: float  # mean, nats per answer
    accuracy: float  # share of the answers that have the largest logit
    exact: float  # share of the windows all of whose answers have: what greedy generation gets right


def train_on_answers(
    config: PreTrainedConfig,
    task: Task | Varied,
    options: TrainingOptions,
    *,
    evaluate: int = 512,
    console: Console | None = None,
    label: str = "",
) -> tuple[dict[str, Any], PreTrainedModel]:
    """Train a model from scratch on a task, as `syncattn.training.train.train` does on text.

    Writes nothing: a run is short, and one that is interrupted is begun again.

    Args:
        config: of any causal language model that the Auto classes know; its vocabulary has the task's.
        options: `context` is the task's length (of a varied one, its largest); `eval_tokens` caps the
            evaluations during training, `save_every` and `final_eval_tokens` have no effect.
        evaluate: windows of the validation and of the test part.
        console: where progress goes; None is silent.
        label: the run's name in the progress.

    Returns:
        A record {"tokens", "parameters", "history", "result"} and the trained model. Losses are means in
        nats per answer, accuracies the share of answers that have the largest logit, densities of the first
        validation windows.

    Raises:
        UserError: the config or the options do not fit the task; `Diverged` when the loss is no longer
            finite; `Interrupted` after Ctrl-C.
    """
    _check(config, task, options, evaluate)
    if isinstance(task, Varied):
        task = replace(task, together=options.batch_size)
    with as_told(options):
        set_seed(options.seed)
        model, options = first_model(config, options, None)
        running = (
            min(evaluate, max(1, options.eval_tokens // task.length)) if options.eval_tokens else evaluate
        )
        count = options.steps * options.batch_size
        train = task.windows("train", count, options.seed)
        validation = task.windows("validation", running, EVALUATION_SEED)
        probed = min(PROBE_WINDOWS, running, options.batch_size)
        windows = Windows(train, validation, stacked(validation, probed))
        display = Display(console, label)
        try:
            with answers_alone(model):
                fitted = fit(model, windows, options, callbacks=[display])
        except Interrupted as error:
            raise Interrupted(f"{error}: the run has to begin again", error.step) from None
        finally:
            display.close()
        result = _scores(model, task, evaluate, options)
        times = ("density", "tokens_per_second", "train_seconds", "wall_seconds")
        result |= {name: getattr(fitted, name) for name in times}
        read = options.tokens
        if isinstance(task, Varied):
            read = task.tokens(count, options.seed)
            result["tokens_per_second"] *= read / options.tokens
        record = {"tokens": read, "parameters": fitted.parameters, "history": fitted.history}
        return record | {"result": result}, model


@contextmanager
def answers_alone(model: PreTrainedModel) -> Iterator[None]:
    """Within the block, a model that is given labels makes logits and its loss of the answers alone.

    The loss is the same. Over 8,192 tokens of vocabulary the logits of everything else are most of a step.
    """
    whole = model.forward

    def forward(
        input_ids: Tensor, labels: Tensor | None = None, num_items_in_batch: Any = None, **kwargs: Any
    ) -> Any:
        if labels is None:
            return whole(input_ids=input_ids, **kwargs)
        logits, wanted = _logits(model, whole, input_ids, labels, **kwargs)
        total = torch.nn.functional.cross_entropy(logits.float(), wanted, reduction="sum")
        count = num_items_in_batch if num_items_in_batch is not None else len(wanted)
        return CausalLMOutput(loss=total / count, logits=logits)

    model.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.forward


def answer_scores(model: PreTrainedModel, windows: Dataset, batch_size: int = 32) -> Scores:
    """How well a model tells the answers of windows, in full precision.

    Args:
        windows: with "input_ids" and "labels" (N,) each, labels -100 where there is no answer; those of a
            batch are of one length.
    """
    was_training = model.training
    model.eval()
    loss, right, count, whole, seen = 0.0, 0, 0, 0, 0
    try:
        with torch.no_grad():
            for batch in DataLoader(windows, batch_size=batch_size):
                ids, labels = (batch[name].to(model.device) for name in ("input_ids", "labels"))
                logits, wanted = _logits(model, model.forward, ids, labels, use_cache=False)
                found = logits.float()
                loss += float(torch.nn.functional.cross_entropy(found, wanted, reduction="sum"))
                hit = torch.ones_like(labels[:, 1:], dtype=torch.bool)
                hit[labels[:, 1:] != IGNORED] = found.argmax(-1) == wanted
                right += int((found.argmax(-1) == wanted).sum())
                count += len(wanted)
                whole += int(hit.all(1).sum())
                seen += len(ids)
    finally:
        model.train(was_training)
    return Scores(loss / count, right / count, whole / seen)


def scores_by_size(
    model: PreTrainedModel, tests: Sequence[tuple[Setting, Task]], most: int = 512
) -> list[dict[str, Any]]:
    """How well a trained model tells the answers at other sizes: for each a length, `Scores` and what locks.

    Args:
        tests: what is set, and the task.
        most: windows at most; fewer of long ones (`TEST_TOKENS`).
    """
    found = []
    for setting, task in tests:
        count = min(most, max(FEWEST, TEST_TOKENS // task.length))
        windows = task.windows("test", count, EVALUATION_SEED)
        scores = answer_scores(model, windows, max(1, min(32, 8192 // task.length)))
        locking = head_locking(model, stacked(windows, max(1, min(count, 2, 8192 // task.length))))
        means = {name: _mean(heads) for name, heads in locking._asdict().items()}
        entry = {"setting": setting, "length": task.length, "windows": count}
        found.append(entry | scores._asdict() | means)
    return found


def _logits(
    model: PreTrainedModel, forward: Any, input_ids: Tensor, labels: Tensor, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """Logits of the answers of a batch, (n, vocab_size), whatever the head does, and the answers (n,)."""
    answers = labels[:, 1:] != IGNORED

    def keep(module: torch.nn.Module, inputs: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[:, :-1][answers][None]
        return output

    handle = model.base_model.register_forward_hook(keep)
    try:
        logits = forward(input_ids=input_ids, **kwargs).logits[0]
    finally:
        handle.remove()
    return logits, labels[:, 1:][answers]


def _mean(layers: list[list[float]]) -> float | None:
    """Over layers and heads; None without any."""
    values = [value for heads in layers for value in heads]
    return sum(values) / len(values) if values else None


def _check(config: PreTrainedConfig, task: Task | Varied, options: TrainingOptions, evaluate: int) -> None:
    if config.vocab_size < task.vocab_size:
        raise UserError(
            f"config.vocab_size must be at least the task's {task.vocab_size} tokens, got {config.vocab_size}"
        )
    if options.context != task.length:
        raise UserError(f"context must be the task's length, {task.length} tokens, got {options.context}")
    if evaluate < 1:
        raise UserError(f"evaluate must be at least 1, got {evaluate}")


def _scores(
    model: PreTrainedModel, task: Task | Varied, evaluate: int, options: TrainingOptions
) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for part in ("validation", "test"):
        windows = task.windows(part, evaluate, EVALUATION_SEED)
        loss, accuracy, exact = answer_scores(model, windows, options.batch_size)
        if not math.isfinite(loss):
            raise diverged(options.steps, f"the {part} loss is {loss}", options)
        result |= {f"{part}_loss": loss, f"{part}_accuracy": accuracy, f"{part}_exact": exact}
    return result

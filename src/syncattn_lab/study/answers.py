"""Training on a synthetic task, and how many of its answers are right."""

from __future__ import annotations

import math
from typing import Any

import torch
from rich.console import Console
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedConfig, PreTrainedModel, set_seed

import syncattn.models  # noqa: F401  registers the models with the Auto classes
from syncattn.training.errors import Interrupted, UserError
from syncattn.training.fit import fit
from syncattn.training.loop import diverged
from syncattn.training.options import TrainingOptions
from syncattn.training.progress import Display
from syncattn.training.settings import as_told, first_model
from syncattn.training.train import PROBE_WINDOWS
from syncattn.training.windows import Windows, stacked
from syncattn_lab.study.synthetic import IGNORED, Task

EVALUATION_SEED = 0
"""Of the validation and test windows: not the run's own, so that all runs are judged on the same ones."""


def train_on_answers(
    config: PreTrainedConfig,
    task: Task,
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
        options: `context` is the task's length; `eval_tokens` caps the evaluations during training,
            `save_every` and `final_eval_tokens` have no effect.
        evaluate: windows of the validation and of the test part.
        console: where progress goes; None is silent.
        label: the run's name in the progress.

    Returns:
        A record {"parameters", "history", "result"} and the trained model. Losses are means in nats per
        answer, accuracies the share of answers that have the largest logit, densities of the first
        validation windows.

    Raises:
        UserError: the config or the options do not fit the task; `Diverged` when the loss is no longer
            finite; `Interrupted` after Ctrl-C.
    """
    _check(config, task, options, evaluate)
    with as_told(options):
        set_seed(options.seed)
        model, options = first_model(config, options, None)
        running = (
            min(evaluate, max(1, options.eval_tokens // task.length)) if options.eval_tokens else evaluate
        )
        train = task.windows("train", options.steps * options.batch_size, options.seed)
        validation = task.windows("validation", running, EVALUATION_SEED)
        windows = Windows(train, validation, stacked(validation, min(PROBE_WINDOWS, running)))
        display = Display(console, label)
        try:
            fitted = fit(model, windows, options, callbacks=[display])
        except Interrupted as error:
            raise Interrupted(f"{error}: the run has to begin again", error.step) from None
        finally:
            display.close()
        result = _scores(model, task, evaluate, options)
        times = ("density", "tokens_per_second", "train_seconds", "wall_seconds")
        result |= {name: getattr(fitted, name) for name in times}
        return {"parameters": fitted.parameters, "history": fitted.history, "result": result}, model


def answer_scores(model: PreTrainedModel, windows: Dataset, batch_size: int = 32) -> tuple[float, float]:
    """Mean loss in nats per answer, and share of the answers that have the largest logit, in full precision.

    Args:
        windows: with "input_ids" and "labels" (N,) each, labels -100 where there is no answer.
    """
    was_training = model.training
    model.eval()
    loss, right, count = 0.0, 0, 0
    try:
        with torch.no_grad():
            for batch in DataLoader(windows, batch_size=batch_size):
                ids, labels = (batch[name].to(model.device) for name in ("input_ids", "labels"))
                logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
                answers = labels[:, 1:] != IGNORED
                found, wanted = logits[answers].float(), labels[:, 1:][answers]
                loss += float(torch.nn.functional.cross_entropy(found, wanted, reduction="sum"))
                right += int((found.argmax(-1) == wanted).sum())
                count += len(wanted)
    finally:
        model.train(was_training)
    return loss / count, right / count


def _check(config: PreTrainedConfig, task: Task, options: TrainingOptions, evaluate: int) -> None:
    if config.vocab_size < task.vocab_size:
        raise UserError(
            f"config.vocab_size must be at least the task's {task.vocab_size} tokens, got {config.vocab_size}"
        )
    if options.context != task.length:
        raise UserError(f"context must be the task's length, {task.length} tokens, got {options.context}")
    if evaluate < 1:
        raise UserError(f"evaluate must be at least 1, got {evaluate}")


def _scores(model: PreTrainedModel, task: Task, evaluate: int, options: TrainingOptions) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for part in ("validation", "test"):
        windows = task.windows(part, evaluate, EVALUATION_SEED)
        loss, accuracy = answer_scores(model, windows, options.batch_size)
        if not math.isfinite(loss):
            raise diverged(options.steps, f"the {part} loss is {loss}", options)
        result |= {f"{part}_loss": loss, f"{part}_accuracy": accuracy}
    return result

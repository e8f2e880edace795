"""Training on a synthetic task, and how many of its answers are right."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.utils.data import DataLoader, Dataset
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, set_seed
from transformers.trainer_utils import SaveStrategy

import syncattn.models  # noqa: F401  registers the models with the Auto classes
from syncattn.nn import calibrate
from syncattn.training.errors import Interrupted, UserError
from syncattn.training.files import CHECKPOINTS
from syncattn.training.loop import Loop, diverged, has_diverged, stop_on_signals
from syncattn.training.options import TrainingOptions
from syncattn.training.progress import Display
from syncattn.training.train import (
    PROBE_WINDOWS,
    _threads,
    _training_arguments,
    history,
    parameter_count,
    quiet,
    wants_calibration,
)
from syncattn_lab.study.synthetic import IGNORED, Task

EVALUATION_SEED = 0
"""Of the validation and test windows: not the run's own, so that all runs are judged on the same ones."""


def train_on_answers(
    config: PreTrainedConfig,
    task: Task,
    out: Path,
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
        out: the run's folder, which need not exist.
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
    with quiet(), _threads(options.threads):
        set_seed(options.seed)
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config))
        train_windows = task.windows("train", options.steps * options.batch_size, options.seed)
        running = (
            min(evaluate, max(1, options.eval_tokens // task.length)) if options.eval_tokens else evaluate
        )
        validation: Any = task.windows("validation", running, EVALUATION_SEED)
        probe = torch.stack([validation[i]["input_ids"] for i in range(min(PROBE_WINDOWS, len(validation)))])
        if options.calibrate and wants_calibration(model):
            first = torch.stack([train_windows[i]["input_ids"] for i in range(options.batch_size)])
            calibrate(model, input_ids=first, use_cache=False)
        arguments = _training_arguments(out, options)
        arguments.save_strategy = SaveStrategy.NO
        display = Display(console, label)
        loop = Loop(model, arguments, options, None, train_windows, validation, out, probe, [display])
        try:
            with stop_on_signals(loop):
                loop.train()
            if loop.state.global_step < options.steps:
                raise KeyboardInterrupt
            return _finish(loop, task, evaluate)
        except KeyboardInterrupt:
            raise Interrupted(
                f"stopped at step {loop.state.global_step} of {options.steps}: the run has to begin again"
            ) from None
        except ValueError as error:
            # The operator refuses what overflowed, which may happen before the loss is looked at.
            if isinstance(error, UserError) or not has_diverged(model):
                raise
            raise diverged(loop.state.global_step, str(error), options) from error
        finally:
            display.close()
            _remove_if_empty(out / CHECKPOINTS)  # the Trainer makes it


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
        raise UserError(f"config.vocab_size is {config.vocab_size}, the task has {task.vocab_size} tokens")
    if options.context != task.length:
        raise UserError(f"context must be the task's length, {task.length} tokens, got {options.context}")
    if evaluate < 1:
        raise UserError(f"evaluate must be at least 1, got {evaluate}")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device is 'cuda', but PyTorch sees no CUDA device here; see `syncattn doctor`")


def _finish(loop: Loop, task: Task, evaluate: int) -> tuple[dict[str, Any], PreTrainedModel]:
    model: PreTrainedModel = loop.accelerator.unwrap_model(loop.model)
    result: dict[str, Any] = {}
    for part in ("validation", "test"):
        windows = task.windows(part, evaluate, EVALUATION_SEED)
        loss, accuracy = answer_scores(model, windows, loop.options.batch_size)
        if not math.isfinite(loss):
            raise diverged(loop.state.global_step, f"the {part} loss is {loss}", loop.options)
        result |= {f"{part}_loss": loss, f"{part}_accuracy": accuracy}
    result |= {
        "density": loop.densities(),
        "tokens_per_second": loop.tokens_per_second,
        "train_seconds": loop.train_seconds,
        "wall_seconds": loop.elapsed(),
    }
    record = {
        "parameters": parameter_count(model),
        "history": history(loop.state.log_history),
        "result": result,
    }
    return record, model


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()

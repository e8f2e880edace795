"""One training run: from a config and a corpus to a folder with the model and every number measured."""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import shlex
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging as transformers_logging

import syncattn.models  # noqa: F401  registers the models with the Auto classes
from syncattn.nn import SelectiveSynchronizationAttention, calibrate
from syncattn.training.checkpoints import check_checkpoint, find_checkpoint, load_config
from syncattn.training.data import Corpus, encode_corpus, reload_corpus
from syncattn.training.environment import command, machine, versions
from syncattn.training.errors import Interrupted, UserError
from syncattn.training.files import (
    CHECKPOINTS,
    LOGS,
    RESULT_FILE,
    RUN_FILE,
    check_output,
    disk_errors,
    prepare_output,
    read_json,
    staged,
    write_json,
)
from syncattn.training.loop import Loop, diverged, has_diverged, stop_on_signals
from syncattn.training.options import TrainingOptions
from syncattn.training.progress import Display
from syncattn.training.settings import chosen_backend, describe_config, first_model
from syncattn.training.tokenizers import encode, load_tokenizer
from syncattn.training.windows import EvaluationWindows, RandomWindows

PROBE_WINDOWS = 4
"""Windows of validation text on which densities are measured."""


def train(
    config: PreTrainedConfig,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    out: str | Path,
    options: TrainingOptions,
    *,
    overwrite: bool = False,
    checkpoint: Path | None = None,
    console: Console | None = None,
    label: str = "",
) -> dict[str, Any]:
    """Train a model from scratch or from a trained one's weights, or go on from a checkpoint of the same run.

    The finished folder has `config.json`, `model.safetensors`, the tokeniser's files, and `training.json`,
    whose content is returned: options, data, history (loss, validation loss, density per layer and head,
    tokens per second), result, versions, machine and command. Losses are means in nats per predicted token.
    The same seed on the same machine gives the same losses, interrupted or not.

    Args:
        config: of any causal language model that the Auto classes know; its vocabulary must be the
            tokeniser's.
        out: a new or empty folder, unless `overwrite` or `checkpoint` is given.
        checkpoint: one of this run's own, see `resume`.
        console: where progress goes; None is silent.
        label: the run's name in the progress.

    Raises:
        UserError: bad options, data or output folder; `Diverged` when the loss is no longer finite;
            `Interrupted` after Ctrl-C, with how to go on.
    """
    out = Path(out)
    check_start(config, tokenizer, options)
    main = int(os.environ.get("RANK", "0")) == 0
    if checkpoint is None and main:
        check_output(out, overwrite=overwrite)
    with quiet(), _threads(options.threads), chosen_backend(options.backend):
        tokens = encode_corpus(corpus, lambda text: encode(tokenizer, text), options.context)
        set_seed(options.seed)
        model, options = first_model(config, options, checkpoint)
        arguments = _training_arguments(out, options)
        train_windows = RandomWindows(
            tokens["train"], options.context, options.steps * options.batch_size, options.seed
        )
        eval_windows = EvaluationWindows(tokens["validation"], options.context, options.eval_tokens or None)
        probe = _stack(
            EvaluationWindows(tokens["validation"], options.context, PROBE_WINDOWS * options.context)
        )
        if checkpoint is None and options.calibrates and wants_calibration(model):
            first = torch.stack([train_windows[i]["input_ids"] for i in range(options.batch_size)])
            # Where it will train: a backend asked for by name may be of that device alone.
            calibrate(model.to(arguments.device), input_ids=first.to(arguments.device), use_cache=False)
        # Only now, so that a start that fails leaves nothing behind.
        if checkpoint is None and main:
            # The final model, one checkpoint (model and two moments), another while it is replaced, logs.
            prepare_output(out, 8 * 4 * parameter_count(model) + 2_000_000, overwrite=overwrite)
            (out / CHECKPOINTS).mkdir(exist_ok=True)
            write_json(out / RUN_FILE, _run_description(config, corpus, tokenizer, options))
        display = Display(console if main else None, label, every_log=options.log_every is not None)
        loop = Loop(
            model,
            arguments,
            options,
            tokenizer,
            train_windows,
            eval_windows,
            out,
            probe,
            [display, *_tensorboard(out, main)],
        )
        if checkpoint is not None:
            loop.restore(checkpoint)
        try:
            with stop_on_signals(loop):
                loop.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        except KeyboardInterrupt:
            raise _interrupted(out, loop.state.global_step) from None
        except ValueError as error:
            # The operator refuses what overflowed, which may happen before the loss is looked at.
            if isinstance(error, UserError) or not has_diverged(model):
                raise
            raise diverged(loop.state.global_step, str(error), options) from error
        finally:
            display.close()
        if loop.state.global_step < options.steps:
            raise _interrupted(out, loop.state.global_step)
        try:
            return _finish(loop, tokens, corpus, main)
        except KeyboardInterrupt:
            raise _interrupted(out, loop.state.global_step) from None


def check_start(
    config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, options: TrainingOptions
) -> None:
    """What can be known before any work.

    Raises:
        UserError: a vocabulary that does not fit, a batch that the processes cannot share, no such device, no
            such backend.
    """
    if config.vocab_size < len(tokenizer):
        raise UserError(
            f"config.vocab_size is {config.vocab_size}, the tokenizer has {len(tokenizer)} tokens"
        )
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if options.batch_size % processes:
        raise UserError(
            f"batch_size is {options.batch_size}, which {processes} processes cannot share equally"
        )
    with chosen_backend(options.backend):
        pass
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device is 'cuda', but PyTorch sees no CUDA device here; see `syncattn doctor`")


def resume(folder: str | Path, console: Console | None = None, label: str = "") -> dict[str, Any]:
    """Go on with an unfinished run, with the text and options that it was started with.

    Args:
        folder: the run's output folder, or one of its checkpoints.

    Raises:
        UserError: the folder is neither, its run is finished, or its text has changed; and what `train`
            raises.
    """
    folder = Path(folder).absolute()
    if (folder / RESULT_FILE).is_file():
        raise UserError(f"nothing to resume: the run in {folder} is finished")
    checkpoint = find_checkpoint(folder)
    out = checkpoint.parent.parent
    run = read_json(out / RUN_FILE)
    try:
        options = TrainingOptions(**run["options"])
        corpus, digest = reload_corpus(run["data"]), run["data"]["sha256"]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"cannot resume from {folder}: {out / RUN_FILE} is not a run's description ({error})"
        ) from error
    if corpus.sha256 != digest:
        raise UserError(
            f"cannot resume from {folder}: the text in {', '.join(corpus.sources)} has changed since the run "
            "began"
        )
    config = load_config(checkpoint)
    tokenizer = load_tokenizer(checkpoint)
    check_checkpoint(checkpoint)
    return train(config, corpus, tokenizer, out, options, checkpoint=checkpoint, console=console, label=label)


def parameter_count(model: torch.nn.Module) -> int:
    """Trainable parameters, shared ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _finish(loop: Loop, tokens: dict[str, torch.Tensor], corpus: Corpus, main: bool) -> dict[str, Any]:
    """Evaluate, write the final files, remove the checkpoints."""
    options, out = loop.options, loop.out
    for callback in _tensorboard(
        out, main
    ):  # closed by now; it would open a second file for the last numbers
        loop.remove_callback(type(callback))
    result: dict[str, Any] = {}
    for name in ("validation", "test"):
        windows = EvaluationWindows(tokens[name], options.context, options.final_eval_tokens or None)
        loss = result[f"{name}_loss"] = loop.evaluate(windows, metric_key_prefix=name)[f"{name}_loss"]
        if not math.isfinite(loss):
            raise diverged(loop.state.global_step, f"the {name} loss is {loss}", options)
        result[f"{name}_tokens"] = windows.predicted
    result |= {
        "density": loop.densities(),
        "tokens_per_second": loop.tokens_per_second,
        "train_seconds": loop.train_seconds,
        "wall_seconds": loop.elapsed(),
    }
    model: PreTrainedModel = loop.accelerator.unwrap_model(loop.model)
    record = {
        "format": 1,
        **_run_description(model.config, corpus, loop.tokenizer, options),
        "parameters": parameter_count(model),
        "tokens": {name: len(part) for name, part in tokens.items()},
        "history": history(loop.state.log_history),
        "result": result,
        "device": str(loop.args.device),
    }
    if main:
        kept = f"its last checkpoint is in {out / CHECKPOINTS}"
        with disk_errors(f"cannot write the model to {out}; {kept}"), staged(out, last=RESULT_FILE) as folder:
            loop.save_final(folder)
            write_json(folder / RESULT_FILE, record)
        shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
        (out / RUN_FILE).unlink(missing_ok=True)
    return record


def history(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The Trainer's log as one entry per step: loss, validation_loss, grad_norm, density and so on."""
    names = {"loss": "loss", "eval_loss": "validation_loss", "grad_norm": "grad_norm", "density": "density"}
    names |= {"learning_rate": "learning_rate", "tokens_per_second": "tokens_per_second"}
    entries: dict[int, dict[str, Any]] = {}
    for line in log:
        # JSON has no nan or inf, which a gradient's norm may be once.
        found = {new: _finite(line[old]) for old, new in names.items() if old in line}
        if found:
            entries.setdefault(line["step"], {"step": line["step"]}).update(found)
    return list(entries.values())


def wants_calibration(model: PreTrainedModel) -> bool:
    """Whether a model has SSA layers in the trainable form; the published form keeps its published start."""
    has_ssa = any(isinstance(module, SelectiveSynchronizationAttention) for module in model.modules())
    return has_ssa and getattr(model.config, "parametrisation", None) == "log"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _run_description(
    config: PreTrainedConfig, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, options: TrainingOptions
) -> dict[str, Any]:
    """What identifies a run and what it ran on."""
    return {
        "model_type": config.model_type,
        "config": describe_config(config),
        "options": options.as_dict(),
        "data": corpus.describe() | {"vocabulary": len(tokenizer)},
        "command": command(),
        "versions": versions(),
        "machine": machine(),
    }


def _training_arguments(out: Path, options: TrainingOptions) -> TrainingArguments:
    per_device = options.batch_size // int(os.environ.get("WORLD_SIZE", "1"))
    arguments = TrainingArguments(
        output_dir=str(out / CHECKPOINTS),
        per_device_train_batch_size=per_device,
        per_device_eval_batch_size=per_device,
        max_steps=options.steps,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        adam_beta2=options.beta2,
        max_grad_norm=options.max_grad_norm,
        lr_scheduler_type="cosine",
        warmup_steps=options.warmup_steps,
        logging_steps=options.every("log"),
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=options.every("eval"),
        save_strategy="steps",
        save_steps=options.every("save"),
        prediction_loss_only=True,
        bf16=options.precision == "bf16",
        use_cpu=options.device == "cpu" or not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available() and options.device != "cpu",
        seed=options.seed,
        remove_unused_columns=False,
        # Every parameter of the models here gets a gradient; looking for others costs time in every step.
        ddp_find_unused_parameters=False,
        disable_tqdm=True,
        log_level="error",
        log_level_replica="error",
        report_to="none",
    )
    # One process, one device: for several there are `torchrun` and `accelerate launch`, not DataParallel.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _tensorboard(out: Path, main: bool) -> list[TrainerCallback]:
    if not main or importlib.util.find_spec("tensorboard") is None:
        return []
    from transformers.integrations import TensorBoardCallback

    callback = TensorBoardCallback()
    callback.logging_dir = str(out / LOGS)
    return [callback]


def _interrupted(out: Path, step: int) -> Interrupted:
    try:
        found = find_checkpoint(out).name.rpartition("-")[2]
    except UserError:
        return Interrupted(
            f"stopped at step {step}, before the first checkpoint: there is nothing to go on from in {out}"
        )
    return Interrupted(
        f"stopped at step {step}; the checkpoint of step {found} is in {out / CHECKPOINTS}: go on with "
        f"`syncattn train --resume {shlex.quote(str(out))}`"
    )


def _stack(windows: EvaluationWindows) -> torch.Tensor:
    return torch.stack([windows[i]["input_ids"] for i in range(len(windows))])


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' progress bars, hints and warnings out of the output; errors still show."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    accelerate = logging.getLogger("accelerate")
    accelerate_level = accelerate.level
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    accelerate.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        accelerate.setLevel(accelerate_level)
        if bars:
            transformers_logging.enable_progress_bar()

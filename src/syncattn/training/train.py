"""One training run: from a config and a corpus to a folder with the model and every number measured."""

from __future__ import annotations

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
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging as transformers_logging

import syncattn.models  # noqa: F401  registers the models with the Auto classes
from syncattn.nn import SelectiveSynchronizationAttention, calibrate
from syncattn.training.checkpoints import (
    check_checkpoint,
    check_weights,
    find_checkpoint,
    is_checkpoint,
    load_config,
)
from syncattn.training.data import Corpus, encode_corpus, reload_corpus
from syncattn.training.errors import DiskError, Interrupted, UserError
from syncattn.training.files import (
    CHECKPOINTS,
    LOGS,
    RESULT_FILE,
    RUN_FILE,
    check_output,
    disk_errors,
    prepare_output,
    remove_staging,
    staged,
    write_json,
)
from syncattn.training.lock import locked
from syncattn.training.logs import EventFile, has_tensorboard
from syncattn.training.loop import Loop, diverged, has_diverged, stop_on_signals
from syncattn.training.options import TrainingOptions
from syncattn.training.progress import Display
from syncattn.training.record import describe_run, history, read_run, write_start
from syncattn.training.settings import chosen_backend, first_model
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
    with locked(out), _says_how_to_go_on(out):
        return _train(config, corpus, tokenizer, out, options, overwrite, checkpoint, console, label)


def _train(
    config: PreTrainedConfig,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    options: TrainingOptions,
    overwrite: bool,
    checkpoint: Path | None,
    console: Console | None,
    label: str,
) -> dict[str, Any]:
    """`train` in a folder that no other process has."""
    main = int(os.environ.get("RANK", "0")) == 0
    state = checkpoint if checkpoint is not None and is_checkpoint(checkpoint) else None
    if checkpoint is None and main:
        check_output(out, overwrite=overwrite)
    elif main:
        for folder in (out, out / CHECKPOINTS):
            remove_staging(folder)
        if state is None:
            shutil.rmtree(out / LOGS, ignore_errors=True)  # they begin again, too
    with quiet(), _threads(options.threads), chosen_backend(options.backend):
        tokens = encode_corpus(corpus, lambda text: encode(tokenizer, text), options.context)
        set_seed(options.seed)
        model, options = first_model(config, options, state)
        arguments = _training_arguments(out, options)
        train_windows = RandomWindows(
            tokens["train"], options.context, options.steps * options.batch_size, options.seed
        )
        eval_windows = EvaluationWindows(tokens["validation"], options.context, options.eval_tokens or None)
        probe = _stack(
            EvaluationWindows(tokens["validation"], options.context, PROBE_WINDOWS * options.context)
        )
        if state is None and options.calibrates and wants_calibration(model):
            first = torch.stack([train_windows[i]["input_ids"] for i in range(options.batch_size)])
            # Where it will train: a backend asked for by name may be of that device alone.
            calibrate(model.to(arguments.device), input_ids=first.to(arguments.device), use_cache=False)
        # Only now, so that a start that fails leaves nothing behind.
        if checkpoint is None and main:
            # The final model, one checkpoint (model and two moments), another while it is replaced, logs.
            prepare_output(out, 8 * 4 * parameter_count(model) + 2_000_000, overwrite=overwrite)
            write_start(out, describe_run(config, corpus, tokenizer, options), config, tokenizer)
        display = Display(console if main else None, label, every_log=options.log_every is not None)
        logs = [EventFile(out / LOGS)] if main and has_tensorboard() else []
        loop = Loop(
            model,
            arguments,
            options,
            tokenizer,
            train_windows,
            eval_windows,
            out,
            probe,
            [display, *logs],
        )
        if state is not None:
            loop.restore(state)
        try:
            with stop_on_signals(loop):
                loop.train(resume_from_checkpoint=None if state is None else str(state))
        except KeyboardInterrupt:
            raise _interrupted(out, loop.state.global_step) from None
        except ValueError as error:
            # The operator refuses what overflowed, which may happen before the loss is looked at.
            if isinstance(error, UserError) or not has_diverged(model):
                raise
            raise diverged(loop.state.global_step, str(error), options) from error
        finally:
            display.close()
            for log in logs:
                log.close()
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
    folder = Path(folder).expanduser().absolute()
    out = folder.parent.parent if folder.parent.name == CHECKPOINTS else folder
    if not folder.is_dir():
        raise UserError(f"cannot resume from {folder}: no such folder")
    if (out / RESULT_FILE).is_file():
        raise UserError(f"nothing to resume: the run in {out} is finished")
    if not (out / RUN_FILE).exists():
        raise UserError(
            f"cannot resume from {folder}: it holds no checkpoint, {out} no {RUN_FILE} (expected the --out "
            f"folder of an unfinished run, or one of its {CHECKPOINTS}/checkpoint-N)"
        )
    with locked(out), _says_how_to_go_on(out):
        checkpoint = find_checkpoint(folder)
        options, data = read_run(out, check_checkpoint(checkpoint))
        config = load_config(checkpoint)
        if is_checkpoint(checkpoint):
            check_weights(checkpoint, config)
        tokenizer = load_tokenizer(checkpoint)
        corpus = reload_corpus(data)
        if corpus.sha256 != data["sha256"]:
            texts = ", ".join(data["sources"])
            raise UserError(
                f"cannot resume from {folder}: the text in {texts} has changed since the run began"
            )
        return train(
            config, corpus, tokenizer, out, options, checkpoint=checkpoint, console=console, label=label
        )


def parameter_count(model: torch.nn.Module) -> int:
    """Trainable parameters, shared ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _finish(loop: Loop, tokens: dict[str, torch.Tensor], corpus: Corpus, main: bool) -> dict[str, Any]:
    """Evaluate, write the final files, remove the checkpoints."""
    options, out = loop.options, loop.out
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
        **describe_run(model.config, corpus, loop.tokenizer, options),
        "parameters": parameter_count(model),
        "tokens": {name: len(part) for name, part in tokens.items()},
        "history": history(loop.state.log_history),
        "result": result,
        "device": str(loop.args.device),
    }
    if main:
        with disk_errors(f"cannot write the model to {out}"), staged(out, last=RESULT_FILE) as folder:
            loop.save_final(folder)
            write_json(folder / RESULT_FILE, record)
        shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
        (out / RUN_FILE).unlink(missing_ok=True)
    return record


def wants_calibration(model: PreTrainedModel) -> bool:
    """Whether a model has SSA layers in the trainable form; the published form keeps its published start."""
    has_ssa = any(isinstance(module, SelectiveSynchronizationAttention) for module in model.modules())
    return has_ssa and getattr(model.config, "parametrisation", None) == "log"


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


@contextmanager
def _says_how_to_go_on(out: Path) -> Iterator[None]:
    """Ctrl-C at any time, and a full disk, end in one line that has the way to go on, if there is one."""
    try:
        yield
    except KeyboardInterrupt:
        raise _interrupted(out) from None
    except DiskError as error:
        way = _way_to_go_on(out)
        raise type(error)(f"{error}; {way}" if way and way not in str(error) else str(error)) from error


def _interrupted(out: Path, step: int | None = None) -> Interrupted:
    stopped = "stopped" if step is None else f"stopped at step {step}"
    return Interrupted(f"{stopped}; {_way_to_go_on(out) or f'there is nothing to go on from in {out}'}")


def _way_to_go_on(out: Path) -> str | None:
    """In words; None if nothing is kept."""
    if (out / RESULT_FILE).is_file():
        return f"the run is finished, its model is in {out}"
    try:
        found = find_checkpoint(out)
    except UserError:
        return None
    what = f"the checkpoint of step {found.name.rpartition('-')[2]} is in {out / CHECKPOINTS}: go on with"
    if not is_checkpoint(found):
        what = "that is before the first checkpoint: begin again with"
    return f"{what} `syncattn train --resume {shlex.quote(str(out))}`"


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

"""One model trained on windows of tokens: no text, no files of its own, no command line."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments

from syncattn.backends.select import BackendError
from syncattn.nn import SelectiveSynchronizationAttention, calibrate
from syncattn.training.errors import Interrupted, UserError
from syncattn.training.loop import Keeping, Loop, diverged, has_diverged, stop_on_signals
from syncattn.training.optimizers import check_muon
from syncattn.training.options import TrainingOptions
from syncattn.training.record import history
from syncattn.training.settings import as_told
from syncattn.training.windows import Windows, inputs_of

START_AROUND = (0.5, 5.0)
"""The ladder of partners at the start: from so many times `start_partners` to so many, as densities of .05 to
.5 are around the limit of .1."""


@dataclass(frozen=True)
class Fitted:
    """What there is to say of a run.

    Attributes:
        parameters: trainable ones, shared ones counted once.
        losses: of the final windows by name, means in nats per predicted token.
        density: the share of allowed pairs that lock on the probe at the end, (layer, head); [] without SSA.
        partners: how many senders a receiver locks with there, in the mean, (layer, head).
        tokens_per_second, train_seconds: of the training steps alone.
        wall_seconds: of all, before an interruption too.
        history: an entry for each step with a log or an evaluation.
        device: where the model is.
    """

    parameters: int
    losses: dict[str, float]
    density: list[list[float]]
    partners: list[list[float]]
    tokens_per_second: float
    train_seconds: float
    wall_seconds: float
    history: list[dict[str, Any]]
    device: str


def fit(
    model: PreTrainedModel,
    windows: Windows,
    options: TrainingOptions,
    *,
    callbacks: Sequence[TrainerCallback] = (),
    keep: Keeping | None = None,
) -> Fitted:
    """Train a model in place. The same seed on the same machine gives the same losses, interrupted or not.

    Args:
        model: any causal language model; one with SSA layers is first calibrated, if the options say so.
        callbacks: called at each log, evaluation and step.
        keep: what to leave on the way and what to go on from; None leaves nothing.

    Raises:
        UserError: no such device, backend or optimizer, or a first batch in which no receiver has a choice
            among senders, on which nothing can be calibrated; `Diverged` when the loss is no longer finite;
            `Interrupted` after Ctrl-C, with the step.
    """
    check_device(options)
    if options.optimizer == "muon":
        check_muon()
    with as_told(options):
        arguments = _arguments(model, options, keep)
        state = None if keep is None else keep.state
        if state is None and options.calibrates and wants_calibration(model):
            first: dict[str, Any] = inputs_of(windows.train, range(options.batch_size))
            # Where it will train: a backend asked for by name may be of that device alone.
            device: Any = arguments.device
            placed = {name: x.to(device) for name, x in first.items()}
            ladder = starting_partners(model, options, first.get("sequence_ids"))
            try:
                calibrate(model.to(device), partners_range=ladder, use_cache=False, **placed)
            except BackendError:
                raise
            except ValueError as error:  # windows of two tokens, or nothing but one token everywhere
                raise UserError(f"calibrate must be False with such a first batch: {error}") from error
        if keep is not None:
            keep.begin()
        loop = Loop(model, arguments, windows, options, keep, callbacks)
        try:
            with stop_on_signals(loop):
                loop.train(resume_from_checkpoint=None if state is None else str(state))
            if loop.state.global_step < options.steps:
                raise KeyboardInterrupt
            return _measured(loop, windows)
        except KeyboardInterrupt:
            step = loop.state.global_step
            raise Interrupted(f"stopped at step {step} of {options.steps}", step) from None
        except ValueError as error:
            # The operator refuses what overflowed, which may happen before the loss is looked at.
            if isinstance(error, UserError) or not has_diverged(model):
                raise
            raise diverged(loop.state.global_step, str(error), options) from error


def check_device(options: TrainingOptions) -> None:
    """Refuse a device that is not there.

    Raises:
        UserError: the options want one.
    """
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "device must be 'auto' or 'cpu' where PyTorch sees no CUDA device (see `syncattn doctor`), "
            "got 'cuda'"
        )


def parameter_count(model: torch.nn.Module) -> int:
    """Trainable parameters, shared ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def wants_calibration(model: PreTrainedModel) -> bool:
    """Whether a model has SSA layers in the trainable form; the published form keeps its published start."""
    has_ssa = any(isinstance(module, SelectiveSynchronizationAttention) for module in model.modules())
    return has_ssa and getattr(model.config, "parametrisation", None) == "log"


def starting_partners(
    model: nn.Module, options: TrainingOptions, texts: Tensor | None = None
) -> tuple[float, float] | None:
    """The ladder in partners that calibration takes in place of the layers' densities; None: it takes these,
    since they are sparser.

    Args:
        texts: of packed windows their `sequence_ids` (B, N); None: a window is one text.
    """
    if options.start_partners is None:
        return None
    low, high = (times * options.start_partners for times in START_AROUND)
    allowed = (options.context - 1) / 2  # senders of a receiver in a causal window, the mean
    if texts is not None:  # who sees its own text alone has as few as that
        rows = [ids[ids >= 0].unique_consecutive(return_counts=True)[1] for ids in texts]
        lengths = torch.cat(rows).double()
        allowed = float((lengths * (lengths - 1)).sum() / (2 * lengths.sum()))
    layers = (m for m in model.modules() if isinstance(m, SelectiveSynchronizationAttention))
    lowest = [layer.density_range[0] for layer in layers if layer.density_range is not None]
    return (low, high) if lowest and low < min(lowest) * allowed else None


def _measured(loop: Loop, windows: Windows) -> Fitted:
    losses: dict[str, float] = {}
    for name, part in windows.final.items():
        loss = losses[name] = loop.evaluate(part, metric_key_prefix=name)[f"{name}_loss"]
        if not math.isfinite(loss):
            raise diverged(loop.state.global_step, f"the {name} loss is {loss}", loop.options)
    return Fitted(
        parameters=parameter_count(loop.accelerator.unwrap_model(loop.model)),
        losses=losses,
        **loop.head_locking()._asdict(),
        tokens_per_second=loop.tokens_per_second,
        train_seconds=loop.train_seconds,
        wall_seconds=loop.elapsed(),
        history=history(loop.state.log_history),
        device=str(loop.args.device),
    )


def _arguments(model: PreTrainedModel, options: TrainingOptions, keep: Keeping | None) -> TrainingArguments:
    # The Trainer makes its folder, even one that it never writes to: without checkpoints, one that is there.
    per_device = options.batch_size // int(os.environ.get("WORLD_SIZE", "1"))
    arguments = TrainingArguments(
        output_dir=str(keep.folder) if keep is not None else tempfile.gettempdir(),
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
        save_strategy="steps" if keep is not None else "no",
        save_steps=options.every("save"),
        prediction_loss_only=True,
        bf16=options.precision == "bf16",
        use_cpu=options.device == "cpu" or not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available() and options.device != "cpu",
        seed=options.seed,
        remove_unused_columns=False,
        use_cache=getattr(model.config, "use_cache", False),
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

"""transformers.Trainer, with exact resumption, densities, and checkpoints that appear whole."""

from __future__ import annotations

import json
import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback, TrainerControl, TrainerState

from syncattn.nn import SelectiveSynchronizationAttention, count_locked, limit_density_
from syncattn.training.checkpoints import NOT_OURS, unusable
from syncattn.training.errors import Diverged, UserError
from syncattn.training.files import PROGRESS_FILE, disk_errors, fingerprints, read_object, staged
from syncattn.training.options import TrainingOptions
from syncattn.training.packed import PackedWindows
from syncattn.training.windows import Windows, inputs_of

LIMIT_EVERY = 10
"""Steps between two looks at the density, where it is limited."""
LIMIT_WINDOWS = 2
"""Windows that such a look takes, at most as many as a step has."""
SMALL_BATCH = 4
"""With fewer windows a step a look costs so much of one that there are half as many looks, of twice the gain:
about 2 % of the training then, too."""


@dataclass(frozen=True, eq=False)
class Keeping:
    """What a run leaves while it goes on, so that it can be gone on with.

    Attributes:
        folder: of the checkpoints.
        tokenizer: saved beside each model.
        state: the checkpoint that the run goes on from; None if it begins.
        begin: called when nothing speaks against the run any more, before anything is written.
    """

    folder: Path
    tokenizer: PreTrainedTokenizerBase
    state: Path | None
    begin: Callable[[], None]


class Loop(Trainer):
    """The training loop of one run.

    Added to the Trainer's: the order of the data is the dataset's own; the mean loss since the last log, the
    clock and the history survive a resumption exactly; every log has the density of each SSA layer's heads on
    a fixed batch; checkpoints appear whole; weight decay falls on weights of linear layers and embeddings.

    Args:
        keep: where checkpoints go; None for a run that leaves none.
        callbacks: extra callbacks, called after this class's own.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        arguments: TrainingArguments,
        windows: Windows,
        options: TrainingOptions,
        keep: Keeping | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=windows.train,
            eval_dataset=windows.validation,
            callbacks=[_Clock(self), *callbacks],
        )
        self.remove_callback(PrinterCallback)
        self.options, self.keep, self.probe = options, keep, windows.probe
        self.probe_texts = windows.probe_texts
        self._per_window: float | None = (
            None  # tokens that are predicted in an evaluation's windows, the mean
        )
        layers = [m for m in model.modules() if isinstance(m, SelectiveSynchronizationAttention)]
        self._has_couplings = any(layer.parametrisation == "log" for layer in layers)  # none, no limit
        self.stop_requested = False
        self.train_seconds = 0.0
        self.wall_seconds = 0.0
        self._loss_sum: Tensor | float = 0.0
        self._loss_steps = 0
        self._started = time.perf_counter()
        if keep is not None and keep.state is not None:
            self._restore(keep.state)

    def _restore(self, checkpoint: Path) -> None:
        """Take over the clock and the open mean loss of a checkpoint."""
        progress = read_object(checkpoint / PROGRESS_FILE)
        self.train_seconds, self.wall_seconds = progress["train_seconds"], progress["wall_seconds"]
        self._loss_sum, self._loss_steps = progress["loss_sum"], progress["loss_steps"]

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        # By word of the call, not of the config, which is saved: generation wants a cache.
        uncached = {"use_cache": False} if self.args.use_cache else {}
        return super().compute_loss(model, {**inputs, **uncached}, *args, **kwargs)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._loss_sum = self._loss_sum + loss.detach().double()
        self._loss_steps += 1
        self._limit_density()
        return loss

    def _limit_density(self) -> None:
        """Every ten steps or so, on windows that depend on the step alone: all processes do the same."""
        step, limits = self.state.global_step, (self.options.max_density, self.options.max_partners)
        rarer = 1 if self.options.batch_size >= SMALL_BATCH else 2
        if limits == (None, None) or step % (rarer * LIMIT_EVERY) or not self._has_couplings:
            return
        dataset: Any = self.train_dataset
        count, first = len(dataset), step * self.options.batch_size
        taken = min(LIMIT_WINDOWS, self.options.batch_size)
        given = inputs_of(dataset, [(first + i) % count for i in range(taken)])
        model = self.accelerator.unwrap_model(self.model)
        limit_density_(
            model,
            limits[0],
            max_partners=limits[1],
            gain=0.2 * rarer,
            use_cache=False,
            **{name: x.to(model.device) for name, x in given.items()},
        )

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """The Trainer's, with couplings and bandwidths at a learning rate of their own if so wanted."""
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if fresh and self.options.coupling_lr != 1:
            model = self.accelerator.unwrap_model(self.model)
            layers = [m for m in model.modules() if isinstance(m, SelectiveSynchronizationAttention)]
            own = [p for layer in layers for p in (layer.raw_coupling, layer.raw_bandwidth)]
            for group in optimizer.param_groups:
                group["params"] = [p for p in group["params"] if not any(p is other for other in own)]
            if own:
                rate = self.options.learning_rate * self.options.coupling_lr
                optimizer.add_param_group({"params": own, "lr": rate, "weight_decay": 0.0})
        return optimizer

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, None, None]:
        # Several processes fill up their last batches with windows from the beginning: those are left out.
        # The Trainer then weighs each process's loss by the number of its windows that remain.
        last = self.accelerator.gradient_state
        if self.args.world_size > 1 and last.end_of_dataloader and last.remainder > 0:
            own = last.remainder - self.args.process_index * self.args.eval_batch_size
            inputs = {name: x[: max(own, 1)] for name, x in inputs.items()}
        # Evaluation is of the loss alone; the Trainer's own step also collects every other output.
        with torch.no_grad():
            loss: Any = self.compute_loss(model, self._prepare_inputs(inputs))
        if self._per_window is not None:  # the Trainer weighs by windows, and the loss is a mean over tokens
            predicted = int((inputs["labels"][:, 1:] >= 0).sum())
            loss = loss * (predicted / (len(inputs["labels"]) * self._per_window)) if predicted else loss * 0
        return loss.detach(), None, None

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The Trainer's; of packed windows, too, the mean over all tokens that are predicted."""
        windows: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        packed = isinstance(windows, PackedWindows)
        self._per_window = windows.predicted / len(windows) if packed else None
        return super().evaluate(eval_dataset, *args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        heads = HeadLocking([], [])
        if "loss" in logs:
            logs["loss"] = self._over_processes(float(self._loss_sum)) / max(self._loss_steps, 1)
            self._loss_sum, self._loss_steps = 0.0, 0
            if not math.isfinite(logs["loss"]):
                raise diverged(self.state.global_step, f"the loss is {logs['loss']}", self.options)
            heads = self.head_locking()
            for name, layers in heads._asdict().items():
                for layer, values in enumerate(layers):
                    logs[f"{name}/layer_{layer}"] = sum(values) / len(values)
            logs["tokens_per_second"] = self.tokens_per_second
        super().log(logs, start_time)
        if heads.density:
            # Per head: too fine for the loggers, wanted in the report.
            entry: dict[str, Any] = self.state.log_history[-1]
            entry.update(heads._asdict())

    def _over_processes(self, number: float) -> float:
        """The mean of the processes' numbers; all of them have to ask."""
        if self.args.world_size == 1:
            return number
        given = torch.tensor(number, dtype=torch.float64, device=self.args.device)
        return float(self.accelerator.reduce(given, reduction="mean"))

    def head_locking(self) -> HeadLocking:
        """What locks on the fixed batch; of nothing without SSA."""
        return head_locking(self.accelerator.unwrap_model(self.model), self.probe, self.probe_texts)

    @property
    def tokens_per_second(self) -> float:
        """Over the training steps alone, without evaluations, logs and checkpoints; all devices together."""
        tokens = self.state.global_step * self.options.batch_size * self.options.context
        return tokens / self.train_seconds if self.train_seconds > 0 else 0.0

    def elapsed(self) -> float:
        """Wall seconds so far, those before a resumption included."""
        return self.wall_seconds + time.perf_counter() - self._started

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler:
        # The dataset's own order is the random one.
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        # The Trainer goes by names with "bias" or "norm" in them, and would decay bandwidths, slopes and
        # couplings.
        return [
            f"{name}.weight".removeprefix(".")
            for name, module in model.named_modules()
            if isinstance(module, (nn.Linear, nn.Embedding))
        ]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _states_of(checkpoint, "optimizer.pt or scheduler.pt"):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _states_of(checkpoint, "rng_state.pth"):
            super()._load_rng_state(checkpoint)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # Not the Trainer's own, which knows one folder for all: a checkpoint is written aside, then moved.
        assert self.keep is not None
        checkpoints, name = self.keep.folder, f"checkpoint-{self.state.global_step}"
        loss_sum = self._over_processes(float(self._loss_sum))
        with disk_errors(f"cannot write a checkpoint to {checkpoints}"):
            if self.args.world_size > 1:
                # The processes must agree on a folder, so none is staged; the list of files comes last.
                self._write(checkpoints / name)
                self.accelerator.wait_for_everyone()
                if self.is_world_process_zero():
                    self._write_progress(checkpoints / name, loss_sum)
            else:
                with staged(checkpoints) as folder:
                    self._write(folder / name)
                    self._write_progress(folder / name, loss_sum)
            if self.is_world_process_zero():
                for path in checkpoints.glob("checkpoint-*"):
                    if path.name != name:
                        shutil.rmtree(path, ignore_errors=True)

    def _write(self, checkpoint: Path) -> None:
        """All that the Trainer needs to go on."""
        self.store_flos()
        self.save_model(str(checkpoint), _internal_call=True)
        self._save_optimizer_and_scheduler(str(checkpoint))
        self._save_scaler(str(checkpoint))
        self._save_rng_state(str(checkpoint))
        if self.args.should_save:
            self.state.save_to_json(str(checkpoint / TRAINER_STATE_NAME))

    def _write_progress(self, checkpoint: Path, loss_sum: float) -> None:
        progress = {
            "train_seconds": self.train_seconds,
            "wall_seconds": self.elapsed(),
            "loss_sum": loss_sum,
            "loss_steps": self._loss_steps,
            "options": self.options.as_dict(),
            "files": fingerprints(checkpoint),
        }
        (checkpoint / PROGRESS_FILE).write_text(json.dumps(progress))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        # Not the Trainer's own: it adds a pickle of the arguments, which nothing reads (run.json has them).
        if output_dir is not None and self.args.should_save and self.keep is not None:
            self.accelerator.unwrap_model(self.model).save_pretrained(output_dir)
            self.keep.tokenizer.save_pretrained(output_dir)


class _Clock(TrainerCallback):
    """Times the steps, logs and evaluates at the last one, and stops between two steps when asked to."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.began = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == 0 and (heads := self.loop.head_locking()).density:
            entry: dict[str, Any] = {"step": 0, **heads._asdict()}
            state.log_history.append(entry)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.began = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.device.type == "cuda":
            torch.cuda.synchronize()
        self.loop.train_seconds += time.perf_counter() - self.began
        if state.global_step >= state.max_steps:
            control.should_log = True
        elif self.loop.stop_requested:
            control.should_training_stop = True
            control.should_save = self.loop.keep is not None


def diverged(step: int, what: str, options: TrainingOptions) -> Diverged:
    """The error for a run that cannot go on, with what might help."""
    return Diverged(
        f"training diverged at step {step}: {what}; a learning rate below {options.learning_rate:g} or a "
        "longer warm-up should help"
    )


def has_diverged(model: nn.Module) -> bool:
    """Whether a model's values are out of all proportion, so that the SSA operator may refuse them."""
    return unusable(model) is not None


class HeadLocking(NamedTuple):
    """What locks in a model, as nested lists (layer, head)."""

    density: list[list[float]]  # fraction of the allowed pairs
    partners: list[list[float]]  # senders of a receiver, in the mean


def head_locking(
    model: PreTrainedModel, input_ids: Tensor, sequence_ids: Tensor | None = None
) -> HeadLocking:
    """Which fraction of the pairs locks, and with how many senders a receiver; [] for a model without SSA.

    Args:
        input_ids: (B, N) token ids.
        sequence_ids: (B, N), of several texts in a row.
    """
    if not any(isinstance(module, SelectiveSynchronizationAttention) for module in model.modules()):
        return HeadLocking([], [])
    given = {"input_ids": input_ids.to(model.device)}
    if sequence_ids is not None:
        given["sequence_ids"] = sequence_ids.to(model.device)
    found = count_locked(model, use_cache=False, **given).values()
    return HeadLocking([x.density.tolist() for x in found], [x.partners.tolist() for x in found])


def head_densities(model: PreTrainedModel, input_ids: Tensor) -> list[list[float]]:
    """Fraction of the allowed pairs that lock, as nested lists (layer, head); see `head_locking`."""
    return head_locking(model, input_ids).density


@contextmanager
def _states_of(checkpoint: str | None, names: str) -> Iterator[None]:
    # Nothing but tensors and plain values is unpickled (weights_only); whether they fit, the Trainer finds.
    try:
        yield
    except Exception as error:
        raise UserError(f"{names} in {checkpoint} {NOT_OURS}, or is of another model") from error


@contextmanager
def stop_on_signals(loop: Loop) -> Iterator[None]:
    """Within the block, the first Ctrl-C or SIGTERM ends training after the current step, with a checkpoint.

    A second one acts at once. Nothing changes outside the main thread, where signals cannot be caught, and
    with several processes, which could stop at different steps: there the periodic checkpoints remain.
    """
    if threading.current_thread() is not threading.main_thread() or loop.args.world_size > 1:
        yield
        return
    caught = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in caught}

    def request_stop(number: int, frame: Any) -> None:
        loop.stop_requested = True
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in caught:
        signal.signal(number, request_stop)
    try:
        yield
    finally:
        restore()

"""Progress of a run: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class Display(TrainerCallback):
    """Shows loss, validation loss, tokens per second, density per layer and gradient norm.

    On a terminal one line is kept up to date below a line per evaluation; elsewhere (a file, a pipe) a plain
    line is printed at most every `seconds` and at every evaluation.

    Args:
        console: where to print; None prints nothing.
        label: which run this is, where there are several.
    """

    def __init__(self, console: Console | None, label: str = "", seconds: float = 10.0) -> None:
        self.console, self.label, self.seconds = console, label, seconds
        self.progress: Progress | None = None
        self.latest: dict[str, Any] = {}
        self.printed = 0.0
        self.started = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.started = self.printed = time.perf_counter()
        if self.console is None or not self.console.is_terminal:
            return
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(compact=True),
            console=self.console,
            transient=True,
        )
        self.progress.add_task(
            self.label or "training", total=state.max_steps, completed=state.global_step, status=""
        )
        self.progress.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.progress is not None:
            self.progress.update(self.progress.task_ids[0], completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        self.latest.update(logs)
        if self.progress is not None:
            self.progress.update(self.progress.task_ids[0], status=describe(self.latest))
        elif not control.should_evaluate and time.perf_counter() - self.printed >= self.seconds:
            self._print(state)  # an evaluation in this step prints the line by itself

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if metrics and "eval_loss" in metrics:
            self.latest["eval_loss"] = metrics["eval_loss"]
            self._print(state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the live line away; also needed when training ends with an exception."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def _print(self, state: TrainerState) -> None:
        self.printed = time.perf_counter()
        if self.console is not None:
            label = f"{self.label}  " if self.label else ""
            step = f"step {state.global_step:>{len(str(state.max_steps))}}/{state.max_steps}"
            elapsed = f"{self.printed - self.started:.0f} s"
            self.console.print(
                f"{label}{step}  {describe(self.latest)}  {elapsed}", highlight=False, soft_wrap=True
            )


def describe(values: dict[str, Any]) -> str:
    """The latest numbers in one line: loss and validation loss in nats per token, density per layer."""
    parts = []
    if "loss" in values:
        parts.append(f"loss {values['loss']:.3f}")
    if "eval_loss" in values:
        parts.append(f"val {values['eval_loss']:.3f}")
    if "tokens_per_second" in values:
        parts.append(f"{values['tokens_per_second'] / 1000:.1f}k tok/s")
    layers = [value for name, value in values.items() if name.startswith("density/")]
    if layers:
        parts.append("density " + " ".join(f"{value:.2f}" for value in layers))
    if "grad_norm" in values:
        parts.append(f"grad {values['grad_norm']:.2f}")
    return "  ".join(parts)

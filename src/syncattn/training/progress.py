"""Progress of a run: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from syncattn.terminal import fold


class Display(TrainerCallback):
    """Shows loss, validation loss, tokens per second, density and partners per layer, gradient norm.

    On a terminal one line is kept up to date below a line per evaluation; elsewhere (a file, a pipe) a plain
    line is printed at most every `seconds` and at every evaluation.

    Args:
        console: where to print; None prints nothing.
        label: which run this is, where there are several.
        every_log: print a line for each log, too, wherever it goes.
    """

    def __init__(
        self, console: Console | None, label: str = "", seconds: float = 10.0, *, every_log: bool = False
    ) -> None:
        self.console, self.label, self.seconds, self.every_log = console, label, seconds, every_log
        self.progress: _LiveLine | None = None
        self.latest: dict[str, Any] = {}
        self.printed = 0.0
        self.started = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.started = self.printed = time.perf_counter()
        if self.console is None or not self.console.is_terminal:
            return
        self.progress = _LiveLine(self.console, self.label or "training", self.latest)
        self.progress.add_task("", total=state.max_steps, completed=state.global_step, status="")
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
        if control.should_evaluate:
            return  # an evaluation in this step prints the line by itself
        late = self.progress is None and time.perf_counter() - self.printed >= self.seconds
        if self.every_log or late:
            self._print(state)

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
            step = f"step {state.global_step:>{len(str(state.max_steps))}}/{state.max_steps}"
            elapsed = f"{self.printed - self.started:.0f} s"
            parts = [*filter(None, [self.label]), step, *describe(self.latest), elapsed]
            columns = self.console.width if self.console.is_terminal else None
            self.console.print(fold(parts, columns), highlight=False, soft_wrap=True)


class _LiveLine(Progress):
    """A bar, the steps and the time left, always whole, and as many of the latest numbers as fit."""

    def __init__(self, console: Console, label: str, latest: dict[str, Any]) -> None:
        self.label, self.latest = label, latest
        self.bar = BarColumn()
        columns = (
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(compact=True),
        )
        super().__init__("{task.description}", self.bar, *columns, console=console, transient=True)

    def make_tasks_table(self, tasks: Iterable[Task]) -> Table:
        tasks = list(tasks)
        for task in tasks:  # each time anew: a window may have changed its size
            steps = 2 * len(f"{task.total:.0f}") + 1
            room = self.console.width - steps - len("12:34:56") - 4  # and a space between the columns
            task.description, self.bar.bar_width, task.fields["status"] = fit(self.label, self.latest, room)
        return super().make_tasks_table(tasks)


def fit(label: str, values: dict[str, Any], room: int) -> tuple[str, int, str]:
    """A label, a bar's width and the numbers, together in at most `room` columns.

    The bar has from 5 to 20, then the label is shortened, then numbers are left out from the end.
    """
    bar = min(20, max(5, (room - len(label)) // 4))
    if len(label) > room - bar:
        label = label[: max(room - bar - 1, 0)] + "\u2026"
    left = room - bar - len(label)
    parts: list[str] = []
    for part, shorter in zip(describe(values), describe(values, mean=True), strict=True):
        fitting = [text for text in (part, shorter) if len("  ".join([*parts, text])) <= left]
        if not fitting:
            break
        parts.append(fitting[0])
    return label, bar, "  ".join(parts)


def describe(values: dict[str, Any], mean: bool = False) -> list[str]:
    """The latest numbers, each with its name, the most important first: loss and validation loss in nats per
    token, density and partners per layer or their mean."""
    parts = []
    if "loss" in values:
        parts.append(f"loss {values['loss']:.3f}")
    if "eval_loss" in values:
        parts.append(f"val {values['eval_loss']:.3f}")
    if "tokens_per_second" in values:
        parts.append(f"{values['tokens_per_second'] / 1000:.1f}k tok/s")
    layers = [value for name, value in values.items() if name.startswith("density/")]
    if layers:
        shown = [sum(layers) / len(layers)] if mean else layers
        parts.append("density " + " ".join(f"{value:.2f}" for value in shown))
    layers = [value for name, value in values.items() if name.startswith("partners/")]
    if layers:
        shown = [sum(layers) / len(layers)] if mean else layers
        parts.append("partners " + " ".join(f"{value:.0f}" for value in shown))
    if "grad_norm" in values:
        parts.append(f"grad {values['grad_norm']:.2f}")
    return parts

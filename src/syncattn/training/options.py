"""What a training run can be told, checked before anything is read or written."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from syncattn.training.errors import UserError


@dataclass(frozen=True)
class TrainingOptions:
    """How to train; the model's own shape is in its config.

    Attributes:
        context: tokens per window; the model predicts all of them but the first.
        batch_size: windows per step, over all devices together.
        steps: optimiser steps. `TrainingOptions.for_tokens` turns a budget of tokens into steps.
        learning_rate: peak, after a linear warm-up and before a cosine decay to 0.
        weight_decay: AdamW's, on the weights of linear layers and embeddings only.
        beta2: AdamW's second-moment decay.
        warmup: steps of warm-up, fewer than all; None is 5 % of the steps, at least one.
        max_grad_norm: gradients are clipped to this norm.
        seed: of the initial weights, of the data's order and of dropout; below 2**32.
        log_every, eval_every, save_every: in steps; None is a 50th, a tenth and a fifth of the run.
        eval_tokens: tokens of the validation text that the running evaluations use, evenly spaced; 0 is all.
        final_eval_tokens: the same for the last evaluation, on validation and test text; 0 is all.
        precision: "fp32", or "bf16" for mixed precision.
        device: "auto" (CUDA where there is one), "cpu" or "cuda".
        backend: of every SSA layer (`syncattn.use_backend`); None leaves the choice to each call.
        threads: CPU threads; None leaves PyTorch's choice.
        max_density: the mean share of pairs that may lock in each SSA layer; what exceeds it is taken back
            from the couplings every ten steps (`syncattn.nn.limit_density_`). None sets no limit.
        strength_lr: the learning rate of couplings and bandwidths, as a multiple of `learning_rate`.
        calibrate: set every SSA layer's bandwidth and coupling from the first batch (trainable form only, and
            not where there is `init_from`).
        init_from: the folder of a model of the same config, whose weights training begins with; None begins
            from scratch.
        init_sha256: the hash of the file with these weights; filled in when training begins, and then
            wanted whenever the run begins again.
    """

    context: int = 128
    batch_size: int = 16
    steps: int = 1200
    learning_rate: float = 6e-3
    weight_decay: float = 0.1
    beta2: float = 0.99
    warmup: int | None = None
    max_grad_norm: float = 1.0
    seed: int = 0
    log_every: int | None = None
    eval_every: int | None = None
    save_every: int | None = None
    eval_tokens: int = 16_384
    final_eval_tokens: int = 0
    precision: str = "fp32"
    device: str = "auto"
    backend: str | None = None
    threads: int | None = None
    max_density: float | None = 0.1
    strength_lr: float = 1.0
    calibrate: bool = True
    init_from: str | None = None
    init_sha256: str | None = None

    def __post_init__(self) -> None:
        for name in ("context", "batch_size", "steps"):
            _check(
                self, name, "at least " + ("2" if name == "context" else "1"), 2 if name == "context" else 1
            )
        for name in ("log_every", "eval_every", "save_every", "threads"):
            if getattr(self, name) is not None:
                _check(self, name, "at least 1", 1)
        for name in ("eval_tokens", "final_eval_tokens"):
            _check(self, name, "0 or more", 0)
        check_seed(self.seed)
        if self.warmup is not None and not 0 <= self.warmup < self.steps:
            raise UserError(
                f"warmup must be 0 or more and below the number of steps, {self.steps}, not {self.warmup}"
            )
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise UserError(f"weight_decay must be a number of 0 or more, not {self.weight_decay}")
        if self.max_density is not None and not 0 < self.max_density <= 1:
            raise UserError(f"max_density must be a share of the pairs, in (0, 1], not {self.max_density}")
        for name in ("learning_rate", "max_grad_norm", "strength_lr"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise UserError(f"{name} must be a positive number, not {value}")
        if not 0 < self.beta2 < 1:
            raise UserError(f"beta2 must be between 0 and 1, not {self.beta2}")
        if self.precision not in ("fp32", "bf16"):
            raise UserError(f"precision must be 'fp32' or 'bf16', not {self.precision!r}")
        if self.device not in ("auto", "cpu", "cuda"):
            raise UserError(f"device must be 'auto', 'cpu' or 'cuda', not {self.device!r}")

    @property
    def calibrates(self) -> bool:
        """Whether bandwidths and couplings are set from the first batch; a trained model's are its own."""
        return self.calibrate and self.init_from is None

    @property
    def tokens(self) -> int:
        """The budget: tokens that the model reads during training."""
        return self.steps * self.batch_size * self.context

    @property
    def warmup_steps(self) -> int:
        return max(1, self.steps // 20) if self.warmup is None else self.warmup

    def every(self, name: str) -> int:
        """The interval in steps of "log", "eval" or "save", with its default filled in."""
        chosen: int | None = getattr(self, name + "_every")
        return (
            chosen if chosen is not None else max(1, self.steps // {"log": 50, "eval": 10, "save": 5}[name])
        )

    def for_tokens(self, tokens: int) -> TrainingOptions:
        """The same with as many steps as it takes to read at least this many tokens."""
        if tokens < 1:
            raise UserError(f"tokens must be positive, not {tokens}")
        return replace(self, steps=math.ceil(tokens / (self.batch_size * self.context)))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def numbers(name: str, text: str, kind: Callable[[str], Any]) -> list[Any]:
    """A list of numbers such as "0,1,2", each made by `kind`.

    Raises:
        UserError: something in it is no such number, or is there twice; the message begins with `name`.
    """
    try:
        found = [kind(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{name} must be numbers separated by commas, not {text!r}") from None
    for index, number in enumerate(found):
        if number in found[:index]:
            raise UserError(f"{name} must be different numbers, but {number} is twice in {text!r}")
    return found


def check_seed(seed: int) -> None:
    """Refuse what NumPy's generator cannot be seeded with.

    Raises:
        UserError: `seed` is negative or has more than 32 bits.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"seed must be from 0 to {2**32 - 1}, not {seed}")


def _check(options: TrainingOptions, name: str, expected: str, least: int) -> None:
    value = getattr(options, name)
    if value < least:
        raise UserError(f"{name} must be {expected}, not {value}")

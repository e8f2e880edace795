"""What training and sampling can be told, checked before anything is read. Imports nothing slow."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from syncattn.option import option
from syncattn.training.errors import UserError

OPTIMIZERS = ("adamw", "muon")


@dataclass(frozen=True)
class TrainingOptions:
    """How to train; the model's own shape is in its config. Fields that are no option of the command line are
    described above them."""

    # The model predicts all tokens of a window but the first.
    context: int = option(128, "Tokens per window.")
    # Over all devices together.
    batch_size: int = option(16, "Windows per step.")
    # `for_tokens` turns a budget of tokens into steps.
    steps: int = option(1200, "Optimiser steps.")
    # After a linear warm-up, and before a cosine decay to 0.
    learning_rate: float = option(6e-3, "Peak learning rate; the schedule is cosine.", flag="--lr")
    # Muon's matrices are the weights of linear layers between embedding and output layer.
    optimizer: str = option("adamw", "'adamw', or 'muon' for the blocks' matrices and AdamW for the rest.")
    # On the weights of linear layers and embeddings only.
    weight_decay: float = option(0.1, "The optimizer's weight decay.")
    # AdamW's second-moment decay.
    beta2: float = 0.99
    # Fewer than all steps; at least one by default.
    warmup: int | None = option(None, "Steps of warm-up.", shown="5 % of the steps")
    # Gradients are clipped to this norm.
    max_grad_norm: float = 1.0
    # Below 2**32.
    seed: int = option(0, "Of weights, data order and dropout.")
    log_every: int | None = option(
        None, "Steps between logs; if given, each is a line on the screen.", shown="a 50th of the run"
    )
    eval_every: int | None = option(None, "Steps between evaluations.", shown="a tenth of the run")
    save_every: int | None = option(None, "Steps between checkpoints.", shown="a 5th of the run")
    # Tokens of the validation text that the running evaluations use, evenly spaced; 0 is all.
    eval_tokens: int = 16_384
    final_eval_tokens: int = option(
        0,
        "Tokens of the last evaluation, evenly spaced over the validation and the test text; 0 is all.",
    )
    precision: str = option("fp32", "'fp32', or 'bf16' for mixed precision.")
    # "auto" is CUDA where there is one.
    device: str = option("auto", "'auto', 'cpu' or 'cuda'.")
    # By `syncattn.use_backend`; None leaves the choice to each call.
    backend: str | None = option(
        None,
        "The backend of all synchronization layers, such as 'triton'; see `syncattn doctor`.",
        shown="the first that can",
    )
    threads: int | None = option(None, "CPU threads.", shown="PyTorch's choice")
    # What exceeds it is taken back from the couplings every ten steps (`syncattn.nn.limit_density_`); None
    # sets no limit either.
    max_density: float | None = option(
        0.1, "The mean share of pairs that may lock in a layer while training; 1 sets no limit."
    )
    # The same by number, whatever the length of the text; of the two limits the tighter one counts: with the
    # defaults that of the density in windows of up to 320 tokens. None, or more than a window has, sets none.
    max_partners: float | None = option(
        16.0, "The mean number of senders that a receiver may lock with in a layer while training."
    )
    # In place of the densities that the layers are made with, where it is the sparser start: a pair that does
    # not lock has no gradient, and densities of a long window are many partners. None starts from densities.
    start_partners: float | None = option(
        16.0, "Around how many partners heads start, from half of it to five times it, in long windows."
    )
    # The learning rate of couplings and bandwidths, as a multiple of `learning_rate`.
    coupling_lr: float = 1.0
    # In the trainable form only, and not where there is `init_from`.
    calibrate: bool = option(True, "Set bandwidths and couplings from the first batch, so that tokens lock.")
    # Only documents that are longer than a window are cut; the rest of a window is padding.
    pack: bool = option(False, "Fill windows with whole files, none of which sees another.")
    # The folder of a model of the same config, whose weights training begins with; None begins from scratch.
    init_from: str | None = None
    # The hash of the file with these weights; filled in when training begins, and then wanted whenever the
    # run begins again.
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
                f"warmup must be 0 or more and below the number of steps, {self.steps}, got {self.warmup}"
            )
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise UserError(f"weight_decay must be a number of 0 or more, got {self.weight_decay}")
        if self.max_density is not None and not 0 < self.max_density <= 1:
            raise UserError(f"max_density must be a share of the pairs, in (0, 1], got {self.max_density}")
        for name in ("max_partners", "start_partners"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"{name} must be a positive, finite number, got {value}")
        for name in ("learning_rate", "max_grad_norm", "coupling_lr"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise UserError(f"{name} must be a positive number, got {value}")
        if not 0 < self.beta2 < 1:
            raise UserError(f"beta2 must be between 0 and 1, not {self.beta2}")
        if self.optimizer not in OPTIMIZERS:
            raise UserError(f"optimizer must be 'adamw' or 'muon', got {self.optimizer!r}")
        if self.precision not in ("fp32", "bf16"):
            raise UserError(f"precision must be 'fp32' or 'bf16', got {self.precision!r}")
        if self.device not in ("auto", "cpu", "cuda"):
            raise UserError(f"device must be 'auto', 'cpu' or 'cuda', got {self.device!r}")

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
            raise UserError(f"tokens must be positive, got {tokens}")
        return replace(self, steps=math.ceil(tokens / (self.batch_size * self.context)))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    max_new_tokens: int = option(200, "Length of the continuation.")
    temperature: float = option(0.8, "Below 1 is more cautious.")
    top_k: int | None = option(None, "Sample among the likeliest tokens only.", shown="all")
    greedy: bool = option(False, "Always take the likeliest token.")
    # Below 2**32.
    seed: int = option(0, "Of the sampling.")

    def __post_init__(self) -> None:
        check_seed(self.seed)
        for name in ("max_new_tokens", "top_k"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        if not 0 < self.temperature < float("inf"):
            raise UserError(
                f"temperature must be positive (greedy takes the likeliest token), got {self.temperature}"
            )


def numbers(name: str, text: str, kind: Callable[[str], Any]) -> list[Any]:
    """A list of numbers such as "0,1,2", each made by `kind`.

    Raises:
        UserError: something in it is no such number, or is there twice; the message begins with `name`.
    """
    try:
        found = [kind(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{name} must be numbers separated by commas, got {text!r}") from None
    for index, number in enumerate(found):
        if number in found[:index]:
            raise UserError(f"{name} must be different numbers, got {text!r} with {number} twice")
    return found


def check_seed(seed: int) -> None:
    """Refuse what NumPy's generator cannot be seeded with.

    Raises:
        UserError: `seed` is negative or has more than 32 bits.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"seed must be from 0 to {2**32 - 1}, got {seed}")


def _check(options: TrainingOptions, name: str, expected: str, least: int) -> None:
    value = getattr(options, name)
    if value < least:
        raise UserError(f"{name} must be {expected}, got {value}")

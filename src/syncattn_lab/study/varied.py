"""Tasks that are learned at some sizes and tested at others: which sizes, and windows whose size varies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.utils.data import Dataset

from syncattn.training.errors import UserError
from syncattn_lab.study.synthetic import PARTS, Task, make_task, stream

SHARE = "share"
"""Of a setting: how often it is drawn, beside the others (1)."""

Setting = dict[str, Any]


@dataclass(frozen=True)
class Varied:
    """A task with several settings; made by `task_of`.

    Attributes:
        kind, options: as a `Task`'s: what all settings have.
        settings: one of them is drawn for each batch: options that are a number, or two, the least and the
            most of what is drawn; and "share".
        largest: the task at the largest of the settings, by tokens.
        together: how many windows that follow each other have one setting: a batch.
    """

    kind: str
    options: dict[str, Any]
    settings: tuple[Setting, ...]
    largest: Task
    together: int = 32

    @property
    def vocab_size(self) -> int:
        return self.largest.vocab_size

    @property
    def length(self) -> int:
        """N of the longest windows."""
        return self.largest.length

    def windows(self, part: str, count: int, seed: int) -> Dataset:
        """`count` windows as a `Task`'s, those of a batch of one size; the first batch has the largest.

        That is the one that couplings are calibrated on, and densities measured.

        Raises:
            UserError: an unknown part, or a count below 1.
        """
        if part not in PARTS:
            raise UserError(f"part must be one of {', '.join(PARTS)}, got {part!r}")
        if count < 1:
            raise UserError(f"count must be at least 1, got {count}")
        return _Batches(self, part, count, seed)

    def task(self, batch: int, generator: torch.Generator) -> Task:
        """The task of a batch, by its number."""
        if batch == 0:
            return self.largest
        shares = torch.tensor([setting.get(SHARE, 1) for setting in self.settings], dtype=torch.float64)
        place = float(torch.rand((), dtype=torch.float64, generator=generator)) * shares.sum()
        setting = self.settings[min(int((shares.cumsum(0) <= place).sum()), len(shares) - 1)]
        drawn = {}
        for name, value in setting.items():
            if isinstance(value, list):
                low, high = value
                drawn[name] = int(torch.randint(low, high + 1, (), generator=generator))
            elif name != SHARE:
                drawn[name] = value
        return _made(self.kind, tuple(sorted((self.options | drawn).items())))

    def tokens(self, count: int, seed: int) -> int:
        """How many tokens the training windows have."""
        sizes = [self.together] * (count // self.together) + [count % self.together]
        found = (self.task(i, self.stream("train", seed, i)).length * size for i, size in enumerate(sizes))
        return sum(found)

    def stream(self, part: str, seed: int, batch: int) -> torch.Generator:
        settings = {"settings": self.settings, "together": self.together}
        return stream(self.kind, self.options | settings, part, seed, batch)


def task_of(given: Mapping[str, Any]) -> tuple[Task | Varied, list[tuple[Setting, Task]]]:
    """The task of a plan's entry, and those that the trained model is tested at besides, with what they set.

    Args:
        given: "kind", the kind's options, and, if it has them, "train" and "tests": lists of settings, which
            are options too. In those of "train" a number may be two, the least and the most of what is
            drawn for each batch.

    Raises:
        UserError: what `make_task` raises, lists of another form, or sizes that do not share a vocabulary.
    """
    options = {name: value for name, value in given.items() if name not in ("kind", "train", "tests")}
    kind = str(given.get("kind"))
    train, tests = _settings("train", given), _settings("tests", given)
    task: Task | Varied
    if train:
        ends = [make_task(kind, **options | end) for setting in train for end in _ends(kind, setting)]
        task = Varied(kind, options, tuple(train), max(ends, key=lambda end: end.length))
    else:
        task = make_task(kind, **options)
        ends = [task]
    asked = [(setting, make_task(kind, **options | setting)) for setting in tests]
    for other in [*ends, *(found for _, found in asked)]:
        if other.vocab_size != task.vocab_size:
            raise UserError(
                f"all settings of a task {kind!r} must have as many tokens, got {task.vocab_size} and "
                f"{other.vocab_size}: give them one vocabulary"
            )
    return task, asked


def _settings(name: str, given: Mapping[str, Any]) -> list[Setting]:
    found = given.get(name, [])
    if not isinstance(found, Sequence) or not all(isinstance(entry, dict) and entry for entry in found):
        raise UserError(f"{name} of a task must be a list of tables of its options, got {found!r}")
    return [dict(entry) for entry in found]


def _ends(kind: str, setting: Setting) -> list[Setting]:
    """A setting with everything at its least, and at its most."""
    share = setting.get(SHARE, 1)
    if isinstance(share, bool) or not isinstance(share, int | float) or share <= 0:
        raise UserError(f"{SHARE} of a setting of the task {kind!r} must be a positive number, got {share!r}")
    least, most = {}, {}
    for name, value in setting.items():
        if isinstance(value, list):
            whole = len(value) == 2 and all(type(end) is int for end in value)
            if not whole or value[0] > value[1]:
                raise UserError(
                    f"{name} of the task {kind!r} must be a whole number, or two, the least and the most, "
                    f"got {value!r}"
                )
            least[name], most[name] = value
        elif name != SHARE:
            least[name] = most[name] = value
    return [least, most]


@cache
def _made(kind: str, options: tuple[tuple[str, Any], ...]) -> Task:
    return make_task(kind, **dict(options))


class _Batches(Dataset):
    """Windows that are drawn when they are asked for, a batch at a time; the last batch is kept."""

    def __init__(self, task: Varied, part: str, count: int, seed: int) -> None:
        self.task, self.part, self.count, self.seed = task, part, count, seed
        self._number, self._windows = -1, (torch.empty(0), torch.empty(0))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < self.count:
            raise IndexError(f"window {index} of {self.count}")
        number, row = divmod(index, self.task.together)
        if number != self._number:
            generator = self.task.stream(self.part, self.seed, number)
            drawn = self.task.task(number, generator).draw(self.task.together, generator)
            self._number, self._windows = number, drawn
        ids, labels = self._windows
        return {"input_ids": ids[row], "labels": labels[row]}

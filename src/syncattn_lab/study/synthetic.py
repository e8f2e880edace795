"""Synthetic tasks: windows of tokens in which only the answers count for the loss.

All are causal; `make_task` says which options each kind has. Here are four, in `sequences` the others.

- recall: multi-query associative recall (MQAR; Arora et al. 2023, "Zoology", arXiv 2312.04927).
- induction: induction heads (Gu and Dao 2023, "Mamba", arXiv 2312.00752, section 4.1.2).
- copy: a sequence again, after a gap.
- digits: the class of an 8 x 8 image, read pixel by pixel (scikit-learn's `load_digits`).
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from syncattn.training.errors import UserError
from syncattn_lab.study import sequences
from syncattn_lab.study.sequences import IGNORED, Draw, check_pairs, check_vocabulary, choose

PARTS = ("train", "validation", "test")

_BLOCK = 256  # windows that are drawn in one go, from one generator

_PIXELS, _INTENSITIES, _CLASSES = 64, 17, 10


@dataclass(frozen=True)
class Task:
    """A task of one kind and size; made by `make_task`.

    Attributes:
        kind, options: what it was made from.
        vocab_size: number of token ids.
        length: N, tokens in a window.
        draw: draws windows.
        fixed: the windows of the parts that are not drawn, as (ids, labels); empty but for "digits".
    """

    kind: str
    options: dict[str, Any]
    vocab_size: int
    length: int
    draw: Draw
    fixed: dict[str, tuple[Tensor, Tensor]]

    def windows(self, part: str, count: int, seed: int) -> Dataset:
        """`count` windows {"input_ids": (N,), "labels": (N,)} int64; labels are -100 but at the answers.

        Window i depends on the task, the part, the seed and i alone, so windows of two parts are drawn from
        different streams, and a longer data set begins with a shorter one. A part that is fixed (validation
        and test of "digits") is given whole, each window once, whatever `count` and `seed` are.

        Raises:
            UserError: an unknown part, or a count below 1.
        """
        if part not in PARTS:
            raise UserError(f"part must be one of {', '.join(PARTS)}, got {part!r}")
        if count < 1:
            raise UserError(f"count must be at least 1, got {count}")
        if part in self.fixed:
            return _Fixed(*self.fixed[part])
        return _Drawn(self, part, count, seed)


def make_task(kind: str, **options: Any) -> Task:
    """A task of a kind; options that are left out have the values in brackets.

    - "recall": `pairs` [4] different keys, each followed by its value; then every key once more, followed
      by its value, which is the answer, at even places among blanks, short gaps being likelier. `vocabulary`
      [64] tokens: the blank, keys below the middle, values from the middle on; `length` [64] tokens. As
      published, but that the answer stands in the window, so that labels and inputs agree.
    - "induction": random tokens; one of the `vocabulary` [16] tokens is special and stands twice: at a
      random place, and last of the `length` [64] tokens that are read. The answer is what followed it; with
      it a window has `length` + 1 tokens.
    - "copy": `symbols` [8] random ones of `vocabulary` [16] tokens, then `gap` [16] blanks, a marker, and the
      same symbols again, which are the answers. Blank and marker come on top of the vocabulary.
    - "digits": no options. 64 pixels in reading order, with intensities 0 to 16, then the class, the answer:
      27 tokens. Of 1,797 images 70 % are for training (drawn with replacement), 15 % for validation and 15 %
      for test, stratified by class, always the same.
    - "mqar": as "recall", with `vocabulary` [8192], but as published: the blanks are random tokens, the value
      is asked for at the key and does not follow it.
    - "selective": `symbols` [16] random ones of `vocabulary` [16] tokens at random places of `length` [64]
      among blanks, then a marker and the same symbols without blanks, which are the answers. Published,
      the answers are not read; here they are, as in "copy": a model that generates reads what it wrote.
    - "reverse", "sort": `symbols` [16] random ones of `vocabulary` [32] tokens, a marker, then the same
      backwards, or from the smallest to the largest: the answers.
    - "count": `length` [64] tokens of `vocabulary` [16] in runs of 2 to `most` [16]; at every token but the
      last the answer is how many of its run stand before it, which is asked for and not written.
    - "words": `pairs` [8] different keys of `letters` [2] letters, of `vocabulary` [32], each with a random
      value of as many; then `queries` [4] of the keys, each with its value, which is the answer. Multi-query
      multi-token recall; published, all queries come before all answers.

    Raises:
        UserError: an unknown kind or option, a size that is no positive integer, sizes that cannot hold, or
            scikit-learn is missing (digits).
    """
    if kind not in _KINDS:
        raise UserError(f"the task kind must be one of {', '.join(_KINDS)}, got {kind!r}")
    make, defaults = _KINDS[kind]
    for name, value in options.items():
        if name not in defaults:
            near = difflib.get_close_matches(name, defaults, n=1)
            expected = f"its options are {', '.join(defaults)}" if defaults else "it has none"
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"the task {kind!r} has no option {name!r}: {expected}{hint}")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{name} of the task {kind!r} must be a positive integer, got {value!r}")
    return make(defaults | options)


def _sequences(
    kind: str, make: Callable[[dict[str, Any]], sequences.Windows], options: dict[str, Any]
) -> Task:
    return Task(kind, options, *make(options), {})


def _recall(options: dict[str, Any]) -> Task:
    vocabulary, pairs, length = options["vocabulary"], options["pairs"], options["length"]
    weights = check_pairs("recall", vocabulary, pairs, length)
    middle = vocabulary // 2

    def draw(rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        keys = 1 + choose(torch.ones(middle - 1), pairs, rows, generator)
        values = middle + choose(torch.ones(middle), pairs, rows, generator)
        queries = 2 * pairs + 2 * choose(weights, pairs, rows, generator)
        ids = torch.zeros(rows, length, dtype=torch.int64)
        ids[:, 0 : 2 * pairs : 2] = keys
        ids[:, 1 : 2 * pairs : 2] = values
        ids.scatter_(1, queries, keys).scatter_(1, queries + 1, values)
        return ids, torch.full_like(ids, IGNORED).scatter_(1, queries + 1, values)

    return Task("recall", options, vocabulary, length, draw, {})


def _induction(options: dict[str, Any]) -> Task:
    vocabulary, length = options["vocabulary"], options["length"]
    if vocabulary < 3:
        raise UserError(f"vocabulary of the task 'induction' must be at least 3, got {vocabulary}")
    if length < 3:
        raise UserError(f"length of the task 'induction' must be at least 3, got {length}")
    special = vocabulary - 1

    def draw(rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        ids = torch.randint(special, (rows, length + 1), generator=generator)
        # The token after it is an ordinary one: the first special token is not next to the last.
        place = torch.randint(length - 2, (rows, 1), generator=generator)
        ids[:, -1:] = ids.gather(1, place + 1)
        ids[:, -2] = special
        ids.scatter_(1, place, special)
        return ids, _last(ids)

    return Task("induction", options, vocabulary, length + 1, draw, {})


def _copy(options: dict[str, Any]) -> Task:
    vocabulary, symbols, gap = options["vocabulary"], options["symbols"], options["gap"]
    check_vocabulary("copy", vocabulary)
    blank, marker = vocabulary, vocabulary + 1
    length = 2 * symbols + gap + 1

    def draw(rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        ids = torch.full((rows, length), blank)
        ids[:, :symbols] = torch.randint(vocabulary, (rows, symbols), generator=generator)
        ids[:, symbols + gap] = marker
        ids[:, -symbols:] = ids[:, :symbols]
        labels = torch.full_like(ids, IGNORED)
        labels[:, -symbols:] = ids[:, -symbols:]
        return ids, labels

    return Task("copy", options, vocabulary + 2, length, draw, {})


def _digits(options: dict[str, Any]) -> Task:
    parts = _digit_parts()
    images = parts["train"]

    def draw(rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        ids = images[torch.randint(len(images), (rows,), generator=generator)]
        return ids, _last(ids)

    fixed = {part: (parts[part], _last(parts[part])) for part in ("validation", "test")}
    return Task("digits", options, _INTENSITIES + _CLASSES, _PIXELS + 1, draw, fixed)


@cache
def _digit_parts() -> dict[str, Tensor]:
    """The images of each part as token ids (images, 65), the last being the class."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError(
            f"the task 'digits' needs scikit-learn ({error}): pip install 'syncattn[study]'"
        ) from error
    data = load_digits()
    classes = torch.from_numpy(data.target).long()
    ids = torch.cat([torch.from_numpy(data.data).long(), _INTENSITIES + classes[:, None]], dim=1)
    generator = torch.Generator().manual_seed(0)
    chosen: dict[str, list[Tensor]] = {part: [] for part in PARTS}
    for label in range(_CLASSES):
        members = (classes == label).nonzero()[:, 0]
        members = members[torch.randperm(len(members), generator=generator)]
        held_out = round(0.15 * len(members))
        sizes = [len(members) - 2 * held_out, held_out, held_out]
        for part, indices in zip(PARTS, members.split(sizes)):
            chosen[part].append(indices)
    # Shuffled, so that the first windows (on which densities are measured) are not all zeros.
    order = {part: torch.cat(indices) for part, indices in chosen.items()}
    return {p: ids[o[torch.randperm(len(o), generator=generator)]] for p, o in order.items()}


_KINDS: dict[str, tuple[Callable[[dict[str, Any]], Task], dict[str, Any]]] = {
    "recall": (_recall, {"vocabulary": 64, "pairs": 4, "length": 64}),
    "induction": (_induction, {"vocabulary": 16, "length": 64}),
    "copy": (_copy, {"vocabulary": 16, "symbols": 8, "gap": 16}),
    "digits": (_digits, {}),
    **{
        kind: (partial(_sequences, kind, make), defaults)
        for kind, make, defaults in (
            ("mqar", sequences.mqar, {"vocabulary": 8192, "pairs": 4, "length": 64}),
            ("selective", sequences.selective, {"vocabulary": 16, "symbols": 16, "length": 64}),
            ("reverse", sequences.reverse, {"vocabulary": 32, "symbols": 16}),
            ("sort", sequences.sort, {"vocabulary": 32, "symbols": 16}),
            ("count", sequences.count, {"vocabulary": 16, "length": 64, "most": 16}),
            ("words", sequences.words, {"vocabulary": 32, "pairs": 8, "letters": 2, "queries": 4}),
        )
    },
}
TASK_KINDS = tuple(_KINDS)


class _Fixed(Dataset):
    """Windows that are all there."""

    def __init__(self, ids: Tensor, labels: Tensor) -> None:
        self.ids, self.labels = ids, labels

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[index], "labels": self.labels[index]}


class _Drawn(Dataset):
    """Windows that are drawn when they are asked for, a block at a time; the last block is kept."""

    def __init__(self, task: Task, part: str, count: int, seed: int) -> None:
        self.task, self.part, self.count, self.seed = task, part, count, seed
        self._number, self._block = -1, _Fixed(torch.empty(0), torch.empty(0))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < self.count:
            raise IndexError(f"window {index} of {self.count}")
        number, row = divmod(index, _BLOCK)
        if number != self._number:
            generator = stream(self.task.kind, self.task.options, self.part, self.seed, number)
            self._number, self._block = number, _Fixed(*self.task.draw(_BLOCK, generator))
        return self._block[row]


def stream(kind: str, options: dict[str, Any], part: str, seed: int, block: int) -> torch.Generator:
    """The generator of a block of windows; those of different parts always differ.

    PyTorch's generator has 2**32 starting points: their lowest two bits are the part.
    """
    name = json.dumps([kind, options, seed, block], sort_keys=True)
    digest = hashlib.blake2b(name.encode(), digest_size=4).digest()
    start = int.from_bytes(digest, "little") & ~3 | PARTS.index(part)
    return torch.Generator().manual_seed(start)


def _last(ids: Tensor) -> Tensor:
    """Labels: the last token of each row is the answer."""
    labels = torch.full_like(ids, IGNORED)
    labels[:, -1] = ids[:, -1]
    return labels

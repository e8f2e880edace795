"""Where two models of bytes differ: by position, place in the word, repetition in the window, and rarity."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from syncattn.drawing import canvas, png
from syncattn.training.errors import UserError
from syncattn.training.figures import COLOURS
from syncattn.training.windows import EvaluationWindows
from syncattn_lab.study.tables import table
from syncattn_lab.study.verdicts import number

WORD = re.compile(rb"[0-9A-Za-z\x80-\xff]+")
"""Letters, digits and what is not ASCII; case counts. The parts of a_name are words: they come again."""
SPACE = b" \n\t\r"
POSITIONS = (1, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
PLACES = (0, 1, 2, 3, 4, 8)
DISTANCES = (1, 32, 64, 128, 256, 512, 1024)
COUNTS = (0, 1, 10, 100, 1000)

Labels = NDArray[np.int64]


class Words(NamedTuple):
    """What each byte of a text is, (bytes,) each.

    Attributes:
        start: where its word begins, or -1 for a byte that is in no word.
        before: where the same word began the last time before, or -1.
        known: how often its word is in the training text, or -1.
        space: whether it is a space, a tab or a line's end.
    """

    start: Labels
    before: Labels
    known: Labels
    space: NDArray[np.bool_]


class Sorting(NamedTuple):
    """Predicted bytes in classes: `labels` (windows, length - 1) has the number of each one's name, or -1."""

    title: str
    names: list[str]
    labels: Labels


class Row(NamedTuple):
    """One class of bytes: how many, each model's loss in nats per byte, and the standard error of their
    difference over windows; `part` is the class's part of the difference of the means over all bytes."""

    name: str
    bytes: int
    losses: tuple[float, float]
    error: float
    part: float

    @property
    def difference(self) -> float:
        return self.losses[0] - self.losses[1]


def words_of(text: bytes, training: bytes) -> Words:
    """The words of a text, and how often the training text has them."""
    training_words = Counter(WORD.findall(training))
    start, before, known = (np.full(len(text), -1, dtype=np.int64) for _ in range(3))
    last: dict[bytes, int] = {}
    for match in WORD.finditer(text):
        where, word = slice(*match.span()), match[0]
        start[where], before[where] = match.start(), last.get(word, -1)
        known[where] = training_words[word]
        last[word] = match.start()
    return Words(start, before, known, np.isin(np.frombuffer(text, dtype=np.uint8), list(SPACE)))


@torch.no_grad()
def losses_of(model: PreTrainedModel, windows: EvaluationWindows, batch: int = 8) -> NDArray[np.float64]:
    """The loss of every predicted token, (windows, length - 1), nats."""
    found = []
    for begin in range(0, len(windows), batch):
        picked = [windows[i]["input_ids"] for i in range(begin, min(begin + batch, len(windows)))]
        ids = torch.stack(picked).to(model.device)
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        found.append(loss.double().cpu().numpy())
    return np.concatenate(found)


def sortings(words: Words, windows: EvaluationWindows) -> list[Sorting]:
    """The predicted bytes of some windows, sorted in each way that is told of.

    A word is repeated if all of its last occurrence is in the window; of a word that began before the window
    it is not known.
    """
    begins = np.array(windows.starts, dtype=np.int64)[:, None]
    at = begins + np.arange(1, windows.context, dtype=np.int64)
    start, before, known, space = (each[at] for each in words)
    word, whole = start >= 0, start >= begins
    repeated = whole & (before >= begins)
    outside = np.where(space, 0, 1)
    after = ["space or line's end", "other sign"]

    place_names = ["first byte", "second", "third", "fourth", *_ranges(PLACES[4:], 1)]
    places = np.where(word, 2 + _bin(at - start, PLACES), outside)
    distances = np.where(repeated, 2 + _bin(start - before, DISTANCES), 1)
    far = windows.context - 1
    distance_names = [f"{name} bytes back" for name in _ranges([d for d in DISTANCES if d <= far], end=far)]
    counts = np.where(word, _bin(known, COUNTS), -1)
    count_names = [f"{name} ×" for name in _ranges(COUNTS)]
    both = np.where(whole & word, 2 * counts + repeated, -1)
    rest = np.where(whole & word, 2 * (at > start) + repeated, -1)
    new = ("first in the window", "repeated")
    return [
        Sorting("position in the window", *_positions(at - begins, windows.context)),
        Sorting("place in the word", [*after, *place_names], places),
        Sorting(
            "word in the window",
            ["began before it", new[0], *distance_names],
            np.where(word, np.where(whole, distances, 0), -1),
        ),
        Sorting("word in the training text", count_names, counts),
        Sorting(
            "training text, and in the window",
            [f"{name}, {how}" for name in count_names for how in new],
            both,
        ),
        Sorting(
            "byte of the word, and in the window",
            [f"{which}, {how}" for which in ("first byte", "later bytes") for how in new],
            rest,
        ),
    ]


def rows_of(sorting: Sorting, ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> list[Row]:
    """Each class that has bytes: its losses under both models, and its part of their difference."""
    found = []
    for label, name in enumerate(sorting.names):
        inside = sorting.labels == label
        total = int(inside.sum())
        if total:
            sums = (ours * inside).sum(1), (theirs * inside).sum(1)
            change = sums[0] - sums[1] - (sums[0] - sums[1]).sum() / total * inside.sum(1)
            windows = len(change)
            error = float(np.sqrt(windows / max(windows - 1, 1) * (change**2).sum()) / total)
            losses = float(sums[0].sum() / total), float(sums[1].sum() / total)
            part = float((sums[0].sum() - sums[1].sum()) / ours.size)
            found.append(Row(name, total, losses, error, part))
    return found


def compare(
    models: Sequence[PreTrainedModel], text: bytes, training: bytes, length: int, most: int | None = None
) -> list[tuple[str, list[Row]]]:
    """Two models on a text: for each sorting its title and its rows, the first without any classes.

    With `most`, windows of about so many bytes in all are read, evenly spaced, as a study's final evaluation
    does.

    Raises:
        UserError: not two models, or a text shorter than one window.
    """
    if len(models) != 2:
        raise UserError(f"expected two models, got {len(models)}")
    if not 1 < length <= len(text):
        raise UserError(f"length must be from 2 to the text's {len(text):,} bytes, got {length}")
    tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    windows = EvaluationWindows(tokens, length, most)
    ours, theirs = (losses_of(model, windows) for model in models)
    every = Sorting("all", ["all bytes"], np.zeros(ours.shape, dtype=np.int64))
    found = [every, *sortings(words_of(text, training), windows)]
    return [(sorting.title, rows_of(sorting, ours, theirs)) for sorting in found]


def tables_of(found: Sequence[tuple[str, list[Row]]], titles: Sequence[str]) -> list[str]:
    """Markdown: a table for each sorting."""
    whole = found[0][1][0]

    def share(part: float) -> str:
        return f"{number(100 * part / whole.difference, 0)} %" if whole.difference else "–"

    lines: list[str] = []
    for title, rows in found:
        header = [title, "bytes", "share", *titles, "difference", "standard error", "of all the difference"]
        body = [
            [
                row.name,
                f"{row.bytes:,}",
                f"{100 * row.bytes / whole.bytes:.1f} %",
                *map(number, row.losses),
                number(row.difference, signed=True),
                number(row.error, 4),
                f"{number(row.part, 4, signed=True)} ({share(row.part)})",
            ]
            for row in rows
        ]
        lines += [*table(header, body), ""]
    return lines


def picture(found: Sequence[tuple[str, list[Row]]], titles: Sequence[str]) -> bytes:
    """Each class's part of the difference of the means as a bar, the class's own difference beside it."""
    panels = found[1:5]
    heights = [len(rows) for _, rows in panels]
    tall = max(heights[0] + heights[2], heights[1] + heights[3])
    with canvas("light", 9.6, 1.5 + 0.24 * tall, "constrained") as figure:
        ratios = [max(heights[0], heights[1]), max(heights[2], heights[3])]
        grid = figure.subplots(2, 2, sharex=True, height_ratios=ratios).ravel()
        every = [0.0, *(row.part for _, rows in panels for row in rows)]
        room = 0.3 * (max(every) - min(every) or 1.0)  # for the numbers beside the bars
        low, high = min(every) - room * (min(every) < 0), max(every) + room * (max(every) > 0)
        for axes, (title, rows) in zip(grid, panels):
            parts = [row.part for row in rows]
            tints = ["#b5523b" if part > 0 else COLOURS["osn"] for part in parts]
            axes.barh(range(len(rows)), parts, height=0.62, color=tints)
            axes.axvline(0, color="#26292e", lw=0.8)
            for place, row in enumerate(rows):
                axes.annotate(
                    number(row.difference, signed=True),
                    (row.part, place),
                    xytext=(3 if row.part >= 0 else -3, 0),
                    textcoords="offset points",
                    ha="left" if row.part >= 0 else "right",
                    va="center",
                    fontsize=7.5,
                )
            axes.set_yticks(range(len(rows)), [row.name for row in rows], fontsize=8.5)
            axes.set_ylim(len(rows) - 0.4, -0.6)
            if low < high:  # two models are hardly ever equal
                axes.set_xlim(low, high)
            axes.set_title(title, loc="left")
            axes.grid(axis="x", lw=0.6)
            axes.set_axisbelow(True)
            axes.tick_params(axis="y", length=0)
        total = number(found[0][1][0].difference, signed=True)
        figure.supxlabel(
            f"part of the difference in loss, {total} nats per byte, “{titles[0]}” less “{titles[1]}”; "
            "beside a bar: the difference of its bytes",
            fontsize=8.5,
        )
        return png(figure)


def _positions(at: Labels, length: int) -> tuple[list[str], Labels]:
    begins = [begin for begin in POSITIONS if begin < length]
    return _ranges(begins, end=length - 1), _bin(at, begins)


def _bin(values: Labels, begins: Sequence[int]) -> Labels:
    """The number of the last beginning that is not above each value."""
    return np.searchsorted(np.array(begins), values, side="right").astype(np.int64) - 1


def _ranges(begins: Sequence[int], shift: int = 0, end: int | None = None) -> list[str]:
    """Names of the ranges from each beginning to the next; `end` is in the last one, None: it is open."""
    ends = [begin - 1 for begin in begins[1:]]
    names = [
        f"{begin + shift:,}" if begin == last else f"{begin + shift:,} to {last + shift:,}"
        for begin, last in zip(begins, ends)
    ]
    last = f"{begins[-1] + shift:,}"
    return [
        *names,
        f"{last} or more" if end is None else f"{last} to {end + shift:,}" if end > begins[-1] else last,
    ]

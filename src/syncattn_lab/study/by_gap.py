"""A line that was read before, and comes again after so many bytes of other text: how much of it is known.

At the beginning of a window stands a block of lines of code whose names are made up at random; then comes
text that nobody has seen, and after a gap the beginning of one of the lines. What a model makes of the rest,
which nothing but the first occurrence tells, is compared with what it makes of a line of the same form that
was never there. Several lines are asked for after the same text, each by itself.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from syncattn.drawing import canvas, png
from syncattn.training.errors import UserError
from syncattn_lab.study.marks import FAINT, colours, end_labels, marker, ticks
from syncattn_lab.study.summary import Cell, Group, context
from syncattn_lab.study.tables import table
from syncattn_lab.study.verdicts import number

GAPS_FILE = "gaps.jsonl"
"""A line for each model, as benchmarks/at_length/measure.py writes them."""
GAPS = (256, 512, 1024, 2048, 4096, 8000, 16_000)
"""Bytes of other text between the block of lines and the beginning that comes again."""
LINES = 4
"""In a block, and as many that are not in it."""
HEAD = 128
"""Bytes of text before the block: a window's first tokens are not like others."""

_PIECE = 2048
_MEASURED = ("loss", "loss_new", "right", "right_new")


class Case(NamedTuple):
    """One text with its block, and what is asked for after each gap; all bytes.

    Attributes:
        before: what is read first, the block of lines at its end.
        filler: the text after it, as long as the longest gap at least.
        seen, new: beginnings and rests of the lines in the block, and of others of the same form.
    """

    before: bytes
    filler: bytes
    seen: list[tuple[bytes, bytes]]
    new: list[tuple[bytes, bytes]]


def cases(text: bytes, count: int, longest: int, seed: int = 0) -> list[Case]:
    """So many texts, evenly spaced in `text`, each with a block of lines of its own.

    Raises:
        UserError: the text is too short for one of them.
    """
    length = HEAD + longest
    room = len(text) - length
    if count < 1 or room < 0:
        raise UserError(f"a gap of {longest:,} needs a text of {length:,} bytes, got {len(text):,}")
    names, found = random.Random(seed), []
    for index in range(count):
        start = index * room // count
        lines = [_line(names) for _ in range(2 * LINES)]
        block = b"".join(cue + rest for cue, rest in lines[:LINES]) + b"\n"
        part = text[start : start + length]
        found.append(Case(part[:HEAD] + block, part[HEAD:], lines[:LINES], lines[LINES:]))
    return found


@torch.no_grad()
def measure(
    model: PreTrainedModel, found: Sequence[Case], gaps: Sequence[int] = GAPS
) -> list[dict[str, Any]]:
    """For each gap the loss of a line's rest, nats per byte, and the share of its bytes that are likeliest.

    "loss" and "right" are of the lines that were read before, "loss_new" and "right_new" of the others. Bytes
    are told one by one, so that one wrong does not spoil those after it. A text is read once, in pieces.
    """
    sums = {gap: dict.fromkeys(_MEASURED, 0.0) for gap in gaps}
    for case in found:
        asked = [*case.seen, *case.new]
        ids = torch.stack([_ids(cue + rest, model) for cue, rest in asked])  # lines are equally long
        rest = len(asked[0][1])
        cache, at = _read(model, _ids(case.before, model), None), 0
        filler = _ids(case.filler, model)
        for gap in sorted(gaps):
            cache, at = _read(model, filler[at:gap], cache), gap
            several = copy.deepcopy(cache)
            several.batch_repeat_interleave(len(asked))
            logits = model(input_ids=ids, past_key_values=several, use_cache=True).logits.float()
            logits, wanted = logits[:, -rest - 1 : -1], ids[:, -rest:]
            losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), wanted, reduction="none")
            right = (logits.argmax(-1) == wanted).double()
            for name, values in (("loss", losses.double()), ("right", right)):
                sums[gap][name] += float(values[:LINES].mean()) / len(found)
                sums[gap][f"{name}_new"] += float(values[LINES:].mean()) / len(found)
    return [{"gap": gap, **sums[gap]} for gap in gaps]


def read_gaps(path: Path) -> dict[str, list[dict[str, Any]]]:
    """What was measured, by the key of the run; {} if there is no such file. Of two lines the later counts.

    Raises:
        UserError: a line is malformed; the message names the file and the line's number.
    """
    if not path.is_file():
        return {}
    found = {}
    for count, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            line = json.loads(text)
            entries = [
                {"gap": int(each["gap"]), **{name: float(each[name]) for name in _MEASURED}}
                for each in line["gaps"]
            ]
            if not entries or not isinstance(line["key"], str):
                raise ValueError
        except (ValueError, KeyError, TypeError):
            wanted = f"an object with key and gaps, each with gap, {', '.join(_MEASURED)}"
            raise UserError(f"{path}, line {count}: expected {wanted}, got {text[:80]!r}") from None
        found[line["key"]] = entries
    return found


def of_task(group: Group, task: str, gaps: dict[str, Any]) -> list[tuple[Cell, list[dict[str, Any]]]]:
    """The variants of a task that were asked, in the plan's order: a variant's first seed."""
    found = []
    for cell in group.of_task(task):
        measured = [gaps[line["key"]] for line in cell.runs if line["key"] in gaps]
        found += [(cell, measured[0])] if measured else []
    return found


def found_again(group: Group, task: str, gaps: dict[str, Any]) -> list[str]:
    """A row for each variant, a column for each gap: share of right bytes, and nats per byte in brackets."""
    found = of_task(group, task, gaps)
    if not found:
        return []
    every = sorted({entry["gap"] for _, entries in found for entry in entries})
    rows = []
    for cell, entries in found:
        by_gap = {entry["gap"]: entry for entry in entries}
        told = [_told(by_gap[gap], "") if gap in by_gap else "–" for gap in every]
        rows.append([cell.title, *told, _told(entries[0], "_new")])
    return table(["model; bytes between", *(f"{gap:,}" for gap in every), "never there"], rows)


def picture(group: Group, task: str, gaps: dict[str, Any]) -> bytes | None:
    """Share of right bytes against the gap, dotted: of lines that were never there."""
    found = [(cell, entries) for cell, entries in of_task(group, task, gaps) if len(entries) > 1]
    if not found:
        return None
    paint = colours(group.cells.values())
    every = sorted({entry["gap"] for _, entries in found for entry in entries})
    with canvas("light", 8.2, 4.1, "constrained") as figure:
        axes = figure.subplots()
        axes.set_ylim(0, 1.02)
        ends = []
        for cell, entries in found:
            at = [entry["gap"] for entry in entries]
            colour = paint[cell.variant]
            right = [entry["right"] for entry in entries]
            axes.plot(at, right, lw=1.8, marker=marker(cell), ms=4, color=colour)
            new = [entry["right_new"] for entry in entries]
            axes.plot(at, new, lw=1.0, ls=(0, (1, 2)), color=colour)
            ends.append((right[-1], cell.title, colour))
        axes.axvline(context(found[0][0]), color=FAINT, lw=1.2, zorder=0)
        axes.set_xscale("log", base=2)
        ticks(axes, every, [f"{gap:,}" for gap in every])
        axes.set_xlabel(f"bytes since the line was read (trained at {context(found[0][0]):,})")
        axes.set_ylabel("share of right bytes\n(dotted: a line that was never there)")
        axes.grid(axis="y", lw=0.6)
        end_labels(axes, ends, 3.3)
        return png(figure)


def _told(entry: dict[str, Any], which: str) -> str:
    return f"{number(entry['right' + which], 2)} ({number(entry['loss' + which], 2)})"


def _line(names: random.Random) -> tuple[bytes, bytes]:
    """The beginning and the rest of a line of code; of every line equally long."""
    first, *others = ("".join(map(names.choice, 4 * ("bdfgklmnprstvz", "aeiou"))) for _ in range(4))
    return f"\n    {first} = ".encode(), "{}.{}({})".format(*others).encode()


def _ids(data: bytes, model: PreTrainedModel) -> torch.Tensor:
    return torch.tensor(list(data), dtype=torch.int64, device=model.device)


def _read(model: PreTrainedModel, ids: torch.Tensor, cache: Any) -> Any:
    """A model's cache after these ids (N,), with those before."""
    for part in ids.split(_PIECE):
        cache = model(input_ids=part[None], past_key_values=cache, use_cache=True).past_key_values
    return cache

"""Whole documents packed into windows, none of which sees another; everything here is deterministic."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

_IGNORED = -100
_PADDING = -1


class Piece(NamedTuple):
    """Tokens of one document that stand in one window."""

    document: int
    start: int
    length: int


class PackedWindows(Dataset):
    """Windows of `context` tokens, each of whole documents as far as they fit; what is left of it is padding.

    A document that is longer than a window is cut into windows and a rest. The longest pieces come first,
    each into the window where it leaves the least room (best fit decreasing): few tokens are padding. Pieces
    of one token, from which nothing is learnt, are left out. Items are {"input_ids", "labels",
    "sequence_ids"}, (N,) each: labels are the inputs, but for padding, whose sequence id is -1, and each
    piece's first token, which is not told from the piece before.

    Args:
        documents: (tokens,) integer each.
        context: N.
        max_tokens: keep evenly spaced windows, of about so many tokens; None keeps all.
    """

    def __init__(self, documents: Sequence[Tensor], context: int, max_tokens: int | None = None) -> None:
        self.documents, self.context = documents, context
        self.windows = pack([len(document) for document in documents], context)
        if max_tokens is not None:
            wanted = max(1, min(len(self.windows), max_tokens // context))
            self.windows = [self.windows[i * len(self.windows) // wanted] for i in range(wanted)]

    @property
    def predicted(self) -> int:
        """How many tokens the mean loss over these windows is taken over."""
        return sum(piece.length - 1 for window in self.windows for piece in window)

    @property
    def padding(self) -> float:
        """The share of the tokens that are padding."""
        used = sum(piece.length for window in self.windows for piece in window)
        return 1 - used / (len(self.windows) * self.context)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        whole = {"dtype": torch.int64, "device": "cpu"}
        ids = torch.zeros(self.context, **whole)  # type: ignore[call-overload]
        labels = torch.full_like(ids, _IGNORED)
        texts = torch.full_like(ids, _PADDING)
        at = 0
        for number, piece in enumerate(self.windows[index]):
            end = at + piece.length
            ids[at:end] = self.documents[piece.document][piece.start : piece.start + piece.length].long()
            labels[at + 1 : end] = ids[at + 1 : end]
            texts[at:end] = number
            at = end
        return {"input_ids": ids, "labels": labels, "sequence_ids": texts}


class InRandomOrder(Dataset):
    """`count` items in an order fixed by the seed alone, each as often as the others or once more."""

    def __init__(self, windows: PackedWindows, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        rounds = -(-count // len(windows))
        every = [torch.randperm(len(windows), generator=generator) for _ in range(rounds)]
        self.windows, self.order = windows, torch.cat(every)[:count]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.windows[int(self.order[index])]


def pack(lengths: Sequence[int], context: int) -> list[list[Piece]]:
    """Documents of these lengths in windows of `context` tokens, as `PackedWindows` has them; the windows in
    the order of their first documents."""
    pieces = [
        Piece(document, start, min(context, length - start))
        for document, length in enumerate(lengths)
        for start in range(0, length, context)
        if length - start > 1
    ]
    windows: list[list[Piece]] = []
    rooms: list[tuple[int, int]] = []  # (room, window), rising, of those that have some
    for piece in sorted(pieces, key=lambda piece: -piece.length):
        found = bisect_left(rooms, (piece.length, 0))
        if found < len(rooms):
            room, window = rooms.pop(found)
            windows[window].append(piece)
        else:
            room, window = context, len(windows)
            windows.append([piece])
        if room - piece.length > 1:
            insort(rooms, (room - piece.length, window))
    return sorted(sorted(window) for window in windows)

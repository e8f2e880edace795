"""Fixed-length windows of a text's tokens; everything here is deterministic."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch.utils.data import Dataset


@dataclass(frozen=True, eq=False)
class Windows:
    """What a run learns from, and what it is measured on. Each window is {"input_ids", "labels"}, (N,) each,
    and "sequence_ids" where it holds several texts.

    Attributes:
        train: in the order in which they are used, a batch for each step at least.
        validation: of the evaluations while it runs.
        probe: token ids (B, N) on which densities are measured.
        final: evaluated when the run ends, by name.
        probe_texts: the probe's sequence_ids (B, N); None: each row is one text.
    """

    train: Dataset
    validation: Dataset
    probe: torch.Tensor
    final: Mapping[str, Dataset] = field(default_factory=dict)
    probe_texts: torch.Tensor | None = None


def stacked(windows: Dataset, count: int) -> torch.Tensor:
    """The token ids of the first windows, (count, N)."""
    return torch.stack([windows[i]["input_ids"] for i in range(count)])


def inputs_of(windows: Dataset, indices: Iterable[int]) -> dict[str, torch.Tensor]:
    """What a model is given of these windows, (B, N) each, without the labels."""
    found = [windows[i] for i in indices]
    return {name: torch.stack([window[name] for window in found]) for name in found[0] if name != "labels"}


class RandomWindows(Dataset):
    """`count` windows of `context` tokens at random offsets, fixed by the seed alone.

    Item i depends on (tokens, context, seed, i) only, so two models that are given the same seed see the same
    data in the same order, and a resumed run goes on where it stopped. Labels equal the inputs: the model
    shifts them.
    """

    def __init__(self, tokens: torch.Tensor, context: int, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.tokens, self.context = tokens, context
        self.offsets = torch.randint(len(tokens) - context + 1, (count,), generator=generator)

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        start = int(self.offsets[index])
        window = self.tokens[start : start + self.context].long()
        return {"input_ids": window, "labels": window}


class EvaluationWindows(Dataset):
    """Windows of `context` tokens that cover a text in order.

    Neighbours share one token, the last input of the one being the first of the next, so that every token
    but the very first is predicted exactly once; a rest shorter than a window is left out. With `max_tokens`,
    evenly spaced windows are kept instead of all.
    """

    def __init__(self, tokens: torch.Tensor, context: int, max_tokens: int | None = None) -> None:
        self.tokens, self.context = tokens, context
        self.starts = list(range(0, len(tokens) - context + 1, max(context - 1, 1)))
        if max_tokens is not None:
            wanted = max(1, min(len(self.starts), max_tokens // context))
            self.starts = [self.starts[i * len(self.starts) // wanted] for i in range(wanted)]

    @property
    def predicted(self) -> int:
        """How many tokens the mean loss over these windows is taken over."""
        return len(self.starts) * (self.context - 1)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        start = self.starts[index]
        window = self.tokens[start : start + self.context].long()
        return {"input_ids": window, "labels": window}

"""Several texts in one row: where each begins, and its order parameter. Nothing of one reaches another."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from syncattn.functional import coherence, phase_parts
from syncattn.nn.tokens import shift_by_one
from syncattn.values import readable


class Texts(NamedTuple):
    """The texts that stand in the rows of a batch."""

    ids: Tensor  # (B, N) int64, -1 where a token is padding
    follows: Tensor  # (B, N) bool, whether the real token before is of the same text; False for padding
    number: Tensor  # (B, N) int64, the text's number in the row, from 1; 0 where none has begun
    first: Tensor  # (B, N) int64, at which column the token's text begins


def find_texts(sequence_ids: Any, real: Tensor | None, tokens: Tensor, is_single: bool) -> Texts:
    """The texts that `sequence_ids` tells apart.

    Args:
        sequence_ids: as the layer's `forward` takes them.
        real: (B, N) bool, False = padding besides that of negative ids; None if there is none.
        tokens: (B, N, E).
        is_single: whether the caller's tokens have no batch, so that ids may be (N,).

    Raises:
        TypeError, ValueError: they are no integers (B or 1, N), or, where values are read, fall.
    """
    if not isinstance(sequence_ids, Tensor):
        raise TypeError(f"sequence_ids must be a tensor (B or 1, N), got {type(sequence_ids).__name__}")
    batch, number, _ = tokens.shape
    dtype = sequence_ids.dtype
    if dtype.is_floating_point or dtype.is_complex or dtype == torch.bool:
        raise ValueError(f"sequence_ids must hold integers, got {dtype}")
    ids = sequence_ids[None] if is_single and sequence_ids.ndim == 1 else sequence_ids
    if ids.ndim != 2 or ids.shape[0] not in (1, batch) or ids.shape[1] != number:
        raise ValueError(
            f"sequence_ids must have shape (B or 1, N) = ({batch}, {number}), got {tuple(sequence_ids.shape)}"
        )
    ids = ids.to(tokens.device, torch.int64).expand(batch, number)
    there = ids >= 0 if real is None else real & (ids >= 0)
    ids = torch.where(there, ids, -1)
    values = readable(ids)
    if values is not None and values.numel():
        falls = (values < values.cummax(1).values) & (values >= 0)
        if bool(falls.any()):
            row, at = (int(x) for x in falls.nonzero()[0])
            raise ValueError(
                "sequence_ids must not fall along a row (negative ones are padding), got "
                f"{int(values[row, at])} after {int(values[row, :at].max())} in row {row}, column {at}: a "
                "text's tokens stand side by side"
            )
    before = shift_by_one(ids[:, None, :, None], ids.new_full((batch, 1, 1), -1), there)[:, 0, :, 0]
    follows = there & (ids == before)
    column = torch.arange(number, dtype=torch.int64, device=ids.device).expand(batch, -1)
    begins = there & ~follows
    text = begins.cumsum(1)
    # The text's first column at its number. A running maximum would say it in one line, which ONNX has not.
    places = torch.where(begins, text, 0), torch.where(begins, column, 0)
    first = column.new_zeros(batch, number + 1).scatter(1, *places).gather(1, text)
    return Texts(ids, follows, text, first)


def counted_from_first(position: Tensor, texts: Texts) -> Tensor:
    """Positions (B or 1, N, A) counted from each text's first token: (B, N, A)."""
    position = position.expand(texts.first.shape[0], -1, -1)
    return position - position.gather(1, texts.first[..., None].expand_as(position))


def places_of_texts(ids: Tensor) -> list[Tensor] | None:
    """Where the tokens of the texts stand in a batch whose rows are put one after the other: (T, n) of all
    texts of n tokens, for each n. None where the ids (B, N) may not be read."""
    if ids.is_cuda and torch.cuda.is_current_stream_capturing():
        return None
    known = readable(ids, any_device=True)
    if known is None or known.shape != ids.shape:
        return None
    known = known.cpu()
    rows = torch.arange(len(known), dtype=torch.int64, device="cpu")[:, None] * (
        known.amax() + 1 if known.numel() else 0
    )
    number = torch.where(known < 0, -1, known + rows).flatten()
    tokens = (number >= 0).nonzero()[:, 0]
    lengths = number[tokens].unique_consecutive(return_counts=True)[1].tolist()
    by_length: dict[int, list[Tensor]] = {}
    for length, places in zip(lengths, tokens.split(lengths), strict=True):
        by_length.setdefault(length, []).append(places)
    return [torch.stack(places).to(ids.device) for places in by_length.values()]


def coherence_of_texts(phase: Tensor, texts: Texts, is_causal: bool) -> Tensor:
    """The order parameter r (B, H, N) of each token's text, up to the token if causal; phase (B, H, N, p).

    In float64, where the device has it: up to a token, a text's sum is a difference of sums over the row.
    """
    wide = phase if phase.device.type == "mps" else phase.double()
    parts, counts = phase_parts(wide, texts.ids >= 0)  # (B, H, N, p, 2), (B, 1, N)
    if is_causal:
        sums, totals = parts.cumsum(2), counts.cumsum(2)
        sums = sums - _at(sums - parts, texts.first)
        counts = totals - _at(totals - counts, texts.first)
    else:
        sums, counts = _of_texts(parts, texts.number), _of_texts(counts, texts.number)
    return coherence(sums, counts).to(torch.promote_types(phase.dtype, torch.float32))


def _at(x: Tensor, column: Tensor) -> Tensor:
    """x (B, H, N, ...) at columns (B, N)."""
    return x.gather(2, _like(column, x))


def _of_texts(x: Tensor, number: Tensor) -> Tensor:
    """The sum of x (B, H, N, ...) over each token's text, by the texts' numbers (B, N)."""
    index = _like(number, x)
    every = x.new_zeros(*x.shape[:2], x.shape[2] + 1, *x.shape[3:])
    return every.scatter_add(2, index, x).gather(2, index)


def _like(index: Tensor, x: Tensor) -> Tensor:
    """An index (B, N) of x's tokens, in the shape of x (B, H, N, ...)."""
    return index.reshape(index.shape[0], 1, index.shape[1], *(1,) * (x.ndim - 3)).expand_as(x)

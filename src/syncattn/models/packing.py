"""Several texts in one row: which token belongs to which, however transformers' users say it.

transformers' `DataCollatorWithFlattening` says it in up to three ways at once: `position_ids` that begin
anew, `seq_idx`, and flash-attention's cumulative lengths. All of them become the layers' `sequence_ids`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from syncattn.checks import short
from syncattn.models.inputs import UNREAD, failing, restarts

_LENGTHS = ("cu_seq_lens_q", "cu_seq_lens_k")
_MOST = ("max_length_q", "max_length_k")  # what flash-attention allocates by; nothing here needs it
KEYWORDS = ("seq_idx", *_LENGTHS, *_MOST)


def given_texts(sequence_ids: Any, keywords: Mapping[str, Any], inputs: Tensor) -> Tensor | None:
    """The ids of the texts that a model's row holds, int64 (B or 1, N), -1 for padding; None if nothing says.

    Args:
        sequence_ids: as `DecoderModel.forward` takes them.
        keywords: its others, of which `KEYWORDS` are looked at.
        inputs: (B, N) or (B, N, D), what the texts are of.

    Raises:
        TypeError: one of them is no tensor, nor a list or an array to make one of.
        ValueError: one is not as said there, two of them tell other texts apart, or a longest text's length
            comes without the cumulative ones. Values are read as `models.inputs.failing` reads them.
    """
    found: dict[str, Tensor] = {}
    for name, ids in (("sequence_ids", sequence_ids), ("seq_idx", keywords.get("seq_idx"))):
        if ids is not None:
            found[name] = _checked_ids(name, ids, inputs)
    for name in _LENGTHS:
        if keywords.get(name) is not None:
            found[name] = _ids_of_lengths(name, keywords[name], inputs)
    for name in _MOST:
        if keywords.get(name) is not None and not any(other in found for other in _LENGTHS):
            raise ValueError(
                f"{name} must come with cu_seq_lens_q and cu_seq_lens_k, which say where texts begin, got it "
                "alone"
            )
    if not found:
        return None
    (first, ids), *others = found.items()
    for name, other in others:
        alike = (goes_on(ids) == goes_on(other)) & ((ids < 0) == (other < 0))
        rule = f"{name} must tell the same texts apart as {first}"
        wrong = failing(alike, rule)
        if wrong is not None:
            row, column = (int(x) for x in wrong.nonzero()[0])
            raise ValueError(f"{rule}, got another text at row {row}, column {column}")
    return ids


def row_texts(
    sequence_ids: Any,
    keywords: Mapping[str, Any],
    position_ids: Any,
    attention_mask: Any,
    inputs: Tensor,
    wait: bool = False,
) -> Tensor | None:
    """The ids of the texts in a row whose arguments a model has taken, wherever they are said: (B or 1, N),
    -1 for padding. None if nothing says; told to wait for the device, also if position_ids never begin anew.
    Where it cannot be waited for, they must not then: an assertion on the device.
    """
    ids = given_texts(sequence_ids, keywords, inputs)
    if ids is not None or position_ids is None:
        return ids
    is_padding = None
    if attention_mask is not None:
        is_padding = attention_mask[:, attention_mask.shape[1] - inputs.shape[1] :].to(inputs.device) == 0
    places = position_ids.to(inputs.device, torch.int64).expand(len(inputs), -1)
    begins = restarts(places, None if is_padding is None else ~is_padding)
    if not wait:
        return begins.cumsum(1)
    rule = f"position_ids must rise from each real token of a row to the next; {UNREAD}"
    return None if failing(~begins, rule, wait=True) is None else begins.cumsum(1)


def refuse_texts(keywords: Mapping[str, Any], what: str) -> None:
    """Make sure that nothing tells texts in a row apart, for a model whose rows hold one thing each.

    Args:
        keywords: of its `forward`.
        what: that thing.

    Raises:
        ValueError: something does.
    """
    for name in ("sequence_ids", *KEYWORDS):
        if keywords.get(name) is not None:
            kind = type(keywords[name]).__name__
            raise ValueError(f"{name} must be left out, got {kind}: a row holds one {what}")


def goes_on(ids: Tensor) -> Tensor:
    """(B, N) bool of ids (B, N): whether the token before is of the same text; False for padding."""
    before = torch.nn.functional.pad(ids[:, :-1], (1, 0), value=-1)
    return (ids == before) & (ids >= 0)


def within_texts(labels: Tensor, texts: Tensor | None, keep: slice | Tensor, ignored: int) -> Tensor:
    """Labels that are told from the token before, without those of each text's first token and of padding.

    Args:
        labels: (B, n), of the tokens that are kept.
        texts: ids (B or 1, N); None: one text a row.
        keep: which of the N tokens.
        ignored: stands where a token does not count.
    """
    if texts is None:
        return labels
    return labels.masked_fill(~goes_on(texts)[:, keep].to(labels.device), ignored)


def refuse_cache(given: Any, use_cache: bool | None) -> None:
    """Make sure that no cache comes with several texts in a row.

    Raises:
        ValueError: one was given, or asked for.
    """
    for name, value in (("past_key_values", given), ("use_cache", use_cache or None)):
        if value is not None:
            kind = value if isinstance(value, bool) else type(value).__name__
            raise ValueError(
                f"{name} must be left out with several texts in a row, got {kind}: a cache holds one text "
                "a row"
            )


def _checked_ids(name: str, ids: Any, inputs: Tensor) -> Tensor:
    batch, tokens = inputs.shape[:2]
    ids = _tensor(name, ids, "(B or 1, N)")
    if ids.is_nested or not _integer(ids) or ids.shape not in ((batch, tokens), (1, tokens)):
        raise ValueError(
            f"{name} must be integers of shape (B or 1, N) = ({batch}, {tokens}), got {ids.dtype} "
            f"{tuple(ids.shape)}"
        )
    ids = ids.to(inputs.device, torch.int64)
    ids = ids.masked_fill(ids < 0, -1)
    rule = f"{name} must not fall along a row (negative ones are padding): a text's tokens stand side by side"
    wrong = failing((ids >= ids.cummax(1).values) | (ids < 0), rule)
    if wrong is not None:
        row, column = (int(x) for x in wrong.nonzero()[0])
        after = int(ids[row, :column].max())
        raise ValueError(f"{rule}, got {int(ids[row, column])} after {after} in row {row}, column {column}")
    return ids


def _ids_of_lengths(name: str, lengths: Any, inputs: Tensor) -> Tensor:
    """Ids (B, N) by cumulative lengths, without waiting for a device: see `syncattn.sequence_ids_of`.

    They count the tokens of all rows, one row after the other, as flash-attention's kernels, which know no
    rows, take them from transformers' models.
    """
    batch, tokens = inputs.shape[:2]
    lengths = _tensor(name, lengths, "of integers (T + 1,)")
    if lengths.is_nested or not _integer(lengths) or lengths.ndim != 1 or len(lengths) == 0:
        raise ValueError(f"{name} must be integers (T + 1,), got {lengths.dtype} {tuple(lengths.shape)}")
    ends = lengths.to(inputs.device, torch.int64)
    right = torch.cat((ends[:1] == 0, ends.diff() >= 0, ends[-1:] <= batch * tokens))
    rule = f"{name} must begin with 0, not fall, and end within the {_all_tokens(batch, tokens)} tokens"
    if failing(right, rule) is not None:
        raise ValueError(f"{rule}, got {short(ends.tolist())}")
    column = torch.arange(batch * tokens, dtype=torch.int64, device=ends.device)
    text = torch.bucketize(column, ends[1:], right=True)
    ids = text.masked_fill(column >= ends[-1], -1).view(batch, tokens)
    rule = (
        f"{name} must let a text begin at every row of the batch, as they count the tokens of all "
        f"{_all_tokens(batch, tokens)}, one row after the other"
    )
    if failing((ids[1:, 0] != ids[:-1, -1]) & (ids[1:, 0] >= 0), rule) is not None:
        raise ValueError(f"{rule}, got {short(ends.tolist())}: sequence_ids (B, N) have a row for each")
    return ids


def _all_tokens(batch: int, tokens: int) -> str:
    return f"N = {tokens}" if batch == 1 else f"B * N = {batch * tokens}"


def _tensor(name: str, given: Any, form: str) -> Tensor:
    """A tensor; of lists and arrays, which collators may leave as they are, one is made."""
    if isinstance(given, Tensor):
        return given
    if isinstance(given, list | tuple) or hasattr(given, "__array__"):
        try:
            return torch.as_tensor(given)
        except (TypeError, ValueError, RuntimeError):
            pass  # of unequal lengths, or of no numbers
    raise TypeError(f"{name} must be a tensor {form}, got {type(given).__name__}")


def _integer(x: Tensor) -> bool:
    return not (x.dtype.is_floating_point or x.dtype.is_complex or x.dtype == torch.bool)

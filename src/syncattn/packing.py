"""Several texts in one row: which token belongs to which, as ids of the tokens or as cumulative lengths."""

from __future__ import annotations

import torch
from torch import Tensor

from syncattn.checks import short


def sequence_ids_of(cu_seqlens: Tensor, tokens: int | None = None) -> Tensor:
    """The `sequence_ids` of texts that stand one after the other in one row, from their cumulative lengths as
    flash-attention's varlen functions take them.

    Args:
        cu_seqlens: where each text begins, and where the last one ends: integers (T + 1,) from 0 on, not
            falling. A text may be empty. Their values are read: off the CPU the host waits.
        tokens: N, the row's length; what comes after the last text is padding. None: the texts fill the row.

    Returns:
        (1, N) int64, on cu_seqlens' device: the text's number from 0, -1 for padding.

    Raises:
        TypeError, ValueError: cu_seqlens is not as said, or the row is shorter than the texts.

    Example:
        >>> sequence_ids_of(torch.tensor([0, 2, 5]), tokens=6)
        tensor([[ 0,  0,  1,  1,  1, -1]])
    """
    if not isinstance(cu_seqlens, Tensor):
        raise TypeError(f"cu_seqlens must be a tensor of integers (T + 1,), got {type(cu_seqlens).__name__}")
    dtype = cu_seqlens.dtype
    integers = not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)
    if not integers or cu_seqlens.ndim != 1 or len(cu_seqlens) == 0:
        raise ValueError(f"cu_seqlens must be integers (T + 1,), got {dtype} {tuple(cu_seqlens.shape)}")
    ends = cu_seqlens.to(torch.int64)
    lengths = ends.diff()
    if int(ends[0]) != 0 or bool((lengths < 0).any()):
        raise ValueError(f"cu_seqlens must begin with 0 and not fall, got {ends.tolist()}")
    used = int(ends[-1])
    tokens = used if tokens is None else tokens
    if isinstance(tokens, bool) or not isinstance(tokens, int):
        raise TypeError(f"tokens must be an integer, got {type(tokens).__name__}")
    if tokens < used:
        raise ValueError(f"tokens must be at least cu_seqlens[-1] = {used}, got {tokens}")
    ids = torch.full((1, tokens), -1, dtype=torch.int64, device=ends.device)
    numbers = torch.arange(len(lengths), dtype=torch.int64, device=ends.device)
    ids[0, :used] = numbers.repeat_interleave(lengths)
    return ids


def cu_seqlens_of(sequence_ids: Tensor) -> Tensor:
    """The inverse of `sequence_ids_of`, of one row's ids: (T + 1,) int32. Empty texts leave no trace.

    Args:
        sequence_ids: (1, N) or (N,) integers that rise from text to text; padding, which is negative, may
            stand at the end alone. Their values are read.

    Raises:
        TypeError: they are no tensor.
        ValueError: they are no integers, of several rows, fall, or have padding elsewhere.
    """
    if not isinstance(sequence_ids, Tensor):
        raise TypeError(f"sequence_ids must be a tensor of integers, got {type(sequence_ids).__name__}")
    dtype = sequence_ids.dtype
    if dtype.is_floating_point or dtype.is_complex or dtype == torch.bool:
        raise ValueError(f"sequence_ids must be integers, got {dtype}")
    ids = sequence_ids[0] if sequence_ids.ndim == 2 and len(sequence_ids) == 1 else sequence_ids
    if ids.ndim != 1:
        raise ValueError(f"sequence_ids must be of one row, (1, N) or (N,), got {tuple(sequence_ids.shape)}")
    used = int((ids >= 0).sum())
    texts = ids[:used]
    if bool((texts < 0).any()) or bool((texts.diff() < 0).any()):
        raise ValueError(
            "sequence_ids must not fall, and be negative (padding) at the end alone, got "
            f"{short(ids.tolist())}"
        )
    lengths = texts.unique_consecutive(return_counts=True)[1]
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)

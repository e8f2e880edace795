"""Counting locked pairs tile by tile: O(N) memory, on every device."""

from __future__ import annotations

import torch
from torch import Tensor

from syncattn.backends.call import Call
from syncattn.backends.counting import FARTHEST, Pairs, add_settled, for_counting, radius_square, slack
from syncattn.backends.tiled.tiles import TiledProblem


def count(call: Call) -> Tensor:
    """How many senders each receiver locks with, (B, H, N) int64; top_k is not considered.

    On the CPU they are eager's counts. Elsewhere, where looking at single pairs would make the host wait for
    each tile, a pair so near to the locking edge that rounding decides is counted by the tiled backend's own
    arithmetic.
    """
    counts = torch.zeros(call.receive.shape[:3], dtype=torch.int64, device=call.receive.device)
    if counts.numel() == 0 or call.send.shape[2] == 0:
        return counts
    problem = TiledProblem(for_counting(call))
    if call.receive.device.type == "cpu":
        _count_exactly(call, problem, counts)
        return counts
    for batch, rows, columns in problem.blocks():
        if columns:
            frame, ready = problem.look_over(batch, rows, columns)
            for tile in problem.tiles(batch, rows, columns, frame, ready):
                counts[batch, :, rows] += (tile.strength > 0).sum(-1)
    return counts


def _count_exactly(call: Call, problem: TiledProblem, counts: Tensor) -> None:
    share, radius = slack(call), radius_square(call)
    # What the product of D rounds off is a share of the frequencies' size, not of D.
    size = problem.receive.square().sum(-1).amax(-1) + problem.send.square().sum(-1).amax(-1)  # (B, H)
    rounded = 8 * (problem.freq_dim + 4) * torch.finfo(torch.float64).eps * size[..., None, None]
    for batch, rows, columns in problem.blocks():
        if not columns:
            continue
        frame, ready = problem.look_over(batch, rows, columns)
        limit = radius[batch, :, rows, None]
        doubt = share * limit + rounded[batch]
        if frame.base is not None:
            doubt = doubt + share * frame.base
        within = (limit - doubt).to(problem.dtype)
        beyond = (limit + doubt).clamp(max=FARTHEST).to(problem.dtype)
        for c in columns:
            detuning = problem.allowed_detuning(batch, rows, c) if ready is None else ready
            if frame.base is not None:
                detuning = detuning - frame.base
            locked = detuning <= within
            counts[batch, :, rows] += locked.sum(-1)
            doubtful = (detuning <= beyond) & ~locked
            if bool(doubtful.any()):
                b, h, i, j = doubtful.nonzero(as_tuple=True)
                nearest = None if frame.sender is None else frame.sender[b, h, i, 0]
                pairs = Pairs(b + batch.start, h, i + rows.start, j + c.start, nearest)
                add_settled(counts, call, pairs)

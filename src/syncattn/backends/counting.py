"""What counting locked pairs needs in every backend: the locking radius, and who decides next to it.

A backend that counts tests D <= rho^2 and mixes nothing. It computes D in another way than `eager`, which is
the definition; where the two could differ by rounding, a pair is in doubt, and `settle` looks at it with
eager's own arithmetic. So the counts are eager's, pair for pair, without its matrices. One difference is
left: among senders whose D differ by rounding alone, the nearest may be another one than eager's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from syncattn.backends.call import Call
from syncattn.margin import margin_of
from syncattn.special_functions import LambertW0

# No pair that may attend is as far as this, and none that may not is nearer: see `call.py` and tiles.py.
FARTHEST = 5e29

MOST_PAIRS = 2**22
"""As many are looked at at a time where all are."""


class Pairs(NamedTuple):
    """Some pairs of a call, by their places: int64 (P,) each."""

    batch: Tensor
    head: Tensor
    receiver: Tensor
    sender: Tensor
    nearest: Tensor | None  # the receiver's nearest sender; nearest frame only


def for_counting(call: Call) -> Call:
    """The call without what says nothing about which pairs lock: its values have no columns."""
    return call._replace(
        value=call.value[..., :0],
        seed=None,
        top_k=None,
        dropout_p=0.0,
        power=2.0,
        edge=0.0,
        return_weights=False,
        return_nearest=False,
    )


def radius_square(call: Call) -> Tensor:
    """rho^2 of each receiver, (B, H, N) float64: beyond it, in D counted from its frame, nothing locks."""
    batch, heads, queries, _ = call.receive.shape
    kappa, alpha = call.coupling.double(), call.bandwidth.double()[:, None]
    radius = kappa.square() * torch.exp(-LambertW0.forward(2 * alpha * kappa.square()))
    return radius.clamp(max=FARTHEST).expand(batch, heads, queries)


def slack(call: Call) -> float:
    """How far from rho^2 a pair is in doubt, as a share of rho^2 and of its frame's D: three times what
    rounding the sum of m squares, the frame and the margin in the compute dtype can come to."""
    return 3 * (call.receive.shape[-1] + 8) * torch.finfo(call.compute_dtype).eps


def settle(call: Call, pairs: Pairs) -> Tensor:
    """Whether each pair locks, by eager's arithmetic: bool (P,)."""
    _, heads, queries, _ = call.receive.shape
    dtype, sender_head = call.compute_dtype, pairs.head // (heads // call.send.shape[1])
    receive = call.receive[pairs.batch, pairs.head, pairs.receiver].to(dtype)

    def detuning(sender: Tensor) -> Tensor:
        return (receive - call.send[pairs.batch, sender_head, sender].to(dtype)).square().sum(-1)

    squared = detuning(pairs.sender)
    if pairs.nearest is not None:
        squared = squared - detuning(pairs.nearest)
    coupling = call.coupling.expand(call.receive.shape[0], heads, queries)
    coupling = coupling[pairs.batch, pairs.head, pairs.receiver]
    return margin_of(squared, coupling, call.bandwidth[pairs.head]) > 0


def add_settled(counts: Tensor, call: Call, pairs: Pairs) -> None:
    """Add those of the pairs that lock to the receivers' counts (B, H, N), in place."""
    locks = settle(call, pairs)
    at = pairs.batch[locks], pairs.head[locks], pairs.receiver[locks]
    counts.index_put_(at, torch.ones((), dtype=counts.dtype, device=counts.device), accumulate=True)


def allowed_counts(call: Call) -> Tensor:
    """How many senders each receiver may attend to, (B or 1, H or 1, N) int64; no N x M matrix is made."""
    queries, keys, device = call.receive.shape[2], call.send.shape[2], call.receive.device
    own = torch.arange(queries, dtype=torch.int64, device=device) + (keys - queries)
    if call.sequence_ids is not None:
        return _by_pairs(call)
    if call.mask is None:
        seen = (own + 1 if call.is_causal else torch.full_like(own, keys))[None, None]
        return seen if call.self_coupling or keys < queries else seen - 1
    mask = call.mask.expand(-1, -1, -1, keys)
    if mask.shape[2] == 1:
        seen = mask[:, :, 0].cumsum(-1)
        seen = seen[..., own] if call.is_causal else seen[..., -1:].expand(-1, -1, queries)
        return seen if call.self_coupling else seen - mask[:, :, 0][..., own].long()
    return _by_pairs(call)


def _by_pairs(call: Call) -> Tensor:
    """`allowed_counts` from the pairs themselves, some rows at a time."""
    size = call.receive.shape[0] * (1 if call.mask is None else call.mask.shape[1]) * call.send.shape[2]
    return torch.cat([allowed_pairs_of(call, rows).sum(-1) for rows in stretches(call, size)], -1)


def stretches(call: Call, pairs: int, most: int = MOST_PAIRS) -> tuple[Tensor, ...]:
    """The receivers' numbers, int64, some at a time: where a row is of so many pairs, no more than `most` of
    them, or one row. An exported program, which is for any length, has all of them at once."""
    numbers = torch.arange(call.receive.shape[2], dtype=torch.int64, device=call.receive.device)
    if torch.compiler.is_exporting():
        return (numbers,)
    return numbers.split(max(1, most // max(1, pairs)))


def allowed_pairs_of(call: Call, rows: Tensor) -> Tensor:
    """(B or 1, H or 1, R, M) bool: whom these receivers, int64 (R,), may attend to, True = may attend."""
    queries, keys = call.receive.shape[2], call.send.shape[2]
    own = rows[:, None] + (keys - queries)
    column = torch.arange(keys, dtype=torch.int64, device=rows.device)
    allowed = torch.ones(1, 1, rows.shape[0], keys, dtype=torch.bool, device=rows.device)
    if call.is_causal:
        allowed = allowed & (column <= own)
    if not call.self_coupling:
        allowed = allowed & (column != own)
    if call.sequence_ids is not None:
        theirs = call.sequence_ids[:, None]
        mine = call.sequence_ids[:, own[:, 0], None]
        allowed = allowed & ((mine == theirs) & (mine >= 0))[:, None]
    if call.mask is not None:
        allowed = allowed & (call.mask if call.mask.shape[2] == 1 else call.mask[:, :, rows])
    return allowed

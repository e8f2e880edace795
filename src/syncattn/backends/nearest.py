"""The nearest sender of each receiver, and how far it is: for whoever asks besides the operator itself."""

from __future__ import annotations

import torch
from torch import Tensor

from syncattn.backends.call import Call, is_plain
from syncattn.backends.counting import MOST_PAIRS, allowed_counts, allowed_pairs_of, stretches
from syncattn.backends.select import seeker


def nearest_detuning(call: Call) -> Tensor:
    """D of each receiver's nearest allowed sender, (B, H, N) in the compute dtype; 0 where there is none.

    The gradients are those of this one pair.
    """
    receive, send = call.receive, call.send
    if send.shape[2] == 0:
        return torch.zeros(receive.shape[:3], dtype=call.compute_dtype, device=receive.device)
    nearest = nearest_senders(call)
    if send.shape[1] != receive.shape[1]:
        send = send.repeat_interleave(receive.shape[1] // send.shape[1], 1)
    found = send.gather(2, nearest[..., None].expand(*receive.shape))
    apart = receive.to(call.compute_dtype) - found.to(call.compute_dtype)
    return torch.where(allowed_counts(call) > 0, apart.square().sum(-1), 0.0)


@torch.no_grad()
def nearest_senders(call: Call) -> Tensor:
    """Each receiver's nearest allowed sender, (B, H, N) int64; any number where it has none.

    By a backend that looks only where the nearest can be; without one all allowed pairs are looked at, some
    rows at a time.
    """
    seek = seeker(call) if is_plain(call.receive) else None
    return _by_pairs(call) if seek is None else seek(call)


def _by_pairs(call: Call) -> Tensor:
    batch, heads, *_ = call.receive.shape
    # D does not change if all move together, and rounds less where they stand around 0.
    receive, send = (x.detach().to(call.compute_dtype) for x in (call.receive, call.send))
    centre = send.mean(2, keepdim=True)
    send = send - centre
    if send.shape[1] != heads:
        send, centre = (x.repeat_interleave(heads // x.shape[1], 1) for x in (send, centre))
    receive, squares = receive - centre, send.square().sum(-1)[:, :, None]
    found = []
    for rows in stretches(call, batch * heads * send.shape[2], MOST_PAIRS):
        # what the receiver adds to D is the same for all of its senders
        detuning = squares - 2 * (receive[:, :, rows] @ send.mT)
        found.append(detuning.masked_fill(~allowed_pairs_of(call, rows), torch.inf).argmin(-1))
    return torch.cat(found, 2)

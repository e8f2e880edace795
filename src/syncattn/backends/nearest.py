"""The nearest sender of each receiver, and how far it is: for whoever asks besides the operator itself."""

from __future__ import annotations

import torch
from torch import Tensor

from syncattn.backends.call import Call
from syncattn.backends.counting import allowed_pairs_of

_MAX_PAIRS = 2**22  # as many are looked at at a time


def nearest_detuning(call: Call) -> Tensor:
    """D of each receiver's nearest allowed sender, (B, H, N) in the compute dtype; 0 where there is none.

    All allowed pairs are looked at, some rows at a time, whatever locks. The gradients are those of this one
    pair.
    """
    receive, send = call.receive, call.send
    if send.shape[2] == 0:
        return torch.zeros(receive.shape[:3], dtype=call.compute_dtype, device=receive.device)
    nearest = nearest_senders(call)
    if send.shape[1] != receive.shape[1]:
        send = send.repeat_interleave(receive.shape[1] // send.shape[1], 1)
    found = send.gather(2, nearest.clamp(min=0)[..., None].expand(*receive.shape))
    apart = receive.to(call.compute_dtype) - found.to(call.compute_dtype)
    return torch.where(nearest >= 0, apart.square().sum(-1), 0.0)


@torch.no_grad()
def nearest_senders(call: Call) -> Tensor:
    """Each receiver's nearest allowed sender, by number, (B, H, N) int64; -1 where it has none.

    There is at least one sender.
    """
    batch, heads, queries, _ = call.receive.shape
    keys = call.send.shape[2]
    # D does not change if all move together, and rounds less where they stand around 0.
    receive, send = (x.detach().to(call.compute_dtype) for x in (call.receive, call.send))
    centre = send.mean(2, keepdim=True)
    send = send - centre
    if send.shape[1] != heads:
        send, centre = (x.repeat_interleave(heads // x.shape[1], 1) for x in (send, centre))
    receive, squares = receive - centre, send.square().sum(-1)[:, :, None]
    numbers = torch.arange(queries, dtype=torch.int64, device=receive.device)
    found = []
    for rows in numbers.split(max(1, _MAX_PAIRS // max(1, batch * heads * keys))):
        # what the receiver adds to D is the same for all of its senders
        detuning = squares - 2 * (receive[:, :, rows] @ send.mT)
        detuning = detuning.masked_fill(~allowed_pairs_of(call, rows), torch.inf)
        least, sender = detuning.min(-1)
        found.append(torch.where(least < torch.inf, sender, -1))
    return torch.cat(found, 2)

"""Plain PyTorch in O(N) memory: tiles of the N x M matrix, a backward that recomputes them.

Works wherever torch works and takes every option but returning the weights. It is one custom operator, so
`torch.compile` and `torch.export` see a single node. Per tile:

    D   in float64 by one matrix product of (-2 w^r, |w^r|^2, 1) with (w^s, 1, |w^s|^2), rounded once: the
        Gram expansion cancels in float32, and a drifting frequency makes it cancel more the longer the text
    F   = exp(-2 alpha D) - D / kappa^2, and W = F^(p/2) where it is positive
    out += W v, Z += sum_j W;    out / (Z + eps) at the end

and backward, with delta_i = <dO_i, out_i>:  dW = (dO v^T - delta) / (Z + eps), dD = dW W'(F) F'(D).
The nearest frame and top_k need the whole row first: one more pass over D, spared when the row is one tile.
"""

from __future__ import annotations

import torch
from torch import Tensor

from syncattn.backends.backend import Backend, Capabilities
from syncattn.backends.call import Call
from syncattn.backends.operator import gives_nearest, register, sum_groups
from syncattn.backends.tiled.count import count
from syncattn.backends.tiled.tiles import Frame, TiledProblem, rows_of


def run(call: Call) -> Tensor | tuple[Tensor, Tensor]:
    """The operator: out (B, H, N, d), and with `return_nearest` also the nearest senders' D (B, H, N)."""
    return OPERATOR(call)


def _forward(call: Call) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(out (B, H, N, d) in value's dtype, and in the compute dtype what the backward needs: the row sums Z
    (B, H, N); in the nearest frame also the nearest sender's D and index (B, H, N), else empty ones)."""
    p = TiledProblem(call)
    value = call.value
    out = value.new_zeros(p.batch, p.heads, p.queries, p.value_dim)
    row_sum = value.new_zeros(p.batch, p.heads, p.queries, dtype=p.dtype)
    framed = (p.batch, p.heads, p.queries) if p.nearest else (0,)
    base = row_sum.new_zeros(framed)
    index = base.new_zeros(framed, dtype=torch.int64)
    for batch, rows, columns in p.blocks():
        if not columns:
            continue
        total: Tensor | float = 0.0
        mixed: Tensor | float = 0.0
        frame, ready = p.look_over(batch, rows, columns)
        if frame.base is not None and frame.sender is not None:
            base[batch, :, rows], index[batch, :, rows] = frame.base[..., 0], frame.sender[..., 0]
        for tile in p.tiles(batch, rows, columns, frame, ready):
            total = total + tile.strength.sum(-1)
            keep = p.keep(batch, rows, tile.columns)
            kept = tile.strength if keep is None else tile.strength * keep
            mixed = mixed + kept @ p.value[batch, :, tile.columns]
        assert isinstance(total, Tensor) and isinstance(mixed, Tensor)
        row_sum[batch, :, rows] = total
        out[batch, :, rows] = mixed / p.normaliser(total)[..., None]
    return out, row_sum, base, index


def _saved(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    rows = call.receive.shape[:3]
    base = call.bandwidth.new_empty(rows if call.frame == "nearest" else (0,))
    return call.bandwidth.new_empty(rows), base, torch.empty_like(base, dtype=torch.int64)


def _backward(
    call: Call,
    grad: Tensor,
    grad_nearest: Tensor | None,
    out: Tensor,
    row_sum: Tensor,
    base: Tensor,
    index: Tensor,
) -> tuple[Tensor, ...]:
    """The gradients of receive, send, value, coupling and bandwidth."""
    p = TiledProblem(call)
    receive, send, value, coupling, bandwidth = call[:5]
    grad_receive, grad_send = torch.zeros_like(p.receive), torch.zeros_like(p.send)
    grad_value = torch.zeros_like(p.value)
    grad_coupling = coupling.new_zeros(p.batch, p.heads, coupling.shape[2])
    grad_bandwidth = torch.zeros_like(bandwidth)
    wide = p.receive.dtype
    for batch, rows, columns in p.blocks():
        if not columns:
            continue
        dout = grad[batch, :, rows].to(p.dtype)
        delta = (dout * out[batch, :, rows].to(p.dtype)).sum(-1, keepdim=True)
        scale = p.normaliser(row_sum[batch, :, rows]).reciprocal()[..., None]
        at, law = (batch, slice(None), rows_of(coupling, rows)), p.law(batch, rows)
        received = p.receive[batch, :, rows]
        framed = received.new_zeros(*received.shape[:-1], 1)
        frame = p.look_over(batch, rows, columns)[0] if p.top_k else Frame(None, None, None)
        if p.nearest:
            frame = Frame(base[batch, :, rows, None], index[batch, :, rows, None], frame.limit)
        for tile in p.tiles(batch, rows, columns, frame):
            keep = p.keep(batch, rows, tile.columns)
            kept = tile.strength if keep is None else tile.strength * keep
            grad_value[batch, :, tile.columns] += kept.mT @ (dout * scale)
            flow = dout @ p.value[batch, :, tile.columns].mT
            if keep is not None:
                flow = flow * keep
            flow.sub_(delta).mul_(scale)
            dmargin = law.through_strength(flow, tile.strength)
            slopes = law.through_margin(dmargin, tile.detuning, tile.decay_square)
            grad_bandwidth += slopes.bandwidth
            dkappa = slopes.coupling if coupling.shape[2] > 1 else slopes.coupling.sum(2, keepdim=True)
            grad_coupling[at] += dkappa[..., 0]
            ddetuning = slopes.detuning.to(wide)
            sent = p.send[batch, :, tile.columns]
            total = ddetuning.sum(-1, keepdim=True)
            framed = framed + total
            grad_receive[batch, :, rows] += 2 * (total * received - ddetuning @ sent)
            grad_send[batch, :, tile.columns] += 2 * (
                ddetuning.sum(-2)[..., None] * sent - ddetuning.mT @ received
            )
        if frame.sender is not None:
            # D is counted from D of the nearest sender, so that pair takes back what the row received
            nearest = frame.sender.expand(-1, -1, -1, p.freq_dim)
            if grad_nearest is not None:  # a row that has a nearest sender locks with it
                locks = row_sum[batch, :, rows] != 0
                framed = framed - torch.where(locks, grad_nearest[batch, :, rows], 0.0)[..., None]
            difference = 2 * framed * (received - p.send[batch].gather(2, nearest))
            grad_receive[batch, :, rows] -= difference
            grad_send[batch] = grad_send[batch].scatter_add(2, nearest, difference)
    return (
        grad_receive.to(receive.dtype),
        sum_groups(grad_send, send),
        sum_groups(grad_value, value),
        grad_coupling.sum_to_size(coupling.shape),
        grad_bandwidth,
    )


OPERATOR = register("tiled", _forward, _backward, _saved, ("row_sum", "base", "index"))

BACKEND = Backend(
    run,
    Capabilities(weights=False, transforms=False, onnx=False),
    locked_counts=count,
    gives_nearest=gives_nearest,
)

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

from syncattn.backends.call import Call, expand_heads, is_transformed
from syncattn.backends.operator import differentiate
from syncattn.backends.tiles import Frame, Problem, rows_of


def unavailable() -> str | None:
    """Why this backend cannot run on this machine: it can, always."""
    return None


def refuses(call: Call) -> str | None:
    """Why this backend cannot take the call, or None."""
    if call.return_weights:
        return "it never holds S and P (return_weights=True)"
    return "it has no forward-mode or torch.func derivative" if is_transformed() else None


def run(call: Call) -> Tensor:
    """The operator: out (B, H, N, d)."""
    heads = call.receive.shape[1]
    out, *_ = _forward(
        call.receive,
        expand_heads(call.send, heads),
        expand_heads(call.value, heads),
        call.coupling.expand(call.receive.shape[0], -1, -1),
        call.bandwidth,
        call.mask,
        call.seed,
        call.is_causal,
        call.self_coupling,
        call.top_k or 0,
        call.dropout_p,
        call.frame == "nearest",
        call.power,
        call.edge,
        call.eps,
        call.symmetric,
    )
    return out


_ARGUMENTS = (
    "Tensor receive, Tensor send, Tensor value, Tensor coupling, Tensor bandwidth, Tensor? mask, "
    "Tensor? seed, bool is_causal, bool self_coupling, int top_k, float dropout_p, bool nearest, "
    "float power, float edge, float eps, bool symmetric"
)


@torch.library.custom_op(
    "syncattn::tiled_forward", mutates_args=(), schema=f"({_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor)"
)
def _forward(*arguments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(out (B, H, N, d) in value's dtype, and in the compute dtype what the backward needs: the row sums Z
    (B, H, N); in the nearest frame also the nearest sender's D and index (B, H, N, 1), else empty ones)."""
    p = Problem(*arguments)
    value = arguments[2]
    out = value.new_zeros(p.batch, p.heads, p.queries, p.value_dim)
    row_sum = value.new_zeros(p.batch, p.heads, p.queries, dtype=p.dtype)
    framed = (p.batch, p.heads, p.queries, 1) if p.nearest else (0,)
    base = row_sum.new_zeros(framed)
    index = base.new_zeros(framed, dtype=torch.int64)
    for batch, rows, columns in p.blocks():
        if not columns:
            continue
        total: Tensor | float = 0.0
        mixed: Tensor | float = 0.0
        frame, ready = p.look_over(batch, rows, columns)
        if frame.base is not None and frame.sender is not None:
            base[batch, :, rows], index[batch, :, rows] = frame.base, frame.sender
        for tile in p.tiles(batch, rows, columns, frame, ready):
            total = total + tile.strength.sum(-1)
            keep = p.keep(batch, rows, tile.columns)
            kept = tile.strength if keep is None else tile.strength * keep
            mixed = mixed + kept @ p.value[batch, :, tile.columns]
        assert isinstance(total, Tensor) and isinstance(mixed, Tensor)
        row_sum[batch, :, rows] = total
        out[batch, :, rows] = mixed / p.normaliser(total)[..., None]
    return out, row_sum, base, index


@_forward.register_fake
def _(receive, send, value, coupling, bandwidth, *options):
    batch, heads, queries, _ = receive.shape
    out = value.new_empty(batch, heads, queries, value.shape[-1])
    framed = (batch, heads, queries, 1) if options[6] else (0,)
    base = bandwidth.new_empty(framed)
    return out, bandwidth.new_empty(batch, heads, queries), base, base.new_empty(framed, dtype=torch.int64)


@torch.library.custom_op(
    "syncattn::tiled_backward",
    mutates_args=(),
    schema=(
        f"(Tensor grad, Tensor out, Tensor row_sum, Tensor base, Tensor index, {_ARGUMENTS})"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
)
def _backward(
    grad: Tensor, out: Tensor, row_sum: Tensor, base: Tensor, index: Tensor, *arguments
) -> tuple[Tensor, ...]:
    """The gradients of receive, send, value, coupling and bandwidth."""
    p = Problem(*arguments)
    receive, send, value, coupling, bandwidth = arguments[:5]
    grad_receive, grad_send = torch.zeros_like(p.receive), torch.zeros_like(p.send)
    grad_value = torch.zeros_like(p.value)
    grad_coupling, grad_bandwidth = torch.zeros_like(coupling), torch.zeros_like(bandwidth)
    wide = p.receive.dtype
    for batch, rows, columns in p.blocks():
        if not columns:
            continue
        dout = grad[batch, :, rows].to(p.dtype)
        delta = (dout * out[batch, :, rows].to(p.dtype)).sum(-1, keepdim=True)
        scale = p.normaliser(row_sum[batch, :, rows]).reciprocal()[..., None]
        at = (batch, slice(None), rows_of(coupling, rows))
        kappa = coupling[at][..., None]
        inverse_square = p.inverse_square[at]
        received = p.receive[batch, :, rows]
        framed = received.new_zeros(*received.shape[:-1], 1)
        frame = p.look_over(batch, rows, columns)[0] if p.top_k else Frame(None, None, None)
        if p.nearest:
            frame = Frame(base[batch, :, rows], index[batch, :, rows], frame.limit)
        for tile in p.tiles(batch, rows, columns, frame):
            keep = p.keep(batch, rows, tile.columns)
            kept = tile.strength if keep is None else tile.strength * keep
            grad_value[batch, :, tile.columns] += kept.mT @ (dout * scale)
            flow = dout @ p.value[batch, :, tile.columns].mT
            if keep is not None:
                flow = flow * keep
            flow.sub_(delta).mul_(scale)
            dmargin = p.through_strength(flow, tile.strength)  # dL/dF
            through = dmargin * tile.decay_square
            grad_bandwidth -= 2 * (through * tile.detuning).sum((0, 2, 3))
            dkappa = 2 * (dmargin * tile.detuning).sum(-1, keepdim=True) / kappa**3
            grad_coupling[at] += (dkappa if coupling.shape[2] > 1 else dkappa.sum(2, keepdim=True))[..., 0]
            ddetuning = through.mul_(p.rate).addcmul_(dmargin, inverse_square, value=-1).to(wide)
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
            difference = 2 * framed * (received - p.send[batch].gather(2, nearest))
            grad_receive[batch, :, rows] -= difference
            grad_send[batch] = grad_send[batch].scatter_add(2, nearest, difference)
    return (
        grad_receive.to(receive.dtype),
        grad_send.to(send.dtype),
        grad_value.to(value.dtype),
        grad_coupling,
        grad_bandwidth,
    )


@_backward.register_fake
def _(grad, out, row_sum, base, index, receive, send, value, coupling, bandwidth, *options):
    return tuple(torch.empty_like(x) for x in (receive, send, value, coupling, bandwidth))


differentiate("tiled", _forward, _backward)

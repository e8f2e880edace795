"""The native CPU kernel: fused, in O(N) memory, and at a cost that follows what locks.

The arithmetic is in kernel/ (C++17, no dependency), float32 whatever the inputs are; this file says which
calls it takes, and makes it an operator that autograd, `torch.compile` and `torch.export` know. How it works:
docs/kernel-cpu.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

from syncattn.backends.backend import Backend, Capabilities
from syncattn.backends.call import Call, constant_when_compiled
from syncattn.backends.cpu import library
from syncattn.backends.cpu.count import count, nearest
from syncattn.backends.cpu.decode import decoding
from syncattn.backends.cpu.library import buffer, pointer
from syncattn.backends.cpu.problem import (
    AS_GIVEN,
    Order,
    arrange,
    describe,
    may_be_ordered,
    plain,
    put_back,
    rounded,
)
from syncattn.backends.operator import gives_nearest, register, sum_groups


@constant_when_compiled
def unavailable() -> str | None:
    """Why this backend cannot run on this machine, or None."""
    loaded = library.load()
    return loaded if isinstance(loaded, str) else None


def run(call: Call) -> Tensor | tuple[Tensor, Tensor]:
    """The operator: out (B, H, N, d), and with `return_nearest` also the nearest senders' D (B, H, N)."""
    return OPERATOR(call)


def _forward(call: Call) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(out (B, H, N, d) in value's dtype, and what the backward needs: the row sums Z (B, H, N) float32; in
    the nearest frame also the nearest sender's D, float32, and place, int32, (B, H, N), else empty ones; the
    order of the tokens (B, H, N + M) int32, whose first is -1 if they have none). Row sums and places are in
    that order, D is in the call's."""
    inputs = describe(call, None)
    problem, value = inputs.problem, call.value
    batch, heads, queries, keys = problem.batch, problem.heads, problem.queries, problem.keys
    framed = (batch, heads, queries) if problem.nearest else (0,)
    out = buffer(batch, heads, queries, problem.value_dim)
    row_sum = buffer(batch, heads, queries)
    base, sender = buffer(*framed), buffer(*framed, dtype=torch.int32)
    problem.out, problem.row_sum = pointer(out), pointer(row_sum)
    problem.base, problem.nearest_sender = pointer(base), pointer(sender, torch.int32)
    library.forward(problem)
    out = put_back(out, inputs.order.receive)
    if problem.nearest:
        base = put_back(base, inputs.order.receive)
    tokens = queries + keys if may_be_ordered(call) else 0
    order = torch.full((batch, heads, tokens), -1, dtype=torch.int32, device="cpu")
    if inputs.order.receive is not None and inputs.order.send is not None:
        order[..., :queries], order[..., queries:] = inputs.order.receive, inputs.order.send
    if out.shape[-1] != value.shape[-1]:  # else no view: autograd lets nobody change one in place
        out = out[..., : value.shape[-1]].contiguous()
    return out.to(value.dtype), row_sum, base, sender, order


def _saved(call: Call) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    value, rows = call.value, call.receive.shape[:3]
    framed = rows if call.frame == "nearest" else (0,)
    ordered = rows[2] + value.shape[2] if may_be_ordered(call) else 0
    return (
        value.new_empty(rows, dtype=torch.float32),
        value.new_empty(framed, dtype=torch.float32),
        value.new_empty(framed, dtype=torch.int32),
        value.new_empty((*rows[:2], ordered), dtype=torch.int32),
    )


def _backward(
    call: Call,
    grad: Tensor,
    grad_nearest: Tensor | None,
    out: Tensor,
    row_sum: Tensor,
    base: Tensor,
    sender: Tensor,
    order: Tensor,
) -> tuple[Tensor, ...]:
    """The gradients of receive, send, value, coupling and bandwidth."""
    receive, send, value, coupling, bandwidth = call[:5]
    queries, columns = receive.shape[2], rounded(value.shape[-1])
    # hooks on saved tensors may give them back in another dtype and layout
    row_sum, base = row_sum.float().contiguous(), base.float().contiguous()
    sender, order = sender.int().contiguous(), order.int().contiguous()
    places = AS_GIVEN
    if order.numel() > 0 and int(order.view(-1)[0]) >= 0:
        places = Order(order[..., :queries].contiguous(), order[..., queries:].contiguous())
    inputs = describe(call, places)
    problem = inputs.problem
    grad, out = plain(grad, columns), plain(out, columns)
    if grad_nearest is not None:
        grad_nearest = grad_nearest.float().contiguous().resolve_neg()
    if places.receive is not None:
        grad, out = arrange(grad, places.receive), arrange(out, places.receive)
        if problem.nearest:
            base = _arranged(base, places.receive)
        if grad_nearest is not None:
            grad_nearest = _arranged(grad_nearest, places.receive)
    grad_receive = buffer(problem.batch, problem.heads, queries, problem.freq_dim)
    grad_send = buffer(problem.batch, problem.heads, problem.keys, problem.freq_dim)
    grad_value = buffer(problem.batch, problem.heads, problem.keys, columns)
    grad_coupling = buffer(problem.batch, problem.heads, queries)
    grad_bandwidth = buffer(problem.batch, problem.heads, dtype=torch.float64)
    problem.grad_out, problem.out, problem.row_sum = pointer(grad), pointer(out), pointer(row_sum)
    problem.base, problem.nearest_sender = pointer(base), pointer(sender, torch.int32)
    problem.grad_base = pointer(grad_nearest)
    problem.grad_receive, problem.grad_send = pointer(grad_receive), pointer(grad_send)
    problem.grad_value = pointer(grad_value)
    problem.grad_coupling = pointer(grad_coupling)
    problem.grad_bandwidth = pointer(grad_bandwidth, torch.float64)
    library.backward(problem)
    grad_value = put_back(grad_value, places.send)[..., : value.shape[-1]]
    return (
        put_back(grad_receive, places.receive).to(receive.dtype),
        sum_groups(put_back(grad_send, places.send), send),
        sum_groups(grad_value, value),
        put_back(grad_coupling, places.receive).sum_to_size(coupling.shape),
        grad_bandwidth.sum(0).to(bandwidth.dtype),
    )


def _arranged(rows: Tensor, order: Tensor) -> Tensor:
    """Numbers of the receivers (B, H, N) in this order of theirs."""
    return arrange(rows[..., None], order)[..., 0]


OPERATOR = register("cpu", _forward, _backward, _saved, ("row_sum", "base", "sender", "order"), "cpu")

BACKEND = Backend(
    run=run,
    unavailable=unavailable,
    locked_counts=count,
    nearest=nearest,
    gives_nearest=gives_nearest,
    decoding=decoding,
    capabilities=Capabilities(
        device="cpu",
        compute_dtypes=(torch.float32,),
        powers=(1, 2),
        top_k=False,
        most_coordinates=512,
        packed=True,
        weights=False,
        transforms=False,
        onnx=False,
    ),
)

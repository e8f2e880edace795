"""The custom operators of the backends with derivatives of their own: one schema, one way to autograd.

As operators of torch they are single nodes to autograd, `torch.compile` and `torch.export`. A backend gives
functions of a `Call`; here alone calls are taken apart for the dispatcher and put together again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from syncattn.backends.call import Call, without_autocast

# The fields of a call, in their order, but for what is to be returned: nothing here returns weights, and the
# nearest senders' D, which the backward needs, is always among what forward gives.
SCHEMA = (
    "Tensor receive, Tensor send, Tensor value, Tensor coupling, Tensor bandwidth, Tensor? mask, "
    "Tensor? seed, Tensor? sequence_ids, bool is_causal, bool self_coupling, int? top_k, float dropout_p, "
    "str frame, float power, float edge, float eps, bool symmetric"
)
_TENSORS = 8  # the first of them
_DIFFERENTIABLE = 5  # of which these have gradients
_PLAIN = (Tensor, torch.nn.Parameter)
_BASE = "base"  # what is saved of the nearest senders' D is called so


def pack(call: Call) -> tuple[Any, ...]:
    """The call as the arguments of SCHEMA."""
    return call[:-2]


def unpack(*arguments: Any) -> Call:
    """The inverse of `pack`."""
    return Call._make((*arguments, False, False))


def gives_nearest(call: Call, by_name: bool) -> bool:
    """Whether an operator finds the nearest senders of this call anyway: not where no frame counts from them,
    nor where values have no columns, which backends may take for nothing to do."""
    return call.frame == "nearest" and call.value.shape[-1] > 0


class Operator(NamedTuple):
    """A backend's two operators of torch; a call of `forward` is recorded, and compiled as one node."""

    forward: Callable[..., Any]  # SCHEMA to (out, what is saved...)
    backward: Callable[..., Any]  # (dL/dout, out, what is saved..., SCHEMA) to the gradients
    plainly: Callable[..., Any]  # as forward where `_is_plain`: the same at less cost to the host
    recorded: Callable[..., Any]  # and recorded for autograd
    nearest: int  # where the nearest senders' D is among what forward gives

    def __call__(self, call: Call) -> Tensor | tuple[Tensor, Tensor]:
        """out (B, H, N, d); with `return_nearest` also the nearest senders' D (B, H, N), of calls of which it
        `gives_nearest`."""
        differentiable, way = call[:5], self.plainly
        if not _is_plain((*differentiable, call.mask, call.seed, call.sequence_ids)):
            way = self.forward
        elif torch.is_grad_enabled() and any(x.requires_grad for x in differentiable):
            way = self.recorded
        found = way(*pack(call))
        return (found[0], found[self.nearest]) if call.return_nearest else found[0]


def _is_plain(tensors: Sequence[Tensor | None]) -> bool:
    """Whether a call can do without torch's dispatcher, which takes longer than a kernel: nothing compiles,
    traces, profiles or replaces what is called, and the tensors hold numbers."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if torch._C._len_torch_dispatch_stack() or torch.autograd._profiler_enabled():
        return False
    return all(x is None or (type(x) in _PLAIN and not x.is_meta) for x in tensors)


def register(
    backend: str,
    forward: Callable[[Call], tuple[Tensor, ...]],
    backward: Callable[..., tuple[Tensor, ...]],
    saved: Callable[[Call], tuple[Tensor, ...]],
    names: Sequence[str],
    devices: str | Sequence[str] | None = None,
) -> Operator:
    """Make a backend's operators, with their fakes and derivatives; a second derivative is refused.

    Args:
        backend: its name.
        forward: gives (out (B, H, N, d) in value's dtype, contiguous, and what the backward needs).
        backward: is given (call, dL/dout, dL/dD of the nearest senders (B, H, N) in the compute dtype or
            None, and what forward returned) and gives the gradients of receive, send, value, coupling and
            bandwidth, in their shapes and dtypes. In rows without a sender it does not look at dL/dD.
        saved: empty tensors of the shapes and dtypes of what the backward needs.
        names: what the backward needs is called so, in forward's order. "base" is, in the nearest frame, the
            nearest senders' D (B, H, N), 0 where there is none, in the compute dtype, in the call's order.
        devices: the kinds that it runs on; None for all.
    """
    kept = "".join(f"Tensor {name}, " for name in names)
    outputs = ", ".join(["Tensor"] * (1 + len(names)))
    count = 3 + len(names)  # dL/dout, dL/dD of the nearest senders, and what forward returned
    nearest = 1 + names.index(_BASE)

    def run_forward(*arguments):
        return forward(unpack(*arguments))

    def run_backward(*arguments):
        gradients = backward(unpack(*arguments[count:]), *arguments[:count])
        return tuple(gradient.contiguous() for gradient in gradients)

    def fake_forward(*arguments):
        call = unpack(*arguments)
        shape = (*call.receive.shape[:3], call.value.shape[-1])
        return call.value.new_empty(shape), *saved(call)

    def fake_backward(*arguments):
        return tuple(x.new_empty(x.shape) for x in arguments[count : count + _DIFFERENTIABLE])

    ahead = torch.library.custom_op(
        f"syncattn::{backend}_forward",
        run_forward,
        mutates_args=(),
        device_types=devices,
        schema=f"({SCHEMA}) -> ({outputs})",
    )
    back = torch.library.custom_op(
        f"syncattn::{backend}_backward",
        run_backward,
        mutates_args=(),
        device_types=devices,
        schema=f"(Tensor grad, Tensor? grad_nearest, Tensor out, {kept}{SCHEMA}) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    )
    ahead.register_fake(fake_forward)
    back.register_fake(fake_backward)

    def setup_context(ctx, inputs, output) -> None:
        ctx.options = inputs[_TENSORS:]
        ctx.save_for_backward(*output, *inputs[:_TENSORS])
        ctx.set_materialize_grads(False)  # no zeros for what is only saved

    def derivative(ctx, grad, *others):
        grad_nearest = others[nearest - 1]
        if grad is None and grad_nearest is None:
            return (None,) * (_TENSORS + len(ctx.options))
        saved = ctx.saved_tensors
        grad = torch.zeros_like(saved[0]) if grad is None else grad
        tensors = (grad, grad_nearest, *saved)
        run = back if torch.is_grad_enabled() or not _is_plain(tensors) else plainly_back
        with without_autocast(grad.device):  # .backward() may be called inside of it
            gradients = run(*tensors, *ctx.options)
        return (*gradients, *(None,) * (_TENSORS - _DIFFERENTIABLE + len(ctx.options)))

    def second(ctx, *_):
        raise RuntimeError(
            f"backend={backend!r} has no second derivative: use backend='eager', which has derivatives of "
            "every order (a double backward, create_graph=True)"
        )

    ahead.register_autograd(derivative, setup_context=setup_context)
    back.register_autograd(second)

    # What torch makes of the registered derivative reads the schema argument by argument at each call.
    class Recorded(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *arguments):
            output = plainly(*arguments)
            setup_context(ctx, arguments, output)
            return output

        backward = staticmethod(derivative)

    plainly, plainly_back = torch._disable_dynamo(run_forward), torch._disable_dynamo(run_backward)
    return Operator(ahead, back, plainly, Recorded.apply, nearest)


def sum_groups(gradient: Tensor, like: Tensor) -> Tensor:
    """(B, H, M, x) to like's (B, heads, M, x) and dtype: the sum over the receivers' heads that share one."""
    if gradient.shape[1] != like.shape[1]:
        gradient = gradient.unflatten(1, (like.shape[1], -1)).sum(2)
    return gradient.to(like.dtype)

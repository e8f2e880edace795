"""What the fused backends' custom operators share: the schema and the way to autograd."""

from __future__ import annotations

from typing import Any

from torch.library import CustomOpDef

from syncattn.backends.call import Call, without_autocast

# What the kernels' operators take, and a call in that form; `tiled` takes more (top_k, any power).
FUSED_SCHEMA = (
    "Tensor receive, Tensor send, Tensor value, Tensor coupling, Tensor bandwidth, Tensor? mask, "
    "Tensor? seed, bool is_causal, bool self_coupling, float dropout_p, bool nearest, int power, "
    "float edge, float eps, bool symmetric"
)
_TENSORS = 7  # the first arguments of every forward


def fused_arguments(call: Call) -> tuple[Any, ...]:
    """The call as the arguments of FUSED_SCHEMA."""
    return (
        call.receive,
        call.send,
        call.value,
        call.coupling,
        call.bandwidth,
        call.mask,
        call.seed,
        call.is_causal,
        call.self_coupling,
        call.dropout_p,
        call.frame == "nearest",
        int(call.power),
        call.edge,
        call.eps,
        call.symmetric,
    )


def differentiate(backend: str, forward: CustomOpDef, backward: CustomOpDef) -> None:
    """Register the operator `backward` as the derivative of `forward`, whose own is refused.

    Args:
        backend: the name that the refusal gives.
        forward: takes (receive, send, value, coupling, bandwidth, mask or None, seed or None, options...)
            and returns (out, what the backward needs...).
        backward: takes (dL/dout, everything that forward returned, everything that it took) and returns the
            gradients of the first five arguments.
    """

    def setup_context(ctx, inputs, output) -> None:
        ctx.options = inputs[_TENSORS:]
        ctx.save_for_backward(*output, *inputs[:_TENSORS])

    def derivative(ctx, grad, *_):
        with without_autocast(grad.device):  # .backward() may be called inside of it
            gradients = backward(grad, *ctx.saved_tensors, *ctx.options)
        return (*gradients, *(None,) * (_TENSORS - len(gradients) + len(ctx.options)))

    def second(ctx, *_):
        raise RuntimeError(
            f"backend={backend!r} has no second derivative: use backend='eager', which has derivatives of "
            "every order (a double backward, create_graph=True)"
        )

    forward.register_autograd(derivative, setup_context=setup_context)
    backward.register_autograd(second)

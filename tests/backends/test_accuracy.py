"""Rounding: at most twice the error of softmax attention computed in the same dtype, against float64."""

import pytest
import torch

import syncattn
from syncattn import locking

attention = syncattn.selective_synchronization_attention
BACKENDS = [
    name for name, reason in syncattn.backends.availability().items() if reason is None and name != "triton"
]  # which takes no CPU tensors unasked: tests/backends/triton
B, H, N, M, D = 2, 4, 96, 160, 32
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
pytestmark = pytest.mark.usefixtures("poisoned_memory")


def softmax_error(dtype):
    """The largest error of softmax(Q K^T / sqrt(d)) V, every step in this dtype."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(B, H, n, D, generator=g).to(dtype) for n in (N, M, M))

    def compute(q, k, v):
        return torch.softmax(q @ k.mT / D**0.5, -1) @ v

    return (compute(q, k, v).double() - compute(q.double(), k.double(), v.double())).abs().max()


def locking_pair(m, dtype):
    ladder = locking.density_ladder(0.05, 0.5, H).double()
    return [x.to(dtype) for x in locking.calibrate(ladder, m, 100.0)]


def check(receive, send, value, coupling, bandwidth, options, backend):
    """Row by row, the error is at most twice softmax's, times the row's condition number where that exceeds
    1 (in float32 only, and not in the layers' default form): how much of D's rounding the row magnifies,

        c_i = sum_j |dW_ij / dD_ij| D_ij / sum_j W_ij        W = F^(p/2)

    The logits of the softmax have one of about 1. A row's c is large where all that it locks to is near the
    locking edge (absolute frame), where D is large beside rho^2 (nearest frame, few coordinates), and for
    power 1, whose slope at the edge is infinite, where a pair is within rounding of it.
    """
    out = attention(receive, send, value, coupling, bandwidth, backend=backend, **options)
    assert out.dtype == value.dtype
    wide = [x.double() for x in (receive, send, value, coupling, bandwidth)]
    wide[1] = wide[0] if send is receive else wide[1]
    want, sync, _ = attention(*wide, **options, return_weights=True)
    error = (out.double() - want).abs().amax(-1)

    squared = (wide[0][..., :, None, :] - wide[1][..., None, :, :]).square().sum(-1)
    allowed = torch.ones(squared.shape[-2:], dtype=torch.bool)
    allowed = allowed.tril() if options.get("is_causal") else allowed
    framed = squared
    if options["frame"] == "nearest":
        framed = squared - squared.masked_fill(~allowed, torch.inf).amin(-1, keepdim=True)
    kappa, alpha = wide[3][:, None, None], wide[4][:, None, None]
    margin = locking.locking_margin(framed, kappa, alpha)
    slope = 2 * alpha * torch.exp(-2 * alpha * framed) + kappa**-2  # |dF/dD|
    rounding = 2.0**-22 * slope * squared
    power = options["power"]
    through = power / 2 * torch.maximum(margin, rounding) ** (power / 2 - 1) * slope
    through = torch.where(allowed & (margin > -2 * rounding), through, 0.0)
    condition = (through * squared).sum(-1) / (sync**power).sum(-1).clamp(min=1e-6)

    bound = 2 * softmax_error(value.dtype)
    trainable = options["frame"] == "nearest" and power == 2 and receive.shape[-1] >= 16
    if value.dtype == torch.float32 and not trainable:
        bound = bound * condition.clamp(min=1)
    assert (error <= bound).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("m", [2, 16, 64])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("frame", ["absolute", "nearest"])
def test_error(frame, power, dtype, m, backend):
    """Frequencies off the origin, as biases and drifts put them."""
    g = torch.Generator().manual_seed(m)
    receive = (torch.randn(B, H, N, m, generator=g) + 2).to(dtype)
    send = (torch.randn(B, H, M, m, generator=g) + 2).to(dtype)
    value = torch.randn(B, H, M, D, generator=g).to(dtype)
    options = {"power": power, "frame": frame}
    check(receive, send, value, *locking_pair(m, dtype), options, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("m", [1, 2, 3, 4, 16])
@pytest.mark.parametrize("power", [1, 2])
def test_error_far_along_a_drift(power, m, backend):
    """A drift of slope 1 from position 4,096 on, in float32: neighbours differ by what a centred or expanded
    square would round away."""
    g = torch.Generator().manual_seed(m)
    unit = torch.nn.functional.normalize(torch.randn(H, 1, m, generator=g), dim=-1)
    position = 4096 + torch.arange(M, dtype=torch.float32)[:, None]
    w = torch.randn(B, H, M, m, generator=g) + position * unit
    value = torch.randn(B, H, M, D, generator=g)
    options = {"power": power, "frame": "nearest", "is_causal": True}
    check(w, w, value, *locking_pair(m, torch.float32), options, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_have_no_larger_error_than_softmax(dtype, backend):
    g = torch.Generator().manual_seed(0)
    cotangent = torch.randn(B, H, N, D, generator=g).to(dtype)

    def relative_errors(function, inputs):
        results = []
        for cast in (dtype, torch.float64):
            leaves = [x.to(cast).requires_grad_() for x in inputs]
            results.append(torch.autograd.grad(function(*leaves), leaves, cotangent.to(cast)))
        return [(a.double() - b).norm() / b.norm() for a, b in zip(*results, strict=True)]

    q, k, v = (torch.randn(B, H, n, D, generator=g).to(dtype) for n in (N, M, M))
    softmax = relative_errors(lambda q, k, v: torch.softmax(q @ k.mT / D**0.5, -1) @ v, [q, k, v])
    receive, send = (torch.randn(B, H, n, 16, generator=g).to(dtype) for n in (N, M))
    kappa, alpha = locking_pair(16, dtype)

    def operator(receive, send, value):
        chosen = "eager" if value.dtype == torch.float64 else backend
        both = kappa.to(value.dtype), alpha.to(value.dtype)
        return attention(receive, send, value, *both, power=2, frame="nearest", backend=chosen)

    assert max(relative_errors(operator, [receive, send, v])) <= 2 * max(softmax)

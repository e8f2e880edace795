"""S, and what follows from it. These are the only kernels' functions that know which function of D it is:

    F = J^2 - D / kappa^2,   J^2 = exp(-2 alpha D),   S = sqrt(max(F, 0) + e^2) - e,   W = S^power

To the others F is what is negative where a pair does not lock.
"""

from __future__ import annotations

import triton
import triton.language as tl

from syncattn.backends.call import NARROWEST, STRONGEST, WEAKEST
from syncattn.backends.triton.pointers import head_of

_RATE = tl.constexpr(-2.8853900817779268)  # -2 log2(e): J^2 = 2^(_RATE alpha D)
# Bounds are kept here, where it costs nothing: in torch it is some ten launches a call.
_WEAKEST = tl.constexpr(WEAKEST)
_STRONGEST = tl.constexpr(STRONGEST)
_NARROWEST = tl.constexpr(NARROWEST)
_NORMAL = tl.constexpr(1.1754944e-38)  # the smallest such number


@triton.jit
def _given_kappa(law, b, h, i, queries):
    return tl.load(head_of(law, b, h) + i.to(tl.int64) * law.token, mask=i < queries, other=1.0)


@triton.jit
def kappa_of(law, b, h, i, queries):
    """Of some receivers, within bounds; 1 where there is none, NaN where it is not positive and finite."""
    kappa = _given_kappa(law, b, h, i, queries)
    bounded = tl.minimum(tl.maximum(kappa, _WEAKEST), _STRONGEST)
    return tl.where((kappa > 0.0) & (kappa < float("inf")), bounded, float("nan"))


@triton.jit
def kappa_is_free(law, b, h, i, queries):
    """Whether no bound holds it: else it has no gradient."""
    kappa = _given_kappa(law, b, h, i, queries)
    return (kappa >= _WEAKEST) & (kappa <= _STRONGEST)


@triton.jit
def alpha_of(law, h):
    """Of a head, in the same way."""
    alpha = tl.load(law.bandwidth + h)
    bounded = tl.minimum(alpha, _NARROWEST)
    return tl.where((alpha > 0.0) & (alpha < float("inf")), bounded, float("nan"))


@triton.jit
def alpha_is_free(law, h):
    alpha = tl.load(law.bandwidth + h)
    return (alpha > 0.0) & (alpha <= _NARROWEST)


@triton.jit
def row_term_of(kappa):
    """What F takes of a receiver."""
    return 1.0 / (kappa * kappa)


@triton.jit
def head_term_of(alpha):
    """What F takes of a head."""
    return alpha * _RATE


@triton.jit
def margin_of(squared, row_term, head_term):
    """(F, J^2) from D."""
    decay_square = tl.exp2(head_term * squared)
    return decay_square - squared * row_term, decay_square


@triton.jit
def through_margin(flow, squared, decay_square, row_term, alpha):
    """From dL/dF: dL/dD, and what a pair adds to the sums of which `coupling_gradient` and
    `bandwidth_gradient` make gradients."""
    weighed = flow * squared
    return flow * (decay_square * (-2.0 * alpha) - row_term), weighed, weighed * decay_square


@triton.jit
def coupling_gradient(total, kappa):
    return 2.0 * total / (kappa * kappa) / kappa


@triton.jit
def bandwidth_gradient(total):
    return -2.0 * total


@triton.jit
def strength_of(margin, edge, POWER: tl.constexpr):
    """W from F: exactly 0 where not locked; a NaN stays."""
    locked = tl.maximum(margin, 0.0, propagate_nan=tl.PropagateNan.ALL)
    if edge is not None:
        sync = tl.where(locked == 0.0, 0.0, tl.sqrt(locked + edge * edge) - edge)
        return sync * sync if POWER == 2 else sync
    else:
        return locked if POWER == 2 else tl.sqrt(locked)


@triton.jit
def through_strength(flow, margin, edge, POWER: tl.constexpr):
    """dL/dF from dL/dW: exactly 0 where not locked; a NaN stays. One reciprocal root in place of a root and a
    division; of what is too small for a normal number, which has no finite one, the smallest's is taken."""
    if edge is not None:
        shifted = tl.maximum(margin, 0.0) + edge * edge
        inverse = tl.rsqrt(tl.maximum(shifted, _NORMAL))
        flow = flow * inverse
        if POWER == 2:
            flow = flow * (shifted * inverse - edge)
        else:
            flow = flow * 0.5
    elif POWER == 1:
        flow = flow * (0.5 * tl.rsqrt(tl.maximum(margin, _NORMAL)))
    return tl.where(margin <= 0.0, 0.0, flow)


@triton.jit
def largest_radius(kappa, alpha):
    """An upper bound of rho^2 = W(2 alpha kappa^2) / (2 alpha), by Newton's iteration for w e^w = c from the
    right, where each step stays on the right; infinite where anything is NaN."""
    log_c = tl.log(alpha) + 2.0 * tl.log(kappa) + 0.6931472
    w = tl.where(log_c < 20.0, tl.log(1.0 + tl.exp(tl.minimum(log_c, 20.0))), log_c)
    for _ in tl.static_range(4):
        w = w - (w - tl.exp(log_c - w)) / (1.0 + w)
    radius = tl.where(log_c < -4.0, kappa * kappa, 1.0001 * w / (2.0 * alpha))
    unknown = kappa * 0.0 + alpha * 0.0
    return tl.where(unknown == 0.0, radius, float("inf"))

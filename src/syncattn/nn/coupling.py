"""The effective coupling kappa = K r: the order parameter r over the senders that each query may see."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from syncattn.functional import coherence, order_parameter, phase_parts
from syncattn.nn.inputs import Inputs
from syncattn.nn.packing import coherence_of_texts
from syncattn.nn.sight import only


class RunningCoherence(NamedTuple):
    """The order parameter of tokens that come after others."""

    r: Tensor  # (B, H, N), of each new token, over all real ones up to it
    sums: Tensor  # (B, H, N, p, 2), of (cos, sin), over the same: what later tokens go on from


def coherence_of_seen(phase: Tensor, given: Inputs, pairs: Tensor | None, heard: Tensor | None) -> Tensor:
    """r of the senders that a query may see: (B, H), or (B, H, N) if queries see different ones.

    Args:
        phase: the senders' (B, H, M, p).
        given: the layer's inputs.
        pairs: who may see whom, (B or 1, H or 1, N, M) bool; None: by padding and causality alone.
        heard: with pairs, (B or 1, H or 1, M) bool: whom anybody may see.
    """
    if pairs is not None:
        return order_parameter(only(phase, heard), pairs)
    if given.texts is not None:
        return coherence_of_texts(phase, given.texts, given.is_causal)
    r = order_parameter(phase, given.real, given.is_causal)
    return r[..., r.shape[-1] - given.queries :] if given.is_causal else r


def running_coherence(
    phase: Tensor, real: Tensor | None, phase_sum: Tensor | None, count: Tensor | None
) -> RunningCoherence:
    """r of each new token.

    Args:
        phase: the new tokens' (B, H, N, p).
        real: (B, N) bool, False = padding; None if there is none.
        phase_sum, count: of the real tokens before, (B, H, p, 2) and (B, 1); None if there were none.
    """
    parts, counts = phase_parts(phase, real)
    sums, counts = parts.cumsum(2), counts.cumsum(2)
    if phase_sum is not None and count is not None:
        sums = sums + phase_sum[:, :, None]
        counts = counts + count[:, None]
    return RunningCoherence(coherence(sums, counts), sums)


def effective_coupling(coupling: Tensor, r: Tensor) -> Tensor:
    """kappa = K r of K (H,) and r (B, H) or (B, H, N), in r's shape and dtype."""
    coupling = coupling.to(r.dtype)
    kappa = r * (coupling if r.ndim == 2 else coupling[:, None])
    # Phases that cancel exactly leave no coupling, and 0 has no locking threshold.
    return kappa.clamp(min=1e-6)

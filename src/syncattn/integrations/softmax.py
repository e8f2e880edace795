"""Softmax attention as the limit of SSA: queries and keys become frequencies, near where their score is high.

With w^r = (q, 0) and w^s = (k, sqrt(R^2 - |k|^2)), where R is the longest key's length, a pair's squared
detuning is |q|^2 + R^2 - 2 q.k: counted from the row's nearest sender it is 2 (s_max - s), s = q.k. With
alpha = 1/4 and power 2

    W = exp(-(s_max - s)) - 2 (s_max - s) / kappa^2        where that is positive, else 0

which is softmax's exp(s - s_max) but for the line that makes weights below a threshold exactly 0.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from syncattn.functional import selective_synchronization_attention

BANDWIDTH = 0.25

_SLACK = 1 / 64  # R^2 is above every |k|^2 by this share of it: the square root has a finite slope everywhere
_SHORTEST = 1e-6  # of the longest query and key: equal keys are of length 0 once they are centred


class Frequencies(NamedTuple):
    """What the operator listens and emits with, in float32, or float64 if a query or key is.

    Attributes:
        receive: (B, H, N, d + 1).
        send: (B, Hk, M, d + 1).
    """

    receive: Tensor
    send: Tensor


def softmax_frequencies(query: Tensor, key: Tensor, scaling: float) -> Frequencies:
    """The frequencies whose nearest frame has D = 2 (s_max - s) for the scores s = scaling q.k.

    Three things keep D as precise as a score is, about 4e-7 max|scaling q| max|k - mean| in float32. All is
    computed in float32 at least: the norm's coordinate in bfloat16 would be off by a tenth. Keys are counted
    from their mean, which changes all scores of a row alike, hence no weight. And the factor between queries
    and keys is chosen so that both are equally long, per sequence and head of the keys.

    Args:
        query: (B, H, N, d), any floating dtype; N > 0.
        key: (B, Hk, M, d), Hk a divisor of H; M > 0.
        scaling: what the scores q.k are multiplied by.
    """
    dtype = torch.promote_types(torch.promote_types(query.dtype, key.dtype), torch.float32)
    query = query.to(dtype) * scaling
    key = key.to(dtype)
    key = key - key.detach().mean(2, keepdim=True)  # no slope: the weights do not depend on it
    square = key.square().sum(-1, keepdim=True)

    longest_key = square.detach().amax(2, keepdim=True).clamp(min=_SHORTEST**2)  # (B, Hk, 1, 1)
    rest = ((1 + _SLACK) * longest_key - square).sqrt()

    batch, heads, _, _ = query.shape
    groups = query.detach().reshape(batch, key.shape[1], -1, query.shape[-1])  # a key head's queries
    longest_query = groups.square().sum(-1, keepdim=True).amax(2, keepdim=True).clamp(min=_SHORTEST**2)
    factor = (longest_key / longest_query) ** 0.25
    grown = query * factor.repeat_interleave(heads // key.shape[1], 1)
    receive = torch.cat((grown, torch.zeros_like(grown[..., :1])), -1)
    return Frequencies(receive, torch.cat((key, rest), -1) / factor)


def softmax_limit(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    coupling: Tensor,
    scaling: float,
    *,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    dropout_p: float = 0.0,
    backend: str | None = None,
    return_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """SSA whose limit, as the coupling grows, is softmax attention of the scores scaling q.k.

    With kappa 1e4 a weight is cut off below 2.8e-7 of the row's largest, and is otherwise softmax's.

    Args:
        query, key, value: (B, H, N, d), (B, Hk, M, d) and (B, Hk, M, dv), as in SDPA; none of B, N, M is 0.
        coupling: kappa (H,).
        scaling: of the scores.
        attn_mask, is_causal, dropout_p, backend: as in `syncattn.selective_synchronization_attention`.
        return_weights: also return the weights.

    Returns:
        (B, H, N, dv) in value's dtype, and the weights (B, H, N, M) before dropout, or None.
    """
    receive, send = softmax_frequencies(query, key, scaling)
    coupling = coupling.to(receive.dtype)
    result = selective_synchronization_attention(
        receive,
        send,
        value,
        coupling,
        torch.full_like(coupling, BANDWIDTH),
        attn_mask=attn_mask,
        is_causal=is_causal,
        dropout_p=dropout_p,
        frame="nearest",
        power=2,
        eps=0.0,
        backend=backend,
        return_weights=return_weights,
    )
    return (result, None) if isinstance(result, Tensor) else (result[0], result[2])


def coupling_of_reach(reach: float) -> float:
    """The coupling kappa with which a sender locks up to `reach` below the row's highest score.

    Below it W = 0: reach exp(reach) = kappa^2 / 2. A reach of 15.1 is kappa 1e4, of 6.6 kappa 100, of 3.3
    kappa 13.4. There softmax's weight is exp(-reach) of the row's largest: 2.8e-7, .0014, .037.

    Args:
        reach: in units of the scores, positive.
    """
    return math.sqrt(2 * reach) * math.exp(reach / 2)

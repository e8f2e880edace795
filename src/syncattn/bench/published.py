"""The published formulation's arithmetic, as its formulas read: every N x N matrix held, heads last.

Not ours and not a backend: the baseline that the benchmark compares with. It is written from the paper's
equations (Hays 2026, arXiv 2602.14445), with the published code's small terms.
"""

from __future__ import annotations

import torch
from torch import Tensor

_EPS = 1e-8  # of the threshold and the row sum
_NEARLY_ONE = 1 - 2**-23  # where arcsin still has a derivative, in float32 too
# N x N matrices held at once, counted generously: forward, and with what autograd keeps.
_MATRICES = {False: 8, True: 16}


def published_attention(
    frequency: Tensor, value: Tensor, coupling: Tensor, bandwidth: Tensor, *, top_k: int | None = None
) -> Tensor:
    """frequency (B, N, H, m), value (B, N, H, d), coupling kappa (H,) or (B, H), bandwidth alpha (H,)
    -> (B, N, H, d).

    J = exp(-alpha D); S = J cos(arcsin(sqrt(D) / (kappa J))) where sqrt(D) <= kappa J, else 0; rows of S
    divided by their sums; D by the Gram expansion. With `top_k` only the k largest S of a row stay: they are
    chosen from the whole S, and put back into a matrix of zeros.
    """
    square = frequency.square().sum(-1).transpose(1, 2)  # (B, H, N)
    gram = torch.einsum("bnhm,bkhm->bhnk", frequency, frequency)
    detuning = (square[..., :, None] + square[..., None, :] - 2 * gram).clamp(min=0)
    kernel = torch.exp(-bandwidth[:, None, None] * detuning)
    distance = torch.sqrt(detuning + _EPS**2)
    threshold = coupling[..., None, None] * kernel + _EPS
    locked = distance <= threshold
    difference = torch.arcsin((distance / threshold).clamp(max=_NEARLY_ONE))
    sync = torch.where(locked, kernel * torch.cos(difference), 0.0)
    if top_k is not None and top_k < sync.shape[-1]:
        largest, sender = sync.topk(top_k, dim=-1)
        sync = torch.zeros_like(sync).scatter_(-1, sender, largest)
    weight = sync / (sync.sum(-1, keepdim=True) + _EPS)
    return torch.einsum("bhnk,bkhd->bnhd", weight, value)


def needed_bytes(batch: int, heads: int, tokens: int, backward: bool) -> int:
    """Memory that it takes in float32, about."""
    return 4 * batch * heads * tokens * tokens * _MATRICES[backward]

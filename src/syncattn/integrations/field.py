"""The field: the mean of a text's values, given to all of its tokens in the place of what a head cuts off.

Below its reach a head's weights are many and small, and alike for all of its text. Their sum is what a lower
coupling loses, and no other part of a token's state knows it. With a field a head gives

    (1 - s) sum_j P_ij v_j  +  s mean_j v_j        s in [0, 1], one number a head

which costs a mean. A weight is then not 0 beyond the radius but s / n, the same for all n tokens of a text.
"""

from __future__ import annotations

import torch
from torch import Tensor

from syncattn.values import readable


def add_field(
    out: Tensor, weight: Tensor | None, value: Tensor, mask: Tensor | None, share: Tensor
) -> tuple[Tensor, Tensor | None]:
    """What heads give with a field.

    Args:
        out: what they give without, (B, H, N, dv).
        weight: their weights (B, H, N, M), or None.
        value: (B, Hk, M, dv).
        mask: (B, 1, N or 1, M) bool, True = may attend, the same for all N; None: all may.
        share: s, (H,).

    Returns:
        (out, weight), a row that may attend to nobody left 0.

    Raises:
        ValueError: two tokens of a text may not attend to the same ones.
    """
    share = share.to(out.dtype)[:, None, None]
    mean, real = mean_value(value, mask)
    out = out + share * (mean.repeat_interleave(out.shape[1] // value.shape[1], 1) - out)
    if weight is not None:
        even = (real / real.sum(-1, keepdim=True).clamp(min=1)).to(weight.dtype)
        weight = weight + share.to(weight.dtype) * (even - weight)
    return out, weight


def mean_value(value: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The mean over a text's values, (B, Hk, 1, dv) in value's dtype, and which they are, (B or 1, 1, 1, M).

    Raises:
        ValueError: as `add_field`.
    """
    if mask is None:
        real = torch.ones(1, 1, 1, value.shape[2], dtype=torch.float32, device=value.device)
    else:
        alike = (mask == mask[:, :1, -1:]).all()
        known = readable(alike)
        if known is None:
            torch._assert_async(alike, "ssa_field needs texts whose tokens may all attend to the same ones")
        elif not known:
            raise ValueError(
                "ssa_field needs texts whose tokens may all attend to the same ones, as an encoder's, got a "
                "mask that differs between them. Set config.ssa_field to None"
            )
        real = mask[:, :1, -1:].float()  # (B, 1, 1, M)
    counted = real.to(torch.promote_types(value.dtype, torch.float32)).mT  # (B or 1, 1, M, 1)
    total = torch.where(counted > 0, value.to(counted.dtype), 0).sum(2, keepdim=True)
    return (total / counted.sum(2, keepdim=True).clamp(min=1)).to(value.dtype), real

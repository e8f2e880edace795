"""The gated delta rule with short convolutions, in plain PyTorch (Yang, Kautz and Hatamizadeh 2024)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syncattn.nn.tokens import mix_previous
from syncattn_lab.study.peers.calls import check_plain_call

CHUNK = 64


def gated_delta_rule(
    query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, rate: Tensor, chunk: int = CHUNK
) -> Tensor:
    """o_t = S_t q_t with S_t = a_t S_(t-1) (I - b_t k_t k_t^T) + b_t v_t k_t^T and S_0 = 0.

    Equation 10 of "Gated Delta Networks" (arXiv 2412.06464), a = exp(log_decay), b = rate. Tokens of a chunk
    are computed together, by the equations of its section 3.3 in another form: with the decays
    G_i = a_1 ... a_i since the chunk began, S_i = G_i S_0 + sum over j <= i of (G_i / G_j) u_j k_j^T, where
    u_i = b_i (v_i - G_i S_0 k_i - sum over j < i of (G_i / G_j) (k_j . k_i) u_j) is a triangular system.

    Args:
        query, key: (B, H, N, d); keys of unit length.
        value: (B, H, N, d).
        log_decay: (B, H, N), at most 0.
        rate: (B, H, N), in [0, 1].
        chunk: tokens that are computed together.

    Returns:
        (B, H, N, d).
    """
    batch, heads, _, width = key.shape
    state = value.new_zeros(batch, heads, value.shape[-1], width)  # S, (B, H, d_v, d_k)
    found = []
    for q, k, v, g, b in zip(
        *(x.split(chunk, dim=2) for x in (query, key, value, log_decay, rate)), strict=True
    ):
        total = g.cumsum(-1)  # log G
        # (G_i / G_j) for j <= i; above the diagonal the ratio may overflow, and is not used
        ratio = (total[..., :, None] - total[..., None, :]).tril().exp().tril()
        system = b[..., None] * ratio * (k @ k.mT)
        since = total.exp()[..., None]
        told = b[..., None] * (v - since * (k @ state.mT))
        u = torch.linalg.solve_triangular(system, told, upper=False, unitriangular=True)
        found.append(since * (q @ state.mT) + (ratio * (q @ k.mT)) @ u)
        left = (total[..., -1:] - total).exp()[..., None]
        state = since[..., -1:, :] * state + (left * u).mT @ k
    return torch.cat(found, dim=2)


class GatedDelta(nn.Module):
    """Linear attention by the gated delta rule, with the interface of `SoftmaxAttention`, causal only.

    Queries, keys and values go through a causal convolution and SiLU, queries and keys to unit length; decay
    and rate are per head and token; the result is normalised by head and gated, as in the publication.

    Args:
        embed_dim: E.
        num_heads: H, a divisor of E.
        width: of the convolutions, in tokens.
    """

    def __init__(self, embed_dim: int, num_heads: int, width: int = 4) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, embed_dim // num_heads
        self.in_proj = nn.Linear(embed_dim, 3 * embed_dim, bias=False)
        self.gate_proj = nn.Linear(embed_dim, embed_dim, bias=False)
        self.step_proj = nn.Linear(embed_dim, 2 * num_heads, bias=True)  # of decay, and of rate
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=False)
        self.convolution = nn.Parameter(torch.zeros(width - 1, 3 * embed_dim))  # device: where it is moved to
        self.log_decay_scale = nn.Parameter(torch.zeros(num_heads))  # device: as above
        self.gain = nn.Parameter(torch.ones(self.head_dim))  # device: as above

    def forward(
        self, query: Tensor, *, is_causal: bool, state: None = None, **options: object
    ) -> tuple[Tensor, None]:
        """Causal self-attention of query (B, N, E) without padding, masks or a cache.

        Raises:
            ValueError: anything else is wanted.
        """
        check_plain_call("the gated delta rule", is_causal, state, options)
        projected = F.silu(mix_previous(self.in_proj(query), self.convolution, None, None))
        q, k, v = projected.unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        q, k = (F.normalize(x, dim=-1) for x in (q, k))
        steps = self.step_proj(query).unflatten(-1, (2, self.num_heads)).permute(2, 0, 3, 1)
        log_decay = -self.log_decay_scale.exp()[:, None] * F.softplus(steps[0] - 4.0)
        out = gated_delta_rule(q * self.head_dim**-0.5, k, v, log_decay, steps[1].sigmoid())
        out = F.rms_norm(out, (self.head_dim,), self.gain).transpose(1, 2).flatten(-2)
        return self.out_proj(out * F.silu(self.gate_proj(query))), None

"""Kuramoto attention and its frustrated successor: our reading of two publications (Nunley 2026).

"Kuramoto Attention: Synchronizing Self-Attention on the Torus" (arXiv 2606.11585) and "Attention as
Frustrated Synchronization" (arXiv 2606.18694) are known to us by their abstracts. What those say is here:

- A token's state is a set of phases. The same phases score and are read.
- The score of a pair is a cosine similarity, gated coordinate by coordinate, in which phases drift with
  position at the rates of rotary position. Weights are its softmax over previous tokens.
- A token is moved by the tangent of the weighted circular mean of whom it attends to: A_tu sin(theta_u -
  theta_t), summed over u.
- The successor has complex couplings in this sum's place, one for each harmonic of the phase difference and
  for the attended token and the one after it.

What they do not say, and is decided here:

- Phases are a linear map of the residual stream, and what moves them goes back through another one: in the
  publications the stream itself is phases. So the model around it stays that of the other peers.
- "Previous" leaves the token itself out. Its own pull is sin(0) = 0 whatever its weight, and its own score
  would be the largest wherever gates are alike: what it took would be missing from the others. Then whoever
  is attended to has a successor that is not later than the reader, so that one softmax serves both terms of
  the coupling. The first token, before which there is none, is not moved.
- A gate is the softplus of a linear map with a bias, of the receiver and of the sender, who have the same
  map. Scores are divided by the root of the number of coordinates, as everywhere.
- Couplings are per head and coordinate, real and imaginary part apart.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syncattn.nn.frequency import rotate
from syncattn.nn.tokens import mix_previous
from syncattn_lab.study.peers.calls import check_plain_call


def kuramoto_pull(
    phase: Tensor, gate: Tensor, coupling: Tensor | None = None, dropout_p: float = 0.0
) -> Tensor:
    """sum over u < t of A_tu sin(theta_u - theta_t), or with complex couplings c of harmonics n and delays s:
    sum over n, s and u < t of A_tu Im(c_ns exp(i n (theta_(u+s) - theta_t))).

    A_tu is the softmax over u < t of sum over k of g_tk g_uk cos(theta_tk - theta_uk + w_k (t - u)) / sqrt(d)
    with w_k = 10000^(-k/d), k = 0 ... d - 1. In c = r exp(i a), a is a Kuramoto-Sakaguchi angle, and r, with
    a sign, the size of a Daido component.

    Args:
        phase: theta, (B, H, N, d), radians.
        gate: g, (B, H, N, d).
        coupling: c, (2, H, S, L, d), real and imaginary part, of delays s = 0 ... S - 1 with S at most 2, and
            harmonics n = 1 ... L; None: 1 for the first harmonic and no delay, and no others.
        dropout_p: of the weights.

    Returns:
        (B, H, N, d); 0 at the first token.
    """
    tokens, width = phase.shape[2:]
    delays, harmonics = (1, 1) if coupling is None else coupling.shape[2:4]
    place = torch.arange(tokens, device=phase.device)[None]
    scored = rotate(torch.cat((gate * phase.cos(), gate * phase.sin()), -1), place)
    multiple = torch.arange(1, harmonics + 1, device=phase.device)[:, None] * phase[..., None, :]
    circle = torch.stack((multiple.cos(), multiple.sin()), 3)  # (B, H, N, 2, L, d)
    # Tokens 1 ... N - 1 see 0 ... N - 2: a square whose diagonal is the token before, so that SDPA's own
    # causal mask leaves out the token itself, and the last successor is the reader.
    read = torch.stack([circle[:, :, s : tokens - 1 + s] for s in range(delays)], 3)
    mean = F.scaled_dot_product_attention(
        scored[:, :, 1:],
        scored[:, :, :-1],
        read.flatten(3),
        dropout_p=dropout_p,
        is_causal=True,
        scale=width**-0.5,
    )
    cosine, sine = mean.unflatten(-1, read.shape[3:]).unbind(4)  # (B, H, N - 1, S, L, d) each
    own_cosine, own_sine = circle[:, :, 1:, None].unbind(4)  # (B, H, N - 1, 1, L, d) each
    across = own_cosine * sine - own_sine * cosine
    if coupling is not None:
        real, imaginary = coupling[:, :, None]  # (H, 1, S, L, d) each
        across = real * across + imaginary * (own_cosine * cosine + own_sine * sine)
    return F.pad(across.sum((3, 4)), (0, 0, 1, 0))


def start_of_coupling(like: Tensor) -> Tensor:
    """Couplings (2, H, S, L, d) at the start: 1 of the first harmonic without delay, the others 0."""
    start = torch.zeros_like(like)
    start[0, :, 0, 0] = 1.0
    return start


class KuramotoAttention(nn.Module):
    """Kuramoto attention as this module reads it, with the interface of `SoftmaxAttention`, causal only.

    Args:
        embed_dim: E.
        num_heads: H, a divisor of E; each has E / H phases and as many gates.
        dropout: on the weights, in training.
        short_convolution: None, or the width of a causal convolution on phases and on gates (before their
            softplus), that starts as none, as in `SoftmaxAttention`.
        harmonics: L, of the frustrated successor.
        successors: a token is coupled to the successors of those it attends to, too. With this or more than
            one harmonic there are couplings to learn, which start at Kuramoto attention; else there are none.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        *,
        short_convolution: int | None = None,
        harmonics: int = 1,
        successors: bool = False,
    ) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, embed_dim // num_heads
        self.dropout = dropout
        # A bias of phases would turn all tokens alike, and differences would not see it.
        self.phase_proj = nn.Linear(embed_dim, embed_dim, bias=False)
        self.gate_proj = nn.Linear(embed_dim, embed_dim, bias=True)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=True)
        self.convolution = self.coupling = None
        if short_convolution is not None:  # device, of both: where it is moved to
            self.convolution = nn.Parameter(torch.zeros(short_convolution - 1, 2 * embed_dim))
        if harmonics > 1 or successors:
            shape = 2, num_heads, 1 + successors, harmonics, self.head_dim
            self.coupling = nn.Parameter(start_of_coupling(torch.empty(shape)))

    def forward(
        self, query: Tensor, *, is_causal: bool, state: None = None, **options: object
    ) -> tuple[Tensor, None]:
        """Causal self-attention of query (B, N, E) without padding, masks or a cache.

        Raises:
            ValueError: anything else is wanted.
        """
        check_plain_call("Kuramoto attention", is_causal, state, options)
        projected = torch.cat((self.phase_proj(query), self.gate_proj(query)), -1)
        if self.convolution is not None:
            projected = mix_previous(projected, self.convolution, None, None)
        # Harmonics are multiples of the angle, of which half precision has few digits left after some turns.
        projected = projected.to(torch.promote_types(projected.dtype, torch.float32))
        phase, gate = projected.unflatten(-1, (2, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        dropout_p = self.dropout if self.training else 0.0
        out = kuramoto_pull(phase, F.softplus(gate), self.coupling, dropout_p)
        return self.out_proj(out.to(query.dtype).transpose(1, 2).flatten(-2)), None

"""The blocks of the paper's benchmark: softmax and published SSA with every N x N matrix held, in one frame.

All blocks are `OSNBlock`s (LayerNorm first, feed-forward of four times the width) that differ in the
attention alone. What the paper compared with is a softmax that holds its N x N matrices; `SoftmaxBlock` can
also be the fused softmax of PyTorch, which holds none.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syncattn import locking
from syncattn.bench.published import published_attention
from syncattn.functional import order_parameter
from syncattn.nn import OSNBlock, SelectiveSynchronizationAttention
from syncattn.nn.published import published


class PublishedAttention(SelectiveSynchronizationAttention):
    """The layer with its own parameters, computed by the published arithmetic: no mask, no other option."""

    def forward(self, query: Tensor, *_: Any, **masks: Any) -> tuple[Tensor, None]:
        """query (B, N, E) -> (out (B, N, E), None).

        Raises:
            ValueError: a mask, a past or the weights are asked for.
        """
        _refuse(masks)
        assert self.phase_proj is not None
        heads = (self.num_heads, -1)
        frequency = self.frequency.receive_proj(query).unflatten(-1, heads)
        phase = self.phase_proj(query).unflatten(-1, heads).transpose(1, 2)
        value = self.value_proj(query).unflatten(-1, heads)
        coupling = self.coupling * order_parameter(phase)  # (B, H)
        out = published_attention(frequency, value, coupling, self.bandwidth, top_k=self.top_k)
        return self.out_proj(out.flatten(-2)), None


class SoftmaxAttention(nn.Module):
    """Softmax attention, (B, N, E) -> (B, N, E).

    Args:
        fused: by `F.scaled_dot_product_attention`; else scores and weights are held, (B, H, N, N) each.
    """

    def __init__(self, embed_dim: int, num_heads: int, fused: bool, **factory: Any) -> None:
        super().__init__()
        self.num_heads, self.fused = num_heads, fused
        self.query_proj, self.key_proj, self.value_proj, self.out_proj = (
            nn.Linear(embed_dim, embed_dim, **factory) for _ in range(4)
        )

    def forward(self, query: Tensor, *_: Any, **masks: Any) -> tuple[Tensor, None]:
        """query (B, N, E) -> (out (B, N, E), None); ValueError as `PublishedAttention`."""
        _refuse(masks)
        q, k, v = (
            proj(query).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for proj in (self.query_proj, self.key_proj, self.value_proj)
        )
        if self.fused:
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            scores = (q @ k.transpose(-1, -2)) / q.shape[-1] ** 0.5
            weight = torch.softmax(scores, dim=-1)
            out = weight @ v
        return self.out_proj(out.transpose(1, 2).flatten(-2)), None


def _refuse(options: dict[str, Any]) -> None:
    """`average_attn_weights` says what to do with weights that nobody asks for."""
    given = [
        name
        for name, value in options.items()
        if value is not None and value is not False and name != "average_attn_weights"
    ]
    if given:
        raise ValueError(f"the benchmark's blocks take no masks and return no weights, got {given}")


class PublishedBlock(OSNBlock):
    """An `OSNBlock` whose attention is computed by the published arithmetic."""

    def make_attention(self, embed_dim: int, num_heads: int, **arguments: Any) -> nn.Module:
        return PublishedAttention(embed_dim, num_heads, **arguments)


class SoftmaxBlock(OSNBlock):
    """An `OSNBlock` with softmax attention in its place; `fused` as in `SoftmaxAttention`."""

    def make_attention(self, embed_dim: int, num_heads: int, **arguments: Any) -> nn.Module:
        return SoftmaxAttention(embed_dim, num_heads, fused=arguments["fused"])


def make_block(kind: type[OSNBlock], embed_dim: int, num_heads: int, seed: int, **attention: Any) -> OSNBlock:
    """A block in evaluation mode, initialised from `seed`; nobody else's random numbers change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        block = kind(
            embed_dim, num_heads, 4 * embed_dim, 0.0, "gelu", batch_first=True, norm_first=True, **attention
        )
    return block.eval().requires_grad_(False)


def published_block(
    kind: type[OSNBlock], embed_dim: int, num_heads: int, seed: int, top_k: int | None = None
) -> OSNBlock:
    """A block of the published options: `PublishedBlock`, or `OSNBlock` for ours, with equal parameters."""
    return make_block(kind, embed_dim, num_heads, seed, **published(embed_dim // num_heads), top_k=top_k)


def layer_of(block: OSNBlock) -> SelectiveSynchronizationAttention:
    """The block's layer, where it is ours or the published one."""
    layer = block.self_attn
    assert isinstance(layer, SelectiveSynchronizationAttention)
    return layer


@torch.no_grad()
def lock_all(block: OSNBlock) -> OSNBlock:
    """Set raw coupling 100 and raw bandwidth -5, as in the published figure of S: every pair locks."""
    layer_of(block).raw_coupling.fill_(100.0)
    layer_of(block).raw_bandwidth.fill_(-5.0)
    return block


@torch.no_grad()
def lock_half(block: OSNBlock) -> OSNBlock:
    """Set coupling and bandwidth so that about half of the pairs of layer-normalised tokens lock."""
    layer = layer_of(block)
    # From nn.Linear's weights a frequency's coordinates have variance 1/3; r = .85 is that of such phases.
    coupling, bandwidth = locking.calibrate(torch.tensor(0.5), layer.freq_dim, 1.0, 1 / 3)
    layer.raw_coupling.copy_((coupling / 0.85).expm1().log())
    layer.raw_bandwidth.copy_(bandwidth.expm1().log().expand(layer.num_heads))
    return block

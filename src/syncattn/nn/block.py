"""A block around Selective Synchronization Attention, in the form of `nn.TransformerEncoderLayer`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syncattn.nn.attention import SelectiveSynchronizationAttention
from syncattn.nn.hooks import applied, dropped, nobody_listens, normalised
from syncattn.nn.state import IncrementalState
from syncattn.nn.tokens import check_dense

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}


class Block(nn.Module):
    """One block of a network: attention and feed-forward, each with a residual.

    Args:
        attention: (B, N, E) to (out (B, N, E), weights), with the `forward` of
            `SelectiveSynchronizationAttention`; it becomes `self_attn`.
        d_model, dim_feedforward, dropout, activation, layer_norm_eps, norm_first, bias, device, dtype: as in
            `nn.TransformerEncoderLayer`; activation may be "silu" too.
        gated: the feed-forward layer multiplies its activation by a second linear map, W2 (f(W x) * V x);
            with "silu" that is SwiGLU (Shazeer 2020). linear1 then holds both maps, W first.

    Raises:
        ValueError: activation is unknown.
    """

    def __init__(
        self,
        attention: nn.Module,
        d_model: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str | Callable[[Tensor], Tensor] = F.relu,
        layer_norm_eps: float = 1e-5,
        norm_first: bool = False,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        gated: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(activation, str):
            if activation not in _ACTIVATIONS:
                raise ValueError(
                    f"activation must be a function or one of {tuple(_ACTIVATIONS)}, got {activation!r}"
                )
            activation = _ACTIVATIONS[activation]
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.norm_first, self.gated = norm_first, gated
        self.self_attn = attention
        self.linear1 = nn.Linear(d_model, dim_feedforward * (2 if gated else 1), bias, **factory)
        self.linear2 = nn.Linear(dim_feedforward, d_model, bias, **factory)
        self.norm1 = nn.LayerNorm(d_model, layer_norm_eps, bias=bias, **factory)
        self.norm2 = nn.LayerNorm(d_model, layer_norm_eps, bias=bias, **factory)
        self.dropout = nn.Dropout(dropout)
        self.dropout1 = nn.Dropout(dropout)
        self.dropout2 = nn.Dropout(dropout)
        self.activation = activation

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
        *,
        state: IncrementalState | None = None,
        need_weights: bool = False,
        positions: Tensor | None = None,
        sequence_ids: Tensor | None = None,
        first_value: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor | None]:
        """src (N, B, E), or (B, N, E) with batch_first, to the same shape.

        Args:
            src, src_mask, src_key_padding_mask: as in `nn.TransformerEncoderLayer` (True = may not attend).
            is_causal: makes the block causal, with or without src_mask.
            state: incremental decoding, see `SelectiveSynchronizationAttention.forward`.
            need_weights: return (out, weights (B, H, N, M)).
            positions: where the tokens stand, see `SelectiveSynchronizationAttention.forward`.
            sequence_ids: several texts in a row, see there.
            first_value: with a value residual, see there.

        Raises:
            ValueError: src is nested, or as `SelectiveSynchronizationAttention.forward`.
        """
        check_dense("src", src)
        given = {"positions": positions, "sequence_ids": sequence_ids, "first_value": first_value}
        placed = {
            name: x for name, x in given.items() if x is not None
        }  # attention of others may not know it
        alone = nobody_listens()
        attended, weights = self.self_attn(
            normalised(self.norm1, src, alone) if self.norm_first else src,
            key_padding_mask=src_key_padding_mask,
            attn_mask=src_mask,
            is_causal=is_causal,
            need_weights=need_weights,
            average_attn_weights=False,
            state=state,
            **placed,
        )
        x = src + dropped(self.dropout1, attended, alone)
        if self.norm_first:
            x = x + self._feed_forward(normalised(self.norm2, x, alone))
        else:
            x = self.norm1(x)
            x = self.norm2(x + self._feed_forward(x))
        return (x, weights) if need_weights else x

    def _feed_forward(self, x: Tensor) -> Tensor:
        alone = nobody_listens()
        inner = applied(self.linear1, x, alone)
        if self.gated:
            inner, factor = inner.chunk(2, dim=-1)
            inner = self.activation(inner) * factor
        else:
            inner = self.activation(inner)
        return dropped(
            self.dropout2, applied(self.linear2, dropped(self.dropout, inner, alone), alone), alone
        )


class OSNBlock(Block):
    """A `Block` of an Oscillatory Synchronization Network.

    The constructor and `forward` are those of `nn.TransformerEncoderLayer`, so it goes into
    `nn.TransformerEncoder` and into code that expects that layer.

    Args:
        d_model, nhead, dim_feedforward, dropout, activation, layer_norm_eps, batch_first, norm_first, bias,
            device, dtype: as in `nn.TransformerEncoderLayer`; activation may be "silu" too.
        attn_dropout: dropout of the attention weights; None for `dropout`.
        gated: see `Block`.
        **attention: keyword arguments of `SelectiveSynchronizationAttention` (freq_dim, position, ...).

    Raises:
        TypeError, ValueError: an argument is unknown or out of range.
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str | Callable[[Tensor], Tensor] = F.relu,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        attn_dropout: float | None = None,
        gated: bool = False,
        **attention: Any,
    ) -> None:
        layer = self.make_attention(
            d_model,
            nhead,
            dropout=dropout if attn_dropout is None else attn_dropout,
            bias=bias,
            batch_first=batch_first,
            device=device,
            dtype=dtype,
            **attention,
        )
        sizes = d_model, dim_feedforward, dropout, activation, layer_norm_eps, norm_first, bias, device, dtype
        super().__init__(layer, *sizes, gated=gated)

    def make_attention(self, embed_dim: int, num_heads: int, **arguments: Any) -> nn.Module:
        """The block's attention; a subclass puts another kind in its place."""
        return SelectiveSynchronizationAttention(embed_dim, num_heads, **arguments)

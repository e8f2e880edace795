"""The peers as language models: this project's Transformer, with other attention in its layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers import initialization as init

from syncattn.checks import check_choice, check_count, check_flag
from syncattn.models import SoftmaxAttention, TransformerConfig
from syncattn.models.causal import DecoderForCausalLM
from syncattn.models.decoder import DecoderLayer, DecoderModel
from syncattn.models.transformer import TransformerPreTrainedModel
from syncattn_lab.study.peers.delta import GatedDelta
from syncattn_lab.study.peers.entmax import entmax15
from syncattn_lab.study.peers.kuramoto import KuramotoAttention, start_of_coupling

ATTENTIONS = ("entmax", "window", "delta", "kuramoto")


class PeerConfig(TransformerConfig):
    """A `TransformerConfig` with other attention: delay, token shift and its other options stay.

    Args:
        attention: "entmax" (alpha 1.5 in the place of softmax: exact zeros), "window" (softmax over the last
            tokens, over all in some layers), "delta" (the gated delta rule with a convolution of width 4,
            which has no delay, position or token shift, and no softmax) or "kuramoto" (Kuramoto attention as
            `syncattn_lab.study.peers.kuramoto` reads it: rotary position and a short convolution, and none
            of the Transformer's options on queries, keys or values, which it has not).
        window: of "window", in tokens, the token itself counted.
        full_every: of "window", each so manyth layer sees all tokens: 4 is layers 4, 8, ....
        harmonics: of "kuramoto", how many harmonics of the phase differences couple.
        successors: of "kuramoto", tokens couple to the successors of those they attend to, too.

    Raises:
        TypeError, ValueError: as `TransformerConfig`.
    """

    model_type = "syncattn_lab_peer"

    attention: str = "entmax"
    window: int = 64
    full_every: int = 4
    harmonics: int = 1
    successors: bool = False

    def check(self) -> None:
        """As `TransformerConfig.check`, and the peer's own fields."""
        super().check()
        check_choice("attention", self.attention, ATTENTIONS)
        check_count("window", self.window)
        check_count("full_every", self.full_every)
        check_count("harmonics", self.harmonics)
        check_flag("successors", self.successors)
        if not self.is_causal:
            raise ValueError("is_causal must be True for a peer, got False")
        if self.attention == "delta" and (self.delay or self.token_shift or self.value_residual):
            raise ValueError(
                "delay, token_shift and value_residual must be off with attention='delta', which has none of "
                f"them, got delay={self.delay}, token_shift={self.token_shift}, "
                f"value_residual={self.value_residual}"
            )
        if self.score_gate and self.attention != "window":
            raise ValueError(
                f"score_gate must be off with attention={self.attention!r}, which has no such gate, got True"
            )
        if self.attention == "kuramoto":
            self._check_kuramoto()
        elif self.harmonics != 1 or self.successors:
            raise ValueError(
                f"harmonics must be 1 and successors False with attention={self.attention!r}, which has no "
                f"phases, got harmonics={self.harmonics}, successors={self.successors}"
            )

    def _check_kuramoto(self) -> None:
        if self.delay or self.token_shift or self.qk_norm or self.value_residual:
            raise ValueError(
                "delay, token_shift, qk_norm and value_residual must be off with attention='kuramoto', whose "
                "phases are query, key and value at once (successors and short_convolution look back), got "
                f"delay={self.delay}, token_shift={self.token_shift}, qk_norm={self.qk_norm}, "
                f"value_residual={self.value_residual}"
            )
        if self.position != "rotary" or self.rotary_scaling != 1:
            raise ValueError(
                "position must be 'rotary' and rotary_scaling 1 with attention='kuramoto', whose phases turn "
                f"at such rates, got position={self.position!r}, rotary_scaling={self.rotary_scaling}"
            )


class EntmaxAttention(SoftmaxAttention):
    """`SoftmaxAttention` with entmax, alpha 1.5, in the place of softmax."""

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        seen: Tensor | None,
        is_causal: bool,
        need_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        scores = q @ k.mT * q.shape[-1] ** -0.5
        if is_causal:
            mask = scores.new_ones(scores.shape[-2:], dtype=torch.bool).tril()
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        weights = entmax15(scores.float()).to(v.dtype)
        weights = weights if seen is None else weights * seen
        dropped = nn.functional.dropout(weights, self.dropout if self.training else 0.0)
        return dropped @ v, weights if need_weights else None


class WindowAttention(SoftmaxAttention):
    """`SoftmaxAttention` over the last `window` tokens, the token itself counted."""

    window: int = 64

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        seen: Tensor | None,
        is_causal: bool,
        need_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        queries, keys = q.shape[2], k.shape[2]
        if is_causal and not need_weights and queries > 2 * self.window:
            return self._in_blocks(q, k, v), None
        near = torch.ones(queries, keys, dtype=torch.bool, device=q.device)
        near = near.triu(keys - queries - self.window + 1)[None, None]
        if is_causal:
            near = near.tril(keys - queries)
        if mask is None:
            mask = near
        elif mask.dtype == torch.bool:
            # a row that sees nobody sees all, and is dropped: what is far is then dropped with it
            mask = mask & near if seen is None else (mask & near) | ~seen
        else:
            mask = mask.masked_fill(~near, -torch.inf)
        return super()._attend(q, k, v, mask, seen, False, need_weights)

    def _in_blocks(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The same without a mask of N x N: `window` queries see their own keys and as many before.

        Work and memory are those of 2 * N * window pairs.
        """
        batch, tokens, size = q.shape[0], q.shape[2], self.window
        blocks = -(-tokens // size)

        def cut(x: Tensor, before: int) -> Tensor:
            """(B, H, N, d) -> (B * blocks, H, before + size, d), zeros where there is no token."""
            padded = nn.functional.pad(x, (0, 0, before, blocks * size - tokens))
            return padded.unfold(2, before + size, size).permute(0, 2, 1, 4, 3).flatten(0, 1)

        number = torch.arange(size, device=q.device)[:, None]
        sender = torch.arange(2 * size, device=q.device)
        near = (sender > number) & (sender <= number + size)
        # the first block has none before it; a row of padding at the end sees itself, and is left out
        first = torch.arange(blocks, device=q.device)[:, None, None] == 0
        mask = (near & ~(first & (sender < size))).repeat(batch, 1, 1)[:, None]
        out = super()._attend(cut(q, 0), cut(k, size), cut(v, size), mask, None, False, False)[0]
        return out.unflatten(0, (batch, blocks)).transpose(1, 2).flatten(2, 3)[:, :, :tokens]


class PeerPreTrainedModel(TransformerPreTrainedModel):
    """What the peers share."""

    config: PeerConfig
    config_class = PeerConfig

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, GatedDelta):
            init.zeros_(module.convolution)
            init.zeros_(module.log_decay_scale)
            init.ones_(module.gain)
        if isinstance(module, KuramotoAttention):
            if module.convolution is not None:
                init.zeros_(module.convolution)
            if module.coupling is not None:
                init.copy_(module.coupling, start_of_coupling(module.coupling))


class PeerModel(PeerPreTrainedModel, DecoderModel):
    """A peer without an output layer."""

    attention_class = SoftmaxAttention
    _made = 0

    def _make_layer(self) -> DecoderLayer:
        config: Any = self.config
        self._made += 1
        sizes = config.hidden_size, config.num_attention_heads
        if config.attention == "delta":
            return DecoderLayer(GatedDelta(*sizes), config)
        if config.attention == "kuramoto":
            own = ("short_convolution", "harmonics", "successors")
            options = {name: getattr(config, name) for name in own}
            return DecoderLayer(KuramotoAttention(*sizes, config.attention_dropout, **options), config)
        kind: type[SoftmaxAttention] = SoftmaxAttention
        if config.attention == "entmax":
            kind = EntmaxAttention
        elif self._made % config.full_every:
            kind = WindowAttention
        layer = kind(*sizes, config.attention_dropout, **config.attention_options())
        if isinstance(layer, WindowAttention):
            layer.window = config.window
        return DecoderLayer(layer, config)


class PeerForCausalLM(PeerPreTrainedModel, DecoderForCausalLM):
    """A peer as a causal language model."""

    model_class = PeerModel


AutoConfig.register(PeerConfig.model_type, PeerConfig, exist_ok=True)
AutoModelForCausalLM.register(PeerConfig, PeerForCausalLM, exist_ok=True)

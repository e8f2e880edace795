"""What every model here shares: embedding, blocks, initialisation. Logits, loss and generation: causal.py.

A kind of model is a `DecoderConfig` of its own and an attention layer: `OSNModel` and `TransformerModel`
differ in these alone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import can_return_tuple

from syncattn.models.cache import DecoderCache
from syncattn.models.configuration import DecoderConfig
from syncattn.models.foreign import check_foreign
from syncattn.models.inputs import (
    check_embeddings,
    check_ids,
    check_keywords,
    check_positions,
    kept_states,
    padding,
    rising_positions,
    texts_of_positions,
)
from syncattn.models.packing import given_texts, refuse_cache
from syncattn.models.places import check_room, padding_of_places
from syncattn.models.sharing import accompany
from syncattn.models.static import StaticDecoderCache
from syncattn.nn.block import Block
from syncattn.nn.windows import head_windows


class DecoderLayer(Block, GradientCheckpointingLayer):
    """One block as a configuration describes it; its activations can be checkpointed.

    Args:
        attention: (B, N, D) to (B, N, D), with the interface of `SelectiveSynchronizationAttention`.
        config: sizes and options.
    """

    def __init__(self, attention: nn.Module, config: DecoderConfig) -> None:
        assert config.intermediate_size is not None  # the configuration fills it in
        super().__init__(
            attention,
            config.hidden_size,
            config.intermediate_size,
            config.hidden_dropout,
            ACT2FN[config.hidden_act],
            config.layer_norm_eps,
            config.norm_first,
            gated=config.gated,
        )
        # Branches that end in the residual stream start smaller: its variance then does not grow with depth.
        scale = 0.0 if config.zero_outputs else (2 * config.num_hidden_layers) ** -0.5
        for branch in (self.self_attn.out_proj, self.linear2):
            branch.initializer_scale = scale  # type: ignore
        self.chunk_size = config.chunk_size_feed_forward

    def forward(  # type: ignore[override]
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
        first_value: Tensor | None = None,
        *,
        values_only: bool = False,
        **options: Any,
    ) -> Any:
        """As `Block.forward`; or, if `values_only`, what later layers with a value residual take as
        `first_value`: within forward, around which FSDP gathers parameters and checkpointing recomputes."""
        if values_only:
            attention: Any = self.self_attn
            return attention.first_values(self.norm1(src) if self.norm_first else src)
        masks = src_mask, src_key_padding_mask, is_causal
        return super().forward(src, *masks, first_value=first_value, **options)

    def _feed_forward(self, x: Tensor) -> Tensor:
        if not self.chunk_size:
            return super()._feed_forward(x)
        return torch.cat([Block._feed_forward(self, part) for part in x.split(self.chunk_size, dim=1)], dim=1)


class DecoderPreTrainedModel(PreTrainedModel):
    """What the models here share: configuration, initialisation, saving and loading (safetensors only)."""

    config: DecoderConfig
    config_class = DecoderConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["DecoderLayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012

    def save_pretrained(
        self, save_directory: str | os.PathLike, is_main_process: bool = True, *args: Any, **kwargs: Any
    ) -> None:
        """As in transformers; beside the weights stand a model card and where the classes are.

        See `syncattn.models.sharing`. A README.md that is there already stays.
        """
        if is_main_process and not Path(save_directory).is_file():
            accompany(self, Path(save_directory))
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)

    def _check_and_adjust_attn_implementation(
        self, attn_implementation: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Where a model is asked for another implementation of attention: refused, saying whom to ask."""
        check_foreign({"attn_implementation": attn_implementation})
        return super()._check_and_adjust_attn_implementation(attn_implementation, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise one submodule; transformers calls this for each, children first.

        The functions of `transformers.initialization` leave alone what came from a checkpoint.
        """
        std = self.config.initializer_range
        assert std is not None  # filled in by the configuration
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, std=std * getattr(module, "initializer_scale", 1.0))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=std)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)


class DecoderModel(DecoderPreTrainedModel):
    """Token embedding, a stack of blocks and a final LayerNorm: hidden states, no output layer.

    With `config.is_causal` each token sees those up to its own, without it all real ones of its text.

    The layers number each sequence's tokens from its first real one, unless they are given positions: by
    `position_ids`, or, real numbers and on several axes, by `positions`.

    Args:
        config: sizes and options.

    Raises:
        TypeError, ValueError: the configuration is inconsistent.
    """

    attention_class: ClassVar[type[nn.Module]]

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        config.check()
        self.embed_tokens = self.make_embedding()
        self.embed_dropout = nn.Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList(self._make_layer() for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def make_embedding(self) -> nn.Module:
        """What makes tokens of the model's input: of token ids here, of patches or measurements elsewhere."""
        return nn.Embedding(self.config.vocab_size, self.config.hidden_size)

    def _make_layer(self) -> DecoderLayer:
        sizes = self.config.hidden_size, self.config.num_attention_heads, self.config.attention_dropout
        attention = self.attention_class(*sizes, **self.config.attention_options())
        return DecoderLayer(attention, self.config)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | Sequence[int] | None = None,
        *,
        positions: Tensor | None = None,
        sequence_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states of a batch of texts, or of their continuation if `past_key_values` holds a past.

        Args:
            input_ids: token ids (B, N), integer.
            attention_mask: 1 for real tokens, 0 for padding (left or right), (B, past + N). Padding is seen
                by nobody, and what the model returns for it means nothing.
            position_ids: integers (B or 1, N), where the tokens stand on the one axis of a text. They may
                start anywhere and have gaps, but must rise (`syncattn.models.inputs.rising_positions`).
                Where they begin anew, a text of its own begins, unless something else tells texts apart; in
                compilation, which cannot read them, without a cache alone. Padding may have any.
            past_key_values: a `DecoderCache`; this call's tokens are appended to it. A bidirectional model
                has none. A `StaticDecoderCache` also takes an attention_mask as wide as itself.
            inputs_embeds: embeddings (B, N, D) instead of `input_ids`.
            use_cache: make a `DecoderCache` if none is given. None: as `config.use_cache`, never in training,
                while exporting (`syncattn.models.exporting` has the cache as tensors) or without
                `config.is_causal`.
            output_attentions: also return each layer's weights (B, H, N, past + N): row-normalised, before
                dropout.
            output_hidden_states: also return the embedding's output and each layer's; the last one is
                normalised. A list of indices: those, and None in the others' places.
            positions: real numbers (B or 1, N, A) in place of position_ids, in any order: see the attention
                layer's `forward`.
            sequence_ids: of several texts packed into a row, which one each token belongs to: integers
                (B or 1, N) that rise from text to text, negative ones for padding. Each text comes out as if
                it had a row of its own: see the attention layer's `forward`. Not with a cache.
            return_dict: False returns a tuple.
            **kwargs: `seq_idx` (B or 1, N), as sequence_ids; `cu_seq_lens_q` and `cu_seq_lens_k` (T + 1,):
                where texts begin, from 0 on, and where the last one ends, after which comes padding, counted
                through all rows, one after the other, each of which begins with a text (`max_length_q` and
                `_k` beside them are not needed). Lists are taken, too. What tells texts apart twice must
                agree. Others are passed by, as in transformers' own models, except that what else
                describes packed texts is refused (`cu_seqlens`, ...), and another is_causal than the
                configuration's.

        A batch of no sequences (B = 0) gives empty results.

        Raises:
            ValueError: both or none of `input_ids` and `inputs_embeds`; no tokens (N = 0), or ids that are
                none; a mask of another shape, of other values than 0 and 1, or one that disagrees with the
                padding in the cache; position_ids that do not rise within a text, or beside `positions`;
                positions that the layers refuse; texts told apart otherwise than said, or with a cache; a
                refused keyword; a cache of other sizes, a full one, any in training with checkpointing
                and gradients, or any, and use_cache=True, in a bidirectional model; an index of no hidden
                state.
            TypeError: `past_key_values` is not a `DecoderCache`; a mask or positions that are no tensor.
        """
        is_causal = self.config.is_causal
        check_keywords(kwargs, is_causal)
        if (input_ids is None) == (inputs_embeds is None):
            given = "neither" if input_ids is None else "both"
            raise ValueError(f"one of input_ids and inputs_embeds must be given, got {given}")
        if input_ids is not None:
            check_ids(input_ids, self.config.vocab_size)
            inputs_embeds = self.embed_tokens(input_ids)
        assert inputs_embeds is not None
        check_embeddings(inputs_embeds, self.config.hidden_size)
        cache = self._cache(past_key_values, use_cache, inputs_embeds.shape[0])
        check_room(cache, inputs_embeds.shape[1])
        if isinstance(cache, StaticDecoderCache):
            is_padding = padding_of_places(attention_mask, inputs_embeds, cache)
        else:
            is_padding = padding(attention_mask, inputs_embeds, cache)
        texts = given_texts(sequence_ids, kwargs, inputs_embeds)
        if position_ids is not None:
            if texts is None:
                unread = cache is None and not torch.compiler.is_exporting()
                texts = texts_of_positions(position_ids, inputs_embeds, is_padding, cache, unread)
            positions = self._positions(position_ids, positions, inputs_embeds, is_padding, cache, texts)
        if texts is not None:
            refuse_cache(past_key_values, use_cache)
            cache = None
        if output_attentions is None:
            output_attentions = bool(self.config.output_attentions)
        if output_hidden_states is None:
            output_hidden_states = bool(self.config.output_hidden_states)
        kept = kept_states(output_hidden_states, len(self.layers) + 1)

        hidden = self.embed_dropout(inputs_embeds)  # (B, N, D)
        all_hidden: tuple[Tensor | None, ...] = ()
        all_weights: tuple[Tensor, ...] = ()
        placed: dict[str, Any] = {"positions": positions, "sequence_ids": texts}
        first_value = None
        if getattr(self.config, "value_residual", False):
            first_value = self.layers[0](hidden, values_only=True)
        states = [None] * len(self.layers) if cache is None else cache.states
        if cache is not None:
            cache.use_windows_of(self, hidden)
        with nullcontext() if cache is None else cache.all_or_nothing():
            for layer, state in zip(self.layers, states):
                if kept:
                    all_hidden += (hidden if len(all_hidden) in kept else None,)
                options = {"state": state, "need_weights": output_attentions}
                # first_value by place: reentrant checkpointing gives gradients to nothing else
                hidden = layer(hidden, None, is_padding, is_causal, first_value, **options, **placed)
                if output_attentions:
                    hidden, weights = hidden
                    all_weights += (weights,)  # (B, H, N, past + N)
            hidden = self.norm(hidden)
        all_hidden += (hidden if len(self.layers) in kept else None,)
        return BaseModelOutputWithPast(
            last_hidden_state=hidden,
            past_key_values=cache,
            hidden_states=all_hidden if kept else None,  # type: ignore[arg-type]
            attentions=all_weights if output_attentions else None,
        )

    def windows(self) -> Tensor:
        """How far each head reaches: the distance in tokens beyond which no later token can lock, (layers, H)
        float64, whatever the text.

        It is proved from the weights (`syncattn.nn.windows`), and infinite where nothing is known: heads
        without a drift, softmax attention, layers whose inputs are not normalised, as the first with
        norm_first=False, or modules that were replaced or hooked, as adapters do. It changes as the model is
        trained.
        """
        found, before = [], None
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            norm: nn.Module | None = layer.norm1
            if not layer.norm_first:  # what the layer before gives, unless somebody changes it on the way
                changed = layer._forward_pre_hooks or (before is not None and before._forward_hooks)
                norm = None if before is None or changed else before.norm2
            found.append(head_windows(layer.self_attn, norm))
            before = layer
        return torch.stack(found)

    def _positions(
        self,
        position_ids: Any,
        positions: Tensor | None,
        hidden: Tensor,
        is_padding: Tensor | None,
        cache: DecoderCache | None,
        texts: Tensor | None,
    ) -> Tensor | None:
        """What the layers are given as positions where the model is given `position_ids`."""
        if positions is not None:
            raise ValueError("one of position_ids and positions must be given at most, got both")
        if self.counts_only:
            check_positions(position_ids, hidden, is_padding, cache, texts)
            return None
        axes = getattr(self.config, "axes", 1)
        if axes > 1:
            raise ValueError(
                f"position_ids must be left out with axes={axes}: a place has {axes} coordinates, which "
                "`positions` takes"
            )
        return rising_positions(position_ids, hidden, is_padding, cache, texts)

    @property
    def counts_only(self) -> bool:
        """Whether the layers know no other positions than the tokens' numbers."""
        return False

    def _cache(self, given: Cache | None, use_cache: bool | None, batch: int) -> DecoderCache | None:
        if not self.config.is_causal:
            for name, value in (("past_key_values", given), ("use_cache", use_cache or None)):
                if value is not None:
                    kind = value if isinstance(value, bool) else type(value).__name__
                    raise ValueError(
                        f"{name} must be left out with is_causal=False, got {kind}: a bidirectional model "
                        "has no cache, since a token that comes changes what the earlier ones give"
                    )
            return None
        # Without gradients, as in generate(), checkpointing recomputes nothing.
        recomputed = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        if given is None:
            if use_cache is None:
                recorded = torch.compiler.is_exporting()  # what a program returns are tensors
                use_cache = self.config.use_cache and not self.training and not recorded
            if not use_cache or recomputed:
                return None
            return DecoderCache(self.config)
        if not isinstance(given, DecoderCache):
            raise TypeError(
                "past_key_values must be a syncattn.models.DecoderCache, got "
                f"{type(given).__name__}: leave it out, or make one with DecoderCache(model.config), or of a "
                "fixed size with syncattn.models.StaticDecoderCache(model.config, max_cache_len)"
            )
        if len(given) != len(self.layers):
            raise ValueError(
                f"past_key_values must have as many layers as the model, {len(self.layers)}, got {len(given)}"
            )
        if given.batch_size not in (-1, batch):
            raise ValueError(
                f"past_key_values must hold as many sequences as the input, {batch}, got {given.batch_size}"
            )
        given.check_made_by(self.layers[0].self_attn)
        if recomputed:
            raise ValueError(
                "past_key_values must be None in training with gradient checkpointing, got a DecoderCache: "
                "the recomputation would append the tokens twice"
            )
        return given

"""The causal language model over any decoder: logits, the loss, and what `generate` asks of it."""

from __future__ import annotations

from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationConfig, GenerationMixin
from transformers.generation import GenerationMode
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from syncattn.models.cache import DecoderCache
from syncattn.models.configuration import DecoderConfig
from syncattn.models.decoder import DecoderModel, DecoderPreTrainedModel
from syncattn.models.labels import token_labels
from syncattn.models.packing import row_texts, within_texts
from syncattn.models.static import StaticDecoderCache


def soft_capped(logits: Tensor, bound: float | None) -> Tensor:
    """Logits between -bound and bound, near 0 as they are; None: as they are everywhere."""
    return logits if bound is None else bound * torch.tanh(logits / bound)


class DecoderForCausalLM(DecoderPreTrainedModel, GenerationMixin):
    """A `DecoderModel` with an output layer: next-token logits, the language-modelling loss, `generate()`.

    Args:
        config: sizes and options.

    Raises:
        ValueError: the configuration is a bidirectional model's, or inconsistent.
        TypeError: the configuration is inconsistent.
    """

    model_class: ClassVar[type[DecoderModel]]
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012
    _can_compile_fullgraph = True  # with a cache of fixed size
    # Tells the Trainer that the loss is a sum divided by `num_items_in_batch`.
    accepts_loss_kwargs = True

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self._check_causal()
        self.loss_type = "ForCausalLM"
        self.model = self.model_class(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        *,
        positions: Tensor | None = None,
        sequence_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (B, N, vocab_size) of each token's successor, and the loss if `labels` are given.

        Args:
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache, positions,
                sequence_ids: as in `DecoderModel.forward`.
            labels: token ids (B, N), usually `input_ids`: shifted here. -100 is left out of the loss, and so
                is the first token of each of several texts in a row: what is before it is another text's.
            logits_to_keep: compute logits for the last so many tokens only (0: all), or for those at the
                indices (n,) given as a tensor.
            **kwargs: as in `DecoderModel.forward`, output_attentions and return_dict among them; the loss
                function gets them, too, as in transformers' own models: with num_items_in_batch, which the
                Trainer passes when it accumulates gradients, the summed loss is divided by that instead of by
                the number of labels.

        Raises:
            TypeError, ValueError: as `DecoderModel.forward`; labels are no integers (B, N), or no token ids.
        """
        self._check_causal()  # the configuration may have been changed since
        inputs = (input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache)
        placed = {"positions": positions, "sequence_ids": sequence_ids}
        outputs = self.model(*inputs, return_dict=True, **placed, **kwargs)
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = soft_capped(self.lm_head(outputs.last_hidden_state[:, keep]), self.config.logit_softcap)
        loss = None
        if labels is not None:
            ignored = kwargs.get("ignore_index", -100)
            labels = token_labels(labels, logits, "vocab_size", self.config.vocab_size, ignored)
            tokens = inputs_embeds if input_ids is None else input_ids
            assert tokens is not None  # the model has one of the two
            if outputs.past_key_values is None:
                texts = row_texts(sequence_ids, kwargs, position_ids, attention_mask, tokens)
                labels = within_texts(labels, texts, keep, ignored)
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def windows(self) -> Tensor:
        """How far each head reaches, see `DecoderModel.windows`."""
        return self.model.windows()

    def _check_causal(self) -> None:
        if not self.config.is_causal:
            raise ValueError(
                f"is_causal must be True for {type(self).__name__}, got False: it predicts and generates the "
                "token after, which a bidirectional model sees. Masked language modelling is for those"
            )

    def _prepare_cache_for_generation(
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: GenerationMode,
        batch_size: int,
        max_cache_length: int,
    ) -> Any:
        """Where `generate()` makes its cache: give it ours, refuse what these models cannot have."""
        implementation = generation_config.cache_implementation
        if implementation not in (None, "dynamic", "static"):
            raise ValueError(
                f"cache_implementation must be None, 'dynamic' or 'static', got {implementation!r}: this "
                "model generates with a DecoderCache, which grows with the text, or a StaticDecoderCache"
            )
        given = model_kwargs.get("past_key_values")
        if implementation == "static":  # which `_prepare_static_cache` makes
            return super()._prepare_cache_for_generation(  # type: ignore[misc]
                generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
            )
        generation_config.cache_implementation = None  # a DecoderCache is dynamic; transformers takes no two
        # Wrappers pass an empty cache of the usual kind; `forward` refuses others, which somebody chose.
        usual = type(given) is DynamicCache and not given.offloading and given.get_seq_length() == 0
        if usual or (given is None and generation_config.use_cache):
            model_kwargs["past_key_values"] = DecoderCache(self.config)
            if generation_config.is_assistant:  # whose tokens are taken back where the model has others
                model_kwargs["past_key_values"].activate_past_recording()
        return super()._prepare_cache_for_generation(  # type: ignore[misc]
            generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
        )

    def _prepare_static_cache(
        self, cache_implementation: str, batch_size: int, max_cache_len: int, *args: Any, **kwargs: Any
    ) -> StaticDecoderCache:
        """Where `generate()` makes a cache of fixed size: as large as this call needs, or as an earlier one
        did, so that what was compiled for that fits."""
        places = max(max_cache_len, getattr(self, "_previous_max_cache_length", 1))
        self._previous_max_cache_length = places
        return StaticDecoderCache(self.config, places)

    @staticmethod
    def create_masks_for_generate(
        config: Any, inputs_embeds: Tensor, attention_mask: Tensor | None, past_key_values: Any, **kwargs: Any
    ) -> Tensor | None:
        """Where `generate()` makes a mask for a cache of fixed size: the padding mask, of the same width at
        each step, so that one compiled step serves all."""
        if attention_mask is None:
            return None
        beyond = past_key_values.get_max_length() - attention_mask.shape[1]
        return nn.functional.pad(attention_mask, (0, max(0, beyond)))

    def _prepare_position_ids_for_generation(self, *args: Any) -> None:
        """None: the layers count positions themselves, so `generate()` has none to make and none to check."""

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused, and with it `generate_batch` and cache_implementation="paged", which call it.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "continuous batching (generate_batch, or cache_implementation='paged') is not supported: it "
            "keeps keys in pages, and this model a DecoderCache. Call generate() with a padded batch"
        )

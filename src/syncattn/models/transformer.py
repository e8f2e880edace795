"""The softmax Transformer to compare an OSN with: the same code, another attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import initialization as init

from syncattn.models.causal import DecoderForCausalLM
from syncattn.models.configuration import DecoderConfig
from syncattn.models.decoder import DecoderModel, DecoderPreTrainedModel
from syncattn.models.softmax import SoftmaxAttention, check_options
from syncattn.nn.frequency import delayed_heads


class TransformerConfig(DecoderConfig):
    """Sizes and options of a `TransformerModel` or `TransformerForCausalLM`.

    Args:
        vocab_size, hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, gated, hidden_act,
            hidden_dropout, attention_dropout, layer_norm_eps, initializer_range, max_position_embeddings,
            norm_first, tie_word_embeddings, is_causal, use_cache, bos_token_id, eos_token_id, pad_token_id:
            as in `syncattn.models.DecoderConfig`.
        position: "rotary" (queries and keys turn with position), "alibi" (a penalty linear in distance) or
            "none".
        delay: fraction of the heads that read the key of the token before, as an OSN's delayed heads do.
        token_shift: queries and keys, and values, are made of mixtures with the token before, as an OSN's
            frequencies and values.
        short_convolution: a causal convolution of this width on queries, keys and values, in place of the
            token shift; None for none.
        qk_norm: queries and keys are divided by their root mean square.
        value_residual: values are mixtures with what the first layer's would be.
        score_gate: each head's result is multiplied by a gate of the receiver's highest score.
            These four as in `syncattn.models.SoftmaxAttention`.
        rotary_scaling: a factor by which texts may be longer than `max_position_embeddings`, those of the
            training: rotary position is scaled as in YaRN (Peng et al. 2023), what transformers calls
            rope_type "yarn" with this factor. It has no weights, so a trained model can be loaded with it:
            `TransformerForCausalLM.from_pretrained(folder, rotary_scaling=4.0)`. 1 changes nothing.

    Raises:
        TypeError, ValueError: as `DecoderConfig`.
    """

    model_type = "syncattn_transformer"

    position: str = "rotary"
    delay: float = 0.0
    token_shift: bool = False
    short_convolution: int | None = None
    qk_norm: bool = False
    value_residual: bool = False
    score_gate: bool = False
    rotary_scaling: float = 1.0

    def attention_options(self) -> dict[str, Any]:
        """As `DecoderConfig.attention_options`; and the length that rotary_scaling goes out from."""
        return super().attention_options() | {"trained_length": self.max_position_embeddings}

    def check(self) -> None:
        """As `DecoderConfig.check`, and the options of softmax attention."""
        super().check()
        check_options(self.head_dim, **self.attention_options())


class TransformerPreTrainedModel(DecoderPreTrainedModel):
    """What the models of a softmax Transformer share."""

    config: TransformerConfig
    config_class = TransformerConfig

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise one submodule, and what an attention layer holds besides its linear layers."""
        super()._init_weights(module)
        if isinstance(module, SoftmaxAttention):
            for zeros in (module.shift, module.convolution, module.gate):
                if zeros is not None:
                    init.zeros_(zeros)
            if module.gains is not None:
                init.ones_(module.gains)
            if module.value_mix is not None:
                init.constant_(module.value_mix, 0.5)
            # of a module made on the meta device and emptied since, this holds anything
            init.copy_(module.delayed, delayed_heads(module.num_heads, module.delay, module.delayed.device))


class TransformerModel(TransformerPreTrainedModel, DecoderModel):
    """Token embedding, a stack of softmax blocks and a final LayerNorm, without an output layer.

    Args:
        config: sizes and options.

    Raises:
        TypeError, ValueError: the configuration is inconsistent.
    """

    attention_class = SoftmaxAttention

    @property
    def counts_only(self) -> bool:
        """True with ALiBi, which keeps no positions of cached keys, and without any position."""
        return self.config.position != "rotary"


class TransformerForCausalLM(TransformerPreTrainedModel, DecoderForCausalLM):
    """`TransformerModel` with an output layer: next-token logits, the language-modelling loss, `generate()`.

    Args:
        config: sizes and options; `TransformerConfig.of_sizes` takes the sizes of an OSN's, and
            `syncattn.models.match_parameters` gives both as many parameters.
    """

    model_class = TransformerModel

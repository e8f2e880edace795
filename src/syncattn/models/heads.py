"""What a model is for, besides generating: masked tokens, classes of texts and of tokens, answers in a text.

Each head is written once, on the base that all models here share; a kind of model has its own class of each.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import Cache
from transformers.modeling_layers import GenericForQuestionAnswering, GenericForTokenClassification
from transformers.modeling_outputs import MaskedLMOutput, SequenceClassifierOutputWithPast
from transformers.utils import can_return_tuple

from syncattn.models.causal import soft_capped
from syncattn.models.configuration import DecoderConfig
from syncattn.models.decoder import DecoderModel, DecoderPreTrainedModel
from syncattn.models.labels import answer_place, class_labels, token_labels
from syncattn.models.osn import OSNModel, OSNPreTrainedModel
from syncattn.models.packing import row_texts
from syncattn.models.pooling import last_pooling, mean_pooling
from syncattn.models.transformer import TransformerModel, TransformerPreTrainedModel


class DecoderForMaskedLM(DecoderPreTrainedModel):
    """A bidirectional `DecoderModel` with an output layer: logits of masked tokens, and their loss.

    The output layer is a causal language model's, so that one kind's weights load into the other.

    Args:
        config: sizes and options, with is_causal=False.

    Raises:
        ValueError: the configuration is a causal model's, or inconsistent.
        TypeError: the configuration is inconsistent.
    """

    model_class: ClassVar[type[DecoderModel]]
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012
    # Tells the Trainer that the loss is a sum divided by `num_items_in_batch`.
    accepts_loss_kwargs = True

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        if config.is_causal:
            raise ValueError(
                f"is_causal must be False for {type(self).__name__}, got True: a masked token is told from "
                "those on both sides. For the token after there is causal language modelling"
            )
        self.loss_type = "ForMaskedLM"
        self.model = self.model_class(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        sequence_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> MaskedLMOutput:
        """Logits (B, N, vocab_size) of each token, and the loss if `labels` are given.

        Args:
            input_ids, attention_mask, position_ids, inputs_embeds, positions, sequence_ids: as in
                `DecoderModel.forward`.
            labels: token ids (B, N), -100 for all but the masked ones: these are left out of the loss.
            **kwargs: as in `DecoderForCausalLM.forward`.

        Raises:
            TypeError, ValueError: as `DecoderModel.forward`; labels are no integers (B, N), or no token ids.
        """
        inputs = {"position_ids": position_ids, "inputs_embeds": inputs_embeds}
        inputs |= {"positions": positions, "sequence_ids": sequence_ids}
        outputs = self.model(input_ids, attention_mask, return_dict=True, **inputs, **kwargs)
        logits = soft_capped(self.lm_head(outputs.last_hidden_state), self.config.logit_softcap)
        loss = None
        if labels is not None:
            ignored = kwargs.get("ignore_index", -100)
            labels = token_labels(labels, logits, "vocab_size", self.config.vocab_size, ignored)
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class DecoderForSequenceClassification(DecoderPreTrainedModel):
    """A `DecoderModel` with one vector for each text and a linear layer on it: logits of the text's classes.

    The vector is the mean over the text's real tokens in a bidirectional model, and the last real token's in
    a causal one, which alone has seen all of it. What is real, `attention_mask` says and nothing else: there
    need not be a padding token.

    Args:
        config: sizes and options; of those that transformers adds: num_labels or id2label, problem_type, and
            classifier_dropout, the dropout of the vector (left out: `hidden_dropout`).

    Raises:
        TypeError, ValueError: the configuration is inconsistent.
    """

    model_class: ClassVar[type[DecoderModel]]
    # The loss is a mean over the batch, so that the Trainer divides it where it accumulates gradients.
    accepts_loss_kwargs = False

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.loss_type = "ForSequenceClassification"
        self.num_labels = config.num_labels
        self.model = self.model_class(config)
        dropout = getattr(config, "classifier_dropout", None)
        self.dropout = nn.Dropout(config.hidden_dropout if dropout is None else dropout)
        self.score = nn.Linear(config.hidden_size, len(config.id2label or ()), bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        sequence_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutputWithPast:
        """Logits (B, num_labels), and the loss if `labels` are given.

        With several texts in a row there are logits (T, num_labels), of the texts that have tokens, row after
        row, and labels are of these: T takes the place of B.

        Args:
            input_ids, attention_mask, position_ids, inputs_embeds, positions, sequence_ids: as in
                `DecoderModel.forward`.
            labels: by `config.problem_type`: "single_label_classification": classes (B,) or (B, 1), integer,
                -100 for texts that do not count; "multi_label_classification": (B, num_labels) of 0 and 1,
                real; "regression": numbers (B, num_labels), or (B,) for one. None: regression for one label,
                else integers are single labels and real numbers several; it is then set so, once and for all.
            **kwargs: as in `DecoderModel.forward`; use_cache and past_key_values, too.

        Raises:
            ValueError: labels have another shape, or a class that there is not; as `DecoderModel.forward`.
            TypeError: as `DecoderModel.forward`.
        """
        inputs = {"position_ids": position_ids, "inputs_embeds": inputs_embeds}
        inputs |= {"positions": positions, "sequence_ids": sequence_ids}
        outputs = self.model(input_ids, attention_mask, return_dict=True, **inputs, **kwargs)
        pool = last_pooling if self.config.is_causal else mean_pooling
        hidden = outputs.last_hidden_state
        if attention_mask is not None:  # after cached tokens it speaks of these, too
            attention_mask = attention_mask[:, attention_mask.shape[1] - hidden.shape[1] :]
        texts = None
        if outputs.past_key_values is None:
            texts = row_texts(sequence_ids, kwargs, position_ids, attention_mask, hidden, wait=True)
        logits = self.score(self.dropout(pool(hidden, attention_mask, texts)))
        loss = None
        if labels is not None:
            labels = class_labels(labels, len(logits), self.config)
            loss = self.loss_function(
                logits=logits, labels=labels, pooled_logits=logits.float(), config=self.config
            )
        return SequenceClassifierOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class DecoderForTokenClassification(GenericForTokenClassification):
    """transformers' head for tokens' classes, with labels that are checked."""

    # The loss is a mean over the batch, so that the Trainer divides it where it accumulates gradients.
    accepts_loss_kwargs = False

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Logits (B, N, num_labels), and the loss if `labels` are given.

        Args:
            labels: classes (B, N), integer, -100 for tokens that do not count.
            input_ids, ..., **kwargs: as in `DecoderModel.forward`.

        Raises:
            TypeError, ValueError: as `DecoderModel.forward`; labels are no integers (B, N), or no classes.
        """
        tokens = _tokens(input_ids, inputs_embeds)
        if labels is not None and tokens is not None:
            labels = token_labels(labels, tokens, "num_labels", self.num_labels)
        inputs = (input_ids, attention_mask, position_ids, past_key_values, inputs_embeds)
        return super().forward(*inputs, labels, use_cache, **kwargs)  # type: ignore[arg-type]


class DecoderForQuestionAnswering(GenericForQuestionAnswering):
    """transformers' head for answers in a text, with labels that are checked."""

    accepts_loss_kwargs = False

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Logits (B, N) of where an answer starts and ends, and the loss if both places are given.

        Args:
            start_positions, end_positions: (B,), integer; those outside of the text do not count.
            input_ids, ..., **kwargs: as in `DecoderModel.forward`.

        Raises:
            TypeError, ValueError: as `DecoderModel.forward`; one place without the other, no integers (B,),
                or several texts in a row, which have no one answer.
        """
        places = {"start_positions": start_positions, "end_positions": end_positions}
        missing = [name for name, place in places.items() if place is None]
        if len(missing) == 1:
            given = next(name for name in places if name not in missing)
            raise ValueError(f"{missing[0]} must be given with {given}, got {given} alone")
        tokens = _tokens(input_ids, inputs_embeds)
        if not missing and tokens is not None:
            places = {name: answer_place(name, place, tokens) for name, place in places.items()}
            texts = kwargs.get("sequence_ids"), kwargs, position_ids, attention_mask
            if past_key_values is None and row_texts(*texts, tokens, wait=True) is not None:
                raise ValueError(
                    "start_positions and end_positions must be left out with several texts in a row: they "
                    "are one answer a row"
                )
        inputs = (input_ids, attention_mask, position_ids, past_key_values, inputs_embeds)
        return super().forward(*inputs, **places, **kwargs)  # type: ignore[arg-type]


def _tokens(input_ids: Any, inputs_embeds: Any) -> Tensor | None:
    """What labels are of; None where the model refuses it."""
    given = inputs_embeds if input_ids is None else input_ids
    return given if isinstance(given, Tensor) and not given.is_nested and given.ndim > 1 else None


class OSNForMaskedLM(OSNPreTrainedModel, DecoderForMaskedLM):
    """`OSNModel` with is_causal=False and an output layer: logits of masked tokens, and their loss.

    Args:
        config: sizes and options.

    Example:
        >>> model = OSNForMaskedLM(OSNConfig(is_causal=False, vocab_size=257))
        >>> ids = torch.randint(0, 256, (1, 32))
        >>> masked = torch.rand(1, 32) < 0.15
        >>> model(ids.masked_fill(masked, 256), labels=ids.masked_fill(~masked, -100)).loss
    """

    model_class = OSNModel


class OSNForSequenceClassification(OSNPreTrainedModel, DecoderForSequenceClassification):
    """`OSNModel` with logits of each text's classes, bidirectional (the mean of its tokens) or causal (the
    last).

    Args:
        config: sizes and options, see `DecoderForSequenceClassification`.

    Example:
        >>> model = OSNForSequenceClassification(OSNConfig(is_causal=False, num_labels=3))
        >>> ids = torch.randint(0, 256, (2, 32))
        >>> model(ids, labels=torch.tensor([0, 2])).logits.shape
        torch.Size([2, 3])
    """

    model_class = OSNModel


class OSNForTokenClassification(DecoderForTokenClassification, OSNPreTrainedModel):
    """`OSNModel` with logits (B, N, num_labels) of each token's classes, of transformers' own head.

    `forward` takes what `DecoderModel.forward` does, and labels (B, N): classes, -100 for tokens that do not
    count. A causal model tells a token's class from those up to it.

    Args:
        config: sizes and options; of those that transformers adds: num_labels or id2label, and
            classifier_dropout.
    """


class OSNForQuestionAnswering(DecoderForQuestionAnswering, OSNPreTrainedModel):
    """`OSNModel` with the logits (B, N) of where an answer starts and where it ends, of transformers' own
    head.

    `forward` takes what `DecoderModel.forward` does, and start_positions and end_positions (B,); those
    outside of the text do not count.

    Args:
        config: sizes and options.
    """


class TransformerForMaskedLM(TransformerPreTrainedModel, DecoderForMaskedLM):
    """As `OSNForMaskedLM`, of the softmax Transformer."""

    model_class = TransformerModel


class TransformerForSequenceClassification(TransformerPreTrainedModel, DecoderForSequenceClassification):
    """As `OSNForSequenceClassification`, of the softmax Transformer."""

    model_class = TransformerModel


class TransformerForTokenClassification(DecoderForTokenClassification, TransformerPreTrainedModel):
    """As `OSNForTokenClassification`, of the softmax Transformer."""


class TransformerForQuestionAnswering(DecoderForQuestionAnswering, TransformerPreTrainedModel):
    """As `OSNForQuestionAnswering`, of the softmax Transformer."""

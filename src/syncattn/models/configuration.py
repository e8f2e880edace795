"""The configuration that the models here share: sizes, dropout, special tokens, and how it is stored."""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from dataclasses import fields
from typing import Any, ClassVar, Self

from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from syncattn.checks import check_choice, check_flag, check_real, short
from syncattn.models.fields import check_heads, check_size, check_token
from syncattn.models.foreign import (
    check_dtype,
    check_foreign,
    check_labels,
    check_transformers,
    foreign,
    without_effect,
)


class DecoderConfig(PreTrainedConfig):
    """What the configurations of all models here have. Round trips through JSON exactly.

    A kind of model, `OSNConfig` or `TransformerConfig`, adds the options of its attention under the layer's
    own names, and nothing else.

    Args:
        vocab_size: number of token ids. The default suits bytes.
        hidden_size: width D of the residual stream.
        num_hidden_layers: number of blocks.
        num_attention_heads: heads H, a divisor of `hidden_size`.
        intermediate_size: width of the feed-forward layer; None for 4 * `hidden_size`, or 8 / 3 of it if
            `gated`, which is as many parameters.
        gated: the feed-forward layer has a second input map that its activation is multiplied by (with
            hidden_act="silu": SwiGLU, Shazeer 2020).
        hidden_act: activation of the feed-forward layer, a name that `transformers.activations.ACT2FN` knows.
        hidden_dropout: dropout of the feed-forward layer and of both residual branches, in [0, 1).
        attention_dropout: dropout of the attention weights, in [0, 1).
        layer_norm_eps: added to the variance in every LayerNorm.
        initializer_range: standard deviation of the embedding's and the linear layers' weights at the start;
            None for sqrt(2 / (5 * `hidden_size`)) (Nguyen and Salazar 2019), which suits narrow models better
            than a constant.
        max_position_embeddings: the length that the model was trained on. Nothing depends on it but a
            Transformer's rotary_scaling: positions are relative and have no table, so a longer text is
            allowed.
        norm_first: LayerNorm before each branch (True) or after each residual sum (False).
        tie_word_embeddings: the output layer shares the embedding's weight.
        is_causal: each token sees those up to its own (True), or all of its text (False): a bidirectional
            model, an encoder. It has no cache and does not generate.
        chunk_size_feed_forward: the feed-forward layers run over so many tokens at a time, which takes less
            memory without gradients and changes nothing else; 0 for all at once.
        zero_outputs: the weights of the maps that end in the residual stream, attention's output projection
            and the feed-forward layer's second one, start at 0, so that every block starts as the identity
            (Zhang et al. 2019).
        logit_softcap: None, or a bound c of a language model's logits z, which are c tanh(z / c) instead
            (Gemma Team 2024).
        use_cache: whether generation keeps a `DecoderCache`; without effect where is_causal is False.
        bos_token_id, eos_token_id, pad_token_id: special tokens, below `vocab_size`, or None.

    Raises:
        ValueError: a field is out of range; the message names it, what was given and what is expected. Sizes
            have upper bounds, too, far above any model's. Or a field of another model would make this one
            another (a sliding window, rope_theta, fewer key-value heads, ...).
        TypeError: a field has the wrong type, or is one of another kind of model here, or an unknown field
            resembles a known one (a likely typo).

    Warns:
        UserWarning: names all other unknown fields, which have no effect. They are kept as attributes, as in
            every transformers configuration, so that a newer version's config.json can be read.
    """

    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]  # the Trainer adds to this list
    stored_as: ClassVar[dict[str, str]] = {}  # what config.json calls fields whose names mean more there
    # What a field was in a config.json that does not have it yet, where its default is another by now: that
    # file's model was trained so, and has no weights for more.
    unless_stored: ClassVar[dict[str, Any]] = {}

    vocab_size: int = 256
    hidden_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 8
    intermediate_size: int | None = None
    gated: bool = True
    hidden_act: str = "silu"
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    layer_norm_eps: float = 1e-5
    initializer_range: float | None = None
    max_position_embeddings: int = 1024
    norm_first: bool = True
    tie_word_embeddings: bool = True
    zero_outputs: bool = False
    logit_softcap: float | None = None
    is_causal: bool = True
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if kwargs.get("model_type", self.model_type) != self.model_type:
            raise ValueError(f"model_type must be {self.model_type!r}, got {short(kwargs['model_type'])}")
        known = {field.name for field in fields(self)} | {*self.stored_as.values()}
        others = {name: kind for kind in DecoderConfig.__subclasses__() for name in _declared(kind)}
        strangers, sentence = without_effect(type(self), known, others, kwargs)
        check_foreign(kwargs)
        check_dtype("torch_dtype", kwargs.get("torch_dtype"))
        check_dtype("dtype", self.dtype)
        check_labels(self.id2label, self.label2id, kwargs.get("num_labels"))
        if strangers:
            warnings.warn(sentence, UserWarning, stacklevel=3)
        # What has no public name is transformers' own, and means something to other versions of it.
        dropped = {*foreign(kwargs), *(name for name in strangers if name.startswith("_"))}
        dropped -= {"attn_implementation"}  # "eager" at most, which transformers reads again from the field
        kwargs = {name: value for name, value in kwargs.items() if name not in dropped}
        head_dim = kwargs.pop("head_dim", None)
        for name, stored in self.stored_as.items():
            setattr(self, name, kwargs.pop(stored, getattr(self, name)))
        kwargs.pop("model_type", None)  # the class has it
        super().__post_init__(**kwargs)
        self.transformers_version = None  # of whoever stored it: what is loaded equals what was saved
        self.check()
        if head_dim not in (None, self.head_dim):
            raise ValueError(
                f"head_dim must be hidden_size / num_attention_heads = {self.head_dim}, got {short(head_dim)}"
            )

    @classmethod
    def own_fields(cls) -> list[str]:
        """The names of the fields that syncattn declares, without those of every transformers config."""
        ours = [kind for kind in reversed(cls.__mro__) if issubclass(kind, DecoderConfig)]
        return [name for kind in ours for name in _declared(kind)]

    @classmethod
    def of_sizes(cls, config: DecoderConfig, **options: Any) -> Self:
        """A configuration of this kind with the sizes of `config`, which may be of another.

        Args:
            config: everything that all kinds have is taken from it; it is not changed.
            options: the fields of this kind.

        Raises:
            TypeError, ValueError: as the class.
        """
        names = {field.name for field in fields(DecoderConfig)} - {"architectures"}
        return cls(**{name: copy.deepcopy(getattr(config, name)) for name in names}, **options)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in every transformers configuration; fields of other models among `kwargs` are checked too.

        What was written before a field was made is read as it was meant then (`unless_stored`); a dict made
        by hand, which no version of transformers wrote, has the defaults.
        """
        if "transformers_version" in config_dict:
            config_dict = cls.unless_stored | config_dict
        for name in foreign(kwargs):
            config_dict = {**config_dict, name: kwargs.pop(name)}
        return super().from_dict(config_dict, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON stores them, under the names that `stored_as` gives."""
        return {self.stored_as.get(name, name): value for name, value in super().to_dict().items()}

    def to_diff_dict(self) -> dict[str, Any]:
        """What is stored: every field of ours, so that a model outlives a change of the defaults."""
        every, output = self.to_dict(), super().to_diff_dict()
        names = [self.stored_as.get(name, name) for name in self.own_fields()]
        return output | {name: every[name] for name in sorted(names)}

    def _get_generation_parameters(self) -> dict[str, Any]:
        # transformers before 5.20 takes a field named as an option of sampling for one, and refuses to save.
        found = super()._get_generation_parameters()
        return {name: value for name, value in found.items() if name not in self.stored_as}

    @property
    def head_dim(self) -> int:
        """Width of one head's values."""
        return self.hidden_size // self.num_attention_heads

    def attention_options(self) -> dict[str, Any]:
        """The keyword arguments that the attention layers are built with: the fields that the kind adds."""
        kind = next(each for each in type(self).__mro__ if DecoderConfig in each.__bases__)
        return {name: getattr(self, name) for name in _declared(kind)}

    def check(self) -> None:
        """Check every field, fill in the sizes left None, and bring values to the types that layers expect.

        Runs at construction, and once more when a model is built, since fields can be assigned in between.

        Raises:
            TypeError, ValueError: see the class.
        """
        if getattr(self, "is_heterogeneous", False):
            raise ValueError("per_layer_config must be left out, got one: all layers have the same options")
        # What a field of ours means we know, whatever it is called.
        inherited = {name: value for name, value in vars(self).items() if name not in self.own_fields()}
        check_foreign({**inherited, "attn_implementation": self._attn_implementation})
        check_transformers(self)
        if self.id2label is not None and all(str(x).startswith("LABEL_") for x in self.label2id or ()):
            self.label2id = {str(label): int(number) for number, label in self.id2label.items()}
        for name in ("vocab_size", "num_hidden_layers", "max_position_embeddings"):
            check_size(name, getattr(self, name))
        check_heads(self.hidden_size, self.num_attention_heads)
        if getattr(self, "num_key_value_heads", None) not in (None, self.num_attention_heads):
            raise ValueError(
                f"num_key_value_heads must be num_attention_heads = {self.num_attention_heads} or left out: "
                f"heads are not grouped here, got {short(self.num_key_value_heads)}"
            )
        flags = ("gated", "norm_first", "tie_word_embeddings", "zero_outputs", "is_causal", "use_cache")
        for name in flags:
            check_flag(name, getattr(self, name))
        if self.logit_softcap is not None:
            expected = "positive and finite, or None"
            check_real("logit_softcap", self.logit_softcap, expected, lambda x: 0 < x < math.inf)
        if self.intermediate_size is None:
            self.intermediate_size = self.hidden_size * 8 // 3 if self.gated else 4 * self.hidden_size
        if self.initializer_range is None:
            self.initializer_range = math.sqrt(0.4 / self.hidden_size)
        check_size("intermediate_size", self.intermediate_size)
        if self.chunk_size_feed_forward not in (None, 0):
            check_size("chunk_size_feed_forward", self.chunk_size_feed_forward)
        check_choice("hidden_act", self.hidden_act, tuple(ACT2FN))
        for name in ("hidden_dropout", "attention_dropout"):
            check_real(name, getattr(self, name), "in [0, 1)", lambda x: 0 <= x < 1)
        for name in ("layer_norm_eps", "initializer_range"):
            check_real(name, getattr(self, name), "positive and finite", lambda x: 0 < x < math.inf)
        ends = self.eos_token_id if isinstance(self.eos_token_id, list) else [self.eos_token_id]
        tokens = [("bos_token_id", self.bos_token_id), ("pad_token_id", self.pad_token_id)]
        for name, token in [*tokens, *(("eos_token_id", token) for token in ends)]:
            check_token(name, token, self.vocab_size)


def _declared(kind: type[DecoderConfig]) -> list[str]:
    """The names of the fields that a class declares itself, not those it inherits."""
    known = {field.name for field in fields(kind)}
    return [name for name in inspect.get_annotations(kind) if name in known]

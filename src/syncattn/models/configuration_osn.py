"""The configuration of an Oscillatory Synchronization Network."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, ClassVar

from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from syncattn.backends.call import FRAMES
from syncattn.models.fields import (
    check_choice,
    check_count,
    check_dtype,
    check_flag,
    check_foreign,
    check_labels,
    check_real,
    check_transformers,
    checked_range,
    foreign,
    short,
    without_effect,
)
from syncattn.nn.attention import STRENGTHS
from syncattn.nn.convert import published
from syncattn.nn.frequency import POSITIONS

# The arguments of SelectiveSynchronizationAttention that a configuration sets, under the layer's own names.
ATTENTION_OPTIONS = (
    "freq_dim",
    "phase_dim",
    "directed",
    "position",
    "window_range",
    "delay",
    "detuning",
    "token_shift",
    "self_coupling",
    "frame",
    "power",
    "edge",
    "eps",
    "top_k",
    "order_parameter",
    "density_range",
    "sharpness",
    "strength",
    "freq_bias",
)
# transformers takes a stored `top_k` for an option of sampling and would generate with it.
_STORED_TOP_K = "attention_top_k"


class OSNConfig(PreTrainedConfig):
    """Sizes and options of an `OSNModel` or `OSNForCausalLM`. The defaults are the trainable form.

    `OSNConfig.paper()` gives the published formulation instead. Round trips through JSON exactly.

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
            than a constant. Frequencies, bandwidths, couplings and slopes keep the layer's calibrated start.
        max_position_embeddings: the length that the model was trained on. Nothing depends on it: positions
            are relative and have no table, so a longer text is allowed.
        norm_first: LayerNorm before each branch (True) or after each residual sum (False).
        tie_word_embeddings: the output layer shares the embedding's weight.
        use_cache: whether generation keeps an `OSNCache`.
        bos_token_id, eos_token_id, pad_token_id: special tokens, below `vocab_size`, or None.
        freq_dim, phase_dim, directed, position, window_range, delay, detuning, token_shift, self_coupling,
            frame, power, edge, eps, top_k, order_parameter, density_range, sharpness, strength, freq_bias: as
            in `syncattn.nn.SelectiveSynchronizationAttention`.

    The defaults and what speaks for each: by how much the validation loss on WikiText-2 rises, in nats per
    byte, when it alone is changed (117,000 parameters, one seed, where seeds differ by .006;
    docs/results/quality.md):
        gated, hidden_act: SwiGLU; GELU +.021.
        position, window_range: drift in the content's coordinates; one of its own +.007, rotary +.038, none
            +.307; windows from 2 to 128 +.003.
        frame, self_coupling: nearest frame +.025 better than absolute, +.034 if self is kept in that one;
            self kept in the nearest frame +.015.
        power: 2; the published 1 +.025.
        delay: on half of the heads; on none +.018, on all no difference.
        token_shift: without +.010.
        freq_dim: 16; 8 +.014, 2 +.011.
        density_range, sharpness: denser start (.3 to .95) +.010; sharpness 10 +.009.
        eps: a weight of 1 for nobody +.009.
        directed, detuning: both +.005; detuning alone within the spread over three seeds, so left out.
        order_parameter: off +.003, within the spread: kept since it is the paper's.

    Raises:
        ValueError: a field is out of range; the message names it, what was given and what is expected. Sizes
            have upper bounds, too, far above any model's. Or a field of another model would make this one
            another (is_causal=False, a sliding window, rope_theta, fewer key-value heads, ...).
        TypeError: a field has the wrong type, or an unknown field resembles a known one (a likely typo).

    Warns:
        UserWarning: names all other unknown fields, which have no effect. They are kept as attributes, as in
            every transformers configuration, so that a newer version's config.json can be read.
    """

    model_type = "osn"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]  # the Trainer adds to this list

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
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    freq_dim: int | None = None
    phase_dim: int = 1
    directed: bool = False
    position: str = "drift"
    window_range: Sequence[float] = (4.0, 64.0)
    delay: float = 0.5
    detuning: bool = False
    token_shift: bool = True
    self_coupling: bool = False
    frame: str = "nearest"
    power: float = 2
    edge: float = 0.0
    eps: float = 1e-8
    top_k: int | None = None
    order_parameter: bool = True
    density_range: Sequence[float] | None = (0.05, 0.5)
    sharpness: float = 100.0
    strength: str = "log"
    freq_bias: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if kwargs.get("model_type", self.model_type) != self.model_type:
            raise ValueError(f"model_type must be {self.model_type!r}, got {short(kwargs['model_type'])}")
        known = {field.name for field in fields(self)} | {_STORED_TOP_K}
        strangers, sentence = without_effect(type(self), known, kwargs)
        check_foreign(kwargs)
        check_dtype("torch_dtype", kwargs.get("torch_dtype"))
        check_dtype("dtype", self.dtype)
        check_labels(self.id2label, self.label2id, kwargs.get("num_labels"))
        if strangers:
            warnings.warn(sentence, UserWarning, stacklevel=3)
        # What has no public name is transformers' own, and means something to other versions of it.
        dropped = {*foreign(kwargs), *(name for name in strangers if name.startswith("_"))}
        kwargs = {name: value for name, value in kwargs.items() if name not in dropped}
        head_dim = kwargs.pop("head_dim", None)
        self.top_k = kwargs.pop(_STORED_TOP_K, self.top_k)
        super().__post_init__(**kwargs)
        self.check()
        if head_dim not in (None, self.head_dim):
            raise ValueError(
                f"head_dim must be hidden_size / num_attention_heads = {self.head_dim}, got {short(head_dim)}"
            )

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in every transformers configuration; fields of other models among `kwargs` are checked too."""
        for name in foreign(kwargs):
            config_dict = {**config_dict, name: kwargs.pop(name)}
        return super().from_dict(config_dict, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON stores them; `top_k` is named "attention_top_k" there."""
        output = super().to_dict()
        output[_STORED_TOP_K] = output.pop("top_k")
        return output

    def to_diff_dict(self) -> dict[str, Any]:
        """What is stored: every field of its own, so that a model outlives a change of the defaults."""
        every, output = self.to_dict(), super().to_diff_dict()
        own = {_STORED_TOP_K if field.name == "top_k" else field.name for field in fields(OSNConfig)}
        own &= {_STORED_TOP_K, *inspect.get_annotations(OSNConfig)}
        return output | {name: every[name] for name in sorted(own & every.keys())}

    def _get_generation_parameters(self) -> dict[str, Any]:
        # transformers before 5.20 takes a field named as an option of sampling for one, and refuses to save.
        found = super()._get_generation_parameters()
        found.pop("top_k", None)
        return found

    @classmethod
    def paper(cls, **overrides: Any) -> OSNConfig:
        """The published formulation (Hays 2026, arXiv 2602.14445), made causal; `overrides` are any fields.

        Symmetric frequencies and phases as wide as the head, with biases; no position; the token itself takes
        part; the absolute frame and S itself as the weight; one coupling for all heads through softplus. It
        starts as published, too: no two different tokens lock, so that attention is the identity and the
        frequencies get no gradient.
        """
        hidden = overrides.get("hidden_size", cls.hidden_size)
        heads = overrides.get("num_attention_heads", cls.num_attention_heads)
        _check_heads(hidden, heads)
        feed_forward = {"gated": False, "hidden_act": "gelu"}
        return cls(**{**published(hidden // heads), **feed_forward, **overrides})

    @property
    def head_dim(self) -> int:
        """Width of one head's values."""
        return self.hidden_size // self.num_attention_heads

    def attention_options(self) -> dict[str, Any]:
        """The keyword arguments that the attention layers are built with."""
        return {name: getattr(self, name) for name in ATTENTION_OPTIONS}

    def check(self) -> None:
        """Check every field, fill in the sizes left None, make tuples of the ranges that JSON made lists.

        Runs at construction, and once more when a model is built, since fields can be assigned in between.

        Raises:
            TypeError, ValueError: see the class.
        """
        if getattr(self, "is_heterogeneous", False):
            raise ValueError("per_layer_config must be left out, got one: all layers have the same options")
        check_foreign({**vars(self), "attn_implementation": self._attn_implementation})
        check_transformers(self)
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"):
            check_count(name, getattr(self, name))
        _check_heads(self.hidden_size, self.num_attention_heads)
        if getattr(self, "num_key_value_heads", None) not in (None, self.num_attention_heads):
            raise ValueError(
                f"num_key_value_heads must be num_attention_heads = {self.num_attention_heads} or left out: "
                f"heads are not grouped here, got {short(self.num_key_value_heads)}"
            )
        if self.intermediate_size is None:
            self.intermediate_size = self.hidden_size * 8 // 3 if self.gated else 4 * self.hidden_size
        if self.initializer_range is None:
            self.initializer_range = math.sqrt(0.4 / self.hidden_size)
        for name in ("intermediate_size", "max_position_embeddings"):
            check_count(name, getattr(self, name))
        check_choice("hidden_act", self.hidden_act, tuple(ACT2FN))
        for name in ("hidden_dropout", "attention_dropout"):
            check_real(name, getattr(self, name), "in [0, 1)", lambda x: 0 <= x < 1)
        for name in ("layer_norm_eps", "initializer_range"):
            check_real(name, getattr(self, name), "positive and finite", lambda x: 0 < x < math.inf)
        for name in ("gated", "norm_first", "tie_word_embeddings", "use_cache"):
            check_flag(name, getattr(self, name))
        self._check_special_tokens()
        self._check_attention()

    def _check_special_tokens(self) -> None:
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(self, name)
            for token in value if isinstance(value, list) else [value]:
                if token is None:
                    continue
                if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < self.vocab_size:
                    raise ValueError(
                        f"{name} must be None or an id below vocab_size = {self.vocab_size}, got {token!r}"
                    )

    def _check_attention(self) -> None:
        check_count("phase_dim", self.phase_dim)
        for name in ("freq_dim", "top_k"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        for name in ("directed", "detuning", "token_shift", "self_coupling", "order_parameter", "freq_bias"):
            check_flag(name, getattr(self, name))
        check_choice("position", self.position, POSITIONS)
        check_choice("frame", self.frame, FRAMES)
        check_choice("strength", self.strength, STRENGTHS)
        check_real("delay", self.delay, "a fraction of the heads, in [0, 1]", lambda x: 0 <= x <= 1)
        for name in ("edge", "eps"):
            check_real(name, getattr(self, name), "at least 0 and finite", lambda x: 0 <= x < math.inf)
        for name in ("power", "sharpness"):
            check_real(name, getattr(self, name), "positive and finite", lambda x: 0 < x < math.inf)
        self.window_range = checked_range("window_range", self.window_range, math.inf)
        if self.density_range is not None:
            self.density_range = checked_range("density_range", self.density_range, 1.0)


def _check_heads(hidden: Any, heads: Any) -> None:
    check_count("hidden_size", hidden)
    check_count("num_attention_heads", heads)
    if hidden % heads:
        raise ValueError(
            f"num_attention_heads must divide hidden_size, got num_attention_heads = {heads} and "
            f"hidden_size = {hidden}"
        )

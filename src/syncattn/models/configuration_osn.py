"""The configuration of an Oscillatory Synchronization Network."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, ClassVar

from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from syncattn.backends.call import FRAMES
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
        ValueError: a field is out of range; the message names it, what was given and what is expected.
        TypeError: a field has the wrong type, or an unknown field resembles a known one (a likely typo).
            Other unknown fields are kept as attributes, as in every transformers configuration.
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
        known = {field.name for field in fields(self)}
        for name in kwargs.keys() - {_STORED_TOP_K}:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
            if near and not hasattr(PreTrainedConfig, name):
                raise TypeError(f"{type(self).__name__} has no field {name!r}; did you mean {near[0]!r}?")
        self.top_k = kwargs.pop(_STORED_TOP_K, self.top_k)
        super().__post_init__(**kwargs)
        self.check()

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
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"):
            _check_count(name, getattr(self, name))
        _check_heads(self.hidden_size, self.num_attention_heads)
        if self.intermediate_size is None:
            self.intermediate_size = self.hidden_size * 8 // 3 if self.gated else 4 * self.hidden_size
        if self.initializer_range is None:
            self.initializer_range = math.sqrt(0.4 / self.hidden_size)
        for name in ("intermediate_size", "max_position_embeddings"):
            _check_count(name, getattr(self, name))
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act must be one of {', '.join(ACT2FN)}, got {self.hidden_act!r}")
        for name in ("hidden_dropout", "attention_dropout"):
            _check_real(name, getattr(self, name), "in [0, 1)", lambda x: 0 <= x < 1)
        for name in ("layer_norm_eps", "initializer_range"):
            _check_real(name, getattr(self, name), "positive and finite", lambda x: 0 < x < math.inf)
        for name in ("gated", "norm_first", "tie_word_embeddings", "use_cache"):
            _check_flag(name, getattr(self, name))
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
        _check_count("phase_dim", self.phase_dim)
        for name in ("freq_dim", "top_k"):
            if getattr(self, name) is not None:
                _check_count(name, getattr(self, name))
        for name in ("directed", "detuning", "token_shift", "self_coupling", "order_parameter", "freq_bias"):
            _check_flag(name, getattr(self, name))
        _check_choice("position", self.position, POSITIONS)
        _check_choice("frame", self.frame, FRAMES)
        _check_choice("strength", self.strength, STRENGTHS)
        _check_real("delay", self.delay, "a fraction of the heads, in [0, 1]", lambda x: 0 <= x <= 1)
        for name in ("edge", "eps"):
            _check_real(name, getattr(self, name), "at least 0 and finite", lambda x: 0 <= x < math.inf)
        for name in ("power", "sharpness"):
            _check_real(name, getattr(self, name), "positive and finite", lambda x: 0 < x < math.inf)
        self.window_range = _check_range("window_range", self.window_range, math.inf)
        if self.density_range is not None:
            self.density_range = _check_range("density_range", self.density_range, 1.0)


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def _check_heads(hidden: Any, heads: Any) -> None:
    _check_count("hidden_size", hidden)
    _check_count("num_attention_heads", heads)
    if hidden % heads:
        raise ValueError(
            f"num_attention_heads must divide hidden_size, got num_attention_heads = {heads} and "
            f"hidden_size = {hidden}"
        )


def _check_flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def _check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def _check_real(name: str, value: Any, expected: str, accept: Any) -> None:
    if not _is_number(value):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not accept(value):
        raise ValueError(f"{name} must be {expected}, got {value!r}")


def _check_range(name: str, value: Any, highest: float) -> tuple[float, float]:
    expected = "two numbers, 0 < low <= high" + (f" <= {highest:g}" if highest < math.inf else "")
    if not isinstance(value, (tuple, list)) or len(value) != 2 or not all(_is_number(end) for end in value):
        raise TypeError(f"{name} must be {expected}, got {value!r}")
    low, high = value
    if not (0 < low <= high <= highest and high < math.inf):
        raise ValueError(f"{name} must be {expected}, got {value!r}")
    return (float(low), float(high))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)

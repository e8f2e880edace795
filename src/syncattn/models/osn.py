"""Oscillatory Synchronization Network: its configuration, its base and causal language models of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import nn

from syncattn.checks import check_flag
from syncattn.models.causal import DecoderForCausalLM
from syncattn.models.configuration import DecoderConfig
from syncattn.models.decoder import DecoderModel, DecoderPreTrainedModel
from syncattn.models.fields import check_heads, check_size
from syncattn.nn import Frequency, SelectiveSynchronizationAttention, preset
from syncattn.nn.frequency import check_frequency
from syncattn.nn.mix import frozen_scales
from syncattn.nn.options import (
    check_looking_back,
    check_start,
    check_synchronization,
    check_value_rotation,
)
from syncattn.nn.presets import CAUSAL
from syncattn.nn.published import published


class OSNConfig(DecoderConfig):
    """Sizes and options of an `OSNModel` or `OSNForCausalLM`. The defaults are the trainable form.

    `OSNConfig.paper()` gives the published formulation instead.

    Args:
        vocab_size, hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, gated, hidden_act,
            hidden_dropout, attention_dropout, layer_norm_eps, initializer_range, max_position_embeddings,
            norm_first, tie_word_embeddings, is_causal, use_cache, bos_token_id, eos_token_id, pad_token_id:
            as in `syncattn.models.DecoderConfig`. Whatever initializer_range is, frequencies, bandwidths,
            couplings and slopes keep the layer's calibrated start.
        freq_dim, phase_dim, directed, directed_rank, position, window_range, windows, delay, detuning,
            token_shift, self_coupling, frame, power, edge, eps, top_k, order_parameter, density_range,
            sharpness, parametrisation, freq_bias, bounded_content, axes, helix_scales, value_rotation,
            short_convolution, value_residual, nearest_gate: as in
            `syncattn.nn.SelectiveSynchronizationAttention`. `OSNConfig.preset` has mixes of heads by name.

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
        directed, directed_rank: symmetric +.002 (three seeds, which differ by .004), +.029 on
            stdlib, +.013 on pydoc; two whole maps +.022, -.003 and +.002 (one seed).
        detuning: within the spread over three seeds, so left out.
        order_parameter: off +.003, within the spread: kept since it is the paper's.
        nearest_gate: off +.021 (three seeds, which differ by .006); +.038 on stdlib, +.014 on pydoc.
    All but the directed heads' figures are of symmetric models, all but theirs and the gate's of models
    without the gate. Off by default (docs/training.md, docs/results/options.md):
        short_convolution=4 in place of the token shift, value_residual, zero_outputs and logit_softcap: all
            together -.003, -.032 on stdlib and -.008 on pydoc (one seed).

    Raises:
        TypeError, ValueError: as `DecoderConfig`.
    """

    model_type = "osn"
    # transformers takes a stored `top_k` for an option of sampling and would generate with it.
    stored_as: ClassVar[dict[str, str]] = {"top_k": "attention_top_k"}
    unless_stored: ClassVar[dict[str, Any]] = {
        "nearest_gate": False,
        "directed": False,
        "directed_rank": None,
    }

    freq_dim: int | None = None
    phase_dim: int = 1
    directed: bool | Sequence[bool] = True
    directed_rank: int | None = 4
    position: str | Sequence[str] = "drift"
    window_range: Sequence[float] = (4.0, 64.0)
    windows: Sequence[float | None] | None = None
    delay: float | Sequence[bool] = 0.5
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
    parametrisation: str = "log"
    freq_bias: bool = False
    bounded_content: bool = False
    axes: int = 1
    helix_scales: Sequence[float] | Sequence[Sequence[float] | None] = (4.0, 16.0, 64.0)
    value_rotation: float | Sequence[float | bool | None] | None = None
    short_convolution: int | None = None
    value_residual: bool = False
    nearest_gate: bool = True

    @classmethod
    def paper(cls, **overrides: Any) -> OSNConfig:
        """The published formulation (Hays 2026, arXiv 2602.14445), made causal; `overrides` are any fields.

        Symmetric frequencies and phases as wide as the head, with biases; no position; the token itself takes
        part; the absolute frame and S itself as the strength; one coupling for all heads through softplus. It
        starts as published, too: no two different tokens lock, so that attention is the identity and the
        frequencies get no gradient.
        """
        hidden = overrides.get("hidden_size", cls.hidden_size)
        heads = overrides.get("num_attention_heads", cls.num_attention_heads)
        check_heads(hidden, heads)
        feed_forward = {"gated": False, "hidden_act": "gelu"}
        return cls(**{**published(hidden // heads), **feed_forward, **overrides})

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> Self:
        """A mix of heads by name, see `syncattn.nn.preset`; `overrides` are any fields.

        Only texts are read causally. What is stored are the mix's own fields, so that a model outlives a
        change of the presets.

        Raises:
            TypeError, ValueError: as `syncattn.nn.preset`, and as the class.
        """
        heads = overrides.get("num_attention_heads", cls.num_attention_heads)
        check_heads(overrides.get("hidden_size", cls.hidden_size), heads)
        return cls(**{**preset(name, heads), "is_causal": name in CAUSAL, **overrides})

    def check(self) -> None:
        """As `DecoderConfig.check`, and the options of synchronization, as the layer asks of them."""
        super().check()
        for name in ("phase_dim", "axes"):
            check_size(name, getattr(self, name))
        for name in ("freq_dim", "top_k", "directed_rank"):
            if getattr(self, name) is not None:
                check_size(name, getattr(self, name))
        flags = "detuning", "self_coupling", "order_parameter", "freq_bias", "bounded_content"
        for name in (*flags, "value_residual", "nearest_gate"):
            check_flag(name, getattr(self, name))
        check_looking_back(self.token_shift, self.short_convolution)
        freq_dim = min(16, self.head_dim) if self.freq_dim is None else self.freq_dim
        check_frequency(
            *(freq_dim, self.position, self.window_range, self.delay),
            num_heads=self.num_attention_heads,
            axes=self.axes,
            helix_scales=self.helix_scales,
            directed=self.directed,
            directed_rank=self.directed_rank,
            windows=self.windows,
        )
        check_value_rotation(self.value_rotation, self.num_attention_heads, self.head_dim, self.axes)
        check_synchronization(self.frame, self.power, self.edge, self.eps, self.top_k)
        check_start(self.density_range, self.sharpness, self.parametrisation)
        # JSON makes lists of tuples
        self.window_range, self.helix_scales = tuple(self.window_range), frozen_scales(self.helix_scales)
        for name in ("position", "directed", "delay", "windows", "value_rotation"):
            if isinstance(getattr(self, name), list):
                setattr(self, name, tuple(getattr(self, name)))
        self.density_range = None if self.density_range is None else tuple(self.density_range)


class OSNPreTrainedModel(DecoderPreTrainedModel):
    """What the models of an OSN share: the configuration, and the calibrated start of their attention."""

    config: OSNConfig
    config_class = OSNConfig

    def initialize_weights(self) -> None:
        """Initialise what no checkpoint had. Of one of symmetric heads, directed ones go on as they were."""
        frequencies = [module for module in self.modules() if isinstance(module, Frequency)]
        new = [f for f in frequencies if f.send_proj is not None and not _is_loaded(f.send_proj.weight)]
        super().initialize_weights()
        for frequency in new:
            frequency.start_symmetric_()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise one submodule; the layers' own are initialised before them."""
        if isinstance(module, SelectiveSynchronizationAttention):
            _reset(module, ("value_proj.", "out_proj."))
        elif isinstance(module, Frequency):
            # Of a checkpoint of other heads, say symmetric ones; a new one is the attention's to initialise.
            if any(map(_is_loaded, module.parameters())):
                _reset(module)
        else:
            super()._init_weights(module)


class OSNModel(OSNPreTrainedModel, DecoderModel):
    """Token embedding, a stack of OSN blocks and a final LayerNorm: hidden states, no output layer.

    There is no table of positions: position is in the frequencies. With is_causal=False every token sees all
    of its text, and the order parameter is one number for all of it; delay and token shift still look at the
    token before.

    Args:
        config: sizes and options.

    Raises:
        TypeError, ValueError: the configuration is inconsistent.
    """

    attention_class = SelectiveSynchronizationAttention


class OSNForCausalLM(OSNPreTrainedModel, DecoderForCausalLM):
    """`OSNModel` with an output layer: next-token logits, the language-modelling loss, `generate()`.

    Args:
        config: sizes and options.

    Example:
        >>> model = OSNForCausalLM(OSNConfig(hidden_size=128, num_hidden_layers=2))
        >>> ids = torch.randint(0, 256, (1, 32))
        >>> model(ids, labels=ids).loss                      # a scalar to call backward() on
        >>> model.generate(ids, max_new_tokens=20)           # cached decoding
    """

    model_class = OSNModel


def _is_loaded(parameter: torch.Tensor) -> bool:
    return getattr(parameter, "_is_hf_initialized", False)  # transformers' mark of what a checkpoint had


def _reset(module: SelectiveSynchronizationAttention | Frequency, others: tuple[str, ...] = ()) -> None:
    """Give a module the layer's own, calibrated start, but for what was loaded and for `others`, by the
    beginnings of their names."""
    own = dict(module.named_parameters())
    kept = {
        name: parameter.detach().clone()
        for name, parameter in own.items()
        if name.startswith(others) or _is_loaded(parameter)
    }
    if len(kept) == len(own):
        return
    module.reset_parameters()
    for name, value in kept.items():
        own[name].copy_(value)

"""Tiny models whose weights are far from their start, so that every part of them shows in the logits."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from transformers.utils import logging

from syncattn import models
from syncattn.models import OSNConfig, OSNForCausalLM, TransformerConfig, TransformerForCausalLM
from syncattn.models.decoder import DecoderModel
from syncattn.nn import calibrate

logging.disable_progress_bar()

SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "initializer_range": 0.1,
    "pad_token_id": 0,
}
DENSE = SIZES | {"density_range": (0.2, 0.8)}  # these texts are too short for the default densities
OSN = {
    "osn": OSNConfig(**DENSE),
    "osn directed": OSNConfig(**DENSE, directed_rank=None, detuning=True),
    "osn own drift": OSNConfig(**DENSE, position="own_drift", freq_dim=4, phase_dim=2),
    "osn rotary": OSNConfig(**DENSE, position="rotary", delay=1.0),
    "osn no position": OSNConfig(**DENSE, position="none", delay=0.0, order_parameter=False),
    "osn mix": OSNConfig(
        **DENSE,
        position=["drift", "own_helix", "none", "own_screw"],
        helix_scales=[2.0, 8.0],
        value_rotation=100.0,
        directed=[False, False, True, True],
        delay=[True, False, True, False],
        windows=[5.0, None, None, 20.0],
    ),
    "osn top k": OSNConfig(**DENSE, top_k=3, self_coupling=True, power=1, edge=0.01),
    "osn token shift": OSNConfig(**DENSE, token_shift=True, gated=True, hidden_act="silu"),
    "osn modern": OSNConfig(
        **DENSE,
        **(CAPPED := {"hidden_act": "relu2", "gated": False, "logit_softcap": 3.0}),
        token_shift=False,
        short_convolution=4,
        value_residual=True,
    ),
    "osn paper": OSNConfig.paper(**SIZES),
    "osn post-norm": OSNConfig(**DENSE, norm_first=False, tie_word_embeddings=False),
}
TRANSFORMERS = {
    "rotary": TransformerConfig(**SIZES),
    "rotary delay": TransformerConfig(**SIZES, delay=0.5),
    "rotary token shift": TransformerConfig(**SIZES, token_shift=True, gated=True, delay=0.5),
    "rotary modern": TransformerConfig(
        **SIZES, **CAPPED, short_convolution=4, qk_norm=True, value_residual=True, delay=0.5
    ),
    "rotary gate": TransformerConfig(**SIZES, score_gate=True, qk_norm=True, delay=0.5),
    "alibi": TransformerConfig(**SIZES, position="alibi"),
    "alibi delay": TransformerConfig(**SIZES, position="alibi", delay=0.5),
    "no position": TransformerConfig(**SIZES, position="none"),
    "yarn": TransformerConfig(**SIZES, rotary_scaling=8.0, max_position_embeddings=16),
}
CONFIGS = OSN | TRANSFORMERS


@cache
def build(name: str) -> OSNForCausalLM:
    """The model of this name, in eval mode; shared between tests, which leave it as it is."""
    config = CONFIGS[name]
    torch.manual_seed(0)
    model = (TransformerForCausalLM if name in TRANSFORMERS else OSNForCausalLM)(config).eval()
    ids = torch.randint(1, config.vocab_size, (2, 24))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            far = "bias", "shift", "convolution", "gains", "value_mix", "send_proj.weight", "ask_mix"
            if parameter_name.endswith(far):
                parameter.normal_(std=0.1)
    if name == "osn paper":  # as published no pair locks
        for layer in model.model.layers:
            torch.nn.init.constant_(layer.self_attn.raw_coupling, 2.0)
            torch.nn.init.constant_(layer.self_attn.raw_bandwidth, -4.0)
    elif name in OSN:
        calibrate(model, ids, use_cache=False)
    return model


@pytest.fixture(params=list(CONFIGS))
def model(request: pytest.FixtureRequest) -> OSNForCausalLM:
    """Every kind of model in turn."""
    return build(request.param)


@pytest.fixture(params=["osn", "osn paper", "alibi delay"])
def typical(request: pytest.FixtureRequest) -> OSNForCausalLM:
    """One model of each attention."""
    return build(request.param)


@pytest.fixture(params=list(OSN))
def osn(request: pytest.FixtureRequest) -> OSNForCausalLM:
    """Every OSN in turn."""
    return build(request.param)


@pytest.fixture
def ids() -> torch.Tensor:
    """Token ids (3, 13), none of them padding."""
    return torch.randint(1, SIZES["vocab_size"], (3, 13), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def mask(ids: torch.Tensor) -> torch.Tensor:
    """Left padding of 0, 4 and 9 tokens."""
    return (torch.arange(13) >= torch.tensor([[0], [4], [9]])).long()


@pytest.fixture
def build_model():
    """A copy of the model of a name, which a test may change."""
    return lambda name: copy.deepcopy(build(name))


@cache
def build_encoder(name: str) -> DecoderModel:
    """The bidirectional base model with the weights of the causal model of this name; shared, too."""
    causal = build(name)
    config = copy.deepcopy(causal.config)
    config.is_causal = False
    encoder = type(causal.model)(config).eval()
    encoder.load_state_dict(causal.model.state_dict())
    if name in OSN and name != "osn paper":
        calibrate(encoder, torch.randint(1, 40, (2, 24), generator=torch.Generator().manual_seed(3)))
    return encoder


@pytest.fixture(params=list(CONFIGS))
def encoder(request: pytest.FixtureRequest) -> DecoderModel:
    """Every kind of model in turn, bidirectional and without a head."""
    return build_encoder(request.param)


@pytest.fixture(params=["osn", "osn paper", "alibi delay"])
def typical_encoder(request: pytest.FixtureRequest) -> DecoderModel:
    """One bidirectional model of each attention."""
    return build_encoder(request.param)


@pytest.fixture
def build_head():
    """A model with a head, of its own: `build_head(name, "ForMaskedLM", is_causal=False, **fields)`, with the
    weights of the model of that name."""

    def made(name: str, task: str, is_causal: bool = False, **fields):
        base = build(name).model if is_causal else build_encoder(name)
        config = copy.deepcopy(base.config)
        for field, value in fields.items():
            setattr(config, field, value)
        kind = getattr(models, ("Transformer" if name in TRANSFORMERS else "OSN") + task)
        torch.manual_seed(0)
        head = kind(config).eval()
        head.model.load_state_dict(base.state_dict())
        return head

    return made

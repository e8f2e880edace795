"""Layers of every kind, with weights far from their start, so that each part of them shows in the output."""

import pytest
import torch

from syncattn.nn import SelectiveSynchronizationAttention
from syncattn.nn.published import published

EMBED_DIM, HEADS = 24, 4
KINDS = {
    "default": {},
    "own drift": {"position": "own_drift", "phase_dim": 2},
    "rotary, all delayed": {"position": "rotary", "delay": 1.0},
    "no position": {"position": "none", "delay": 0.0, "order_parameter": False},
    "directed": {"directed": True, "detuning": True, "freq_bias": True},
    "absolute": {"frame": "absolute", "power": 1, "edge": 0.01, "self_coupling": True, "delay": 0.0},
    "token shift": {"token_shift": True},
    "token shift, directed": {"token_shift": True, "directed": True, "delay": 0.0},
    "directed by a rank": {"directed": [False, True, True, True], "directed_rank": 2, "token_shift": True},
    "bounded": {"bounded_content": True, "directed": [False, True, True, False], "token_shift": True},
    "top k": {"top_k": 3, "delay": 0.25, "freq_dim": 2},
    "nearest gate": {"nearest_gate": True, "token_shift": True},
    "mix of forms": {"position": ["drift", "own_helix", "none", "rotary"], "helix_scales": (2.0, 9.0)},
    "mix of kinds": {
        "position": ["drift", "own_screw", "none", "own_drift"],
        "helix_scales": (3.0,),
        "directed": [False, True, True, False],
        "delay": [True, True, False, False],
        "windows": [6.0, 20.0, None, 9.0],
    },
    "published": published(EMBED_DIM // HEADS),
}


def build(kind="default", dtype=torch.float64, seed=0, **options):
    """A layer in eval mode whose heads lock .3 to .8 of their pairs."""
    options = {"density_range": (0.3, 0.8)} | KINDS[kind] | options
    torch.manual_seed(seed)
    layer = SelectiveSynchronizationAttention(EMBED_DIM, HEADS, **options).double().eval()
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name.endswith(("bias", "send_proj.weight", "ask_mix")) or name in ("shift", "gate"):
                parameter.normal_(std=0.3)
        if layer.parametrisation == "softplus":
            layer.raw_coupling.fill_(2.0)
            layer.raw_bandwidth.fill_(-3.0)
        else:
            x = tokens(3, 16)
            layer.calibrate_(x if layer.batch_first else x.transpose(0, 1), is_causal=True)
    return layer.to(dtype)


def tokens(batch, length, seed=1, dtype=torch.float64):
    return torch.randn(
        batch, length, EMBED_DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


@pytest.fixture(name="build")
def build_fixture():
    return build


@pytest.fixture(name="tokens")
def tokens_fixture():
    return tokens


@pytest.fixture(params=KINDS)
def layer(request):
    """Every kind of layer in turn, float64."""
    return build(request.param)

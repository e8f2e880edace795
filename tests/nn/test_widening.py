"""Heads that reach farther than they were trained to."""

import math

import pytest
import torch

from syncattn.models import OSNConfig, OSNForCausalLM
from syncattn.nn import SelectiveSynchronizationAttention, widen_


def test_only_the_widest_heads_change():
    torch.manual_seed(0)
    model = OSNForCausalLM(OSNConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4))
    before = {name: each.clone() for name, each in model.state_dict().items()}
    widen_(model, 4.0)
    for name, after in model.state_dict().items():
        moved = after.float() - before[name].float()
        if name.endswith("log_slope"):  # windows of 4 to 64 tokens, by number
            torch.testing.assert_close(moved, torch.tensor([0.0, 0.0, 0.0, -math.log(4)]))
        else:
            assert not moved.any(), name
    widen_(model, 0.25)
    widen_(model, 3.0, heads=9)  # all four
    slopes = model.model.layers[1].self_attn.frequency.log_slope
    torch.testing.assert_close(
        before["model.layers.1.self_attn.frequency.log_slope"] - slopes, torch.full((4,), math.log(3))
    )


def test_a_like_token_is_heard_from_farther():
    """Of one token that comes twice, 60 tokens apart, among others that are unlike it."""
    torch.manual_seed(0)
    layer = SelectiveSynchronizationAttention(64, 2, windows=[2.0, 4.0], delay=0.0, token_shift=False).eval()
    x = torch.randn(1, 61, 64)
    x[:, 60] = x[:, 0]

    def loudest():
        return layer(x, is_causal=True, need_weights=True, average_attn_weights=False)[1][0, :, 60].argmax(-1)

    assert loudest().tolist() == [59, 59]
    widen_(layer, 64.0)
    assert loudest().tolist() == [59, 0]


def test_layers_without_drift_are_passed_by_and_axes_go_together():
    places = SelectiveSynchronizationAttention(32, 4, position=["drift", "none", "drift", "helix"], axes=1)
    images = SelectiveSynchronizationAttention(32, 4, axes=2, delay=0.0, token_shift=False)
    none = SelectiveSynchronizationAttention(32, 4, position="none")
    before = images.frequency.log_slope.detach().clone()
    widen_(torch.nn.ModuleList([places, images, none]), 2.0)
    moved = (before - images.frequency.log_slope) / math.log(2)
    torch.testing.assert_close(moved.round().abs(), torch.tensor([[0.0, 0.0, 0.0, 1.0]] * 2))
    assert places.frequency.log_slope.shape == (2,)


def test_bad_arguments_change_nothing():
    layer = SelectiveSynchronizationAttention(32, 4)
    before = layer.frequency.log_slope.detach().clone()
    for given, kind, message in (
        ({"factor": 0}, ValueError, "factor must be a positive number, got 0"),
        ({"factor": math.inf}, ValueError, "factor must be a positive number, got inf"),
        ({"factor": "16"}, TypeError, "factor must be a number"),
        ({"factor": 2.0, "heads": 0}, ValueError, "heads must be"),
    ):
        with pytest.raises(kind, match=message):
            widen_(layer, **given)
    with pytest.raises(TypeError, match=r"module must be a torch.nn.Module, got str"):
        widen_("layer", 2.0)
    with pytest.raises(ValueError, match="module must have a layer with heads that drift, got Linear"):
        widen_(torch.nn.Linear(2, 2), 2.0)
    assert torch.equal(layer.frequency.log_slope, before)
